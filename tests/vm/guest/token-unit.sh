# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# In the real root: the unit holds a token, and systemd replaces the kernel.
report version "$(udevadm --version | cut -d' ' -f1)"
systemctl start safemem-token.service
report unit "$(systemctl is-active safemem-token.service)"
report name "$(tr '\0' ' ' </proc/"$(systemctl show -p MainPID --value safemem-token.service)"/cmdline)"
systemctl isolate --no-block multi-user.target
sleep 2
report still "$(systemctl is-active safemem-token.service)"
TOKEN="$(/usr/bin/python3 -IS -c "$ARGS" --token 2>/tmp/why)"
report token "$TOKEN"
report_file why /tmp/why
cd /run/kexec || exit
./ld-linux-x86-64.so.2 --library-path . ./kexec -s -l kernel --initrd=initrd --command-line="$CMDLINE stage=2 $TOKEN" ||
    report kexec failed
systemctl kexec
sleep 1000
