# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# udev runs before the decision.
coldplug
report early "$(blocks 32 39)"
info 33
plugged
decide
report after "$(blocks 40 47)"
n=0
until [ "$(blocks 64 87)" = "online*24 " ] || [ $n = 100 ]; do sleep 0.2; n=$((n + 1)); done
report unstalled "$(blocks 64 87)"
