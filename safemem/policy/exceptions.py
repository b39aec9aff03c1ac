# SPDX-License-Identifier: MIT
"""What `[[memory]]` does to a block: two lists of exceptions beside each other, block by block, and one of no use."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from safemem.boot.model import DRIVERS, FACTS, UNKNOWN, Blocks, Fact, Override, Rule, Snapshot
from safemem.boot.plan import steps

#: Sizes of a memory block: from 16 MiB (ppc64) to 64 GiB, twice the largest that x86 takes.
_SIZES = tuple(1 << shift for shift in range(24, 37))
#: Stands in for a block that is held, among zones.
HELD = "held"

_FACTS = {name: Fact(UNKNOWN, "") for name in FACTS}


def text_of(memory: tuple[Override, ...]) -> str:
    """Return exceptions in words."""
    return "; ".join(map(one_text, memory)) or "no exceptions"


def one_text(item: Override) -> str:
    """Return one exception in words: whom it is about, and what it does."""
    about = f"range {item.range}" if item.range else f"node {item.node}" if item.node >= 0 else f"driver {item.driver}"
    return f"{about} {'hold' if item.hold else f'zone {item.zone}'}"


def changes_of(old: tuple[Override, ...], new: tuple[Override, ...], zones: set[str]) -> set[tuple[str, str]]:
    """Return what changes for any block that a rule with one of `zones` onlines: pairs of a zone or HELD."""
    found: set[tuple[str, str]] = set()
    for before, after in zip(_fates(old, (*old, *new)), _fates(new, (*old, *new)), strict=True):
        if before != after:
            found |= {(before or zone, after or zone) for zone in zones}
    return {pair for pair in found if pair[0] != pair[1]}


def idle(memory: tuple[Override, ...]) -> list[int]:
    """Return the places of exceptions without which every block fares as with them; of two that are alike the later."""
    whole, kept, found = list(_fates(memory, memory)), dict(enumerate(memory)), []
    for place in reversed(range(len(memory))):
        rest = tuple(item for other, item in kept.items() if other != place)
        if list(_fates(rest, memory)) == whole:
            found.append(place)
            del kept[place]
    return found


def overruled(memory: tuple[Override, ...]) -> list[tuple[int, Override]]:
    """Return the places of exceptions that give a zone to blocks which another one holds, each with the first that does."""
    found = []
    for place, item in enumerate(memory):
        for hold in (other for other in memory if other.hold and item.zone):
            one, other = (_fates((some,), (item, hold)) for some in (item, hold))
            if any(pair == (item.zone, HELD) for pair in zip(one, other, strict=True)):
                found.append((place, hold))
                break
    return found


def _fates(memory: tuple[Override, ...], edges: tuple[Override, ...]) -> Iterator[str]:
    """Yield what `memory` makes of every kind of block that `edges` can tell apart: HELD, a zone, or "" for the rule's."""
    nodes = sorted({-1, *(item.node for item in edges), 1 + max((item.node for item in edges), default=0)})
    rule = Rule("", "online-all")
    for size in _SIZES:
        numbers = sorted(
            {
                number
                for item in edges
                if item.range
                for edge in (item.range.start, item.range.end)
                for number in (edge // size - 1, edge // size, edge // size + 1)
                if number >= 0
            }
        ) or [0]
        for node, driver in product(nodes, DRIVERS):
            blocks = tuple(Blocks(number, number, "offline", node, driver) for number in numbers)
            planned = steps(rule, Snapshot(_FACTS, size, blocks, (), "", ()), (), "", memory, "")
            fates = {
                number: step.zone if step.op == "online" else HELD
                for step in planned
                for number in range(step.first, step.last + 1)
            }
            yield from (fates[number] for number in numbers)
