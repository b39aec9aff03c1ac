# SPDX-License-Identifier: MIT
"""`safemem explain`: what a word of safemem's means, and where it is read."""

from __future__ import annotations

import difflib
import re
import shutil

import click

from safemem.cli import codes
from safemem.cli.common import InputError
from safemem.host import catalogue
from safemem.outgoing import findings as preflight
from safemem.policy import glossary
from safemem.policy.catalogue import CODES
from safemem.policy.glossary import Entry
from safemem.render import glossary as render

#: Columns; longer lines are hard to read.
_WIDEST = 100


@click.command(short_help="Say what a word means.")
@click.argument("words", metavar="[WORD]", nargs=-1)
@click.option("--page", is_flag=True, help="Write the whole glossary as a page (Markdown).")
@codes.ends(done="the word is known", invalid="it is not")
def explain(words: tuple[str, ...], page: bool) -> None:
    """Say what WORD means and where it is read; without one, list all of them.

    A WORD is a term, a fact, FACT=VALUE, a value, a key of a policy, an argument of the kernel, a command, or the code
    of a finding of `check`, `doctor` or `preflight`.
    """
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    if page:
        click.echo(render.page(), nl=False)
        return
    known, lacking = known_words()
    if not words:
        click.echo(render.list_text(known, width))
        return
    name = " ".join(words)
    found = glossary.find(name, known)
    if not found:
        raise InputError(f"`{name}` is no word of safemem's{_near(name, known)}{lacking}")
    click.echo(render.entries_text(found, width))


def _near(name: str, known: list[Entry]) -> str:
    names = {glossary.plain(item.name): item.name for item in known}
    names |= {
        glossary.plain(f"{item.kind.removeprefix('value of ')}={item.name}"): f"{item.kind[9:]}={item.name}"
        for item in known
        if item.kind.startswith("value of ") and "=" in name
    }
    close = difflib.get_close_matches(glossary.plain(name), names, 1, 0.7)
    return f"; did you mean `{names[close[0]]}`?" if close else "; `safemem explain` lists all of them"


def known_words() -> tuple[list[Entry], str]:
    """Return everything that can be explained, and why some of it may be missing."""
    from safemem.cli import COMMANDS  # which names this module

    known = glossary.entries()
    lacking = ""
    try:
        from safemem.policy import (  # pydantic, which a machine in maintenance may lack
            case_reference,
            reference,
        )
    except ImportError as error:
        lacking = f"; keys of a policy cannot be looked up: {error}"
    else:
        known += [
            Entry(key, "key of a policy", text, read=table, values=tuple(glossary.values(key).items()))
            for table, key, text in reference.keys()
        ]
        known += [Entry(key, "key of a file of cases", text, read=table) for table, key, text in case_reference.keys()]
    known += [
        Entry(code, "finding of check", f"Found where this does not hold: {text} ({level})")
        for code, (level, text) in CODES.items()
    ]
    known += [Entry(name, "command", f"{entry.help} See `safemem {name} --help`.") for name, entry in COMMANDS.items()]
    known += [
        Entry(
            code, f"finding of {command}", f"{_plain(item.message)} ({item.severity})",
            item.remedy and f"What to do: {_plain(item.remedy)}.",
        )
        for command, found in (("doctor", catalogue.CODES), ("preflight", preflight.CODES))
        for code, item in found.items()
    ]  # fmt: skip
    return known, lacking


def _plain(text: str) -> str:
    """Return a text of the catalogue, with a word in capitals for what a check fills in."""
    if text == "{warning}":
        return "a warning of this boot's decision, as `safemem status` shows it"
    return re.sub(r"\{(\w+)\}", lambda found: found[1].upper(), text)
