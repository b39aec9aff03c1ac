# SPDX-License-Identifier: MIT
"""The compiled policy: what was written comes back, and nothing else is ever accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot import compiled
from safemem.policy import compiler, load
from tests import fakes

SHIPPED = compiler.dump(load.read(fakes.SHIPPED[0]))


def repack(change: Any) -> bytes:
    """Return the shipped policy with `change` made to its content and a digest that fits again."""
    document = json.loads(SHIPPED)
    change(document)
    body = {"format": document["format"], "policy": document["policy"]}
    document["digest"] = compiled.digest(body)
    return compiled.canonical(document) + b"\n"


@pytest.mark.parametrize("path", fakes.SHIPPED, ids=lambda path: path.stem)
def test_round_trip(path: Path) -> None:
    """Every shipped policy comes back as it was, with its digest, and is written the same way again."""
    authored = load.read(path)
    data = compiler.dump(authored)

    loaded = compiled.load(data, "p")
    assert loaded._replace(digest="") == authored._replace(digest="")
    assert len(loaded.digest) == 64
    assert compiler.dump(loaded) == data


def test_every_flipped_bit_is_refused() -> None:
    """One flipped bit anywhere, in a name as well as in a digest, makes the file unusable."""
    for place in range(len(SHIPPED)):
        for bit in range(8):
            damaged = bytearray(SHIPPED)
            damaged[place] ^= 1 << bit
            with pytest.raises(compiled.Invalid):
                compiled.load(bytes(damaged), "p")


def test_every_truncation_is_refused() -> None:
    """A file that was not written whole is refused, also if only the last newline is missing."""
    for length in range(len(SHIPPED)):
        with pytest.raises(compiled.Invalid):
            compiled.load(SHIPPED[:length], "p")


@given(
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_total(data: bytes) -> None:
    """Any bytes end in `Invalid`, never in another exception."""
    with pytest.raises(compiled.Invalid):
        compiled.load(data, "p")


@given(st.data())
def test_total_behind_a_good_digest(data: st.DataObject) -> None:
    """Whoever can compute a digest still cannot make the reader crash: each value is checked."""

    def change(document: dict[str, Any]) -> None:
        at: Any = document["policy"]
        while True:
            keys = sorted(at) if isinstance(at, dict) else range(len(at))
            key = data.draw(st.sampled_from(list(keys)))
            if isinstance(at[key], (dict, list)) and at[key] and data.draw(st.booleans()):
                at = at[key]
                continue
            at[key] = data.draw(st.none() | st.booleans() | st.integers() | st.text() | st.just([]) | st.just({}))
            return

    try:
        compiled.load(repack(change), "p")
    except compiled.Invalid as error:
        assert str(error).startswith("p: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "p: format `2` is newer than the 1 this safemem reads: compile the policy with the safemem that built this image, or rebuild the image"),
        (lambda d: d["policy"].update(rules=[]), "p: `policy.rules` is empty"),
        (lambda d: d["policy"]["on_failure"].update(action="online-all"), "p: `policy.on_failure.action` is `online-all`, not one of `panic`, `reboot`, `halt`"),
        (lambda d: d["policy"]["on_failure"].update(deadline=0), "p: `policy.on_failure.deadline` is `0`, not an integer between 1 and 600"),
        (lambda d: d["policy"]["rules"].append(d["policy"]["rules"][0]), "which is taken"),
        (lambda d: d["policy"]["otherwise"].update(message="x" * 251), "p: `policy.otherwise.message` is longer than 250 bytes"),
        (lambda d: d["policy"].pop("otherwise"), "p: `policy` lacks the key `otherwise`"),
        (lambda d: d["policy"].update(extra=1), "p: `policy` has the unknown key `extra`"),
        (lambda d: d["policy"]["otherwise"].update(action="online"), "p: `policy.otherwise.action` is `online`, not one of"),
        (lambda d: d["policy"].update(sources=["none", "cmdline"]), "p: `policy.sources[1]`: `cmdline` comes after `none`, which always ends the search"),
        (lambda d: d["policy"].update(sources=["0x1000-0x1fff", "0x1800-0x2fff"]), "p: `policy.sources[1]`: range `0x1800-0x2fff` overlaps `0x1000-0x1fff`"),
    ],
)  # fmt: skip
def test_bad_content(change: Any, message: str) -> None:
    """A digest that fits does not make wrong content right."""
    with pytest.raises(compiled.Invalid) as caught:
        compiled.load(repack(change), "p")
    assert message in str(caught.value)


def test_a_fraction_is_refused() -> None:
    """JSON has fractions, no policy has one, and so no digest of one can be told."""
    with pytest.raises(compiled.Invalid, match="p: the compiled policy holds a value that no policy has"):
        compiled.load(b'{"digest":"","format":1,"policy":{"name":1.5}}\n', "p")


@pytest.mark.parametrize("names", [[], ["40-a.rules"], ["vendor memory.rules", "\xe4\udcff\n.rules", '"']])
def test_a_list_of_names(names: list[str]) -> None:
    """It comes back as it was, blanks and all; cut off anywhere, empty or with a flipped bit it is refused."""
    data = compiled.names_text(names)

    assert compiled.names(data, "p") == names
    damaged = [data[:length] for length in range(len(data))]
    for place in range(len(data)):
        damaged += [data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :] for bit in range(8)]
    for other in (*damaged, b"40-a.rules\n", b"[]\n", b"{}\n", b"[" * 100_000):
        with pytest.raises(compiled.Invalid, match="p: the list of names is damaged or was edited"):
            compiled.names(other, "p")
