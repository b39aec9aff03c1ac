# SPDX-License-Identifier: MIT
"""`diff` never calls a policy nowhere looser that is looser somewhere: word by word, block by block, and by search."""

from __future__ import annotations

from typing import Any

import pytest

from safemem.boot.model import UNKNOWN, Failure, Override, Policy, Rule, Term
from safemem.boot.ranges import Range
from safemem.policy import compare, exceptions
from safemem.render import findings
from tests.kit import policy, rule, when

GIB = 1 << 30
KMEM = Override(driver="kmem", hold=True)


def verdict(old: Policy, new: Policy) -> str:
    """Return what `diff` says of two policies in one word."""
    return findings.verdict(compare.compare(old, new)[0])


PANICS = {"on_shortfall": "panic"}
OFF = {"boot_memory": "offline"}


@pytest.mark.parametrize(
    ("before", "after", "there", "back"),
    [
        ({}, {"final": True}, "stricter", "looser"),
        ({}, {"if_onlined": "offline"}, "stricter", "looser"),
        ({}, {"enter": "maintenance"}, "stricter", "looser"),
        ({}, PANICS, "stricter", "looser"),
        ({}, OFF, "stricter", "looser"),
        ({**PANICS, "final": True}, OFF, "both", "both"),
        ({**PANICS, "final": True, "if_onlined": "offline"}, {"enter": "maintenance"}, "both", "both"),
        ({"on_shortfall": "panic"}, {"on_shortfall": "halt"}, "different", "different"),
        ({"on_shortfall": "reboot"}, {"on_shortfall": "halt"}, "stricter", "looser"),
        ({"on_shortfall": "continue"}, {"on_shortfall": "reboot"}, "stricter", "looser"),
        ({}, {**PANICS, "exposed_max": "100%"}, "stricter", "looser"),
        (PANICS, {**PANICS, "exposed_max": "100%"}, "looser", "looser"),
        (PANICS, {**PANICS, "exposed_max": "1%"}, "looser", "looser"),
        ({**PANICS, "exposed_max": "1%"}, {**PANICS, "exposed_max": "0.9%"}, "stricter", "looser"),
        ({**PANICS, "exposed_max": "2GiB"}, {**PANICS, "exposed_max": "1GiB"}, "stricter", "looser"),
        ({**PANICS, "exposed_max": "1GiB"}, {**PANICS, "exposed_max": "1024MiB"}, "different", "different"),
        ({**PANICS, "exposed_max": "2GiB"}, {**PANICS, "exposed_max": "1%"}, "looser", "looser"),
        ({**PANICS, "exposed_max": "2GiB"}, {**PANICS, "exposed_max": "0.0%"}, "stricter", "looser"),
        ({**PANICS, "exposed_max": "100%"}, {**PANICS, "exposed_max": "999999999TiB"}, "stricter", "looser"),
        ({**PANICS, "exposed_max": "1%"}, {**PANICS, "exposed_max": "2GiB", "final": True}, "both", "looser"),
        (OFF, {**OFF, "floor": "128MiB"}, "stricter", "looser"),
        (OFF, {**OFF, "floor": "1GiB"}, "looser", "looser"),
        ({**OFF, "floor": "2GiB"}, {**OFF, "floor": "1GiB"}, "stricter", "looser"),
        ({}, {**OFF, "floor": "1GiB"}, "stricter", "looser"),
        ({"zone": "kernel"}, {"zone": "auto"}, "stricter", "looser"),
        ({"zone": "auto"}, {}, "stricter", "looser"),
        ({}, {"zone": "movable"}, "stricter", "looser"),
        ({"zone": "movable"}, {"zone": "kernel", "final": True}, "both", "both"),
    ],
)  # fmt: skip
def test_words(before: dict[str, str], after: dict[str, str], there: str, back: str) -> None:
    """A rule is judged in every word by itself, both ways."""
    old, new = (policy(otherwise=rule("online-safe", **words)) for words in (before, after))
    assert (verdict(old, new), verdict(new, old)) == (there, back)


