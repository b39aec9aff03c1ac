# SPDX-License-Identifier: MIT
"""`safemem doctor`: what stands against the policy on this machine."""

from __future__ import annotations

import json

import click

from safemem.cli import codes
from safemem.cli.codes import Code
from safemem.cli.common import FORMAT, ROOT
from safemem.host import doctor
from safemem.render.text import clean, plural

_SEVERITY_COLOUR = {"severe": "red", "warning": "yellow", "note": "cyan"}


@click.command("doctor", short_help="Find what would defeat the policy on this machine.")
@ROOT
@FORMAT
@click.pass_context
@codes.ends(done="nothing severe", failure="something severe")
def doctor_command(context: click.Context, root: str, form: str) -> None:
    """Find everything on this machine that would defeat or weaken the policy. Changes nothing."""
    found = doctor.examine(root)
    severe = sum(item.severity == "severe" for item in found)
    if form == "json":
        document = {"schema": 1, "kind": "doctor", "findings": [item._asdict() for item in found]}
        click.echo(json.dumps(document, indent=1))
    else:
        for item in clean(found):
            severity = click.style(item.severity, fg=_SEVERITY_COLOUR[item.severity], bold=True)
            click.echo(f"{severity}: {item.message} [{item.code}]")
            click.echo(f"    seen: {item.evidence}")
            if item.remedy:
                click.echo(f"    help: {item.remedy}")
        count = f"{plural(len(found), 'finding')}, {severe} severe"
        click.echo(count if found else "nothing stands in the policy's way")
    context.exit(Code.FAILURE if severe else Code.DONE)
