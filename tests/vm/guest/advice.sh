# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Preserves $MEMFD MiB, hands over with what handover-args prints, and decides; then a program takes $FILL of what is free,
# or the memory is asked for.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    [ "$MEMFD" -lt 1000 ] || echo always >/sys/kernel/mm/transparent_hugepage/shmem_enabled
    preserve "$MEMFD"
    arguments
    report checkpoint 1
    handover "$CMDLINE $ARGUMENTS"
fi
decide
pools
if [ "$FILL" ]; then report filled "$(fill "$FILL")"; else report retrieved "$(luo retrieve guest "$MEMFD")"; fi
