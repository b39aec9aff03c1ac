# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Hands over to the initramfs of a distribution, with /next_cmdline.
mount -t debugfs d /sys/kernel/debug
cat "$(disk kernel)" >/next
cat "$(disk system_initrd)" >/initrd
kexec -s -l /next --initrd=/initrd --command-line="$(cat /next_cmdline)" || { report kexec failed; poweroff -f; }
rm /next /initrd
kexec -e
