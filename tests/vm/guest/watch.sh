# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# `watch` as process $WATCH, with /policy.toml; `plug` waits for a DIMM of 1 GiB more.
mkdir -p /run/etc
cp /policy.toml /run/etc/vm.toml
watch() {
    PYTHONDONTWRITEBYTECODE=1 chroot /host "$SAFEMEM" watch --policy /run/etc/vm.toml >"$1" 2>&1 &
    export WATCH=$!
    until grep -q watching "$1"; do sleep 0.2; done
}
plug() {
    report checkpoint 1
    until [ -e "$MEMORY/memory47/state" ]; do sleep 0.1; done
}
watch /tmp/watch
