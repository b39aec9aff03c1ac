# SPDX-License-Identifier: MIT
"""Unpack one compressed stream, piece by piece: what it unpacks to may be larger than memory.

zstd, before Python 3.14, lz4 and lzo are unpacked by their own programs, which a machine with such an initrd has: its
initrd was made with them.
"""

from __future__ import annotations

import bz2
import contextlib
import importlib
import io
import lzma
import os
import subprocess
import zlib
from collections.abc import Generator
from typing import Any, Protocol

from safemem.boot.model import Refused

_GZIP, _BZIP2, _XZ, _LZMA, _LZO = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x5d\0", b"\x89LZ"
ZSTD, LZ4_LEGACY, LZ4_FRAME = b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18", b"\x04\x22\x4d\x18"
#: A legacy lz4 block never unpacks to more than 8 MiB; what is larger is the next archive's beginning.
_LZ4_BLOCK = (8 << 20) + (8 << 20) // 255 + 16
_LZO_BLOCK = 256 << 10
_PIECE = 1 << 18
#: Blocks of one stream; as zstd makes them, they hold 128 GiB. A stream of empty ones would be walked for minutes.
_BLOCKS = 1 << 20
#: The compressions that the kernel knows, by what a stream of each begins with.
_NAMES = {
    _GZIP: "gzip", _XZ: "xz", ZSTD: "zstd", LZ4_LEGACY: "lz4", _LZMA: "lzma", _BZIP2: "bzip2", _LZO: "lzo",
}  # fmt: skip
#: Bytes that an lzma stream may ask for to be unpacked; the largest setting of xz(1) takes 65 MiB.
_MEMORY = 1 << 28


#: Python's own, from 3.14 on if it was built with it; otherwise the program unpacks it.
_zstd: Any = None
with contextlib.suppress(ImportError):
    _zstd = importlib.import_module("compression.zstd")
_DAMAGED = (zlib.error, OSError, lzma.LZMAError, EOFError)


class Unreadable(Refused, ValueError):
    """The image cannot be read to its end; the message says where and why."""

    kind = "unknown"
    help = "if it is an initrd that should boot, make it again, or copy it again, and look once more"


class NoProgram(Unreadable):
    """The program that unpacks it is not there."""

    help = "install that program, and look once more"


class _Stream(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib with the interface that bz2 and lzma have."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)
        self._more = False

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail and not self._more

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        # A full piece may leave something inside, also when all of the input is consumed.
        self._more = len(out) == max_length
        return out


def compression(head: bytes) -> str:
    """Return the name of the compression that a stream beginning with `head` has; "" if it has none."""
    return next((name for magic, name in _NAMES.items() if head.startswith(magic)), "")


def pieces(data: bytes, at: int, *, alone: bool = False) -> Generator[bytes, None, int]:
    """Yield what the compressed stream at `at` unpacks to; return where it ends.

    What is `alone` has nothing behind it.

    Raises:
        Unreadable: damaged, cut off, or packed in a way that cannot be unpacked here.
    """
    head = data[at : at + 6]
    stream: _Stream
    if head.startswith(ZSTD):
        end = _zstd_end(data, at)
        yield from _zstd_by_library(data, at) if _zstd else _by_program(("zstd", "-dcq"), data[at:end], at)
        return end
    if head.startswith(LZ4_LEGACY):
        end = _lz4_end(data, at)
        yield from _by_program(("lz4", "-dcq"), data[at:end], at)
        return end
    if head.startswith(_LZO):
        end = len(data) if alone else _lzo_end(data, at)
        yield from _by_program(("lzop", "-dcq"), data[at:end], at)
        return end
    if head.startswith(_GZIP):
        stream = _Gzip()
    elif head.startswith(_BZIP2):
        stream = bz2.BZ2Decompressor()
    elif head.startswith(_XZ):
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
    elif head.startswith(_LZMA):
        # Said, or only dictionaries of 2^n and 2^n + 2^(n-1) bytes are taken.
        stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY)
    else:
        raise Unreadable(f"byte {at}: neither an archive nor a compression that the kernel knows")
    try:
        return (yield from _unpacked(stream, data, at))
    except _DAMAGED as error:
        raise Unreadable(f"byte {at}: the compressed part is damaged: {error}") from None


def _unpacked(stream: _Stream, data: bytes, at: int) -> Generator[bytes, None, int]:
    place = at
    while not stream.eof:
        piece = b""
        if stream.needs_input:
            piece = data[place : place + _PIECE]
            place += len(piece)
            if not piece:
                raise Unreadable(f"the compressed part that begins at byte {at} is cut off")
        out = stream.decompress(piece, _PIECE)
        if out:
            yield out
    return place - len(stream.unused_data)


