# SPDX-License-Identifier: MIT
"""What the image of the next kernel says about itself (Documentation/arch/x86/boot.rst)."""

from __future__ import annotations

import os
import re
import struct
import zlib

from safemem.boot.ground import UNTOLD, Build
from safemem.boot.paths import CONFIG
from safemem.initramfs import packed

_MAGIC, _SETUP_SECTS, _PAYLOAD = 0x202, 0x1F1, 0x248
#: Bytes of a kernel that is unpacked.
_LIMIT = 1 << 30
#: The version of the handover tree, which every kernel with KHO compares (include/linux/kho/abi/kexec_handover.h).
_TREE = re.compile(rb"kho-v\d")


#: The configuration inside an image, between these marks (kernel/configs.c, CONFIG_IKCONFIG).
_CONFIG = re.compile(rb"IKCFG_ST(\x1f\x8b.*?)IKCFG_ED", re.DOTALL)
_RELEASE = re.compile(rb"Linux version (\S+) ")


def build(path: str) -> Build:
    """Return what can be known of how the kernel in `path` is built, from its image or the configuration beside it."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        if data[_MAGIC : _MAGIC + 4] == b"HdrS":
            start, size = struct.unpack_from("<II", data, _PAYLOAD)
            start += ((data[_SETUP_SECTS] or 4) + 1) * 512
            data, _ = packed.whole(data[start : start + size], 0, _LIMIT)
    except (OSError, struct.error, packed.Unreadable):
        return UNTOLD
    release = _RELEASE.search(data)
    if not release:
        return UNTOLD
    config = _config(path, data, release[1].decode("ascii", "replace"))
    kho = bool(_TREE.search(data))
    return Build(kho, _has(config, "HUGETLBFS"), _has(config, "NUMA"), not kho or _version(release[1]) >= (7, 3))


def _config(path: str, data: bytes, release: str) -> str:
    """Return the kernel's configuration; "" if it is not to be found."""
    if inside := _CONFIG.search(data):
        try:
            return zlib.decompress(inside[1], 31).decode("ascii", "replace")
        except zlib.error:
            return ""
    folder, name = os.path.split(path)
    beside = [os.path.join(folder, "config")] if name == "vmlinuz" else []
    for place in (
        *beside,
        os.path.join(folder, f"config-{release}"),
        *(f"/{item.format(release)}" for item in CONFIG[1:]),
    ):
        try:
            with open(place, encoding="ascii", errors="replace") as file:
                return file.read()
        except OSError:
            continue
    return ""


def _version(release: bytes) -> tuple[int, int]:
    """Return the first two numbers of a release; zeros if it has none."""
    found = re.match(rb"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _has(config: str, option: str) -> bool | None:
    return f"CONFIG_{option}=y" in config.splitlines() if "CONFIG_" in config else None
