# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# The last unit of a Debian root: what the test asks, then the end.
# shellcheck source=tests/vm/guest/functions.sh
. /functions.sh
# shellcheck source=/dev/null
. /verdict.sh
report failed "$(systemctl list-units --failed --plain --no-legend | cut -d' ' -f1 | tr '\n' ' ')"
report "done" debian
sync
poweroff -ff
