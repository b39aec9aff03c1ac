# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Every block but none to online: /proc/uptime counts hundredths of a second, so each is run $ROUNDS times, in turn.
now() {
    read -r seconds rest </proc/uptime
    printf '%s' "${seconds%.*}${seconds#*.}"
}
python() {
    /usr/lib/safemem/lib/ld.so --library-path /usr/lib/safemem/lib /usr/lib/safemem/bin/python3 -I -S -B "$@"
}
bare=0 main=0 boot=0 round=0
while [ $round -le "$ROUNDS" ]; do
    a=$(now)
    python -c pass
    b=$(now)
    python -c "$PROGRAM"
    c=$(now)
    /usr/lib/safemem/boot
    d=$(now)
    # The first round warms the page cache.
    [ $round = 0 ] || bare=$((bare + b - a)) main=$((main + c - b)) boot=$((boot + d - c))
    round=$((round + 1))
done
report bare $bare
report program $main
report boot $boot
report peak "$(python -c "$PROGRAM
$PEAK")"
report bare_peak "$(python -c "$PEAK")"
