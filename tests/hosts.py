# SPDX-License-Identifier: MIT
"""Hosts that are too large to boot here, as their captures describe them."""

from __future__ import annotations

from safemem.boot.model import Blocks, Room, Snapshot
from safemem.boot.ranges import Range
from tests import kit
from tests.fakes import BLOCK

MIB, GIB = 1 << 20, 1 << 30


def capture(
    ram: tuple[Range, ...], nodes: tuple[tuple[Range, ...], ...], *, line: str = "kho=on liveupdate=on"
) -> Snapshot:
    """Return the snapshot of a host with that memory; ranges of nodes are whole blocks."""
    blocks = sorted(
        Blocks(part.start // BLOCK, part.end // BLOCK - 1, "online", number)
        for number, node in enumerate(nodes)
        for part in node
    )
    room = Room((Range(0x3A000000, 0x3A000000 + 60 * MIB),), ram, 0, 200 * MIB, ram, (Range(0x100000, 0x101000),), GIB)
    found = kit.snapshot(tuple(blocks), numa_nodes=len(nodes), kho="on", kernel="7.3.4")
    return found._replace(cmdline=line, room=room)


def host(*sizes: int, hole: int = 0) -> Snapshot:
    """Return a host whose nodes have so many GiB: 1.7 GiB below 4 GiB, with holes as firmware leaves them, the rest above.

    Before each node but the first there are `hole` GiB of nothing.
    """
    low = (Range(0x1000, 0x9F000), Range(MIB, 0x6C0B0000), Range(0x6D7FF000, 0x6D800000))
    at, ram, nodes = 4 * GIB, [*low], []
    for index, size in enumerate(sizes):
        at += hole * GIB if index else 0
        part = Range(at, at + size * GIB - (0x70000000 if not index else 0))
        ram.append(part)
        nodes.append((Range(0, 0x70000000), part) if not index else (part,))
        at = part.end
    return capture(tuple(ram), tuple(nodes))
