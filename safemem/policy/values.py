# SPDX-License-Identifier: MIT
"""What may stand at a key of a policy: each kind of value as pydantic checks it, and as JSON Schema shows it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple, NoReturn, TypeVar

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from safemem.boot import compiled, conditions, model, ranges
from safemem.boot.model import FACTS, OLDER, UNKNOWN, UNORDERED, Condition, Term
from safemem.policy import places

_COMPARISON = re.compile(r"(<=|>=|<|>)\s*(\S+)")
_Parsed = TypeVar("_Parsed")


def show(value: object) -> str:
    """Return `value` in backticks as TOML would write it, on one line, short."""
    if isinstance(value, str) and value.isprintable():
        text = value
    else:
        try:
            text = json.dumps(value, default=str)
        except (ValueError, RecursionError):
            text = type(value).__name__
    return f"`{text[:60]}…`" if len(text) > 60 else f"`{text}`"


def listed(words: tuple[str, ...]) -> str:
    """Return `words` in backticks, with commas between."""
    return ", ".join(f"`{word}`" for word in words)


def near(word: object, known: tuple[str, ...]) -> str:
    """Return a suggestion for a mistyped `word`, or nothing."""
    close = difflib.get_close_matches(word, known, 1) if isinstance(word, str) else []
    return f"; did you mean `{close[0]}`?" if close else ""


def fail(*problems: tuple[places.Path, str]) -> NoReturn:
    """Report `problems` from inside a validator; the paths are relative to what it validates."""
    raise PydanticCustomError("policy", "{text}", {"text": problems[0][1], "problems": problems})


def _text(value: object) -> str:
    text = _str("text", value)
    if not text.strip():
        fail(((), "must not be empty"))
    if not text.isprintable():  # it goes to consoles and to the kernel log
        fail(((), f"{show(text)} holds characters that cannot be printed on one line"))
    if len(text.encode()) > compiled.MAX_TEXT:
        fail(
            (
                (),
                f"{show(text)} is longer than the {compiled.MAX_TEXT} bytes that a line of the kernel's log has for it",
            )
        )
    return text


def condition(fact: str, value: object) -> Condition:
    """Return what a rule's `when` asks of `fact`: a value, a list of them, or `{ not = … }`."""
    negate = isinstance(value, dict)
    path: places.Path = ()
    if isinstance(value, dict):
        if list(value) != ["not"]:
            fail(((), f"expected a value, a list of values, or {{ not = … }}, not {show(value)}"))
        value, path = value["not"], ("not",)
    if value == []:
        fail((path, "the list is empty, so the rule could never match"))
    groups, problems = [], []
    for place, item in [((*path, i), v) for i, v in enumerate(value)] if isinstance(value, list) else [(path, value)]:
        try:
            groups.append(_group(fact, item))
        except ValueError as error:
            problems.append((place, str(error)))
    if problems:
        fail(*problems)
    return Condition(fact, tuple(groups), negate)


def _group(fact: str, value: object) -> tuple[Term, ...]:
    """Return the terms that must all hold. Raises ValueError."""
    kind, members = FACTS[fact]
    if isinstance(value, str):
        value = OLDER.get((fact, value), value)
    if value == UNKNOWN:
        if kind == "set" and UNKNOWN not in members:
            raise ValueError(f"`{fact}` is always known")
        return (Term("is", UNKNOWN),)
    if kind == "version" and value == UNORDERED:
        return (Term(UNORDERED, UNORDERED),)
    if kind == "set":
        if value not in members:
            raise ValueError(f"{show(value)} is not one of {listed(members)}{near(value, members)}")
        return (Term("is", str(value)),)
    if kind == "number" and type(value) is int and 0 <= value < 1 << 64:
        return (Term("is", value),)
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        quotes = f'; put it in quotes: `"{value}"`' if kind == "version" and isinstance(value, (int, float)) else ""
        raise ValueError(f"expected {_EXPECTED[kind]}, not {show(value)}{quotes}")
    if len(value.encode()) > compiled.MAX_TEXT:
        raise ValueError(f"{show(value)} is longer than {compiled.MAX_TEXT} bytes")
    if kind in ("number", "version") and value.lstrip()[0] in "<>=!~^":
        return _comparisons(kind, value)
    if kind == "number":
        quotes = ", in quotes" if value.strip().isdecimal() else ""
        raise ValueError(f"expected {_EXPECTED[kind]}, not {show(value)}{quotes}")
    if kind == "names":
        return (Term("has", value),)
    if "[" in value or "]" in value:
        raise ValueError(f"{show(value)}: only `*` and `?` stand for other characters, `[` does not")
    return (Term("glob" if "*" in value or "?" in value else "is", value),)


