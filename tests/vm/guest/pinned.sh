# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# A driver pins pages all over the memory, then safemem decides.
pin 128 1500 >/tmp/pinned &
until [ -s /tmp/pinned ]; do sleep 0.1; done
report pinned "$(cat /tmp/pinned)"
decide
report all "$(all_blocks)"
