# SPDX-License-Identifier: MIT
"""What the image of the next kernel says about itself (Documentation/arch/x86/boot.rst)."""

from __future__ import annotations

import re
import struct

from safemem.initramfs import packed

_MAGIC, _SETUP_SECTS, _PAYLOAD = 0x202, 0x1F1, 0x248
#: Bytes of a kernel that is unpacked.
_LIMIT = 1 << 30
#: The version of the handover tree, which every kernel with KHO compares (include/linux/kho/abi/kexec_handover.h).
_TREE = re.compile(rb"kho-v\d")


def has_kho(path: str) -> bool | None:
    """Return whether the kernel in `path` can read a handover at all; None if its image cannot be unpacked here."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        if data[_MAGIC : _MAGIC + 4] == b"HdrS":
            start, size = struct.unpack_from("<II", data, _PAYLOAD)
            start += ((data[_SETUP_SECTS] or 4) + 1) * 512
            data, _ = packed.whole(data[start : start + size], 0, _LIMIT)
    except (OSError, struct.error, packed.Unreadable):
        return None
    if b"Linux version " not in data:
        return None
    return bool(_TREE.search(data))
