# SPDX-License-Identifier: MIT
"""The entries of newc archives, one after the other, and what each does to the root (do_header to do_symlink of init/initramfs.c)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from safemem.initramfs.contents import MARKED, CutOff, Stops, Unpacked
from safemem.initramfs.packed import Unreadable
from safemem.initramfs.reading import Reader
from safemem.initramfs.rootfs import FILE, FOLDER, LINK, SPECIAL, Node, Rootfs

_TYPE = 0o170000
_HEAD, _PATH_MAX = 110, 4096
#: Entries of one image; the largest have a hundredth.
_ENTRIES = 1 << 20
STOPS = "the kernel stops here, and unpacks nothing of the rest"
_HEX = re.compile(rb"[0-9a-fA-F]{104}")


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


class Entries:
    """The entries of an image as they come, and what becomes of them."""

    def __init__(self, keep: Callable[[str, Head], bool]) -> None:
        self.unpacked, self.keep, self.count, self.packed = Unpacked(), keep, 0, 0


def _head(reader: Reader, made: Entries, place: str, *, packed: int) -> Head:
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


def entry(reader: Reader, made: Entries, *, packed: int) -> None:
    """Read one entry, and do what it says; `packed` is the size of the pieces that a compressed part unpacks in, 0 is plain."""
    place, start = str(reader), reader.at
    head = _head(reader, made, place, packed=packed)
    padded = head.length + -(_HEAD + head.length) % 4
    if _skipped(head):
        if packed and start // packed != (start + _HEAD - 1) // packed:
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
        raise Stops(f"{place}: the name of an archive entry has no end: {STOPS}")
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


def _cut(place: str, *, packed: int) -> Unreadable:
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


def _other(made: Entries, path: str, head: Head) -> None:
    """Make what is neither a file nor a link; of a type that there is none of, only what was there is taken away."""
    rootfs = made.unpacked.rootfs
    rootfs.clean(path, head.mode)
    if head.kind == FOLDER:
        if not rootfs.folder(path):
            made.unpacked.dropped[path] = "the folder above it is not there by then, or something else is in its place"
    elif head.kind in SPECIAL and (head.nlink < 2 or rootfs.another(path, (*head.inode, head.kind)) is None):
        rootfs.special(path, head.mode)


def _copy(reader: Reader, made: Entries, path: str, head: Head, node: Node, place: str, *, packed: int) -> None:
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
            beginning += piece[: max(0, MARKED - len(beginning))]
    else:
        beginning = reader.take(min(head.size, MARKED))
        there = len(beginning) + reader.skip(head.size - len(beginning))
    made.unpacked.bytes += there
    if keep and head.size:
        node.content = b"".join(kept).ljust(head.size, b"\0")
    if there < head.size:
        raise _cut(place, packed=packed)
    if head.size >= MARKED:
        made.unpacked.note(node, beginning)
    if head.check is not None and total & 0xFFFFFFFF != head.check:
        raise Stops(f"{place}: the content of an archive entry does not match its sum: {STOPS}")
    _pass(reader, -head.size % 4, place, packed=packed)


def _pass(reader: Reader, size: int, place: str, *, packed: int) -> None:
    """Pass over bytes; a plain archive may end in the padding of its last entry, a packed one is then taken for cut off."""
    missing = size - reader.skip(size)
    if missing and (packed or missing > 3):
        raise _cut(place, packed=packed)
