# SPDX-License-Identifier: MIT
"""Captures, records, releases and counts: a round trip, and one clear message for every broken file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot import account, engine, probe, record
from safemem.boot.model import ACTIONS, FACTS, Blocks, Note, Override, Rule
from safemem.boot.ranges import Range
from safemem.boot.record import Done
from safemem.host import incidents, reader
from safemem.host.incidents import Counts, Incident
from safemem.host.reader import Release
from safemem.host.suspects import Suspect
from tests.fakes import BLOCK, make_root
from tests.kit import block_runs, policy, snapshot

RECORDS = sorted((Path(__file__).parent / "records").glob("*.json"))


def document(tmp_path: Path) -> dict[str, Any]:
    """Return a good capture as JSON values."""
    loaded: dict[str, Any] = json.loads(
        reader.capture_text(probe.read_snapshot(str(make_root(tmp_path, offered=True, kho_in=True))))
    )
    return loaded


@pytest.mark.parametrize("options", [{}, {"offered": True, "kho_in": True}, {"debugfs": False, "config": None}])
def test_round_trip(tmp_path: Path, options: dict[str, Any]) -> None:
    """What is captured comes back as it was."""
    snapshot = probe.read_snapshot(str(make_root(tmp_path, **options)))

    assert snapshot == reader.snapshot_from_text(reader.capture_text(snapshot), "x")


def _set(*path: Any) -> Any:
    def change(doc: dict[str, Any]) -> None:
        at: Any = doc
        for key in path[:-2]:
            at = at[key]
        at[path[-2]] = path[-1]

    return change


BAD: list[tuple[Any, str]] = [
    (_set("schema", 2), "x: schema: 2 is newer than the 1 that this safemem reads; use the safemem that wrote it"),
    (_set("schema", "1"), "x: schema: `1` is not a schema number"),
    (_set("kind", "other"), "x: this is neither a capture nor a decision record of safemem"),
    (
        lambda d: d["snapshot"]["blocks"].append(
            {"first": 33, "last": 33, "state": "online", "node": 0, "driver": "dimm"}
        ),
        "x: snapshot.blocks: block 33 is there twice",
    ),
    (_set("snapshot", "blocks", 0, "first", 9), "x: snapshot.blocks[0]: `last` lies before `first`"),
    (
        _set("snapshot", "blocks", 0, "state", "on"),
        "x: snapshot.blocks[0].state: `on` is not one of online, offline, going-offline, unknown",
    ),
    (_set("snapshot", "facts", "weather", {}), "x: snapshot.facts: `weather` is not a fact"),
    (
        _set("snapshot", "facts", "luo", "value", "fine"),
        "x: snapshot.facts.luo.value: `fine` is not one of off, ready, failed, busy, missing, unknown",
    ),
    (lambda d: d["snapshot"].pop("cmdline"), "x: snapshot: `cmdline` is missing"),
    (
        _set("snapshot", "guard", "0x2000-0x1000"),
        "x: snapshot.guard: range `0x2000-0x1000` is backwards: its end lies before its start",
    ),
    (_set("snapshot", "block_size", 0), "x: snapshot.block_size: 0, but there are blocks"),
    (
        _set("snapshot", "block_size", 1 << 64),
        "x: snapshot.block_size: `18446744073709551616` should be a whole number from 0 to 2^64",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_captures(tmp_path: Path, change: Any, message: str) -> None:
    """Each kind of damage gives one sentence with its place."""
    doc = document(tmp_path)
    change(doc)
    with pytest.raises(reader.Invalid) as caught:
        reader.snapshot_from_text(json.dumps(doc), "x")

    assert message == str(caught.value)


def test_truncated_anywhere(tmp_path: Path) -> None:
    """A capture cut off at any byte is refused."""
    text = json.dumps(document(tmp_path))
    for end in range(0, len(text) - 1, 7):
        with pytest.raises(reader.Invalid):
            reader.snapshot_from_text(text[:end], "x")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["schema", "kind", "snapshot", "facts"]), inner)
        ),
    )
)
def test_total(value: Any) -> None:
    """Any JSON gives a snapshot or Invalid."""
    for kind in (value, {"schema": 1, "kind": "capture", "snapshot": value}):
        with pytest.raises(reader.Invalid):
            reader.snapshot_from_text(json.dumps(kind), "x")


def test_deep_nesting_is_refused() -> None:
    """A file nested a million deep is refused, not a crash."""
    with pytest.raises(reader.Invalid):
        reader.snapshot_from_text("[" * 1_000_000, "x")


# ---- records


def _done(fields: dict[str, Any]) -> Done:
    return Done(**fields)


def _rule(fields: dict[str, Any]) -> Rule:
    return Rule(**fields)


notes = st.lists(
    st.builds(Note, st.sampled_from(["too-late", "state-unknown"]), st.text(min_size=1, max_size=9)), max_size=3
).map(tuple)
sizes = st.integers(0, 1 << 50)
dones = st.none() | st.just(Done(dry_run=True)) | st.fixed_dictionaries({
    "complete": st.booleans(), "bytes_onlined": sizes, "bytes_wanted": sizes, "bytes_quarantined": sizes,
    "masked": st.lists(st.sampled_from(["40-x.rules", "kdump.service"])).map(tuple), "problems": notes,
    "shortfall": st.sampled_from(["", "too little"]),
}).map(_done)  # fmt: skip
areas = st.tuples(st.integers(0, 40 * BLOCK), st.integers(1, 9 * BLOCK)).map(lambda pair: Range(pair[0], sum(pair)))
overrides = areas.map(lambda area: Override(range=area, hold=True)) | st.tuples(
    st.integers(0, 1), st.sampled_from(["movable", "kernel", "auto"])
).map(lambda pair: Override(node=pair[0], zone=pair[1]))
rules = st.fixed_dictionaries({
    "name": st.just("otherwise"), "action": st.sampled_from(ACTIONS), "message": st.sampled_from(["", "handover lost"]),
    "zone": st.sampled_from(["", "kernel"]), "enter": st.sampled_from(["", "maintenance"]), "on_shortfall": st.sampled_from(["continue", "panic"]),
    "exposed_max": st.sampled_from(["", "1%"]), "boot_memory": st.sampled_from(["leave", "offline"]),
    "floor": st.sampled_from(["", "256MiB"]), "accept_data_exposure": st.booleans(),
    "if_onlined": st.sampled_from(["report", "offline"]), "final": st.booleans(), "quiesce": st.sampled_from(["", "pci"]),
}).map(_rule)  # fmt: skip


@given(
    rule=rules, blocks=block_runs(), after=block_runs(), guard=st.none() | areas, memory=st.lists(overrides, max_size=2),
    region=st.none() | areas, done=dones, said=notes, handover=st.sampled_from(FACTS["handover"][1]),
    taken=st.dictionaries(st.integers(0, 40), st.integers(-1, 3)), asked=st.sampled_from([(), ("off",), ("dry-run",)]),
)  # fmt: skip
def test_a_record_comes_back_as_it_was(
    rule: Rule, blocks: tuple[Blocks, ...], after: tuple[Blocks, ...], guard: Range | None, memory: list[Override],
    region: Range | None, done: Done | None, said: tuple[Note, ...], handover: str, taken: dict[int, int],
    asked: tuple[str, ...],
) -> None:  # fmt: skip
    """Values, codes and all; of the rule that decided, everything but its conditions."""
    found = snapshot(blocks, handover=handover, nodes=("LUO",), kexec_count=3)
    found = found._replace(guard=guard, notes=said, overrides=asked)
    made = policy(
        otherwise=rule, sources=(region or "none",), memory=tuple(memory), keep_crashkernel="256MiB",
        allow_cmdline_override=True, digest="0" * 64,
    )  # fmt: skip
    decision = engine.decide(made, found)
    shares = account.account(decision, found, after, (account.Guarded(guard),) if guard else (), {}, taken)
    text = record.record_text(found, decision, done, account.to_json(shares), account.totals(shares))
    back = reader.record_from_text(text, "x")

    assert back.decision.rule._replace(message=decision.rule.message, zone=decision.rule.zone) == decision.rule
    assert back.decision == decision._replace(rule=back.decision.rule)
    assert (back.done, back.account, back.snapshot) == (done, shares, found)
    assert back.decision.holds == decision.holds
    for one, other in ((back.decision.warnings, decision.warnings), (back.snapshot.notes, said)):
        assert [note.code for note in one] == [note.code for note in other]
    again = record.record_text(
        back.snapshot, back.decision, back.done, account.to_json(back.account), account.totals(back.account)
    )
    assert again == text  # fmt: skip


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_records_of_version_0_1_0(path: Path) -> None:
    """They lack codes, `late`, and words of the rule; they read as that version meant them."""
    text = path.read_text()
    found = reader.record_from_text(text, str(path))
    old: dict[str, Any] = json.loads(text)["decision"]
    new: dict[str, Any] = record.decision_to_json(found.decision)

    assert {key for key in new if key not in old} == {
        "accept_data_exposure",
        "accept_errors",
        "boot_memory",
        "memory",
        "quiesce",
        "warning_codes",
    }
    if old["facts"]["guard"]["value"] == "held":  # as it was called
        old["facts"]["guard"]["value"] = "full"
    assert {key: new[key] for key in old if key != "plan"} == {key: old[key] for key in old if key != "plan"}
    late = [step.op for step in found.decision.steps if step.late]
    assert late == (["offline"] if "safe" in path.stem else [])
    plan = [{key: value for key, value in step.items() if key not in ("late", "node")} for step in new["plan"]]
    assert plan == old["plan"]
    assert {note.code for note in (*found.decision.warnings, *(found.done.problems if found.done else ()))} == {""}
    assert account.to_json(found.account) == json.loads(text)["account"]


def decided() -> dict[str, Any]:
    """Return a good record as JSON values."""
    found: dict[str, Any] = json.loads(RECORDS[-1].read_text())
    return found


BAD_RECORDS: list[tuple[Any, str]] = [
    (_set("kind", "capture"), "x: this is a capture, not the record of a decision"),
    (lambda d: d.pop("decision"), "x: `decision` is missing"),
    (lambda d: d.pop("result"), "x: `result` is missing"),
    (_set("decision", []), "x: decision: should be an object"),
    (
        _set("decision", "action", "online-al"),
        "x: decision.action: `action` is `online-al`, not one of `online-all`, `online-safe`, `panic`, `reboot`, `halt`",
    ),
    (lambda d: d["decision"].pop("action"), "x: decision: `action` is missing"),
    (_set("decision", "enter", "bios"), "x: decision.enter: `enter` is `bios`, not one of ``, `maintenance`"),
    (_set("decision", "final", 1), "x: decision.final: `final` is `1`, neither true nor false"),
    (_set("decision", "policy", "digest", None), "x: decision.policy.digest: should be text"),
    (
        _set("decision", "exceptions", 0, "hold", False),
        "x: decision.exceptions: `exceptions[0]` is not one range, node or driver with hold or a zone",
    ),
    (_set("decision", "facts", "weather", {}), "x: decision.facts: `weather` is not a fact"),
    (
        _set("decision", "safe_region", "ranges", 0, "everything"),
        "x: decision.safe_region.ranges[0]: `everything` is not a range START-END, such as 0x100000000-0x1ffffffff",
    ),
    (
        _set("decision", "plan", 0, "op", "explode"),
        "x: decision.plan[0].op: `explode` is not one of online, offline, hold, keep, release-guard, keep-guard",
    ),
    (_set("decision", "plan", 0, "blocks", [1]), "x: decision.plan[0].blocks: should be the first and the last block"),
    (_set("decision", "plan", 0, "late", "yes"), "x: decision.plan[0].late: `yes` should be true or false"),
    (_set("decision", "arrivals", "here"), "x: decision.arrivals: `here` is not one of auto, movable, kernel"),
    (_set("decision", "warning_codes", ["a", "b"]), "x: decision: 1 warnings, but 2 warning_codes"),
    (_set("result", "complete", "yes"), "x: result.complete: `yes` should be true or false"),
    (_set("result", "bytes_onlined", -1), "x: result.bytes_onlined: `-1` should be a whole number from 0 to 2^64"),
    (_set("result", "masked", "a"), "x: result.masked: should be a list"),
    (
        _set("account", 0, "kind", "lost"),
        "x: account[0].kind: `lost` is not one of in_use, safe, guarded, held, quarantined, exposed",
    ),
    (_set("account", 0, "seconds_in_use", "3"), "x: account[0].seconds_in_use: `3` should be a whole number from 0 to 2^64"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD_RECORDS, ids=[message for _, message in BAD_RECORDS])
def test_bad_records(change: Any, message: str) -> None:
    """Each kind of damage gives one sentence with its place; a value that this version does not know is one."""
    doc = decided()
    change(doc)
    with pytest.raises(reader.Invalid) as caught:
        reader.record_from_text(json.dumps(doc), "x")

    assert message == str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value in a document."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(more for key, item in below for more in _places(item, (*path, key)))]


@given(place=st.sampled_from(_places(decided())[1:]), value=_JSON)
def test_any_value_anywhere(place: tuple[Any, ...], value: Any) -> None:
    """Whatever stands in the place of a record's value, there is a Record or a sentence, never anything else."""
    doc = decided()
    _set(*place, value)(doc)
    try:
        found = reader.record_from_text(json.dumps(doc), "x")
    except reader.Invalid as error:
        assert str(error).startswith("x: ")
    else:
        account.totals(found.account)
        record.decision_to_json(found.decision)


