# SPDX-License-Identifier: MIT
"""Read files out of an initrd as the kernel would unpack it (Documentation/driver-api/early-userspace/buffer-format.rst).

An initrd is any number of newc archives one behind the other, each plain or compressed, with zeros
between them; of two files with one name the later one counts. zstd and lz4 are unpacked by their
own programs, which a machine with such an initrd has: its initrd was made with them.
"""

from __future__ import annotations

import bz2
import lzma
import subprocess
import zlib
from collections.abc import Iterable, Iterator

from safemem.boot.model import Refused

_GZIP, _BZIP2, _XZ, _LZMA, _LZO = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x5d\0\0", b"\x89LZ"
_ZSTD, _LZ4, _LZ4_LEGACY = b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"
#: A legacy lz4 block never unpacks to more than 8 MiB; what is larger is the next archive's beginning.
_LZ4_BLOCK = (8 << 20) + (8 << 20) // 255 + 16
_FILE, _SYMLINK = 0o100000, 0o120000


class Unreadable(Refused, ValueError):
    """The image cannot be read to its end; the message says where and why."""

    kind = "unknown"


def find(data: bytes, wanted: Iterable[str]) -> dict[str, bytes]:
    """Return the wanted files of an initrd, by path without a leading slash; of a symbolic link its target.

    Of a unified kernel image it is the `.initrd` section that is read. A wanted path that ends in `/` stands for everything below it. What is not there is left out.

    Raises:
        Unreadable: damaged, cut off, or packed in a way that cannot be unpacked here.
    """
    exact = {path for path in wanted if not path.endswith("/")}
    below = tuple(path for path in wanted if path.endswith("/"))
    found: dict[str, bytes] = {}
    for path, mode, content in _entries(_initrd_section(data) if data.startswith(b"MZ") else data):
        if path in exact or (below and path.startswith(below)):
            found.pop(path, None)
            if mode & 0o170000 in (_FILE, _SYMLINK):
                found[path] = content
    return found


def _initrd_section(data: bytes) -> bytes:
    """Return the initrd of a unified kernel image (UAPI.5; sections as in the PE format)."""
    head = _number(data, 0x3C, 4)
    if data[head : head + 4] != b"PE\0\0":
        raise Unreadable("this is a program for DOS, or a damaged image")
    table = head + 24 + _number(data, head + 20, 2)
    for at in range(table, table + 40 * _number(data, head + 6, 2), 40):
        if data[at : at + 8].rstrip(b"\0") == b".initrd":
            size, raw, start = (_number(data, at + place, 4) for place in (8, 16, 20))
            if start + raw > len(data):
                raise Unreadable(f"byte {start}: the .initrd section is cut off")
            return data[start : start + min(size, raw)]
    raise Unreadable("this is a kernel image without an .initrd section")


