# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# A boot that ended in maintenance: what runs, what is said at the login, and the way on.
report active "$(units --type=service --state=active)"
report_file motd /run/motd.d/safemem
# Of 13's login, script(1) sees nothing: it hangs up its terminal.
case "$(cat /etc/debian_version)" in
    12*)
        echo exit | script -qec 'login -f root' /dev/null >/tmp/login 2>&1
        report_file login /tmp/login
        ;;
esac
systemctl isolate multi-user.target
report isolate $?
report after "$(systemctl is-active multi-user.target guests.service safemem-maintenance.target | tr '\n' ' ')"
