# SPDX-License-Identifier: MIT
"""What a kernel makes of an image, as a value: its root, what was dropped on the way, and where it stopped."""

from __future__ import annotations

import struct
from typing import NamedTuple

from safemem.initramfs.packed import Unreadable
from safemem.initramfs.rootfs import Node, Rootfs

#: File systems in one file -> where each is marked, and by what: squashfs (either byte order), erofs, cramfs, ext2 to ext4.
_FILE_SYSTEMS = {
    "squashfs": ((0, b"hsqs"), (0, b"sqsh")), "erofs": ((1024, b"\xe2\xe1\xf5\xe0"),),
    "cramfs": ((0, b"\x45\x3d\xcd\x28"),), "ext4": ((1080, b"\x53\xef"),),
}  # fmt: skip
#: Bytes of the beginning of a file that have all of these marks.
MARKED = 1024 + 96


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
            marked = any(beginning[at : at + len(mark)] == mark for at, mark in marks)
            if marked and (kind != "ext4" or _is_ext4(beginning[1024:], node.size)):
                self._inner.append((node, node.serial, kind))


def _is_ext4(block: bytes, size: int) -> bool:
    """Return whether the kernel would take a superblock in a file of that size (struct ext4_super_block, ext4_fill_super).

    Its mark has two bytes, and one file in 65,536 has them there by chance.
    """
    inodes, blocks, _, _, _, first, log = struct.unpack_from("<7I", block)
    each, _, inodes_each = struct.unpack_from("<3I", block, 32)
    (revision,) = struct.unpack_from("<I", block, 76)
    return bool(
        log <= 6 and first == (log == 0) and inodes and inodes_each and 0 < blocks << (10 + log) <= size
        and 256 <= each <= 8 << (10 + log) and revision <= 1
    )  # fmt: skip
