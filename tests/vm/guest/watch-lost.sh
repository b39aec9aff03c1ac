# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Events are lost while the daemon stands still, and it is killed and started again.
kill -STOP "$WATCH"
n=0
while [ $n -lt 60000 ]; do echo add; n=$((n + 1)); done >"$MEMORY/memory32/uevent"
plug
echo online_movable >"$MEMORY/memory35/state"
report drops "$(awk 'NR > 1 { sum += $9 } END { print sum }' /proc/net/netlink)"
report stopped "$(blocks 32 47)"
kill -CONT "$WATCH"
until grep -q '"onlined": "512 MiB"' /tmp/watch && grep -q 'held memory was onlined' /tmp/watch; do sleep 0.2; done
report after "$(blocks 32 47)"
sleep 5
kill -KILL "$WATCH"
report_file before /run/safemem/watch.json
watch /tmp/again
sleep 2
echo online_movable >"$MEMORY/memory36/state"
until grep -q 'held memory was onlined' /tmp/again; do sleep 0.2; done
report_file counts /run/safemem/watch.json
report_file log /tmp/watch
report_file again /tmp/again
