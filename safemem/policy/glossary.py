# SPDX-License-Identifier: MIT
"""The words of safemem, each once: read from glossary.toml, where they stand. Needs no pydantic."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from safemem.boot.model import FACTS

_FILE = Path(__file__).with_name("glossary.toml")


class Entry(NamedTuple):
    """One word and what it stands for; sentences, with code in backticks."""

    name: str
    kind: str  #: such as `word`, `fact` or `value of handover`
    meaning: str
    operator: str = ""  #: what it means for who runs the machine
    read: str = ""  #: where it is read, or where it stands
    values: tuple[tuple[str, str], ...] = ()  #: of a closed set, each with its meaning


@functools.cache
def _document() -> dict[str, Any]:
    return tomllib.loads(_FILE.read_text("utf-8"))


def _entries(table: str, kind: str) -> dict[str, Entry]:
    return {
        name: Entry(
            name, kind, item["is"], item.get("means", ""), item.get("read", ""), tuple(item.get("values", {}).items())
        )
        for name, item in _document()[table].items()
    }


def words() -> dict[str, Entry]:
    """Return the field's terms and ours."""
    return _entries("words", "word")


def facts() -> dict[str, Entry]:
    """Return every fact that the glossary has, in the model's order."""
    found = _entries("facts", "fact")
    return {name: found[name] for name in (*FACTS, *found) if name in found}


def arguments() -> dict[str, Entry]:
    """Return the arguments of the kernel that matter, without `=`."""
    return _entries("arguments", "kernel argument")


def values(key: str) -> dict[str, str]:
    """Return what each value of a fact or of a policy's key means; empty if it has no closed set of them."""
    document = _document()
    found: dict[str, str] = document["facts"].get(key, {}).get("values") or document["values"].get(key, {})
    return found


def entries() -> list[Entry]:
    """Return all that the glossary has: words, facts, arguments, and each value of a closed set."""
    keys = dict.fromkeys((*_document()["facts"], *_document()["values"]))
    return [
        *words().values(),
        *facts().values(),
        *arguments().values(),
        *(Entry(value, f"value of {key}", meaning) for key in keys for value, meaning in values(key).items()),
    ]


def plain(name: str) -> str:
    """Return a name as it is looked up: case, `-`, `_` and spaces count alike, and a `=` at the end does not."""
    return "".join(" " if letter in "-_ " else letter for letter in name.casefold().strip().rstrip("="))


def find(name: str, known: list[Entry]) -> list[Entry]:
    """Return the entries of `known` that are called `name`; `FACT=VALUE` is one value of one fact or key."""
    key, equals, value = name.partition("=")
    if equals and value:
        kind = f"value of {plain(key)}"
        return [item for item in known if plain(item.kind) == kind and plain(item.name) == plain(value)]
    return [item for item in known if plain(item.name) == plain(name)]
