# SPDX-License-Identifier: MIT
"""The manual pages: safemem(1) from the commands' help, the others from the pages under docs and from the glossary."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import click

from safemem.cli import codes
from safemem.cli import main as cli
from safemem.policy import glossary

TREE = Path(__file__).resolve().parent.parent


def pages() -> dict[str, str]:
    """Return the pages by name, such as `safemem.1`, as roff."""
    return {
        "safemem.1": command_page(),
        "safemem-policy.5": document_page(
            "safemem-policy.5", "which memory safemem may online, in TOML", "policy-language", policy_examples()
        ),
        "safemem-cases.5": document_page("safemem-cases.5", "what a policy is expected to decide, in TOML", "cases"),
        "safemem-glossary.7": document_page("safemem-glossary.7", "what the words of safemem mean", "glossary"),
    }


def title(page: str, manual: str) -> str:
    """Return the first line of a page such as `safemem.1`, with the day of the newest commit."""
    words = ["git", "log", "-1", "--format=%cs"]
    try:
        day = subprocess.run(words, cwd=TREE, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # no git, as where only a tarball is
        day = ""
    name, _, section = page.rpartition(".")
    return f'.TH {roff(name.upper())} {section} "{day or time.strftime("%Y-%m-%d", time.gmtime())}" safemem "{manual}"'


def roff(text: str) -> str:
    """Return `text` so that roff takes none of it for a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"\*\*(.+?)\*\*", r"\\fB\1\\fR", re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text))
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in text.splitlines())


def command_page() -> str:
    """Return safemem(1)."""
    lines = [
        title("safemem.1", "System administration"), ".SH NAME",
        "safemem \\- decide which memory a live\\-update host may use after a kernel handover",
        ".SH SYNOPSIS", ".B safemem", ".I COMMAND", "[OPTIONS] [ARGUMENTS]",
        ".SH DESCRIPTION", *paragraphs(DESCRIPTION), ".SH COMMANDS",
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
        ".SH EXAMPLES", *(line for text, command in EXAMPLES for line in (".TP", roff(text), f"\\fB{roff(command)}\\fR")),
        ".SH KERNEL ARGUMENTS",
        *(
            line for item in glossary.arguments().values() for line in (".TP", f"\\fB{roff(item.name)}\\fR", roff(item.meaning))
        ),
        ".SH ENVIRONMENT",
        *(line for name, text in ENVIRONMENT for line in (".TP", f"\\fB{name}\\fR", roff(text))),
        ".SH FILES",
        ".TP", "/etc/safemem/policy.toml", "the policy of this machine, see safemem\\-policy(5)",
        ".TP", "/usr/share/safemem/policies", "policies to begin with, each with its cases",
        ".TP", "/etc/safemem/preflight.toml", "what the gate before a kexec does where nothing can be told",
        ".TP", "/run/safemem/decision.json", "the record of this boot",
        ".TP", "/var/lib/safemem/history", "the records of earlier boots",
        ".SH EXIT STATUS", codes.listing(),
        ".SH SEE ALSO", ".BR safemem\\-policy (5),", ".BR safemem\\-cases (5),",
        ".BR safemem\\-glossary (7),", ".BR chmem (8)",
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


def paragraphs(text: str) -> list[str]:
    """Return text as paragraphs, which empty lines part."""
    return [line for part in text.strip().split("\n\n") for line in (".PP", roff(" ".join(part.split())))]


DESCRIPTION = """
A live-update host replaces its kernel by kexec while the memory of its guests stays in place. If the next kernel rejects
what it was handed, Linux boots as if nothing were and gives that memory to whoever asks for it. safemem reads early in
the boot what was offered and what was accepted, and a policy decides: online all memory, online only the safe region, or
panic, reboot, halt.

At a desk `check`, `diff`, `test` and `simulate` say what a policy decides in every state. `initramfs` puts it into an
image. On the machine `status` says what was decided, `release` ends a hold, `doctor` finds what stands in the way, and
`watch` sees to memory that arrives later. Before a kexec `handover-args` computes what protects the next boot. `explain`
says what a word means.
"""
EXAMPLES = (
    ("What this machine's policy would do now, read-only:", "safemem simulate /etc/safemem/policy.toml --live"),
    ("Prove a policy of your own in every state:", "safemem check mine.toml"),
    ("Run what is expected of it, and fail if a state has no case:", "safemem test mine.cases.toml --threshold 100"),
    ("Look at a boot of another machine:", "safemem simulate mine.toml --state decision.json"),
    ("Give memory back once the guests are gone:", 'safemem release 0x100000000-0x1ffffffff --reason "guests moved away"'),
)  # fmt: skip
ENVIRONMENT = (
    ("COLUMNS", "How wide text may be, where no terminal says it."),
    ("NO_COLOR", "If it is set and not empty, nothing is in colour."),
    ("SAFEMEM_PREFLIGHT_OVERRIDE", "Of kexec, where the gate is enabled: why this call goes against the verdict."),
    ("_SAFEMEM_COMPLETE", "With `bash_source`, `zsh_source` or `fish_source`: print what completes commands in that shell."),
)  # fmt: skip


def policy_examples() -> list[str]:
    """Return the default policy, as it is installed."""
    lines = (TREE / "policies/live-update-host.toml").read_text().splitlines()
    return [
        ".SH EXAMPLES",
        ".PP",
        "The policy that is installed:",
        ".nf",
        *(roff(line) or "\\&" for line in lines),
        ".fi",
    ]


def document_page(page: str, what: str, name: str, more: list[str] | None = None) -> str:
    """Return docs/NAME.md as the manual page `page`, tables as lists; `more` comes after it."""
    lines = [title(page, "File formats" if page.endswith("5") else "Overviews"), ".SH NAME",
             f"{roff(page.rpartition('.')[0])} \\- {roff(what)}"]  # fmt: skip
    code = False
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", (TREE / f"docs/{name}.md").read_text())
    text = re.sub(r"Generated by `[^`]+`; a test keeps it in step\. ", "", text)
    text = re.sub(r"^\|.*\|\n\| ---.*\n", "", text, flags=re.MULTILINE)  # what heads a table
    for line in text.splitlines():
        if line.startswith("```"):
            code = not code
            lines.append(".nf" if code else ".fi")
        elif code:
            lines.append(roff(line) or "\\&")
        elif line.startswith("# "):
            lines.append(".SH DESCRIPTION")
        elif line.startswith("### "):
            lines.append(".SS " + roff(line.removeprefix("### ")))
        elif line.startswith("#"):
            lines.append(".SH " + roff(line.lstrip("# ")).upper().replace("\\FB", "").replace("\\FR", ""))
        elif line.startswith("|"):
            cells = [roff(cell.strip().replace("\\|", "|")) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            lines += [".TP", cells[0] or "\\&", " \\(em ".join(filter(None, cells[1:]))]
        else:
            lines.append(roff(line) if line else ".PP")
    lines += more or []
    others = [
        other for other in ("safemem.1", "safemem-policy.5", "safemem-cases.5", "safemem-glossary.7") if other != page
    ]
    lines.append(".SH SEE ALSO")
    lines += [f".BR {roff(other[:-2])} ({other[-1]}){',' if other != others[-1] else ''}" for other in others]
    return "\n".join(lines) + "\n"
