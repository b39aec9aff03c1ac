# SPDX-License-Identifier: MIT
"""What is there of a machine's boot loader: its entries in their order, which it takes next, and GRUB's own menu."""

from __future__ import annotations

import os
import platform
import re
import stat
from pathlib import Path
from typing import NamedTuple

from safemem.boot import files
from safemem.initramfs import bootentry, bootkept, grubfiles, grubmenu, kernelname
from safemem.initramfs.bootentry import Entry, Loader
from safemem.initramfs.boots import Boots
from safemem.initramfs.grubmenu import Menu

#: Where partitions with entries are mounted, in bootctl's order: the ESP alone has loader.conf.
PARTITIONS = ("efi", "boot", "boot/efi")
ENTRIES, UNIFIED = "loader/entries", "EFI/Linux"
_VARIABLES = "sys/firmware/efi/efivars/{}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
#: ZFSBootMenu is a unified image that looks into /boot itself and goes on by kexec.
_KEXECS = re.compile(r"zbm|zfsbootmenu", re.IGNORECASE)
#: Since this version systemd-boot begins each initrd at a multiple of 4 bytes.
_PADS = 257


class Found(NamedTuple):
    """One entry, and where it is."""

    entry: Entry
    path: Path  #: of the entry's file
    root: str
    partition: str  #: where the partition that holds it is mounted, below the root

    def locate(self, path: str) -> Path:
        """Return where a path of the entry is: paths are relative to the partition, and /boot may be none."""
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
        inside = Path(self.root, self.partition, *parts)
        # Below a subvolume of btrfs or a data set of ZFS GRUB's paths begin with its name.
        for place in (Path(self.root, *parts), grubfiles.locate(self.root, "/".join(parts))):
            if not os.path.exists(inside) and os.path.exists(place):
                return place
        return inside

    def missing(self, path: str) -> str:
        """Return why a file that the entry names cannot be had, or ""."""
        if ".." in path.split("/"):
            return f"{self.path} names {path}, which leads out of its partition"
        try:
            with self.locate(path).open("rb"):
                return ""
        except (FileNotFoundError, NotADirectoryError):
            return f"{self.path} names {path}, which is not there"
        except OSError as error:
            return f"{self.path} names {path}: {files.reason(error)}"

    @property
    def shown(self) -> bool:
        """Whether the kernel is there."""
        return os.path.exists(self.kernel)

    @property
    def kernel(self) -> Path:
        """The kernel's file."""
        return self.path if self.path.suffix.lower() == ".efi" else self.locate(self.entry.kernel)

    @property
    def unified(self) -> bool:
        """Whether the kernel brings its initrd: type 2, or an entry that names such an image."""
        try:
            return self.entry.how in ("efi", "uki") and kernelname.read(self.kernel).unified
        except OSError:
            return False


class BootLoader(NamedTuple):
    """What is there of a boot loader."""

    name: str  #: as it says in firmware: `systemd-boot`, `GRUB`, or "" where it does not
    found: tuple[Found, ...]  #: its entries, the first first
    next: Found | None  #: what boots next if nobody chooses another
    menus: tuple[Menu, ...]  #: GRUB's own, if it may run here
    environment: dict[str, str]  #: GRUB's
    unread: str  #: why a folder of entries, or a menu, cannot be read, or ""
    started: str = (
        ""  #: path of the unified image in which this boot began, as firmware has it; not if systemd-boot chose it
    )
    version: int = 0  #: of systemd-boot

    @property
    def by_entries(self) -> bool:
        """Whether entries are what it shows."""
        own = not self.menus or any(menu.entries or menu.unified for menu in self.menus)
        return own or self.name not in ("", "GRUB")

    @property
    def shows_entries(self) -> bool:
        """Whether it may show entries: where nothing says which loader runs, those that lie there."""
        return self.by_entries or not self.name

    @property
    def grub(self) -> bool:
        """Whether GRUB reads the entries."""
        return self.name == "GRUB" or (not self.name and bool(self.menus))

    @property
    def pads(self) -> bool:
        """Whether each initrd begins at a multiple of 4 bytes."""
        return self.grub or self.version >= _PADS


def on_partition(root: str, path: str) -> Path | None:
    """Return where a file is that firmware names by its path on a partition; None if it is on none that is mounted."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    files_there = (Path(root, partition, *parts) for partition in PARTITIONS)
    return next((file for file in files_there if os.path.isfile(file)), None)


def by_stub(root: str, release: str) -> Boots | None:
    """Return what the kernel's own EFI stub reads by the running command line; None where that names no initrd."""
    line, running = (
        _data(Path(root, path)).decode("utf-8", "replace").strip()
        for path in ("proc/cmdline", "proc/sys/kernel/osrelease")
    )
    names = bootkept.stubs(line)
    if not names:
        return None
    if running not in ("", release):
        why = f"firmware starts kernel {running} itself, with {names[0]}, and nothing says what it starts of {release}"
        return Boots(doubt=why)
    found = [on_partition(root, name) for name in names]
    gone = next((name for name, path in zip(names, found, strict=True) if path is None), "")
    if gone:
        return Boots(doubt=f"the kernel's EFI stub reads {gone}, which is on no partition that is mounted")
    return Boots(tuple(path for path in found if path), options=line)


