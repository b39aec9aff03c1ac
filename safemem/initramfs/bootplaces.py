# SPDX-License-Identifier: MIT
"""Which image boots one kernel release: what the boot loader's entries name, or what lies where the distribution puts it.

The entry decides, where there are any: a file that none of them names boots nobody. Where two answers are possible and are
not the same bytes, or none can be had, that is said instead of an answer.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from safemem.boot import files
from safemem.initramfs import bootkept, bootmenu, grubrun, kernelname
from safemem.initramfs import bootloader as loaders
from safemem.initramfs.bootkept import places as places
from safemem.initramfs.bootloader import BootLoader, Found
from safemem.initramfs.boots import Boots as Boots
from safemem.initramfs.boots import one, spare

_NAMED = re.compile(r"^(?:vmlinu[xz]|linux|kernel|[Ii]mage|[bz]+Image)-([0-9].*?)(?:\.efi|\.img)?$")


def find(root: str, release: str) -> Boots:
    """Return what boots one kernel release of the machine below `root`; nothing, and no doubt, if there is no image."""
    loader = loaders.read(root)
    if loader.unread:
        return Boots(doubt=f"{loader.unread}: what boots is not known without it")
    here = bootkept.kept(root, release, bootmenu.names(loader.menus))
    chosen = _chosen(root, release, here, loader)
    if chosen.unified or chosen.doubt:
        return chosen._replace(copies=())
    copies = dict.fromkeys((*chosen.copies, *here))
    return chosen._replace(copies=tuple(path for path in copies if path not in chosen.files))


def _chosen(root: str, release: str, here: list[Path], loader: BootLoader) -> Boots:
    own = [found for found in loader.found if _is_of(found, release)] if loader.shows_entries else []
    menus = [boots for menu in loader.menus for boots in bootmenu.answers(root, release, menu)]
    if loader.started:
        started = _by_firmware(root, release, loader.started)
        # GRUB has started it, and may start something else for another kernel.
        if loader.name != "GRUB" or not started.doubt or not (own or menus):
            return started
    # Proxmox's ESP has a menu and images of its own; those below /boot are what they are copied from.
    told = bootkept.proxmox(root) if loader.name in ("", "GRUB") and not own else ""
    if told and not any(bootmenu.on_esp(root, menu) for menu in loader.menus):
        return Boots(doubt=told)
    if own or menus:
        return one(([_by_entry(loader, own, release)] if own else []) + menus)
    lies = f"{here[0]} is there, but " if here else ""
    if loader.by_entries:
        silent = next((found.path for found in loader.found if _is_of(found, release) is None), None)
        if silent:
            return Boots(doubt=f"{silent} does not say of which kernel it is")
        if loader.found:
            return Boots(doubt=f"{lies}no boot loader entry is of kernel {release}")
        if loader.name == "systemd-boot":
            if told := bootkept.proxmox(root):
                return Boots(doubt=f"systemd-boot runs here: {told}")
            return Boots(
                doubt=f"{lies}systemd-boot runs here, and no entries of it are found: is its partition mounted?"
            )
    silent_menu = bootmenu.silent(root, release, loader.menus)
    return Boots(doubt=f"{lies}{silent_menu}") if silent_menu else _by_place(root, release, here, loader)


def _by_firmware(root: str, release: str, started: str) -> Boots:
    """Return what boots where this boot began in a unified image, by firmware itself or by a loader that says nothing."""
    path = loaders.on_partition(root, started)
    if path is None:
        return Boots(doubt=f"firmware starts {started}, which is on no partition that is mounted")
    try:
        said = kernelname.read(path).release
    except OSError as error:
        return Boots(doubt=f"{path}: {files.reason(error)}")
    if said != release:
        return Boots(doubt=f"firmware starts {path}, which is of kernel {said or 'unknown'}")
    return Boots((path,), path, unified=True)


def _by_place(root: str, release: str, here: list[Path], loader: BootLoader) -> Boots:
    """Return what boots where no entry and no menu tells."""
    unified = next((path for path in bootkept.preset(root, release, "uki") if os.path.isfile(path)), None)
    if unified and not loader.menus:
        return Boots(doubt=f"{unified} is made by a preset of mkinitcpio, and nothing says whether it boots")
    stub = None if loader.menus or loader.name == "GRUB" else loaders.by_stub(root, release)
    if stub:
        return stub
    if not loader.grub and (other := bootkept.elsewhere(root, here[0] if here else None)):
        return Boots(doubt=other)
    if not here and loader.name not in ("", "GRUB", "ZFSBootMenu"):
        return Boots(doubt=f"{loader.name} is the boot loader here, and what it boots is not looked at")
    if here:
        return one([Boots((path,), aligned=loader.grub) for path in here])
    return Boots(doubt=bootkept.unnamed(root, release))


def _by_entry(loader: BootLoader, own: list[Found], release: str) -> Boots:
    """Return what boots by the entries of a release: the one that is taken next, or the only answer that they have."""
    meant = [found for found in own if not _spare(found, release)]
    if loader.next in own:
        if loader.next not in meant:
            return Boots(doubt=f"{loader.next.path} is taken next, which is no entry for a usual boot")
        meant = [loader.next]
    if not loader.grub:
        meant = [found for found in meant if found.shown] or meant
    if not meant:
        return Boots(doubt=f"of kernel {release} there is only {own[0].path}, which is no entry for a usual boot")
    return one([_answer(found, loader) for found in meant])


def _answer(found: Found, loader: BootLoader) -> Boots:
    """Return what one entry boots."""
    if found.unified:
        return Boots((found.kernel,), found.path, unified=True, options=found.entry.options)
    fault = found.missing(found.entry.kernel)
    if found.path.suffix.lower() == ".efi":
        fault = f"{found.path} lies among unified kernel images and is none"
    paths: list[str] = []
    for path in found.entry.images:
        if "$" not in path:
            paths.append(path)
            continue
        values = _values(path, loader)
        if values is None:
            fault = fault or f"{found.path} names `{path}`, which only GRUB knows the value of"
        else:
            paths += values
    if not fault and not paths:
        fault = f"{found.path} names no initrd, and what is built into its kernel is not looked into"
    if fault:
        return Boots(doubt=fault)
    located = tuple(map(found.locate, paths))
    absent = next((why for why in map(found.missing, paths) if why), "")
    if absent:
        return Boots(doubt=absent, entry=found.path, aligned=loader.pads, meant=located)
    return Boots(located, found.path, aligned=loader.pads, options=found.entry.options)


def _values(word: str, loader: BootLoader) -> list[str] | None:
    """Return what a word with variables of GRUB's stands for, as words; None if its files do not tell."""
    found: set[tuple[str, ...]] = set()
    for menu in [menu.values for menu in loader.menus if menu.entries] or [dict[str, str | None](loader.environment)]:
        parts = re.split(r"\$(\{\w+\}|\w+)", word)
        names = [name.strip("{}") for name in parts[1::2]]
        # Only a menu that was read shows that nothing sets a variable; it is empty then.
        if not loader.grub or any(name not in menu and (not loader.menus or grubrun.its_own(name)) for name in names):
            return None
        values = [menu.get(name, "") for name in names]
        if any(value is None for value in values):
            return None
        parts[1::2] = [value or "" for value in values]
        found.add(tuple("".join(parts).split()))
    return [*next(iter(found))] if len(found) == 1 else None


def _is_of(found: Found, release: str) -> bool | None:
    """Return whether an entry is of a kernel release; None if it cannot be told."""
    try:
        said = kernelname.read(found.kernel).release
    except OSError:
        said = ""
    if said:
        return said == release
    entry = found.entry
    parts = [part for part in entry.kernel.replace("\\", "/").split("/") if part]
    names = {match[1] for part in parts[-1:] if (match := _NAMED.match(part))}
    names |= {part for part in parts[:-1] if part == release or re.match(r"[0-9]+\.[0-9]", part)}
    names |= (
        {entry.version} if entry.version and any(entry.version in text for text in (entry.kernel, entry.id)) else set()
    )
    if release in names or entry.id == release or entry.id.endswith(f"-{release}"):
        return True
    damaged = found.path.suffix.lower() == ".efi" and not found.unified
    return False if names or damaged or re.search(r"-[0-9]+\.[0-9]", entry.id) else None


def _spare(found: Found, release: str) -> bool:
    entry = found.entry
    return spare(release, entry.id, *(path.rpartition("/")[2] for path in (entry.kernel, *entry.initrds)))
