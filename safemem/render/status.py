# SPDX-License-Identifier: MIT
"""The decision that stands, and what is left of the boot before: as text and as JSON."""

from __future__ import annotations

import json

from safemem.boot import account, record
from safemem.boot.account import Share
from safemem.boot.model import UNKNOWN, Decision, Fact, Note, Pages
from safemem.boot.ranges import Range, size_text, without
from safemem.boot.record import Done
from safemem.host import incidents, reader, suspects
from safemem.host.judged import Judged
from safemem.host.previous import Previous
from safemem.host.reader import Release
from safemem.host.standing import Standing
from safemem.host.verdict import faults
from safemem.render.decision import action_text
from safemem.render.text import clean, fit, plural, rooted, sure, utc

#: As on the command line; whether they count is in the warnings, and the decision shows it.
_ARGUMENTS = {"off": "safemem=off", "dry-run": "safemem.dry_run"}
#: What is listed range by range; after `online-all`, everything may be used and one line says so.
_LISTED = {"online-safe": ("quarantined", "exposed")}
_RELEASE_STATES = {"begun": " (begun, not finished)", "partly": " (in part)", "done": ""}


def status_json(found: Standing, exit_code: int) -> str:
    """Return how this boot stands as JSON, schema 1."""
    document = {
        "schema": record.SCHEMA,
        "kind": "status",
        "exit_code": exit_code,
        "mode": found.mode,
        "decision": record.decision_to_json(found.decision),
        "result": _done_json(found.record.done),
        "held": _sizes(found.held),
        "taken_offline": _sizes(found.taken_offline),
        "guard": str(found.guard) if found.guard else None,
        "gigantic": [
            {**item._asdict(), "ranges": _sizes(item.ranges), "guarded": item in found.pages} for item in found.gigantic
        ],
        "account": account.to_json(found.record.account),
        "recorded_totals": found.recorded_totals,
        "totals": found.totals,
        "overrides": list(found.then.overrides),
        "cmdline_safe": [str(area) for area in found.then.cmdline_safe],
        "arrived": [{"range": str(area), "state": state} for area, state in found.arrived],
        "onlined_by_others": [str(area) for area in found.onlined_by_others],
        "let_go": [str(area) for area in found.let_go],
        "watch": incidents.to_json(found.watched) if found.watched else None,
        "releases": reader.releases_to_json(found.releases),
        "preflight": _judged_json(found.judged) if found.judged else None,
    }
    return json.dumps(document, indent=1)


def _judged_json(judged: Judged) -> dict[str, object]:
    return {
        "judged": list(judged.told),
        "running": judged.running or None,
        "same": judged.same,
        "could_tell": "cannot-tell" not in judged.flags,
        "forced": judged.forced,
        "override": judged.override._asdict() if judged.override else None,
        "problem": judged.problem or None,
    }


def _done_json(done: Done | None) -> dict[str, object] | None:
    return None if done is None else record.done_to_json(done)


def _sizes(areas: tuple[Range, ...]) -> list[dict[str, object]]:
    return [{"range": str(area), "bytes": area.size} for area in areas]


def status_text(found: Standing, before: tuple[Release, ...], ways: list[str]) -> str:
    """Return the outcome, then why, then what is held, then what has changed since.

    Args:
        found: this boot.
        before: the releases that the boot before this one left unfinished.
        ways: out of maintenance, one a line; they are shown in maintenance only.
    """
    found, before = clean(found), clean(before)
    decision = found.decision
    lines = [
        *_why(decision),
        *_asked(found),
        *(judged_text(found.judged) if found.judged else ()),
        *_offline(found),
        *map(_share, _listed(found)),
    ]
    if found.totals:
        lines.append(f"memory    {account.totals_text(found.totals)}")
    lines += _applied(found.record.done, faults(found.record))
    lines += [f"warning   {note}" for note in decision.warnings if note.code != "observes"]
    lines += [f"arrived   {area}  {size_text(area.size)}, {state}" for area, state in found.arrived]
    lines += [
        f"changed   {area} was held and is online now: somebody else did that" for area in found.onlined_by_others
    ]
    lines += [
        f"changed   {area}  {size_text(area.size)}: gigantic pages that guarded it are in programs' reach, or gone"
        for area in found.let_go
    ]
    lines += [f"problem   {text}" for text in found.unseen]
    lines += _watched(found)
    if decision.rule.enter == "maintenance" and found.mode == "enforce":
        lines += [f"next    {line}" for line in ways]
    if decision.rule.final and found.mode == "enforce":
        lines.append("final     the policy says so: `release` needs --force")
    lines += _released(found.releases)
    lines += [f"before    {unfinished_text(item)}" for item in before]
    return fit(rooted("\n".join(lines)))


