# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Stage 1 hands over, stage 2 decides, and stage 3 is the boot after: what is left of the one before.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then handover "$CMDLINE $RAMOOPS"; fi
if [ "$STAGE" = 2 ]; then decide; poweroff -f; fi
