# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Gigantic pages after a lost handover, one of them the operator's own: the node $RANGE is given back, then the rest, by a
# release that is interrupted and run again.
safemem release "$RANGE" --reason "this node is empty"
report by_node "$CODE"
report_file by_node_text /tmp/out
pools _node
report stolen "$(gigantic take 65534 0 2)"
sum() { count=0; for nr in $POOLS; do read -r number <"$nr" && count=$((count + number)); done; }
POOLS=$(echo /sys/devices/system/node/node[0-9]*/hugepages/hugepages-1048576kB/nr_hugepages)
sum
whole=$count
{
    until grep -q begun /run/safemem/releases.json; do sleep 0.1; done
    RELEASE=$(pidof safemem)
    until sum && [ "$count" -lt "$whole" ]; do :; done
    kill -INT "$RELEASE"
} &
(exec env PYTHONDONTWRITEBYTECODE=1 chroot /host nice -n 10 "$SAFEMEM" release --reason "guests moved away") >/tmp/out 2>&1
report interrupted $?
report_file said /tmp/out
pools _between
safemem status
report between "$CODE"
report_file between_text /tmp/out
safemem release --reason "guests moved away"
report resumed "$CODE"
report_file resumed_text /tmp/out
pools _after
report small "$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)"
report take "$(gigantic take 65534 0)"
safemem status
report after "$CODE"
report_file after_text /tmp/out
