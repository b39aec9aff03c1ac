# SPDX-License-Identifier: MIT
"""`safemem doctor`: what stands against the policy on this machine."""

from __future__ import annotations

import json

import click

from safemem.cli.common import ROOT
from safemem.host import doctor

_SEVERITY_COLOUR = {"severe": "red", "warning": "yellow", "note": "cyan"}


@click.command("doctor", short_help="Find what would defeat the policy on this machine.")
@ROOT
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
