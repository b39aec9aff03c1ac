# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# The same blocks by a C loop and by $PROGRAM, in turn.
python() {
    /usr/lib/safemem/lib/ld.so --library-path /usr/lib/safemem/lib /usr/lib/safemem/bin/python3 -I -S -B "$@"
}
loop='' ours=''
for _ in 1 2 3 4 5 6 7 8 9 10; do
    loop="$loop $(online 32 "$LAST" online_movable)"
    online 32 "$LAST" offline >/tmp/off
    ours="$ours $(python -c "$PROGRAM")"
    online 32 "$LAST" offline >/tmp/off
done
report loop "$loop"
report ours "$ours"
