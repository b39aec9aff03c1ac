# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# A hold and a guard after a lost handover, and its record on the disk as the unit would have it. Then `release` begins,
# and `middle` returns once it has come to the place $WHERE: `blocks` or `guard`.
safemem status --keep
report kept "$CODE"
block() { read -r state <"$MEMORY/memory$1/state"; echo "$state"; }
left() { read -r size </sys/kernel/kexec_crash_size; echo "$size"; }
whole=$(left)
report whole "$whole"
release() { exec env PYTHONDONTWRITEBYTECODE=1 chroot /host nice -n 10 "$SAFEMEM" release "$@" --reason "guests moved away"; }
middle() {
    # What watches comes first, once the release has said that it begins.
    until grep -q begun /run/safemem/releases.json; do sleep 0.1; done
    RELEASE=$(pidof safemem)
    export RELEASE
    case $WHERE in
        blocks) until [ "$(block 40)" = online ]; do :; done ;;
        guard) until [ "$(left)" != "$whole" ] && [ "$(left)" ]; do :; done ;;
    esac
}
