# SPDX-License-Identifier: MIT
"""A machine in words, for a desk: `2 nodes of 512GiB, DIMM 256GiB on node 1, guard 400GiB on node 0`.

Laid out as an x86-64 server is: memory from 0, one GiB of devices below 4 GiB, the kernel in the first block, firmware's
tables at the end of low memory; what is hot-added comes behind it and is offline.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from safemem.boot.model import DERIVED, FACTS, UNKNOWN, Blocks, Fact, Refused, Room, Snapshot
from safemem.boot.ranges import Range, parse_size, size_text

#: Blocks of the largest machine that anybody looks at.
_MOST = 1 << 20
_MIB, _GIB = 1 << 20, 1 << 30
#: What stands in when nothing is said.
DEFAULT = "1GiB, DIMM 1GiB"
SOURCE = "imagined"
_DRIVERS = {
    "DIMM": "dimm",
    "DIMMs": "dimm",
    "dimm": "dimm",
    "virtio-mem": "virtio-mem",
    "dax": "kmem",
    "kmem": "kmem",
    "cxl": "kmem",
    "CXL": "kmem",
}
_SIZE = r"(\d+[KMGT]iB)"
_NODE = r"(?: on node (\d+))?"
_BOOT = re.compile(rf"(?:(\d+) nodes? of )?{_SIZE}")
_ADDED = re.compile(rf"(?:(\d+) )?({'|'.join(_DRIVERS)})(?: of)? {_SIZE}{_NODE}")
_RESERVED = re.compile(rf"(guard|scratch)(?: of)? {_SIZE}{_NODE}")
_BLOCKS = re.compile(rf"blocks of {_SIZE}")
_FORMS = "`[N nodes of] SIZE`, `[N] DIMM|virtio-mem|dax SIZE [on node N]`, `guard SIZE [on node N]`, `scratch SIZE [on node N]`, `blocks of SIZE`"


class Unclear(Refused):
    """No machine can be made of the words; the message says why."""

    kind = "invalid"


class _Asked(NamedTuple):
    nodes: int
    size: int  #: of each node's boot memory
    added: list[tuple[str, int, int]]  #: driver, bytes, node
    reserved: dict[str, tuple[int, int]]  #: guard or scratch -> bytes, node
    block: int


def imagine(text: str) -> Snapshot:
    """Return the machine that `text` describes, every fact unknown but those of its memory. Raises Unclear."""
    asked = _read(text)
    block, start = asked.block, 0
    blocks: list[Blocks] = []
    ram: list[Range] = []
    spans: list[Range] = []
    for node in range(asked.nodes):
        areas = _low(asked.size) if node == 0 else [Range(start, start + asked.size)]
        ram += areas
        spans.append(areas[-1])
        # A block of which one byte is memory is a block.
        first, last = areas[0].start // block, (areas[-1].end - 1) // block
        holes = range(-(-areas[0].end // block), areas[-1].start // block) if len(areas) > 1 else range(0)
        runs = [(first, holes.start - 1), (holes.stop, last)] if holes else [(first, last)]
        blocks += [Blocks(low, high, "online", node, "dimm") for low, high in runs]
        start = -(-areas[-1].end // block) * block
    start = max(4 * _GIB, -(-start // block) * block)
    for driver, size, node in asked.added:
        blocks.append(Blocks(start // block, (start + size) // block - 1, "offline", node, driver))
        start += size
    made = {what: _reserve(what, *wanted, spans) for what, wanted in asked.reserved.items()}
    facts = {name: Fact(UNKNOWN, SOURCE, "not given by --set") for name in FACTS if name not in DERIVED}
    facts["numa_nodes"] = Fact(len({run.node for run in blocks}), SOURCE)
    guard = made.get("guard")
    if guard:
        facts["guard"] = Fact("full", SOURCE, "a guard is in force")
    tables = Range(ram[0].end - 128 * 1024, ram[0].end)  # firmware's, at the end of low memory
    whole = (Range(0x1000, 0x9F000), Range(_MIB, tables.start), *ram[1:])
    return Snapshot(
        facts, block, tuple(blocks), (made["scratch"],) if "scratch" in made else (), "", (), guard,
        room=Room(kernel=(Range(16 * _MIB, 64 * _MIB),), ram=whole),
    )  # fmt: skip


def with_guard(snapshot: Snapshot) -> Snapshot:
    """Return a machine on which a guard is in force: half of the largest piece of boot memory, as nobody has said which."""
    online = [run for run in snapshot.blocks if run.state == "online"]
    if snapshot.guarded or not online:
        return snapshot
    largest, size = max(online, key=lambda run: run.number), snapshot.block_size
    return snapshot._replace(guard=Range((largest.last + 1 - largest.number // 2) * size, (largest.last + 1) * size))


def _low(size: int) -> list[Range]:
    """Return where the boot memory of the first node is: below the devices, and the rest above 4 GiB."""
    low = min(size, 3 * _GIB)
    return [Range(0, low), Range(4 * _GIB, 4 * _GIB + size - low)] if size > low else [Range(0, low)]


def _reserve(what: str, size: int, node: int, spans: list[Range]) -> Range:
    span = spans[node]
    # A little below the top, which the kernel takes for what is per node.
    end = span.end - min(256 * _MIB, span.size // 4)
    if size > end - span.start:
        raise Unclear(
            f"{what} {size_text(size)} does not fit: node {node} has {size_text(end - span.start)} for it in one piece"
        )
    return Range(end - size, end)


def _read(text: str) -> _Asked:
    asked = _Asked(0, 0, [], {}, 0)
    for part in (" ".join(part.split()) for part in text.split(",")):
        if found := _BOOT.fullmatch(part):
            if asked.size:
                raise Unclear(f"`{part}`: boot memory is given twice")
            asked = asked._replace(nodes=_number(found[1] or "1"), size=_size(found[2]))
        elif found := _ADDED.fullmatch(part):
            each = (_DRIVERS[found[2]], _size(found[3]), _number(found[4] or "0"))
            asked.added.extend([each] * min(_number(found[1] or "1"), 2000))
        elif found := _RESERVED.fullmatch(part):
            if found[1] in asked.reserved:
                raise Unclear(f"`{part}`: {found[1]} is given twice")
            asked.reserved[found[1]] = (_size(found[2]), _number(found[3] or "0"))
        elif found := _BLOCKS.fullmatch(part):
            if asked.block:
                raise Unclear(f"`{part}`: the size of blocks is given twice")
            asked = asked._replace(block=_size(found[1]))
        else:
            raise Unclear(f"`{part}` describes no part of a machine; parts, with commas between, are {_FORMS}")
    return _checked(asked)


def _number(text: str) -> int:
    if len(text) > 6:
        raise Unclear(f"`{text}` is no number of nodes or pieces that a machine has")
    return int(text)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise Unclear(str(error)) from None


def _checked(asked: _Asked) -> _Asked:
    if not asked.size:
        raise Unclear("boot memory is missing: begin with such as `2 nodes of 512GiB`")
    if not 0 < asked.nodes <= 1024 or len(asked.added) > 1024:
        raise Unclear("a machine has 1 to 1,024 nodes and as many pieces of memory that is added")
    # As x86 does it: large blocks from 64 GiB on.
    block = asked.block or (2 * _GIB if asked.nodes * asked.size >= 64 * _GIB else 128 * _MIB)
    if block & (block - 1) or not 16 * _MIB <= block <= 64 * _GIB:
        raise Unclear(f"blocks of {size_text(block)}: a power of 2 from 16MiB to 64GiB is one")
    for size in (asked.size, *(size for _, size, _ in asked.added)):
        if size % block or not 0 < size < 1 << 52:
            raise Unclear(
                f"{size_text(size)} are not whole memory blocks of {size_text(block)}; `blocks of SIZE` gives other ones"
            )
    if asked.nodes * asked.size + sum(size for _, size, _ in asked.added) > _MOST * block:
        raise Unclear(f"that is more than {_MOST:,} memory blocks: give larger ones with `blocks of SIZE`")
    for what, (size, node) in asked.reserved.items():
        if not size or node >= asked.nodes:
            raise Unclear(
                f"{what} on node {node}: "
                + ("it has no size" if not size else f"nodes with boot memory are 0 to {asked.nodes - 1}")
            )
    return asked._replace(block=block)
