# SPDX-License-Identifier: MIT
"""What to put on the boot loader's command line, so that one guard covers as much as can be.

By default each node has a scratch area of its own, which cuts memory into one gap a node. All of it
in one place leaves the largest node, or nearly all of a machine with one, in one piece.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from safemem.boot import handover_args, paths, probe
from safemem.boot.guard import LOW, LOW_ROOM, CannotSay, Ground, best_guard, read_ground
from safemem.boot.ranges import Range

MIB = 1 << 20
#: Scratch areas come in whole blocks of 4 MiB (CMA_MIN_ALIGNMENT_BYTES on x86); larger steps read better.
_STEP = 16 * MIB
#: What early boot takes of scratch beside the image, the initrd and the map of memory: tables, per-processor data.
_MISCELLANY = 96 * MIB
#: What this kernel may have taken from the top of memory before it lays out scratch.
_SLACK = 64 * MIB


class Layout(NamedTuple):
    """The argument, and what it is worth. Sizes in bytes."""

    argument: str
    memory: int
    now: handover_args.Advice | None  #: what one guard covers on this boot
    now_reason: str  #: why there is none
    after: int  #: what one guard covers with the argument
    least: int  #: the same if KASLR has put this kernel's image in the way
    nodes: int
    node: int  #: the NUMA node of that guard, -1 if it is not known
    notes: tuple[str, ...]


def advise(root: str = "/") -> Layout:
    """Return the layout for the machine below `root`.

    Raises:
        CannotSay: its memory cannot be read, or is so little that no layout leaves anything to guard.
    """
    snapshot = probe.read_snapshot(root)
    ground = read_ground(root, snapshot.cmdline, ())
    low, rest, guard, least = best(ground)
    now, reason = None, ""
    try:
        now = handover_args.advise(root)
    except CannotSay as error:
        reason = str(error)
    release = str(snapshot.facts["kernel"].value)
    found = re.match(r"(\d+)\.(\d+)", release)
    # Renamed in 7.4, as announced; the kernel that reads this boot loader's line is taken to be like this one.
    new, old = paths.SCRATCH_ARGUMENT
    name = new if found and (int(found[1]), int(found[2])) >= (7, 4) else old
    notes = []
    if snapshot.facts["kho"].value != "on":
        notes.append(
            f"KHO is {snapshot.facts['kho'].value} in this kernel: the boot loader's line needs kho=on as well"
        )
    return Layout(
        f"{name}={low // MIB}M,{rest // MIB}M,0M",
        sum(area.size for area in ground.ram),
        now,
        reason,
        guard.size,
        least,
        len(ground.nodes),
        next((run.node for run in snapshot.blocks if run.first <= guard.start // snapshot.block_size <= run.last), -1),
        tuple(notes),
    )


def best(ground: Ground) -> tuple[int, int, Range, int]:
    """Return the sizes of the low and the global scratch area that leave the largest guard, that, and its size at least.

    Raises:
        CannotSay: none leaves one.
    """
    memory = sum(area.size for area in ground.ram)
    # An accepting kernel has nothing else until it has taken the preserved memory over. Its own default is twice
    # what this one took early, too.
    need = -(-(2 * (memory // 64 + ground.kernel + ground.initrd) + _MISCELLANY) // _STEP) * _STEP
    found = []
    # Without memory beyond 4 GiB both areas lie in the same one.
    for low in (need, min(need, LOW_ROOM)) if ground.ram[-1].end > LOW else (need,):
        guard = _guard(ground, _areas(ground, low, need - low, False))
        if guard:
            least = _guard(ground, _areas(ground, low, need - low, True))
            found.append((guard.size, low, guard, least.size if least else 0))
    if not found:
        raise CannotSay(f"no layout of {need // MIB} MiB of scratch leaves anything to guard")
    _, low, guard, smallest = max(found)
    return low, need - low, guard, smallest


def _guard(ground: Ground, areas: tuple[Range, ...] | None) -> Range | None:
    try:
        return None if areas is None else best_guard(ground._replace(scratch=areas))
    except CannotSay:
        return None


def _areas(ground: Ground, low: int, rest: int, in_the_way: bool) -> tuple[Range, ...] | None:
    """Return where scratch areas of these sizes are at the lowest; None if one does not fit.

    memblock takes from the top. KASLR puts this kernel's image anywhere: at the worst `in_the_way`, where the area
    just does not fit above it, and goes below.
    """
    memory = sum(area.size for area in ground.ram)
    beyond = ground.ram[-1].end > LOW
    early = _SLACK + ground.kernel + (memory // 64 if not beyond else 0)
    found = []
    for size, taken, limit in (
        (low, early + ground.initrd, LOW),
        (rest, _SLACK + ground.kernel + memory // 64, 1 << 64),
    ):
        if not size:
            continue
        lost = taken + (size if in_the_way else 0)
        for area in reversed(ground.ram):
            end = min(area.end, limit)
            # The low area has to leave memory for devices that reach only there.
            if end - area.start > lost + size + (LOW_ROOM if limit == LOW and beyond else 0):
                found.append(Range(end - lost - size, end - lost))
                break
        else:
            return None
    return tuple(sorted(found))
