# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Goes from one kernel of $ROUTE to the next, each time with a preserved memfd, and reports what each makes of its
# predecessor's handover. What the kernel shows decides, not what safemem says; $QUICK makes its boot short.
mount -t debugfs d /sys/kernel/debug
mkdir /kernels
mount -t 9p -o trans=virtio,version=9p2000.L,ro kernels /kernels
# nth N: the Nth kernel of the route, or nothing.
nth() { echo "$ROUTE" | cut -d' ' -f"$1"; }

offered=no
for file in /sys/kernel/boot_params/setup_data/*/type; do
    [ ! -e "$file" ] || [ "$(cat "$file")" != 0xa ] || offered=yes
done
accepted=no
[ ! -e /sys/kernel/debug/kho/in/fdt ] || accepted=yes
shown=no
[ ! -e /sys/kernel/debug/kho/out ] || shown=yes
if [ "$STAGE" -gt 1 ]; then
    got="$(luo retrieve guest 1 2>&1)"
    report "saw$STAGE" "$offered $accepted $shown $got"
fi
next="$(nth $((STAGE + 1)))"
[ -n "$next" ] || poweroff -f
report "from$STAGE" "$(nth "$STAGE")"
[ ! -e /dev/liveupdate ] || preserve 1
kexec -s -l "/kernels/$next" --initrd=/kernels/initrd --command-line="$CMDLINE $QUICK stage=$((STAGE + 1))" ||
    report failed "$STAGE"
kexec -e
report failed "$STAGE"
