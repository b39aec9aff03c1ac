#!/bin/bash
# SPDX-License-Identifier: MIT
# Module 50safemem of dracut: the decision about memory, before udev and before any driver is loaded.

# Belongs into every image, generic ones as well: what it decides does not depend on this machine's devices.
check() {
    # The image of a dump kernel is left alone: it writes the dump from memory of its own, which a decision and 26 MiB more
    # would only take away from. kdump-utils says so by IN_KDUMP, all others by the module that they ask for.
    if [[ ${IN_KDUMP-} ]] || [[ " ${dracutmodules-} ${add_dracutmodules-} ${force_add_dracutmodules-} " == *" "kdump?(base)" "* ]]; then
        dinfo "safemem: left out of the image of a dump kernel"
        return 255
    fi
    require_binaries safemem sleep mount mkdir rm || return 1
    return 0
}

depends() {
    return 0
}

# Where boots are counted, for policies that ask for boot_attempts.
installkernel() {
    hostonly='' instmods efivarfs
}

install() {
    inst_multiple sh sleep mount mkdir rm
    inst_multiple -o halt
    # dracut takes kexec along for the end of a shutdown; where the gate is enabled that is a script, which starts this.
    inst_multiple -o /usr/sbin/kexec.distrib /sbin/kexec.distrib.usr-is-merged
    # An image without safemem would be an unguarded boot: rather none, and the old one stays.
    if ! safemem initramfs tree "${initdir:?}"; then
        dfatal "safemem: its files cannot be put into the image"
        exit 1
    fi
    # shellcheck disable=SC2154  # both are dracut's
    if dracut_module_included systemd; then
        mkdir -p "$initdir/$systemdsystemunitdir"
        if ! safemem initramfs units "$initdir/$systemdsystemunitdir"; then
            dfatal "safemem: its units cannot be put into the image"
            exit 1
        fi
    else
        # The first hooks of the first stage: a program of its own inside, and a look at how that ended.
        inst_hook cmdline 00 "$initdir/usr/lib/safemem/gate.sh"
        inst_hook cmdline 00 "$initdir/usr/lib/safemem/proof.sh"
    fi
}
