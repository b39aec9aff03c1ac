# SPDX-License-Identifier: MIT
"""What to append to the next kernel's command line, right before the kexec: guard, safe region, hold.

Runs in the outgoing system and from the boot archive: standard library only. A guard is a
`crashkernel=SIZE@START` outside the scratch areas. The next kernel reserves it before it has an
allocator, unless it accepts the handover: then early memory comes from scratch only, and the
reservation fails harmlessly (seen on 7.2 and 7.3). Scratch moves at each cold boot (KASLR), so this
has to be computed anew each time.
"""

from __future__ import annotations

import sys

from safemem import probe
from safemem.model import Range, size_text
from safemem.tuples import NamedTuple

#: crashkernel= on x86 wants start and size in these steps (bytes).
ALIGN = 16 << 20
#: Bytes that have to stay outside the guard, beside the map of all memory (1/64): kernel, initrd, a shell.
ROOM = 192 << 20


class CannotSay(Exception):
    """There is no guard that would work; the message says why."""


class Advice(NamedTuple):
    """What to append, and what it is worth. Sizes in bytes."""

    arguments: tuple[str, ...]
    guard: Range
    memory: int  #: what firmware says there is
    safe: int  #: in scratch areas
    open: int  #: neither guarded nor scratch
    notes: tuple[str, ...]


def advise(root: str = "/") -> Advice:
    """Return the arguments for the next kernel.

    Raises:
        CannotSay: KHO is off, or its scratch areas or the machine's memory cannot be read.
    """
    snapshot = probe.read_snapshot(root)
    scratch = probe.scratch_now(root)
    if not scratch:
        kho = snapshot.facts["kho"]
        raise CannotSay(
            f"no scratch areas can be read (KHO is {kho.value}: {kho.reason or kho.source}): is debugfs mounted?"
        )
    ram = _firmware_memory(root)
    guard = best_guard(ram, scratch)
    safe = ",".join(str(area) for area in scratch)
    import binascii

    arguments = (
        f"crashkernel={guard.end - guard.start}@{guard.start:#x}",
        f"safemem.guard={guard}",
        f"safemem.safe={safe};crc32={binascii.crc32(safe.encode()):08x}",
        "memhp_default_state=offline",
    )
    total = sum(area.end - area.start for area in ram)
    inside = sum(area.end - area.start for area in scratch)
    notes = []
    if probe.argument(snapshot.cmdline, "crashkernel") is not None:
        notes.append(
            "crashkernel= of this boot is kdump's: leave it out of the next command line, only one range counts"
        )
    return Advice(arguments, guard, total, inside, total - inside - (guard.end - guard.start), tuple(notes))


def best_guard(ram: tuple[Range, ...], scratch: tuple[Range, ...]) -> Range:
    """Return the largest aligned range of `ram` that no scratch area touches and that leaves room for a kernel.

    Raises:
        CannotSay: there is none.
    """
    gaps = []
    for area in ram:
        at = max(area.start, ALIGN)
        for hole in (*scratch, Range(area.end, area.end)):
            start, end = -(-at // ALIGN) * ALIGN, min(hole.start, area.end) // ALIGN * ALIGN
            if end > start:
                gaps.append(Range(start, end))
            at = max(at, hole.end)
    if not gaps:
        raise CannotSay("the scratch areas leave no 16 MiB of memory in one piece")
    largest = max(gaps, key=lambda gap: gap.end - gap.start)
    total = sum(area.end - area.start for area in ram)
    most = (total - ROOM - total // 64) // ALIGN * ALIGN
    if most <= 0:
        raise CannotSay(
            f"{size_text(total)} of memory leave nothing to guard: a kernel needs {size_text(ROOM + total // 64)}"
        )
    return Range(largest.start, min(largest.end, largest.start + most))


def _firmware_memory(root: str) -> tuple[Range, ...]:
    """Return the memory that the next kernel will find at boot."""
    try:
        return probe.firmware_memory(root)
    except OSError as error:
        raise CannotSay(
            f"{probe.BOOT_PARAMS}: {(error.strerror or 'cannot be read').lower()}: which memory firmware gave is not known"
        ) from None
    except ValueError as error:
        raise CannotSay(str(error)) from None


def main(argv: list[str]) -> int:
    """Print the arguments on one line; return 0, or 1 if there are none to give."""
    root = argv[1] if argv[:1] == ["--root"] and len(argv) == 2 else "/"
    try:
        advice = advise(root)
    except CannotSay as error:
        sys.stderr.write(f"safemem: {error}\n")
        return 1
    for note in advice.notes:
        sys.stderr.write(f"safemem: {note}\n")
    sys.stdout.write(" ".join(advice.arguments) + "\n")
    return 0
