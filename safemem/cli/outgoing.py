# SPDX-License-Identifier: MIT
"""`safemem handover-args` and `safemem layout`: what is done before the kexec, and before the boot."""

from __future__ import annotations

import json
import sys

import click

from safemem.boot import handover_args as handover
from safemem.boot.printable import printable
from safemem.boot.ranges import size_text
from safemem.cli import codes
from safemem.cli.common import FORMAT, ROOT
from safemem.outgoing import layout, nextkernel


@click.command("handover-args", short_help="Print what to append to the next kernel's command line.")
@ROOT
@click.option("--kernel", metavar="IMAGE", default="", help="The next kernel. Default: one as large as this one.")
@click.option("--initrd", metavar="FILE", default="", help="Its initrd. Default: one as large as this boot's.")
@click.option("--kexec-command", "whole", is_flag=True, help="Print the whole kexec command; needs --kernel.")
@click.option("--explain", is_flag=True, help="Say how much of memory the guard covers, what stays open and why.")
@FORMAT
@codes.ends(done="done", failure="no guard would work here")
def handover_args(root: str, kernel: str, initrd: str, whole: bool, explain: bool, form: str) -> None:
    """Print guard, safe region and hold for the next kernel, computed from this kernel's scratch areas.

    Run it right before the kexec: scratch areas move at each cold boot.
    """
    if whole and not kernel:
        raise click.UsageError("--kexec-command needs --kernel IMAGE")
    advice = handover.advise(root, kernel, initrd, nextkernel.has_kho(kernel) if kernel else None)
    command = handover.kexec_command(advice, kernel, initrd) if kernel and (whole or form == "json") else None
    for note in advice.notes:
        click.echo(f"safemem: {printable(note)}", err=True)
    if form == "json":
        document = {
            "schema": 1, "kind": "handover-args", "arguments": list(advice.arguments), "guard": str(advice.guard),
            "kexec_command": command, "notes": list(advice.notes),
            "bytes": {"memory": advice.memory, "guarded": advice.guarded, "scratch": advice.safe, "open": advice.open},
            "open": [
                {"range": str(area), "bytes": area.size, "why": why} for area, why in advice.left
            ],
        }  # fmt: skip
        click.echo(json.dumps(document, indent=1))
        return
    text = command if command and whole else " ".join(advice.arguments)
    # A shell takes it as it is; nobody at a terminal needs this kernel's command line to act on it.
    click.echo(printable(text) if sys.stdout.isatty() else text)
    if explain:
        for what, amount in (("guarded", advice.guarded), ("scratch", advice.safe), ("open", advice.open)):
            click.echo(
                f"  {what:<8} {size_text(amount):>10}  {amount / advice.memory:.0%} of the memory that firmware gives",
                err=True,
            )
        for area, why in advice.left:
            click.echo(f"  open     {size_text(area.size):>10}  {area}: {printable(why)}", err=True)


@click.command("layout", short_help="Print what to append to the boot loader's command line.")
@ROOT
@FORMAT
@codes.ends(done="done", failure="no layout leaves anything to guard")
def layout_command(root: str, form: str) -> None:
    """Print the size of the scratch areas with which one guard covers most of this machine's memory.

    It goes on the boot loader's command line, and counts from the next cold boot on: a kernel that
    accepts a handover keeps its predecessor's areas.
    """
    found = layout.advise(root)
    if form == "json":
        document = {
            "schema": 1, "kind": "layout", "argument": found.argument, "memory": found.memory,
            "now": found.now.guarded if found.now else 0, "now_reason": found.now_reason, "after": found.after, "least": found.least,
            "nodes": found.nodes, "node": found.node if found.node >= 0 else None, "notes": list(found.notes),
        }  # fmt: skip
        click.echo(json.dumps(document, indent=1))
        return
    for note in found.notes:
        click.echo(f"safemem: {printable(note)}", err=True)
    click.echo(found.argument)
    now = f"none: {printable(found.now_reason)}"
    if found.now:
        now = f"{size_text(found.now.guarded)}, {found.now.guarded / found.memory:.0%} of {size_text(found.memory)}"
    click.echo(f"  one guard covers now    {now}", err=True)
    click.echo(
        f"  with it                 {size_text(found.after)}, {found.after / found.memory:.0%}; at least"
        f" {size_text(found.least)}, where KASLR has put that boot's kernel in the way",
        err=True,
    )
    if found.nodes > 1 and found.node >= 0:
        click.echo(
            f"  a guard keeps to one node, here {found.node}: what must not be lost belongs there, such as by"
            f" `numactl --membind={found.node}`",
            err=True,
        )
