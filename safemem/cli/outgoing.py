# SPDX-License-Identifier: MIT
"""`safemem handover-args` and `safemem layout`: what is done before the kexec, and before the boot."""

from __future__ import annotations

import json
import sys

import click

from safemem.boot import handover_args as handover
from safemem.boot.ground import UNTOLD
from safemem.boot.model import Snapshot
from safemem.boot.printable import printable
from safemem.boot.ranges import size_text, total
from safemem.cli import codes
from safemem.cli.codes import Code
from safemem.cli.common import FORMAT, ROOT, InputError, reading
from safemem.host import reader
from safemem.outgoing import layout, nextkernel


@click.command("handover-args", short_help="Print what to append to the next kernel's command line.")
@ROOT
@click.option("--kernel", metavar="IMAGE", default="", help="The next kernel. Default: one as large as this one.")
@click.option("--initrd", metavar="FILE", default="", help="Its initrd. Default: one as large as this boot's.")
@click.option("--kexec-command", "whole", is_flag=True, help="Print the whole kexec command; needs --kernel.")
@click.option(
    "--systemctl-command",
    "systemctl",
    is_flag=True,
    help="Print the whole `systemctl kexec` command. systemd 261 boots with this line alone; 262 puts the boot entry's"
    " options before it, so the entry may ask for no huge pages of its own.",
)
@click.option(
    "--token",
    is_flag=True,
    help="Name the token that safemem-token.service holds: a kernel with such a policy proves by it that it accepted. Where"
    " no scratch areas can be read, it is printed without guards and safe region.",
)
@click.option("--explain", is_flag=True, help="Say what each guard covers, what stays open and why.")
@FORMAT
@codes.ends(done="done", failure="no guard would work here")
def handover_args(
    root: str, kernel: str, initrd: str, whole: bool, systemctl: bool, token: bool, explain: bool, form: str
) -> None:
    """Print guards, safe region and hold for the next kernel, computed from this kernel's scratch areas.

    Run it right before the kexec: scratch areas move at each cold boot.
    """
    if whole and not kernel:
        raise click.UsageError("--kexec-command needs --kernel IMAGE")
    if whole and systemctl:
        raise click.UsageError("--kexec-command and --systemctl-command exclude each other")
    named = handover.token(root) if token else ""
    try:
        advice = handover.advise(root, kernel, initrd, nextkernel.build(kernel) if kernel else UNTOLD, named)
    except handover.NoScratch as error:
        if not named:
            raise
        _alone(handover.token_alone(root, named, error, command=whole or systemctl, explain=explain), form)
        return
    command = handover.kexec_command(advice, kernel, initrd) if kernel and (whole or form == "json") else None
    if systemctl:
        command = handover.systemctl_command(advice)
    for note in (*advice.notes, *(() if whole or systemctl else advice.by_hand)):
        click.echo(f"safemem: {printable(note)}", err=True)
    if form == "json":
        guards = advice.guards
        document = {
            "schema": 1, "kind": "handover-args", "exit_code": Code.DONE, "arguments": list(advice.arguments),
            "guard": str(guards.range), "guard_node": guards.node, "page": guards.page,
            "pages": [
                {"node": item.node, "number": item.number, "own": item.own,
                 "ranges": [str(area) for area in item.ranges], "why_not": item.why_not or None}
                for item in guards.pages
            ],
            "kexec_command": None if systemctl else command, "systemctl_command": command if systemctl else None,
            "notes": [*advice.notes, *advice.by_hand],
            "bytes": {"memory": advice.memory, "guarded": advice.guarded, "scratch": advice.safe, "open": advice.open},
            "room": advice.room,
            "open": [
                {"range": str(left.range), "bytes": left.range.size, "node": left.node if left.node >= 0 else None,
                 "why": left.why}
                for left in advice.left
            ],
        }  # fmt: skip
        click.echo(json.dumps(document, indent=1))
        return
    text = command if command and (whole or systemctl) else " ".join(advice.arguments)
    # A shell takes it as it is; nobody at a terminal needs this kernel's command line to act on it.
    click.echo(printable(text) if sys.stdout.isatty() else text)
    for line in handover.explained(advice) if explain else ():
        click.echo(f"  {printable(line)}", err=True)


