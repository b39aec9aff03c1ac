# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Which services that run guests this boot has started; what they say; and what becomes of it after a release.
UNITS='libvirtd.service cloud-hypervisor@one.service agent.service'
states() { for unit in $UNITS; do systemctl is-active "$unit"; done | tr '\n' ' '; }
# A job that waits for the question is none that was refused.
while systemctl list-jobs --no-legend | grep -v -e verdict -e multi-user | grep -q .; do sleep 0.5; done
report before "$(states)"
report targets "$(systemctl list-units --plain --no-legend --state=active 'safemem-decided*.target' | cut -d' ' -f1 | tr '\n' ' ')"
journalctl -b -o short-monotonic --no-hostname >/tmp/journal
report_file journal /tmp/journal
[ "$(states)" != 'active active active ' ] || return
systemctl start libvirtd.service 2>/tmp/said
report_file again /tmp/said
safemem release --reason 'the guests are lost' >/tmp/said 2>&1
report_file release /tmp/said
systemctl start libvirtd.service cloud-hypervisor@one.service 2>/tmp/said
report_file start /tmp/said
report after "$(states)"
