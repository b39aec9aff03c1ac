# SPDX-License-Identifier: MIT
"""Which image boots one kernel release: what the boot loader's entries name, or what lies where the distribution puts it.

The entry decides, where there are any: a file that none of them names boots nobody. Where two answers are possible and are
not the same bytes, or none can be had, that is said instead of an answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from safemem.boot import files
from safemem.initramfs import bootentry, bootloader, kernelname
from safemem.initramfs.bootloader import BootLoader, Found

#: Where distributions put an image that GRUB's own menu names, below the root.
PLACES = (
    "boot/initrd.img-{}",  # Debian, Ubuntu
    "boot/initramfs-{}.img",  # Fedora, Red Hat; with a preset's name Arch
    "boot/initrd-{}",  # SUSE
)
#: What is there of kernel-install(8) and its like without an entry that names it, or is only what an image is made of.
_UNNAMED = ("efi", "boot", "boot/efi")
_SOURCE = "usr/lib/modules/{}/initramfs.img"
#: No boot that anybody means by `the next boot`: rescue images, dump kernels', fallbacks.
_SPARE = re.compile(r"rescue|kdump|fallback|\.old", re.IGNORECASE)
_NAMED = re.compile(r"^(?:vmlinu[xz]|linux|kernel|[Ii]mage|[bz]+Image)-([0-9].*?)(?:\.efi|\.img)?$")
_PRESET = re.compile(r"^\s*(ALL|default)_(kver|image|uki)=(.*)$")


class Boots(NamedTuple):
    """What boots one kernel release, as far as files tell."""

    files: tuple[Path, ...] = ()  #: read one behind the other; of a unified kernel image, that
    entry: Path | None = None  #: what names them; None where that is the place alone
    doubt: str = ""  #: why it cannot be told; there are no files then
    unified: bool = False
    aligned: bool = False  #: whether what reads them begins each at a multiple of 4 bytes
    copies: tuple[Path, ...] = ()  #: where the distribution keeps an image that it copies for the entry
    meant: tuple[Path, ...] = ()  #: with a doubt: the files that an entry names, of which only initrds are not there

    def __str__(self) -> str:
        """Return the files and what names them, for a message."""
        names = ", ".join(map(str, self.files))
        return f"{names}, named by {self.entry}" if self.entry and self.entry not in self.files else names

    def read(self) -> bytes:
        """Return the bytes that the kernel gets. Raises OSError."""
        data = b""
        for path in self.files:
            # GRUB begins each file at a multiple of 4 bytes, systemd-boot and the kernel's EFI stub right behind the last.
            data += bytes(-len(data) % 4 if self.aligned else 0) + path.read_bytes()
        return data


def find(root: str, release: str) -> Boots:
    """Return what boots one kernel release of the machine below `root`; nothing, and no doubt, if there is no image."""
    loader = bootloader.read(root)
    if loader.unread:
        return Boots(doubt=f"{loader.unread}: what boots is not known without it")
    here = _kept(root, release, loader)
    if loader.started:
        return _by_firmware(root, release, loader.started)
    if not loader.by_entries:
        return _without_entries(root, release, here, loader)
    own = [found for found in loader.found if _is_of(found, release)]
    if own:
        return _by_entry(loader, own, here, release)
    silent = next((found.path for found in loader.found if _is_of(found, release) is None), None)
    if silent:
        return Boots(doubt=f"{silent} does not say of which kernel it is")
    lies = f"{here[0]} is there, but " if here else ""
    if loader.found:
        return Boots(doubt=f"{lies}no boot loader entry is of kernel {release}")
    if loader.name == "systemd-boot":
        return Boots(doubt=f"{lies}systemd-boot runs here, and no entries of it are found: is its partition mounted?")
    return _without_entries(root, release, here, loader)


def _by_firmware(root: str, release: str, started: str) -> Boots:
    """Return what boots where this boot began in a unified image, by firmware itself or by a loader that says nothing."""
    path = bootloader.on_partition(root, started)
    if path is None:
        return Boots(doubt=f"firmware starts {started}, which is on no partition that is mounted")
    try:
        said = kernelname.read(path).release
    except OSError as error:
        return Boots(doubt=f"{path}: {files.reason(error)}")
    if said != release:
        return Boots(doubt=f"firmware starts {path}, which is of kernel {said or 'unknown'}")
    return Boots((path,), path, unified=True)


def _without_entries(root: str, release: str, here: list[Path], loader: BootLoader) -> Boots:
    """Return what boots where GRUB has a menu of its own, or nothing at all tells."""
    unified = next((path for path in _preset(root, release, "uki") if os.path.isfile(path)), None)
    if unified and not loader.menu:
        return Boots(doubt=f"{unified} is made by a preset of mkinitcpio, and nothing says whether it boots")
    if here:
        return _one([boots for path in here for boots in _by_menu(root, path, loader)])
    for partition in _UNNAMED:
        for path in sorted(Path(root, partition).glob(f"*/{_literal(release)}/initrd*")):
            if not _SPARE.search(f"{path.parent.parent.name}/{path.name}"):
                return Boots(doubt=f"{path} is there, but no boot loader entry names it")
    source = Path(root, _SOURCE.format(release))
    if source.exists():
        return Boots(doubt=f"{source} is what an image is made of, and nothing says where that is")
    return Boots()


def _by_menu(root: str, path: Path, loader: BootLoader) -> list[Boots]:
    """Return what GRUB's own menu has the kernel read where it names one image: that, and whatever is on the same line."""
    answers = []
    for line in sorted(loader.menu.initrds if loader.menu else ()):
        names = [word.rpartition("/")[2] for word in line]
        if path.name not in names:
            continue
        paths = []
        for word, name in zip(line, names, strict=True):
            near = path.parent / name
            paths.append(near if os.path.isfile(near) else Path(root, *word.split("/")))
            if not os.path.isfile(paths[-1]):
                answers.append(Boots(doubt=f"GRUB's menu names {word} beside {path}, which is not found"))
        answers.append(Boots(tuple(paths), aligned=True))
    return answers or [Boots((path,))]


