# SPDX-License-Identifier: MIT
"""The decision that stands in this boot: its record, and what the machine shows now."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple, get_args

from safemem.boot import account, crashkernel, files, gigantic, plan, probe
from safemem.boot.model import UNKNOWN, Blocks, Decision, Note, Pages, Refused, Snapshot
from safemem.boot.printable import printable
from safemem.boot.ranges import Range, common, merge_ranges, total, whole_blocks, without
from safemem.boot.record import RECORD
from safemem.host import incidents, judged, reader
from safemem.host.reader import Record, Release
from safemem.host.verdict import Verdict, faults, tolerated, verdict
from safemem.realroot import hold as realroot
from safemem.realroot import maintenance

RELEASES = realroot.RELEASES
_PASSED = "run/safemem/passed"
#: What becomes of a decision: it is carried out, or only recorded because the command line or the policy says so.
Mode = Literal["enforce", "dry_run", "observe"]
MODES: tuple[Mode, ...] = get_args(Mode)
_ALL = Range(0, 1 << 64)


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
    written: int = 0  #: when the record was, in seconds since 1970 by the clock of then; 0 if that is not known
    announced: bool = False  #: maintenance has been announced, and has not been left since
    kept: bool = False  #: no program can get a gigantic page that nobody has mapped yet
    judged: judged.Judged | None = None  #: what was said of this kernel before the kexec; None is nothing

    @property
    def decision(self) -> Decision:
        """What was decided."""
        return self.record.decision

    @property
    def then(self) -> Snapshot:
        """The machine when it was decided."""
        return self.record.snapshot

    @property
    def recorded_totals(self) -> dict[str, int]:
        """Bytes of each kind when it was decided; empty if there was no account."""
        return account.totals(self.record.account) if self.record.account else {}

    @property
    def kinds(self) -> dict[str, tuple[Range, ...]]:
        """Where the memory of each kind is now; every byte of every block is in one of them."""
        offline, online = merge_ranges(_spans(self.now, "offline")), merge_ranges(_spans(self.now, "online"))
        reserved = common(online, self.reserved)
        guarded = without(reserved, self.touched)
        rest = without(online, reserved)
        # What was released is anybody's, and so is what is left to kdump.
        free = (*account.free_to_use(self.decision, self.then, self.now.blocks), *self.released)
        used = without(rest, free)
        unsure = without(merge_ranges(_spans(self.now)), (*offline, *online))
        return {
            "in_use": without(rest, used),
            "safe": without(used, without(used, self.decision.region)),
            "guarded": guarded,
            "held": self.held,
            # A page that programs could map for a while is reserved again, and may have been used.
            "quarantined": merge_ranges((*without(offline, self.held), *without(reserved, guarded))),
            "exposed": (*without(used, self.decision.region), *unsure),
        }

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of each kind now; all of them together are all memory blocks. Empty if there are none."""
        found = {kind: total(areas) for kind, areas in self.kinds.items()}
        return found if any(found.values()) else {}

    @property
    def tolerated(self) -> tuple[Note, ...]:
        """Problems of the boot that the policy itself tolerates."""
        return tolerated(self.record)

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
        return without(
            merge_ranges(_spans(self.now, "offline")), (*_spans(self.then, "online"), *released, *self.touched)
        )

    @property
    def touched(self) -> tuple[Range, ...]:
        """What `watch` has ever found online, or in programs' reach, although it was held or guarded."""
        return self.watched.touched if self.watched else ()

    @property
    def taken_offline(self) -> tuple[Range, ...]:
        """What is offline now and was online in this boot, but for what the decision itself quarantined."""
        known = (Range(share.start, share.end) for share in self.record.account if share.kind == "quarantined")
        return without(merge_ranges(_spans(self.now, "offline")), (*self.held, *known))

    @property
    def guard(self) -> Range | None:
        """What is reserved of the guard now; what is left of one that was given back is kdump's."""
        back = self.decision.action == "online-all" or _ALL in self.released
        return None if back and self.decision.policy.keep_crashkernel and not self.forbidden else self.now.guard

    @property
    def gigantic(self) -> tuple[Pages, ...]:
        """The gigantic pages that were not given back, by node; what is left of others is the operator's own."""
        done = self.record.done
        back = self.mode == "observe" or (self.decision.action == "online-all" and self.mode == "enforce")
        if done and back and "guard-kept" not in [note.code for note in done.problems]:
            return ()
        ended = [item for item in self.releases if item.state == "done"]
        if any(_ALL in item.ranges for item in ended):
            return ()
        gone = {node for item in ended for node in item.nodes}
        return tuple(item for item in self.now.gigantic if item.number and item.node not in gone)

    @property
    def pages(self) -> tuple[Pages, ...]:
        """Those of them that guard: no program can get them, and where they are is known."""
        return tuple(item for item in self.gigantic if self.kept and item.placed)

    @property
    def reserved(self) -> tuple[Range, ...]:
        """What both guards reserve now."""
        pages = (area for item in self.pages for area in item.ranges)
        return merge_ranges((*((self.guard,) if self.guard else ()), *pages))

    @property
    def let_go(self) -> tuple[Range, ...]:
        """Gigantic pages that were guarded when it was decided and are not now, although nobody released them."""
        if self.mode != "enforce" or self.now.facts["guard"].value == UNKNOWN:
            return ()  # the latter is among `unseen`: a page that is just being mapped shows so for some seconds
        pages = merge_ranges(tuple(area for item in self.then.gigantic for area in item.ranges))
        before = tuple(Range(share.start, share.end) for share in self.record.account if share.kind == "guarded")
        return without(common(pages, merge_ranges(before)), (*self.reserved, *self.released))

    @property
    def released(self) -> tuple[Range, ...]:
        """What was released by hand."""
        return tuple(area for item in self.releases for area in item.ranges)

    @property
    def mode(self) -> Mode:
        """Whether the decision was carried out, or why it was only recorded."""
        done = self.record.done
        return "observe" if done and done.observed else "dry_run" if done and done.dry_run else "enforce"

    @property
    def maintenance(self) -> bool:
        """Whether the decision sent this boot to maintenance, and it is there or has not released everything."""
        done = (area for item in self.releases if item.state != "begun" for area in item.ranges)
        there = self.announced or _ALL not in done
        return self.decision.rule.enter == "maintenance" and self.mode == "enforce" and there

    @property
    def shortfall(self) -> str:
        """In which way less was reached than was decided and the policy tolerates, when it was decided; or nothing."""
        done = self.record.done
        return done.shortfall if done and faults(self.record) else ""

    @property
    def onlined_by_others(self) -> tuple[Range, ...]:
        """Held by the decision, online now and not released by hand: held since then, or arrived later."""
        if self.mode != "enforce":
            return ()
        decision = self.decision
        held = plan.held(decision.action, self.now, decision.region, decision.policy.memory)
        online = merge_ranges(_spans(self.now, "online"))
        # What the decision itself took offline is held from then on.
        taken = tuple(Range(share.start, share.end) for share in self.record.account if share.kind == "quarantined")
        before = without(merge_ranges(_spans(self.then, "online")), taken)
        since = without(online, (*before, *self._blocks(self.released)))
        return without(since, without(since, held))

    @property
    def arrived(self) -> list[tuple[Range, str]]:
        """Blocks that did not exist when it was decided, as ranges with their state."""
        old, states = _spans(self.then), {run.state for run in self.now.blocks}
        return sorted((area, state) for state in states for area in without(merge_ranges(_spans(self.now, state)), old))

    @property
    def verdict(self) -> Verdict:
        """How this boot stands."""
        held = bool(self.offline or self.guard or self.gigantic)
        others = bool(self.onlined_by_others or self.let_go)
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
        # What the wrapper of a policy that only observes leaves (boot.sh).
        failed = files.word(root, _PASSED) == "failed"
        why = "failed in the initramfs, and its policy only observes" if failed else "did not run in the initramfs"
        raise NoDecision(f"{printable(path)}: no decision was recorded in this boot: safemem {why}") from None
    except reader.Invalid as error:
        raise NoDecision(str(error)) from None
    watched, problem = None, ""
    try:
        watched = reader.counts(os.path.join(root, incidents.COUNTS))
    except FileNotFoundError:
        pass
    except reader.Invalid as error:
        problem = str(error)
    now = probe.read_snapshot(root)
    return Standing(
        record,
        now,
        _releases(root),
        watched,
        problem,
        crashkernel.forbidden(root),
        _written(path),
        os.path.exists(os.path.join(root, maintenance.ISSUE)),
        gigantic.kept(root, now.gigantic),
        judged.read(root, record.snapshot.cmdline),
    )


def _written(path: str) -> int:
    try:
        return int(os.stat(path).st_mtime)
    except OSError:  # it was there a moment ago
        return 0


def _releases(root: str) -> tuple[Release, ...]:
    """Return what was released by hand. Raises NoDecision: without it nobody can say what is held."""
    try:
        return reader.releases(os.path.join(root, RELEASES))
    except FileNotFoundError:
        return ()
    except reader.Invalid as error:
        raise NoDecision(f"{error}: move the file away and release anew") from None
