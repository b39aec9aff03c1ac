# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Hands over with a guard, decides, and loads a crash kernel as kdump would.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    guard
    handover "$CMDLINE $CRASHKERNEL safemem.guard=$FIRST-$LAST"
fi
decide
cat "$(disk kernel)" >/next
report load "$(kexec -s -p /next --command-line=x 2>&1 && echo loaded)"
report loaded "$(cat /sys/kernel/kexec_crash_loaded)"
