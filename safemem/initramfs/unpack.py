# SPDX-License-Identifier: MIT
"""Read files out of an initrd as the kernel unpacks it (init/initramfs.c of Linux 7.3; buffer-format.rst in Documentation).

An initrd is any number of newc archives one behind the other, each plain or compressed once, with zeros between them; what
becomes of their entries is in rootfs.py. Where the kernel stops, what follows does not exist: it says one line and boots
with what came before. So that is an error here, with its place. An archive needs no trailer: it has a meaning for hard
links only. A boot configuration at the end is taken off before, whatever the kernel is built with (init/main.c).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple

from safemem.initramfs import packed, variants
from safemem.initramfs.packed import Unreadable
from safemem.initramfs.rootfs import FILE, FOLDER, LINK, SPECIAL, Node, Rootfs

_TYPE = 0o170000
_HEAD, _PATH_MAX = 110, 4096
#: Bytes that are unpacked of one image, and of one file that is looked for; an initramfs has a tenth of it.
LIMIT, _FILE_LIMIT = 4 << 30, 16 << 20
#: Entries of one image; the largest have a hundredth.
_ENTRIES = 1 << 20
_STOPS = "the kernel stops here, and unpacks nothing of the rest"
_HEX = re.compile(rb"[0-9a-fA-F]{104}")
_BOOTCONFIG, _BOOTCONFIG_MAX = b"#BOOTCONFIG\n", (32 << 10) - 1
#: The smallest piece in which a compression hands over what it unpacks; all others are multiples.
_CHUNK = 4096
#: File systems in one file -> where each is marked, and by what: squashfs (either byte order), erofs, cramfs, ext2 to ext4.
_FILE_SYSTEMS = {
    "squashfs": ((0, b"hsqs"), (0, b"sqsh")), "erofs": ((1024, b"\xe2\xe1\xf5\xe0"),),
    "cramfs": ((0, b"\x45\x3d\xcd\x28"),), "ext4": ((1080, b"\x53\xef"),),
}  # fmt: skip
_MARKED = 1082


class Stops(Unreadable):
    """The kernel says an error at that place, and unpacks nothing of what follows."""


class CutOff(Unreadable):
    """The image ends in the middle of an entry of a plain archive: the kernel takes what is there, and says nothing."""


class Inner(NamedTuple):
    """A file system in a file of an image, which is not looked into."""

    path: str
    kind: str  #: such as `squashfs`
    size: int  #: bytes


class Unpacked:
    """What a kernel makes of an image."""

    def __init__(self) -> None:
        self.rootfs = Rootfs()
        self.fault: Unreadable | None = None  #: why it is not read to its end
        self.bytes = 0  #: of the contents of all entries
        self.dropped: dict[str, str] = {}  #: path -> why the kernel drops an entry of that name
        self._inner: list[tuple[Node, int, str]] = []

    def inner(self) -> list[Inner]:
        """Return the file systems that are files of it, the largest first."""
        there = {id(node): (path, node.serial) for path, node in self.rootfs.walk()}
        found = [
            Inner(there[id(node)][0], kind, node.size)
            for node, serial, kind in self._inner
            if there.get(id(node), ("", -1))[1] == serial
        ]
        return sorted(found, key=lambda item: -item.size)

    def dropped_why(self, path: str) -> str:
        """Return why an entry of that name was dropped, if one was; ""."""
        names = (name for name in self.dropped if name.strip("/").removeprefix("./") == path)
        return next((f"{path} is in an archive, and the kernel drops it: {self.dropped[name]}" for name in names), "")

    def note(self, node: Node, beginning: bytes) -> None:
        """Note that a file begins so."""
        for kind, marks in _FILE_SYSTEMS.items():
            if any(beginning[at : at + len(mark)] == mark for at, mark in marks):
                self._inner.append((node, node.serial, kind))


def find(data: bytes, wanted: Iterable[str]) -> dict[str, bytes]:
    """Return the wanted files of an initrd, by path without a leading slash; of a symbolic link its target.

    A wanted path that ends in `/` stands for everything below it. What is not there is left out, and so is what is wanted
    by its real path too, where a folder of the other is a link.

    Raises:
        Unreadable: damaged, cut off, packed in a way that cannot be unpacked here, larger than the limit, or not
            unpacked to its end by the kernel.
    """
    return look(data, wanted)[0]


def look(data: bytes, wanted: Iterable[str]) -> tuple[dict[str, bytes], Unpacked]:
    """Return the wanted files as `find` does, and what the kernel makes of the image. Raises Unreadable."""
    wanted = set(wanted)
    below = tuple(path for path in wanted if path[-1:] == "/")
    names = {path.rpartition("/")[2] for path in wanted} - {""}

    def keep(path: str, head: Head) -> bool:
        return head.size <= _FILE_LIMIT and (path.rpartition("/")[2] in names or path.startswith(below))

    made = unpack(data, keep)
    if made.fault:
        raise made.fault
    nodes = _resolved(made.rootfs, wanted)
    missing = {node.serial for node in nodes.values() if node.content is None}
    if missing:
        # Reached by another name than its entry has, through a link: known only now.
        made = unpack(
            data, lambda path, head: keep(path, head) or (head.serial in missing and head.size <= _FILE_LIMIT)
        )
        nodes = _resolved(made.rootfs, wanted)
    return {path: _content_of(path, node) for path, node in nodes.items() if node.kind in (FILE, LINK)}, made


def _resolved(rootfs: Rootfs, wanted: set[str]) -> dict[str, Node]:
    found = {}
    for path in wanted:
        end = "/" if path.endswith("/") else ""
        real = rootfs.real(path.rstrip("/")) + end
        if real != path and real in wanted:
            continue  # found by that name, such as below usr/lib for lib
        node = rootfs.node(path.rstrip("/"), follow=path.endswith("/"))
        if node and not path.endswith("/"):
            found[path] = node
        elif node and node.kind == FOLDER:
            found.update(rootfs.walk(node, path.rstrip("/")))
    return {path: node for path, node in found.items() if node.kind in (FILE, LINK)}


def _content_of(path: str, node: Node) -> bytes:
    if node.kind == LINK:
        return node.target.encode("utf-8", "surrogateescape")
    if node.content is None:
        raise Unreadable(f"{path} is larger than {_FILE_LIMIT >> 20} MiB, which is not read")
    return node.content


def unpack(data: bytes, keep: Callable[[str, Head], bool]) -> Unpacked:
    """Return what a kernel makes of an initrd, with the contents of entries that `keep` says yes to.

    What came before a fault is there, as it is for a kernel that stops.
    """
    made = _Entries(keep)
    try:
        _parts(data[: _without_bootconfig(data)], made)
    except Unreadable as error:
        made.unpacked.fault = error
    return made.unpacked


def _without_bootconfig(data: bytes) -> int:
    """Return where the boot configuration at the end begins: sizes and a sum, then a mark, with up to 3 bytes behind it."""
    for end in range(len(data), len(data) - 4, -1):
        mark = end - len(_BOOTCONFIG)
        if mark < 8 or data[mark:end] != _BOOTCONFIG:
            continue
        size, check = (int.from_bytes(data[at : at + 4], "little") for at in (mark - 8, mark - 4))
        start = mark - 8 - size
        if size <= _BOOTCONFIG_MAX and start >= 0 and sum(data[start : mark - 8]) & 0xFFFFFFFF == check:
            return start
        break
    return len(data)


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


class Head(NamedTuple):
    """What the head of an archive entry says, as far as it counts."""

    serial: int  #: of the entry
    mode: int
    size: int
    nlink: int
    inode: tuple[int, int, int]
    length: int  #: of its name
    check: int | None  #: sum of the file's bytes

    @property
    def kind(self) -> int:
        """The type bits of its mode."""
        return self.mode & _TYPE


class _Entries:
    """The entries of an image as they come, and what becomes of them."""

    def __init__(self, keep: Callable[[str, Head], bool]) -> None:
        self.unpacked, self.keep, self.count, self.packed = Unpacked(), keep, 0, 0


def _parts(data: bytes, made: _Entries) -> None:
    """Read every part of an image. INVARIANT: nothing is read that the kernel would not unpack."""
    top = _Reader(iter([data]))
    first, plain = True, False
    while True:
        top.skip_zeros()
        if not top.peek():
            return
        if top.at % 4 and (plain or top.peek() == b"0"):
            part = "a plain archive" if top.peek() == b"0" else "the part after a plain archive"
            raise Stops(f"{top}: {part} begins at no multiple of 4: {_STOPS}")
        if top.peek() == b"0":
            _entry(top, made, packed=False)
            plain = True
        else:
            top.skip(_compressed(data, top.at, made, first=first) - top.at)
            plain = False
        first = False


def _compressed(data: bytes, at: int, made: _Entries, *, first: bool) -> int:
    """Read the compressed part at `at`; return where it ends. The kernel takes no zeros at the beginning of the first one."""
    if why := variants.refused(data, at):
        raise Stops(f"byte {at}: {why}")
    if why := variants.untold(data, at):
        raise Unreadable(f"byte {at}: {why}")
    if not packed.compression(data[at : at + 8]):
        raise Stops(f"byte {at}: neither an archive nor a compression that the kernel knows")
    part = _Reader(_counted(packed.pieces(data, at), made, at), f"byte {at}, unpacked ")
    if not first:
        part.skip_zeros()
    while first or part.peek():
        if part.at % 4 or part.peek() != b"0":
            raise Stops(f"{part}: no archive is here in the compressed part: {_STOPS}")
        _entry(part, made, packed=True)
        part.skip_zeros()
        first = False
    if data[at : at + 4] == packed.LZ4_LEGACY and data[part.end : part.end + 4].strip(b"\0"):
        raise Stops(f"byte {part.end}: less than four zeros are between a part packed with lz4 and the next: {_STOPS}")
    if why := variants.refused_within(data, at, part.end):
        raise Stops(f"byte {at}: {why}")
    return part.end


def _counted(pieces: Generator[bytes, None, int], made: _Entries, at: int) -> Generator[bytes, None, int]:
    while True:
        try:
            piece = next(pieces)
        except StopIteration as stop:
            return int(stop.value)
        made.packed += len(piece)
        if made.packed > LIMIT:
            raise Unreadable(f"byte {at}: the image unpacks to more than {LIMIT >> 20} MiB, which is not read")
        yield piece


def _head(reader: _Reader, made: _Entries, place: str, *, packed: bool) -> Head:
    """Read the head of an entry."""
    magic, rest = reader.take(6), reader.take(_HEAD - 6)
    if magic not in (b"070701", b"070702") and len(magic) + len(rest) == _HEAD:
        raise Stops(f"{place}: this is no entry of a newc archive")
    if len(rest) < _HEAD - 6:
        raise _cut(place, packed=packed)
    if not _HEX.fullmatch(rest):
        raise Stops(f"{place}: the head of an archive entry is damaged")
    fields = [int(rest[at : at + 8], 16) for at in range(0, len(rest), 8)]
    made.count += 1
    if made.count > _ENTRIES:
        raise Unreadable(f"{place}: the image has more than {_ENTRIES} entries, and no more are read")
    return Head(
        made.count, fields[1] & 0xFFFF, fields[6], fields[4], (fields[0], fields[7], fields[8]), fields[11],
        fields[12] if magic == b"070702" else None,
    )  # fmt: skip


def _entry(reader: _Reader, made: _Entries, *, packed: bool) -> None:
    """Read one entry, and do what it says."""
    place, start = str(reader), reader.at
    head = _head(reader, made, place, packed=packed)
    padded = head.length + -(_HEAD + head.length) % 4
    if _skipped(head):
        if packed and start // _CHUNK != (start + _HEAD - 1) // _CHUNK:
            # A head that comes in two pieces is read once more after it was skipped: next_state in do_header is stale.
            raise Unreadable(f"{place}: the kernel skips an archive entry here, and where it goes on cannot be told")
        _pass(reader, padded + head.size + -(padded + _HEAD + head.size) % 4, place, packed=packed)
        return
    name = reader.take(padded)
    if len(name) < padded:
        raise _cut(place, packed=packed)
    if head.kind == LINK:
        body = reader.take(head.size)
        if len(body) < head.size:
            raise _cut(place, packed=packed)
    if name[head.length - 1]:
        raise Stops(f"{place}: the name of an archive entry has no end: {_STOPS}")
    path = _text(name)
    rootfs = made.unpacked.rootfs
    if head.kind == LINK:
        if not rootfs.symlink(path, _text(body)):
            made.unpacked.dropped[path] = "the kernel cannot make a link there"
        _pass(reader, -head.size % 4, place, packed=packed)
        return
    if path == "TRAILER!!!":
        rootfs.forget()
    elif head.kind == FILE:
        node = _opened(rootfs, path, head)
        if node:
            _copy(reader, made, path, head, node, place, packed=packed)
            return
        made.unpacked.dropped[path] = "its folder is not there by then, or something else is in its place"
    else:
        _other(made, path, head)
    _pass(reader, head.size + -head.size % 4, place, packed=packed)


def _cut(place: str, *, packed: bool) -> Unreadable:
    return (Stops if packed else CutOff)(f"{place}: the archive is cut off")


def _skipped(head: Head) -> bool:
    """Return whether the kernel passes over an entry without a look at its name."""
    if not 0 < head.length <= _PATH_MAX:
        return True
    return head.size > _PATH_MAX if head.kind == LINK else bool(head.size) and head.kind != FILE


def _text(name: bytes) -> str:
    """Return a name or a target, which ends at its first NUL."""
    return name.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _opened(rootfs: Rootfs, path: str, head: Head) -> Node | None:
    """Return the file that an entry's content goes into; None if there is none, and the kernel drops the entry."""
    rootfs.clean(path, head.mode)
    linked = rootfs.another(path, (*head.inode, head.kind)) if head.nlink > 1 else None
    if linked is False:
        return None
    return rootfs.open(path, empty=linked is None)


