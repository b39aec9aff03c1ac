# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# What every guest with a system of the distribution reports once its boot has ended, whatever the target.
# shellcheck source=tests/vm/guest/functions.sh
. /functions.sh
units() { systemctl list-units --plain --no-legend "$@" | cut -d' ' -f1 | tr '\n' ' '; }
until [ "$(systemctl show -p FinishTimestampMonotonic --value)" != 0 ]; do sleep 0.2; done
udevadm settle
report version "$(udevadm --version | cut -d' ' -f1)"
report target "$(units --type=target --state=active)"
report failed "$(units --failed)"
report default "$(systemctl get-default) $(readlink -f /run/systemd/generator.early/default.target)"
report analyze "$(systemd-analyze time | head -1)"
report luo "$(ls /dev/liveupdate)$(
    exec 2>&1
    : </dev/liveupdate && echo ' opens'
)"
state
report_file record /run/safemem/decision.json
safemem status >/tmp/status 2>&1
report status $?
report_file status_text /tmp/status
dmesg -r | grep safemem: >/tmp/kmsg
report_file kmsg /tmp/kmsg
journalctl -b -o short-monotonic --no-hostname >/tmp/journal
report_file journal /tmp/journal
case "$(cat /proc/cmdline)" in
    *look=doctor*)
        safemem doctor --format json >/tmp/doctor
        report_file doctor /tmp/doctor
        safemem initramfs check --kernel "$(uname -r)" >/tmp/check 2>&1
        report_file check /tmp/check
        ;;
esac
case "$(cat /proc/cmdline)" in
    *ramoops*)
        safemem status --previous >/tmp/previous 2>&1
        report previous $?
        report_file previous_text /tmp/previous
        ;;
esac
# shellcheck source=/dev/null
[ ! -e /verdict.more ] || . /verdict.more
report "done" debian
sync
poweroff -ff
