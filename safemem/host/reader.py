# SPDX-License-Identifier: MIT
"""Captures, records, releases and counts read back into values; the only module that looks into their JSON.

Every value is checked where it is read, so that whatever uses it need not ask again. Records of version 0.1.0
lack codes, `late` and some of a rule's words; they read as that version meant them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from safemem.boot import compiled, files
from safemem.boot.account import KINDS, Share
from safemem.boot.model import (
    DRIVERS,
    FACTS,
    UNKNOWN,
    ZONES,
    Blocks,
    Decision,
    Fact,
    Miss,
    Note,
    Override,
    PolicyId,
    Refused,
    Rule,
    Snapshot,
    Step,
)
from safemem.boot.ranges import Range, parse_range
from safemem.boot.record import SCHEMA, Done, capture_to_json
from safemem.host import incidents
from safemem.host.incidents import Counts, Incident
from safemem.host.suspects import Suspect

_STATES = ("online", "offline", "going-offline", UNKNOWN)
OPS = ("online", "offline", "hold", "keep", "release-guard", "keep-guard")
#: How far a release has come. The first is on the disk before anything is given back, so that nothing is given
#: back unsaid.
State = Literal["begun", "partly", "done"]
_RELEASE_STATES: tuple[State, ...] = get_args(State)
_Value = TypeVar("_Value")


class Invalid(Refused):
    """A file cannot be used; the message says which, where and why."""

    kind = "invalid"


class Record(NamedTuple):
    """What a boot wrote down of itself."""

    decision: Decision  #: of its rule, all but the conditions; message and zone are the decision's
    done: Done | None  #: None until the plan has been carried out
    account: tuple[Share, ...]  #: of memory when that was done; empty until then
    snapshot: Snapshot  #: the machine as it was found


class Release(NamedTuple):
    """Memory that was given back by hand."""

    time: int  #: seconds since 1970
    reason: str
    ranges: tuple[Range, ...]
    state: State
    forced: bool = False  #: although the policy calls the hold final


def capture_text(snapshot: Snapshot) -> str:
    """Return the file that `safemem capture` writes."""
    return json.dumps(capture_to_json(snapshot), indent=1) + "\n"


def snapshot_from_text(text: str, where: str) -> Snapshot:
    """Return the snapshot in a capture or record.

    Raises:
        Invalid: not JSON, not such a file, of a newer schema, or inconsistent.
    """
    return _snapshot(_document(text, where).item("snapshot"))


def record_from_text(text: str, where: str) -> Record:
    """Return what is in the record of a decision. Raises Invalid, also for a capture."""
    place = _document(text, where)
    if place.item("kind").value == "capture":
        raise Invalid(f"{where}: this is a capture, not the record of a decision")
    snapshot = _snapshot(place.item("snapshot"))
    return Record(
        decision=_decision(place.item("decision")),
        done=None if place.item("result").value is None else _done(place.item("result")),
        account=tuple(_share(item) for item in place.items_of("account")),
        snapshot=snapshot,
    )


def record(path: str) -> Record:
    """Return what is in the record at `path`.

    Raises:
        Invalid: it cannot be used.
        FileNotFoundError: there is none.
    """
    return record_from_text(_text(path), path)


def releases(path: str) -> tuple[Release, ...]:
    """Return what was released by hand, as the file at `path` says, in order. Raises as `record` does."""
    return _read(path, "what was released by hand cannot be read", lambda place: tuple(map(_release, place.items())))


def releases_to_json(items: tuple[Release, ...]) -> list[dict[str, object]]:
    """Return what `releases` reads, as plain JSON values."""
    return [{**item._asdict(), "ranges": [str(area) for area in item.ranges]} for item in items]


def counts(path: str) -> Counts:
    """Return what `watch` has counted, as the file at `path` says. Raises as `record` does."""
    return _read(path, "what watch has counted cannot be read", _counts)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Invalid(f"{path}: {files.reason(error)}") from None
    except UnicodeDecodeError:
        raise Invalid(f"{path}: not text") from None


def _read(path: str, otherwise: str, use: Callable[[_Place], _Value]) -> _Value:
    """Return what `use` makes of the JSON at `path`; whatever is wrong with it, the message is `otherwise`."""
    try:
        return use(_Place(json.loads(_text(path)), path))
    except _Newer as error:
        raise Invalid(str(error)) from None
    except (Invalid, ValueError, RecursionError):
        raise Invalid(f"{path}: {otherwise}") from None


def _document(text: str, where: str) -> _Place:
    """Return a capture or record as a whole. Raises Invalid."""
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
    return _Place(document, where)


class _Newer(Invalid):
    """A file is of a schema that this version does not read."""


class _Place:
    """A JSON value and the way to it, so that every error can say where."""

    def __init__(self, value: object, where: str) -> None:
        self.value, self.where = value, where

    def item(self, key: str) -> _Place:
        if key not in self.table():
            raise Invalid(f"{self.where}: `{key}` is missing")
        return self._below(key)

    def given(self, key: str) -> _Place | None:
        """Return the value at `key`, or None if it is missing or null."""
        return self._below(key) if self.table().get(key) is not None else None

    def _below(self, key: str) -> _Place:
        return _Place(self.table()[key], f"{self.where}: {key}" if ": " not in self.where else f"{self.where}.{key}")

    def table(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise Invalid(f"{self.where}: should be an object")
        return self.value

    def items(self) -> list[_Place]:
        if not isinstance(self.value, list):
            raise Invalid(f"{self.where}: should be a list")
        return [_Place(value, f"{self.where}[{index}]") for index, value in enumerate(self.value)]

    def items_of(self, key: str) -> list[_Place]:
        """Return the items of the list at `key`; none if it is missing or null."""
        found = self.given(key)
        return found.items() if found else []

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise Invalid(f"{self.where}: should be text")
        return self.value

    def text_of(self, key: str) -> str:
        """Return the text at `key`; "" if it is missing or null."""
        found = self.given(key)
        return found.text() if found else ""

    def one_of(self, choices: tuple[_Value, ...]) -> _Value:
        for choice in choices:
            if choice == self.text():
                return choice
        raise Invalid(f"{self.where}: `{self.value}` is not one of {', '.join(map(str, choices))}")

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise Invalid(f"{self.where}: `{self.value}` should be true or false")
        return self.value

    def number(self, low: int = 0) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not low <= self.value < 1 << 64:
            raise Invalid(f"{self.where}: `{self.value}` should be a whole number from {low} to 2^64")
        return self.value

    def number_of(self, key: str) -> int:
        """Return the number at `key`; 0 if it is missing or null."""
        found = self.given(key)
        return found.number() if found else 0

    def area(self) -> Range:
        try:
            return parse_range(self.text())
        except ValueError as error:
            raise Invalid(f"{self.where}: {error}") from None

    def areas(self) -> tuple[Range, ...]:
        return tuple(item.area() for item in self.items())

    def notes(self, texts: str, codes: str) -> tuple[Note, ...]:
        """Return the sentences at `texts` with their codes; a record of version 0.1.0 has none."""
        found = [item.text() for item in self.item(texts).items()]
        known = [item.text() for item in self.items_of(codes)] if self.given(codes) else [""] * len(found)
        if len(known) != len(found):
            raise Invalid(f"{self.where}: {len(found)} {texts}, but {len(known)} {codes}")
        return tuple(Note(code, text) for code, text in zip(known, found, strict=True))

    def word(self, checks: dict[str, compiled.Check], name: str, default: Any, key: str = "") -> Any:
        """Return a word of the policy as `checks` has it; null says nothing, and `default` stands for one left out."""
        key = key or name
        if key not in self.table():
            return default
        found = self._below(key)
        try:
            return compiled.check(checks[name], "" if found.value is None else found.value, key)
        except compiled.Invalid as error:
            raise Invalid(f"{found.where}: {error}") from None


def _snapshot(place: _Place) -> Snapshot:
    facts = _facts(place.item("facts"))
    for name in ("handover", "luo", "kho", "guard"):
        place.item("facts").item(name)
    size = place.item("block_size").number()
    blocks = sorted(_blocks(item) for item in place.item("blocks").items())
    if blocks and not size:
        raise Invalid(f"{place.where}.block_size: 0, but there are blocks")
    for before, after in zip(blocks, blocks[1:], strict=False):
        if after.first <= before.last:
            raise Invalid(f"{place.where}.blocks: block {after.first} is there twice")
    guard = place.item("guard")
    return Snapshot(
        facts=facts,
        block_size=size,
        blocks=tuple(blocks),
        scratch=place.item("scratch").areas(),
        cmdline=place.item("cmdline").text(),
        cmdline_safe=place.item("cmdline_safe").areas(),
        guard=None if guard.value is None else guard.area(),
        overrides=tuple(item.text() for item in place.item("overrides").items()),
        notes=place.notes("notes", "note_codes"),
        witness=place.text_of("witness"),
    )


def _blocks(place: _Place) -> Blocks:
    run = Blocks(
        place.item("first").number(),
        place.item("last").number(),
        place.item("state").one_of(_STATES),
        place.item("node").number(-1),
        place.item("driver").one_of(DRIVERS),
    )
    if run.last < run.first:
        raise Invalid(f"{place.where}: `last` lies before `first`")
    return run


def _facts(place: _Place) -> dict[str, Fact]:
    for name in place.table():
        if name not in FACTS:
            raise Invalid(f"{place.where}: `{name}` is not a fact")
    return {name: _fact(name, place.item(name)) for name in place.table()}


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
        value = raw.one_of(values) if kind == "set" else raw.text()
    return Fact(value, place.item("source").text(), place.item("reason").text())


def _decision(place: _Place) -> Decision:
    policy, region = place.item("policy"), place.item("safe_region")
    words = {
        word: place.word(compiled.RULE, word, Rule._field_defaults.get(word))
        for word in Rule._fields
        if word not in ("name", "when")
    }
    for word in ("action", "message", "zone"):
        place.item(word).text()
    rule = Rule(name=place.item("rule").text(), **words)
    exceptions = [{**Override()._asdict(), **item.table()} for item in place.items_of("exceptions")]
    return Decision(
        rule=rule,
        policy=PolicyId(
            name=policy.item("name").text(),
            digest=policy.item("digest").text(),
            memory=_Place({"exceptions": exceptions}, place.where).word(compiled.POLICY, "memory", (), "exceptions"),
            keep_crashkernel=place.word(compiled.POLICY, "keep_crashkernel", ""),
        ),
        message=rule.message,
        zone=rule.zone,
        facts=_facts(place.item("facts")),
        region=region.item("ranges").areas(),
        region_source=region.item("source").text(),
        misses=tuple(_miss(item) for item in place.items_of("not_matched")),
        steps=tuple(_step(item) for item in place.item("plan").items()),
        warnings=place.notes("warnings", "warning_codes"),
        arrivals=_zone(place.given("arrivals")),
    )


def _miss(place: _Place) -> Miss:
    return Miss(*(place.item(key).text() for key in ("rule", "fact", "wanted", "value", "source")))


def _step(place: _Place) -> Step:
    area, blocks, late = place.item("range").area(), place.given("blocks"), place.given("late")
    numbers = [item.number() for item in blocks.items()] if blocks else [-1, -1]
    if len(numbers) != 2:
        raise Invalid(f"{place.where}.blocks: should be the first and the last block")
    op, why = place.item("op").one_of(OPS), place.text_of("why")
    # Version 0.1.0 gave a reason to no other step with blocks that were online.
    was_late = late.flag() if late else op in ("keep", "offline") and bool(why)
    return Step(op, area.start, area.end, numbers[0], numbers[1], _zone(place.given("zone")), why, was_late)


def _zone(place: _Place | None) -> str:
    return place.one_of(ZONES) if place else ""


def _done(place: _Place) -> Done:
    if dry := place.given("dry_run"):
        return Done(dry_run=dry.flag())
    complete = place.given("complete")
    return Done(
        complete=complete.flag() if complete else False,
        bytes_onlined=place.number_of("bytes_onlined"),
        bytes_wanted=place.number_of("bytes_wanted"),
        bytes_quarantined=place.number_of("bytes_quarantined"),
        masked=tuple(item.text() for item in place.items_of("masked")),
        problems=place.notes("problems", "problem_codes") if place.given("problems") else (),
        shortfall=place.text_of("shortfall"),
    )


def _share(place: _Place) -> Share:
    area, seconds = place.item("range").area(), place.given("seconds_in_use")
    kind, why = place.item("kind").one_of(KINDS), place.text_of("why")
    return Share(kind, area.start, area.end, why, seconds.number() if seconds else -1)


def _release(place: _Place) -> Release:
    state, forced = place.given("state"), place.given("forced")
    return Release(
        time=place.item("time").number(),
        reason=place.item("reason").text(),
        ranges=place.item("ranges").areas(),
        state=state.one_of(_RELEASE_STATES) if state else "done",
        forced=forced.flag() if forced else False,
    )


def _counts(place: _Place) -> Counts:
    if place.item("schema").number() != incidents.SCHEMA:
        schema = place.item("schema").value
        raise _Newer(f"{place.where}: schema {schema} is not {incidents.SCHEMA}, which this version reads")
    numbers = {name: place.item(name).number() for name in incidents.NUMBERS}
    return Counts(
        **numbers,
        onlined_by_others=place.item(incidents.KEYS["onlined_by_others"]).areas(),
        touched=place.item("touched").areas(),
        last=tuple(_incident(item) for item in place.item("last").items()),
    )


def _incident(place: _Place) -> Incident:
    return Incident(
        time=place.item("time").number(),
        ranges=place.item("ranges").areas(),
        taken_offline=place.item("taken_offline").number(),
        suspects=tuple(
            Suspect(item.item("who").text(), item.item("evidence").text()) for item in place.item("suspects").items()
        ),
    )
