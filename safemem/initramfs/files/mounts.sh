# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# /usr/lib/safemem/mounts.sh: sourced by the archive's programs, to mount what an init has not. Failure is left for the
# probe to see: a fact that it cannot read is unknown, and the policy says what that means.
{
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
} >&- 2>&-
