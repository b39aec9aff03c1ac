# SPDX-License-Identifier: MIT
"""The engine: tables for what each condition means, properties for what must always hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot import conditions, engine
from safemem.boot.model import ACTIONS, UNKNOWN, Blocks, Condition, Decision, Fact, Override, Rule, Term
from safemem.boot.ranges import Range
from tests.kit import block_runs, policy, rule, snapshot, when

SIZE = 128 << 20


def plan(decision: Decision) -> list[tuple[str, int, int]]:
    """Return the steps on blocks as (op, first, last)."""
    return [(step.op, step.first, step.last) for step in decision.steps if step.first >= 0]


@pytest.mark.parametrize(
    ("term", "value", "expected"),
    [
        (Term("is", "accepted"), "accepted", True),
        (Term("is", "accepted"), "rejected", False),
        (Term("glob", "7.3.*"), "7.3.4", True),
        (Term("glob", "7.?.4"), "7.3.4", True),
        (Term("glob", "7.3"), "7.3.4", False),
        (Term("glob", "*"), "", True),
        (Term("glob", "*-amd64"), "7.3.4-amd64", True),
        (Term("glob", "a*b*c"), "aXbYc", True),
        (Term("glob", "a*b*c"), "aXbY", False),
        (Term(">=", "7.2"), "7.2.0", True),
        (Term(">=", "7.2"), "7.10.1-amd64", True),
        (Term("<", "7.2"), "7.2-rc4", True),
        (Term(">", "7.2"), "7.2-rc4", False),
        (Term("<", "7.2"), "nonsense", False),
        (Term("<", 3), 2, True),
        (Term("<", 3), 3, False),
        (Term("<=", 3), 3, True),
        (Term("unordered", "unordered"), "next-20260101", True),
        (Term("unordered", "unordered"), "unordered", True),
        (Term("unordered", "unordered"), "7.2.0-amd64", False),
        (Term("has", "LUO"), ("LUO", "memblock"), True),
        (Term("has", "LUO"), (), False),
        (Term("has", "LUO"), "LUO", False),
    ],
)
def test_terms(term: Term, value: Any, expected: bool) -> None:
    """Each operator means what the documentation says."""
    assert expected is conditions.matches(Condition("kernel", ((term,),)), Fact(value, "test"))


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Condition("kernel", ((Term("is", UNKNOWN),),)), True),
        (Condition("kernel", ((Term("is", "7.3"),), (Term("is", UNKNOWN),))), True),
        (Condition("kernel", ((Term("glob", "*"),),)), False),
        (Condition("kernel", ((Term("is", "7.3"),),), negate=True), False),
        (Condition("kernel", ((Term("is", UNKNOWN),),), negate=True), False),
        (Condition("kernel", ((Term(">=", "0"),),)), False),
    ],
)
def test_unknown_matches_only_where_it_is_named(condition: Condition, expected: bool) -> None:
    """What cannot be read satisfies no glob, no comparison and no `not`."""
    assert expected is conditions.matches(condition, Fact(UNKNOWN, "test"))


def test_negated_comparison_needs_an_order() -> None:
    """`not <7.2` does not hold for a kernel whose name is no version."""
    condition = Condition("kernel", ((Term("<", "7.2"),),), negate=True)

    assert not conditions.matches(condition, Fact("custom", "test"))
    assert conditions.matches(condition, Fact("7.3", "test"))


def test_first_match_decides_and_misses_are_kept() -> None:
    """The decision names its rule, and why each earlier rule did not match."""
    rules = (
        Rule("cold", "online-all", when("handover", Term("is", "none"))),
        Rule("lost", "online-safe", when("handover", Term("is", "rejected"), Term("is", "orphaned"))),
        Rule("late", "halt", when("handover", Term("is", "rejected"))),
    )
    decision = engine.decide(policy(*rules), snapshot(handover="rejected"))

    assert (decision.action, decision.rule.name) == ("online-safe", "lost")
    assert [tuple(miss)[:4] for miss in decision.misses] == [("cold", "handover", "none", "rejected")]


def test_otherwise_decides_last() -> None:
    """Without a match `otherwise` decides, with every rule among the misses."""
    decision = engine.decide(policy(Rule("cold", "online-all", when("handover", Term("is", "none")))), snapshot())

    assert (decision.action, decision.rule.name) == ("panic", "otherwise")
    assert [miss.rule for miss in decision.misses] == ["cold"]


@pytest.mark.parametrize(("kho", "zone"), [("on", "movable"), (UNKNOWN, "movable"), ("off", "auto")])
def test_default_zone(kho: str, zone: str) -> None:
    """Memory goes to the movable zone wherever KHO may be on, else the next live update dies."""
    assert zone == engine.decide(policy(otherwise="online-all"), snapshot(kho=kho)).zone


SAFE = Range(33 * SIZE, 36 * SIZE)


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (SAFE, [("keep", 0, 7), ("hold", 32, 32), ("online", 33, 35), ("hold", 36, 39)]),
        (Range(SAFE.start + 1, SAFE.end), [("keep", 0, 7), ("hold", 32, 33), ("online", 34, 35), ("hold", 36, 39)]),
        (Range(SAFE.start, SAFE.end - 1), [("keep", 0, 7), ("hold", 32, 32), ("online", 33, 34), ("hold", 35, 39)]),
        (Range(SAFE.start - 1, SAFE.end + 1), [("keep", 0, 7), ("hold", 32, 32), ("online", 33, 35), ("hold", 36, 39)]),
        (Range(0, 64 * SIZE), [("keep", 0, 7), ("online", 32, 39)]),
        (Range(50 * SIZE, 64 * SIZE), [("keep", 0, 7), ("hold", 32, 39)]),
    ],
)
def test_online_safe_takes_whole_blocks_only(region: Range, expected: list[tuple[str, int, int]]) -> None:
    """A block that reaches outside the safe region by one byte stays held."""
    decision = engine.decide(policy(otherwise="online-safe", sources=(region,)), snapshot())

    assert expected == plan(decision)


def test_scratch_counts_only_when_accepted() -> None:
    """Scratch areas are the safe region of an accepted handover and of no other."""
    chosen = policy(otherwise="online-safe")
    with_scratch = snapshot(handover="rejected")._replace(scratch=(SAFE,), cmdline_safe=(Range(0, SIZE),))

    assert engine.decide(chosen, with_scratch).region_source == "cmdline"
    accepted = with_scratch._replace(facts={**with_scratch.facts, "handover": Fact("accepted", "test")})
    assert engine.decide(chosen, accepted).region_source == "kho-scratch"


def test_no_region_onlines_nothing() -> None:
    """Without a safe region online-safe holds everything and says so."""
    decision = engine.decide(policy(otherwise="online-safe"), snapshot(handover="rejected"))

    assert plan(decision) == [("keep", 0, 7), ("hold", 32, 39)]
    assert decision.facts["safe_region"].value == "unresolved"
    assert "no safe region is known: no held block is onlined" in decision.warnings


def test_warnings_name_what_was_too_late_and_what_is_cut() -> None:
    """Memory that was online already and blocks that the region cuts are reported with sizes."""
    region = Range(33 * SIZE - SIZE // 2, 34 * SIZE)
    decision = engine.decide(policy(otherwise="online-safe", sources=(region,)), snapshot())

    assert decision.warnings == (
        "1 GiB were online before the decision and are not protected: 0x0-0x3fffffff",
        "safe region 0x104000000-0x10fffffff cuts through block 32, which stays held: 64 MiB of it are safe but unused",
    )


def test_what_a_guard_keeps_was_not_too_late() -> None:
    """Only what lies outside it is said to be unprotected; with nothing outside, nothing is said."""
    for guard, expected in (
        (
            Range(SIZE, 7 * SIZE),
            [
                "256 MiB outside the guard were online before the decision and are not protected: 0x0-0x7ffffff, 0x38000000-0x3fffffff"
            ],
        ),
        (Range(0, 8 * SIZE), []),
    ):
        decision = engine.decide(policy(otherwise="online-safe"), snapshot()._replace(guard=guard))
        assert [note for note in decision.warnings if note.code == "too-late"] == expected


@pytest.mark.parametrize(
    ("action", "op"), [("online-all", "release-guard"), ("online-safe", "keep-guard"), ("panic", "keep-guard")]
)
def test_guard(action: str, op: str) -> None:
    """Only online-all gives a guard back."""
    decision = engine.decide(policy(otherwise=action), snapshot()._replace(guard=Range(SIZE, 2 * SIZE)))

    assert op == decision.steps[0].op


def test_derived_facts_can_be_asked_for() -> None:
    """Rules can ask for what follows from region and blocks."""
    rule = Rule("late", "panic", when("online_outside_safe", Term("is", "yes")))
    chosen = policy(rule, otherwise="online-safe", sources=(Range(0, 8 * SIZE),))

    assert engine.decide(chosen, snapshot()).action == "online-safe"
    assert engine.decide(chosen, snapshot((Blocks(0, 8, "online"),))).action == "panic"


addresses = st.integers(0, 40 * 4096)


@given(
    block_runs(),
    st.lists(st.tuples(addresses, addresses).map(lambda pair: Range(min(pair), max(pair) + 1)), max_size=4),
    st.sampled_from(ACTIONS),
)
def test_the_plan_covers_each_block_once_and_only_safe_ones_come_online(
    blocks: tuple[Blocks, ...], areas: list[Range], action: str
) -> None:
    """Each block has one step; under online-safe no onlined byte is outside the region; nothing else onlines."""
    state = snapshot(blocks, size=4096)._replace(cmdline_safe=tuple(areas))
    decision = engine.decide(policy(otherwise=action, sources=("cmdline", "none")), state)
    covered = [number for step in decision.steps for number in range(step.first, step.last + 1)]
    safe = bytearray(41 * 4096)
    for area in areas:
        safe[area.start : area.end] = b"s" * (area.end - area.start)

    assert [number for run in blocks for number in range(run.first, run.last + 1)] == covered
    for step in decision.steps:
        if step.op != "online":
            continue
        assert action in ("online-all", "online-safe")
        if action == "online-safe":
            assert set(safe[step.start : step.end]) == set(b"s")


@given(block_runs(), st.sampled_from(ACTIONS))
def test_decide_is_pure(blocks: tuple[Blocks, ...], action: str) -> None:
    """The same input gives the same decision."""
    chosen, state = policy(otherwise=action), snapshot(blocks)

    assert engine.decide(chosen, state) == engine.decide(chosen, state)


# ---- [[memory]] and the command line


def _planned(steps: Any) -> list[tuple[str, int, int, str]]:
    return [(step.op, step.first, step.last, step.zone) for step in steps]


OVERRIDES = [
    # A hold is wide: the range touches one byte of block 33, so all of it stays off.
    (Override(range=Range(33 * SIZE + 5, 33 * SIZE + 6), hold=True), [("online", 32, 32, "movable"), ("hold", 33, 33, ""), ("online", 34, 39, "movable")]),
    # A zone is narrow: only blocks wholly inside get it.
    (Override(range=Range(32 * SIZE + 1, 35 * SIZE), zone="kernel"), [("online", 32, 32, "movable"), ("online", 33, 34, "kernel"), ("online", 35, 39, "movable")]),
    (Override(range=Range(0, 1 << 60), hold=True), [("hold", 32, 39, "")]),
    (Override(node=1, hold=True), [("online", 32, 35, "movable"), ("hold", 36, 39, "")]),
    (Override(driver="kmem", zone="kernel"), [("online", 32, 35, "movable"), ("online", 36, 39, "kernel")]),
    (Override(driver="virtio-mem", hold=True), [("online", 32, 39, "movable")]),
]  # fmt: skip


@pytest.mark.parametrize(("override", "expected"), OVERRIDES)
def test_memory_overrides(override: Override, expected: Any) -> None:
    """What `[[memory]]` names gets something else, and nothing beside it does."""
    blocks = (Blocks(32, 35, "offline", 0, "dimm"), Blocks(36, 39, "offline", 1, "kmem"))
    chosen = policy(otherwise="online-all", sources=("none",), memory=(override,))

    assert _planned(engine.decide(chosen, snapshot(blocks, handover="none", kho="on")).steps) == expected


@pytest.mark.parametrize("override", [Override(node=1, hold=True), Override(driver="virtio-mem", hold=True)])
def test_an_unknown_block_is_held_by_every_hold(override: Override) -> None:
    """What cannot be told from a held block is held as well."""
    state = snapshot((Blocks(32, 39, "offline"),), handover="none", kho="on")
    chosen = policy(otherwise="online-all", sources=("none",), memory=(override,))

    assert _planned(engine.decide(chosen, state).steps) == [("hold", 32, 39, "")]


def test_a_rule_has_exceptions_of_its_own() -> None:
    """They count where that rule decides, come before the policy's own, and are what the record keeps."""
    blocks = (Blocks(32, 35, "offline", 0, "dimm"), Blocks(36, 39, "offline", 1, "dimm"))
    own = (Override(node=1, hold=True), Override(node=0, zone="auto"))
    lost = Rule("lost", "online-all", when("handover", Term("is", "rejected")), memory=own)
    chosen = policy(lost, otherwise="online-all", sources=("none",), memory=(Override(node=0, zone="kernel"),))
    rejected, clean = (
        engine.decide(chosen, snapshot(blocks, handover=handover, kho="on")) for handover in ("rejected", "none")
    )

    assert _planned(rejected.steps) == [("online", 32, 35, "auto"), ("hold", 36, 39, "")]
    assert _planned(clean.steps) == [("online", 32, 35, "kernel"), ("online", 36, 39, "movable")]
    assert (rejected.policy.memory, clean.policy.memory) == ((*own, *chosen.memory), chosen.memory)
    # Nobody can tell one block that arrives from another: with an exception all of them wait.
    plain = chosen._replace(memory=())
    arrivals = [engine.decide(plain, snapshot(blocks, handover=one, kho="on")).arrivals for one in ("rejected", "none")]
    assert arrivals == ["", "movable"]


