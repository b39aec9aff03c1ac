#!/bin/sh
# SPDX-License-Identifier: MIT
# /usr/lib/safemem/handover-args: print what to append to the next kernel's command line.
# Scratch areas are in debugfs, which an initrd may not have mounted.
PREFIX=/usr/lib/safemem
# shellcheck source=safemem/initramfs/files/mounts.sh
[ ! -r "$PREFIX/mounts.sh" ] || . "$PREFIX/mounts.sh"
exec "$PREFIX/lib/ld.so" --library-path "$PREFIX/lib" "$PREFIX/bin/python3" -I -S -B -c '
import sys
sys.path.insert(0, sys.argv.pop(1))
from safemem.boot.handover_args import main
sys.exit(main(sys.argv[1:]))' "$PREFIX/app" "$@"
