# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# /usr/lib/safemem/proof.sh: sourced right after the gate where hooks are files, which may be cut off or missing. The
# last act of the boot program's wrapper is to leave what this looks for; /run was empty before.
if [ ! -s /run/safemem/passed ]; then
    ACTION=''
    KEYS=''
    if [ "$ACTION" != continue ]; then
        echo safemem 2>&- >/proc/self/comm
        echo "<0>safemem: end action=$ACTION code=no-wrapper" >/dev/kmsg
        echo "<0>safemem: $ACTION: the gate has not let this boot pass" >/dev/kmsg
        for key in $KEYS; do
            echo "$key" >/proc/sysrq-trigger
        done
        while :; do
            sleep 3600 2>&-
        done
    fi
fi
