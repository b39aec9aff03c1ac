# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# /usr/lib/safemem/gate.sh: sourced by an init that is a shell script, before anything of its own that may load a
# driver. The boot program is a process of its own: nothing that was sourced before can return past it, and
# what comes after it runs only if it said so.
/usr/lib/safemem/boot </dev/null || {
    # The wrapper does not return but with 0: if it did, it could not be started.
    ACTION=''
    KEYS=''
    echo "<0>safemem: end action=$ACTION code=no-wrapper" >/dev/kmsg
    echo "<0>safemem: $ACTION: the boot program cannot be started" >/dev/kmsg
    for key in $KEYS; do
        echo "$key" >/proc/sysrq-trigger
    done
    while :; do
        sleep 3600
    done
}
