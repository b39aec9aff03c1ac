# SPDX-License-Identifier: MIT
# shellcheck shell=sh disable=SC2154
# After token.sh: of what comes over, only the first round's may count as a token.
# shellcheck disable=SC2013
for word in $(cat /proc/cmdline); do
    case $word in safemem.token=*) OLD=$word ;; esac
done
case $ROUND in
    0)
        hold_token
        # A second one is refused, and the first one stands.
        chroot /host /run/token >/tmp/again 2>&1
        report again "$? $(cat /tmp/again)"
        preserve 64 # which keeps the device open
        next "$TOKEN"
        ;;
    1)
        report retrieved "$(luo retrieve guest 64)"
        /usr/lib/safemem/boot
        report_file record-again /run/safemem/decision.json
        hold_token
        next "$OLD $TOKEN"
        ;;
    2)
        # What came over is still there: safemem did not look, and makes room for its own.
        hold_token
        next "$OLD"
        ;;
    3)
        luo preserve safemem 1 >/tmp/luo &
        until [ -s /tmp/luo ]; do sleep 0.1; done
        next "$OLD"
        ;;
    4) next "$OLD" ;;
    5) hold_token && next ;;
esac
