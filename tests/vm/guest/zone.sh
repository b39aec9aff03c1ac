# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Decides, preserves memory, hands over, decides again and asks for the memory.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    decide
    preserve 400
    handover "$CMDLINE"
fi
report next alive
decide
report retrieved "$(luo retrieve guest 400)"