def _alone(found: handover.Alone, form: str) -> None:
    """Print a token alone, as what has guards beside it is printed."""
    for note in (*found.notes, *found.by_hand):
        click.echo(f"safemem: {printable(note)}", err=True)
    if form == "json":
        document = {
            "schema": 1, "kind": "handover-args", "exit_code": Code.DONE, "arguments": list(found.arguments),
            "guard": None, "guard_node": None, "page": None, "pages": [], "kexec_command": None,
            "systemctl_command": None, "notes": [*found.notes, *found.by_hand],
            "bytes": {"memory": None, "guarded": None, "scratch": None, "open": None}, "room": None, "open": [],
        }  # fmt: skip
        click.echo(json.dumps(document, indent=1))
        return
    click.echo(" ".join(found.arguments))


@click.command("layout", short_help="Print what to append to the boot loader's command line.")
@ROOT
@click.option("--state", metavar="FILE", help="Take the machine from a capture, or from the record of a boot.")
@FORMAT
@codes.ends(done="done", failure="no layout leaves anything to guard", invalid="invalid input")
def layout_command(root: str, state: str | None, form: str) -> None:
    """Print the size of the scratch areas with which the guards cover most of this machine's memory.

    It goes on the boot loader's command line, and counts from the next cold boot on: a kernel that
    accepts a handover keeps its predecessor's areas.
    """
    if state is not None and root != "/":
        raise click.UsageError("--root and --state exclude each other")
    found = layout.advise(root) if state is None else layout.advise_on(_described(state))
    guards = found.guards
    pages = [item for item in guards.pages if item.number]
    if form == "json":
        document = {
            "schema": 1, "kind": "layout", "exit_code": Code.DONE, "argument": found.argument, "memory": found.memory,
            "now": found.now, "now_reason": found.now_reason, "after": found.after, "least": found.least,
            "scratch": found.scratch, "map": found.map, "guard": str(guards.range),
            "page": guards.page, "pages": {str(item.node): item.number for item in pages},
            "nodes": found.nodes, "node": guards.node if guards.node >= 0 else None, "notes": list(found.notes),
        }  # fmt: skip
        click.echo(json.dumps(document, indent=1))
        return
    for note in found.notes:
        click.echo(f"safemem: {printable(note)}", err=True)
    click.echo(found.argument)
    now = f"none: {printable(found.now_reason)}"
    if found.now:
        now = f"{size_text(found.now)}, {found.now / found.memory:.0%} of {size_text(found.memory)}"
    click.echo(f"  guarded now    {now}", err=True)
    click.echo(
        f"  with it        {size_text(found.after)}, {found.after / found.memory:.1%} of {size_text(found.memory)}",
        err=True,
    )
    click.echo(
        f"                 {size_text(guards.range.size)} by crashkernel=, one range on node {guards.node}", err=True
    )
    for item in pages:
        sure = total(item.ranges)
        less = item.number * guards.page - sure
        unsure = f"; {size_text(less)} more may lie partly in scratch, and does not count" if less else ""
        click.echo(
            f"                 {size_text(sure)} by hugepages={item.node}:{item.number} on node {item.node}{unsure}",
            err=True,
        )
    click.echo(
        f"  at least       {size_text(found.least)}, {found.least / found.memory:.1%}, where KASLR has put that boot's"
        " kernel in the way",
        err=True,
    )
    click.echo(
        f"  scratch        {size_text(found.scratch)}, of which {size_text(found.map)} for the memory map (struct page)",
        err=True,
    )
    click.echo(
        f"  open           {size_text(found.memory - found.after - found.scratch)}, neither guarded nor scratch",
        err=True,
    )
    if found.nodes > 1 and guards.node >= 0 and not pages:
        click.echo(
            f"  without gigantic pages a guard keeps to one node, here {guards.node}: what must not be lost belongs there,"
            f" such as by `numactl --membind={guards.node}`",
            err=True,
        )


def _described(state: str) -> Snapshot:
    """Return the machine in a capture or record. Raises InputError."""
    try:
        with reading(state), open(state, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError:
        raise InputError(f"{state}: this is not a capture: it is not text") from None
    return reader.snapshot_from_text(text, state)
