#!/bin/sh
# SPDX-License-Identifier: MIT
# The init of every guest: runs /script, in stage 1 after power-on, in stage 2 after a kexec.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
STAGE=1
read -r words </proc/cmdline
for word in $words; do
    case $word in stage=*) STAGE=${word#stage=} ;; esac
done
until [ -e /dev/vport0p1 ]; do sleep 0.1; done
# shellcheck source=tests/vm/guest/functions.sh
. /functions.sh
# disk SERIAL: the device of a disk that the test attached, or nothing.
disk() {
    grep -lx "$1" /sys/block/vd*/serial | while read -r serial; do
        serial=${serial%/serial}
        echo "/dev/${serial##*/}"
    done
}
# load [MODE] ARGUMENTS: load the next kernel with the same initrd; `-s` hands memory over, `-c` does not.
load() {
    cat "$(disk kernel)" >/next
    cat "$(disk initrd)" >/initrd
    kexec "$1" -l /next --initrd=/initrd --command-line="$2 stage=2" || return
    rm /next /initrd
}
# handover ARGUMENTS: kexec into the next kernel; does not return.
handover() {
    load -s "$1" || { report kexec failed; poweroff -f; }
    kexec -e
    report kexec returned
    poweroff -f
}
# shellcheck source=/dev/null
. /script
report "done" "$STAGE"
poweroff -f
sleep 1000
