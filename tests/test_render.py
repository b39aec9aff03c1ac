# SPDX-License-Identifier: MIT
"""What is drawn and said of a decision; tests of the commands have the whole text."""

from __future__ import annotations

import click
import pytest

from safemem.boot import engine
from safemem.boot.model import Blocks
from safemem.boot.ranges import Range
from safemem.host import reader
from safemem.render import decision as render
from safemem.render.text import plural, utc
from tests.kit import policy, snapshot


def test_every_step_is_drawn_and_has_a_verb() -> None:
    """Of what a step may be, only a guard that is given back has no sign."""
    assert set(reader.OPS) - set(render.SIGNS) == {"release-guard"}
    assert set(reader.OPS) == set(render.VERBS)


@pytest.mark.parametrize(
    ("action", "bar", "legend"),
    [
        (
            "online-safe",
            "[GGGG!!!!        ....]",
            ". held   G guarded\n! stays online, unprotected\none sign is 128 MiB",
        ),
        ("online-all", "[########        ++++]", "+ comes online   # online already\none sign is 128 MiB"),
    ],
)
def test_the_map(action: str, bar: str, legend: str) -> None:
    """One sign a cell, holes kept, what is kept back shown before what is not."""
    found = snapshot((Blocks(0, 7, "online"), Blocks(16, 19, "offline")))._replace(guard=Range(0, 1 << 29))
    drawn = render.memory_map(engine.decide(policy(otherwise=action, sources=("none",)), found).steps, 37)

    assert [click.unstyle(line) for line in drawn] == [f"0x0 {bar} 0x9fffffff", *legend.split("\n")]


def test_words() -> None:
    """One is one, none is many; times are in UTC."""
    assert [plural(number, "time") for number in (0, 1, 2)] == ["0 times", "1 time", "2 times"]
    assert utc(86400.5) == "1970-01-02 00:00:00 UTC"
