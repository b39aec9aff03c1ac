# SPDX-License-Identifier: MIT
"""Words that several outputs share, and the one place where what others wrote is made fit for a terminal."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping
from typing import Any, TypeVar

from safemem.boot.confidence import OPERATORS
from safemem.boot.model import CONFIDENT, UNKNOWN, Fact, Note
from safemem.boot.printable import printable
from safemem.policy import imagined

_Value = TypeVar("_Value")
#: Sources of facts that nobody has read.
IMAGINED = ("--set", imagined.SOURCE)


def clean(value: _Value) -> _Value:
    """Return a value in which each text, however deep, is one printable line; every text output begins with this.

    Kernels, predecessors, captures and command lines supply them. JSON needs none of it: its strings have escapes.
    """
    found: Any = value
    if isinstance(found, Note):
        found = Note(found.code, printable(found))
    elif isinstance(found, str):
        found = printable(found)
    elif isinstance(found, dict):
        found = {clean(key): clean(item) for key, item in found.items()}
    elif isinstance(found, list):
        found = [clean(item) for item in found]
    elif isinstance(found, tuple):
        items = tuple(clean(item) for item in found)
        found = type(found)(*items) if hasattr(found, "_fields") else items
    return found  # type: ignore[no-any-return]


def sure(facts: Mapping[str, Fact], name: str) -> str:
    """Return how sure a fact is, as the end of `name is value`; nothing where nobody knows, as in records of before.

    Of a fact that is imagined, nobody can be sure.
    """
    if name in facts and facts[name].source in IMAGINED:
        return ""
    fact = facts.get(CONFIDENT.get(name, ""), Fact(UNKNOWN, ""))
    word = {"proven": "proven", "evidence": "evidence", "word": "predecessor's word"}.get(str(fact.value), "")
    if fact.reason == OPERATORS:
        word = "operator's word"
    return f", {word}" if word else ""


def folded(line: str, width: int, indent: str) -> list[str]:
    """Return a line in lines of at most `width` columns, the others with `indent`; a longer word has one of its own.

    0 folds nothing: what is no terminal has no width.
    """
    if not width or not line.strip():
        return [line]
    lead = line[: len(line) - len(line.lstrip())]  # of the first line, which is ours
    return textwrap.wrap(
        line.lstrip(), max(width, len(indent) + 1), initial_indent=lead, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def fit(text: str) -> str:
    """Return a text whose lines the terminal has room for; commands to be pasted and what is drawn stay as they are."""
    found = []
    for line in text.split("\n"):
        whole = line.lstrip().startswith(("try: ", "[")) or "] 0x" in line
        found += [line] if whole else folded(line, terminal_width(), "      ")
    return "\n".join(found)


def terminal_width() -> int:
    """Return the columns of the terminal that we write to, or 0 if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def rooted(text: str) -> str:
    """Return `text` with a slash before each path of the machine, which facts name relative to a root."""
    return re.sub(r"(?<![\w./-])(?=(?:sys|proc|dev|etc|boot|efi|usr|run|var|lib|opt)/)", "/", text)


def width() -> int:
    """Return the columns that a table or a map may have: the terminal's, or 80 where there is none."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def plural(number: int, noun: str) -> str:
    """Return `number` and `noun`, with an `s` unless there is exactly one: `1 error`, `0 errors`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def utc(seconds: float) -> str:
    """Return a time that is given in seconds since 1970; as a number of them if no calendar has it."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"
