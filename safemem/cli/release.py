# SPDX-License-Identifier: MIT
"""`safemem release`: end a hold by hand."""

import sys
import time

import click

from safemem import apply, standing
from safemem.cli.common import ROOT, InputError, read_standing
from safemem.model import ZONES, parse_range, size_text


@click.command(short_help="End a hold by hand, wholly or in part.")
@click.argument("ranges", metavar="[START-END]...", nargs=-1)
@click.option("--reason", metavar="TEXT", required=True, help="Why; it is recorded.")
@click.option("--zone", type=click.Choice(ZONES), help="Zone for the blocks; default: the decision's.")
@ROOT
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
    found = read_standing(context, root)
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
