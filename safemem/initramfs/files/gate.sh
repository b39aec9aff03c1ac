# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# /usr/lib/safemem/gate.sh: belongs into an init that is a shell script, before anything of its own that may load a
# driver. The boot program is a process of its own: nothing that was sourced before can return past it, and
# what comes after it runs only if it ended with 42, which no script does by accident.
SAFEMEM_STATUS=''
/usr/lib/safemem/boot </dev/null || SAFEMEM_STATUS=$?
case $SAFEMEM_STATUS in 42) ;; *)
    # The wrapper does not return but with 42: if it did, it could not be started, or not to its end.
    ACTION=''
    KEYS=''
    if [ "$ACTION" != continue ]; then
        echo safemem 2>&- >/proc/self/comm
        echo "<0>safemem: end action=$ACTION code=no-wrapper" >/dev/kmsg
        echo "<0>safemem: $ACTION: the boot program cannot be started" >/dev/kmsg
        for key in $KEYS; do
            echo "$key" >/proc/sysrq-trigger
        done
        while :; do
            sleep 3600 2>&-
        done
    fi
    ;;
esac
