# SPDX-License-Identifier: MIT
"""What to put on the boot loader's command line, so that the guards cover as much as can be.

By default each node has a scratch area of its own, which cuts memory into one gap a node, and on large nodes holds
whole gigantic pages, so that none may be asked for there. All of it in one place, on the last node, leaves
the other nodes to the pages, and that one to the range.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from safemem.boot import handover_args, pagewords, paths
from safemem.boot.cmdline import split
from safemem.boot.ground import CannotSay, Ground, ground, read_ground
from safemem.boot.guard import LOW, LOW_ROOM, Guards, best_guards
from safemem.boot.model import Snapshot
from safemem.boot.ranges import Range, common, total

MIB, GIB = 1 << 20, 1 << 30
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
    now: int  #: what the guards cover on this boot
    now_reason: str  #: why there are none
    guards: Guards  #: that there would be with the argument
    least: int  #: what they cover if KASLR has put this kernel's image in the way
    scratch: int  #: what the argument sets aside
    map: int  #: bytes of the map of all memory, which scratch has to hold
    nodes: int
    notes: tuple[str, ...]

    @property
    def after(self) -> int:
        """Bytes that the guards cover with the argument."""
        return self.guards.size


def advise(root: str = "/") -> Layout:
    """Return the layout for the machine below `root`.

    Raises:
        CannotSay: its memory cannot be read, or is so little that no layout leaves anything to guard.
    """
    snapshot, found = read_ground(root, ())
    now, reason = 0, ""
    try:
        now = handover_args.advise(root).guarded
    except CannotSay as error:
        reason = str(error)
    return _layout(snapshot, found, now, reason)


def advise_on(snapshot: Snapshot) -> Layout:
    """Return the layout for the machine that a capture describes. Raises as `advise` does."""
    return _layout(snapshot, ground(snapshot, ()), 0, "a capture does not tell where this kernel's scratch areas are")


def _layout(snapshot: Snapshot, found: Ground, now: int, reason: str) -> Layout:
    low, rest, guards, least = best(found)
    release = str(snapshot.facts["kernel"].value)
    version = re.match(r"(\d+)\.(\d+)", release)
    # Renamed in 7.4, as announced; the kernel that reads this boot loader's line is taken to be like this one.
    new, old = paths.SCRATCH_ARGUMENT
    name = new if version and (int(version[1]), int(version[2])) >= (7, 4) else old
    notes = list(found.notes)
    if snapshot.facts["kho"].value != "on":
        notes.append(
            f"KHO is {snapshot.facts['kho'].value} in this kernel: the boot loader's line needs kho=on as well"
        )
    if found.no_page:
        notes.append(f"only one range can be guarded, without gigantic pages: {found.no_page}")
    notes += handover_args.small_pages(pagewords.read(split(snapshot.cmdline)[0]).pools, found, guards)
    return Layout(
        f"{name}={low // MIB}M,{rest // MIB}M,0M", total(found.ram), now, reason, guards, least, low + rest,
        total(found.ram) // 64, len(found.nodes), tuple(notes),
    )  # fmt: skip


def needed(found: Ground) -> int:
    """Return the bytes of scratch that an accepting kernel needs: it has nothing else until it has taken memory over.

    The map of memory, and a margin: as much again on a small machine, at least 1 GiB and an eighth of it on a large one,
    where what else early boot takes (hash tables, data of each processor) grows less than memory does.
    """
    table = total(found.ram) // 64
    margin = min(table, max(GIB, table // 8))
    return -(-(table + margin + 2 * (found.kernel + found.initrd) + _MISCELLANY) // _STEP) * _STEP


def best(found: Ground) -> tuple[int, int, Guards, int]:
    """Return the sizes of the low and the global scratch area that leave most to guard, the guards, and their size at least.

    Raises:
        CannotSay: none leaves anything.
    """
    need = needed(found)
    tried = []
    # Without memory beyond 4 GiB both areas lie in the same one.
    for low in (need, min(need, LOW_ROOM)) if found.ram[-1].end > LOW else (need,):
        guards = _guards(found, _areas(found, low, need - low, False))
        if guards:
            least = _guards(found, _areas(found, low, need - low, True))
            # The areas lie elsewhere then, by chance where pages lose less: what is promised is never more than what is shown.
            tried.append((guards.size, low, guards, min(guards.size, least.size) if least else 0))
    if not tried:
        raise CannotSay(f"no layout of {need // MIB} MiB of scratch leaves anything to guard")
    _, low, guards, smallest = max(tried, key=lambda item: item[:2])
    return low, need - low, guards, smallest


def _guards(found: Ground, areas: tuple[Range, ...] | None) -> Guards | None:
    try:
        return None if areas is None else best_guards(found._replace(scratch=areas))
    except CannotSay:
        return None


def _areas(machine: Ground, low: int, rest: int, in_the_way: bool) -> tuple[Range, ...] | None:
    """Return where scratch areas of these sizes are at the lowest; None if one does not fit.

    memblock takes from the top, and each node's map of memory is there already. KASLR puts this kernel's image anywhere:
    at the worst `in_the_way`, where the area just does not fit above it, and goes below.
    """
    beyond = machine.ram[-1].end > LOW
    found = []
    for size, limit in ((low, LOW), (rest, 1 << 64)):
        if not size:
            continue
        for area in reversed(machine.ram):
            end = min(area.end, limit)
            if end <= area.start:
                continue
            above = _SLACK + machine.kernel + (machine.initrd if limit == LOW else 0) + _map(machine, end, limit)
            lost = above + (size if in_the_way else 0)
            # The low area has to leave memory for devices that reach only there.
            if end - area.start > lost + size + (LOW_ROOM if limit == LOW and beyond else 0):
                found.append(Range(end - lost - size, end - lost))
                break
        else:
            return None
    return tuple(sorted(found))


def _map(machine: Ground, end: int, limit: int) -> int:
    """Return the bytes of the map of memory that lie on the node that ends at `end`: its own."""
    if limit == LOW and machine.ram[-1].end > LOW:
        return 0  # it goes to the node's top
    for node in machine.nodes:
        if any(area.start < end <= area.end for area in node):
            return total(common(machine.ram, node)) // 64
    return total(machine.ram) // 64
