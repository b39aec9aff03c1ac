# SPDX-License-Identifier: MIT
"""Read files out of an initrd as the kernel unpacks it (init/initramfs.c of Linux 7.3; buffer-format.rst in Documentation).

An initrd is any number of newc archives one behind the other, each plain or compressed once, with zeros between them; what
becomes of their entries is in rootfs.py. Where the kernel stops, what follows does not exist: it says one line and boots
with what came before. So that is an error here, with its place. An archive needs no trailer: it has a meaning for hard
links only. A boot configuration at the end is taken off before, whatever the kernel is built with (init/main.c).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from safemem.initramfs import packed, variants
from safemem.initramfs.contents import CutOff, Stops, Unpacked
from safemem.initramfs.entries import STOPS, Entries, Head, entry
from safemem.initramfs.packed import Unreadable
from safemem.initramfs.reading import Reader
from safemem.initramfs.rootfs import FILE, FOLDER, LINK, Node, Rootfs

__all__ = ["CutOff", "Stops", "Unpacked", "find", "look", "unpack"]
#: Bytes that are unpacked of one image, and of one file that is looked for; an initramfs has a tenth of it.
LIMIT, _FILE_LIMIT = 4 << 30, 16 << 20
_BOOTCONFIG, _BOOTCONFIG_MAX = b"#BOOTCONFIG\n", (32 << 10) - 1


def find(data: bytes, wanted: Iterable[str]) -> dict[str, bytes]:
    """Return the wanted files of an initrd, by path without a leading slash; of a symbolic link its target.

    A wanted path that ends in `/` stands for everything below it. What is not there is left out, and so is what is wanted
    by its real path too, where a folder of the other is a link.

    Raises:
        Unreadable: damaged, cut off, packed in a way that cannot be unpacked here, larger than the limit, or not
            unpacked to its end by the kernel.
    """
    return look(data, wanted)[0]


def look(data: bytes, wanted: Iterable[str], followed: Iterable[str] = ()) -> tuple[dict[str, bytes], Unpacked]:
    """Return the wanted files as `find` does, and what the kernel makes of the image. Raises Unreadable.

    Of those that are `followed`, a symbolic link gives the file that it leads to, or nothing if it leads to none.
    """
    wanted, followed = set(wanted), set(followed)
    below = tuple(path for path in wanted if path[-1:] == "/")
    names = {path.rpartition("/")[2] for path in wanted} - {""}

    def keep(path: str, head: Head) -> bool:
        return head.size <= _FILE_LIMIT and (path.rpartition("/")[2] in names or path.startswith(below))

    made = unpack(data, keep)
    if made.fault:
        raise made.fault
    nodes = _resolved(made.rootfs, wanted, followed)
    missing = {node.serial for node in nodes.values() if node.content is None}
    if missing:
        # Reached by another name than its entry has, through a link: known only now.
        made = unpack(
            data, lambda path, head: keep(path, head) or (head.serial in missing and head.size <= _FILE_LIMIT)
        )
        nodes = _resolved(made.rootfs, wanted, followed)
    return {path: _content_of(path, node) for path, node in nodes.items() if node.kind in (FILE, LINK)}, made


def _resolved(rootfs: Rootfs, wanted: set[str], followed: set[str]) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for path in wanted:
        end = "/" if path.endswith("/") else ""
        real = rootfs.real(path.rstrip("/")) + end
        if real != path and real in wanted:
            continue  # found by that name, such as below usr/lib for lib
        node = rootfs.node(path.rstrip("/"), follow=path.endswith("/") or path in followed)
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
    made = Entries(keep)
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


def _parts(data: bytes, made: Entries) -> None:
    """Read every part of an image. INVARIANT: nothing is read that the kernel would not unpack."""
    top = Reader(iter([data]))
    first, plain = True, False
    while True:
        top.skip_zeros()
        if not top.peek():
            return
        if top.at % 4 and (plain or top.peek() == b"0"):
            part = "a plain archive" if top.peek() == b"0" else "the part after a plain archive"
            raise Stops(f"{top}: {part} begins at no multiple of 4: {STOPS}")
        if top.peek() == b"0":
            entry(top, made, packed=0)
            plain = True
        else:
            top.skip(_compressed(data, top.at, made, first=first) - top.at)
            plain = False
        first = False


def _compressed(data: bytes, at: int, made: Entries, *, first: bool) -> int:
    """Read the compressed part at `at`; return where it ends. The kernel takes no zeros at the beginning of the first one."""
    if why := variants.refused(data, at):
        raise Stops(f"byte {at}: {why}")
    if why := variants.untold(data, at):
        raise Unreadable(f"byte {at}: {why}")
    if not packed.compression(data[at : at + 8]):
        raise Stops(f"byte {at}: neither an archive nor a compression that the kernel knows")
    pieces = variants.pieces(data, at)
    part = Reader(_counted(packed.pieces(data, at), made, at), f"byte {at}, unpacked ")
    if not first:
        part.skip_zeros()
    while first or part.peek():
        if part.at % 4 or part.peek() != b"0":
            raise Stops(f"{part}: no archive is here in the compressed part: {STOPS}")
        entry(part, made, packed=pieces)
        part.skip_zeros()
        first = False
    if data[at : at + 4] == packed.LZ4_LEGACY and data[part.end : part.end + 4].strip(b"\0"):
        raise Stops(f"byte {part.end}: less than four zeros are between a part packed with lz4 and the next: {STOPS}")
    if why := variants.refused_within(data, at, part.end):
        raise Stops(f"byte {at}: {why}")
    return part.end


def _counted(pieces: Generator[bytes, None, int], made: Entries, at: int) -> Generator[bytes, None, int]:
    while True:
        try:
            piece = next(pieces)
        except StopIteration as stop:
            return int(stop.value)
        made.packed += len(piece)
        if made.packed > LIMIT:
            raise Unreadable(f"byte {at}: the image unpacks to more than {LIMIT >> 20} MiB, which is not read")
        yield piece
