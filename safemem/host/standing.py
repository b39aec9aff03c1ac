# SPDX-License-Identifier: MIT
"""The decision that stands in this boot: its record, and what the machine shows now."""

from __future__ import annotations

import os
from typing import NamedTuple

from safemem.boot import account, crashkernel, plan, probe
from safemem.boot.model import Blocks, Decision, Note, Refused, Snapshot
from safemem.boot.printable import printable
from safemem.boot.ranges import Range, merge_ranges, whole_blocks, without
from safemem.boot.record import RECORD
from safemem.host import incidents, reader
from safemem.host.reader import Record, Release
from safemem.host.verdict import Verdict, verdict
from safemem.realroot import hold as realroot

RELEASES = realroot.RELEASES


class NoDecision(Refused):
    """This boot has no decision to speak of; the message says why."""

    kind = "unknown"


class Standing(NamedTuple):
    """What was decided, what came of it, and what the machine shows now."""

    record: Record
    now: Snapshot
    releases: tuple[Release, ...] = ()
    watched: incidents.Counts | None = None  #: what `watch` has counted; None if it has not run
    problem: str = ""  #: why that cannot be told
    forbidden: bool = False  #: no crash kernel can be loaded any more in this boot

    @property
    def decision(self) -> Decision:
        """What was decided."""
        return self.record.decision

    @property
    def then(self) -> Snapshot:
        """The machine when it was decided."""
        return self.record.snapshot

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of each kind when it was decided; empty if there was no account."""
        return account.totals(self.record.account) if self.record.account else {}

    @property
    def unseen(self) -> tuple[Note, ...]:
        """Why what is held now cannot be told, or not all of it, one sentence each."""
        return probe.unseen(self.now.notes)

    @property
    def offline(self) -> tuple[Blocks, ...]:
        """Blocks that are offline now."""
        return tuple(run for run in self.now.blocks if run.state == "offline")

    @property
    def held(self) -> tuple[Range, ...]:
        """What is offline now and, as far as is known, was so in all of this boot."""
        released = self._blocks(tuple(area for item in self.releases if item.state == "done" for area in item.ranges))
        touched = self.watched.touched if self.watched else ()
        return without(merge_ranges(_spans(self.now, "offline")), (*_spans(self.then, "online"), *released, *touched))

    @property
    def taken_offline(self) -> tuple[Range, ...]:
        """What is offline now and was online in this boot, but for what the decision itself quarantined."""
        known = (Range(share.start, share.end) for share in self.record.account if share.kind == "quarantined")
        return without(merge_ranges(_spans(self.now, "offline")), (*self.held, *known))

    @property
    def guard(self) -> Range | None:
        """What is reserved of the guard now; what is left of one that was given back is kdump's."""
        back = self.decision.action == "online-all" or Range(0, 1 << 64) in self.released
        return None if back and self.decision.policy.keep_crashkernel and not self.forbidden else self.now.guard

    @property
    def released(self) -> tuple[Range, ...]:
        """What was released by hand."""
        return tuple(area for item in self.releases for area in item.ranges)

    @property
    def dry_run(self) -> bool:
        """Whether nothing of the decision is in force, as the command line asked."""
        return self.record.done is not None and self.record.done.dry_run

    @property
    def onlined_by_others(self) -> tuple[Range, ...]:
        """Held by the decision, online now and not released by hand: held since then, or arrived later."""
        if self.dry_run:
            return ()
        decision = self.decision
        held = plan.held(decision.action, self.now, decision.region, decision.policy.memory)
        online = merge_ranges(_spans(self.now, "online"))
        since = without(online, (*_spans(self.then, "online"), *self._blocks(self.released)))
        return without(since, without(since, held))

    @property
    def arrived(self) -> list[tuple[Range, str]]:
        """Blocks that did not exist when it was decided, as ranges with their state."""
        old, states = _spans(self.then), {run.state for run in self.now.blocks}
        return sorted((area, state) for state in states for area in without(merge_ranges(_spans(self.now, state)), old))

    @property
    def verdict(self) -> Verdict:
        """How this boot stands."""
        held = bool(self.offline or self.guard)
        others = bool(self.onlined_by_others)
        return verdict(self.record, held=held, onlined_by_others=others, unseen=bool(self.unseen))

    def _blocks(self, areas: tuple[Range, ...]) -> tuple[Range, ...]:
        """Return the blocks that lie wholly inside `areas`, as ranges."""
        size = self.now.block_size
        inside = (whole_blocks(area, size) for area in (merge_ranges(areas) if size else ()))
        return tuple(Range(area.start * size, area.end * size) for area in inside if area.size)


def _spans(snapshot: Snapshot, state: str = "") -> tuple[Range, ...]:
    """Return the blocks that are in one state, or all of them, as ranges."""
    size = snapshot.block_size
    return tuple(Range(run.first * size, (run.last + 1) * size) for run in snapshot.blocks if state in ("", run.state))


def read(root: str) -> Standing:
    """Return the decision that stands on the machine below `root`.

    Raises:
        NoDecision: there is no record, or it cannot be understood.
    """
    path = os.path.join(root, RECORD)
    try:
        record = reader.record(path)
    except FileNotFoundError:
        raise NoDecision(
            f"{printable(path)}: no decision was recorded in this boot: safemem did not run in the initramfs"
        ) from None
    except reader.Invalid as error:
        raise NoDecision(str(error)) from None
    watched, problem = None, ""
    try:
        watched = reader.counts(os.path.join(root, incidents.COUNTS))
    except FileNotFoundError:
        pass
    except reader.Invalid as error:
        problem = str(error)
    return Standing(record, probe.read_snapshot(root), _releases(root), watched, problem, crashkernel.forbidden(root))


def _releases(root: str) -> tuple[Release, ...]:
    """Return what was released by hand. Raises NoDecision: without it nobody can say what is held."""
    try:
        return reader.releases(os.path.join(root, RELEASES))
    except FileNotFoundError:
        return ()
    except reader.Invalid as error:
        raise NoDecision(f"{error}: move the file away and release anew") from None
