# SPDX-License-Identifier: MIT
"""Where an image has to be put so that it boots a kernel, or why none that is made here would."""

from __future__ import annotations

import filecmp
import os
import re
from pathlib import Path
from typing import NamedTuple

from safemem.boot.model import Refused
from safemem.initramfs import bootentry, bootplaces, grubfiles
from safemem.initramfs.bootloader import PARTITIONS
from safemem.initramfs.bootplaces import Boots

#: Of the files of one entry, those that no maker of an initramfs makes: early microcode.
#: GRUB's stock names for it end in `-uc.img` too.
_EARLY = re.compile(r"ucode|microcode|(?:^|-)uc\.img$", re.IGNORECASE)
#: Of which kernel an image is, by the names that distributions give one, and where that kernel and its modules are.
_RELEASED = re.compile(r"^init(?:rd\.img-|ramfs-|rd-)([0-9].*?)(?:\.img)?$")
_KERNELS = ("lib/modules/{}", "usr/lib/modules/{}", "boot/vmlinuz-{}")
#: sdbootutil calls an image by the sum of its bytes.
_SUMMED = re.compile(r"^initrd-[0-9a-f]{40,64}$")
#: The archive that the plug-in of kernel-install adds, and the file by which an operator asks for that.
APPENDED, ASKED = "initrd_zz-safemem.img", "etc/safemem/append-initrd"
_SETTINGS = ("etc/kernel/install.conf", "usr/lib/kernel/install.conf")


class Unplaced(Refused):
    """An image that is made here would not boot; the message says why, and what to do."""


class Target(NamedTuple):
    """Where the image goes, and what the kernel reads with it."""

    path: Path
    boots: Boots  #: all that the kernel reads; its files include `path`
    copies: tuple[Path, ...] = ()  #: what the image was copied from, which has to be the same

    def drafted(self, draft: Path) -> Boots:
        """Return what the kernel would read if `draft` were in place."""
        return self.boots._replace(files=tuple(draft if path == self.path else path for path in self.boots.files))


def unified_anew(path: Path | str, *, without: bool = False) -> str:
    """Return how a unified kernel image comes to have safemem, or is made `without` it: nobody here makes one."""
    how = (
        "without safemem: take away the hook, or the initrd of `safemem initramfs cpio`, that brings it"
        if without
        else "with `safemem initramfs cpio --systemd` as its last initrd where its maker has no hook of safemem's"
    )
    return (
        f"{path} is a unified kernel image: have what makes it (kernel-install, ukify, mkinitcpio) make it anew, {how}"
    )


def anew(root: str, kernel: str) -> str:
    """Return the command that makes the image of one kernel release anew, or what to do instead where that would refuse."""
    try:
        target(root, kernel)
    except Unplaced as error:
        return str(error)
    return "`safemem initramfs install`"


