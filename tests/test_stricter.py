# SPDX-License-Identifier: MIT
"""A policy that the command line names, beside the one that is built in: nowhere looser than either, on drawn machines."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from safemem.boot import main as boot
from safemem.boot.model import FINAL, Override, Policy, Rule
from tests.draws import AREAS, DRAWS, Machine, came_of, decide, looser, machines, outcome, policies
from tests.kit import policy, snapshot

#: Not shrunk: two policies and eight machines take minutes to make small.
SEARCH = settings(
    max_examples=max(300, DRAWS // 4), deadline=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)  # fmt: skip
#: Without a device and a token: if either policy opens the one or retrieves the other, both see more.
MET = st.lists(machines().map(lambda met: met._replace(device=False, token="")), min_size=8, max_size=8)


class Came(NamedTuple):
    """What comes of a decision."""

    action: str
    outcome: dict[Any, int]


def alone(own: Policy, machine: Machine) -> Came:
    """Return what comes of one policy."""
    return Came(decide(own, machine).action, outcome(own, machine))


def together(own: Policy, named: tuple[Policy, ...], machine: Machine, cmdline: str | None) -> Came:
    """Return what comes of the built-in policy with those that have a say beside it."""
    decision, limits = boot._decide(own, named, machine.snapshot, cmdline)
    return Came(decision.action, came_of(decision, limits, own.on_failure.deadline, machine))


def respects(before: Came, after: Came) -> list[Any]:
    """Return in which respects the second is looser; whoever ends the boot at once puts nothing to use before."""
    if after.action in FINAL and before.action not in FINAL:
        return []
    return looser(before.outcome, after.outcome)


@SEARCH
@given(policies(), policies(), MET)
def test_a_named_policy_never_loosens(own: Policy, named: Policy, met: list[Machine]) -> None:
    """Block by block, and in every word, limit and exception, the two together are as strict as the one that is built in."""
    own = own._replace(allow_cmdline_override=False)
    for machine in met:
        assert not respects(alone(own, machine), together(own, (named,), machine, "safemem.policy=test"))


@SEARCH
@given(policies(), policies(), policies(), MET)
def test_an_unread_command_line_never_loosens(own: Policy, one: Policy, other: Policy, met: list[Machine]) -> None:
    """Where any of those that are built in may have been named, all of them together are as strict as any that was."""
    own = own._replace(allow_cmdline_override=False)
    for machine in met:
        seen = machine._replace(snapshot=machine.snapshot._replace(overrides=()))
        unread = together(own, (one, other), seen, None)
        assert not respects(alone(own, seen), unread)
        for named in (one, other):
            # Of floors that cannot be compared, the built-in policy's counts.
            less = respects(together(own, (named,), seen, "safemem.policy=test"), unread)
            assert not [respect for respect in less if respect != "floor"]


@pytest.mark.parametrize(
    ("own", "named", "found"),
    [
        # A zone that the other gives is not taken, a hold is.
        ({}, {"memory": (Override(node=0, zone="kernel"),)}, {"memory": ()}),
        ({}, {"memory": (Override(node=0, hold=True),)}, {"memory": (Override(node=0, hold=True),)}),
        # A reset loosens everything in the boot that follows.
        ({"on_shortfall": "panic"}, {"on_shortfall": "reboot"}, {"on_shortfall": "panic"}),
        ({"on_shortfall": "reboot"}, {"on_shortfall": "panic"}, {"on_shortfall": "panic"}),
        ({"action": "reboot"}, {"action": "panic"}, {"action": "panic"}),
        ({"action": "halt"}, {"action": "panic"}, {"action": "halt"}),
        # The default is 128 MiB and more.
        ({"floor": ""}, {"floor": "64GiB"}, {"floor": ""}),
        ({"floor": "64GiB"}, {"floor": ""}, {"floor": "64GiB"}),
        ({"floor": ""}, {"floor": "64MiB"}, {"floor": "64MiB"}),
        ({"floor": "2GiB"}, {"floor": "1GiB"}, {"floor": "1GiB"}),
        # What changes nothing now counts for what arrives.
        ({"sources": (AREAS[0], AREAS[2])}, {"sources": AREAS[:1]}, {"region": AREAS[:1]}),
    ],
)
def test_the_stricter_of_two_words(own: dict[str, Any], named: dict[str, Any], found: dict[str, Any]) -> None:
    """Each word of a policy that the command line names counts where that is stricter, and nowhere else."""

    def said(more: dict[str, Any]) -> Policy:
        words = {"action": "online-safe", **({"boot_memory": "offline"} if "floor" in more else {}), **more}
        beside = {key: words.pop(key) for key in ("memory", "sources") if key in words}
        return policy(otherwise=Rule("otherwise", **words), **beside)

    decision, _ = boot._decide(said(own), (said(named),), snapshot(), "safemem.policy=test")

    assert {
        **decision.rule._asdict(),
        "memory": decision.policy.memory,
        "region": decision.region,
    }.items() >= found.items()
