# SPDX-License-Identifier: MIT
"""Captures and records: a round trip, and one clear message for every broken file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot import probe
from safemem.host import reader
from tests.fakes import make_root


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
