#!/bin/sh
# SPDX-License-Identifier: MIT
# /usr/lib/safemem/boot: run by the init, before udev and before anything loads a memory driver.
#
# Ends with 42 if the boot may go on and does not return otherwise: a missing interpreter, a crash,
# a hang, a corrupt policy and a program that ends without a decision all end in ON_FAILURE,
# which this script knows by itself. No other status lets a boot go on: 0 is also how a script
# ends that is empty, cut off or not carried out.
#
# POSIX sh, works with busybox. Needs sleep; mount if /proc, /sys, /dev or debugfs are missing.
# Nothing here needs /dev/null, which may be missing as well.
set +C +e +f -u
# Of what this script decides with: bash takes functions from its environment.
unset -f kill printf read sleep wait || :

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
MEMORY=$ROOT/sys/devices/system/memory
# What becomes of memory that arrives, before the program holds it.
BEFORE=''

# One line on the console, which takes at most 1024 bytes: the builder keeps MESSAGE short.
say() {
    printf '<0>safemem: %s\n' "$1" 2>&- >"$ROOT/dev/kmsg" || :
    printf 'safemem: %s\n' "$1" >&2 || :
}

# give_back COMMAND_LINE: the guards, but for the gigantic pages that are the operator's own (safemem/boot/asked.py).
give_back() {
    set -f
    guard=''
    for word in $1; do
        case $word in safemem.guard=*) guard=${word#*=} ;; esac
    done
    [ -n "$guard" ] || return 0
    printf 0 2>&- >"$ROOT/sys/kernel/kexec_crash_size" || :
    case $guard in *';1G='*) ;; *) return 0 ;; esac
    own=''
    case $guard in *';own='*)
        own=,${guard#*;own=}
        own=${own%%;*},
        ;;
    esac
    set +f
    for pool in "$ROOT"/sys/devices/system/node/node[0-9]*/hugepages/hugepages-1048576kB/nr_hugepages; do
        node=${pool%/hugepages/*}
        number=${own#*,"${node##*node}":}
        [ "$number" != "$own" ] || number=0
        printf %s "${number%%,*}" 2>&- >"$pool" || :
    done
}

# go_on CODE REASON: does not return. For a policy that only observes: what it does not bring about, its failure must not
# either. Of the hold nothing stays: memory is what the kernel would have made of it.
go_on() {
    say "go-on code=$1"
    say "$2: the policy only observes, so this boot goes on without a decision"
    rm -f "$STATE/decision.json" "$STATE/decision.env" || :
    line=''
    read -r line 2>&- <"$ROOT/proc/cmdline" || :
    asked=''
    # As safemem/boot/cmdline.py reads it: `-` is `_`, quotation marks may be there, the last word that is one counts.
    set -f
    for word in $line; do
        word=${word#\"}
        case $word in
        --) break ;;
        memhp[-_]default[-_]state=*)
            word=${word#*=}
            word=${word#\"}
            case ${word%\"} in
            offline) asked=online ;;
            online | online_kernel | online_movable) asked='' ;;
            esac
            ;;
        esac
    done
    case $BEFORE in online | online_*) ;; *) BEFORE=$asked ;; esac
    case $BEFORE in online | online_movable | online_kernel)
        printf '%s' "$BEFORE" 2>&- >"$MEMORY/auto_online_blocks" || :
        set +f
        for block in "$MEMORY"/memory*/state; do
            state=''
            read -r state 2>&- <"$block" || :
            [ "$state" != offline ] || printf '%s' "$BEFORE" 2>&- >"$block" || :
        done
        ;;
    esac
    give_back "$line"
    mkdir -p "$STATE" || :
    printf 'failed\n' 2>&- >"$STATE/passed" || :
    exit 42
}

# end ACTION CODE REASON: does not return. The first line and the last but one are for programs, the others for people.
end() {
    trap '' TERM INT HUP
    [ "$1" != continue ] || go_on "$2" "$3"
    # The kernel's own line about the panic names nobody; this is the process that it names after it.
    printf 'safemem' 2>&- >"$ROOT/proc/self/comm" || :
    say "end action=$1 code=$2"
    say "$1: $3"
    # The one other action that this script is told to take is halt, which has no keys.
    keys=''
    [ "$1" != "$ON_FAILURE" ] || keys=$KEYS
    for key in $keys; do
        printf '%s' "$key" >"$ROOT/proc/sysrq-trigger" || :
        say "writing \`$key\` to /proc/sysrq-trigger did not end this boot"
    done
    if [ -z "$ROOT" ]; then
        halt -f || busybox halt -f || :
    fi
    say 'end code=stopped'
    say 'this boot stops here: reset the machine'
    while :; do
        sleep 3600 2>&-
    done
}

# mounted: whether a hugetlbfs is where the program makes its files. A folder of that name alone keeps nothing.
mounted() {
    while read -r line; do
        case $line in *" $STATE/pages hugetlbfs "*) return 0 ;; esac
    done </proc/mounts
    return 1
}

