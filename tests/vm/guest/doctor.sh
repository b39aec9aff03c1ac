# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Faults in a real root, then none: an initrd in which nothing starts safemem, Debian's own kexec-load, and a late rule.
initrd="/boot/initrd.img-$(uname -r)"
cp /verdict.d/late /usr/lib/udev/rules.d/41-late.rules
mv /initrd.unstarted "$initrd"
safemem doctor --format json >/tmp/first
report first_code $?
report_file first /tmp/first
safemem doctor >/tmp/text
report_file text /tmp/text
mv /initrd.good "$initrd"
sed -i s/^LOAD_KEXEC=true/LOAD_KEXEC=false/ /etc/default/kexec
ln -sf /dev/null /etc/udev/rules.d/41-late.rules
safemem doctor --format json >/tmp/second
report second_code $?
report_file second /tmp/second
report dimm "$(blocks 32 39)"
