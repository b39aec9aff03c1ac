#!/bin/sh
# SPDX-License-Identifier: MIT
# Stands in for kexec once `/usr/lib/safemem/gate enable` was called: what it loads is judged first, see
# safemem.realroot.loading. Shell, because at the very end of a shutdown nothing else may be there any more.
set -u
real=''
for file in /usr/sbin/kexec.distrib /sbin/kexec.distrib.usr-is-merged; do
    [ -n "$real" ] || [ ! -x "$file" ] || real=$file
done
# Called by what runs as process 1 after systemd, systemd-shutdown or dracut's shutdown: everything is stopped, the gate has
# been passed, and to refuse would be a reboot in which all that was preserved is lost.
if [ "$PPID" = 1 ] && [ -n "$real" ]; then
    name=''
    read -r name 2>/dev/null </proc/1/comm || :
    [ "$name" = systemd ] || exec "$real" "$@"
fi
exec /usr/lib/safemem/loading "$@"
