# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# In the initrd: leaves the real root what it loads the next kernel with; after the kexec, decides, and ends there unless it
# $GOES_ON.
if [ "$STAGE" = 2 ]; then
    /usr/lib/safemem/boot
    report status $?
    report_file record1 /run/safemem/decision.json
    [ -n "$GOES_ON" ] || poweroff -f
else
    mkdir /run/kexec
    cat "$(disk kernel)" >/run/kexec/kernel
    cat "$(disk initrd)" >/run/kexec/initrd
    cp /usr/sbin/kexec /run/kexec
    find / -xdev -name '*.so*' -not -path '/usr/lib/safemem/*' -not -path '/debian/*' -not -path '/run/*' -exec cp {} /run/kexec \;
fi
