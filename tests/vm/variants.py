# SPDX-License-Identifier: MIT
"""Kernels that differ from a built one in what they speak of live update: other versions, and sections that say which.

The constant is changed in the built image, which is unpacked, patched and packed again at the same length: seconds instead
of a build. The early loader has that length and that of the unpacked kernel built in (arch/x86/boot/compressed/piggy.S).
"""

from __future__ import annotations

import hashlib
import lzma
import struct
from pathlib import Path
from typing import NamedTuple

from tests.vm import harness


class Variant(NamedTuple):
    """Strings that are replaced by others of their length, and sections that are added."""

    strings: tuple[tuple[str, str], ...] = ()
    sections: tuple[tuple[str, bytes], ...] = ()


def _listed(*names: str) -> bytes:
    """Return a section of the first design: a header, and a field of 48 bytes for each version."""
    return struct.pack("<II", 0x4C565550, 1) + b"".join(name.encode().ljust(48, b"\0") for name in names)


def _featured(*entries: tuple[str, int, int, int]) -> bytes:
    """Return a section of the second design: names without versions, and masks of features."""
    found = [struct.pack("<48sIIQQQ", name.encode(), 24, 0, *masks) for name, *masks in entries]
    return struct.pack("<II", 0x4C565550, 1) + b"".join(found)


#: Of `current`, by name.
VARIANTS = {
    "new-kho": Variant((("kho-v4", "kho-v5"),)),
    "new-luo": Variant((("luo-v5", "luo-v6"),)),
    "new-memfd": Variant((("memfd-v2", "memfd-v3"),), ((".liveupdate_versions", _listed("luo-v5", "memfd-v3")),)),
    # In this design handlers have names without versions; what requires nothing suits a kernel that knows no features.
    "features": Variant(
        (("memfd-v2", "memfd\0\0\0"),), ((".liveupdate_features", _featured(("luo", 3, 0, 1), ("memfd", 1, 0, 0))),)
    ),
}
#: Sections of `current` that only give their headers and the place of their names: what is loaded goes by segments.
_GIVEN = ("runtime_shift_d_hash_shift", "runtime_ptr_dentry_hashtable")
#: Names of symbols that only a module would ask for; without them the rest packs into what was there.
_SPARED = "__ksymtab_strings"


def get(name: str) -> Path:
    """Return the image called `name`: one of VARIANTS, made if it is not there yet, or a built one."""
    if name not in VARIANTS:
        return harness.kernel(name)
    from tests.vm.debian import building

    base = harness.kernel("current").read_bytes()
    key = hashlib.sha256(base + repr(VARIANTS[name]).encode() + Path(__file__).read_bytes()).hexdigest()[:16]
    path = harness.CACHE / "vm" / f"kernel-{name}-{key}"
    with building(path) as draft:
        if draft:
            draft.write_bytes(made(base, VARIANTS[name]))
    return path


def made(image: bytes, variant: Variant) -> bytes:
    """Return the bzImage with the variant's changes."""
    start, length = struct.unpack_from("<II", image, 0x248)
    start += ((image[0x1F1] or 4) + 1) * 512
    stream = lzma.LZMADecompressor()
    kernel = bytearray(stream.decompress(image[start : start + length]))
    room = length - len(stream.unused_data)
    for old, new in variant.strings:
        before, after = (text.encode() + b"\0" for text in (old, new))
        assert len(before) == len(after) and before in kernel, f"the kernel has no {old}"
        kernel = kernel.replace(before, after)
    _spare(kernel)
    for (section, data), given in zip(variant.sections, _GIVEN, strict=False):
        _add(kernel, section, data, given)
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 32 << 20}]
    packed = lzma.compress(bytes(kernel), lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)
    assert len(packed) <= room, "it does not pack into the place of the other"
    return image[:start] + packed.ljust(room, b"\0") + image[start + room :]


def _headers(kernel: bytearray) -> dict[str, tuple[int, int, int, int]]:
    """Return each section of an ELF file: where its header and its name are, its offset and its size (elf(5))."""
    table, size, number, names = struct.unpack_from("<Q", kernel, 0x28) + struct.unpack_from("<HHH", kernel, 0x3A)
    text = struct.unpack_from("<Q", kernel, table + names * size + 24)[0]
    found = {}
    for at in range(table, table + number * size, size):
        place = text + struct.unpack_from("<I", kernel, at)[0]
        name = bytes(kernel[place : kernel.index(0, place)]).decode()
        found[name] = (at, place, *struct.unpack_from("<QQ", kernel, at + 24))
    return found


def _spare(kernel: bytearray) -> None:
    _, _, offset, size = _headers(kernel)[_SPARED]
    kernel[offset : offset + size] = bytes(size)


def _add(kernel: bytearray, name: str, data: bytes, given: str) -> None:
    """Add a section, into zeros between two segments of the file, under the header of the section `given`."""
    found = _headers(kernel)
    at, place, _, _ = found[given]
    end = max(offset + size for _, _, offset, size in found.values() if offset + size <= found[".data"][2])
    end = -(-end // 64) * 64
    assert not any(kernel[end : end + len(data)]) and len(name) < len(given)
    kernel[end : end + len(data)] = data
    kernel[place : place + len(name) + 1] = name.encode() + b"\0"
    struct.pack_into("<QQ", kernel, at + 24, end, len(data))
    struct.pack_into("<II", kernel, at + 4, 1, 2)  # PROGBITS, SHF_ALLOC
