# SPDX-License-Identifier: MIT
"""End a hold by hand: what is given back, and word of it that outlives a power cut in the middle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import NamedTuple

from safemem.boot import apply, gigantic, record
from safemem.boot.console import NOTICE, WARNING, say
from safemem.boot.files import reason as why_failed
from safemem.boot.hold import ONLINE_WORD, unmask
from safemem.boot.model import Note, Pages, Plan, Refused, Step
from safemem.boot.plan import release_guard
from safemem.boot.ranges import Range, common, merge_ranges, size_text, total, without
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
    pages: tuple[Pages, ...] = ()  #: gigantic pages that go, but for the operator's own
    kept: tuple[Pages, ...] = ()  #: those that stay a guard
    stays: tuple[str, ...] = ()  #: what a node keeps, and how that goes, one sentence each

    @property
    def size(self) -> int:
        """The bytes that are given back."""
        return self.guard + sum(step.size for step in self.plan.steps if step.op == "online")

    @property
    def guard(self) -> int:
        """The bytes of the guards among them."""
        return self.crash + sum(max(0, item.number - item.own) * item.size for item in self.pages)

    @property
    def crash(self) -> int:
        """The bytes of the crash range among them."""
        return sum(step.size for step in self.plan.steps if step.op == "release-guard")

    @property
    def nodes(self) -> tuple[int, ...]:
        """Whose gigantic pages go."""
        return tuple(item.node for item in self.pages)


def plan(standing: Standing, ranges: tuple[Range, ...], nodes: tuple[int, ...], zone: str) -> Planned:
    """Return what ends the hold on `ranges`, or on `nodes`, or on everything if there are neither, guards included.

    Raises:
        NotPossible: nothing is held there, or it is a part of a guard that cannot be given back by itself.
    """
    if nodes:
        return _plan_nodes(standing, tuple(sorted(set(nodes))), zone)
    areas = merge_ranges(ranges) or (_ALL,)
    # The guard first, as it is carried out.
    keep = "" if standing.forbidden else standing.decision.policy.keep_crashkernel
    steps = [*_tail(standing.now.guard, areas, "" if ranges else keep), *_blocks(standing, areas, zone)]
    pages = _covered(standing, areas)
    if ranges and not (steps or pages):
        raise NotPossible(
            f"nothing is held wholly inside {', '.join(map(str, ranges))}; `safemem status` lists what is"
        )
    return _planned(standing, steps, areas if ranges else (), pages, "" if ranges else zone)


def _plan_nodes(standing: Standing, nodes: tuple[int, ...], zone: str) -> Planned:
    """Return what ends the hold on the memory of these nodes. Raises NotPossible."""
    # What an unfinished release has left of a node may be nothing: then it is finished by word alone.
    open_ends = {node for item in standing.releases if item.state != "done" for node in item.nodes}
    open_ends -= {node for item in standing.releases if item.state == "done" for node in item.nodes}
    pages = tuple(
        item
        for item in standing.now.gigantic
        if item.node in nodes and (item in standing.gigantic or item.node in open_ends)
    )
    areas = merge_ranges((*_of_nodes(standing, nodes), *(area for item in pages for area in item.ranges)))
    guard = standing.now.guard
    steps: list[Step] = []
    stays: list[str] = []
    if guard and not without((guard,), areas):
        steps += release_guard(guard, "")
    elif guard and common((guard,), areas):
        stays.append(
            f"the crash range {guard} stays: it is not on node {' and '.join(map(str, nodes))} alone; it is given back"
            f" from its end, by a range START-0x{guard.end - 1:x}"
        )
        areas = without(areas, (guard,))
    steps += _blocks(standing, areas, zone)
    if not (steps or pages):
        why = f": {stays[0]}" if stays else "; `safemem status` lists what is held"
        raise NotPossible(f"nothing that is held on node {' or '.join(map(str, nodes))} can be released so{why}")
    found = _planned(standing, steps, areas, pages, "")
    if found.kept and any(item.own for item in pages):
        text = (
            "the pages that hugepages= asks for stay reserved there, until those of every node are released:"
            " the kernel reserves a number of pages, not certain ones"
        )
        stays.append(text)
    return found._replace(stays=tuple(stays))


def _planned(
    standing: Standing, steps: list[Step], ranges: tuple[Range, ...], pages: tuple[Pages, ...], zone: str
) -> Planned:
    kept = tuple(item for item in standing.gigantic if item not in pages)
    return Planned(Plan(tuple(steps), zone), ranges, pages, kept)


def _of_nodes(standing: Standing, nodes: tuple[int, ...]) -> tuple[Range, ...]:
    """Return the blocks of these nodes; a kernel without nodes has one, 0."""
    size, blocks = standing.now.block_size, standing.now.blocks
    alone = all(run.node < 0 for run in blocks)
    return tuple(
        Range(run.first * size, (run.last + 1) * size) for run in blocks if (0 if alone else run.node) in nodes
    )


def _covered(standing: Standing, areas: tuple[Range, ...]) -> tuple[Pages, ...]:
    """Return the gigantic pages that `areas` cover, whole nodes of them. Raises NotPossible for a part of a node's.

    Which page of a node goes is the kernel's choice.
    """
    found = []
    for item in standing.gigantic:
        if areas == (_ALL,) or (item.ranges and not without(item.ranges, areas)):
            found.append(item)
        elif common(item.ranges, areas):
            raise NotPossible(
                f"the gigantic pages of node {item.node} ({size_text(total(item.ranges))}) can only be given back"
                f" together, as the kernel chooses which of them goes: name --node {item.node}, or"
                f" {', '.join(map(str, item.ranges))} whole"
            )
    return tuple(found)


def _blocks(standing: Standing, areas: tuple[Range, ...], zone: str) -> list[Step]:
    """Return the steps that online the blocks wholly inside `areas`."""
    size, steps = standing.now.block_size, []
    for run in standing.offline:
        for area in areas:
            first, last = max(run.first, -(-area.start // size)), min(run.last, area.end // size - 1)
            if first <= last:
                steps.append(Step("online", first * size, (last + 1) * size, first, last, zone))
    return steps


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
            f"the crash range {guard} ({size_text(guard.size)}) can only be given back from its end, in whole MiB:"
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
    entry = Release(int(now), reason, areas, "begun", forced, planned.nodes)
    # Before the first block: what is being released is never mistaken for somebody else's doing, and a
    # power cut leaves word of it.
    _note(root, entry)
    problems: list[str] = []
    say(root, NOTICE, f"releasing {spans}: {reason}")
    try:
        if planned.plan.arrivals:
            _let_arrive(root, standing, planned.plan.arrivals)
        # The guard first: what it gives back may be needed to online the rest.
        kept, missing = _give_back(root, standing, planned, progress)
        problems += missing
        result = apply.carry_out(planned.plan, root, progress)
        # What could not be seen was not released.
        result = result._replace(problems=(*kept, *result.problems, *standing.unseen))
        entry = entry._replace(state="done" if result.complete else "partly")
        if standing.forbidden and planned.crash and decision.policy.keep_crashkernel:
            problems.append(_NO_KDUMP)
    except BaseException:
        entry = entry._replace(state="partly")
        say(root, WARNING, f"the release of {spans} was interrupted")
        raise
    finally:
        problems += _note(root, entry)
    say(root, NOTICE, f"released {spans}{'' if result.complete else ' in part'}: {reason}")
    return result, problems


def _give_back(
    root: str, standing: Standing, planned: Planned, progress: Callable[[int], None]
) -> tuple[list[Note], list[Note]]:
    """Give gigantic pages back; return why some of them stay, and which of the operator's are missing."""
    found = gigantic.give_back(root, planned.pages, progress, keep_own=True)
    if not planned.kept:
        # Nothing is left to guard: the operator's own are for programs, those of nodes that were released before too, or
        # by a release that was interrupted here.
        found += gigantic.let_go(root, standing.now.gigantic)
    kept = [note for note in found if note.code == "guard-kept"]
    return kept, [note for note in found if note not in kept]


def _let_arrive(root: str, standing: Standing, zone: str) -> None:
    """Let udev online what arrives, in `zone`, and take every mask back."""
    decision, done = standing.decision, standing.record.done
    why = record.why_text("online-all", "release", decision.policy.name)
    env = record.env_text(
        ONLINE_WORD[zone], why, enter=decision.rule.enter, finished=True, dry_run=standing.mode != "enforce"
    )
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
