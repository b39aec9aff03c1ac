# SPDX-License-Identifier: MIT
"""Captures and decision records read back, checked value by value."""

from __future__ import annotations

import json

from safemem.boot.model import DRIVERS, FACTS, UNKNOWN, Blocks, Fact, Note, Snapshot
from safemem.boot.ranges import Range, parse_range
from safemem.boot.record import SCHEMA, capture_to_json

_STATES = ("online", "offline", "going-offline", UNKNOWN)


class Invalid(ValueError):
    """A capture or record cannot be used; the message says where and why."""


def capture_text(snapshot: Snapshot) -> str:
    """Return the file that `safemem capture` writes."""
    return json.dumps(capture_to_json(snapshot), indent=1) + "\n"


def snapshot_from_text(text: str, where: str) -> Snapshot:
    """Return the snapshot in a capture or record.

    Raises:
        Invalid: not JSON, not such a file, of a newer schema, or inconsistent.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError):
            raise Invalid(
                f"{where}:{error.lineno}:{error.colno}: the capture is cut off or is not JSON: {error.msg.lower()}"
            ) from None
        raise Invalid(f"{where}: the capture is not JSON") from None
    if not isinstance(document, dict) or document.get("kind") not in ("capture", "decision"):
        raise Invalid(f"{where}: this is neither a capture nor a decision record of safemem")
    schema = document.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise Invalid(f"{where}: schema: `{schema}` is not a schema number")
    if schema > SCHEMA:
        raise Invalid(
            f"{where}: schema: {schema} is newer than the {SCHEMA} that this safemem reads; use the safemem that wrote it"
        )
    return _snapshot(_Place(document, where).item("snapshot"))


class _Place:
    """A JSON value and the way to it, so that every error can say where."""

    def __init__(self, value: object, where: str) -> None:
        self.value, self.where = value, where

    def item(self, key: str) -> _Place:
        if not isinstance(self.value, dict):
            raise Invalid(f"{self.where}: should be an object")
        if key not in self.value:
            raise Invalid(f"{self.where}: `{key}` is missing")
        return _Place(self.value[key], f"{self.where}: {key}" if ": " not in self.where else f"{self.where}.{key}")

    def items(self) -> list[_Place]:
        if not isinstance(self.value, list):
            raise Invalid(f"{self.where}: should be a list")
        return [_Place(value, f"{self.where}[{index}]") for index, value in enumerate(self.value)]

    def keys(self) -> list[str]:
        if not isinstance(self.value, dict):
            raise Invalid(f"{self.where}: should be an object")
        return list(self.value)

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise Invalid(f"{self.where}: should be text")
        return self.value

    def number(self, low: int = 0) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not low <= self.value < 1 << 64:
            raise Invalid(f"{self.where}: `{self.value}` should be a whole number from {low} to 2^64")
        return self.value

    def area(self) -> Range:
        try:
            return parse_range(self.text())
        except ValueError as error:
            raise Invalid(f"{self.where}: {error}") from None


def _snapshot(place: _Place) -> Snapshot:
    facts = {}
    fact_place = place.item("facts")
    for name in fact_place.keys():
        if name not in FACTS:
            raise Invalid(f"{fact_place.where}: `{name}` is not a fact")
        facts[name] = _fact(name, fact_place.item(name))
    for name in ("handover", "luo", "kho", "guard"):
        fact_place.item(name)
    size = place.item("block_size").number()
    blocks: list[Blocks] = []
    for item in place.item("blocks").items():
        run = Blocks(
            item.item("first").number(),
            item.item("last").number(),
            item.item("state").text(),
            item.item("node").number(-1),
            item.item("driver").text(),
        )
        if run.last < run.first:
            raise Invalid(f"{item.where}: `last` lies before `first`")
        if run.state not in _STATES:
            raise Invalid(f"{item.where}.state: `{run.state}` is not one of {', '.join(_STATES)}")
        if run.driver not in DRIVERS:
            raise Invalid(f"{item.where}.driver: `{run.driver}` is not one of {', '.join(DRIVERS)}")
        blocks.append(run)
    if blocks and not size:
        raise Invalid(f"{place.where}.block_size: 0, but there are blocks")
    blocks.sort()
    for before, after in zip(blocks, blocks[1:], strict=False):
        if after.first <= before.last:
            raise Invalid(f"{place.where}.blocks: block {after.first} is there twice")
    guard = place.item("guard")
    return Snapshot(
        facts=facts,
        block_size=size,
        blocks=tuple(blocks),
        scratch=tuple(item.area() for item in place.item("scratch").items()),
        cmdline=place.item("cmdline").text(),
        cmdline_safe=tuple(item.area() for item in place.item("cmdline_safe").items()),
        guard=None if guard.value is None else guard.area(),
        overrides=tuple(item.text() for item in place.item("overrides").items()),
        notes=_notes(place, "notes", "note_codes"),
        witness=place.item("witness").text() if _given(place, "witness") else "",
    )


def _notes(place: _Place, texts: str, codes: str) -> tuple[Note, ...]:
    """Return sentences with their codes; a record of version 0.1 has none."""
    found = [item.text() for item in place.item(texts).items()]
    known = [item.text() for item in place.item(codes).items()] if _given(place, codes) else [""] * len(found)
    if len(known) != len(found):
        raise Invalid(f"{place.where}: {len(found)} {texts}, but {len(known)} {codes}")
    return tuple(Note(code, text) for code, text in zip(known, found, strict=True))


def _given(place: _Place, key: str) -> bool:
    return key in place.keys() and place.item(key).value is not None


def _fact(name: str, place: _Place) -> Fact:
    kind, values = FACTS[name]
    raw = place.item("value")
    value: str | int | tuple[str, ...]
    if raw.value == UNKNOWN and name != "safe_region":
        value = UNKNOWN
    elif kind == "names":
        value = tuple(item.text() for item in raw.items())
    elif kind == "number":
        value = raw.number()
    else:
        value = raw.text()
        if kind == "set" and value not in values:
            raise Invalid(f"{raw.where}: `{value}` is not one of {', '.join(values)}")
    return Fact(value, place.item("source").text(), place.item("reason").text())
