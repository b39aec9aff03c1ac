#!/bin/sh
# SPDX-License-Identifier: MIT
# /usr/lib/safemem/boot: run by the init, before udev and before anything loads a memory driver.
#
# Returns 0 if the boot may go on and does not return otherwise: a missing interpreter, a crash,
# a hang, a corrupt policy and a program that ends without a decision all end in ON_FAILURE,
# which this script knows by itself. `boot capture` prints the machine's state and does nothing.
#
# POSIX sh, works with busybox. Needs sleep; mount if /proc, /sys, /dev or debugfs are missing.
set -u

# The archive's builder replaces these. ROOT is for tests, and deliberately no environment
# variable: nothing that runs before us may redirect us.
ROOT=''
ON_FAILURE='panic'
KEYS='c b'
MESSAGE='safemem could not decide'
DEADLINE='10'
# end of the values

PREFIX=$ROOT/usr/lib/safemem
STATE=$ROOT/run/safemem

say() {
    printf '<0>safemem: %s\n' "$1" 2>/dev/null >"$ROOT/dev/kmsg" || :
    printf 'safemem: %s\n' "$1" >&2 2>/dev/null || :
}

# end ACTION CODE REASON: does not return. The first line is for programs, the second for people.
end() {
    trap '' TERM INT HUP
    say "end action=$1 code=$2"
    say "$1: $3"
    # The one other action that this script is told to take is halt, which has no keys.
    keys=''
    [ "$1" != "$ON_FAILURE" ] || keys=$KEYS
    for key in $keys; do
        printf '%s' "$key" 2>/dev/null >"$ROOT/proc/sysrq-trigger" || :
        say "writing \`$key\` to /proc/sysrq-trigger did not end this boot"
    done
    if [ -z "$ROOT" ]; then
        halt -f 2>/dev/null || busybox halt -f 2>/dev/null || :
    fi
    say 'this boot stops here: reset the machine'
    while :; do
        sleep 3600
    done
}

program() {
    "$PREFIX/lib/ld.so" --library-path "$PREFIX/lib" "$PREFIX/bin/python3" -I -S -B -c '
import sys
sys.path.insert(0, sys.argv.pop(1))
from safemem.boot.main import main
sys.exit(main(sys.argv[1:]))' "$PREFIX/app" ${ROOT:+--root "$ROOT"} "$@"
}

# Mounts what is missing. Failure is left for the probe to see: what it cannot read is unknown,
# and the policy says what that means.
mounts() {
    [ -e /proc/self/stat ] || { mkdir -p /proc && mount -t proc proc /proc; }
    [ -d /sys/kernel ] || { mkdir -p /sys && mount -t sysfs sysfs /sys; }
    [ -c /dev/kmsg ] || { mkdir -p /dev && mount -t devtmpfs devtmpfs /dev; }
    for entry in /sys/kernel/debug/*; do
        [ -e "$entry" ] || mount -t debugfs debugfs /sys/kernel/debug
        break
    done
    for entry in /sys/firmware/efi/efivars/*; do
        [ -e "$entry" ] || [ ! -d /sys/firmware/efi/efivars ] || mount -t efivarfs efivarfs /sys/firmware/efi/efivars
        break
    done
}

# finished: whether the program has said so as the last thing that it did.
finished() {
    while read -r line; do
        [ "$line" != SAFEMEM_FINISHED=yes ] || return 0
    done 2>/dev/null <"$STATE/decision.env"
    return 1
}

# Kills process $1 when it has made no progress for DEADLINE seconds. The program counts in a
# file, so that onlining terabytes may take its time and a hang may not.
watchdog() {
    before=none
    while sleep "$DEADLINE"; do
        now=''
        [ ! -e "$STATE/progress" ] || read -r now <"$STATE/progress" || :
        [ "$now" != "$before" ] || break
        before=$now
        # The first look only arms: without a file there is no progress to wait for.
        [ -n "$now" ] || break
    done
    say "no progress for $DEADLINE s"
    kill -9 "$1"
}

trap '' PIPE
[ -n "$ROOT" ] || mounts >/dev/null 2>&1
if [ "${1:-}" = capture ]; then
    program capture
    exit
fi

trap 'end "$ON_FAILURE" told-to-stop "$MESSAGE (the wrapper was told to stop)"' TERM INT HUP
rm -f "$STATE/decision.json" "$STATE/decision.env" "$STATE/progress" 2>/dev/null
program "$@" &
child=$!
watchdog "$child" </dev/null >/dev/null &
dog=$!
wait "$child"
status=$?
kill -9 "$dog" 2>/dev/null

case $status in
    0)
        # Only a decision that was carried out counts; exit status 0 alone proves nothing.
        ! finished || exit 0
        end "$ON_FAILURE" no-decision "$MESSAGE (the program ended without a decision)"
        ;;
    5) end halt decided 'as the policy decided' ;;
    126 | 127) end "$ON_FAILURE" no-interpreter "$MESSAGE (the interpreter cannot be started)" ;;
    *) end "$ON_FAILURE" failed "$MESSAGE (the program ended with status $status)" ;;
esac
