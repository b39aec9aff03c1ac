# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# The power is cut in the middle of a release of $RANGES.
# shellcheck disable=SC2086  # without ranges, no word
release $RANGES &
middle
kill -STOP $!
sleep 1
report guard "$(left)"
report blocks "$(blocks "$FIRST" "$LAST")"
report checkpoint 1
sleep 1000