# ---- releases and counts


def test_releases_come_back(tmp_path: Path) -> None:
    """Also those that an older version wrote, which have no state because they were whole."""
    path = tmp_path / "releases.json"
    items = (Release(7, "because", (Range(0, 4096), Range(8192, 1 << 64)), "partly", True), Release(8, "x", (), "done"))
    path.write_text(json.dumps(reader.releases_to_json(items)))
    assert reader.releases(str(path)) == items
    path.write_text('[{"time": 7, "reason": "because", "ranges": []}]')
    assert reader.releases(str(path)) == (Release(7, "because", (), "done", False),)


@pytest.mark.parametrize(
    "change", [{"state": "over"}, {"time": "now"}, {"ranges": ["all"]}, {"forced": "no"}, {"reason": None}]
)
def test_releases_that_cannot_be_read(tmp_path: Path, change: dict[str, Any]) -> None:
    """One sentence, whichever value is wrong: nobody may guess what was released."""
    path = tmp_path / "releases.json"
    path.write_text(json.dumps([{"time": 7, "reason": "x", "ranges": [], "state": "done", **change}]))
    with pytest.raises(reader.Invalid) as caught:
        reader.releases(str(path))

    assert str(caught.value) == f"{path}: what was released by hand cannot be read"


def test_counts_come_back(tmp_path: Path) -> None:
    """What the daemon wrote, a restart reads; the file's own words stay those that it always had."""
    last = (Incident(5, (Range(0, 4096),), 4096, (Suspect("somebody", "a file"),)),)
    counts = Counts(1, 2, 3, 4, 5, 6, (Range(0, 4096),), (Range(0, 8192),), last)
    incidents.write(str(tmp_path), counts)

    assert reader.counts(str(tmp_path / incidents.COUNTS)) == counts
    assert json.loads((tmp_path / incidents.COUNTS).read_text())["loose"] == ["0x0-0xfff"]


def test_the_reader_alone_looks_into_json() -> None:
    """Beyond it there are values with types: no table of anything in the rooms that show and use them."""
    package = Path(reader.__file__).parent.parent
    loose = [
        path
        for room in ("host", "render", "cli")
        for path in (package / room).glob("*.py")
        if path.name != "reader.py" and ("dict[str, Any]" in path.read_text() or "json.load" in path.read_text())
    ]

    assert loose == []
