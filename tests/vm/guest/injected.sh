# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Runs the boot program once for each line of $FAULTS, `NAME WORDS FOR strace`, with the system calls failing that it
# says; without words none does. Hands over first, if there is a next kernel, with a guard if $GUARDED; the program finds
# $BEFORE in auto_online_blocks.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ] && [ -n "$(disk kernel)" ]; then
    guard
    handover "$CMDLINE printk.devkmsg=on ${GUARDED:+$CRASHKERNEL safemem.guard=$FIRST-$LAST}"
fi
report limit "$(cat /proc/sys/kernel/kexec_load_limit_panic)"
# The wrapper starts the interpreter by its loader: a script in its place starts it under strace.
mv /usr/lib/safemem/lib/ld.so /usr/lib/safemem/lib/real.so
cp /traced.sh /usr/lib/safemem/lib/ld.so
printf '%s\n' "$FAULTS" | while read -r name words; do
    rm -rf /run/safemem /run/systemd /run/udev
    echo "$BEFORE" >"$MEMORY/auto_online_blocks"
    echo "$name $words" >/tmp/fault
    /usr/lib/safemem/boot
    report "$name.returned" $?
    report_file "$name.record" /run/safemem/decision.json
    report "$name.dimm" "$(blocks 32 39)"
    report "$name.auto_online" "$(cat "$MEMORY/auto_online_blocks")"
    report "$name.guard" "$(cat /sys/kernel/kexec_crash_size)"
    report "$name.limit" "$(cat /proc/sys/kernel/kexec_load_limit_panic)"
done