def _comparisons(kind: str, text: str) -> tuple[Term, ...]:
    terms = []
    for part in text.split(","):
        found = _COMPARISON.fullmatch(part.strip())
        if not found:
            raise ValueError(
                f"`{part.strip()}` is not a comparison; use <, <=, > or >= and commas, such as `{_EXAMPLE[kind]}`"
            )
        op, bound = found.groups()
        if kind == "version":
            if not conditions.is_version(bound):
                raise ValueError(f"`{bound}` is not a version that can be compared, such as 7.2, 7.2.1 or 7.2-rc3")
            terms.append(Term(op, bound))
        elif not (bound.isascii() and bound.isdigit() and len(bound) < 20):
            raise ValueError(f"`{bound}` is not a whole number below 10^19")
        else:
            terms.append(Term(op, int(bound)))
    return tuple(terms)


_EXAMPLE = {"version": ">=7.2, <7.4", "number": ">=1, <3"}
_EXPECTED = {
    "text": "text with `*` and `?` as wildcards",
    "version": "a release, a glob or a comparison such as `>=7.2, <7.4`",
    "number": "a whole number or a comparison such as `>=1, <3`",
    "names": "the name of a producer in the handover, such as `LUO` (NUMA nodes are `numa_nodes`)",
}


def _source(value: object) -> str | ranges.Range:
    text = _str("text", value)
    if text in compiled.SOURCES:
        return text
    if not text[:1].isdigit():
        known = compiled.SOURCES
        fail(((), f"{show(text)} is neither one of {listed(known)} nor a range{near(text, known)}"))
    return _parsed(ranges.parse_range, "text", text)


def _str(expected: str, value: object) -> str:
    if not isinstance(value, str):
        fail(((), f"expected {expected}, not {show(value)}"))
    return value


def _parsed(parse: Callable[[str], _Parsed], expected: str, value: object) -> _Parsed:
    text = _str(expected, value)
    try:
        return parse(text)
    except ValueError as error:
        fail(((), str(error)))


def _amount(parse: Callable[[str], int], expected: str, value: object) -> str:
    _parsed(parse, expected, value)
    return str(value)


def _whole(low: int, high: int, unit: str, value: object) -> int:
    if type(value) is not int or not low <= value <= high:
        quotes = ", in quotes" if isinstance(value, str) and value.strip().isdecimal() else ""
        fail(((), f"expected {unit} from {low} to {high}, not {show(value)}{quotes}"))
    return value


def _true(value: object) -> bool:
    if value is not True:
        fail(((), f"expected true, or a `zone` instead of this key, not {show(value)}"))
    return True


class OneOf(NamedTuple):
    """In `Annotated[str, OneOf(words)]`, text that is one of `words`, which the boot half has; `Literal` takes no names."""

    words: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        """Return what pydantic checks a value by."""
        return core_schema.literal_schema(list(self.words))


_size = partial(_amount, ranges.parse_size, "a size such as `256MiB`")
_limit = partial(_amount, partial(ranges.parse_limit, whole=0), "a size such as `2GiB` or a share such as `1%`")
Size = Annotated[str, PlainValidator(_size), WithJsonSchema({"type": "string", "examples": ["256MiB"]})]
Limit = Annotated[str, PlainValidator(_limit), WithJsonSchema({"type": "string", "examples": ["2GiB", "1%"]})]
Deadline = Annotated[
    int,
    PlainValidator(partial(_whole, *compiled.DEADLINE, "whole seconds")),
    WithJsonSchema({"maximum": compiled.DEADLINE[1], "minimum": compiled.DEADLINE[0], "type": "integer"}),
]
Node = Annotated[
    int,
    PlainValidator(partial(_whole, 0, 1 << 16, "the number of a NUMA node")),
    WithJsonSchema({"maximum": 1 << 16, "minimum": 0, "type": "integer"}),
]
Held = Annotated[bool, PlainValidator(_true), WithJsonSchema({"const": True, "type": "boolean"})]
Text = Annotated[str, PlainValidator(_text), WithJsonSchema({"type": "string", "minLength": 1})]
Source = Annotated[
    Any,
    PlainValidator(_source),
    WithJsonSchema({"type": "string", "examples": [*compiled.SOURCES, "0x100000000-0x1ffffffff"]}),
]
Area = Annotated[
    Any,
    PlainValidator(partial(_parsed, ranges.parse_range, "a range such as `0x100000000-0x1ffffffff`")),
    WithJsonSchema({"type": "string"}),
]
Zone = Annotated[str, OneOf(model.ZONES)]
