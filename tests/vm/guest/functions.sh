# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# What every guest's script can call, in the initrd and in what it switches to.
MEMORY=/sys/devices/system/memory

# report KEY VALUE, report_file KEY FILE: say something to the test.
report() { printf '%s=%s\n' "$1" "$2" >/dev/vport0p1; }
report_file() { printf '%s:=%s\n' "$1" "$(base64 -w0 "$2")" >/dev/vport0p1; }

# blocks FIRST LAST: the states of these blocks as runs, such as `online*8`.
blocks() {
    n=$1
    while [ "$n" -le "$2" ]; do
        [ ! -e "$MEMORY/memory$n/state" ] || cat "$MEMORY/memory$n/state"
        n=$((n + 1))
    done | uniq -c | while read -r count state; do printf '%s*%s ' "$state" "$count"; done
}

# all_blocks: the state of every block, one word each: NUMBER:STATE.
all_blocks() {
    for block in "$MEMORY"/memory[0-9]*; do printf '%s:%s ' "${block##*/memory}" "$(cat "$block/state")"; done
}

zones() {
    for n in 32 33 34 35 36 37 38 39; do cut -d' ' -f1 "$MEMORY/memory$n/valid_zones"; done | uniq
}

# meminfo NAME: a line of /proc/meminfo, in KiB.
meminfo() { sed -n "s/^$1: *\([0-9]*\) kB/\1/p" /proc/meminfo; }

# state: report what the kernel shows. The verdict is read from here, not from what safemem says.
state() {
    report dimm "$(blocks 32 39)"
    report zones "$(zones)"
    report auto_online "$(cat "$MEMORY/auto_online_blocks")"
    report guard "$(cat /sys/kernel/kexec_crash_size)"
    report memtotal "$(meminfo MemTotal)"
}

# decide: run safemem as any init would, and report what it left.
decide() {
    /usr/lib/safemem/capture >/tmp/capture.json || report capture failed
    report_file capture /tmp/capture.json
    /usr/lib/safemem/boot
    status=$?
    # 42 is the only status that lets a boot go on.
    if [ "$status" = 42 ]; then report returned 0; else report returned "$status, not 42"; fi
    report_file record /run/safemem/decision.json
    state
}

# guard: set $FIRST and $LAST to the memory between 16 MiB and the lowest scratch area, and $CRASHKERNEL to the argument
# that reserves it. KASLR moves the kernel, and with it the scratch areas, at each cold boot.
guard() {
    LAST=$((0x40000000))
    for pair in $(paste -d, /sys/kernel/debug/kho/out/scratch_phys /sys/kernel/debug/kho/out/scratch_len); do
        [ $((${pair#*,})) = 0 ] || [ $((${pair%,*})) -ge "$LAST" ] || LAST=$((${pair%,*}))
    done
    FIRST=$((16 << 20)) LAST=$((LAST / (16 << 20) * (16 << 20) - 1))
    report guarded "$FIRST-$LAST"
    export CRASHKERNEL="crashkernel=$((LAST + 1 - FIRST))@$FIRST"
}

# machine: report what `safemem layout` and `handover-args` read, as an archive that `machine_root` unpacks.
machine() {
    for file in proc/iomem proc/cmdline proc/cpuinfo proc/sys/kernel/osrelease sys/kernel/boot_params/data \
        sys/devices/system/node/online \
        sys/kernel/debug/kho/out/scratch_phys sys/kernel/debug/kho/out/scratch_len \
        sys/devices/system/memory/block_size_bytes $(cd / && echo sys/devices/system/memory/memory*/state); do
        mkdir -p "/tmp/machine/${file%/*}" && cat "/$file" >"/tmp/machine/$file"
    done
    for file in /sys/devices/system/node/node*/memory* /sys/kernel/mm/hugepages; do mkdir -p "/tmp/machine$file"; done
    report machine "$(tar -c -C /tmp/machine . | gzip | base64 -w0)"
}

# arguments: set $ARGUMENTS to what handover-args prints for the next kernel.
arguments() {
    ARGUMENTS="$(/usr/lib/safemem/handover-args 2>/tmp/why)" || { report_file arguments /tmp/why; poweroff -f; }
    report arguments "$ARGUMENTS"
}

# pools [WHEN]: report where gigantic pages are, how many of them each node's pool has, and how many are reserved.
pools() {
    report "gigantic${1:-}" "$(gigantic places)"
    for what in nr free surplus; do report "$what${1:-}" "$(pool $what)"; done
    report "reserved${1:-}" "$(cat /sys/kernel/mm/hugepages/hugepages-1048576kB/resv_hugepages)"
}

# pool WHAT: this number of each node's pool, NODE:NUMBER each.
pool() {
    for folder in /sys/devices/system/node/node[0-9]*; do
        printf '%s:%s ' "${folder##*/node}" "$(cat "$folder/hugepages/hugepages-1048576kB/${1}_hugepages")"
    done
}

# preserve MIB [NODE]: keep a memfd through the next kexec; returns when LUO has it.
preserve() {
    luo preserve guest "$@" >/tmp/luo &
    until [ -s /tmp/luo ]; do sleep 0.1; done
    read -r said </tmp/luo
    report luo "$said"
}
