# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# `shown KEY`: what systemd knows of the unit, in its own order: Result, NRestarts, ExecMainStatus, ActiveState.
shown() {
    report "$1" "$(systemctl show -p ActiveState,Result,ExecMainStatus,NRestarts --value safemem-watch | tr '\n' ' ')"
}
# await RESTARTS STATE: wait until the unit has been started again so many times and is in that state; a minute at most.
await() {
    n=0
    until [ "$(systemctl show -p NRestarts,ActiveState --value safemem-watch | tr '\n' ' ')" = "$1 $2 " ]; do
        [ $n -lt 120 ] || return
        sleep 0.5
        n=$((n + 1))
    done
}
# begin WAIT: start the unit, and show it after so many seconds.
begin() {
    systemctl start safemem-watch
    report started $?
    sleep "$1"
    shown first
}
log() {
    journalctl -b -u safemem-watch -o cat >/tmp/log
    report_file log /tmp/log
}
