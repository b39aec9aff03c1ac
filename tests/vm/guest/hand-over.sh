# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Stage 1 hands over at once with ${NEXT:-nothing more} on the command line, stage 2 decides.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    report scratch "$(paste /sys/kernel/debug/kho/out/scratch_phys /sys/kernel/debug/kho/out/scratch_len | tr '\n\t' ' ,')"
    report release "$(uname -r)"
    handover "$CMDLINE ${NEXT:-}"
fi
decide
