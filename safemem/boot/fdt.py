# SPDX-License-Identifier: MIT
"""Reader for flattened device trees (devicetree specification 0.4, chapter 5).

The blob comes from another kernel and may be anything, so every offset is checked and the
reader is total: any bytes in, a tree or `FdtError` out.
"""

from __future__ import annotations

import struct

from safemem.boot.tuples import NamedTuple

MAGIC = 0xD00DFEED
_BEGIN, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_MAX_DEPTH = 32


class FdtError(ValueError):
    """The blob is not a flattened device tree that can be read safely; the message says where."""


class Node(NamedTuple):
    """One node: its name, its properties as raw bytes, its children in order."""

    name: str
    properties: dict[str, bytes]
    children: tuple[Node, ...]

    def text(self, name: str) -> str:
        """Return a string property, or "" if there is none."""
        return self.properties.get(name, b"").split(b"\0")[0].decode("ascii", "replace")


def parse(blob: bytes) -> Node:
    """Return the root node of `blob`.

    Raises:
        FdtError: the blob is cut off, inconsistent, nested too deeply or not a device tree.
    """
    if len(blob) < 40:
        raise FdtError(f"device tree blob is {len(blob)} bytes, shorter than its 40-byte header")
    magic, total, off_struct, off_strings, _, version, compatible, _, size_strings, size_struct = struct.unpack(
        ">10I", blob[:40]
    )
    if magic != MAGIC:
        raise FdtError(f"device tree blob starts with 0x{magic:08x}, not 0x{MAGIC:08x}")
    if version < 17 or compatible > 17:
        raise FdtError(f"device tree blob has version {version}, which this reader does not know")
    if total > len(blob):
        raise FdtError(f"device tree blob is cut off: {len(blob)} of {total} bytes")
    if off_struct + size_struct > total or off_strings + size_strings > total or off_struct % 4:
        raise FdtError("device tree blob has a block that reaches outside it")
    return _Reader(blob[off_struct : off_struct + size_struct], blob[off_strings : off_strings + size_strings]).tree()


class _Reader:
    def __init__(self, tokens: bytes, strings: bytes) -> None:
        self.tokens, self.strings, self.at = tokens, strings, 0

    def tree(self) -> Node:
        if self.token() != _BEGIN:
            raise self.error("does not begin with a node")
        return self.node(0)

    def node(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise self.error(f"is nested more than {_MAX_DEPTH} deep")
        end = self.tokens.find(b"\0", self.at)
        if end < 0:
            raise self.error("has a name without end")
        name = self.tokens[self.at : end].decode("ascii", "replace")
        self.at = (end + 4) & ~3
        properties: dict[str, bytes] = {}
        children = []
        while (token := self.token()) != _END_NODE:
            if token == _PROP:
                size, key = self.word(), self.word()
                properties[self.string(key)] = self.take(size)
            elif token == _BEGIN:
                children.append(self.node(depth + 1))
            else:
                raise self.error(f"has token {token} inside a node")
        return Node(name, properties, tuple(children))

    def token(self) -> int:
        while (token := self.word()) == _NOP:
            pass
        return token

    def word(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def take(self, size: int) -> bytes:
        data = self.tokens[self.at : self.at + size]
        if len(data) != size:
            raise self.error("ends in the middle")
        self.at = (self.at + size + 3) & ~3
        return data

    def string(self, offset: int) -> str:
        end = self.strings.find(b"\0", offset)
        if end < 0:
            raise self.error("names a property outside the strings block")
        return self.strings[offset:end].decode("ascii", "replace")

    def error(self, what: str) -> FdtError:
        return FdtError(f"device tree structure {what}, at offset {self.at}")
