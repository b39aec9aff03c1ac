# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Preserves memory, and loads the next kernel with kexec_load(2), which hands nothing over; $GUARDED: with a guard.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    preserve 16
    if [ -n "${GUARDED:-}" ]; then
        guard
        # Nothing tells the unpacker of scratch areas here, so it could put the image into the guard.
        CMDLINE="$CMDLINE $CRASHKERNEL safemem.guard=$FIRST-$LAST nokaslr"
    fi
    load -c "$CMDLINE" && kexec -e
    report kexec failed
fi
decide
report retrieved "$(luo retrieve guest 16)"
