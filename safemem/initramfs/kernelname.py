# SPDX-License-Identifier: MIT
"""Which release a kernel's file says it is, as far as its head and sections tell; nothing is unpacked for it.

A bzImage has it in its head (Documentation/arch/x86/boot.rst, kernel_version), a unified kernel image in `.uname` (UAPI.5);
other kernels say it only once they are unpacked, and count as not known here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from safemem.initramfs import pe
from safemem.initramfs.store import Store

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
        return _look(Store(str(path), None, file.fileno(), os.fstat(file.fileno()).st_size))


def look(data: bytes) -> Named:
    """Return what a kernel's bytes say of it; of what is damaged, nothing."""
    return _look(Store("", data))


def _look(store: Store) -> Named:
    found = {item.name: item for item in reversed(pe.sections(store))}  # of several with one name the first

    def part(name: str) -> bytes:
        item = found.get(name)
        return store.head(item.at, min(item.size, _LONGEST)) if item else b""

    if ".linux" in found or ".initrd" in found:
        said = _text(part(".uname")) or _header(part(".linux"))
        return Named(said, unified=True, program=True, os_release=part(".osrel"))
    return Named(_header(store.head(0, _LONGEST)), program=bool(found))


def _header(data: bytes) -> str:
    """Return the release in the head of a bzImage, or ""."""
    at = int.from_bytes(data[_RELEASE : _RELEASE + 2], "little")
    if data[_MAGIC : _MAGIC + 4] != b"HdrS" or not at:
        return ""
    return _text(data[at + _SETUP : at + _SETUP + 256])


def _text(data: bytes) -> str:
    words = data.partition(b"\0")[0].decode("utf-8", "replace").split()
    return words[0] if words and words[0].isprintable() else ""
