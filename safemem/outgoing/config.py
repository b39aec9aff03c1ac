# SPDX-License-Identifier: MIT
"""The configuration that a kernel was built with: inside its image, or beside it (kernel/configs.c, CONFIG_IKCONFIG)."""

from __future__ import annotations

import os
import re
import stat
import zlib
from typing import NamedTuple

from safemem.boot.paths import CONFIG
from safemem.outgoing.elf import OWN_DATA, Part

INSIDE = "the configuration in the image"
_START = b"IKCFG_ST\x1f\x8b"
#: Bytes of a configuration; distributions have 300 KiB.
_MOST = 4 << 20
_LINE = re.compile(r"^(?:(CONFIG_\w+)=(.*)|# (CONFIG_\w+) is not set)$", re.MULTILINE)
_OF = re.compile(r"^# Linux/(\S+) (\d+\.\d+)(\.\d+)?(-rc\d+)?\S* ", re.MULTILINE)
#: What kbuild calls an architecture (ARCH in the top Makefile), for what uname(1) calls it.
_ARCHES = {
    "x86_64": ("x86", "x86_64"), "i686": ("x86", "i386"), "aarch64": ("arm64",), "aarch64_be": ("arm64",),
    "riscv64": ("riscv",), "loongarch64": ("loongarch",),
}  # fmt: skip
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
        if part.name and not part.name.startswith(OWN_DATA):
            continue
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


def beside(path: str, release: str, root: str, arch: str = "") -> Config:
    """Return the configuration that lies where distributions put it for an image at `path`, or for its release.

    INVARIANT: none is taken that says that it is of another kernel, or does not say of which.
    """
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
        if why := _of_another(text, found, release, arch):
            return Config(None, "", f"{place} {why}")
        return Config(found, place)
    return Config(None)


def _of_another(text: str, found: dict[str, str], release: str, arch: str) -> str:
    """Return why a configuration is not that of a kernel with this release and architecture; "" if it may be."""
    of = _OF.search(text)
    if of is None:
        return "does not say of which kernel it is"
    if arch in _ARCHES and of[1] not in _ARCHES[arch]:
        return f"is for {of[1]}, and the kernel for {arch}"
    base, patch, candidate = of[2], of[3] or "", of[4] or ""
    # Debian calls 6.12.0-rc6 also 6.12-rc6-amd64, and every 6.1.y 6.1.0-N-amd64, as Ubuntu does.
    names = {
        base + patch + candidate,
        base + candidate if patch in ("", ".0") else "",
        "" if candidate else f"{base}.0",
    }
    if not any(name and re.match(rf"{re.escape(name)}(?![\d.]|-rc\d)", release) for name in names):
        return f"is of Linux {base}{patch}{candidate}, and the kernel is {release}"
    local = found.get("CONFIG_LOCALVERSION", "").strip('"')
    if local not in ("", "n") and local not in release:
        return f"is of a kernel with `{local}` in its release, and the kernel is {release}"
    return ""


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
