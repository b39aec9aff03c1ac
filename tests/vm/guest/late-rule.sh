# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Rules that a package brings while memory is held, as dpkg does: by another name, then renamed; one of them in /etc.
rules=/usr/lib/udev/rules.d
cp /late $rules/85-new-agent.rules.dpkg-new
mv $rules/85-new-agent.rules.dpkg-new $rules/85-new-agent.rules
cp /late /etc/udev/rules.d/86-site.rules
n=0
until grep -q 86-site /run/safemem/masked && grep -q 85-new /run/safemem/masked; do
    [ $n -lt 60 ] || break
    sleep 0.5
    n=$((n + 1))
done
sleep 2
udevadm trigger --action=add --subsystem-match=memory
udevadm settle
report dimm "$(blocks 32 39)"
sort /run/safemem/masked >/tmp/masked
report_file masked /tmp/masked
report unit "$(systemctl show -p Result,ActiveState --value safemem-mask.path safemem-mask.service | tr '\n' ' ')"
