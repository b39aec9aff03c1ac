#!/bin/sh
# SPDX-License-Identifier: MIT
# Stands in for the interpreter's loader: runs it under strace as /tmp/fault says, and reports how it left memory,
# before the wrapper acts on its status. What failed is on the console, after a line with the fault's name.
# shellcheck source=tests/vm/guest/functions.sh
. /functions.sh
read -r name words </tmp/fault
echo "fault $name" >/dev/kmsg
if [ -n "$words" ]; then
    # shellcheck disable=SC2086  # words they are
    strace -f -o /dev/kmsg $words /usr/lib/safemem/lib/real.so "$@"
else
    /usr/lib/safemem/lib/real.so "$@"
fi
status=$?
report "$name.left" "$(blocks 32 39)"
exit $status
