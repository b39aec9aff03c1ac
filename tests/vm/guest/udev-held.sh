# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# After a lost handover neither coldplug nor what is plugged in brings memory online.
[ "$STAGE" = 2 ] || handover "$CMDLINE"
decide
coldplug
report coldplug "$(blocks 32 39)"
plugged
info 33
