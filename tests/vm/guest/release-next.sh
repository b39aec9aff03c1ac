# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# The next boot, from cold: what `status` says of the one before.
safemem status
report now "$CODE"
report_file text /tmp/out
safemem status --previous
report previous "$CODE"
report_file previous_text /tmp/out