@pytest.mark.parametrize(
    ("before", "after", "there", "back"),
    [
        ("online-all", "online-safe", "stricter", "looser"),
        ("online-safe", "reboot", "stricter", "looser"),
        ("reboot", "panic", "stricter", "looser"),
        ("panic", "halt", "different", "different"),
    ],
)
def test_actions(before: str, after: str, there: str, back: str) -> None:
    """Of the ways to end a boot, a reboot is the loosest: the boot after it uses all memory."""
    old, new = policy(otherwise=before), policy(otherwise=after)
    assert (verdict(old, new), verdict(new, old)) == (there, back)
    old, new = (policy(otherwise=rule(action, **PANICS, **OFF, final=True, enter="maintenance")) for action in (before, after))  # fmt: skip
    if before in ("reboot", "panic"):
        assert verdict(old, new) == there  # words beside an action that ends the boot do nothing


@pytest.mark.parametrize("action", ["online-all", "online-safe"])
def test_an_action_that_ends_the_boot_is_its_own_shortfall(action: str) -> None:
    """A reboot is stricter than memory that comes online, and looser than a panic if too much does."""
    old, new = policy(otherwise=rule(action, **PANICS)), policy(otherwise="reboot")
    assert (verdict(old, new), verdict(new, old)) == ("both", "both")
    assert verdict(policy(otherwise=rule(action, on_shortfall="reboot")), new) == "stricter"
    assert verdict(policy(otherwise=rule(action, **PANICS)), policy(otherwise="halt")) == "stricter"


def test_a_limit_is_compared_with_none() -> None:
    """With online-all there is none: all that should be held and is online counts, which a limit may let pass."""
    old = policy(otherwise=rule("online-all", **PANICS))
    new = policy(otherwise=rule("online-safe", **PANICS, exposed_max="1%"))
    assert (verdict(old, new), verdict(new, old)) == ("both", "looser")


NODE = Override(node=1, hold=True)
LOW, WIDE, ABOVE = Range(0, GIB), Range(0, 2 * GIB), Range(GIB, 2 * GIB)


