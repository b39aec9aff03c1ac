# SPDX-License-Identifier: MIT
"""End a hold by hand: what is given back, and word of it that outlives a power cut in the middle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import NamedTuple

from safemem.boot import apply, record
from safemem.boot.console import NOTICE, WARNING, say
from safemem.boot.files import reason as why_failed
from safemem.boot.hold import ONLINE_WORD, unmask
from safemem.boot.model import Plan, Refused, Step
from safemem.boot.plan import release_guard
from safemem.boot.ranges import Range, merge_ranges, size_text
from safemem.host import history, reader
from safemem.host.reader import Release
from safemem.host.standing import RELEASES, Standing
from safemem.realroot import hold as realroot
from safemem.realroot import storage

_ALL = Range(0, 1 << 64)
#: What a guard is cut at: no kernel's page or reservation has a coarser grain on x86.
_GRAIN = 1 << 20


_NO_KDUMP = "kdump gets nothing of the guard: no crash kernel can be loaded any more in this boot"


class NotPossible(Refused):
    """Nothing can be released so; the message says what can be."""

    kind = "invalid"


class Planned(NamedTuple):
    """What a release is about to do."""

    plan: Plan
    ranges: tuple[Range, ...]  #: empty: everything

    @property
    def size(self) -> int:
        """The bytes that are given back."""
        return sum(step.size for step in self.plan.steps if step.op in ("online", "release-guard"))

    @property
    def guard(self) -> int:
        """The bytes of the guard among them."""
        return sum(step.size for step in self.plan.steps if step.op == "release-guard")


def plan(standing: Standing, ranges: tuple[Range, ...], zone: str) -> Planned:
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
    keep = "" if standing.forbidden else standing.decision.policy.keep_crashkernel
    steps = [*_tail(standing.now.guard, areas, "" if ranges else keep), *steps]
    if ranges and not steps:
        raise NotPossible(
            f"nothing is held wholly inside {', '.join(map(str, ranges))}; `safemem status` lists what is"
        )
    return Planned(Plan(tuple(steps), "" if ranges else zone), ranges)


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
    planned: Planned,
    reason: str,
    now: float,
    progress: Callable[[int], None],
    *,
    forced: bool = False,
) -> tuple[apply.Result, list[str]]:
    """Carry a release out and leave a record of it; return what came of it, and why the record may not last.

    Blocks that are online already are no error: a second run resumes. If it is interrupted
    (KeyboardInterrupt), the record says so before that goes on. The caller has the lock.

    Args:
        now: seconds since 1970.
        progress: gets bytes as they are given back, `planned.size` in all.
        forced: the policy calls the hold final.
    """
    decision = standing.decision
    areas = planned.ranges or (_ALL,)
    spans = ", ".join(map(str, areas))
    entry = Release(int(now), reason, areas, "begun", forced)
    # Before the first block: what is being released is never mistaken for somebody else's doing, and a
    # power cut leaves word of it.
    _note(root, entry)
    problems: list[str] = []
    say(root, NOTICE, f"releasing {spans}: {reason}")
    try:
        if planned.plan.arrivals:
            _let_arrive(root, standing, planned.plan.arrivals)
        result = apply.carry_out(planned.plan, root, progress)
        # What could not be seen was not released.
        result = result._replace(problems=(*result.problems, *standing.unseen))
        entry = entry._replace(state="done" if result.complete else "partly")
        if standing.forbidden and planned.guard and decision.policy.keep_crashkernel:
            problems.append(_NO_KDUMP)
    except BaseException:
        entry = entry._replace(state="partly")
        say(root, WARNING, f"the release of {spans} was interrupted")
        raise
    finally:
        problems += _note(root, entry)
    say(root, NOTICE, f"released {spans}{'' if result.complete else ' in part'}: {reason}")
    return result, problems


def _let_arrive(root: str, standing: Standing, zone: str) -> None:
    """Let udev online what arrives, in `zone`, and take every mask back."""
    decision, done = standing.decision, standing.record.done
    why = record.why_text("online-all", "release", decision.policy.name)
    env = record.env_text(ONLINE_WORD[zone], why, enter=decision.rule.enter, finished=True, dry_run=standing.dry_run)
    storage.put(root, record.ENV, env)
    unmask(root, done.masked if done else ())
    for text in realroot.release(root):
        say(root, WARNING, text)


def _note(root: str, entry: Release) -> list[str]:
    """Write the release where this boot looks, after those that are there, and where the next one does.

    Returns why the latter failed.

    Raises:
        OSError: this boot cannot see it.
        Invalid: those that are there cannot be read.
    """
    path = os.path.join(root, RELEASES)
    known = reader.releases(path) if os.path.lexists(path) else ()
    if entry.state != "begun":  # this one, which stands last
        known = known[:-1]
    text = json.dumps(reader.releases_to_json((*known, entry))) + "\n"
    storage.put(root, RELEASES, text)
    try:
        history.write(root, os.path.basename(RELEASES), text)
        history.keep(root)  # without its decision, nobody could tell what was released
    except OSError as error:
        why = why_failed(error, "cannot be written")
        return [f"{error.filename or history.FOLDER}: word of this release will not outlive this boot: {why}"]
    return []
