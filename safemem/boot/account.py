# SPDX-License-Identifier: MIT
"""What became of each byte of the memory blocks: exactly one of five kinds, and why.

Only `guarded` (reserved since the first instruction) and `held` (never online) memory was never
touched in this boot. `quarantined` memory was in use and is not any more, `exposed` memory still
is, `safe` memory is in use and holds nothing of a guest's, says the source of the safe region.
"""

from __future__ import annotations

from safemem.boot.model import Blocks, Decision, Range, Snapshot, size_text
from safemem.boot.tuples import NamedTuple

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


def account(
    decision: Decision,
    before: Snapshot,
    after: tuple[Blocks, ...],
    guard: Range | None,
    refused: dict[int, str],
    taken: dict[int, int],
) -> tuple[Share, ...]:
    """Return every byte of the blocks in `after` once, ascending.

    Args:
        guard: what is reserved of it now.
        refused: block -> why it did not go offline.
        taken: block -> for how many seconds it had been in use when it went offline, in this run or an earlier one.
    """
    size, shares = before.block_size, _Shares()
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
                for safe, part in _cut(start, end, decision.region):
                    shares.add(kind, *part, "safe, but out of use with its block" if safe else "", seconds)
            elif run.state == "online":
                why = refused.get(first) or _why(decision, was)
                _in_use(shares, start, end, guard, decision, why)
            else:
                shares.add("exposed", start, end, refused.get(first) or f"its state is {run.state}")
            first = last + 1
    return tuple(shares.found)


def totals(shares: tuple[Share, ...]) -> dict[str, int]:
    """Return the bytes of each kind; all of KINDS are there."""
    found = dict.fromkeys(KINDS, 0)
    for share in shares:
        found[share.kind] += share.end - share.start
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
            "bytes": share.end - share.start,
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


def _in_use(shares: _Shares, start: int, end: int, guard: Range | None, decision: Decision, why: str) -> None:
    """Share out memory that is online: what is guarded first, of the rest what is safe."""
    for kind, area in _cut(start, end, (guard,) if guard else ()):
        if kind:
            shares.add("guarded", *area, "left to kdump" if decision.action == "online-all" else "")
            continue
        for safe, part in _cut(*area, decision.region):
            shares.add("safe" if safe else "exposed", *part, "" if safe else why)


def _cut(start: int, end: int, areas: tuple[Range, ...]) -> list[tuple[bool, Range]]:
    """Return `start`..`end` cut at the edges of ascending `areas`; True for what lies inside one."""
    pieces = []
    for area in areas:
        low, high = max(start, area.start), min(end, area.end)
        if low >= high:
            continue
        if start < low:
            pieces.append((False, Range(start, low)))
        pieces.append((True, Range(low, high)))
        start = high
    if start < end:
        pieces.append((False, Range(start, end)))
    return pieces


class _Shares:
    def __init__(self) -> None:
        self.found: list[Share] = []

    def add(self, kind: str, start: int, end: int, why: str = "", seconds: int = -1) -> None:
        last = self.found[-1] if self.found else None
        if last and last.end == start and (last.kind, last.why, last.seconds) == (kind, why, seconds):
            self.found[-1] = last._replace(end=end)
        else:
            self.found.append(Share(kind, start, end, why, seconds))
