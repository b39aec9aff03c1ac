# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Memory arrives, and somebody onlines a held block.
plug
until grep -q '"onlined": "512 MiB"' /tmp/watch; do sleep 0.2; done
report later "$(blocks 40 47)"
echo online_movable >"$MEMORY/memory35/state"
report byhand "$(blocks 35 35)"
until grep -q 'held memory was onlined' /tmp/watch; do sleep 0.2; done
sleep 2
report afterwards "$(blocks 35 35)"
safemem status --format json
report_file status /tmp/out
kill "$WATCH"
wait "$WATCH"
report ended $?
state
report_file log /tmp/watch