def _entries(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    at = 0
    while True:
        at = _skip_zeros(data, at)
        if at == len(data):
            return
        if data[at : at + 5] == b"07070":
            entries, at = _archive(data, at)
            yield from entries
        else:
            unpacked, at = unpack(data, at)
            yield from _entries(unpacked)


def _skip_zeros(data: bytes, at: int) -> int:
    while at < len(data) and data[at] == 0:
        # Most padding is short; a long one is skipped by the page.
        at += 4096 if data[at : at + 4096].count(0) == 4096 else 1
    return at


def _archive(data: bytes, at: int) -> tuple[list[tuple[str, int, bytes]], int]:
    """Return the entries of the archive at `at`, and where it ends."""
    entries: list[tuple[str, int, bytes]] = []
    base = at
    while at < len(data):
        magic = data[at : at + 6]
        if magic not in (b"070701", b"070702"):
            raise Unreadable(f"byte {at}: this is no entry of a newc archive")
        try:
            fields = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        except ValueError:
            raise Unreadable(f"byte {at}: the head of an archive entry is damaged") from None
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1]
        start = base + -(-(at - base + 110 + name_size) // 4) * 4
        if name_size < 1 or start + size > len(data):
            raise Unreadable(f"byte {at}: the archive is cut off")
        at = min(base + -(-(start - base + size) // 4) * 4, len(data))
        if name == b"TRAILER!!!":
            return entries, at
        path = name.decode("utf-8", "surrogateescape")
        entries.append((path.removeprefix("./").lstrip("/"), mode, data[start : start + size]))
    raise Unreadable(f"byte {at}: the archive is cut off")


def unpack(data: bytes, at: int) -> tuple[bytes, int]:
    """Return what the compressed stream at `at` unpacks to, and where it ends."""
    head = data[at : at + 6]
    try:
        if head.startswith(_ZSTD):
            end = _zstd_end(data, at)
            return _by_program(("zstd", "-dcq"), data[at:end], at), end
        if head.startswith((_LZ4, _LZ4_LEGACY)):
            end = _lz4_end(data, at)
            return _by_program(("lz4", "-dcq"), data[at:end], at), end
        if head.startswith(_LZO):
            raise Unreadable(f"byte {at}: packed with lzo, which cannot be unpacked here")
        stream: zlib._Decompress | bz2.BZ2Decompressor | lzma.LZMADecompressor
        if head.startswith(_GZIP):
            stream = zlib.decompressobj(31)
        elif head.startswith(_BZIP2):
            stream = bz2.BZ2Decompressor()
        elif head.startswith((_XZ, _LZMA)):
            stream = lzma.LZMADecompressor()
        else:
            raise Unreadable(f"byte {at}: neither an archive nor a compression that the kernel knows")
        unpacked = stream.decompress(data[at:])
    except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
        raise Unreadable(f"byte {at}: the compressed part is damaged: {error}") from None
    if not stream.eof:
        raise Unreadable(f"byte {at}: the compressed part is cut off")
    return unpacked, len(data) - len(stream.unused_data)


def _by_program(command: tuple[str, ...], data: bytes, at: int) -> bytes:
    try:
        result = subprocess.run(command, input=data, capture_output=True, check=False)
    except FileNotFoundError:
        raise Unreadable(
            f"byte {at}: packed with {command[0]}, and the program {command[0]} is not installed"
        ) from None
    if result.returncode:
        raise Unreadable(f"byte {at}: the part packed with {command[0]} is damaged")
    return result.stdout


def _zstd_end(data: bytes, at: int) -> int:
    """Return where the zstd frames at `at` end (RFC 8878): the program refuses what follows them."""
    while data[at : at + 4] == _ZSTD or (data[at + 1 : at + 4] == b"\x2a\x4d\x18" and data[at] & 0xF0 == 0x50):
        if data[at : at + 4] != _ZSTD:
            at += 8 + _number(data, at + 4, 4)
            continue
        flags = _number(data, at + 4, 1)
        single = flags >> 5 & 1
        at += 5 + (not single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
        last = 0
        while not last:
            block = _number(data, at, 3)
            last, kind, size = block & 1, block >> 1 & 3, block >> 3
            at += 3 + (1 if kind == 1 else size)
        at += 4 * (flags >> 2 & 1)
    return min(at, len(data))


def _lz4_end(data: bytes, at: int) -> int:
    """Return where the lz4 frames at `at` end, both the legacy ones of the kernel and those of lz4(1)."""
    while data[at : at + 4] in (_LZ4, _LZ4_LEGACY):
        if data[at : at + 4] == _LZ4_LEGACY:
            at += 4
            while at + 4 <= len(data) and 0 < (size := _number(data, at, 4)) <= _LZ4_BLOCK:
                at += 4 + size
            continue
        flags = _number(data, at + 4, 1)
        at += 7 + 8 * (flags >> 3 & 1) + 4 * (flags & 1)
        while size := _number(data, at, 4) & 0x7FFFFFFF:
            at += 4 + size + 4 * (flags >> 4 & 1)
        at += 4 + 4 * (flags >> 2 & 1)
    return min(at, len(data))


def _number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise Unreadable(f"byte {at}: the compressed part is cut off")
    return int.from_bytes(data[at : at + size], "little")
