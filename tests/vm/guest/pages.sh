# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# One row of docs/pages.md: preserves $MEMFD MiB, hands over with what $PROTECTION asks for, does $THEN, and takes all
# $BOOT MiB that are free, or asks for the memory.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    # In pages of 2 MiB: under emulation, gibibytes of small ones take minutes.
    echo always >/sys/kernel/mm/transparent_hugepage/shmem_enabled
    preserve "$MEMFD"
    arguments
    /usr/lib/safemem/handover-args --explain 2>/tmp/explained >/tmp/arguments
    report_file explained /tmp/explained
    report checkpoint 1
    words=
    for word in $ARGUMENTS; do
        case $PROTECTION:$word in
            nothing:*) continue ;;
            quarantine:safemem.safe=*) ;;
            quarantine:*) continue ;;
            crash*:hugepages*) continue ;;
            crash*:safemem.guard=*) word=${word%%;*} ;;
        esac
        words="$words $word"
    done
    handover "$CMDLINE $words $MORE"
fi
"$THEN"
pools
if [ "$RETRIEVE" ]; then report retrieved "$(luo retrieve guest "$MEMFD")"; else report filled "$(fill "$BOOT")"; fi