# Gigantic pages that the guard has set aside: the program keeps programs from them by a file on a hugetlbfs that only root
# reaches. A pool that is empty guards nothing.
pages() {
    line=''
    read -r line 2>&- </proc/cmdline || :
    case $line in *safemem.guard=*) ;; *) return 0 ;; esac
    set +f
    for pool in /sys/kernel/mm/hugepages/hugepages-*kB; do
        size=${pool##*-}
        size=${size%kB}
        number=0
        read -r number 2>&- <"$pool/nr_hugepages" || :
        # The smaller sizes come from the page allocator.
        [ "${#size}" -lt 7 ] || [ "$number" = 0 ] || mounted || {
            [ ! -h "$STATE/pages" ] || rm -f "$STATE/pages"
            mkdir -p "$STATE/pages" && mount -t hugetlbfs -o "pagesize=${size}K,mode=0700" hugetlbfs "$STATE/pages"
        } || :
    done
}

program() {
    "$PREFIX/lib/ld.so" --library-path "$PREFIX/lib" "$PREFIX/bin/python3" -I -S -B -c '
import sys
sys.path.insert(0, sys.argv.pop(1))
from safemem.boot.main import main
sys.exit(main(sys.argv[1:]))' "$PREFIX/app" ${ROOT:+--root "$ROOT"}
}

# finished: whether the program has said so as the last thing that it did. Of a FIFO nobody waits for the end.
finished() {
    [ -f "$STATE/decision.env" ] || return 1
    while read -r line; do
        case $line in SAFEMEM_FINISHED=yes) return 0 ;; esac
    done <"$STATE/decision.env"
    return 1
}

# there FILE: whether there is anything of that name, a link to nothing included.
there() {
    [ -e "$1" ] || [ -h "$1" ]
}

# Kills process $1 when it has made no progress for DEADLINE seconds. The program counts in a
# file, so that onlining terabytes may take its time and a hang may not.
watchdog() {
    before=none
    while sleep "$DEADLINE"; do
        now=''
        [ ! -f "$STATE/progress" ] || read -r now <"$STATE/progress" || :
        [ "$now" != "$before" ] || break
        before=$now
        # The first look only arms: without a file there is no progress to wait for.
        [ -n "$now" ] || break
    done
    say "no progress for $DEADLINE s"
    kill -9 "$1"
}

if [ $# != 0 ]; then
    printf 'safemem: %s takes no arguments; %s/capture prints the state of this machine\n' "$0" "$PREFIX" >&2
    exit 2
fi
trap '' PIPE
trap 'end "$ON_FAILURE" told-to-stop "$MESSAGE (the wrapper was told to stop)"' TERM INT HUP
# shellcheck source=safemem/initramfs/files/mounts.sh
[ -n "$ROOT" ] || [ ! -r "$PREFIX/mounts.sh" ] || . "$PREFIX/mounts.sh"
[ -n "$ROOT" ] || pages 2>&-

# What counts has to be of this boot.
rm -f "$STATE/passed" "$STATE/decision.json" "$STATE/decision.env" "$STATE/progress" || :
for old in passed decision.json decision.env; do
    ! there "$STATE/$old" || end "$ON_FAILURE" no-decision "$MESSAGE (an old /run/safemem/$old cannot be removed)"
done
[ "$ON_FAILURE" != continue ] || read -r BEFORE 2>&- <"$MEMORY/auto_online_blocks" || :
program &
child=$!
watchdog "$child" <&- >&- &
dog=$!
status=0
wait "$child" || status=$?
# Waited for, or bash says on the console that it was killed.
{ kill -9 "$dog" && wait "$dog"; } 2>&- || :

case $status in
    0)
        # Only a decision that was carried out counts; exit status 0 alone proves nothing.
        finished || end "$ON_FAILURE" no-decision "$MESSAGE (the program ended without a decision)"
        # For who cannot see the status: the unit, and a hook that comes after the one that ran this.
        printf 'yes\n' >"$STATE/passed" || end "$ON_FAILURE" no-proof "$MESSAGE (/run/safemem/passed cannot be written)"
        exit 42
        ;;
    5) end halt decided 'as the policy decided' ;;
    126 | 127) end "$ON_FAILURE" no-interpreter "$MESSAGE (the interpreter cannot be started)" ;;
    *) end "$ON_FAILURE" failed "$MESSAGE (the program ended with status $status)" ;;
esac