def test_an_override_never_onlines_what_a_rule_holds() -> None:
    """A zone is for memory that comes online anyway."""
    state = snapshot((Blocks(32, 39, "offline"),), handover="rejected", kho="on")
    everywhere = Override(range=Range(0, 1 << 60), zone="kernel")
    chosen = policy(otherwise="online-safe", sources=("none",), memory=(everywhere,))

    assert _planned(engine.decide(chosen, state).steps) == [("hold", 32, 39, "")]


@pytest.mark.parametrize("allowed", [True, False])
def test_safemem_off_on_the_command_line(allowed: bool) -> None:
    """The command line loosens the outcome only if the policy allows it, and is never silently ignored."""
    state = snapshot((Blocks(32, 39, "offline"),), handover="rejected", kho="on")
    chosen = policy(sources=("none",), allow_cmdline_override=allowed)
    decision = engine.decide(chosen, state._replace(cmdline="safemem=off", overrides=("off",)))

    assert (decision.action, decision.rule.name) == (
        ("online-all", "command line") if allowed else ("panic", "otherwise")
    )
    assert ("safemem=off on the command line is ignored: the policy does not allow it" in decision.warnings) != allowed


def test_quarantine_leaves_the_guard_alone() -> None:
    """Blocks wholly in the guard stay as they are; one that reaches outside by a byte is to go offline with the rest."""
    chosen = policy(otherwise=rule("online-safe", boot_memory="offline"))
    guard = Range(2 * SIZE - 1, 5 * SIZE)
    decision = engine.decide(chosen, snapshot()._replace(guard=guard))

    assert plan(decision) == [("offline", 0, 1), ("keep", 2, 4), ("offline", 5, 7), ("hold", 32, 39)]


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize("witness", ["a guard failed", ""])
@pytest.mark.parametrize("handover", ["unknown", "rejected"])
def test_trust_in_the_guard(trust: bool, witness: str, handover: str) -> None:
    """A witness makes an unknown handover count as accepted where the policy trusts it; the fact says why it does."""
    chosen = policy(Rule("whole", "online-all", when("handover", Term("is", "accepted"))), trust_guard=trust)
    decision = engine.decide(chosen, snapshot(handover=handover)._replace(witness=witness))

    if trust and witness and handover == UNKNOWN:
        assert decision.action == "online-all"
        assert decision.facts["handover"] == Fact(
            "accepted", "guard", "a guard failed; the policy trusts that, it is no proof"
        )
        assert engine.TRUSTED in decision.warnings
    else:
        assert (decision.action, decision.facts["handover"].value) == ("panic", handover)
        assert engine.TRUSTED not in decision.warnings


def test_an_exception_that_holds_is_quarantined_too() -> None:
    """`hold` means not in use: with boot_memory = "offline" such a block goes offline, in the safe region or not."""
    chosen = policy(
        otherwise=rule("online-safe", boot_memory="offline"),
        sources=(Range(0, 4 * SIZE),),
        memory=(Override(range=Range(SIZE, 2 * SIZE), hold=True),),
    )
    decision = engine.decide(chosen, snapshot())

    assert plan(decision) == [("keep", 0, 0), ("offline", 1, 1), ("keep", 2, 3), ("offline", 4, 7), ("hold", 32, 39)]
