# SPDX-License-Identifier: MIT
"""The versions of handover formats in a kernel: as strings, and as the sections of live update's unmerged designs.

Strings: the compatible strings of KHO and LUO are whole strings among others; that of a handler of files is a field of 48
bytes in its structure (include/linux/liveupdate.h, LIVEUPDATE_HNDL_COMPAT_LENGTH).
Sections: `.liveupdate_versions` (RFC of 2025-12-11, 20251211042624.175517-1-pratyush@kernel.org) has a header, u32 magic
and u32 version, and then names of 48 bytes; `.liveupdate_features`, a later draft, has after the same header entries with
a name, u32 bytes, u32 reserved, and u64 masks of what is supported, required and active.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from safemem.initramfs.store import NoKernel
from safemem.outgoing.elf import OWN_DATA, Part
from safemem.outgoing.kernel import Feature, Speaks

VERSIONS, FEATURES = ".liveupdate_versions", ".liveupdate_features"
_MAGIC = struct.pack("<II", 0x4C565550, 1)
_FIELD = 48
_ENTRY = struct.Struct("<48sIIQQQ")
_VERSION = re.compile(rb"-v\d{1,6}\0")
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,46}")
_AT_END = re.compile(rb"[a-z][a-z0-9_.-]{0,46}\Z")
_TREE, _LUO = re.compile(r"kho-v\d+"), re.compile(r"luo-v\d+")
_NODE = re.compile(r"luo-[a-z]+-v\d+")
_RELATIVE = re.compile(rb"\x03\x04\0\0\0\0\0\0")
_PRODUCER = re.compile(r"(?:memblock|reserve-mem)-v\d+")
#: More strings that end like a version than any kernel has, by a hundred times.
_MANY = 200_000
#: Entries that are read of a section.
_ENTRIES = 4096


class Section(NamedTuple):
    """A section of live update's own, read."""

    name: str
    speaks: Speaks
    fault: str = ""  #: what of it cannot be read
    start: int = 0  #: where it is in the data of its part
    end: int = 0


def strings(parts: tuple[Part, ...], besides: tuple[Section, ...] = ()) -> Speaks:
    """Return the versions that stand in a kernel, or in a module, as strings; `besides` those in these sections.

    Where there are sections, only those are searched that hold a kernel's own data.

    Raises:
        NoKernel: it has so many strings of the kind that it is none.
    """
    found: dict[re.Pattern[str], set[str]] = {_TREE: set(), _LUO: set(), _NODE: set(), _PRODUCER: set()}
    files: set[str] = set()
    for part in parts:
        if part.name and not part.name.startswith(OWN_DATA):
            continue
        later: dict[int, str] = {}
        for name, at in _named(part):
            # Names in a section are strings as well: they would confirm themselves.
            if not part.name and any(item.start <= at < item.end for item in besides):
                continue
            if at == part.start or part.data[at - 1] == 0:
                for form, names in found.items():
                    if form.fullmatch(name):
                        names.add(name)
            if _is_field(part, at, len(name)):
                if _is_pointer(part.data[at - 8 : at]) or part.name.startswith(".data"):
                    files.add(name)
                elif not part.name:
                    later[at - 8 - part.start] = name
        if later:
            files.update(_relocated(part, later))
    tree, luo, nodes, producers = (frozenset(names) for names in found.values())
    return Speaks(tree, luo, frozenset(files) - tree - luo - nodes - producers, producers, luo_nodes=nodes)


def _named(part: Part) -> Iterator[tuple[str, int]]:
    """Yield each string of a part that ends like a version, and where it begins."""
    left = _MANY
    for match in _VERSION.finditer(part.data, part.start, part.end):
        left -= 1
        if left < 0:
            raise NoKernel(f"more than {_MANY} versions stand in it: this is no kernel")
        end = match.end() - 1
        found = _AT_END.search(part.data[max(part.start, end - _FIELD) : end])
        if found:
            yield found[0].decode(), end - len(found[0])


def _is_field(part: Part, at: int, size: int) -> bool:
    """Return whether a name at `at` fills a field of 48 bytes, between a pointer and the links of a list, set or not."""
    data, end = part.data, at + _FIELD
    if (at - part.start) % 8 or at - 8 < part.start or end + 16 > part.end or size >= _FIELD:
        return False
    if data.count(0, at + size, end) != _FIELD - size:
        return False
    return all(
        _is_pointer(word) or word == bytes(8)
        for word in (data[at - 8 : at], data[end : end + 8], data[end + 8 : end + 16])
    )


