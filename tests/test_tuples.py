# SPDX-License-Identifier: MIT
"""What stands in for `typing` and `json` on the boot path behaves like the original."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot import plainjson
from safemem.boot.model import Blocks, Fact

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_named_tuple() -> None:
    """Fields by place, by name and by default; equal to, ordered and hashed as the plain tuple."""
    assert Blocks(1, 2, "online") == Blocks(last=2, first=1, state="online", node=-1, driver="unknown")
    assert tuple(Blocks(1, 2, "online")) == (1, 2, "online", -1, "unknown")
    assert Blocks(1, 2, "online")._replace(last=9).last == 9
    assert Blocks(1, 2, "online")._asdict() == {
        "first": 1,
        "last": 2,
        "state": "online",
        "node": -1,
        "driver": "unknown",
    }
    assert repr(Fact("a", "b")) == "Fact(value='a', source='b', reason='')"
    assert {Fact("a", "b"): 1}[Fact("a", "b", "")] == 1
    assert sorted([Blocks(2, 2, "x"), Blocks(1, 9, "x")])[0].first == 1
    assert pickle.loads(pickle.dumps(Fact("a", "b"))) == copy.copy(Fact("a", "b")) == Fact("a", "b")


@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        ((1, 2), {}, "Blocks: `state` is missing"),
        ((1, 2, "x", 0, "kmem", 6), {}, "Blocks takes first, last, state, node, driver"),
        ((1, 2, "x"), {"nide": 3}, "Blocks takes first, last, state, node, driver"),
        ((1, 2, "x"), {"first": 3}, "Blocks takes first, last, state, node, driver"),
    ],
)
def test_named_tuple_with_wrong_arguments(values: Any, named: Any, message: str) -> None:
    """A wrong call is a TypeError that names the field."""
    with pytest.raises(TypeError) as caught:
        Blocks(*values, **named)
    assert str(caught.value) == message


def test_fields_cannot_be_set() -> None:
    """A tuple stays what it is."""
    with pytest.raises(AttributeError):
        Fact("a", "b").value = "c"  # type: ignore[misc]


@given(VALUES)
def test_json_as_the_library_does_it(value: Any) -> None:
    """Both ways, every value: byte for byte what `json` writes, and what it reads."""
    text = plainjson.dumps(value)

    assert text == json.dumps(value, separators=(",", ":"))
    assert plainjson.dumps(value, sort=True) == json.dumps(value, separators=(",", ":"), sort_keys=True)
    assert plainjson.loads(text) == value
    assert plainjson.loads(json.dumps(value, indent=1) + "\n") == value


@given(st.text(alphabet='{}[]",:0123456789eE+-.truefalsn \\u\n'))
def test_json_refuses_what_the_library_refuses(text: str) -> None:
    """No text is JSON here and not there, leading spaces apart, which nobody writes."""
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            plainjson.loads(text)
        return
    if text[:1].strip():
        assert plainjson.loads(text) == expected
