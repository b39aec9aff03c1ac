# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Stage 1 makes a region, fills its memory as guests would and hands over; stage 2 decides and takes $MIB of memory.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    region
    place
    report first "$(bound) $(blocks "$FIRST" "$LAST")"
    give device_dax
    report before "$(dax fill "$START" 8)"
    report checkpoint 1
    sleep 1
    handover "$CMDLINE"
fi
place
report again "$(bound)"
decide
report filled "$(fill "$MIB")"
cxl_blocks dax
report checkpoint 2
sleep 1
