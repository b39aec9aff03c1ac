# SPDX-License-Identifier: MIT
"""End a hold by hand: what is given back, and word of it that outlives a power cut in the middle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from safemem.boot import apply, files, record
from safemem.boot.apply import PROGRESS_EVERY
from safemem.boot.console import NOTICE, WARNING, say
from safemem.boot.crashkernel import PIECE
from safemem.boot.hold import ONLINE_WORD, unmask
from safemem.boot.model import Plan, Step
from safemem.boot.plan import release_guard
from safemem.boot.ranges import Range, merge_ranges, size_text
from safemem.host import history
from safemem.host.standing import RELEASES, Standing
from safemem.realroot import hold as realroot

_ALL = Range(0, 1 << 64)
#: What a guard is cut at: no kernel's page or reservation has a coarser grain on x86.
_GRAIN = 1 << 20


_NO_KDUMP = "kdump gets nothing of the guard: no crash kernel can be loaded any more in this boot"


class NotPossible(Exception):
    """Nothing can be released so; the message says what can be."""


class Release(NamedTuple):
    """What `release` is about to do."""

    plan: Plan
    ranges: tuple[Range, ...]  #: empty: everything

    @property
    def ticks(self) -> int:
        """How often there will be a sign of progress."""
        return sum(
            -(-step.size // PIECE)
            if step.op == "release-guard"
            else step.last // PROGRESS_EVERY - (step.first - 1) // PROGRESS_EVERY
            for step in self.plan.steps
        )

    @property
    def guard(self) -> int:
        """The bytes of the guard that are given back."""
        return sum(step.size for step in self.plan.steps if step.op == "release-guard")


def plan(standing: Standing, ranges: tuple[Range, ...], zone: str) -> Release:
    """Return the steps that end the hold on `ranges`, or on everything, guard included, if there are none.

    Raises:
        NotPossible: nothing is held there, or it is a part of the guard that cannot be given back by itself.
    """
    size = standing.now.block_size
    areas = merge_ranges(ranges) or (_ALL,)
    steps = []
    for run in standing.offline:
        for area in areas:
            first, last = max(run.first, -(-area.start // size)), min(run.last, area.end // size - 1)
            if first <= last:
                steps.append(Step("online", first * size, (last + 1) * size, first, last, zone))
    # The guard first, as it is carried out.
    keep = "" if standing.forbidden else str(standing.decision.get("keep_crashkernel") or "")
    steps = [*_tail(standing.now.guard, areas, "" if ranges else keep), *steps]
    if ranges and not steps:
        raise NotPossible(
            f"nothing is held wholly inside {', '.join(map(str, ranges))}; `safemem status` lists what is"
        )
    return Release(Plan(tuple(steps), "" if ranges else zone), ranges)


def _tail(guard: Range | None, areas: tuple[Range, ...], keep: str) -> list[Step]:
    """Return the steps for the part of the guard that `areas` cover, less what kdump gets of it. Raises NotPossible."""
    if guard is None:
        return []
    touching = [area for area in areas if area.start < guard.end and guard.start < area.end]
    if not touching:
        return []
    start = max(guard.start, -(-touching[-1].start // _GRAIN) * _GRAIN)
    if len(touching) > 1 or touching[-1].end < guard.end or start >= guard.end:
        raise NotPossible(
            f"the guard {guard} ({size_text(guard.size)}) can only be given back from its end, in whole MiB:"
            f" name a range START-0x{guard.end - 1:x}, with a START from 0x{guard.start:x} up"
        )
    return list(release_guard(Range(start, guard.end), keep))


def carry_out(
    root: str,
    standing: Standing,
    what: Release,
    reason: str,
    now: float,
    progress: Callable[[], None],
    forced: bool = False,
) -> tuple[apply.Result, list[str]]:
    """Carry `what` out and leave a record of it; return what came of it, and why the record may not last.

    Blocks that are online already are no error: a second run resumes. If it is interrupted
    (KeyboardInterrupt), the record says so before that goes on.
    """
    plan, old = what.plan, standing.decision
    spans = [str(area) for area in what.ranges] or [str(_ALL)]
    entry: dict[str, Any] = {
        "time": int(now), "reason": reason, "ranges": spans, "state": "begun", "forced": forced,
    }  # fmt: skip
    # Before the first block: what is being released is never mistaken for somebody else's doing, and a
    # power cut leaves word of it.
    _note(root, [*standing.releases, entry])
    problems: list[str] = []
    say(root, NOTICE, f"releasing {', '.join(spans)}: {reason}")
    try:
        if plan.arrivals:
            why = record.why_text("online-all", "release", old["policy"]["name"])
            text = record.env_text(
                ONLINE_WORD[plan.arrivals], why, enter=old.get("enter") or "", finished=True, dry_run=standing.dry_run
            )
            files.replace(root, record.ENV, text)
            unmask(root, tuple((standing.result or {}).get("masked", [])))
            for text in realroot.release(root):
                say(root, WARNING, text)
        result = apply.carry_out(plan, root, progress)
        entry["state"] = "done" if result.complete else "partly"
        if standing.forbidden and what.guard and standing.decision.get("keep_crashkernel"):
            problems = [*problems, _NO_KDUMP]
    except BaseException:
        entry["state"] = "partly"
        say(root, WARNING, f"the release of {', '.join(spans)} was interrupted")
        raise
    finally:
        problems = [*problems, *_note(root, [*standing.releases, entry])]
    say(root, NOTICE, f"released {', '.join(spans)}{'' if result.complete else ' in part'}: {reason}")
    return result, problems


def _note(root: str, releases: list[dict[str, Any]]) -> list[str]:
    """Write the releases where this boot looks, and where the next one does; return why the latter failed.

    Raises:
        OSError: this boot cannot see them.
    """
    text = json.dumps(releases) + "\n"
    files.replace(root, RELEASES, text)
    try:
        history.write(root, os.path.basename(RELEASES), text)
        history.keep(root)  # without its decision, nobody could tell what was released
    except OSError as error:
        return [
            f"{error.filename or history.FOLDER}: word of this release will not outlive this boot:"
            f" {(error.strerror or 'cannot be written').lower()}"
        ]
    return []
