# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# What the unit has kept of this boot, and what is found of the one before.
until [ "$(systemctl show -p ActiveState --value safemem-record.service)" != activating ]; do sleep 1; done
report unit "$(systemctl show -p ActiveState,Result,ExecMainStatus safemem-record.service | tr '\n' ' ')"
systemctl status --no-pager safemem-record.service >/tmp/unit
report_file log /tmp/unit
report kept "$(find /var/lib/safemem/history -name decision.json | wc -l)"
journalctl -o export MESSAGE_ID=5ac2c1e3bb1b4cd0a0c1ee0f8f5be0ae >/tmp/entry
report_file entry /tmp/entry
safemem status >/tmp/now
report now $?
report_file now_text /tmp/now
report archive "$(echo /var/lib/systemd/pstore/dmesg*)"
safemem status --previous >/tmp/previous 2>&1
report previous $?
report_file previous_text /tmp/previous
mkdir -p /var/lib/prometheus/node-exporter
systemctl start safemem-metrics.service
report metrics $?
report_file prom /var/lib/prometheus/node-exporter/safemem.prom
