# SPDX-License-Identifier: MIT
"""`safemem matrix`: which of several kernels can hand over to which."""

from __future__ import annotations

import click

from safemem.cli import codes
from safemem.cli.codes import Code
from safemem.cli.common import formats
from safemem.outgoing import image, pairs
from safemem.render import pairs as render


@click.command(short_help="Show which kernels can hand over to which.")
@click.argument("kernels", metavar="KERNEL...", nargs=-1, required=True)
@formats("svg")
@click.pass_context
@codes.ends(
    done="every kernel can hand over to every other", ended="some cannot", unknown="of some it cannot be told",
    invalid="an image cannot be read",
)  # fmt: skip
def matrix(context: click.Context, kernels: tuple[str, ...], form: str) -> None:
    """Show which of these kernel images can hand over to which, with KHO and LUO on in each.

    It reads images only, so it can run anywhere. What a machine really hands over, its policy, initrd and
    command line are the business of `safemem preflight`.

    \b
    Example: safemem matrix /boot/vmlinuz-* --format svg > kernels.svg
    """
    found = pairs.pairs(tuple(kernel for path in kernels for kernel in image.read(path)))
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
