# SPDX-License-Identifier: MIT
"""`safemem release`: end a hold by hand."""

from __future__ import annotations

import os
import signal
import sys
import time

import click

from safemem.boot import apply
from safemem.boot.model import ZONES, Refused
from safemem.boot.printable import printable
from safemem.boot.ranges import parse_range, size_text
from safemem.cli import codes
from safemem.cli.codes import Code
from safemem.cli.common import ROOT
from safemem.host import release as releasing
from safemem.host import standing
from safemem.realroot import storage


@click.command(short_help="End a hold by hand, wholly or in part.")
@click.argument("ranges", metavar="[START-END]...", nargs=-1)
@click.option(
    "--node", "nodes", metavar="N", type=click.IntRange(0), multiple=True, help="All of this NUMA node; repeatable."
)
@click.option("--reason", metavar="TEXT", required=True, help="Why; it is recorded.")
@click.option("--zone", type=click.Choice(ZONES), help="Zone for the blocks; default: the decision's.")
@click.option("--force", is_flag=True, help="Also where the policy calls the hold final; that is recorded too.")
@ROOT
@click.pass_context
@codes.ends(done="done", failure="the policy calls the hold final", partly="partly", unknown="there is no decision")
def release(
    context: click.Context,
    ranges: tuple[str, ...],
    nodes: tuple[int, ...],
    reason: str,
    zone: str | None,
    force: bool,
    root: str,
) -> None:
    """Online the held blocks that lie wholly inside the ranges or on the nodes, or all of them and the guards.

    The crash range is given back from its end: a range that covers its tail shrinks it. Gigantic pages go by whole
    nodes: by --node, or by a range that covers all of a node's. Your own, which hugepages= asks for, stay in the pool,
    and no program can map them before the pages of every node are released. The release can be interrupted, and run
    again: what is online already is left alone. Word of it is on the disk before anything is given back.
    """
    if not reason.strip() or not reason.isprintable():
        raise click.UsageError("--reason: say why in one line; it is recorded and goes to the kernel log")
    if ranges and nodes:
        raise click.UsageError("either ranges or --node, not both")
    try:
        areas = tuple(parse_range(text) for text in ranges)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    standing.read(root)  # where nothing was decided, nothing is locked either
    with storage.locked(os.path.join(root, storage.LOCK)):
        # Of two releases at once, the second sees what the first has done.
        found = standing.read(root)
        decision = found.decision
        planned = releasing.plan(found, areas, nodes, zone or decision.zone)
        if decision.rule.final and not force:
            raise Refused(
                f"rule `{decision.rule.name}` of policy `{decision.policy.name}` calls this hold final: nothing was"
                " released; --force does it anyway, and is recorded"
            )
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with click.progressbar(
                length=planned.size, label="releasing", file=sys.stderr, hidden=not sys.stderr.isatty()
            ) as bar:
                result, problems = releasing.carry_out(
                    root, found, planned, reason, time.time(), bar.update, forced=decision.rule.final
                )
        except KeyboardInterrupt:
            click.echo("safemem: interrupted: released in part; the same command goes on from there", err=True)
            context.exit(Code.PARTLY)
        finally:
            signal.signal(signal.SIGTERM, previous)
    click.echo(_released(planned, result))
    for text in planned.stays:
        click.echo(f"still held: {printable(text)}")
    for text in (*problems, *result.problems):
        click.echo(f"safemem: {printable(text)}", err=True)
    context.exit(Code.DONE if result.complete else Code.PARTLY)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _released(planned: releasing.Planned, result: apply.Result) -> str:
    parts = (
        [f"{size_text(result.onlined)} of {size_text(result.wanted)}"] if result.wanted or not result.complete else []
    )
    if planned.guard and result.complete:
        parts.append(f"{size_text(planned.guard)} of guard")
    return "released " + (" and ".join(parts) or "nothing: nothing was held any more")
