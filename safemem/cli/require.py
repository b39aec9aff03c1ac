# SPDX-License-Identifier: MIT
"""`safemem require`: what the targets for services that run guests ask before they are reached."""

from __future__ import annotations

import click

from safemem.cli import codes
from safemem.cli.common import ROOT
from safemem.host import required, standing


@click.command(short_help="Ask whether a service that needs memory may start.")
@ROOT
@click.argument("form", metavar="FORM", type=click.Choice([*required.FORMS]))
@click.pass_context
@codes.ends(
    done="this boot is so",
    failure="no handover was accepted",
    held="memory is held back",
    ended="panic, reboot or halt was decided",
    partly="the decision is only partly in force",
    unknown="there is no decision",
)
def require(context: click.Context, root: str, form: str) -> None:
    """Ask whether this boot is what FORM says; if it is not, say why.

    \b
    decided   memory has been decided on, and the decision is in force
    all       the same, and all memory may be used
    accepted  the same as `decided`, and a handover was accepted

    Services that run guests have it asked by safemem-decided.target, safemem-decided-all.target or
    safemem-decided-accepted.target, which they require and come after.
    """
    lack = required.lacks(standing.read(root), form)
    if lack:
        click.echo(f"safemem: required `{form}`: {lack.text}", err=True)
        context.exit(codes.of(lack.kind))
