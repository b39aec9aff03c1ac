# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Runs in the initrd after a test's own script, and does not return: a root on a squashfs disk, with what is written to
# memory or to a disk that outlives the guest.
mkdir -p /lower /upper /sysroot
mount -t squashfs -o ro "$(disk root)" /lower || report root failed
upper=$(disk upper)
if [ "$upper" ]; then mount -t ext4 "$upper" /upper; else mount -t tmpfs upper /upper; fi || report upper failed
mkdir -p /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /sysroot || report overlay failed
find /debian \( -name '*.rules' -o -name '*.service' -o -name '*.conf' \) -exec chmod 644 {} +
cp -a /debian/. /sysroot/
for folder in proc sys dev run; do mount --move "/$folder" "/sysroot/$folder"; done
exec switch_root /sysroot /sbin/init
