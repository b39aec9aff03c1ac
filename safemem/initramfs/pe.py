# SPDX-License-Identifier: MIT
"""The sections of a PE file, and of a unified kernel image its profiles (UAPI specification 5)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from safemem.initramfs.store import Store

_ARCHES = {0x8664: "x86_64", 0x14C: "i686", 0xAA64: "aarch64", 0x5064: "riscv64", 0x6264: "loongarch64"}
#: Sections that are read; a unified image has about ten, and a few more for each profile.
_SECTIONS = 1024
#: Bytes of a section that is text.
_TEXT = 64 << 10


class Section(NamedTuple):
    """A section of a PE file: `size` bytes at `at`."""

    name: str
    at: int
    size: int


class Profile(NamedTuple):
    """What a boot with one profile of a unified kernel image takes of it."""

    name: str
    kernel: Section
    initrds: tuple[Section, ...]
    cmdline: str | None
    release: str  #: that it says of its kernel, or ""


def _header(store: Store) -> tuple[int, bytes] | None:
    """Return where the COFF header of a PE file is, and its 20 bytes; None if this is no PE file."""
    head = store.head(0, 64)
    if head[:2] != b"MZ" or len(head) < 64:
        return None
    at = int.from_bytes(head[60:64], "little")
    found = store.head(at, 24) if at + 24 <= store.size else b""
    return (at + 4, found[4:]) if found[:4] == b"PE\0\0" else None


def arch(store: Store) -> str:
    """Return the architecture that a PE file is for, or ""."""
    header = _header(store)
    return _ARCHES.get(int.from_bytes(header[1][:2], "little"), "") if header else ""


def sections(store: Store) -> tuple[Section, ...]:
    """Return the sections that a PE file lists, wherever they lie; none if it is no PE file."""
    header = _header(store)
    if header is None:
        return ()
    count, more = struct.unpack_from("<H", header[1], 2)[0], struct.unpack_from("<H", header[1], 16)[0]
    table = store.head(header[0] + 20 + more, 40 * min(count, _SECTIONS + 1))
    found = []
    for at in range(0, len(table) // 40 * 40, 40):
        name, virtual, _, raw, place = struct.unpack_from("<8sIIII", table, at)
        size = min(virtual, raw) if virtual else raw
        found.append(Section(name.rstrip(b"\0").decode("ascii", "replace"), place, size))
    return tuple(found)


class Set(NamedTuple):
    """The sections that one profile has itself, and those of the base, which it has them from otherwise."""

    name: str
    title: str
    own: tuple[Section, ...]
    base: tuple[Section, ...]

    def of(self, wanted: str) -> tuple[Section, ...]:
        """Return the sections of a name, those of the base if there is none of its own."""
        own = tuple(item for item in self.own if item.name == wanted)
        return own or tuple(item for item in self.base if item.name == wanted)

    def initrds(self) -> tuple[Section, ...]:
        """Return what the stub makes one initrd of, in its order: of each name the first (systemd, src/boot/stub.c)."""
        return tuple(item for name in (".ucode", ".initrd") for item in self.of(name)[:1] if item.size)


def sets(store: Store) -> tuple[Set, ...]:
    """Return the sections of each profile of a PE file, of one without profiles all; none if it is no PE file.

    Raises:
        NoKernel: the sections are damaged.
    """
    listed = sections(store)
    if len(listed) > _SECTIONS:
        raise store.refused(f"it has more than {_SECTIONS} sections")
    _apart(store, listed)
    starts = [number for number, item in enumerate(listed) if item.name == ".profile"]
    if not starts:
        return (Set("", "", (), listed),) if listed else ()
    base = listed[: starts[0]]
    ends = [*starts[1:], len(listed)]
    return tuple(
        Set(*_names(store, listed[start], number), listed[start + 1 : end], base)
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    )


def profiles(store: Store) -> tuple[Profile, ...]:
    """Return the profiles of a unified kernel image, one if it has no section `.profile`; none if it is no such image.

    Raises:
        NoKernel: it is one, and its sections are damaged.
    """
    listed = sections(store)
    names = [item.name for item in listed]
    if ".linux" not in names:
        if ".cmdline" in names and ".text" not in names:
            raise store.refused("this is an addon of a unified kernel image: there is no kernel in it")
        return ()
    return tuple(_profile(store, item) for item in sets(store))


def _apart(store: Store, sections: tuple[Section, ...]) -> None:
    """Raise NoKernel if two sections have bytes in common, or if one lies outside."""
    end = 0
    for item in sorted((item for item in sections if item.size), key=lambda item: item.at):
        if item.at < end:
            raise store.refused(f"its sections overlap at byte {item.at}")
        end = item.at + item.size
        if end > store.size:
            raise store.refused(f"its section `{item.name}` ends at byte {end}, and the image has {store.size} bytes")


def _names(store: Store, section: Section, number: int) -> tuple[str, str]:
    """Return what a profile is called, its ID, or the number that a boot loader chooses it by; and its title."""
    found = {"ID": str(number), "TITLE": ""}
    for line in _text(store, section).splitlines():
        key, _, value = line.partition("=")
        if key.strip() in found and value.strip():
            found[key.strip()] = value.strip().strip("\"'")
    return found["ID"], found["TITLE"]


def _profile(store: Store, sections: Set) -> Profile:
    """Return a profile: what it does not have itself, it has from the base."""
    kernels = [item for item in sections.of(".linux") if item.size]
    if len(kernels) != 1:
        raise store.refused(f"{len(kernels)} sections `.linux` for one boot: one is needed")
    cmdline, release = sections.of(".cmdline"), sections.of(".uname")
    return Profile(
        sections.name,
        kernels[0],
        sections.initrds(),
        _text(store, cmdline[0]) if cmdline else None,
        _text(store, release[0]) if release else "",
    )


def _text(store: Store, section: Section) -> str:
    if section.size > _TEXT:
        raise store.refused(f"its section `{section.name}` has {section.size} bytes, and is text")
    data = store.cut(section.at, section.size, f"its section `{section.name}`")
    return data.rstrip(b"\0").decode("utf-8", "replace").strip()
