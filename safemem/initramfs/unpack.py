# SPDX-License-Identifier: MIT
"""Read files out of an initrd as far as the kernel would unpack it (init/initramfs.c; buffer-format.rst in Documentation).

An initrd is any number of newc archives one behind the other, each plain or compressed once, with zeros between
them; of two files with one name the later one counts. Where the kernel stops, what follows does not exist: it says one
line and boots with what came before. So that is an error here, with its place.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

from safemem.initramfs import packed
from safemem.initramfs.packed import Unreadable, number

_FILE, _SYMLINK, _TYPE = 0o100000, 0o120000, 0o170000
_HEAD, _PATH_MAX = 110, 4096
#: Bytes that are unpacked of one image, and of one file that is looked for; an initramfs has a tenth of it.
LIMIT, _FILE_LIMIT = 4 << 30, 16 << 20
_STOPS = "the kernel stops here, and unpacks nothing of the rest"
_HEX = re.compile(rb"[0-9a-fA-F]{104}")


def find(data: bytes, wanted: Iterable[str]) -> dict[str, bytes]:
    """Return the wanted files of an initrd, by path without a leading slash; of a symbolic link its target.

    Of a unified kernel image it is the `.initrd` section that is read. A wanted path that ends in `/` stands for everything below it. What is not there is left out.

    Raises:
        Unreadable: damaged, cut off, packed in a way that cannot be unpacked here, larger than the limit, or not
            unpacked to its end by the kernel.
    """
    wanted = set(wanted)
    names = _Names({path for path in wanted if path[-1:] != "/"}, tuple(path for path in wanted if path[-1:] == "/"))
    _parts(_initrd_section(data) if data.startswith(b"MZ") else data, names)
    return names.found


def _initrd_section(data: bytes) -> bytes:
    """Return the initrd of a unified kernel image (UAPI.5; sections as in the PE format)."""
    head = number(data, 0x3C, 4)
    if data[head : head + 4] != b"PE\0\0":
        raise Unreadable("this is a program for DOS, or a damaged image")
    table = head + 24 + number(data, head + 20, 2)
    for at in range(table, table + 40 * number(data, head + 6, 2), 40):
        if data[at : at + 8].rstrip(b"\0") == b".initrd":
            size, raw, start = (number(data, at + place, 4) for place in (8, 16, 20))
            if start + raw > len(data):
                raise Unreadable(f"byte {start}: the .initrd section is cut off")
            return data[start : start + min(size, raw)]
    raise Unreadable("this is a kernel image without an .initrd section")


class _Reader:
    """Bytes one after the other: the image's own, or those that a compressed part of it unpacks to."""

    def __init__(self, pieces: Iterator[bytes], where: str = "") -> None:
        self._pieces, self._where = pieces, where
        self._buffer, self._index = b"", 0
        self.at = 0  #: how many have been taken
        self.end = 0  #: what the pieces' generator has returned

    def __str__(self) -> str:
        """Return the place of the next byte, for a message."""
        return f"{self._where}byte {self.at}"

    def _fill(self) -> bool:
        """Have at least one byte in the buffer, if there is one."""
        while self._index == len(self._buffer):
            try:
                self._buffer, self._index = next(self._pieces), 0
            except StopIteration as stop:
                # Said once; an exhausted generator returns None.
                self.end = stop.value or self.end
                return False
        return True

    def peek(self) -> bytes:
        """Return the next byte, or nothing at the end."""
        return self._buffer[self._index : self._index + 1] if self._fill() else b""

    def pieces(self, size: int) -> Iterator[bytes]:
        """Take the next `size` bytes, in pieces; fewer at the end."""
        while size and self._fill():
            piece = self._buffer[self._index : self._index + min(size, 1 << 20)]
            self._index += len(piece)
            self.at += len(piece)
            size -= len(piece)
            yield piece

    def take(self, size: int) -> bytes:
        """Take the next `size` bytes, fewer at the end."""
        return b"".join(self.pieces(size))

    def skip(self, size: int) -> int:
        """Take the next `size` bytes without a look at them; return how many there were."""
        left = size
        while left and self._fill():
            step = min(left, len(self._buffer) - self._index)
            self._index += step
            self.at += step
            left -= step
        return size - left

    def skip_zeros(self) -> None:
        """Take the zeros that come next."""
        while self.peek() == b"\0":
            rest = self._buffer[self._index : self._index + 4096]
            self.skip(len(rest) - len(rest.lstrip(b"\0")))


