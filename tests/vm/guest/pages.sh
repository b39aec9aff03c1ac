# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# One row of docs/pages.md: preserves $MEMFD MiB on $NODE, hands over with what $PROTECTION asks for, does $THEN,
# and takes all $BOOT MiB that are free.
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then
    arguments
    # shellcheck disable=SC2086  # without a node, no word
    preserve "$MEMFD" $NODE
    report checkpoint 1
    case $PROTECTION in
        nothing) ARGUMENTS= ;;
        quarantine) ARGUMENTS=$(echo "$ARGUMENTS" | tr ' ' '\n' | grep ^safemem.safe=) ;;
        *) ARGUMENTS="$ARGUMENTS $MORE" ;;
    esac
    handover "$CMDLINE $ARGUMENTS"
fi
"$THEN"
[ ! "$RETRIEVE" ] || report retrieved "$(luo retrieve guest "$MEMFD")"
report filled "$(fill "$BOOT")"
