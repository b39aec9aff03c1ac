# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# A real udevd: `coldplug` as at a boot, `plugged` for memory that comes after the checkpoint; the boot DIMM has blocks
# 32 to 39.
mkdir -p /run/udev /lib/systemd /etc
ln -sf /bin/udevadm /lib/systemd/systemd-udevd
coldplug() {
    /lib/systemd/systemd-udevd --daemon
    udevadm trigger --type=subsystems --action=add
    udevadm trigger --type=devices --action=add
    udevadm settle
}
plugged() {
    report checkpoint 1
    n=0
    until [ -e "$MEMORY/memory47" ] || [ $n = 100 ]; do sleep 0.1; n=$((n + 1)); done
    udevadm settle
    sleep 1
    grown=none
    until [ "$grown" = "$(blocks 64 87)" ]; do grown=$(blocks 64 87); sleep 2; done
    report later "$(blocks 40 47)"
    report grown "$grown"
}
info() { udevadm info "$MEMORY/memory$1" >/tmp/info; report_file info /tmp/info; }
