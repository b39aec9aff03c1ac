# SPDX-License-Identifier: MIT
"""Captures, records, releases and counts read back into values; the only module that looks into their JSON.

Every value is checked where it is read, so that whatever uses it need not ask again. Records of version 0.1.0
lack codes, `late` and some of a rule's words; they read as that version meant them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar, get_args

from safemem.boot import compiled, files
from safemem.boot.account import KINDS, Share
from safemem.boot.devices import is_address
from safemem.boot.memory import GIGANTIC
from safemem.boot.model import (
    DRIVERS,
    FACTS,
    OLDER,
    UNKNOWN,
    ZONES,
    Blocks,
    Decision,
    Device,
    Fact,
    Miss,
    Override,
    Pages,
    PolicyId,
    Room,
    Rule,
    Snapshot,
    Step,
)
from safemem.boot.ranges import Range
from safemem.boot.record import SCHEMA, Done, capture_to_json
from safemem.host import incidents
from safemem.host.incidents import Counts, Incident
from safemem.host.place import Invalid as Invalid  # whoever reads catches it
from safemem.host.place import Place
from safemem.host.suspects import Suspect

_STATES = ("online", "offline", "going-offline", UNKNOWN)
OPS = ("online", "offline", "hold", "keep", "release-guard", "keep-guard")
#: How far a release has come. The first is on the disk before anything is given back, so that nothing is given
#: back unsaid.
State = Literal["begun", "partly", "done"]
_RELEASE_STATES: tuple[State, ...] = get_args(State)
_Value = TypeVar("_Value")


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
    nodes: tuple[int, ...] = ()  #: whose gigantic pages go, beside what is in `ranges`


def capture_text(snapshot: Snapshot) -> str:
    """Return the file that `safemem capture` writes."""
    return json.dumps(capture_to_json(snapshot), indent=1) + "\n"


def snapshot_from_text(text: str, where: str) -> Snapshot:
    """Return the snapshot in a capture or record.

    Raises:
        Invalid: not JSON, not such a file, of a newer schema, or inconsistent.
    """
    return _snapshot(_document(text, where).item("snapshot"))


def state_from_text(text: str, where: str) -> tuple[Snapshot, Record | None]:
    """Return the snapshot in a capture or record, and the record if it is one. Raises as `snapshot_from_text` does."""
    place = _document(text, where)
    if place.item("kind").value == "capture":
        return _snapshot(place.item("snapshot")), None
    found = _record(place)
    return found.snapshot, found


def record_from_text(text: str, where: str) -> Record:
    """Return what is in the record of a decision. Raises Invalid, also for a capture."""
    place = _document(text, where)
    if place.item("kind").value == "capture":
        raise Invalid(f"{where}: this is a capture, not the record of a decision")
    return _record(place)


def _record(place: Place) -> Record:
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
    return [
        {**item._asdict(), "ranges": [str(area) for area in item.ranges], "nodes": list(item.nodes)} for item in items
    ]


def counts(path: str) -> Counts:
    """Return what `watch` has counted, as the file at `path` says. Raises as `record` does."""
    return _read(path, "what watch has counted cannot be read", _counts)


def digests(path: str) -> frozenset[str]:
    """Return the digests in the list at `path`. Raises as `record` does."""
    return _read(
        path, "which endings were there cannot be read", lambda place: frozenset(item.text() for item in place.items())
    )


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        # What is there and not found when it is read is not missing.
        if isinstance(error, FileNotFoundError) and not os.path.lexists(path):
            raise
        raise Invalid(f"{path}: {files.reason(error)}") from None
    except UnicodeDecodeError:
        raise Invalid(f"{path}: not text") from None


class _Newer(Invalid):
    """A file is of a schema that this version does not read."""


def _read(path: str, otherwise: str, use: Callable[[Place], _Value]) -> _Value:
    """Return what `use` makes of the JSON at `path`; whatever is wrong with it, the message is `otherwise`."""
    try:
        return use(Place(json.loads(_text(path)), path))
    except _Newer as error:
        raise Invalid(str(error)) from None
    except (Invalid, ValueError, RecursionError):
        raise Invalid(f"{path}: {otherwise}") from None


def _document(text: str, where: str) -> Place:
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
    return Place(document, where)


def _snapshot(place: Place) -> Snapshot:
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
        room=_room(room) if (room := place.given("room")) else Room(),
        gigantic=tuple(_pages(item) for item in place.items_of("gigantic")),
        masters=tuple(_device(item) for item in place.items_of("masters")),
    )


def _device(place: Place) -> Device:
    vendor, device = (place.item(key) for key in ("vendor", "device"))
    for item in (vendor, device):
        if item.number() > 0xFFFF:
            raise Invalid(f"{item.where}: `{item.value}` should be a number of 16 bits")
    return Device(_address(place.item("address")), vendor.number(), device.number())


def _address(place: Place) -> str:
    text = place.text()
    if not is_address(text):
        raise Invalid(f"{place.where}: `{text}` is no address of a PCI function, such as 0000:00:03.0")
    return text


def _pages(place: Place) -> Pages:
    node, size, number, free, own = (place.item(key).number() for key in ("node", "size", "number", "free", "own"))
    return Pages(node, size, number, free, own, place.item("ranges").areas())


def _room(place: Place) -> Room:
    kernel, ram = (place.item(key).areas() for key in ("kernel", "ram"))
    # Older captures lack the rest.
    firmware, taken = (given.areas() if (given := place.given(key)) else () for key in ("firmware", "taken"))
    page = place.number_of("gigantic")
    if page not in (0, GIGANTIC):  # with a smaller one, there are more of them than anybody can list
        raise Invalid(f"{place.where}: `gigantic` is neither 0 nor {GIGANTIC}, the bytes of a gigantic page")
    return Room(
        kernel, ram, place.item("available").number(), place.item("initrd").number(), firmware, taken, page,
    )  # fmt: skip


def _blocks(place: Place) -> Blocks:
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


def _facts(place: Place) -> dict[str, Fact]:
    for name in place.table():
        if name not in FACTS:
            raise Invalid(f"{place.where}: `{name}` is not a fact")
    return {name: _fact(name, place.item(name)) for name in place.table()}


def _fact(name: str, place: Place) -> Fact:
    kind, values = FACTS[name]
    raw = place.item("value")
    if isinstance(raw.value, str):
        raw = Place(OLDER.get((name, raw.value), raw.value), raw.where)
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


def _decision(place: Place) -> Decision:
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
            memory=Place({"exceptions": exceptions}, place.where).word(compiled.POLICY, "memory", (), "exceptions"),
            keep_crashkernel=place.word(compiled.POLICY, "keep_crashkernel", ""),
            accept_errors=place.word(compiled.POLICY, "accept_errors", ()),
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


def _miss(place: Place) -> Miss:
    return Miss(*(place.item(key).text() for key in ("rule", "fact", "wanted", "value", "source")))


def _step(place: Place) -> Step:
    area, blocks, late = place.item("range").area(), place.given("blocks"), place.given("late")
    numbers = [item.number() for item in blocks.items()] if blocks else [-1, -1]
    if len(numbers) != 2:
        raise Invalid(f"{place.where}.blocks: should be the first and the last block")
    op, why = place.item("op").one_of(OPS), place.text_of("why")
    # Version 0.1.0 gave a reason to no other step with blocks that were online.
    was_late = late.flag() if late else op in ("keep", "offline") and bool(why)
    node = place.number_of("node") if place.given("node") else -1
    return Step(op, area.start, area.end, numbers[0], numbers[1], _zone(place.given("zone")), why, was_late, node)


def _zone(place: Place | None) -> str:
    return place.one_of(ZONES) if place else ""


def _done(place: Place) -> Done:
    if dry := place.given("dry_run"):
        return Done(dry_run=dry.flag())
    complete, observed = place.given("complete"), place.given("observed")
    return Done(
        complete=complete.flag() if complete else False,
        bytes_onlined=place.number_of("bytes_onlined"),
        bytes_wanted=place.number_of("bytes_wanted"),
        bytes_quarantined=place.number_of("bytes_quarantined"),
        masked=tuple(item.text() for item in place.items_of("masked")),
        problems=place.notes("problems", "problem_codes") if place.given("problems") else (),
        shortfall=place.text_of("shortfall"),
        quiesced=tuple(_address(item) for item in place.items_of("quiesced")),
        observed=observed.flag() if observed else False,
    )


def _share(place: Place) -> Share:
    area, seconds = place.item("range").area(), place.given("seconds_in_use")
    kind, why = place.item("kind").one_of(KINDS), place.text_of("why")
    return Share(kind, area.start, area.end, why, seconds.number() if seconds else -1)


def _release(place: Place) -> Release:
    state, forced = place.given("state"), place.given("forced")
    return Release(
        time=place.item("time").number(),
        reason=place.item("reason").text(),
        ranges=place.item("ranges").areas(),
        state=state.one_of(_RELEASE_STATES) if state else "done",
        forced=forced.flag() if forced else False,
        nodes=tuple(item.number() for item in place.items_of("nodes")),
    )


def _counts(place: Place) -> Counts:
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


def _incident(place: Place) -> Incident:
    return Incident(
        time=place.item("time").number(),
        ranges=place.item("ranges").areas(),
        taken_offline=place.item("taken_offline").number(),
        suspects=tuple(
            Suspect(item.item("who").text(), item.item("evidence").text()) for item in place.item("suspects").items()
        ),
    )
