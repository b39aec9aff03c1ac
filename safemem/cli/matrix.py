# SPDX-License-Identifier: MIT
"""`safemem matrix`: which of several kernels can hand over to which."""

from __future__ import annotations

import click

from safemem.boot.model import Refused
from safemem.cli import codes
from safemem.cli.codes import Code
from safemem.cli.common import InputError, formats
from safemem.outgoing import image, pairs
from safemem.outgoing.kernel import Kernel
from safemem.render import pairs as render


@click.command(short_help="Show which kernels can hand over to which.")
@click.argument("kernels", metavar="KERNEL...", nargs=-1, required=True)
@formats("svg")
@click.pass_context
@codes.ends(
    done="every kernel can hand over to every other", ended="some cannot", unknown="some cannot be told",
    invalid="an image cannot be read",
)  # fmt: skip
def matrix(context: click.Context, kernels: tuple[str, ...], form: str) -> None:
    """Show which of these kernel images can hand over to which, with KHO and LUO on in each.

    It reads images only, so it can run anywhere. What a machine really hands over, its policy, initrd and
    command line are the business of `safemem preflight`.

    \b
    Example: safemem matrix /boot/vmlinuz-* --format svg > kernels.svg
    """
    found = pairs.pairs(_read(kernels))
    verdicts = {pair.verdict for pair in found.pairs}
    code = Code.DONE
    if verdicts != {"compatible"}:
        code = Code.ENDED if "incompatible" in verdicts else Code.UNKNOWN
    if form == "json":
        click.echo(render.pairs_json(found, code))
    elif form == "svg":
        click.echo(render.pairs_svg(found))
    else:
        click.echo(render.pairs_text(found))
    context.exit(code)


def _read(paths: tuple[str, ...]) -> tuple[Kernel, ...]:
    """Return every kernel in these images. Raises InputError for all that cannot be read at once."""
    found: list[Kernel] = []
    faults: list[str] = []
    for path in paths:
        try:
            found += image.read(path)
        except Refused as error:
            faults += error.lines or str(error).split("\n")
    if faults:
        raise InputError("\n".join(faults))
    return tuple(found)
