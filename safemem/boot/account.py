# SPDX-License-Identifier: MIT
"""What became of each byte of the memory blocks: exactly one of five kinds, and why.

Only `guarded` (reserved since the first instruction) and `held` (never online) memory was never
touched in this boot. `quarantined` memory was in use and is not any more, `exposed` memory still
is, `safe` memory is in use and holds nothing of a guest's, says the source of the safe region.
"""

from __future__ import annotations

from safemem.boot.model import Blocks, Decision, Snapshot
from safemem.boot.ranges import Range, cut, joined, size_text
from safemem.boot.tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KINDS = ("safe", "guarded", "held", "quarantined", "exposed")
#: Said wherever totals are: the one difference that matters.
UNTOUCHED = "only guarded and held memory was never touched in this boot"


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


def account(
    decision: Decision,
    before: Snapshot,
    after: tuple[Blocks, ...],
    guard: Range | None,
    refused: Mapping[int, str],
    taken: dict[int, int],
) -> tuple[Share, ...]:
    """Return every byte of the blocks in `after` once, ascending.

    Args:
        guard: what is reserved of it now.
        refused: block -> why it did not go offline.
        taken: block -> for how many seconds it had been in use when it went offline, in this run or an earlier one.
    """
    size = before.block_size
    pieces: list[tuple[int, int, tuple[str, str, int]]] = []
    edges = {edge for run in (*before.blocks, *after) for edge in (run.first, run.last + 1)}
    edges |= {number + step for number in (*refused, *taken) for step in (0, 1)}
    cuts = sorted(edges)
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
                why = refused.get(first) or _why(decision, was)
                pieces += _in_use(start, end, guard, decision, why)
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
    parts = [f"{size_text(sums[kind])} {kind} ({_percent(sums[kind], whole)})" for kind in KINDS if sums[kind]]
    return f"{', '.join(parts)}: {UNTOUCHED}" if parts else "no memory blocks"


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


def _why(decision: Decision, was: str) -> str:
    if decision.action == "online-all":
        return "all memory may be used"
    if was == "offline":
        return "was held, and somebody else has onlined it"
    if was == "absent":
        return "was added later, and somebody else has onlined it"
    return "in use since the start of this boot"


def _in_use(
    start: int, end: int, guard: Range | None, decision: Decision, why: str
) -> Iterator[tuple[int, int, tuple[str, str, int]]]:
    """Share out memory that is online: what is guarded first, of the rest what is safe."""
    for low, high, guarded in cut(start, end, (guard,) if guard else ()):
        if guarded >= 0:
            yield low, high, ("guarded", "left to kdump" if decision.action == "online-all" else "", -1)
            continue
        for first, last, safe in cut(low, high, decision.region):
            yield first, last, (("safe", "", -1) if safe >= 0 else ("exposed", why, -1))
