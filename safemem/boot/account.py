# SPDX-License-Identifier: MIT
"""What became of each byte of the memory blocks: exactly one of six kinds, and why.

Only `guarded` (reserved since the first instruction) and `held` (never online) memory was never
touched in this boot. `quarantined` memory was in use and is not any more, `exposed` memory still
is and may hold guests' pages, `safe` memory is in use and holds nothing of a guest's, says the
source of the safe region. Memory that the decision lets everybody use is `in_use`, and no more.
"""

from __future__ import annotations

from safemem.boot import plan
from safemem.boot.model import Blocks, Decision, Snapshot
from safemem.boot.ranges import Range, cut, joined, merge_ranges, size_text, without
from safemem.boot.tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KINDS = ("in_use", "safe", "guarded", "held", "quarantined", "exposed")
#: Said wherever not all memory is in ordinary use: the one difference that matters.
UNTOUCHED = "only guarded and held memory was never in use in this boot"


class Share(NamedTuple):
    """Memory that is all of one kind for one reason."""

    kind: str  #: one of KINDS
    start: int
    end: int
    why: str = ""
    seconds: int = -1  #: how long quarantined memory had been in use, rounded up; -1 for other kinds

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class Guarded(NamedTuple):
    """Memory that a guard reserves."""

    range: Range
    why: str = ""  #: what is not as it is with a crash range, "" for that


def account(
    decision: Decision,
    before: Snapshot,
    after: tuple[Blocks, ...],
    guarded: tuple[Guarded, ...],
    refused: Mapping[int, str],
    taken: dict[int, int],
) -> tuple[Share, ...]:
    """Return every byte of the blocks in `after` once, ascending.

    Args:
        guarded: what is reserved of the guards now, ascending.
        refused: block -> why it did not go offline.
        taken: block -> for how many seconds it had been in use when it went offline, in this run or an earlier one.
    """
    size = before.block_size
    pieces: list[tuple[int, int, tuple[str, str, int]]] = []
    edges = {edge for run in (*before.blocks, *after) for edge in (run.first, run.last + 1)}
    edges |= {number + step for number in (*refused, *taken) for step in (0, 1)}
    cuts = sorted(edges)
    free = free_to_use(decision, before, after)
    kdump = decision.action == "online-all" and bool(decision.policy.keep_crashkernel)
    reserved = [guard.range for guard in guarded]
    said = [
        ("in_use", "left to kdump", -1) if kdump and not guard.why else ("guarded", guard.why, -1) for guard in guarded
    ]
    old = place = 0
    for run in after:
        first = run.first
        while first <= run.last:
            while place < len(cuts) and cuts[place] <= first:
                place += 1
            last = min(run.last, cuts[place] - 1)
            while old < len(before.blocks) and before.blocks[old].last < first:
                old += 1
            was = (
                before.blocks[old].state if old < len(before.blocks) and before.blocks[old].first <= first else "absent"
            )
            start, end = first * size, (last + 1) * size
            if run.state == "offline":
                untouched = was in ("offline", "absent") and first not in taken
                kind, seconds = ("held", -1) if untouched else ("quarantined", taken.get(first, -1))
                for low, high, index in cut(start, end, decision.region):
                    why = "safe, but out of use with its block" if index >= 0 else ""
                    pieces.append((low, high, (kind, why, seconds)))
            elif run.state == "online":
                why = refused.get(first) or _why(was)
                for low, high, index in cut(start, end, reserved):
                    if index >= 0:
                        pieces.append((low, high, said[index]))
                    else:
                        pieces += _online(low, high, decision, free, why)
            else:
                pieces.append((start, end, ("exposed", refused.get(first) or f"its state is {run.state}", -1)))
            first = last + 1
    return tuple(Share(kind, start, end, why, seconds) for start, end, (kind, why, seconds) in joined(pieces))


def totals(shares: tuple[Share, ...]) -> dict[str, int]:
    """Return the bytes of each kind; all of KINDS are there."""
    found = dict.fromkeys(KINDS, 0)
    for share in shares:
        found[share.kind] += share.size
    return found


def totals_text(sums: dict[str, int]) -> str:
    """Return the totals on one line, for the console, with what they mean."""
    whole = sum(sums.values())
    parts = [f"{size_text(sums[kind])} {words(kind)} ({_percent(sums[kind], whole)})" for kind in KINDS if sums[kind]]
    if not parts:
        return "no memory blocks"
    return ", ".join(parts) + (f": {UNTOUCHED}" if sums["in_use"] < whole else "")


def words(kind: str) -> str:
    """Return a kind as people read it."""
    return kind.replace("_", " ")


def to_json(shares: tuple[Share, ...]) -> list[dict[str, object]]:
    """Return what the record keeps."""
    return [
        {
            "kind": share.kind,
            "range": str(Range(share.start, share.end)),
            "bytes": share.size,
            "why": share.why or None,
            "seconds_in_use": share.seconds if share.seconds >= 0 else None,
        }
        for share in shares
    ]


def _percent(part: int, whole: int) -> str:
    """Return a share that never rounds something to nothing, nor less than everything to all."""
    tenths = part * 1000 // whole if part else 0
    return "100 %" if part == whole else f"{tenths // 10}.{tenths % 10} %" if tenths else "< 0.1 %"


def free_to_use(decision: Decision, before: Snapshot, after: tuple[Blocks, ...]) -> tuple[Range, ...]:
    """Return the blocks that the decision lets everybody use, ascending: after `online-all` all but its exceptions.

    Args:
        before: the machine when it was decided; what was in use by then is no worse for an exception.
        after: the blocks later on. Of those that were there before, node and driver are known; a look at the states
            alone tells neither.
    """
    if decision.action != "online-all":
        return ()
    size, known = before.block_size, tuple(Range(run.first, run.last + 1) for run in before.blocks)
    new = (
        run._replace(first=first, last=end - 1)
        for run in after
        for first, end, index in cut(run.first, run.last + 1, known)
        if index < 0
    )
    blocks = tuple(sorted((*before.blocks, *new)))
    held = plan.held(decision.action, before._replace(blocks=blocks), decision.region, decision.policy.memory)
    usual = (run for run in before.blocks if run.state == "online")
    areas, used = (tuple(Range(run.first * size, (run.last + 1) * size) for run in runs) for runs in (blocks, usual))
    return merge_ranges((*without(areas, held), *used))


def _why(was: str) -> str:
    if was == "offline":
        return "was held, and somebody else has onlined it"
    if was == "absent":
        return "was added later, and somebody else has onlined it"
    return "in use since the start of this boot"


def _online(
    start: int, end: int, decision: Decision, free: tuple[Range, ...], why: str
) -> Iterator[tuple[int, int, tuple[str, str, int]]]:
    """Share out memory that is online and in no guard: what may be used first, then what is safe."""
    for first, last, used in cut(start, end, free):
        if used >= 0:
            yield first, last, ("in_use", "", -1)
            continue
        for one, other, safe in cut(first, last, decision.region):
            yield one, other, (("safe", "", -1) if safe >= 0 else ("exposed", why, -1))
