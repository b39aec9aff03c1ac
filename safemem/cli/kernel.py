# SPDX-License-Identifier: MIT
"""`safemem kernel`: what a kernel image is, and what of a handover it speaks."""

from __future__ import annotations

import json

import click

from safemem.cli import codes
from safemem.cli.codes import Code
from safemem.cli.common import FORMAT
from safemem.outgoing import image
from safemem.render import kernel as render
from safemem.render.text import folded, terminal_width


@click.command("kernel", short_help="Show what a kernel image is, and which handovers it speaks.")
@click.argument("path", metavar="IMAGE")
@click.option("--root", metavar="DIR", default="/", help="Look for its configuration and its modules below DIR.")
@FORMAT
@click.pass_context
@codes.ends(
    done="what it speaks is known", invalid="no kernel, or damaged", unknown="whether it speaks of handovers is unknown"
)
def kernel_command(context: click.Context, path: str, root: str, form: str) -> None:
    """Show what a kernel image is: form, release, build ID, configuration, and the versions of KHO, LUO and handlers.

    Reads bzImage, EFI zboot, arm64 Image, ELF, and unified kernel images with all their profiles. Needs no root and
    changes nothing.

    \b
    Example: safemem kernel /boot/vmlinuz
    """
    found = image.read(path, root)
    code = Code.UNKNOWN if any("unknown" in (item.kho.value, item.luo.value) for item in found) else Code.DONE
    if form == "json":
        click.echo(json.dumps(render.document(found, code), indent=1))
    else:
        for line in render.lines(found):
            click.echo("\n".join(folded(line, terminal_width(), " " * 18)))
    context.exit(code)
