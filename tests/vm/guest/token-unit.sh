# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# In the real root: the unit holds a token, and systemd replaces the kernel. From 261 on it hands over its file descriptor
# stores as well.
case " $(cat /proc/cmdline) " in *" stage=2 "*) STAGE=2 ;; *) STAGE=1 ;; esac
VERSION="$(udevadm --version | cut -d' ' -f1)"
report version "$VERSION"
if [ "$VERSION" -ge 261 ]; then
    systemctl start store.service
    report "stored$STAGE" "$(cat /run/stored)"
fi
if [ "$STAGE" = 2 ]; then
    report dimm "$(blocks 32 39)"
    poweroff -f
fi
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
