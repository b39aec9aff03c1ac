# SPDX-License-Identifier: MIT
"""Words of a kernel command line by which what was looked at in an initramfs is not what happens."""

from __future__ import annotations

from collections.abc import Iterator

from safemem.boot.cmdline import arguments

#: Name -> why nothing of safemem may be started.
UNDOES = {
    "rdinit": "the kernel starts that in place of /init, and with it nothing of safemem",
    # efi_parse_options of the kernel's EFI stub: it asks nobody for an initrd then, GRUB's and systemd-boot's way included.
    "noinitrd": "a kernel that is started by its EFI stub takes no initrd",
    "rd.systemd.unit": "systemd goes to another unit in the initrd, and safemem may not be started",
    "rd.systemd.mask": "the unit that decides is not started",
    "systemd.mask": "a unit of safemem is not started",
    "rd.break": "the boot stops in the initrd, for somebody at the console",
    "break": "the boot stops in the initrd, for somebody at the console",
}


def undone(text: str) -> Iterator[tuple[str, str]]:
    """Yield each word of a command line that keeps safemem from the boot, and why."""
    for name, value in arguments(text):
        if name not in UNDOES or (name == "rdinit" and value == "/init"):
            continue
        if not name.endswith("systemd.mask") or value.startswith("safemem"):
            yield f"{name}={value}" if value else name, UNDOES[name]