def unfinished_text(item: Release) -> str:
    """Return that a release of the boot before this one was not finished."""
    areas = ", ".join(map(str, item.ranges))
    return f"in the boot before, a release of {areas} was begun and not finished: {item.reason}"


def judged_text(judged: Judged) -> list[str]:
    """Return what preflight said of this kernel before the kexec, and whether it is the one that runs."""
    running, lines = judged.running[:16], []
    if judged.same is False:
        told = " or ".join(judged.told)
        lines.append(f"warning   this is another kernel than preflight judged: build ID {running}, and not {told}")
    elif judged.problem:
        lines.append(f"judged    whether this kernel was judged before the kexec cannot be told: {judged.problem}")
    elif judged.same and not judged.forced:
        said = "was judged before the kexec: compatible"
        if "cannot-tell" in judged.flags:
            said = "was looked at before the kexec, which could not tell whether it is compatible"
        lines.append(f"judged    this kernel {said}; build ID {running}")
    if judged.forced:
        override = judged.override
        why = f"{override.reason} ({override.verdict}: {override.why})" if override else "the reason is not on record"
        lines.append(f"forced    the kexec that ended the boot before was against the verdict: {why}")
    return lines


def _why(decision: Decision) -> list[str]:
    handover = decision.facts.get("handover", Fact(UNKNOWN, ""))
    lines = [
        f"{action_text(decision.action)}  {decision.message}",
        "",
        f"policy    {decision.policy.name}  {decision.policy.digest[:12]}",
        f"rule      {decision.rule.name}",
        f"handover  {handover.value}{sure(decision.facts, 'handover')}: {handover.reason or handover.source or 'not recorded'}",
    ]
    guard = decision.facts.get("guard", Fact("none", ""))
    if guard.value != "none":  # a record of an older image may have none of it
        lines.append(f"guard     {guard.value}{sure(decision.facts, 'guard')}: {guard.reason or guard.source}")
    region = decision.facts.get("safe_region", Fact(UNKNOWN, ""))
    if decision.action == "online-safe" and region.value == "resolved":
        lines.append(f"region    resolved{sure(decision.facts, 'safe_region')}: {region.reason or region.source}")
    if decision.policy.accept_errors:
        lines.append(f"accepted  the policy was built in with errors: {', '.join(decision.policy.accept_errors)}")
    return [*lines, f"enter     {decision.rule.enter}"] if decision.rule.enter else lines


def _asked(found: Standing) -> list[str]:
    """Return what the kernel command line asked for."""
    lines = [f"cmdline   {_ARGUMENTS.get(text, f'safemem.{text}')}" for text in found.then.overrides]
    safe = ",".join(map(str, found.then.cmdline_safe))
    return [*lines, f"cmdline   safemem.safe={safe}"] if safe else lines


def _offline(found: Standing) -> list[str]:
    """Return what is out of use now."""
    size, lines = found.now.block_size, []
    for area in found.held:
        blocks = f"blocks {area.start // size}-{area.end // size - 1}"
        lines.append(f"held      {area}  {size_text(area.size)}  {blocks}: never used in this boot")
    for area in found.taken_offline:
        lost = "was online in this boot, so what was in it may be lost"
        lines.append(f"offline   {area}  {size_text(area.size)}: {lost}")
    if found.guard:
        lines.append(f"guarded   {found.guard}  {size_text(found.guard.size)}  crash range: never used in this boot")
    return [*lines, *(line for item in found.gigantic for line in _pages(item, found))]


def _pages(item: Pages, found: Standing) -> list[str]:
    """Return what is to be said of one node's gigantic pages."""
    there = item in found.pages
    said = "not reserved, so any program can map it" if not found.kept else "not certain where they are"
    clean = without(item.ranges, found.touched)
    kinds = [
        ("guarded", clean, "never used in this boot, but for the first 4 KiB of each"),
        ("offline", without(item.ranges, clean), "reserved again, after any program could map it: what was in it may be lost"),
    ] if there else [("exposed", item.ranges, said)]  # fmt: skip
    lines = [
        f"{kind:<9} {area}  {size_text(area.size)}  node {item.node},"
        f" {plural(area.size // item.size, 'gigantic page')}: {text}"
        for kind, areas, text in kinds
        for area in areas
    ]
    mapped = item.number - item.free
    if mapped:
        lines.append(f"exposed   {plural(mapped, 'gigantic page')} of node {item.node}: mapped by a program")
    return lines


