# SPDX-License-Identifier: MIT
"""A search for what `diff` and `check` miss: random policies, and machines on which the engine plans for them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from safemem.boot import engine
from safemem.boot.model import FACTS, UNKNOWN, Policy, Rule, Term
from safemem.policy import compare, invariants
from safemem.policy.space import LOST, Outcomes, Space
from safemem.render import findings
from tests.draws import BESIDE, DRAWS, WORDS, Machine, decide, looser, machines, outcome, policies, written
from tests.kit import when

#: To find what is there to be found, not to make it small.
SOON = settings(max_examples=5_000, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
SEARCH = settings(max_examples=max(300, DRAWS // 4), deadline=None, suppress_health_check=list(HealthCheck))

#: A word -> what a rule needs for the word to do anything.
NEEDS: dict[str, dict[str, Any]] = {
    "exposed_max": {"action": "online-safe", "on_shortfall": "panic"},
    "floor": {"action": "online-safe", "boot_memory": "offline"},
    **{word: {"action": "online-safe"} for word in ("boot_memory", "final", "if_onlined", "on_shortfall", "quiesce")},
    **{word: {"action": "online-all"} for word in ("zone", "enter", "keep_crashkernel", "memory")},
    "sources": {"action": "online-safe"},
}


#: Whether a policy only observes is drawn here alone: elsewhere decisions are compared, and one of it is not carried out.
FIELDS: dict[str, st.SearchStrategy[Any]] = {**BESIDE, "observe": st.booleans()}


def changed(drawn: Policy, place: int, **words: Any) -> Policy:
    """Return `drawn` with other words in a rule; `otherwise` comes after the last."""
    ordered = [*drawn.rules, drawn.otherwise]
    ordered[place] = ordered[place]._replace(**words)
    return drawn._replace(rules=tuple(ordered[:-1]), otherwise=ordered[-1])


@st.composite
def neighbours(draw: st.DrawFn, keys: tuple[str, ...] = (*WORDS, *FIELDS)) -> tuple[Policy, Policy]:
    """Return two policies that differ in one to three of `keys`: those with nothing in common differ in all directions."""
    old = new = draw(policies())
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(keys))
        place = draw(st.integers(0, len(old.rules)))
        old, new = (changed(one, place, **NEEDS.get(key, {})) for one in (old, new))
        if key in ("retrieve_token", "trust_guard") and len(old.rules) < 3:
            told = Rule("told", draw(WORDS["action"]), when("handover", Term("is", "accepted")))
            old, new = (one._replace(rules=(told, *one.rules)) for one in (old, new))
        if key in FIELDS and not (key in WORDS and draw(st.booleans())):
            new = new._replace(**{key: draw(FIELDS[key])})
        else:
            old, new = (changed(one, place, **{key: draw(WORDS[key])}) for one in (old, new))
    return written(old), written(new)


MET = st.lists(machines(), min_size=8, max_size=8)
PAIRS = st.integers(0, 9).flatmap(lambda lot: neighbours() if lot else st.tuples(policies(), policies()))


def missed(pair: tuple[Policy, Policy], met: list[Machine]) -> str:
    """Return how `diff` is wrong about a pair of policies, on one of the machines; nothing if it is not."""
    for old, new in (pair, pair[::-1]):
        verdict = findings.verdict(compare.compare(old, new)[0])
        for machine in met if verdict not in ("looser", "both") else ():
            respects = looser(outcome(old, machine), outcome(new, machine))
            if respects:
                return f"{verdict}, and looser in {respects} on {machine}"
    return ""


@SEARCH
@given(PAIRS, MET)
def test_diff_never_misses_a_looser_outcome(pair: tuple[Policy, Policy], met: list[Machine]) -> None:
    """Where `diff` says that the new policy is nowhere looser, it is nowhere looser on any machine, in any respect."""
    assert not missed(pair, met)


@SEARCH
@given(policies(), st.lists(machines((*LOST, UNKNOWN)), min_size=8, max_size=8))
def test_check_never_misses_an_exposure(drawn: Policy, met: list[Machine]) -> None:
    """Whatever a lost handover has onlined outside of what the predecessor or the command line names is said by `check`."""
    found = invariants.check(drawn, Outcomes(Space(drawn), drawn))
    said = {(item.code, item.rule) for item in found}
    codes = {code for code, _ in said}
    for machine in met:
        decision = decide(drawn, machine)
        named = (*machine.snapshot.scratch, *machine.snapshot.cmdline_safe)
        outside = [
            step for step in decision.steps
            if step.op in ("online", "release-guard")
            and not any(area.start <= step.start and step.end <= area.end for area in named)
        ]  # fmt: skip
        if not outside:
            continue
        if decision.rule.name == "command line":
            assert "loosened-by-cmdline" in codes
        elif decision.facts["handover"].value == "accepted":
            if machine.token and drawn.retrieve_token:
                continue  # a token that came through LUO is the kernel's own word
            assert drawn.trust_guard
            untold = engine.decide(drawn._replace(trust_guard=False), machine.snapshot).rule
            assert (
                "trusts-guard" in codes or untold.accept_data_exposure or codes & {"exposes-handover", "named-region"}
            )
        elif invariants._takes_word(decision.rule) and not decision.rule.accept_data_exposure:
            assert decision.facts["preserved"].value == "no"
            assert any(note.code == "predecessors-word" for note in decision.warnings)
        elif not decision.rule.accept_data_exposure:
            assert said & {("exposes-handover", decision.rule.name), ("named-region", decision.rule.name)}


@pytest.mark.parametrize("word", [word for word, strict in compare.STRICTNESS.items() if strict])
def test_the_search_finds_a_word_that_is_not_compared(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each word of a rule that `diff` forgot is found by the search, and soon."""
    monkeypatch.setitem(compare.STRICTNESS, word, None)
    find(
        st.tuples(neighbours((word,)), MET),
        lambda drawn: bool(missed(*drawn)),
        settings=SOON,
    )


#: `accept_errors` changes nothing on a machine: what it lets through is built, or is not.
COMPARED = [field for field, comparison in compare.FIELDS.items() if comparison and field != "accept_errors"]


@pytest.mark.parametrize("field", COMPARED)
def test_the_search_finds_a_field_that_is_not_compared(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each field of a policy that `diff` takes for neither stricter nor looser is found by the search."""
    comparison = compare.FIELDS[field]
    assert comparison
    monkeypatch.setitem(compare.FIELDS, field, comparison._replace(direction=lambda *_: "other"))
    monkeypatch.setattr(compare, "_sight", lambda *_: ())
    handovers = (UNKNOWN,) if field in ("retrieve_token", "trust_guard") else FACTS["handover"][1]
    find(
        st.tuples(neighbours((field,)), st.lists(machines(handovers), min_size=8, max_size=8)),
        lambda drawn: bool(missed(*drawn)),
        settings=SOON,
    )
