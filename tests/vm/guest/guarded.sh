# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Hands over with a guard that is said to be $LESS bytes less than is reserved, or with a reservation that is not ours if
# $LESS is empty; then decides.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    guard
    handover "$CMDLINE $CRASHKERNEL ${LESS:+safemem.guard=$FIRST-$((LAST - LESS))}"
fi
report before "$(meminfo MemTotal)"
decide
