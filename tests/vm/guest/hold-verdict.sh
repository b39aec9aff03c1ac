# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# In the real root: what was held, through a restart of udevd and every trigger; then the masks go.
report version "$(udevadm --version | cut -d' ' -f1)"
report unit "$(systemctl is-active safemem-hold.service)"
report virt "$(systemd-detect-virt)"
state
udevadm info "$MEMORY/memory33" >/tmp/info
report_file info /tmp/info
sort /run/safemem/masked >/tmp/masked
report_file masked /tmp/masked
systemctl restart systemd-udevd
udevadm trigger --action=add --subsystem-match=memory
udevadm trigger
udevadm settle
report again "$(blocks 32 39)"
udevadm test --action=add "$MEMORY/memory33" >/tmp/test 2>&1
report tested $?
report_file test /tmp/test
udevadm verify --no-summary /usr/lib/udev/rules.d/60-safemem.rules >/tmp/verify 2>&1
report verified $?
report_file verify /tmp/verify
report tested_state "$(blocks 32 39)"
/usr/bin/python3 -I -S -c "$RELEASE"
report mounts "$(grep -c udev/rules.d /proc/mounts)"
report left "$(find /run/udev/rules.d /run/systemd/system -name '*rules' -o -name 'daxdev*' | wc -l)"
udevadm control --reload
udevadm trigger --action=add --subsystem-match=memory
udevadm settle
report released "$(blocks 32 39)"