def _listed(found: Standing) -> list[Share]:
    """Return what the record accounts for range by range, as far as it still is what it was."""
    kinds, shares = found.kinds, []
    for kind in _LISTED.get(found.decision.action, ()):
        then = [share for share in found.record.account if share.kind == kind]
        areas = tuple(Range(share.start, share.end) for share in then)
        place = 0
        for area in without(areas, without(areas, kinds[kind])):  # pieces of two shares stay apart
            while then[place].end <= area.start:
                place += 1
            shares.append(then[place]._replace(start=area.start, end=area.end))
    return sorted(shares, key=lambda share: share.start)


def _share(share: Share) -> str:
    why = share.why or "was in use, and still may be"
    if share.kind == "quarantined":
        seconds = "a time" if share.seconds < 0 else f"{share.seconds} s"
        why = f"in use for {seconds}, then taken offline"
    return f"{share.kind:<9} {Range(share.start, share.end)}  {size_text(share.size)}: {why}"


def _applied(done: Done | None, problems: tuple[Note, ...]) -> list[str]:
    """Return what was done, and `problems`: what the policy tolerates is none, and stands where memory is listed."""
    if done is None:
        return ["applied   not finished: the boot program did not complete its record"]
    if done.dry_run:
        return ["applied   nothing: this was a dry run"]
    if done.observed:
        onlined = f"{size_text(done.bytes_onlined)} of {size_text(done.bytes_wanted)} onlined"
        lines = ["observe   the policy only observes: nothing of this was done"]
        lines += [f"applied   {onlined}, as Linux alone would have"] if done.bytes_wanted else []
        return lines + [f"problem   {text}" for text in problems]
    lines = [f"applied   {size_text(done.bytes_onlined)} of {size_text(done.bytes_wanted)} onlined"]
    lines += [f"stopped   PCI {', '.join(done.quiesced)}: no bus mastering"] if done.quiesced else []
    return lines + [f"problem   {text}" for text in problems]


def _watched(found: Standing) -> list[str]:
    seen = found.watched
    if seen is None:
        return [f"problem   {found.problem}"] if found.problem else []
    times = {name: plural(getattr(seen, name), "time") for name in ("incidents", "bursts", "lost")}
    what = "held memory was found online" + (", or guarded memory in programs' reach," if found.then.gigantic else "")
    lines = [
        f"watch     {what} {times['incidents']} ({size_text(seen.onlined)}),"
        f" {size_text(seen.reverted)} taken offline again; arrivals onlined {times['bursts']}"
        f" ({size_text(seen.applied)}); events lost {times['lost']}"
    ]
    for item in seen.last[-1:]:
        lines.append(f"who       {utc(item.time)}, {', '.join(map(str, item.ranges))}: {suspects.text(item.suspects)}")
    return lines


def _released(releases: tuple[Release, ...]) -> list[str]:
    return [
        f"released  {', '.join(map(str, item.ranges))}{_nodes(item)}{_RELEASE_STATES[item.state]}{' (forced)' if item.forced else ''}"
        f" at {utc(item.time)}: {item.reason}"
        for item in releases
    ]


def _nodes(item: Release) -> str:
    return f" with the gigantic pages of node {' and '.join(map(str, item.nodes))}" if item.nodes else ""


def previous_json(found: Previous, exit_code: int) -> str:
    """Return what is known of the boot before as JSON, schema 1."""
    kept = found.kept
    document = {
        "schema": record.SCHEMA,
        "kind": "previous",
        "exit_code": exit_code,
        "ending": found.ending._asdict() if found.ending else None,
        "record": {
            "folder": kept.folder,
            "decision": record.decision_to_json(kept.record.decision) if kept.record else None,
            "result": _done_json(kept.record.done) if kept.record else None,
            "releases": reader.releases_to_json(kept.releases),
            "problem": kept.problem,
        }
        if kept
        else None,
    }
    return json.dumps(document, indent=1)


def previous_text(found: Previous) -> str:
    """Return the last words of the boot before, if it left any, then its record."""
    found = clean(found)
    lines, end, kept = [], found.ending, found.kept
    if end:
        lines = [f"{action_text(end.action)}  {end.reason}", "", f"found     {end.file}, {utc(end.time)}"]
        lines += [f"said      {line}" for line in end.lines]
    if kept:
        if end:
            lines += ["", "the last boot on record, which may be the same one or one before it:", ""]
        if kept.record:
            lines += [
                *_why(kept.record.decision),
                *_applied(kept.record.done, faults(kept.record)),
                *_released(kept.releases),
            ]
        if kept.problem:
            lines.append(f"problem   {kept.problem}")
        lines.append(f"kept      {kept.folder}")
    return fit(rooted("\n".join(lines)))
