# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Runs the kernel's selftests of live update on both sides of a kexec, with $NEXT for the next kernel, and those of memory
# hotplug after it; safemem decides first if it is there.
mount -t debugfs d /sys/kernel/debug
# suite NAME COMMAND: run a selftest and report what it says and its status.
suite() {
    name=$1
    shift
    (cd /selftests && "$@") >/tmp/said 2>&1
    echo "exit $?" >>/tmp/said
    report_file "$name" /tmp/said
}
[ ! -e /usr/lib/safemem/boot ] || decide
if [ "$STAGE" = 1 ]; then
    suite liveupdate ./liveupdate
    for name in $KEXEC; do suite "$name-1" "./$name" --stage 1; done
    handover "$CMDLINE $NEXT"
fi
for name in $KEXEC; do suite "$name-2" "./$name" --stage 2; done
suite liveupdate-2 ./liveupdate
state
for ratio in 2 10; do suite "hotplug-$ratio" bash ./mem-on-off-test.sh -r "$ratio"; done
report after "$(blocks 32 39)"
