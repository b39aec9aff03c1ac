# SPDX-License-Identifier: MIT
"""`safemem doctor`: what stands against the policy on this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from safemem.cli import codes
from safemem.cli.codes import Code
from safemem.cli.common import FORMAT
from safemem.host import doctor
from safemem.host.catalogue import Finding
from safemem.render.text import clean, folded, plural, rooted, terminal_width

_SEVERITY_COLOUR = {"severe": "red", "warning": "yellow", "note": "cyan"}


@click.command("doctor", short_help="Find what would defeat the policy on this machine.")
@click.option(
    "--root",
    metavar="DIR",
    default="/",
    type=click.Path(exists=True, file_okay=False),
    help="The system below DIR: its /etc, /usr and /boot as well as /sys, /proc and /run. Commands are said as it needs them.",
)
@FORMAT
@click.pass_context
@codes.ends(done="nothing severe", failure="something severe")
def doctor_command(context: click.Context, root: str, form: str) -> None:
    """Find everything on this machine that would defeat or weaken the policy. Changes nothing."""
    root = str(Path(root))  # as whatever joins paths writes it
    found, proven = doctor.report(root)
    severe = sum(item.severity == "severe" for item in found)
    if form == "json":
        document = {
            "schema": 1, "kind": "doctor", "exit_code": Code.FAILURE if severe else Code.DONE,
            "findings": [item._asdict() for item in found], "proven": proven or None,
        }  # fmt: skip
        click.echo(json.dumps(document, indent=1))
    else:
        width = terminal_width()
        for item in clean([_named(item, root) for item in found]):
            severity = click.style(item.severity, fg=_SEVERITY_COLOUR[item.severity], bold=True)
            first, *rest = folded(f"{item.severity}: {item.message} [{item.code}]", width, "    ")
            click.echo("\n".join([severity + first.removeprefix(item.severity), *rest]))
            for line in (f"    seen: {item.evidence}", f"    help: {item.remedy}" if item.remedy else ""):
                if line:
                    click.echo("\n".join(folded(line, width, "          ")))
        count = f"{plural(len(found), 'finding')}, {severe} severe"
        click.echo(count if found else "nothing stands in the policy's way")
        if proven:
            click.echo("\n".join(folded(f"the policy of the next boot was proven {proven}", width, "    ")))
    context.exit(Code.FAILURE if severe else Code.DONE)


def _named(item: Finding, root: str) -> Finding:
    """Return a finding with each file as the machine itself names it, whatever leads to it from here."""
    base = f"{root.rstrip('/')}/"

    def own(text: str) -> str:
        return re.sub(rf"(?<![\w./-]){re.escape(base)}", "/", text) if base != "/" else text

    return item._replace(message=own(item.message), evidence=rooted(own(item.evidence)), remedy=own(item.remedy))
