# SPDX-License-Identifier: MIT
"""The tree that this kernel hands over at each `kexec -s`, and in which versions it and the data beside it are written.

debugfs shows as many bytes of it as it had when the file was made (seen on 7.3.4): what producers have added pushes the names
of properties beyond the end, and a reader of whole trees refuses it. The structure comes first, and the root's first property
is its version: that much is read of a tree that is cut.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from safemem.boot import fdt, files, paths
from safemem.outgoing.kernel import Speaks

#: What the version of a tree looks like (include/linux/kho/abi/kexec_handover.h), where the property's name is lost.
_VERSION = re.compile(rb"(kho-v\d{1,9})\0")
#: Beginning of LUO's own data since it is no tree any more (include/linux/kho/abi/luo.h).
_LUO = b"luo-v"
_BEGIN, _END_NODE, _PROP, _NOP = 1, 2, 3, 4


class Tree(NamedTuple):
    """What was found; `at` is where, "" if there is none that can be read."""

    at: str = ""
    nodes: tuple[str, ...] = ()  #: who has data in it
    speaks: Speaks = Speaks()  #: its producers are those that have data in it


def read(root: str) -> Tree:
    """Return the outgoing tree of the kernel below `root`."""
    for base in paths.KHO:
        at = f"{base}/{paths.OUT_TREE}"
        try:
            data = files.read(root, at)
        except OSError:
            continue
        versions, nodes = _top(data)
        if versions:
            return _beside(root, base, Tree(at, nodes, Speaks(versions)))
    return Tree()


def _top(data: bytes) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the version of a tree and the names of its nodes; no version if that cannot be read."""
    try:
        tree = fdt.parse(data)
    except fdt.FdtError:
        return _cut(data)
    found = frozenset(_strings(tree.properties.get("compatible", b"")))
    return found, tuple(node.name for node in tree.children)


def _cut(data: bytes) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the same of a tree whose end is missing, as far as its structure goes (devicetree specification 0.4, chapter 5)."""
    versions: set[str] = set()
    nodes: list[str] = []
    if len(data) < 40 or int.from_bytes(data[:4], "big") != fdt.MAGIC:
        return frozenset(), ()
    at, depth = int.from_bytes(data[8:12], "big"), 0
    try:
        while True:
            (token,) = struct.unpack_from(">I", data, at)
            at += 4
            if token == _BEGIN:
                end = data.index(b"\0", at)
                if depth == 1:
                    nodes.append(data[at:end].decode("ascii", "replace"))
                at, depth = (end + 4) & ~3, depth + 1
            elif token == _PROP:
                (size,) = struct.unpack_from(">I", data, at)
                value = data[at + 8 : at + 8 + size]
                if depth == 1 and (found := _VERSION.fullmatch(value)):
                    versions.add(found[1].decode())
                at = (at + 8 + size + 3) & ~3
            elif token == _END_NODE and depth > 1:
                depth -= 1
            elif token != _NOP:
                break
    except (struct.error, ValueError):
        pass  # its end
    return frozenset(versions), tuple(nodes)


def _beside(root: str, base: str, tree: Tree) -> Tree:
    """Return the tree with what the data of its producers is written in."""
    folder = f"{base}/{paths.PRODUCERS}"
    try:
        shown = files.names(root, folder)
    except OSError:
        shown = []
    luo = parts = producers = frozenset[str]()
    for name in sorted(name for name in {*tree.nodes, *shown} if "/" not in name):
        data = _data(root, f"{folder}/{name}")
        if name == "LUO":
            luo, parts = _compatible(data)
            if data.startswith(_LUO):
                luo = frozenset(_strings(data.partition(b"\0")[0]))
        else:
            producers = producers.union(*_compatible(data))
    nodes = tuple(dict.fromkeys((*tree.nodes, *sorted(shown))))
    return tree._replace(nodes=nodes, speaks=tree.speaks._replace(luo=luo, luo_nodes=parts, producers=producers))


def _data(root: str, at: str) -> bytes:
    try:
        return files.read(root, at)
    except (OSError, ValueError):
        return b""


def _compatible(data: bytes) -> tuple[frozenset[str], frozenset[str]]:
    """Return the versions that a producer's own tree names, at its root and below; nothing if its data is no tree."""
    try:
        root = fdt.parse(data)
    except fdt.FdtError:
        return frozenset(), frozenset()
    found: set[str] = set()
    todo = [*root.children]
    while todo:
        node = todo.pop()
        found.update(_strings(node.properties.get("compatible", b"")))
        todo += node.children
    return frozenset(_strings(root.properties.get("compatible", b""))), frozenset(found)


def _strings(data: bytes) -> list[str]:
    return [text for text in data.decode("ascii", "replace").split("\0") if text]
