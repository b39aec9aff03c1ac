# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# A hold and a guard after a lost handover: one half released, then the rest.
safemem status --format json
report status "$CODE"
report_file before /tmp/out
safemem release 0x100000000-0x11fffffff --reason "first half"
report half "$CODE"
report halves "$(blocks 32 39)"
safemem status
report between "$CODE"
report_file between_text /tmp/out
safemem release --reason "the rest"
report rest "$CODE"
report_file said /tmp/out
safemem status
report after "$CODE"
report_file after_text /tmp/out
state
