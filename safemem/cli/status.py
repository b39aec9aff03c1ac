# SPDX-License-Identifier: MIT
"""`safemem status`, `previous`, `keep` and `metrics`: the decision of this boot, and what is left of the one before."""

from __future__ import annotations

import os

import click

from safemem.boot.files import reason
from safemem.boot.model import Refused
from safemem.boot.record import RECORD
from safemem.cli import codes
from safemem.cli.common import FORMAT, ROOT, write_whole
from safemem.host import history, journal, metrics, standing
from safemem.host import previous as previous_boot
from safemem.realroot import maintenance
from safemem.render import status as render

_ENDS = {
    "done": "all memory may be used",
    "held": "memory is held back",
    "ended": "panic, reboot or halt was decided",
    "partly": "the decision is only partly in force",
    "unknown": "there is no decision",
}


@click.command(short_help="Show what was decided in this boot, and what is held.")
@ROOT
@FORMAT
@click.option("--previous", is_flag=True, help="As `safemem previous`.")
@click.option("--prometheus", metavar="FILE", help="As `safemem metrics -o FILE`.")
@click.option("--keep", is_flag=True, help="As `safemem keep`.")
@click.pass_context
@codes.ends(**_ENDS)
def status(context: click.Context, root: str, form: str, previous: bool, prometheus: str | None, keep: bool) -> None:
    """Show what was decided in this boot and why, what is held, and what has changed since."""
    if previous:
        if prometheus or keep:
            raise click.UsageError("--previous cannot be combined with --prometheus or --keep")
        context.invoke(previous_command, root=root, form=form)
    if keep:
        _keep(root)
    found = _measured(root, prometheus) if prometheus else standing.read(root)
    if keep:
        _tell_journal(root, found)
    code = codes.of(found.verdict)
    if not (prometheus or keep):
        before, ways = previous_boot.unfinished_before(root), maintenance.ways()
        click.echo(render.status_json(found, code) if form == "json" else render.status_text(found, before, ways))
    context.exit(code)


@click.command("previous", short_help="Show the boot before: its record, or its last words.")
@ROOT
@FORMAT
@click.pass_context
@codes.ends(**{**_ENDS, "unknown": "nothing is known of it"})
def previous_command(context: click.Context, root: str, form: str) -> None:
    """Show how the boot before this one ended: its record from the history of boots, or its last words from pstore."""
    found = previous_boot.read(root)
    code = codes.of(found.verdict)
    if form == "json":
        click.echo(render.previous_json(found, code))
    elif found.ending or found.kept:
        click.echo(render.previous_text(found))
    else:
        raise standing.NoDecision(
            f"nothing is known of an earlier boot: none is in {history.FOLDER}, and pstore has no last words of one"
        )
    context.exit(code)


@click.command("keep", short_help="Keep the record in the history of boots and the journal.")
@ROOT
@click.pass_context
@codes.ends(failure="the record is not kept", **_ENDS)
def keep_command(context: click.Context, root: str) -> None:
    """Keep the record of this boot for the next one, tell the journal what was decided, and print nothing."""
    _keep(root)
    found = standing.read(root)
    _tell_journal(root, found)
    context.exit(codes.of(found.verdict))


@click.command("metrics", short_help="Write the metrics of this boot for node_exporter.")
@ROOT
@click.option("--output", "-o", metavar="FILE", required=True, help="File to write.")
@click.pass_context
@codes.ends(**_ENDS)
def metrics_command(context: click.Context, root: str, output: str) -> None:
    """Write the decision of this boot as metrics for node_exporter; that there is none is a metric as well."""
    context.exit(codes.of(_measured(root, output).verdict))


def _keep(root: str) -> None:
    path = os.path.join(root, RECORD)
    try:
        history.keep(root)
        previous_boot.note_seen(root)
    except OSError as error:
        if not os.path.exists(path):
            return  # there is nothing to keep, which whoever reads the record says
        why = reason(error, "cannot be written")
        raise Refused(f"{error.filename or path}: the record is not kept: {why}") from None


def _tell_journal(root: str, found: standing.Standing) -> None:
    journal.send(root, journal.fields(found, codes.of(found.verdict)))
    for item in previous_boot.unfinished_before(root):
        journal.send(root, journal.warning(render.unfinished_text(item)))
    if found.judged and (found.judged.forced or found.judged.same is False):
        for line in render.judged_text(found.judged):
            journal.send(root, journal.warning(line.split(maxsplit=1)[1]))


def _measured(root: str, path: str) -> standing.Standing:
    """Write the metrics, also of a boot without a decision, and return the decision. Raises NoDecision."""
    mode = 0o644  # node_exporter runs as a user of its own
    try:
        found = standing.read(root)
    except standing.NoDecision:
        write_whole(path, metrics.text(None).encode(), mode)
        raise
    write_whole(path, metrics.text(found).encode(), mode)
    return found
