# SPDX-License-Identifier: MIT
"""`safemem status`, `release` and `doctor`: the decision that stands in this boot, and what stands against it."""

import json
import sys
import time

import click

from safemem import apply, doctor, handover, render, standing
from safemem.cli.common import InputError, load_policy
from safemem.model import ZONES, Range, parse_range, size_text

_ROOT = click.option("--root", metavar="DIR", default="/", help="Look at the /sys, /proc and /run below DIR.")


def _read(context: click.Context, root: str) -> standing.Standing:
    try:
        return standing.read(root)
    except standing.NoDecision as error:
        click.echo(f"safemem: {error}", err=True)
        context.exit(6)


@click.command(short_help="Show what was decided in this boot, and what is held.")
@_ROOT
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def status(context: click.Context, root: str, form: str) -> None:
    """Show what was decided in this boot and why, what is held, and what has changed since.

    Exit code: 0 all memory may be used, 4 memory is held back, 64 the decision is only partly in
    force, 6 there is no decision.
    """
    found = _read(context, root)
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


@click.command(short_help="End a hold by hand, wholly or in part.")
@click.argument("ranges", metavar="[START-END]...", nargs=-1)
@click.option("--reason", metavar="TEXT", required=True, help="Why; it is recorded.")
@click.option("--zone", type=click.Choice(ZONES), help="Zone for the blocks; default: the decision's.")
@_ROOT
@click.pass_context
def release(context: click.Context, ranges: "tuple[str, ...]", reason: str, zone: "str | None", root: str) -> None:
    """Online the held blocks that lie wholly inside the ranges, or all of them and the guard.

    It can be interrupted, and run again: what is online already is left alone.

    Exit code: 0 done, 64 partly, 6 there is no decision.
    """
    if not reason.strip() or not reason.isprintable():
        raise click.UsageError("--reason: say why in one line; it is recorded and goes to the kernel log")
    try:
        areas = tuple(parse_range(text) for text in ranges)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    found = _read(context, root)
    what = standing.plan(found, areas, zone or found.decision["zone"])
    if not what.decision.steps and areas:
        raise InputError(f"nothing is held wholly inside {', '.join(map(str, areas))}; `safemem status` lists what is")
    with click.progressbar(
        length=what.blocks, label="onlining", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        try:
            result = standing.release(root, found, what, reason, time.time(), lambda: bar.update(apply.PROGRESS_EVERY))
        except OSError as error:
            raise click.ClickException(f"{error.filename}: {(error.strerror or 'cannot be written').lower()}") from None
    click.echo(f"released {size_text(result.onlined)} of {size_text(result.wanted)}" + _guard(what, result))
    for text in result.problems:
        click.echo(f"safemem: {text}", err=True)
    context.exit(0 if result.complete else 64)


def _guard(what: standing.Release, result: apply.Result) -> str:
    sizes = [step.size for step in what.decision.steps if step.op == "release-guard"]
    return f" and the guard, {size_text(sizes[0])}" if sizes and result.complete else ""


_SEVERITY_COLOUR = {"severe": "red", "warning": "yellow", "note": "cyan"}


@click.command("doctor", short_help="Find what would defeat the policy on this machine.")
@_ROOT
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def doctor_command(context: click.Context, root: str, form: str) -> None:
    """Find everything on this machine that would defeat or weaken the policy. Changes nothing.

    Exit code: 0 nothing severe, 1 something severe.
    """
    found = doctor.examine(root)
    severe = sum(finding.severity == "severe" for finding in found)
    if form == "json":
        click.echo(
            json.dumps({"schema": 1, "kind": "doctor", "findings": [finding._asdict() for finding in found]}, indent=1)
        )
    else:
        for finding in found:
            click.echo(
                f"{click.style(finding.severity, fg=_SEVERITY_COLOUR[finding.severity], bold=True)}: {finding.message} [{finding.code}]"
            )
            click.echo(f"    seen: {finding.evidence}")
            if finding.remedy:
                click.echo(f"    help: {finding.remedy}")
        click.echo(
            f"{len(found)} finding{'s' * (len(found) != 1)}, {severe} severe"
            if found
            else "nothing stands in the policy's way"
        )
    context.exit(1 if severe else 0)


@click.command("watch", short_help="Apply the standing decision to memory that arrives later.")
@click.option("--policy", "policy_file", metavar="POLICY", required=True, help="The policy of this boot, as a file.")
@_ROOT
@click.pass_context
def watch_command(context: click.Context, policy_file: str, root: str) -> None:
    """Watch for memory blocks that arrive, and apply the decision of this boot to them.

    Runs until it is told to stop; meant for the unit safemem-watch.service. Refuses a policy that is
    not the one that decided.
    """
    from safemem import logs, watch  # pyudev and structlog: for this command only

    policy = load_policy(policy_file)
    found = _read(context, root)
    decided = found.decision["policy"]["digest"]
    if policy.digest != decided:
        raise InputError(
            f"{policy_file}: digest {policy.digest[:12]}, but this boot was decided by {decided[:12]}: give the same policy"
        )
    logs.configure()
    try:
        watch.run(root, policy, found)
    except OSError as error:
        raise click.ClickException(f"the kernel's events cannot be had: {error.strerror or error}") from None
    except standing.NoDecision as error:
        raise click.ClickException(str(error)) from None


@click.command("handover-args", short_help="Print what to append to the next kernel's command line.")
@_ROOT
@click.option("--explain", is_flag=True, help="Say how much of memory the guard covers, and what stays open.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def handover_args(root: str, explain: bool, form: str) -> None:
    """Print guard, safe region and hold for the next kernel, computed from this kernel's scratch areas.

    Run it right before the kexec: scratch areas move at each cold boot.

    Exit code: 0 done, 1 no guard would work here.
    """
    try:
        advice = handover.advise(root)
    except handover.CannotSay as error:
        raise click.ClickException(str(error)) from None
    for note in advice.notes:
        click.echo(f"safemem: {note}", err=True)
    size = advice.guard.end - advice.guard.start
    if form == "json":
        document = {
            "schema": 1, "kind": "handover-args", "arguments": list(advice.arguments), "guard": str(advice.guard),
            "bytes": {"memory": advice.memory, "guarded": size, "scratch": advice.safe, "open": advice.open},
        }  # fmt: skip
        click.echo(json.dumps(document, indent=1))
        return
    click.echo(" ".join(advice.arguments))
    if explain:
        for what, amount in (("guarded", size), ("scratch", advice.safe), ("open", advice.open)):
            click.echo(
                f"  {what:<8} {size_text(amount):>10}  {amount / advice.memory:.0%} of the memory that firmware gives",
                err=True,
            )
