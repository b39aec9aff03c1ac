# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Stage 1 fills the DIMM with the pattern and hands over with $NEXT; stage 2 does $THEN and takes $MIB of memory.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    for n in 32 33 34 35 36 37 38 39; do echo online_movable >"$MEMORY/memory$n/state"; done
    luo hold 1500 >/tmp/held &
    until [ -s /tmp/held ]; do sleep 0.1; done
    report checkpoint 1
    sleep 1
    handover "$CMDLINE $NEXT"
fi
"$THEN"
report filled "$(fill "$MIB")"