class _Head(NamedTuple):
    """What the head of an archive entry says, as far as it counts."""

    mode: int
    size: int
    inode: tuple[int, int, int] | None  #: of a file with several names
    check: int | None  #: sum of the file's bytes

    @property
    def kind(self) -> int:
        return self.mode & _TYPE


class _Names:
    """The files that are looked for, as they come."""

    def __init__(self, exact: set[str], below: tuple[str, ...]) -> None:
        self._exact, self._below = exact, below
        self._links: dict[tuple[int, int, int], tuple[list[str], bytes]] = {}
        self.found: dict[str, bytes] = {}
        self.unpacked = 0  #: bytes, of all compressed parts

    def want(self, path: str) -> bool:
        return path in self._exact or (bool(self._below) and path.startswith(self._below))

    def put(self, path: str, head: _Head, content: bytes) -> None:
        """Note one entry; of a file with several names any one entry has the content, and all have it in the end."""
        names = [path]
        if head.inode and head.kind == _FILE:
            names, old = self._links.get(head.inode, ([], b""))
            names, content = [*names, path], content if head.size else old
            self._links[head.inode] = names, content
        for name in names:
            if self.want(name):
                self.found.pop(name, None)
                if head.kind in (_FILE, _SYMLINK):
                    self.found[name] = content

    def end_archive(self) -> None:
        """Forget the inodes, which are an archive's own."""
        self._links.clear()


def _parts(data: bytes, names: _Names) -> None:
    """Read every part of an image. INVARIANT: nothing is read that the kernel would not unpack."""
    top = _Reader(iter([data]))
    first, plain = True, False
    while True:
        top.skip_zeros()
        if not top.peek():
            return
        if top.at % 4 and (plain or top.peek() == b"0"):
            part = "a plain archive" if top.peek() == b"0" else "the part after a plain archive"
            raise Unreadable(f"{top}: {part} begins at no multiple of 4: {_STOPS}")
        if top.peek() == b"0":
            _archive(top, names, packed=False)
            plain = True
        else:
            top.skip(_compressed(data, top.at, names, first=first) - top.at)
            plain = False
        first = False


def _compressed(data: bytes, at: int, names: _Names, *, first: bool) -> int:
    """Read the compressed part at `at`; return where it ends. The kernel takes no zeros at the beginning of the first one."""
    head = data[at : at + 8]
    # Of RFC 1952's flags it knows the file's name (8), and passes over that for text (1).
    if head[:3] == b"\x1f\x8b\x08" and len(head) > 3 and head[3] & ~9:
        raise Unreadable(f"byte {at}: the head of the gzip member has fields that the kernel does not know: {_STOPS}")
    if head[:2] == b"\xfd7" and head[7:8] > b"\1":
        raise Unreadable(f"byte {at}: packed by xz without `--check=crc32`: {_STOPS}")
    part = _Reader(_counted(packed.pieces(data, at), names, at), f"byte {at}, unpacked ")
    if not first:
        part.skip_zeros()
    while first or part.peek():
        if part.at % 4 or part.peek() != b"0":
            raise Unreadable(f"{part}: no archive is here in the compressed part: {_STOPS}")
        _archive(part, names, packed=True)
        part.skip_zeros()
        first = False
    if head[:4] == packed.LZ4_LEGACY and data[part.end : part.end + 4].strip(b"\0"):
        raise Unreadable(
            f"byte {part.end}: less than four zeros are between a part packed with lz4 and the next: {_STOPS}"
        )
    return part.end


