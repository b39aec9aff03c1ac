# SPDX-License-Identifier: MIT
"""Which variants of a compression a kernel unpacks of an initrd: its own programs know less than those that pack.

From lib/decompress*.c, lib/xz and lib/zstd of Linux 7.3. What is said here ends the unpacking: the kernel prints a line, and
boots with what came before.
"""

from __future__ import annotations

import struct

from safemem.initramfs import packed

_STOPS = "the kernel stops here, and unpacks nothing of the rest"
#: Filters of an xz block before LZMA2 that kernels may be built with: x86, PowerPC, ARM, ARM-Thumb, SPARC, ARM64, RISC-V.
_BRANCHES = (b"\4", b"\5", b"\7", b"\10", b"\11", b"\12", b"\13")
_LZMA2 = b"\x21"
#: Flags of lzop(1): checksums of a block as packed, none at all of what it unpacks to, a field behind the head.
_LZO_CHECKED, _LZO_PACKED, _LZO_EXTRA = 0x101, 0x202, 0x40


def refused(data: bytes, at: int) -> str:
    """Return why the kernel does not unpack the compressed part at `at`, as far as its head tells; "" if it may."""
    head = data[at : at + 8]
    if head.startswith(packed.LZ4_FRAME):
        return f"packed with lz4's newer frame, which the kernel does not unpack (`lz4 -l` makes the other): {_STOPS}"
    if head[:2] == b"\x1f\x8b":
        # Of RFC 1952's flags it knows the file's name (8), and passes over that for text (1).
        if head[2:3] != b"\x08":
            return f"the compressed part is damaged: {_STOPS}"
        if len(head) > 3 and head[3] & ~9:
            return f"the head of the gzip member has fields that the kernel does not know: {_STOPS}"
    if head[:2] == b"\xfd7":
        if head[7:8] > b"\1":
            return f"packed by xz without `--check=crc32`: {_STOPS}"
        # The first block's; those of others are known once it is unpacked.
        if data[at + 12 : at + 13].strip(b"\0") and (why := _xz_filters(data[: at + 12 + 1024], at + 12)):
            return f"{why}: {_STOPS}"
    if head[:4] == packed.ZSTD and len(head) > 4 and head[4] & 3 and any(_dictionary(data, at)):
        return f"packed by zstd with a dictionary, which the kernel does not have: {_STOPS}"
    if head[:3] == b"\x89LZ":
        flags = at + 16 + (int.from_bytes(data[at + 9 : at + 11], "big") >= 0x0940)
        flag = int.from_bytes(data[flags : flags + 4], "big")
        if not flag & _LZO_CHECKED or flag & (_LZO_PACKED | _LZO_EXTRA):
            return f"packed by lzop with other checksums than the kernel expects: {_STOPS}"
    return ""


def _dictionary(data: bytes, at: int) -> bytes:
    """Return the number of the dictionary that the zstd frame at `at` was packed with (RFC 8878)."""
    flags = data[at + 4]
    place = at + 5 + (not flags >> 5 & 1)
    return data[place : place + (0, 1, 2, 4)[flags & 3]]


#: Bytes in which the kernel's programs hand over what they unpack; lz4 and lzo in the blocks that their packers fill.
_PIECES = {
    b"\x1f\x8b": 32 << 10,
    b"\xfd7": 4096,
    b"BZ": 4096,
    b"\x28\xb5": 128 << 10,
    b"\x02\x21": 8 << 20,
    b"\x89L": 256 << 10,
}


def pieces(data: bytes, at: int) -> int:
    """Return the size of the pieces that the compressed part at `at` is unpacked in; of lzma it is that of its dictionary."""
    size = _PIECES.get(data[at : at + 2]) or int.from_bytes(data[at + 1 : at + 5], "little")
    return max(size, 1)


def untold(data: bytes, at: int) -> str:
    """Return why it cannot be told where the kernel goes on behind the compressed part at `at`; "" if it can."""
    # It stops when it has as many bytes as the head says, and liblzma behind a mark that may follow.
    if data[at : at + 2] == b"\x5d\0" and data[at + 5 : at + 13] != b"\xff" * 8:
        return "packed with lzma, with its size in the head: where the kernel goes on cannot be told"
    return ""


def refused_within(data: bytes, at: int, end: int) -> str:
    """Return why the kernel does not unpack the compressed part from `at` to `end`, which was unpacked here; "" if it does."""
    if data[at : at + 2] == b"\xfd7":
        for place in _xz_blocks(data, at, end):
            if why := _xz_filters(data, place):
                return f"{why}: {_STOPS}"
    return ""


def _xz_blocks(data: bytes, at: int, end: int) -> list[int]:
    """Return where the blocks of an xz stream begin: its index, before the footer, has their sizes (xz's file format, 4)."""
    index = end - 12 - (struct.unpack_from("<I", data, end - 8)[0] + 1) * 4
    count, place = _number(data, index + 1)
    blocks, block = [], at + 12
    for _ in range(count):
        blocks.append(block)
        size, place = _number(data, place)
        _, place = _number(data, place)
        block += -(-size // 4) * 4
    return blocks


def _xz_filters(data: bytes, block: int) -> str:
    """Return what is wrong with the filters of a block for the kernel, which takes LZMA2, with one for branches before it."""
    if len(data) < block + (data[block] + 1) * 4:
        return ""  # cut off, which whoever unpacks it says
    flags = data[block + 1]
    if flags & 3 > 1:
        return "packed by xz with more filters than the kernel takes"
    place = block + 2
    for bit in (0x40, 0x80):
        if flags & bit:
            _, place = _number(data, place)
    if flags & 3:
        if data[place : place + 1] not in _BRANCHES:
            return "packed by xz with a filter that the kernel does not have"
        if data[place + 1 : place + 2] != b"\0":
            return "packed by xz with an offset for its filter, which the kernel does not take"
        place += 2
    return "" if data[place : place + 1] == _LZMA2 else "packed by xz with a filter that the kernel does not have"


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return the number of 7 bits a byte at `at`, and where it ends; what lies outside of `data` counts as zeros."""
    value = shift = 0
    while True:
        byte = data[at] if at < len(data) else 0
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