def whole(data: bytes, at: int, limit: int, *, alone: bool = False) -> tuple[bytes, int]:
    """Return what the compressed stream at `at` unpacks to, and where it ends; `alone` as above. Raises Unreadable."""
    # It grows in place and gives away what it holds: joined pieces would be in memory twice.
    out = io.BytesIO()
    left, stream = limit, pieces(data, at, alone=alone)
    while True:
        try:
            piece = next(stream)
        except StopIteration as end:
            return out.getvalue(), int(end.value)
        left -= len(piece)
        if left < 0:
            stream.close()
            raise Unreadable(
                f"byte {at}: the compressed part unpacks to more than {limit >> 20} MiB, which is not read"
            )
        out.write(piece)


def _zstd_by_library(data: bytes, at: int) -> Generator[bytes]:
    try:
        yield from _unpacked(_zstd.ZstdDecompressor(), data, at)
    except _zstd.ZstdError:
        raise Unreadable(f"byte {at}: the part packed with zstd is damaged") from None


def _by_program(command: tuple[str, ...], data: bytes, at: int) -> Generator[bytes]:
    with open(os.memfd_create("packed", os.MFD_CLOEXEC), "w+b") as packed:
        packed.write(data)
        packed.seek(0)
        try:
            process = subprocess.Popen(command, stdin=packed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            raise NoProgram(
                f"byte {at}: packed with {command[0]}, and the program {command[0]} is not installed"
            ) from None
    with process:
        try:
            assert process.stdout is not None
            while piece := process.stdout.read(_PIECE):
                yield piece
        finally:
            if process.poll() is None and piece:
                process.kill()
    if process.returncode:
        raise Unreadable(f"byte {at}: the part packed with {command[0]} is damaged")


def _zstd_end(data: bytes, at: int) -> int:
    """Return where the zstd frame at `at` ends (RFC 8878): the program refuses what follows."""
    flags = number(data, at + 4, 1)
    single = flags >> 5 & 1
    at += 5 + (not single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
    last = blocks = 0
    while not last:
        blocks += 1
        if blocks > _BLOCKS:
            raise Unreadable(f"byte {at}: the compressed part has more blocks than anything that is read")
        block = number(data, at, 3)
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        at += 3 + (1 if kind == 1 else size)
    return min(at + 4 * (flags >> 2 & 1), len(data))


def _lz4_end(data: bytes, at: int) -> int:
    """Return where the legacy lz4 frames at `at` end, the only ones that the kernel knows."""
    blocks = 0
    while data[at : at + 4] == LZ4_LEGACY:
        at += 4
        while at + 4 <= len(data) and 0 < (size := number(data, at, 4)) <= _LZ4_BLOCK:
            at += 4 + size
            blocks += 1
            if blocks > _BLOCKS:
                raise Unreadable(f"byte {at}: the compressed part has more blocks than anything that is read")
    return min(at, len(data))


def _lzo_end(data: bytes, at: int) -> int:
    """Return where the lzop file at `at` ends: behind a block of no size (lib/decompress_unlzo.c, which takes one checksum a block)."""
    blocks = 0
    place = lzo_blocks(data, at)
    while size := int.from_bytes(data[place : place + 4], "big"):
        place += 12 + int.from_bytes(data[place + 4 : place + 8], "big")
        blocks += 1
        if blocks > _BLOCKS:
            raise Unreadable(f"byte {at}: the compressed part has more blocks than anything that is read")
        if size > _LZO_BLOCK:
            raise Unreadable(
                f"byte {at}: packed with lzo in blocks larger than 256 KiB, which the kernel does not unpack"
            )
    if place + 4 > len(data):
        raise Unreadable(f"the compressed part that begins at byte {at} is cut off")
    return place + 4


def lzo_blocks(data: bytes, at: int) -> int:
    """Return where the first block of the lzop file at `at` is."""
    new = number(data, at + 10, 1) | number(data, at + 9, 1) << 8 >= 0x0940
    flags = at + 16 + new
    place = flags + (8 if number(data, flags + 2, 1) & 8 else 4) + 8 + 4 * new
    return place + 1 + number(data, place, 1) + 4


def number(data: bytes, at: int, size: int) -> int:
    """Return the little-endian number at `at`. Raises Unreadable."""
    if at + size > len(data):
        raise Unreadable(f"the compressed part is cut off before byte {at + size}")
    return int.from_bytes(data[at : at + size], "little")