def read(root: str) -> BootLoader:
    """Return what is there of the boot loader of the machine below `root`."""
    environment = grubfiles.environment(root)
    said = _variable(root, "LoaderInfo")
    name = next((name for name in ("systemd-boot", "GRUB") if said.lower().startswith(name.lower())), said)
    number = re.search(r"[0-9]{1,6}", said) if name == "systemd-boot" else None
    # systemd-stub says where it was started from, unless a loader has said that of itself; GRUB says its name alone.
    stub = _variable(root, "StubImageIdentifier") or _variable(root, "LoaderImageIdentifier")
    started = stub if name in ("", "GRUB") and _variable(root, "StubInfo") else ""
    if _KEXECS.search(started):
        name, started = "ZFSBootMenu", ""
    menus, closed = grubmenu.menus(root, environment) if name in ("", "GRUB") else ([], "")
    loader = BootLoader(name, (), None, tuple(menus), environment, "", started, int(number[0]) if number else 0)
    found, unread = _entries(root)
    if name == "GRUB" and menus and not any(menu.unified for menu in menus):
        found = [each for each in found if each.path.suffix.lower() != ".efi"]
    known = {id(each.entry): each for each in found}
    entries = [each.entry for each in found]
    if loader.grub:
        entries = bootentry.by_name(entries)
        saved = environment.get("next_entry") or environment.get("saved_entry", "")
        if saved.isdecimal() and len(saved) < 5:
            taken = entries[int(saved)] if int(saved) < len(entries) else None
        else:
            taken = bootentry.taken(entries, Loader(default=(saved,), grub=True))
    else:
        entries = bootentry.ordered(entries)
        # systemd-boot does not show an entry whose kernel is not there.
        taken = bootentry.taken([entry for entry in entries if known[id(entry)].shown], _told(root))
    chosen = known[id(taken)] if taken else None
    return loader._replace(found=tuple(known[id(entry)] for entry in entries), next=chosen, unread=unread or closed)


def _told(root: str) -> Loader:
    """Return what systemd-boot is told, by firmware and by loader.conf."""
    places = (Path(root, partition, "loader/loader.conf") for partition in PARTITIONS)
    conf = next((bootentry.settings(data) for data in map(_data, places) if data), {})
    preferred = (_variable(root, "LoaderEntryPreferred"), conf.get("preferred", ""))
    default = (_variable(root, "LoaderEntryDefault"), conf.get("default", ""))
    return Loader(_variable(root, "LoaderEntryOneShot"), preferred, default, _variable(root, "LoaderEntryLastBooted"))


def _variable(root: str, name: str) -> str:
    return bootentry.variable(_data(Path(root) / _VARIABLES.format(name)))


def _data(path: Path) -> bytes:
    """Return a file's bytes, or nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(bootentry.LIMIT * 8)
    except OSError:
        return b""


def _entries(root: str) -> tuple[list[Found], str]:
    """Return the entries that a boot loader of this machine would show, and why a folder of them cannot be read."""
    found: list[Found] = []
    seen: set[tuple[int, int]] = set()
    unread = ""
    for partition in PARTITIONS:
        for folder, suffix in ((ENTRIES, ".conf"), (UNIFIED, ".efi")):
            place = Path(root, partition, folder)
            try:
                names = sorted(os.listdir(place))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                unread = unread or f"{place}: {files.reason(error)}"
                continue
            for name in names:
                path = place / name
                if not name.lower().endswith(suffix) or name.startswith("."):
                    continue
                try:
                    # /efi and /boot may be two names of one partition.
                    file = path.stat()
                    if (file.st_dev, file.st_ino) in seen or not stat.S_ISREG(file.st_mode):
                        continue
                    seen.add((file.st_dev, file.st_ino))
                    entry = _entry(path, suffix)
                except FileNotFoundError:
                    continue  # a link to nothing is no entry
                except OSError as error:
                    unread = unread or f"{path}: {files.reason(error)}"
                    continue
                if entry and _here(entry):
                    found.append(Found(entry, path, root, partition))
    return found, unread


def _entry(path: Path, suffix: str) -> Entry | None:
    """Return the entry in a file, or None if it boots no Linux. Raises OSError."""
    if suffix == ".efi":
        named = kernelname.read(path)
        # A shell or a memory test boots no Linux. What is no program at all may be an image that is damaged.
        return bootentry.unified(path.name, named.os_release) if named.unified or not named.program else None
    with path.open("rb") as file:
        entry = bootentry.parse(file.read(bootentry.LIMIT), path.name)
    return entry if entry.kernel else None


def _here(entry: Entry) -> bool:
    """Return whether an entry is for this kind of machine; of one that EFI has no name for, all are."""
    here = bootentry.ARCHITECTURES.get(platform.machine(), "")
    return not (entry.architecture and here) or entry.architecture.lower() == here
