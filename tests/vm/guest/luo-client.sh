# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# systemd as LUO's client: a service's file descriptor store goes from kernel to kernel, first to one that accepts, then to one
# that does not.
STAGE=1
# shellcheck disable=SC2013
for word in $(cat /proc/cmdline); do
    case $word in stage=*) STAGE=${word#stage=} ;; esac
done
[ ! -e /run/safemem/decision.json ] || report_file "record$STAGE" /run/safemem/decision.json
systemctl start store.service
report "stored$STAGE" "$(cat /run/stored)"
# Who has the device now: a second open is refused while it is in use.
report "device$STAGE" "$({ : </dev/liveupdate && echo free; } 2>&1 | head -1)"
# systemd speaks of it only where it says everything, as it does in the last boot.
journalctl -b -o short-monotonic --no-hostname | grep -e LUO -e liveupdate -e safemem >/tmp/luo
report_file "said$STAGE" /tmp/luo
report "dimm$STAGE" "$(blocks 32 39)"
device() { grep -lx "$1" /sys/block/vd*/serial | sed 's,.*/\(vd[a-z]*\)/.*,/dev/\1,'; }
case $STAGE in
    1) cat "$(device kernel)" >/tmp/next ;;
    2) cat "$(device other)" >/tmp/next ;;
    *) return ;;
esac
if [ -e /boot/initrd.img ]; then
    INITRD=/boot/initrd.img
else
    cat "$(device initrd)" >/tmp/initrd
    INITRD=/tmp/initrd
fi
if [ "$STAGE" = 1 ] && [ "$TOKEN" ]; then
    systemctl start safemem-token.service
    TOKEN="$(safemem handover-args --token --safe 2>/tmp/why)"
    report token "$TOKEN"
    report_file why /tmp/why
fi
LINE="$(sed 's/ stage=[0-9]*//' /proc/cmdline) stage=$((STAGE + 1)) $TOKEN"
[ "$STAGE" = 1 ] || LINE="$LINE $LAST"
cd /kexec || exit
./ld.so --library-path . ./kexec -s -l /tmp/next --initrd="$INITRD" --command-line="$LINE" || report kexec failed
systemctl kexec
sleep 1000
