# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Decides, and decides again.
decide
report before "$(all_blocks)"
report_file one /run/safemem/decision.json
decide
report all "$(all_blocks)"
