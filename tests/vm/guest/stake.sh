# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Preserves 16 MiB if $HELD, and hands over with what handover-args prints, of which `sed` made something else by $FORGE;
# then decides.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    [ -z "$HELD" ] || preserve 16
    report links "$(for link in /proc/[0-9]*/fd/*; do readlink "$link"; done | grep -F anon_inode:)"
    arguments
    report_file why /tmp/why
    handover "$CMDLINE $(printf '%s\n' "$ARGUMENTS" | sed "$FORGE")"
fi
decide
