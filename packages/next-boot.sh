#!/bin/sh
# SPDX-License-Identifier: MIT
# What the next boot decides on this machine, for whoever installs the package. It never fails, and so no installation does.
policy=/etc/safemem/policy.toml

decides() {
    text=$(safemem simulate "$policy" --live --set handover="$1" 2>/dev/null | sed -n 1p) || :
    echo "${text:-not known: see \`safemem check $policy\`}"
}

echo "safemem: from the next boot on, $policy decides which memory may be used."
# In a tree that becomes an image there is no machine to say anything about.
if [ -d /sys/kernel ]; then
    echo "  after a cold boot:            $(decides none)"
    echo "  after a rejected handover:    $(decides rejected)"
    echo "  More: \`safemem simulate $policy --live --matrix\`, \`safemem doctor\`."
fi
echo "  To take it back, remove the package: that makes the initramfs without it."
exit 0
