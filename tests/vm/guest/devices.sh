# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Preserves 64 MiB and hands over to a kernel that rejects, in which a device that nobody owns writes to $COUNT of the
# preserved pages: to the first one before safemem decides, to the others afterwards. With $LOCK, safemem decides again in
# lockdown.
mount -t debugfs d /sys/kernel/debug
BUS=/sys/bus/pci/devices

# commands: the command register of every function, ADDRESS=COMMAND, with `+` behind it where a driver owns it.
commands() {
    for each in "$BUS"/*; do
        printf '%s=%s' "${each##*/}" "$(od -An -tx2 -j4 -N2 "$each/config" | tr -d ' ')"
        if [ -e "$each/driver" ]; then printf '+ '; else printf ' '; fi
    done
}

if [ "$STAGE" = 1 ]; then
    preserve 64
    arguments
    GUARD=${ARGUMENTS#*safemem.guard=}
    GUARD=${GUARD%%[; ]*}
    PAGES="$(edu pages "$(pidof luo)" "${GUARD%-*}" "${GUARD#*-}" "$COUNT")" || { report pages "$PAGES"; poweroff -f; }
    handover "$CMDLINE $ARGUMENTS pages=$(echo "$PAGES" | tr ' ' ',')"
fi
PAGES="$(sed 's/.* pages=\([^ ]*\).*/\1/;s/,/ /g' /proc/cmdline)"
report pages "$PAGES"
EDU="$(grep -l 0x11e8 "$BUS"/*/device)"
EDU=${EDU%/device}
report edu "${EDU##*/}"
report commands_kexec "$(commands)"
# As a driver leaves it that lets its device run on: memory and bus mastering.
printf '\006\001' | dd of="$EDU/config" bs=1 seek=4 conv=notrunc 2>/dev/null
report commands_before "$(commands)"
report wrote_before "$(edu write "$EDU" "${PAGES%% *}")"
report checkpoint 1
decide
# shellcheck disable=SC2086  # one word each
report wrote_after "$(edu write "$EDU" ${PAGES#* })"
report commands_after "$(commands)"
report behind "$(dd if="$(disk behind)" bs=64k count=1 iflag=direct 2>/dev/null | sha256sum | cut -c1-64)"
report checkpoint 2
if [ "$LOCK" ]; then
    # The device starts again, and the kernel lets nobody write to configurations any more.
    printf '\006\001' | dd of="$EDU/config" bs=1 seek=4 conv=notrunc 2>/dev/null
    mount -t securityfs s /sys/kernel/security
    echo integrity >/sys/kernel/security/lockdown
    /usr/lib/safemem/boot
    report locked_returned "$?"
    report_file locked_record /run/safemem/decision.json
    report commands_locked "$(commands)"
fi