def _is_pointer(word: bytes) -> bool:
    """Return whether 8 bytes are an address of the kernel."""
    return word[6:] == b"\xff\xff"


def _relocated(part: Part, names: dict[int, str]) -> Iterator[str]:
    """Yield those of `names` where a pointer is put, at the offset that is their key, when an arm64 Image starts.

    Fields of a device tree's tables look like those of handlers, but for the pointer. An Image has a list of its pointers:
    each entry is an address, R_AARCH64_RELATIVE, and what to add. Addresses begin 2 GiB above a multiple of 4 GiB
    (KIMAGE_VADDR, arch/arm64/include/asm/memory.h).
    """
    left = _MANY * 10
    for match in _RELATIVE.finditer(part.data, part.start + 8, part.end):
        at = match.start()
        low, high = struct.unpack_from("<II", part.data, at - 8)
        if high >> 16 == 0xFFFF and (name := names.get((low - (1 << 31)) & 0xFFFFFFFF)):
            yield name
        left -= 1
        if left < 0:
            return


def sections(parts: tuple[Part, ...]) -> tuple[Section, ...]:
    """Return the sections of live update that a kernel has: by their names, or by their magic where it has no sections."""
    found = [
        _read(part.bytes, part.name)._replace(start=part.start, end=part.end)
        for part in parts
        if part.name in (VERSIONS, FEATURES)
    ]
    if found:
        return tuple(found)
    return tuple(section for part in parts if not part.name for section in _by_magic(part))


def _by_magic(part: Part) -> Iterator[Section]:
    at = part.data.find(_MAGIC, part.start, part.end)
    for _ in range(_ENTRIES):
        if at < 0:
            return
        if (at - part.start) % 8 == 0:
            data = part.data[at : min(part.end, at + 8 + 64 * _ENTRY.size)]
            name = FEATURES if _feature(data, 8) else VERSIONS
            read = _read(data, name)
            # What follows the last entry belongs to others: it is no fault.
            if read.speaks != Speaks():
                yield read._replace(fault="", start=at, end=at + read.end)
        at = part.data.find(_MAGIC, at + 8, part.end)


def _read(data: bytes, name: str) -> Section:
    if not data.startswith(_MAGIC):
        return Section(name, Speaks(), "it does not begin with its magic and version 1")
    return _features(data) if name == FEATURES else _versions(data)


def _versions(data: bytes) -> Section:
    names: list[str] = []
    fault = ""
    for at in range(8, min(len(data), 8 + _ENTRIES * _FIELD), _FIELD):
        name = _text(data[at : at + _FIELD])
        if name is None:
            if data[at:].strip(b"\0"):
                fault = f"entry {len(names) + 1} is no name of {_FIELD} bytes"
            break
        names.append(name)
    tree = frozenset(name for name in names if _TREE.fullmatch(name))
    luo = frozenset(name for name in names if _LUO.fullmatch(name))
    return Section(VERSIONS, Speaks(tree, luo, frozenset(names) - tree - luo), fault, 0, 8 + len(names) * _FIELD)


def _features(data: bytes) -> Section:
    found: list[Feature] = []
    fault = ""
    for at in range(8, min(len(data), 8 + _ENTRIES * _ENTRY.size), _ENTRY.size):
        feature = _feature(data, at)
        if feature is None:
            if data[at:].strip(b"\0"):
                fault = f"entry {len(found) + 1} is no name with its masks"
            break
        found.append(feature)
    names = frozenset(item.name for item in found) - {"luo", "kho", "LUO", "KHO"}
    return Section(FEATURES, Speaks(handlers=names, features=tuple(found)), fault, 0, 8 + len(found) * _ENTRY.size)


def _feature(data: bytes, at: int) -> Feature | None:
    """Return the entry of a section of features at `at`; None if there is none that makes sense."""
    if at + _ENTRY.size > len(data):
        return None
    field, size, reserved, supported, required, active = _ENTRY.unpack_from(data, at)
    name = _text(field)
    if name is None or reserved or not 0 < size <= 4096 or size % 8 or required & ~supported or active & ~supported:
        return None
    return Feature(name, supported, required, active)


def _text(field: bytes) -> str | None:
    """Return the name that fills a field of 48 bytes, with NULs behind it; None if it is none."""
    name, _, rest = field.partition(b"\0")
    text = name.decode("ascii", "replace")
    whole = len(field) == _FIELD and len(name) < _FIELD and not rest.strip(b"\0")
    return text if whole and _NAME.fullmatch(text.lower()) else None
