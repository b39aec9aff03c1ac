# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Runs guest/bursts.py with $WORDS and $PYTHON of the share, beside the modules in $MODULES.
cp /bursts.py /run/bursts.py
# shellcheck disable=SC2086  # words
chroot /host "$PYTHON" -B -c '
import sys
sys.path.insert(0, sys.argv[1])
del sys.argv[:2]
exec(open("/run/bursts.py").read())
' "$MODULES" bursts $WORDS >/tmp/out 2>&1
report returned $?
report_file out /tmp/out
report_file log /run/watch.log
report first "$(blocks 32 39)"
