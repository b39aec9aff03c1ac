# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# The command $SAFEMEM of the machine that shares its root: the kernel's file systems over the share's, then `safemem`
# as an operator would call it, which leaves /tmp/out and $CODE.
mkdir -p /host
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose host /host
for folder in proc sys run dev; do mount --rbind "/$folder" "/host/$folder"; done
safemem() {
    PYTHONDONTWRITEBYTECODE=1 chroot /host "$SAFEMEM" "$@" >/tmp/out 2>&1
    export CODE=$?
}
