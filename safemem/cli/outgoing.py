# SPDX-License-Identifier: MIT
"""`safemem handover-args`: what the outgoing system does before the kexec."""

import json

import click

from safemem import handover
from safemem.cli.common import ROOT
from safemem.model import size_text


@click.command("handover-args", short_help="Print what to append to the next kernel's command line.")
@ROOT
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