def _by_entry(loader: BootLoader, own: list[Found], here: list[Path], release: str) -> Boots:
    """Return what boots by the entries of a release: the one that is taken next, or the only answer that they have."""
    meant = [found for found in own if not _spare(found)]
    if loader.next in own:
        if loader.next not in meant:
            return Boots(doubt=f"{loader.next.path} is taken next, which is no entry for a usual boot")
        meant = [loader.next]
    if not loader.grub:
        meant = [found for found in meant if found.shown] or meant
    if not meant:
        return Boots(doubt=f"of kernel {release} there is only {own[0].path}, which is no entry for a usual boot")
    answers = [_answer(found, loader) for found in meant]
    if not loader.name and loader.menu and not loader.menu.entries:
        answers += [boots for path in here for boots in _by_menu(own[0].root, path, loader)]
    chosen = _one(answers)
    copies = tuple(path for path in here if path not in chosen.files)
    return chosen._replace(copies=() if chosen.unified or chosen.doubt else copies)


def _answer(found: Found, loader: BootLoader) -> Boots:
    """Return what one entry boots."""
    if found.unified:
        return Boots((found.kernel,), found.path, unified=True)
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
        return Boots(doubt=absent, entry=found.path, aligned=loader.grub, meant=located)
    return Boots(located, found.path, aligned=loader.grub)


def _values(word: str, loader: BootLoader) -> list[str] | None:
    """Return what a variable of GRUB's stands for, as words; None if its files do not tell."""
    name = word[1:].strip("{}")
    said = {loader.environment[name]} if name in loader.environment else set()
    said |= loader.menu.set.get(name, frozenset()) if loader.menu else set()
    value = next(iter(said), "$")
    return value.split() if word[0] == "$" and len(said) == 1 and "$" not in value else None


def _one(answers: list[Boots]) -> Boots:
    """Return the one answer; of several that are the same bytes, the first."""
    first = answers[0]
    if first.doubt:
        return first
    try:
        seen = _digest(first) if len(answers) > 1 else b""
        for other in answers[1:]:
            if other.doubt:
                return other
            if _digest(other) != seen:
                return Boots(doubt=f"{first} and {other} are not the same, and nothing says which boots")
    except OSError as error:
        return Boots(doubt=f"{error.filename}: {files.reason(error)}")
    return first


def _digest(boots: Boots) -> bytes:
    return hashlib.sha256(boots.read()).digest()


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


def _spare(found: Found) -> bool:
    entry = found.entry
    names = (entry.id, *(path.rpartition("/")[2] for path in (entry.kernel, *entry.initrds)))
    return any(_SPARE.search(name) for name in names)


def _kept(root: str, release: str, loader: BootLoader) -> list[Path]:
    """Return the images that lie where distributions put them for a release: first those that GRUB's menu names."""
    own = [Path(root, place.format(release)) for place in PLACES]
    other = [Path(root, place.format(name)) for name in _aliases(root, release) for place in PLACES]
    groups = [
        [path for path in dict.fromkeys(paths) if os.path.isfile(path)]
        for paths in (own, other + _preset(root, release))
    ]
    names = {word.rpartition("/")[2] for line in (loader.menu.initrds if loader.menu else ()) for word in line}
    named = [path for there in groups for path in there if path.name in names]
    return named or groups[0] or groups[1]


def _aliases(root: str, release: str) -> list[str]:
    """Return by which other names kernel and image of a release go in /boot: Arch and Alpine call them by the package."""
    names = []
    with contextlib.suppress(OSError):
        names += bootentry.lines(Path(root, "usr/lib/modules", release, "pkgbase").read_bytes())[:1]
    for path in sorted(Path(root, "boot").glob("vmlinuz-*")):
        name = path.name.removeprefix("vmlinuz-")
        try:
            if name != release and not _SPARE.search(name) and kernelname.read(path).release == release:
                names.append(name)
        except OSError:
            continue
    return [name for name in dict.fromkeys(names) if name and "/" not in name]


def _preset(root: str, release: str, kind: str = "image") -> list[Path]:
    """Return the images that mkinitcpio's presets have for a release, or of kind `uki` the unified ones."""
    found = []
    for path in sorted(Path(root, "etc/mkinitcpio.d").glob("*.preset")):
        words: dict[str, str] = {}
        try:
            for line in bootentry.lines(path.read_bytes()):
                match = _PRESET.match(line)
                if match and (match[1] == "default" or match[2] not in words):
                    words[match[2]] = match[3].strip().strip("\"'")
            kernel = words.get("kver", "")
            said = kernelname.read(Path(root, kernel.lstrip("/"))).release if kernel.startswith("/") else kernel
        except OSError:
            continue
        if said == release and words.get(kind):
            found.append(Path(root, words[kind].lstrip("/")))
    return found


def _literal(name: str) -> str:
    """Return a pattern that matches one name, whatever is in it."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def places(release: str) -> str:
    """Return where an image is looked for if no entry names one, for a message."""
    return " ".join(place.format(release) for place in PLACES)
