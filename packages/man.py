# SPDX-License-Identifier: MIT
"""Print safemem(1) and safemem-policy(5), a form feed between them: from the commands' help and the reference."""

from __future__ import annotations

import re
from pathlib import Path

import click

from safemem.cli import main as cli

HERE = Path(__file__).resolve().parent


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
        ".SH EXIT STATUS",
        "0 done, or all memory may be used; 1 failure; 2 usage; 3 an input is invalid; 4 memory is held back; "
        "5 panic, reboot or halt; 6 unknown; 64 partly.",
        ".SH SEE ALSO", ".BR safemem\\-policy (5),", ".BR chmem (8)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def walk(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    """Return every command below `command` that does something, with its name in full."""
    if isinstance(command, click.Group):
        return [item for name, child in command.commands.items() for item in walk(child, f"{path} {name}")]
    return [(path, command)]


def policy_page() -> str:
    """Return safemem-policy(5): the reference, tables as lists."""
    lines = [
        '.TH SAFEMEM\\-POLICY 5 "" safemem "File formats"', ".SH NAME",
        "safemem\\-policy \\- which memory safemem may online, in TOML",
    ]  # fmt: skip
    code = False
    for line in (HERE.parent / "docs/policy-language.md").read_text().splitlines():
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


if __name__ == "__main__":
    print(command_page(), end="\f")
    print(policy_page(), end="")
