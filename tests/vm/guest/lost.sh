# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Preserves $MIB of memory, if any, and hands over; then decides, and a program takes $FILL more.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    [ "$MIB" = 0 ] || preserve "$MIB"
    handover "$CMDLINE"
fi
decide
report boot "$(blocks 0 7)"
report available "$(meminfo MemAvailable)"
report filled "$(fill "$FILL")"
report all "$(all_blocks)"
