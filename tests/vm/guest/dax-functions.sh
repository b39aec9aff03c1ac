# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# What guests with a dax device share; the kernel has made it of memory that firmware calls RAM, and bound it to kmem.
DAX=/sys/bus/dax
bound() {
    driver=$(readlink "$DAX/devices/dax0.0/driver")
    echo "${driver##*/}"
}

# give DRIVER: take the device from its driver and give it to `device_dax` or `kmem`, as `daxctl reconfigure-device` does.
give() {
    [ -z "$(bound)" ] || echo dax0.0 >"$DAX/devices/dax0.0/driver/unbind"
    echo dax0.0 >"$DAX/drivers/$1/new_id"
    [ "$(bound)" = "$1" ] || echo dax0.0 >"$DAX/drivers/$1/bind"
}

# dax_blocks KEY: report the state of its blocks, and their zones.
dax_blocks() {
    report "$1" "$(blocks 4 5)"
    report "$1_zones" "$(cut -d' ' -f1 "$MEMORY/memory4/valid_zones" "$MEMORY/memory5/valid_zones" | uniq)"
}
