# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Preserves memory, hands over with what handover-args prints, and decides; then a program takes $FILL of what is free,
# or the memory is asked for.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    preserve 256
    arguments
    report checkpoint 1
    handover "$CMDLINE $ARGUMENTS"
fi
decide
if [ "$FILL" ]; then report filled "$(fill "$FILL")"; else report retrieved "$(luo retrieve guest 256)"; fi
