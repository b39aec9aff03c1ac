# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Goes from kernel to kernel, $ROUND by $ROUND, and decides in each but the first: with a token, with another one, with none.
# What the real root runs, here from the machine that shares its root, is /token.
ROUND=0
# shellcheck disable=SC2013
for word in $(cat /proc/cmdline); do
    case $word in round=*) ROUND=${word#round=} ;; esac
done

# hold_token: have safemem hold a token, and set $TOKEN to its argument.
hold_token() {
    cp /token /run/token
    chroot /host /run/token >/tmp/held 2>&1 &
    until [ -s /tmp/held ]; do sleep 0.1; done
    report "held$ROUND" "$(cat /tmp/held)"
    TOKEN="$(/usr/lib/safemem/handover-args --token 2>/tmp/why)" || TOKEN=
    report "token$ROUND" "$TOKEN"
    report_file "why$ROUND" /tmp/why
    TOKEN="safemem.token=${TOKEN##*safemem.token=}"
}

# next ARGUMENTS: hand over to the next round.
next() { handover "$CMDLINE round=$((ROUND + 1)) $*"; }

if [ "$ROUND" != 0 ]; then
    /usr/lib/safemem/boot
    report "status$ROUND" $?
    report_file "record$ROUND" /run/safemem/decision.json
    report "dimm$ROUND" "$(blocks 32 39)"
fi
