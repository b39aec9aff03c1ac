#!/bin/sh
# SPDX-License-Identifier: MIT
# /usr/lib/safemem/capture: print the machine's state and change nothing; `safemem simulate --state` reads it.
PREFIX=/usr/lib/safemem
# shellcheck source=safemem/initramfs/files/mounts.sh
[ ! -r "$PREFIX/mounts.sh" ] || . "$PREFIX/mounts.sh"
exec "$PREFIX/lib/ld.so" --library-path "$PREFIX/lib" "$PREFIX/bin/python3" -I -S -B -c '
import sys
sys.path.insert(0, sys.argv.pop(1))
from safemem.boot.main import main
sys.exit(main(["capture"]))' "$PREFIX/app"