def _other(made: _Entries, path: str, head: Head) -> None:
    """Make what is neither a file nor a link; of a type that there is none of, only what was there is taken away."""
    rootfs = made.unpacked.rootfs
    rootfs.clean(path, head.mode)
    if head.kind == FOLDER:
        if not rootfs.folder(path):
            made.unpacked.dropped[path] = "the folder above it is not there by then, or something else is in its place"
    elif head.kind in SPECIAL and (head.nlink < 2 or rootfs.another(path, (*head.inode, head.kind)) is None):
        rootfs.special(path, head.mode)


def _copy(reader: _Reader, made: _Entries, path: str, head: Head, node: Node, place: str, *, packed: bool) -> None:
    """Take the content of an entry into a file, which keeps what it had if there is none."""
    kept: list[bytes] = []
    total, there = 0, 0
    keep = made.keep(path.lstrip("/").removeprefix("./"), head)
    beginning = b""
    if head.size:
        node.serial, node.size, node.content = head.serial, head.size, None
    if keep or head.check is not None:
        for piece in reader.pieces(head.size):
            total += sum(piece) if head.check is not None else 0
            there += len(piece)
            kept += [piece] if keep else []
            beginning += piece[: max(0, _MARKED - len(beginning))]
    else:
        beginning = reader.take(min(head.size, _MARKED))
        there = len(beginning) + reader.skip(head.size - len(beginning))
    made.unpacked.bytes += there
    if keep and head.size:
        node.content = b"".join(kept).ljust(head.size, b"\0")
    if there < head.size:
        raise _cut(place, packed=packed)
    if head.size >= _MARKED:
        made.unpacked.note(node, beginning)
    if head.check is not None and total & 0xFFFFFFFF != head.check:
        raise Stops(f"{place}: the content of an archive entry does not match its sum: {_STOPS}")
    _pass(reader, -head.size % 4, place, packed=packed)


def _pass(reader: _Reader, size: int, place: str, *, packed: bool) -> None:
    """Pass over bytes; a plain archive may end in the padding of its last entry, a packed one is then taken for cut off."""
    missing = size - reader.skip(size)
    if missing and (packed or missing > 3):
        raise _cut(place, packed=packed)
