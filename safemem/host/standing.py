# SPDX-License-Identifier: MIT
"""The decision that stands in this boot: read back, compared with the machine, ended by hand."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from safemem.boot import crashkernel, plan, probe, record
from safemem.boot.account import KINDS
from safemem.boot.model import Blocks, Override, Snapshot
from safemem.boot.ranges import Range, merge_ranges, parse_range, without
from safemem.host import incidents, reader

RELEASES = "run/safemem/releases.json"
#: Of a release. The first is on the disk before anything is given back, so that nothing is given back unsaid.
_STATES = {"begun": "begun", "done": "done", "partly": "partly"}


class NoDecision(Exception):
    """This boot has no decision to speak of; the message says why."""


class Standing(NamedTuple):
    """What was decided, what came of it, and what the machine shows now."""

    decision: dict[str, Any]
    result: dict[str, Any] | None
    then: Snapshot
    now: Snapshot
    releases: list[dict[str, Any]]
    account: list[dict[str, Any]] = []  # noqa: RUF012  (of memory, when it was decided; nobody changes it)
    watched: incidents.Counts | None = None  #: what `watch` has counted; None if it has not run
    problem: str = ""  #: why that cannot be told
    forbidden: bool = False  #: no crash kernel can be loaded any more in this boot

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of each kind when it was decided; empty if there was no account."""
        sums = dict.fromkeys(KINDS, 0) if self.account else {}
        for item in self.account:
            sums[item["kind"]] = sums.get(item["kind"], 0) + item["bytes"]
        return sums

    @property
    def offline(self) -> tuple[Blocks, ...]:
        """Blocks that are offline now."""
        return tuple(run for run in self.now.blocks if run.state == "offline")

    @property
    def held(self) -> tuple[Range, ...]:
        """What is offline now and, as far as is known, was so in all of this boot."""
        whole = [parse_range(text) for item in self.releases if item["state"] == "done" for text in item["ranges"]]
        touched = self.watched.touched if self.watched else ()
        offline = merge_ranges(_spans(self.now, "offline"))
        return without(offline, (*_spans(self.then, "online"), *self._blocks(whole), *touched))

    @property
    def used(self) -> tuple[Range, ...]:
        """What is offline now, was online in this boot, and is not in the account: that was taken when it was decided."""
        known = (parse_range(item["range"]) for item in self.account if item["kind"] == "quarantined")
        return without(merge_ranges(_spans(self.now, "offline")), (*self.held, *known))

    def _blocks(self, areas: list[Range]) -> tuple[Range, ...]:
        """Return the blocks that lie wholly inside `areas`, as ranges."""
        size = self.now.block_size
        inside = (
            Range(-(-area.start // size) * size, area.end // size * size)
            for area in (merge_ranges(tuple(areas)) if size else ())
        )
        return tuple(area for area in inside if area.start < area.end)

    @property
    def guard(self) -> Range | None:
        """What is reserved of the guard now; what is left of one that was given back is kdump's."""
        back = self.decision["action"] == "online-all" or any(area.end == 1 << 64 for area in self.released)
        return None if back and self.decision.get("keep_crashkernel") and not self.forbidden else self.now.guard

    @property
    def released(self) -> list[Range]:
        """What was released by hand."""
        return [parse_range(text) for item in self.releases for text in item["ranges"]]

    @property
    def dry_run(self) -> bool:
        """Whether nothing of the decision is in force, as the command line asked."""
        return bool(self.result and self.result.get("dry_run"))

    @property
    def loose(self) -> tuple[Range, ...]:
        """Held by the decision, online now and not released by hand: held since then, or arrived later."""
        if self.dry_run:
            return ()
        decision = self.decision
        held = plan.held(decision["action"], self.now, _region(decision), _exceptions(decision))
        online = merge_ranges(_spans(self.now, "online"))
        mine = without(online, (*_spans(self.then, "online"), *self._blocks(self.released)))
        return without(mine, without(mine, held))

    @property
    def arrived(self) -> list[tuple[Range, str]]:
        """Blocks that did not exist when it was decided, as ranges with their state."""
        old, states = _spans(self.then), {run.state for run in self.now.blocks}
        return sorted((area, state) for state in states for area in without(merge_ranges(_spans(self.now, state)), old))

    @property
    def exit_code(self) -> int:
        """The design's: 64 partly applied, or not at all in a dry run, 4 memory is held back, 0 everything may be used."""
        if self.result is None or not self.result.get("complete") or self.loose:
            return 64
        return 4 if self.offline or self.guard else 0


def _spans(snapshot: Snapshot, state: str = "") -> tuple[Range, ...]:
    """Return the blocks that are in one state, or all of them, as ranges."""
    size = snapshot.block_size
    return tuple(Range(run.first * size, (run.last + 1) * size) for run in snapshot.blocks if state in ("", run.state))


def _region(decision: dict[str, Any]) -> tuple[Range, ...]:
    return tuple(parse_range(text) for text in decision["safe_region"]["ranges"])


def _exceptions(decision: dict[str, Any]) -> tuple[Override, ...]:
    return tuple(
        Override(
            parse_range(item["range"]) if item["range"] else None,
            int(item["node"]), str(item["driver"]), bool(item["hold"]), str(item["zone"]),
        )
        for item in decision.get("exceptions", [])
    )  # fmt: skip


def read(root: str) -> Standing:
    """Return the decision that stands on the machine below `root`.

    Raises:
        NoDecision: there is no record, or it cannot be understood.
    """
    path = os.path.join(root, record.RECORD)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise NoDecision(
            f"{path}: no decision was recorded in this boot: safemem did not run in the initramfs"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise NoDecision(f"{path}: {getattr(error, 'strerror', None) or 'not text'}".lower()) from None
    document = parse_record(text, path)
    then = reader.snapshot_from_text(text, path)
    watched, problem = None, ""
    try:
        watched = incidents.read(root)
    except incidents.Unreadable as error:
        problem = str(error)
    return Standing(
        document["decision"], document["result"], then, probe.read_snapshot(root), _releases(root), document["account"], watched, problem,
        crashkernel.forbidden(root),
    )  # fmt: skip


def parse_record(text: str, path: str) -> dict[str, Any]:
    """Return the record of a decision, with what every reader of it relies on. Raises NoDecision."""
    try:
        reader.snapshot_from_text(text, path)
        document: dict[str, Any] = json.loads(text)
        decision = document["decision"]
        document["result"]
        for key in ("action", "rule", "message", "plan", "zone", "policy", "facts", "warnings"):
            decision[key]
        _region(decision), _exceptions(decision)
        document["account"] = [
            {**item, "kind": str(item["kind"]), "range": str(parse_range(item["range"])), "bytes": int(item["bytes"])}
            for item in document.get("account", [])
        ]
    except reader.Invalid as error:
        raise NoDecision(str(error)) from None
    except (KeyError, TypeError, ValueError):
        raise NoDecision(f"{path}: this is a capture, not the record of a decision") from None
    return document


def _releases(root: str) -> list[dict[str, Any]]:
    path = os.path.join(root, RELEASES)
    try:
        with open(path, encoding="utf-8") as file:
            return parse_releases(json.load(file))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise NoDecision(
            f"{path}: what was released by hand cannot be read: move the file away and release anew"
        ) from None


def parse_releases(found: Any) -> list[dict[str, Any]]:
    """Return what was released by hand. Raises ValueError, KeyError, TypeError or AttributeError."""
    return [
        {
            "time": int(item["time"]),
            "reason": str(item["reason"]),
            "ranges": [str(parse_range(text)) for text in item["ranges"]],
            "state": _STATES[item.get("state", "done")],
            "forced": bool(item.get("forced", False)),
        }
        for item in found
    ]


def unfinished(releases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the releases that were not carried out whole, neither by themselves nor by a later one."""
    found = []
    for index, item in enumerate(releases):
        later = [
            parse_range(text) for more in releases[index + 1 :] if more["state"] == "done" for text in more["ranges"]
        ]
        areas = map(parse_range, item["ranges"])
        if item["state"] != "done" and not all(
            any(r.start <= area.start and area.end <= r.end for r in later) for area in areas
        ):
            found.append(item)
    return found
