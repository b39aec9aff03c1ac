# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# What guests with a CXL type 3 device share.
CXL=/sys/bus/cxl/devices

# region: make a region of all of it, as `cxl create-region -t ram` does (Documentation/ABI/testing/sysfs-bus-cxl).
region() {
    read -r name <"$CXL/decoder0.0/create_ram_region"
    echo "$name" >"$CXL/decoder0.0/create_ram_region"
    echo ram >"$CXL/decoder2.0/mode"
    echo 0x10000000 >"$CXL/decoder2.0/dpa_size"
    cat "$CXL/decoder0.0/interleave_granularity" >"$CXL/$name/interleave_granularity"
    echo 1 >"$CXL/$name/interleave_ways"
    echo 0x10000000 >"$CXL/$name/size"
    echo decoder2.0 >"$CXL/$name/target0"
    echo 1 >"$CXL/$name/commit"
    echo "$name" >/sys/bus/cxl/drivers/cxl_region/bind
}

# place: set $START, and $FIRST and $LAST to the blocks of the dax device's memory.
place() {
    until [ -e "$DAX/devices/dax0.0/resource" ]; do sleep 0.1; done
    START=$(cat "$DAX/devices/dax0.0/resource")
    FIRST=$((START / (128 << 20))) LAST=$((START / (128 << 20) + 1))
}

# cxl_blocks KEY: report their states and zones.
cxl_blocks() {
    report "$1" "$(blocks "$FIRST" "$LAST")"
    report "$1_zones" "$(cut -d' ' -f1 "$MEMORY/memory$FIRST/valid_zones" "$MEMORY/memory$LAST/valid_zones" | uniq)"
}
