# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Preserves memory and hands over, with a guard if $GUARDED; then a program takes what is free.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    preserve 256
    guard
    report checkpoint 1
    handover "$CMDLINE ${GUARDED:+$CRASHKERNEL safemem.guard=$FIRST-$LAST}"
fi
decide
report filled "$(fill 500)"