def _counted(pieces: Generator[bytes, None, int], names: _Names, at: int) -> Generator[bytes, None, int]:
    while True:
        try:
            piece = next(pieces)
        except StopIteration as stop:
            return int(stop.value)
        names.unpacked += len(piece)
        if names.unpacked > LIMIT:
            raise Unreadable(f"byte {at}: the image unpacks to more than {LIMIT >> 20} MiB, which is not read")
        yield piece


def _archive(reader: _Reader, names: _Names, *, packed: bool) -> None:
    """Read the entries of one archive to its trailer."""
    while _entry(reader, names, packed=packed):
        reader.skip_zeros()
        if not reader.peek():
            raise Unreadable(f"{reader}: the archive is cut off")
        if reader.at % 4:
            raise Unreadable(f"{reader}: an archive entry begins at no multiple of 4: {_STOPS}")
    names.end_archive()


def _entry(reader: _Reader, names: _Names, *, packed: bool) -> bool:
    """Read one entry; return whether more follow in its archive."""
    place = str(reader)
    magic, rest = reader.take(6), reader.take(_HEAD - 6)
    if magic not in (b"070701", b"070702"):
        raise Unreadable(f"{place}: this is no entry of a newc archive")
    if len(rest) < _HEAD - 6:
        raise Unreadable(f"{place}: the archive is cut off")
    if not _HEX.fullmatch(rest):
        raise Unreadable(f"{place}: the head of an archive entry is damaged")
    fields = [int(rest[at : at + 8], 16) for at in range(0, len(rest), 8)]
    length = fields[11]
    head = _Head(
        fields[1], fields[6], (fields[0], fields[7], fields[8]) if fields[4] > 1 else None,
        fields[12] if magic == b"070702" else None,
    )  # fmt: skip
    if not 0 < length <= _PATH_MAX or (head.kind == _SYMLINK and head.size > _PATH_MAX):
        raise Unreadable(f"{place}: the name of an archive entry is empty or longer than {_PATH_MAX} bytes")
    if head.size and head.kind not in (_FILE, _SYMLINK):
        raise Unreadable(f"{place}: an archive entry that is neither a file nor a link has content")
    padded = length + -(_HEAD + length) % 4
    name = reader.take(padded)
    if len(name) < padded:
        raise Unreadable(f"{place}: the archive is cut off")
    if name[length - 1]:
        raise Unreadable(f"{place}: the name of an archive entry has no end: {_STOPS}")
    text = name[: name.index(0)]
    if text == b"TRAILER!!!" and head.kind != _SYMLINK:
        _content(reader, head, place, keep=False, packed=packed)
        return False
    parts = [part for part in text.decode("utf-8", "surrogateescape").split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Unreadable(f"{place}: the name of an archive entry has `..` in it")
    path = "/".join(parts)
    wanted = names.want(path)
    if wanted and head.size > _FILE_LIMIT:
        raise Unreadable(f"{place}: {path} is larger than {_FILE_LIMIT >> 20} MiB, which is not read")
    keep = wanted or (head.inode is not None and head.size <= _FILE_LIMIT)
    names.put(path, head, _content(reader, head, place, keep=keep, packed=packed))
    return True


def _content(reader: _Reader, head: _Head, place: str, *, keep: bool, packed: bool) -> bytes:
    """Take the content of an entry and return it, or nothing if it is not to be kept."""
    start, total, kept = reader.at, 0, []
    if keep or head.check is not None:
        for piece in reader.pieces(head.size):
            total += sum(piece) if head.check is not None else 0
            kept += [piece] if keep else []
    else:
        reader.skip(head.size)
    padding = -head.size % 4
    if reader.at - start < head.size or (reader.skip(padding) < padding and packed):
        raise Unreadable(f"{place}: the archive is cut off")
    if head.check is not None and head.kind == _FILE and total & 0xFFFFFFFF != head.check:
        raise Unreadable(f"{place}: the content of an archive entry does not match its sum: {_STOPS}")
    content = b"".join(kept)
    return content.partition(b"\0")[0] if head.kind == _SYMLINK else content
