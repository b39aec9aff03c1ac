# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# It is killed, a rule of udev onlines memory, the policy is another one; then a release.
begin 1
systemctl kill -s KILL safemem-watch
await 1 active
shown killed
cp /late /usr/lib/udev/rules.d/41-late.rules
udevadm control --reload
udevadm trigger --action=add --subsystem-match=memory
udevadm settle
until safemem status --format json | grep -q '"reverted": [1-9]'; do sleep 1; done
sleep 2
report reverted "$(blocks 32 39)"
safemem status --format json >/tmp/status
report_file status /tmp/status
rm /usr/lib/udev/rules.d/41-late.rules
udevadm control --reload
cp /etc/safemem/policy.toml /tmp/policy
sed -i 's/handover lost, says the test/other words/' /etc/safemem/policy.toml
systemctl restart safemem-watch
await 0 active
shown other
cp /tmp/policy /etc/safemem/policy.toml
systemctl restart safemem-watch
report again $?
safemem release --reason "the guests are gone"
report released $?
sleep 3
report masks "$(find /run/udev/rules.d -name '*rules' | wc -l)"
report dimm "$(blocks 32 39)"
log
