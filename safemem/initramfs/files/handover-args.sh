#!/bin/sh
# SPDX-License-Identifier: MIT
# /usr/lib/safemem/handover-args: print what to append to the next kernel's command line.
PREFIX=/usr/lib/safemem
exec "$PREFIX/lib/ld.so" --library-path "$PREFIX/lib" "$PREFIX/bin/python3" -I -S -B -c '
import sys
sys.path.insert(0, sys.argv.pop(1))
from safemem.boot.handover_args import main
sys.exit(main(sys.argv[1:]))' "$PREFIX/app" "$@"