@pytest.mark.parametrize(
    ("before", "after", "there", "back"),
    [
        ((KMEM, NODE), (NODE,), "looser", "stricter"),
        ((KMEM,), (), "looser", "stricter"),
        ((KMEM,), (NODE,), "both", "both"),
        ((KMEM, NODE), (NODE, KMEM), "different", "different"),
        ((Override(WIDE, hold=True),), (Override(LOW, hold=True),), "looser", "stricter"),
        ((Override(WIDE, hold=True),), (Override(ABOVE, hold=True),), "looser", "stricter"),
        ((Override(LOW, hold=True),), (Override(Range(0, GIB + 1), hold=True),), "stricter", "looser"),
        ((Override(WIDE, hold=True),), (Override(LOW, hold=True), Override(ABOVE, hold=True)), "different", "different"),
        ((Override(WIDE, zone="kernel"),), (Override(WIDE, zone="movable"),), "stricter", "looser"),
        ((Override(WIDE, zone="kernel"),), (Override(LOW, zone="kernel"), Override(ABOVE, zone="kernel")), "stricter", "looser"),
        ((Override(driver="dimm", zone="auto"),), (Override(driver="dimm", hold=True),), "stricter", "looser"),
        ((), (Override(driver="dimm", zone="movable"),), "stricter", "looser"),
        ((), (Override(driver="dimm", zone="kernel"),), "both", "both"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("action", ["online-all", "online-safe"])
def test_exceptions(action: str, before: Any, after: Any, there: str, back: str) -> None:
    """A hold that goes is looser, and one that comes is stricter, as blocks of any size show; any exception holds arrivals."""
    old, new = (policy(otherwise=action, memory=memory) for memory in (before, after))
    assert (verdict(old, new), verdict(new, old)) == (there, back)


def test_a_zone_is_compared_with_that_of_the_rule() -> None:
    """Without its exception a block goes where the rule says: `auto` is less than `kernel`, and more than the default."""
    memory = (KMEM, Override(driver="dimm", zone="auto"))
    old, new = (policy(otherwise=rule("online-all", zone="kernel"), memory=some) for some in (memory, memory[:1]))
    assert verdict(old, new) == "looser"
    old, new = (policy(otherwise=rule("online-all"), memory=some) for some in (memory, memory[:1]))
    assert verdict(old, new) == "stricter"


@pytest.mark.parametrize(
    ("before", "after", "there", "back"),
    [
        ({"keep_crashkernel": ""}, {"keep_crashkernel": "256MiB"}, "stricter", "looser"),
        ({"keep_crashkernel": "1GiB"}, {"keep_crashkernel": "512MiB"}, "looser", "stricter"),
        ({"allow_cmdline_override": False}, {"allow_cmdline_override": True}, "looser", "stricter"),
        ({"trust_guard": False}, {"trust_guard": True}, "looser", "stricter"),
        ({"open_luo": False}, {"open_luo": True}, "different", "different"),
        ({"failure": "panic"}, {"failure": "reboot"}, "looser", "stricter"),
        ({"failure": "panic"}, {"failure": "halt"}, "different", "different"),
        ({"failure": Failure("panic", "a")}, {"failure": Failure("panic", "b")}, "different", "different"),
        ({"failure": Failure("panic", deadline=9)}, {"failure": Failure("panic")}, "different", "different"),
        ({"sources": ("kho-scratch",)}, {"sources": ("cmdline",)}, "looser", "looser"),
        ({"sources": (WIDE,)}, {"sources": (LOW,)}, "stricter", "looser"),
    ],
)  # fmt: skip
def test_beside_the_rules(before: dict[str, Any], after: dict[str, Any], there: str, back: str) -> None:
    """What stands beside the rules has a direction where one can be told, and is looser where none can."""
    old, new = policy(otherwise="online-safe", **before), policy(otherwise="online-safe", **after)
    assert (verdict(old, new), verdict(new, old)) == (there, back)


def test_less_time_to_go_offline_is_looser() -> None:
    """The deadline is what a block that is in use has to go: where nothing is taken offline, nobody loses by it."""
    off = rule("online-safe", **OFF)
    old, new = (policy(otherwise=off, failure=Failure("panic", deadline=seconds)) for seconds in (10, 9))
    assert (verdict(old, new), verdict(new, old)) == ("looser", "different")


def test_a_region_that_rules_ask_for() -> None:
    """With a smaller region more is online outside, so another rule decides: that is not compared."""
    outside = Rule("outside", "online-all", when("online_outside_safe", Term("is", "yes")))
    old, new = (policy(outside, otherwise="panic", sources=(area,)) for area in (WIDE, LOW))
    assert verdict(old, new) == "looser"


def test_a_policy_that_looks_is_compared_with_one_that_does_not() -> None:
    """Where one opens /dev/liveupdate and finds sessions lost, the other takes the device for ready."""
    ready = Rule("ready", "online-all", when("luo", Term("is", "ready")))
    failed = Rule("failed", "online-all", when("luo", Term("is", "failed")))
    for asks, there, back in ((ready, "stricter", "looser"), (failed, "looser", "stricter")):
        old, new = (policy(asks, otherwise="panic", open_luo=opened) for opened in (False, True))
        assert (verdict(old, new), verdict(new, old)) == (there, back)


def test_trust_that_goes_can_be_looser() -> None:
    """A policy that does more with a handover that cannot be told than with an accepted one loses by less trust."""
    accepted = Rule("accepted", "panic", when("handover", Term("is", "accepted")))
    unknown = Rule("unknown", "online-all", when("handover", Term("is", UNKNOWN)))
    old, new = (policy(accepted, unknown, trust_guard=trust) for trust in (True, False))
    assert verdict(old, new) == "both"


def test_exceptions_are_said() -> None:
    """The text names each of them, in its order."""
    texts = exceptions.text_of((KMEM, Override(node=1, zone="movable"), Override(LOW, hold=True)))
    assert texts == "driver kmem hold; node 1 zone movable; range 0x0-0x3fffffff hold"
    assert exceptions.text_of(()) == "no exceptions"
