# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# One guest of the demo: preserves $MEMFD MiB, hands over with a guard if $GUARD says so, does $THEN in the next kernel,
# and takes all of the $BOOT MiB that are free.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    report scratch "$(paste -d, /sys/kernel/debug/kho/out/scratch_phys /sys/kernel/debug/kho/out/scratch_len | tr '\n' ' ')"
    preserve "$MEMFD"
    # Afterwards: the arguments say whether anything is preserved.
    [ ! "$GUARD" ] || arguments
    report checkpoint 1
    handover "$CMDLINE ${ARGUMENTS-}"
fi
"$THEN"
report checkpoint 2
report filled "$(fill "$BOOT")"
