# SPDX-License-Identifier: MIT
"""The configuration that a kernel was built with: inside its image, or beside it (kernel/configs.c, CONFIG_IKCONFIG)."""

from __future__ import annotations

import os
import re
import stat
import zlib
from typing import NamedTuple

from safemem.boot.paths import CONFIG
from safemem.outgoing.elf import Part

INSIDE = "the configuration in the image"
_START = b"IKCFG_ST\x1f\x8b"
#: Bytes of a configuration; distributions have 300 KiB.
_MOST = 4 << 20
_LINE = re.compile(r"^(?:(CONFIG_\w+)=(.*)|# (CONFIG_\w+) is not set)$", re.MULTILINE)
_OF = re.compile(r"^# Linux/\S+ (\d+\.\d+)(?:\.(\d+))?\S* ", re.MULTILINE)
_NUMBERS = re.compile(r"(\d+\.\d+)(?:\.(\d+))?")
_RELEASE = re.compile(r"[\w.+~:-]+")


class Config(NamedTuple):
    """A configuration, and where it is from."""

    options: dict[str, str] | None
    source: str = ""
    fault: str = ""  #: why one that was found is not taken


def options(text: str) -> dict[str, str] | None:
    """Return the options of a configuration, by name; `n` is one that is not set. None if the text is none."""
    found = {match[1] or match[3]: match[2] if match[1] else "n" for match in _LINE.finditer(text)}
    return found or None


def inside(parts: tuple[Part, ...]) -> dict[str, str] | None:
    """Return the configuration that is in a kernel; None if there is none that can be read."""
    for part in parts:
        at = part.data.find(_START, part.start, part.end)
        for _ in range(8):
            if at < 0:
                break
            stream = zlib.decompressobj(31)
            try:
                data = stream.decompress(part.data[at + 8 : min(part.end, at + 8 + _MOST)], _MOST)
            except zlib.error:
                data = b""
            if stream.eof and (found := options(data.decode("ascii", "replace"))):
                return found
            at = part.data.find(_START, at + 1, part.end)
    return None


def beside(path: str, release: str, root: str) -> Config:
    """Return the configuration that lies where distributions put it for an image at `path`, or for its release."""
    folder, name = os.path.split(path)
    whole = name == "vmlinuz" or (path and os.path.basename(folder) == release)
    places = [os.path.join(folder, "config")] if whole else []
    if release and _RELEASE.fullmatch(release):
        places += [os.path.join(folder, f"config-{release}")] if path else []
        places += [os.path.join(root, item.format(release)) for item in CONFIG[1:]]
    for place in places:
        text = _read(place)
        if not text:
            continue
        found = options(text)
        if not found:
            continue
        if other := _other(text, found, release):
            return Config(None, "", f"{place} is of {other}, and the kernel is {release}")
        return Config(found, place)
    return Config(None)


def _other(text: str, found: dict[str, str], release: str) -> str:
    """Return of which other kernel a configuration is, by its head and by what was put behind the version; "" if of none."""
    of, own = _OF.search(text), _NUMBERS.match(release)
    if of and own:
        # Debian's releases stay at .0 where the version goes on.
        later = own[2] not in (None, "0") and of[2] is not None and own[2] != of[2]
        if of[1] != own[1] or later:
            return f"Linux {of[1]}{'.' + of[2] if of[2] else ''}"
    local = found.get("CONFIG_LOCALVERSION", "").strip('"')
    return f"a kernel called `{local}`" if release and local not in ("", "n") and local not in release else ""


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    with open(fd, encoding="ascii", errors="replace") as file:
        try:
            return file.read(_MOST) if stat.S_ISREG(os.fstat(fd).st_mode) else ""
        except OSError:
            return ""
