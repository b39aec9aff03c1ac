# SPDX-License-Identifier: MIT
# shellcheck shell=sh disable=SC2153
# Loads the next kernel with kexec_load(2) and a map of memory with $ENTRIES entries: kexec-tools takes it from /proc/iomem,
# and gives the kernel in a list what the zero page has no room for.
if [ "$STAGE" = 1 ]; then
    n=0
    entry() { # START END TYPE
        printf '%08x-%08x : %s\n' "$1" "$2" "$3" >>/tmp/iomem
        n=$((n + 1))
    }
    grep -E '^[0-9a-f]+-[0-9a-f]+ : (System RAM|Reserved)$' /proc/iomem >/tmp/own
    while IFS=' -' read -r start end _ type; do
        # All memory from 512 MiB on is in pieces, each with a page behind it that firmware keeps.
        if [ $((0x$start)) = $((0x100000)) ]; then last=$((0x$end)) end=1fffffff; fi
        entry $((0x$start)) $((0x$end)) "${type#: }"
    done </tmp/own
    at=$((0x20000000))
    while [ "$n" -lt $((ENTRIES - 2)) ]; do
        entry $at $((at + 0x1efff)) "System RAM"
        entry $((at + 0x1f000)) $((at + 0x1ffff)) Reserved
        at=$((at + 0x20000))
    done
    if [ "$n" -lt $((ENTRIES - 1)) ]; then
        entry $at $((at + 0xfff)) Reserved
        at=$((at + 0x1000))
    fi
    entry $at "$last" "System RAM"
    report entries "$n"
    report last "$(printf '0x%x-0x%x' $at "$last")"
    mount --bind /tmp/iomem /proc/iomem
    load -c "$CMDLINE" && kexec -e
    report kexec failed
fi
/usr/lib/safemem/capture >/tmp/capture.json
report_file capture /tmp/capture.json
report page "$(dd if=/sys/kernel/boot_params/data bs=1 skip=488 count=1 2>/dev/null | od -An -tu1 | tr -d ' ')"
report types "$(cat /sys/kernel/boot_params/setup_data/*/type | tr '\n' ' ')"
