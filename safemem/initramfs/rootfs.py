# SPDX-License-Identifier: MIT
"""The folders and files that a kernel makes of an initrd's entries, one after the other: what became of a path is known last.

An entry does not stand for itself: it goes through symbolic links that are there by then, is dropped where its folder is
not there, takes the place of another kind of file, or writes into one that has several names. What is done here is what
do_name and do_symlink of init/initramfs.c have the file system do (Linux 7.3), on a root that has `/dev/console` and
`/root` (usr/default_cpio_list).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_TYPE, FOLDER, FILE, LINK = 0o170000, 0o040000, 0o100000, 0o120000
SPECIAL = (0o020000, 0o060000, 0o010000, 0o140000)
#: Bytes of one part of a path, and links that are followed for one path (NAME_MAX, MAXSYMLINKS; a path is PATH_MAX).
_NAME_MAX, _LINKS, _PATH_MAX = 255, 40, 4096


class Node:
    """A file of any kind. One with several names is one node."""

    __slots__ = ("content", "entries", "kind", "parent", "serial", "size", "target")

    def __init__(self, kind: int, parent: Node | None = None, target: str = "") -> None:
        self.kind = kind  #: the type bits of its mode
        self.entries: dict[str, Node] = {}
        self.parent = parent or self  #: of a folder
        self.target = target  #: of a symbolic link
        self.serial = -1  #: of the archive entry that its content is from
        self.size = 0
        self.content: bytes | None = b""  #: None if it was not kept


class _Place(NamedTuple):
    folder: Node
    name: str  #: "" for the root itself
    slash: bool  #: behind it


class Rootfs:
    """The tree, as it is so far."""

    def __init__(self) -> None:
        self.root = Node(FOLDER)
        self._links: dict[tuple[int, int, int, int], str] = {}
        self.folder("dev")
        self.special("dev/console", SPECIAL[0])
        self.folder("root")

    # What entries do.

    def clean(self, path: str, mode: int) -> None:
        """Take away what is at `path` if it is of another kind; a folder only if nothing is in it."""
        node, place = self.node(path, follow=False), self._place(path)
        if node is None or node.kind == mode & _TYPE or place is None or place.name in ("", ".", ".."):
            return
        there = place.folder.entries.get(place.name)
        if node.kind == FOLDER:
            gone = there is not None and there.kind == FOLDER and not there.entries
        else:
            gone = there is not None and there.kind != FOLDER and not place.slash
        if gone:
            del place.folder.entries[place.name]

    def folder(self, path: str) -> bool:
        """Make a folder; return whether one is there."""
        place = self._free(path, folder=True)
        if place:
            place.folder.entries[place.name] = Node(FOLDER, place.folder)
        node = self.node(path, follow=True)
        return node is not None and node.kind == FOLDER

    def special(self, path: str, mode: int) -> bool:
        """Make a device, a pipe or a socket; return whether there was room for it."""
        place = self._free(path)
        if place:
            place.folder.entries[place.name] = Node(mode & _TYPE)
        return place is not None

    def symlink(self, path: str, target: str) -> bool:
        """Make a symbolic link, in the place of whatever is there; return whether there was room for it."""
        self.clean(path, 0)
        place = self._free(path)
        if place is None or len(_bytes(target)) >= _PATH_MAX:
            return False
        place.folder.entries[place.name] = Node(LINK, None, target)
        return True

    def another(self, path: str, key: tuple[int, int, int, int]) -> bool | None:
        """Make `path` another name of the entry that had this key before; return None if it is the first, or whether it went."""
        if key not in self._links:
            self._links[key] = path
            return None
        old = self._links[key]
        self.clean(path, 0)
        node, place = self.node(old, follow=False), self._free(path)
        if node is None or node.kind == FOLDER or place is None:
            return False
        place.folder.entries[place.name] = node
        return True

    def forget(self) -> None:
        """Forget the keys of entries, which are an archive's own."""
        self._links.clear()

    def open(self, path: str, *, empty: bool) -> Node | None:
        """Return the file at `path`, made if there is none, and emptied if asked; None if it cannot be opened."""
        links = [0]
        place = self._place(path, None, links)
        while place and place.name not in ("", ".", "..") and not place.slash:
            node = place.folder.entries.get(place.name)
            if node is None:
                if len(_bytes(place.name)) > _NAME_MAX:
                    return None
                node = place.folder.entries[place.name] = Node(FILE)
            if node.kind == LINK:
                links[0] += 1
                place = self._place(node.target, place.folder, links) if links[0] <= _LINKS else None
                continue
            if node.kind != FILE:
                return None
            if empty:
                node.serial, node.size, node.content = -1, 0, b""
            return node
        return None

    # How a path is walked.

    def node(self, path: str, *, follow: bool) -> Node | None:
        """Return what is at `path`: of a symbolic link what it leads to, if asked, else itself; None if nothing is."""
        return self._node(path, None, [0], follow=follow)

    def real(self, path: str) -> str:
        """Return the path of what is at `path` without links in its folders; "" if there is no such folder."""
        place = self._place(path)
        if place is None or place.name in ("", ".", ".."):
            return ""
        names, folder = [place.name], place.folder
        while folder.parent is not folder:
            names.append(next(name for name, node in folder.parent.entries.items() if node is folder))
            folder = folder.parent
        return "/".join(reversed(names))

    def _node(self, path: str, start: Node | None, links: list[int], *, follow: bool) -> Node | None:
        place = self._place(path, start, links)
        if place is None or not place.name:
            return place and place.folder
        node = self._child(place.folder, place.name)
        if node and node.kind == LINK and (follow or place.slash):
            node = self._beyond(node, place.folder, links)
        return None if node and place.slash and node.kind != FOLDER else node

    def _place(self, path: str, start: Node | None = None, links: list[int] | None = None) -> _Place | None:
        """Return the folder that `path` is in, through links, and its last part; None if there is no such folder."""
        links = [0] if links is None else links
        folder = self.root if start is None or path.startswith("/") else start
        names = [name for name in path.split("/") if name]
        if not names:
            return _Place(self.root, "", slash=True) if path else None
        for name in names[:-1]:
            node = self._child(folder, name)
            if node and node.kind == LINK:
                node = self._beyond(node, folder, links)
            if node is None or node.kind != FOLDER:
                return None
            folder = node
        return _Place(folder, names[-1], path.endswith("/"))

    def _beyond(self, link: Node, folder: Node, links: list[int]) -> Node | None:
        links[0] += 1
        if not link.target:
            return folder  # there is nothing to walk
        return self._node(link.target, folder, links, follow=True) if links[0] <= _LINKS else None

    def _child(self, folder: Node, name: str) -> Node | None:
        if name in (".", ".."):
            return folder if name == "." else folder.parent
        return folder.entries.get(name)

    def _free(self, path: str, *, folder: bool = False) -> _Place | None:
        """Return where a new file of the name `path` goes; None if something is there, or if it cannot be."""
        place = self._place(path)
        if place is None or place.name in ("", ".", "..") or place.name in place.folder.entries:
            return None
        return None if (place.slash and not folder) or len(_bytes(place.name)) > _NAME_MAX else place

    # What is there in the end.

    def walk(self, node: Node | None = None, path: str = "") -> Iterator[tuple[str, Node]]:
        """Yield everything below a folder, by path without a leading slash; links are not followed."""
        waiting = [(path, node or self.root)]
        while waiting:
            path, node = waiting.pop()
            for name, child in node.entries.items():
                below = f"{path}/{name}" if path else name
                yield below, child
                if child.kind == FOLDER:
                    waiting.append((below, child))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
