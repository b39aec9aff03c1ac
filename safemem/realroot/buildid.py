# SPDX-License-Identifier: MIT
"""The build ID of the kernel that runs: it tells which file it was booted from, and whether that one was judged."""

from __future__ import annotations

import struct

from safemem.boot import files, paths
from safemem.boot.files import reason

#: Of an ELF note: three numbers, then name and content, each padded to four bytes (elf(5)).
_HEAD, _GNU, _BUILD_ID = struct.Struct("=III"), b"GNU\0", 3


def running(root: str) -> tuple[str, str]:
    """Return the build ID of the running kernel in hexadecimal digits, and ""; or "" and why it cannot be told."""
    try:
        found = _of_notes(files.read(root, paths.NOTES))
    except OSError as error:
        return "", f"/{paths.NOTES}: {reason(error)}"
    return found, "" if found else f"/{paths.NOTES} has no build ID"


def _of_notes(notes: bytes) -> str:
    """Return the first build ID among ELF notes, in hexadecimal digits; "" if there is none, or it is cut off."""
    place = 0
    while place + _HEAD.size <= len(notes):
        name, content, kind = _HEAD.unpack_from(notes, place)
        start = place + _HEAD.size + (name + 3 & ~3)
        if kind == _BUILD_ID and notes[place + _HEAD.size :][:name] == _GNU and 0 < content <= len(notes) - start:
            return notes[start : start + content].hex()
        place = start + (content + 3 & ~3)
    return ""
