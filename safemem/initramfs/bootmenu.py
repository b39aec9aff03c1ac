# SPDX-License-Identifier: MIT
"""Which image GRUB's own menus have for one kernel release: its kernels and their initrds, pair by pair."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safemem.initramfs import grubfiles, kernelname
from safemem.initramfs.boots import Boots, spare
from safemem.initramfs.grubmenu import Boot, Menu

_NAMED = re.compile(r"^(?:vmlinu[xz]|linux|kernel|[Ii]mage|[bz]+Image)-([0-9].*?)(?:\.efi|\.img)?$")
_RELEASED = re.compile(r"^init(?:rd\.img-|ramfs-|rd-)([0-9].*?)(?:\.img)?$")


def answers(root: str, release: str, menu: Menu) -> list[Boots]:
    """Return what each usual entry of a menu boots of a release, or the one that is taken next alone; none if none is of it."""
    own = [boot for boot in menu.boots if _is_of(root, boot, release)]
    taken = [boot for boot in menu.boots if boot.taken]
    if not own and not any(_open(boot) for boot in taken):
        return []
    odd = next((boot for boot in taken if _open(boot)), None)
    if odd:
        return [Boots(doubt=f"{odd} is taken next and leads to what is not read")]
    usual = [boot for boot in own if not _spare(boot, release)]
    if any(boot.taken for boot in own):
        if not any(boot.taken for boot in usual):
            return [Boots(doubt=f"{own[0]} is taken next, which is no entry for a usual boot")]
        usual = [boot for boot in usual if boot.taken]
    if not usual:
        return []
    found = [_answer(root, boot) for boot in usual]
    # An entry of another system may name the same kernel: what it reads lies on another disk.
    whole = [each for each, boot in zip(found, usual, strict=True) if not each.meant or boot.taken]
    return whole or found


def silent(root: str, release: str, menus: tuple[Menu, ...]) -> str:
    """Return why menus of which no entry is known to be of a release leave open what boots it, or ""."""
    for menu in menus:
        odd = next((boot for boot in menu.boots if "\0" in _path(boot) and boot.state.how != "menu"), None)
        if odd:
            return f"{odd} names its kernel by a variable that only GRUB knows the value of"
    linux = next((menu for menu in menus if any(boot.state.how != "chain" for boot in menu.boots)), None)
    return (
        f"no entry of GRUB's menu {linux.path} is of kernel {release}: `update-grub` makes them anew" if linux else ""
    )


def names(menus: tuple[Menu, ...]) -> set[str]:
    """Return the names of the initrds of all entries, without their folders."""
    return {word.rpartition("/")[2] for menu in menus for boot in menu.boots for word in boot.state.initrds}


def _path(boot: Boot) -> str:
    """Return the kernel's path without the device."""
    return grubfiles.bare(boot.state.kernel)


def _open(boot: Boot) -> bool:
    return boot.state.how == "menu" or "\0" in _path(boot)


def on_esp(root: str, menu: Menu) -> bool:
    """Return whether a menu's paths begin on the ESP that it lies on: Proxmox has a GRUB of its own there."""
    return os.path.relpath(menu.path, root) in ("boot/efi/grub/grub.cfg", "efi/grub/grub.cfg")


def _locate(root: str, boot: Boot, path: str) -> Path:
    own = boot.menu.parent.parent if on_esp(root, Menu(boot.menu)) else None
    near = own / grubfiles.bare(path).lstrip("/") if own and "\0" not in path else None
    return near if near and near.is_file() else grubfiles.locate(root, path)


def _is_of(root: str, boot: Boot, release: str) -> bool:
    """Return whether what an entry boots is of a release, by the kernel's head, its name, or its initrd's."""
    path = _path(boot)
    if "\0" in path or boot.id.startswith("osprober-"):
        return False
    try:
        named = kernelname.read(_locate(root, boot, path))
    except (OSError, ValueError):
        named = kernelname.Named()
    if boot.state.how == "chain" and not named.unified:
        return False
    if named.release:
        return named.release == release
    said = _NAMED.match(path.rpartition("/")[2])
    if said:
        return said[1] == release
    images = [name.rpartition("/")[2] for name in boot.state.initrds]
    return any((match := _RELEASED.match(name)) and match[1] == release for name in images)


def _spare(boot: Boot, release: str) -> bool:
    paths = (boot.state.kernel, *boot.state.initrds)
    return spare(release, boot.title, *(path.rpartition("/")[2] for path in paths))


def _answer(root: str, boot: Boot) -> Boots:
    """Return what one entry boots."""
    kernel = _locate(root, boot, boot.state.kernel)
    options = boot.state.options.replace("\0", "")
    if boot.state.how == "chain":
        return Boots((kernel,), kernel, unified=True, options=options)
    if not boot.state.initrds:
        return Boots(doubt=f"{boot} boots {_path(boot)} without an initrd, always or on one of its ways")
    paths = []
    for name in boot.state.initrds:
        if name.startswith("newc:") or "\0" in grubfiles.bare(name):
            shown = name.replace("\0", "$…")
            return Boots(doubt=f"{boot} names {shown}, which only GRUB knows the content of")
        paths.append(_locate(root, boot, name))
    absent = next((name for name, path in zip(boot.state.initrds, paths, strict=True) if not os.path.isfile(path)), "")
    if absent:
        return Boots(doubt=f"{boot} names {absent}, which is not found", aligned=True, meant=tuple(paths))
    return Boots(tuple(paths), aligned=True, options=options)
