# SPDX-License-Identifier: MIT
"""`safemem status`: the decision that stands in this boot."""

import json
import time

import click

from safemem import render, standing
from safemem.cli.common import ROOT, read_standing
from safemem.model import Range, size_text


@click.command(short_help="Show what was decided in this boot, and what is held.")
@ROOT
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def status(context: click.Context, root: str, form: str) -> None:
    """Show what was decided in this boot and why, what is held, and what has changed since.

    Exit code: 0 all memory may be used, 4 memory is held back, 64 the decision is only partly in
    force, 6 there is no decision.
    """
    found = read_standing(context, root)
    if form == "json":
        click.echo(json.dumps(_json(found), indent=1))
    else:
        click.echo("\n".join(_text(found)))
    context.exit(found.exit_code)


def _json(found: standing.Standing) -> "dict[str, object]":
    size = found.now.block_size
    return {
        "schema": 1, "kind": "status", "exit_code": found.exit_code, "decision": found.decision, "result": found.result,
        "held": [{"range": str(Range(run.first * size, (run.last + 1) * size)), "bytes": run.number * size} for run in found.held],
        "guard": str(found.now.guard) if found.now.guard else None,
        "onlined_by_others": [str(area) for area in found.loose],
        "releases": found.releases,
    }  # fmt: skip


def _text(found: standing.Standing) -> "list[str]":
    decision, size = found.decision, found.now.block_size
    handover = found.then.facts["handover"]
    lines = [
        f"{render.action_text(decision['action'])}  {decision['message']}",
        "",
        f"policy    {decision['policy']['name']}  {decision['policy']['digest'][:12]}",
        f"rule      {decision['rule']}",
        f"handover  {handover.value}: {handover.reason or handover.source}",
    ]
    if decision.get("enter"):
        lines.append(f"enter     {decision['enter']}")
    for run in found.held:
        area = Range(run.first * size, (run.last + 1) * size)
        lines.append(
            f"held      {area}  {size_text(area.end - area.start)}  blocks {run.first}-{run.last}: never used in this boot"
        )
    if found.now.guard:
        guard = found.now.guard
        lines.append(f"guarded   {guard}  {size_text(guard.end - guard.start)}: never used in this boot")
    result = found.result
    if result is None:
        lines.append("applied   not finished: the boot program did not complete its record")
    elif result.get("dry_run"):
        lines.append("applied   nothing: this was a dry run")
    else:
        lines.append(f"applied   {size_text(result['bytes_onlined'])} of {size_text(result['bytes_wanted'])} onlined")
        lines += [f"problem   {text}" for text in result["problems"]]
    lines += [f"warning   {text}" for text in decision["warnings"]]
    lines += [f"changed   {area} was held and is online now: somebody else did that" for area in found.loose]
    for item in found.releases:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(item["time"]))
        lines.append(f"released  {', '.join(item['ranges'])} at {when} UTC: {item['reason']}")
    return lines
