# SPDX-License-Identifier: MIT
"""Places of keys in TOML texts."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.policy import places

TEXT = """\
a = 1  # a comment with = and [
b.c = "x = [ # {"
d = [ 1, [2,
  3], { e = '''
]''' , "f g" = 1.5 } ]

[t . "u v"]
k = 1979-05-27 07:32:00

[[r]]
n = 1
[r.s]
m = \"\"\"a "quoted\\\" text\"\"\"\"\"
[[r]]
n = 2
[[r.q]]
z = true
[[r.q]]
z = false
"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("a",), (1, 1)),
        (("b", "c"), (2, 1)),
        (("d", 0), (3, 7)),
        (("d", 1, 1), (4, 3)),
        (("d", 2, "e"), (4, 9)),
        (("d", 2, "f g"), (5, 8)),
        (("t", "u v"), (7, 1)),
        (("t", "u v", "k"), (8, 1)),
        (("r", 0, "n"), (11, 1)),
        (("r", 0, "s", "m"), (13, 1)),
        (("r", 1), (14, 1)),
        (("r", 1, "q", 1, "z"), (19, 1)),
    ],
)
def test_find(path: places.Path, place: places.Place) -> None:
    """Every kind of table, key and array element has its place."""
    tomllib.loads(TEXT)
    assert place == places.find(TEXT)[path]


def test_nearest() -> None:
    """What has no place of its own has that of the table around it."""
    found = places.find(TEXT)
    assert places.nearest(found, ("r", 1, "missing", "deeper")) == (14, 1)
    assert places.nearest(found, ("missing",)) == (1, 1)


def _paths(value: Any, path: places.Path = ()) -> set[places.Path]:
    items: list[tuple[int | str, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return {path} | {p for key, item in items for p in _paths(item, (*path, key))}


_SCALARS = st.one_of(
    st.integers(-5, 10**6).map(str),
    st.booleans().map(lambda value: str(value).lower()),
    st.text(st.characters(blacklist_categories=("Cc", "Cs"), blacklist_characters='\\"'), max_size=8).map(
        '"{}"'.format
    ),
    st.text('ab"[]{}#=,.\n', max_size=8).map("'''{}'''".format),
    st.just("1979-05-27T07:32:00Z"),
)
_KEYS = st.text("abcXYZ_-9", min_size=1, max_size=4)


def _inline(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    tables = st.dictionaries(_KEYS, children, max_size=3).map(
        lambda d: "{ " + ", ".join(f"{k} = {v}" for k, v in d.items()) + " }"
    )
    return st.one_of(st.lists(children, max_size=3).map(lambda items: "[\n" + ", # x\n".join(items) + "\n]"), tables)


@given(st.dictionaries(_KEYS, st.recursive(_SCALARS, _inline, max_leaves=6), max_size=5))
def test_every_path_has_a_place(table: dict[str, str]) -> None:
    """On random documents every path that tomllib shows is found, on the line where its key is."""
    text = "".join(f"[[t]]\n{key} = {value}\n" for key, value in table.items())
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    found = places.find(text)
    assert _paths(document) - {()} == set(found)
    for path, (line, column) in found.items():
        if isinstance(path[-1], str) and path[-1] != "t":
            assert text.splitlines()[line - 1][column - 1 :].startswith(path[-1])
