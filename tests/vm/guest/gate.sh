# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Three boots of a system whose kexec is behind the gate: what is refused, what goes through, what is forced. Each kexec is
# asked of systemd, as an operator does; $INITRD is the system's own, $LAST the boot that ends it.
# shellcheck source=tests/vm/guest/functions.sh
. /functions.sh
until [ "$(systemctl show -p FinishTimestampMonotonic --value)" != 0 ]; do sleep 0.2; done
line=$(cat /proc/cmdline)
stage=${line##*stage=}
stage=${stage%% *}
# Without what the wrapper and this script have added.
base=$(echo "$line" | sed 's/ stage=.*//')
good=/boot/vmlinuz-$(uname -r) bad=/boot/vmlinuz-old
gate=/usr/lib/safemem/gate

# run NAME COMMAND...: report how a command ended and what it said.
run() {
    name=$1
    shift
    "$@" >/tmp/out 2>&1
    report "code_$name" $?
    report_file "said_$name" /tmp/out
}
# refused NAME: ask systemd for a kexec, and report what became of it and of the system.
refused() {
    systemctl reset-failed safemem-preflight.service 2>/dev/null
    : >/tmp/since
    run "$1" systemctl kexec
    n=0
    until [ "$(systemctl show -p ActiveState --value safemem-preflight.service)" = failed ] || [ "$n" = 300 ]; do
        n=$((n + 1))
        sleep 0.5
    done
    sleep 2
    report "jobs_$1" "$(systemctl list-jobs --no-legend --plain)"
    report "active_$1" "$(systemctl is-active multi-user.target dbus.service systemd-logind.service systemd-udevd.service | tr '\n' ' ')"
    journalctl -b -t safemem -o cat >/tmp/out
    report_file "journal_$1" /tmp/out
}

report "id_$stage" "$(od -An -tx1 -v /sys/kernel/notes | tr -d ' \n')"
run "status_$stage" safemem status
if [ "$stage" = "$LAST" ]; then
    journalctl -b -t safemem -o cat >/tmp/out
    report_file journal_end /tmp/out
    run disable "$gate" disable
    report kexec "$(readlink -f /usr/sbin/kexec)"
    report "done" "$stage"
    sync
    poweroff -ff
fi
case $stage in
    1)
        report version "$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')"
        run gate "$gate" status
        run judged kexec -s -l "$bad" --initrd="$INITRD" --append="$base stage=9"
        run nothing systemctl start kexec.target
        run past /usr/sbin/kexec.distrib* -s -l "$bad" --initrd="$INITRD" --append="$base stage=9"
        refused untold
        run good kexec -s -l "$good" --initrd="$INITRD" --append="$base stage=2"
        cp /etc/safemem/policy.toml /policy
        sed -i 's/^name = .*/name = "another"/' /etc/safemem/policy.toml
        refused changed
        cp /policy /etc/safemem/policy.toml
        ;;
    2)
        run judged2 kexec -s -l "$bad" --initrd="$INITRD" --append="$base stage=9"
        run override "$gate" override --reason "the test says so"
        run forced kexec -s -l "$bad" --initrd="$INITRD" --append="$base stage=3"
        ;;
esac
sync
systemctl kexec
sleep 1000
