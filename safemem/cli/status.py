# SPDX-License-Identifier: MIT
"""`safemem status`: the decision that stands in this boot, and what is left of the boot before it."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import click

from safemem.boot import account, record
from safemem.boot.ranges import Range, size_text
from safemem.cli.common import ROOT, write_whole
from safemem.host import history, incidents, journal, metrics, standing, suspects
from safemem.host import previous as evidence
from safemem.realroot import maintenance
from safemem.render import decision as render


@click.command(short_help="Show what was decided in this boot, and what is held.")
@ROOT
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--previous", is_flag=True, help="Show the boot before this one instead: its record, or its last words.")
@click.option("--prometheus", metavar="FILE", help="Write the metrics to FILE for node_exporter, and print nothing.")
@click.option("--keep", is_flag=True, help="Keep the record in the history of boots and the journal; print nothing.")
@click.pass_context
def status(context: click.Context, root: str, form: str, previous: bool, prometheus: str | None, keep: bool) -> None:
    """Show what was decided in this boot and why, what is held, and what has changed since.

    Exit code: 0 all memory may be used, 4 memory is held back, 5 the boot ended in panic, reboot or
    halt, 64 the decision is only partly in force, 6 there is no decision.
    """
    if previous:
        if prometheus or keep:
            raise click.UsageError("--previous cannot be combined with --prometheus or --keep")
        _previous(context, root, form)
    if keep:
        _keep(root)
    try:
        found = standing.read(root)
    except standing.NoDecision as error:
        if prometheus:
            _write(prometheus, metrics.text(None))
        click.echo(f"safemem: {error}", err=True)
        context.exit(6)
    if prometheus:
        _write(prometheus, metrics.text(found))
    if keep:
        journal.send(root, journal.fields(found))
        for text in _unfinished_before(root):
            journal.send(root, journal.warning(text))
    if not (prometheus or keep):
        click.echo(
            json.dumps(_json(found), indent=1) if form == "json" else "\n".join(_text(found, _unfinished_before(root)))
        )
    context.exit(found.exit_code)


def _keep(root: str) -> None:
    path = os.path.join(root, record.RECORD)
    try:
        history.keep(root)
    except FileNotFoundError:
        if os.path.exists(path):
            raise
    except OSError as error:
        raise click.ClickException(
            f"{error.filename or path}: the record is not kept: {(error.strerror or 'cannot be written').lower()}"
        ) from None


def _write(path: str, text: str) -> None:
    write_whole(path, text.encode(), 0o644)  # node_exporter runs as a user of its own


def _json(found: standing.Standing) -> dict[str, object]:
    return {
        "schema": 1, "kind": "status", "exit_code": found.exit_code, "decision": found.decision, "result": found.result,
        "held": _sizes(found.held),
        "taken_offline": _sizes(found.used),
        "guard": str(found.guard) if found.guard else None,
        "account": found.account,
        "totals": found.totals,
        "overrides": list(found.then.overrides),
        "cmdline_safe": [str(area) for area in found.then.cmdline_safe],
        "arrived": [{"range": str(area), "state": state} for area, state in found.arrived],
        "onlined_by_others": [str(area) for area in found.loose],
        "watch": incidents.to_json(found.watched) if found.watched else None,
        "releases": found.releases,
    }  # fmt: skip


def _sizes(areas: tuple[Range, ...]) -> list[dict[str, object]]:
    return [{"range": str(area), "bytes": area.size} for area in areas]


def _unfinished_before(root: str) -> list[str]:
    """Return what the boot before began to release and did not finish; a history that cannot be read says nothing."""
    try:
        folder = history.previous(root)
        releases = evidence.kept(folder).releases if folder else []
    except OSError:
        return []
    return [
        f"in the boot before, a release of {', '.join(item['ranges'])} was begun and not finished: {item['reason']}"
        for item in standing.unfinished(releases)
    ]


def _text(found: standing.Standing, before: list[str]) -> list[str]:
    decision, size = found.decision, found.now.block_size
    lines = _why(decision)
    lines += [f"cmdline   {_ARGUMENTS.get(text, f'safemem.{text}')}" for text in found.then.overrides]
    if found.then.cmdline_safe:
        lines.append(f"cmdline   safemem.safe={','.join(map(str, found.then.cmdline_safe))}")
    for area in found.held:
        lines.append(
            f"held      {area}  {size_text(area.size)}  blocks {area.start // size}-{area.end // size - 1}: never used in this boot"
        )
    for area in found.used:
        lines.append(
            f"offline   {area}  {size_text(area.size)}: was online in this boot, so what was in it may be lost"
        )
    if found.guard:
        guard = found.guard
        lines.append(f"guarded   {guard}  {size_text(guard.size)}: never used in this boot")
    lines += [_share(item) for item in found.account if item["kind"] in _TOUCHED.get(decision["action"], ())]
    if found.totals:
        lines.append(f"memory    {account.totals_text(found.totals)}")
    lines += _applied(found.result)
    lines += [f"warning   {text}" for text in decision["warnings"]]
    lines += [f"arrived   {area}  {size_text(area.size)}, {state}" for area, state in found.arrived]
    lines += [f"changed   {area} was held and is online now: somebody else did that" for area in found.loose]
    lines += _watched(found)
    if decision.get("enter") == "maintenance":
        lines += [f"next    {line}" for line in maintenance.ways()]
    lines += ["final     the policy says so: `release` needs --force"] if decision.get("final") else []
    return lines + _released(found.releases) + [f"before    {text}" for text in before]


def _watched(found: standing.Standing) -> list[str]:
    seen = found.watched
    if seen is None:
        return [f"problem   {found.problem}"] if found.problem else []
    lines = [
        f"watch     held memory was found online {_times(seen.incidents)} ({size_text(seen.onlined)}), {size_text(seen.reverted)}"
        f" taken offline again; arrivals onlined {_times(seen.bursts)} ({size_text(seen.applied)}); events lost {_times(seen.lost)}"
    ]
    for item in seen.last[-1:]:
        lines.append(f"who       {_utc(item.time)}, {', '.join(map(str, item.ranges))}: {suspects.text(item.suspects)}")
    return lines


def _times(number: int) -> str:
    return f"{number} time{'s' * (number != 1)}"


#: As on the command line; whether they count is in the warnings, and the decision shows it.
_ARGUMENTS = {"off": "safemem=off", "dry-run": "safemem.dry_run"}
#: What is listed range by range; after `online-all`, everything may be used and one line says so.
_TOUCHED = {"online-safe": ("quarantined", "exposed")}


def _share(item: dict[str, Any]) -> str:
    what = item.get("why") or "was in use, and still may be"
    if item["kind"] == "quarantined":
        seconds = item.get("seconds_in_use")
        what = f"in use for {'a time' if seconds is None else f'{seconds} s'}, then taken offline"
    return f"{item['kind']:<9} {item['range']}  {size_text(item['bytes'])}: {what}"


def _why(decision: dict[str, Any]) -> list[str]:
    handover = decision["facts"].get("handover", {})
    lines = [
        f"{render.action_text(decision['action'])}  {decision['message']}",
        "",
        f"policy    {decision['policy']['name']}  {decision['policy']['digest'][:12]}",
        f"rule      {decision['rule']}",
        f"handover  {handover.get('value', 'unknown')}: {handover.get('reason') or handover.get('source') or 'not recorded'}",
    ]
    return lines + ([f"enter     {decision['enter']}"] if decision.get("enter") else [])


def _applied(result: dict[str, Any] | None) -> list[str]:
    if result is None:
        return ["applied   not finished: the boot program did not complete its record"]
    if result.get("dry_run"):
        return ["applied   nothing: this was a dry run"]
    done, wanted = (size_text(result.get(key, 0)) for key in ("bytes_onlined", "bytes_wanted"))
    return [f"applied   {done} of {wanted} onlined"] + [f"problem   {text}" for text in result.get("problems", [])]


def _released(releases: list[dict[str, Any]]) -> list[str]:
    return [
        f"released  {', '.join(item['ranges'])}{_RELEASE_STATES[item['state']]}{' (forced)' * item['forced']}"
        f" at {_utc(item['time'])}: {item['reason']}"
        for item in releases
    ]


_RELEASE_STATES = {"begun": " (begun, not finished)", "partly": " (in part)", "done": ""}


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _previous(context: click.Context, root: str, form: str) -> None:
    try:
        found = evidence.previous(root)
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {(error.strerror or 'cannot be read').lower()}") from None
    if form == "json":
        click.echo(
            json.dumps(
                {
                    "schema": 1, "kind": "previous", "exit_code": found.exit_code,
                    "ending": found.ending._asdict() if found.ending else None,
                    "record": found.kept._asdict() if found.kept else None,
                },
                indent=1,
            )
        )  # fmt: skip
    elif found.ending or found.kept:
        click.echo("\n".join(_ending_text(found)))
    else:
        click.echo(
            f"safemem: nothing is known of an earlier boot: none is in {history.FOLDER}, and pstore has no last words of one",
            err=True,
        )
    context.exit(found.exit_code)


def _ending_text(found: evidence.Previous) -> list[str]:
    lines = []
    if found.ending:
        end = found.ending
        lines = [f"{render.action_text(end.action)}  {end.reason}", "", f"found     {end.file}, {_utc(end.time)}"]
        lines += [f"said      {line}" for line in end.lines]
    if found.kept:
        kept = found.kept
        lines += ["", "the last boot on record, which may be the same one or one before it:", ""] if lines else []
        if kept.decision:
            lines += [*_why(kept.decision), *_applied(kept.result), *_released(kept.releases)]
        lines += [f"problem   {kept.problem}"] if kept.problem else []
        lines.append(f"kept      {kept.folder}")
    return lines
