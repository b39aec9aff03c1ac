# SPDX-License-Identifier: MIT
"""The manual pages: safemem(1) from the commands' help, safemem-policy(5) from the reference."""

from __future__ import annotations

import re
from pathlib import Path

import click

from safemem.cli import codes
from safemem.cli import main as cli

TREE = Path(__file__).resolve().parent.parent


def pages() -> dict[str, str]:
    """Return the pages by name, such as `safemem.1`, as roff."""
    return {"safemem.1": command_page(), "safemem-policy.5": policy_page()}


def roff(text: str) -> str:
    """Return `text` so that roff takes none of it for a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"\*\*(.+?)\*\*", r"\\fB\1\\fR", re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text))
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in text.splitlines())


def command_page() -> str:
    """Return safemem(1)."""
    lines = [
        '.TH SAFEMEM 1 "" safemem "System administration"', ".SH NAME",
        "safemem \\- decide which memory a live\\-update host may use after a kernel handover",
        ".SH SYNOPSIS", ".B safemem", ".I COMMAND", "[OPTIONS] [ARGUMENTS]", ".SH COMMANDS",
    ]  # fmt: skip
    for path, command in sorted(walk(cli, "safemem")):
        context = click.Context(command, info_name=path)
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [".SS " + roff(f"{path} {usage}")]
        for paragraph in (command.help or "").split("\n\n"):
            lines += [".PP", roff(" ".join(paragraph.split()))]
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record:
                lines += [".TP", f"\\fB{roff(record[0])}\\fR", roff(record[1] or "")]
    lines += [
        ".SH FILES",
        ".TP", "/etc/safemem/policy.toml", "the policy of this machine, see safemem\\-policy(5)",
        ".TP", "/usr/share/safemem/policies", "policies to begin with, each with its cases",
        ".TP", "/run/safemem/decision.json", "the record of this boot",
        ".TP", "/var/lib/safemem/history", "the records of earlier boots",
        ".SH EXIT STATUS", codes.listing(),
        ".SH SEE ALSO", ".BR safemem\\-policy (5),", ".BR chmem (8)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def walk(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    """Return every command below `command` that does something, with its name in full."""
    if not isinstance(command, click.Group):
        return [(path, command)]
    # By the group's own methods: a group may load a command only when it is asked for.
    context = click.Context(command)
    children = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [item for name, child in children if child for item in walk(child, f"{path} {name}")]


def policy_page() -> str:
    """Return safemem-policy(5): the reference, tables as lists."""
    lines = [
        '.TH SAFEMEM\\-POLICY 5 "" safemem "File formats"', ".SH NAME",
        "safemem\\-policy \\- which memory safemem may online, in TOML",
    ]  # fmt: skip
    code = False
    for line in (TREE / "docs/policy-language.md").read_text().splitlines():
        if line.startswith("```"):
            code = not code
            lines.append(".nf" if code else ".fi")
        elif code:
            lines.append(roff(line) or "\\&")
        elif line.startswith("# "):
            lines.append(".SH DESCRIPTION")
        elif line.startswith("#"):
            lines.append(".SH " + roff(line.lstrip("# ")).upper().replace("\\FB", "").replace("\\FR", ""))
        elif line.startswith("|"):
            cells = [roff(cell.strip().replace("\\|", "|")) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not set("".join(cells)) <= set("\\-: "):
                lines += [".TP", cells[0] or "\\&", " \\(em ".join(filter(None, cells[1:]))]
        else:
            lines.append(roff(line) if line else ".PP")
    return "\n".join(lines) + "\n"
