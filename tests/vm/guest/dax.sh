# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Stage 1 fills the dax device as guests would and hands over with $NEXT; stage 2 does $THEN and takes $MIB of memory.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    report first "$(bound) $(blocks 4 5)"
    give device_dax
    report given "$(blocks 4 5)"
    report before "$(dax fill "$START" 64)"
    report checkpoint 1
    sleep 1
    handover "$CMDLINE $NEXT"
fi
report again "$(bound)"
"$THEN"
report filled "$(fill "$MIB")"
dax_blocks dax
