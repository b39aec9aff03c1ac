# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Hands over with what handover-args prints. In the next kernel a program without privilege may have mapped a gigantic page
# before anything is decided ($EARLY); then others try, beside a program that takes $FILL MiB.
# Nobody mounts debugfs: handover-args and the boot program do that themselves.
if [ "$STAGE" = 1 ]; then
    arguments
    handover "$CMDLINE $ARGUMENTS"
fi
pools _first
if [ "$EARLY" ]; then
    gigantic keep 65534 0 >/tmp/early &
    until [ -s /tmp/early ]; do sleep 0.2; done
    report early "$(cat /tmp/early)"
fi
decide
pools
for user in 0 65534; do
    for flags in 0 1; do report "take_${user}_$flags" "$(gigantic take "$user" "$flags")"; done
done
gigantic storm 40 >/tmp/storm &
storm=$!
report filled "$(fill "$FILL")"
wait "$storm"
report storm "$(cat /tmp/storm)"
# What a script of the distribution's may do: the kernel keeps what is reserved.
for nr in /sys/devices/system/node/node[0-9]*/hugepages/hugepages-1048576kB/nr_hugepages; do echo 0 >"$nr"; done
report storm_after "$(gigantic storm 10)"
pools _last
