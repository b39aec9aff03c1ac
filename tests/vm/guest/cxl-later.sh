# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# At last the memory is released.
safemem release --reason "the guests moved away"
report released "$CODE"
report_file said /tmp/out
cxl_blocks after
