# SPDX-License-Identifier: MIT
"""Pieces of a machine's memory by the words that describe a machine, such as `DIMM on node 1`, and what becomes of each."""

from __future__ import annotations

import re

from safemem.boot.model import Blocks, Decision, Snapshot
from safemem.boot.ranges import Range, cut, merge_ranges

#: What a step may do to a piece; those of a guard are apart.
OPS = ("online", "hold", "keep", "offline", "keep-guard", "release-guard")
#: Name -> what its blocks are when safemem decides: their state and driver, "" for any.
KINDS = {
    "memory": ("", ""),
    "boot memory": ("online", ""),
    "hot-added memory": ("offline", ""),
    "DIMM": ("offline", "dimm"),
    "virtio-mem": ("offline", "virtio-mem"),
    "dax": ("offline", "kmem"),
}
_GUARD = "guard"
_FORM = re.compile(rf"({'|'.join([*KINDS, _GUARD])})(?: on node (\d{{1,5}}))?")
FORMS = f"{', '.join(f'`{kind}`' for kind in KINDS)}, each also with ` on node N`, and `{_GUARD}`"


def find(name: str, snapshot: Snapshot) -> list[Range]:
    """Return the blocks, as ranges of their numbers, that a machine has under this name; of the guard, its own range.

    A block of which the guard has a part is in no other piece.

    Raises:
        ValueError: there is nothing of that name.
    """
    form = _FORM.fullmatch(name)
    if not form:
        raise ValueError(f"`{name}` is no piece of a machine; there are {FORMS}")
    kind, node = form.groups()
    if kind == _GUARD:
        found = list(snapshot.guarded) if node is None else []
    else:
        state, driver = KINDS[kind]
        found = [
            Range(first, end)
            for run in snapshot.blocks
            if state in ("", run.state) and driver in ("", run.driver) and node in (None, str(run.node))
            for first, end in _unguarded(run, snapshot)
        ]
    if not found:
        raise ValueError(f"the machine has no `{name}`")
    return found


def _unguarded(run: Blocks, snapshot: Snapshot) -> list[tuple[int, int]]:
    size = snapshot.block_size
    touched = merge_ranges(tuple(Range(area.start // size, -(-area.end // size)) for area in snapshot.guarded))
    return [(first, end) for first, end, index in cut(run.first, run.last + 1, touched) if index < 0]


def becomes(decision: Decision, name: str, snapshot: Snapshot) -> list[str]:
    """Return what the plan does to a piece, each once, in the order of the plan; more than one if it is divided."""
    areas = find(name, snapshot)
    guard = name == _GUARD
    found = []
    for step in decision.steps:
        span = Range(step.start, step.end) if guard else Range(step.first, step.last + 1)
        if step.op.endswith("-guard") == guard and any(
            span.start < area.end and area.start < span.end for area in areas
        ):
            found.append(step.op)
    return list(dict.fromkeys(found))