def target(root: str, kernel: str, *, without: bool = False) -> Target:
    """Return where the image of one kernel release, with safemem or `without`, has to be put. Raises Unplaced."""
    boots = bootplaces.find(root, kernel)
    absent = [path for path in boots.meant if not os.path.exists(path)]
    if len(absent) == 1 and absent[0].parent.is_dir() and ".." not in absent[0].parts:
        # The entry is there, and what it waits for is what is made here.
        boots = boots._replace(files=boots.meant, doubt="")
    if boots.doubt:
        raise Unplaced(
            f"it cannot be told which image boots kernel {kernel}: {boots.doubt}. Have what makes the boot loader's entries"
            f" (kernel-install, update-grub, sdbootutil, proxmox-boot-tool) make one, then look by `safemem initramfs check --kernel {kernel}`"
        )
    if not boots.files:
        return _first(root, kernel)
    if boots.unified:
        raise Unplaced(unified_anew(boots.files[0], without=without))
    if (
        Path(root, "ostree").exists()
        or Path(root, "run/ostree-booted").exists()
        or any("ostree" in path.parts for path in boots.files)
    ):
        raise Unplaced(
            f"{boots} belongs to an image of ostree or bootc, which is changed as a whole: `rpm-ostree initramfs --enable`,"
            f" or run dracut for usr/lib/modules/{kernel}/initramfs.img where the image is built"
        )
    summed = next((path for path in boots.files if _SUMMED.match(path.name)), None)
    if summed:
        raise Unplaced(
            f"{summed}, named by {boots.entry}, is sdbootutil's, which calls it by its sum: `sdbootutil mkinitrd`"
        )
    if any(path.name == APPENDED for path in boots.files):
        raise Unplaced(
            f"{boots}: kernel-install has added safemem as an initrd of its own, as /{ASKED} asks: `kernel-install add {kernel}"
            f" /lib/modules/{kernel}/vmlinuz` adds it anew"
        )
    made = [path for path in boots.files if not _EARLY.search(path.name)]
    if len(made) != 1 or not {*made} >= {*absent}:
        raise Unplaced(
            f"{boots.entry or 'the menu of GRUB'} names {len(made)} initrds ({boots}): which of them is made here cannot be told: make"
            f" it by the command that has made it, then look by `safemem initramfs check --kernel {kernel}`"
        )
    # In the place of a link an image would be one of two.
    path = grubfiles.final(root, made[0])
    other = _RELEASED.match(path.name)
    theirs = other is not None and any(Path(root, place.format(other[1])).exists() for place in _KERNELS)
    if other and other[1] != kernel and (theirs or not path.exists()):
        raise Unplaced(
            f"kernel {kernel} boots with {path.name}, the image of kernel {other[1]}, which would not boot any more: have"
            f" `update-grub` name one of {kernel}"
        )
    # kernel-install keeps the name of what it copies; kernelstub does not, and leaves the same bytes.
    copies = tuple(file for file in boots.copies if file.name == path.name or _same(file, path))
    files = tuple(path if file == made[0] else file for file in boots.files)
    return Target(path, boots._replace(files=files), tuple(file for file in copies if file != path))


def _same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _first(root: str, kernel: str) -> Target:
    """Return where a distribution has its image if none is there yet: Debian's name or dracut's own. Raises Unplaced."""
    layout = _layout(root)
    if layout not in ("", "other"):
        raise Unplaced(
            f"no image boots kernel {kernel} yet, and with layout={layout} kernel-install puts it where its entry names it:"
            f" `kernel-install add {kernel} /lib/modules/{kernel}/vmlinuz`"
        )
    debian = Path(root, "etc/debian_version").exists()
    path = Path(root, "boot", f"initrd.img-{kernel}" if debian else f"initramfs-{kernel}.img")
    return Target(path, Boots((path,)))


def _layout(root: str) -> str:
    """Return the layout of kernel-install: what its settings ask for, or what it takes the partition for; "" for none."""
    files = [*(Path(root, path) for path in _SETTINGS if Path(root, path).exists())][:1]
    layout = token = ""
    for path in [*files, *sorted(Path(root, "etc/kernel/install.conf.d").glob("*.conf"))]:
        said = [
            line.partition("=")[2].strip().strip("\"'") for line in _lines(path) if line.strip().startswith("layout=")
        ]
        layout = said[-1] if said else layout
    if layout not in ("", "auto"):
        return layout
    for name in ("etc/kernel/entry-token", "etc/machine-id"):
        token = token or next(iter(_lines(Path(root, name))), "").strip()
    for partition in PARTITIONS:
        if _lines(Path(root, partition, "loader/entries.srel"))[:1] == ["type1"] or (
            token and "/" not in token and os.path.isdir(Path(root, partition, token))
        ):
            return "bls"
    return ""


def _lines(path: Path) -> list[str]:
    try:
        return bootentry.lines(path.read_bytes())
    except OSError:
        return []
