# SPDX-License-Identifier: MIT
# shellcheck shell=sh
mount -t pstore pstore /host/sys/fs/pstore
report files "$(cd /host/sys/fs/pstore && echo *)"
rm -rf /run/safemem
safemem status
report now "$CODE"
safemem status --previous
report previous "$CODE"
report_file text /tmp/out
safemem status --previous --format json
report_file json /tmp/out
