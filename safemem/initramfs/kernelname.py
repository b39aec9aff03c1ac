# SPDX-License-Identifier: MIT
"""Which release a kernel's file says it is, as far as its head and sections tell; nothing is unpacked for it.

A bzImage has it in its head (Documentation/arch/x86/boot.rst, kernel_version), a unified kernel image in `.uname` (UAPI.5);
other kernels say it only once they are unpacked, and count as not known here.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import NamedTuple

_MAGIC, _RELEASE, _SETUP = 0x202, 0x20E, 0x200
_LONGEST = 1 << 16  #: bytes of a section that are read here


class Named(NamedTuple):
    """What a kernel's file says of itself."""

    release: str = ""  #: "" if it does not say
    unified: bool = False  #: whether it is a unified kernel image: it brings a kernel or an initrd as a section
    program: bool = False  #: whether firmware could start it: it is a PE file
    os_release: bytes = b""  #: that of the system whose unified image it is


def read(path: Path) -> Named:
    """Return what the file says of itself. Raises OSError."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return Named()
        with data:
            return look(data)


def look(data: bytes | mmap.mmap) -> Named:
    """Return what a kernel's bytes say of it; of what is damaged, nothing."""
    sections = _sections(data)
    if ".linux" in sections or ".initrd" in sections:
        said = _text(_part(data, sections, ".uname")) or _header(_part(data, sections, ".linux"))
        return Named(said, unified=True, program=True, os_release=_part(data, sections, ".osrel"))
    return Named(_header(data[:_LONGEST]), program=bool(sections))


def _header(data: bytes) -> str:
    """Return the release in the head of a bzImage, or ""."""
    at = _number(data, _RELEASE, 2)
    if data[_MAGIC : _MAGIC + 4] != b"HdrS" or not at:
        return ""
    return _text(data[at + _SETUP : at + _SETUP + 256])


def _text(data: bytes) -> str:
    words = data.partition(b"\0")[0].decode("utf-8", "replace").split()
    return words[0] if words and words[0].isprintable() else ""


def _part(data: bytes | mmap.mmap, sections: dict[str, tuple[int, int]], name: str) -> bytes:
    start, size = sections.get(name, (0, 0))
    return data[start : start + min(size, _LONGEST)]


def _sections(data: bytes | mmap.mmap) -> dict[str, tuple[int, int]]:
    """Return where each section of a PE file begins and how long it is, of several with one name the first."""
    found: dict[str, tuple[int, int]] = {}
    head = _number(data[:64], 0x3C, 4)
    if data[:2] != b"MZ" or data[head : head + 4] != b"PE\0\0":
        return found
    coff = data[head : head + 24]
    table = head + 24 + _number(coff, 20, 2)
    for at in range(table, table + 40 * min(_number(coff, 6, 2), 96), 40):
        row = data[at : at + 40]
        if len(row) < 40:
            break
        name = row[:8].rstrip(b"\0").decode("ascii", "replace")
        size, raw, start = (_number(row, place, 4) for place in (8, 16, 20))
        found.setdefault(name, (start, min(size, raw)))
    return found


def _number(data: bytes, at: int, size: int) -> int:
    """Return the little-endian number at `at`; of what is cut off, what is left."""
    return int.from_bytes(data[at : at + size], "little")
