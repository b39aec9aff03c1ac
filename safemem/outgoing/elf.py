# SPDX-License-Identifier: MIT
"""Sections, notes and symbols of an ELF file, as far as a kernel and its modules need them (elf(5), little-endian)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from safemem.initramfs.store import Store

MAGIC = b"\x7fELF"
#: Types of a file: EXEC, DYN; and REL, which a module is.
KERNEL, MODULE = (2, 3), (1,)
_MACHINES = {62: "x86_64", 3: "i686", 183: "aarch64", 243: "riscv64", 258: "loongarch64"}
_NOBITS, _NOTE, _SYMTAB, _ALLOC = 8, 7, 2, 2
#: Sections; vmlinux has some fifty, a module about as many, and one built with a section for each function a few thousand.
_SECTIONS = 20_000
_NAME = 128
#: Beginnings of the names of sections that hold code, or tables of it: more than half of a kernel, and nothing to be found.
_CODE = (
    ".text", ".init.text", ".exit.text", ".BTF", ".orc_", ".init.scratch", ".call_sites", ".return_sites", ".retpoline_sites",
    ".altinstr", ".rela",
)  # fmt: skip
#: Beginnings of the names of sections where a kernel has what it says of itself; an initrd that is built in lies in others.
OWN_DATA = (".rodata", ".data")


class Part(NamedTuple):
    """A section: the bytes `start` to `end` of `data`."""

    name: str
    data: bytes
    start: int
    end: int
    notes: bool = False

    @property
    def bytes(self) -> bytes:
        """A copy of it."""
        return self.data[self.start : self.end]


class Elf(NamedTuple):
    """What an ELF file is, and those of its sections that are loaded and hold data."""

    arch: str  #: as uname(1) says it, or ""
    type: int
    parts: tuple[Part, ...]
    symbols: tuple[Part, Part] | None = None  #: the table of symbols, and the names in it


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    at: int
    size: int
    link: int


def read(store: Store, *, symbols: bool = False) -> Elf:
    """Return what the ELF file is, with its symbols if they are asked for.

    Raises:
        NoKernel: it is damaged, or of a form that no kernel here has.
    """
    head = store.cut(0, 6, "the header of an ELF file")
    if head[:4] != MAGIC or head[4] not in (1, 2) or head[5] != 1:
        raise store.refused("this is no little-endian ELF file")
    wide = head[4] == 2
    head = store.cut(0, 64 if wide else 52, "the header of an ELF file")
    kind, machine = struct.unpack_from("<HH", head, 16)
    at = struct.unpack_from("<Q", head, 40)[0] if wide else struct.unpack_from("<I", head, 32)[0]
    entry, count, names = struct.unpack_from("<HHH", head, 58 if wide else 46)
    found = _sections(store, at, entry, count, wide=wide)
    loaded = [item for item in found if item.flags & _ALLOC and item.type != _NOBITS and item.size]
    _apart(store, loaded)
    table = found[names] if names < len(found) else None
    labels = store.cut(table.at, table.size, "the names of sections") if table and table.type != _NOBITS else b""
    named = ((item, _label(labels, item.name)) for item in loaded)
    parts = tuple(_part(store, item, name) for item, name in named if not name.startswith(_CODE))
    return Elf(_MACHINES.get(machine, ""), kind, parts, _symbols(store, found) if symbols else None)


def _sections(store: Store, at: int, entry: int, count: int, *, wide: bool) -> list[_Section]:
    least = 64 if wide else 40
    if not at or not count:
        return []
    if entry < least or count > _SECTIONS:
        raise store.refused(f"its table of sections is damaged: {count} of {entry} bytes")
    table = store.cut(at, entry * count, "its table of sections")
    form = struct.Struct("<IIQQQQIIQQ" if wide else "<IIIIIIIIII")
    rows = (form.unpack_from(table, number * entry) for number in range(count))
    return [_Section(row[0], row[1], row[2], row[4], row[5], row[6]) for row in rows]


def _apart(store: Store, sections: list[_Section]) -> None:
    """Raise NoKernel if two sections have bytes in common: each would be searched, and a few bytes become terabytes."""
    end = 0
    for item in sorted(sections, key=lambda item: item.at):
        if item.at < end:
            raise store.refused(f"its sections overlap at byte {item.at}")
        end = item.at + item.size
    if end > store.size:
        raise store.refused(f"a section ends at byte {end}, and the image has {store.size} bytes")


def _part(store: Store, item: _Section, name: str) -> Part:
    notes = item.type == _NOTE
    if store.data is not None:
        return Part(name, store.data, item.at, item.at + item.size, notes)
    return Part(name, store.cut(item.at, item.size, "a section"), 0, item.size, notes)


def _label(labels: bytes, at: int) -> str:
    return labels[at : at + _NAME].partition(b"\0")[0].decode("ascii", "replace")


def _symbols(store: Store, found: list[_Section]) -> tuple[Part, Part] | None:
    for item in found:
        if item.type == _SYMTAB and item.link < len(found):
            names = found[item.link]
            if names.type == _NOBITS or item.at + item.size > store.size or names.at + names.size > store.size:
                raise store.refused("its table of symbols lies outside")
            return _part(store, item, ""), _part(store, names, "")
    return None


def undefined(elf: Elf, name: str) -> bool:
    """Return whether a 64-bit file needs the symbol `name` of somebody else; the file was read with its symbols."""
    if elf.symbols is None:
        return False
    table, names = elf.symbols
    wanted = {found - names.start for found in _places(names, name.encode() + b"\0")}
    if not wanted:
        return False
    rows = table.bytes
    return any(row[0] in wanted and row[3] == 0 for row in struct.iter_unpack("<IBBHQQ", rows[: len(rows) // 24 * 24]))


def _places(part: Part, wanted: bytes) -> Iterator[int]:
    """Yield where `wanted` is in a part, up to a thousand times."""
    at = part.data.find(wanted, part.start, part.end)
    for _ in range(1000):
        if at < 0:
            return
        yield at
        at = part.data.find(wanted, at + 1, part.end)


def build_ids(parts: tuple[Part, ...]) -> tuple[str, ...]:
    """Return the build IDs in sections of notes: of a kernel one; where there are no sections, all that look like one.

    A note is three numbers (bytes of its name, of its content, its type), the name, and the content
    (include/uapi/linux/elf.h); a build ID has the name `GNU` and type 3.
    """
    notes = [part for part in parts if part.notes] or [part for part in parts if not part.name]
    found: dict[str, None] = {}
    for part in notes:
        for at in _places(part, b"GNU\0"):
            if at - part.start < 12 or (at - part.start) % 4:
                continue
            name, size, kind = struct.unpack_from("<III", part.data, at - 12)
            if name == 4 and kind == 3 and 8 <= size <= 64 and at + 4 + size <= part.end:
                found[part.data[at + 4 : at + 4 + size].hex()] = None
    return tuple(found)
