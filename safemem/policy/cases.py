# SPDX-License-Identifier: MIT
"""Cases: what a policy is expected to decide, run against the policy; `casefile` reads them.

A case holds if every state that it describes has the expected outcome, from the expected rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safemem.boot import engine
from safemem.boot.conditions import matches
from safemem.boot.model import DERIVED, UNKNOWN, Decision, Fact, Policy, Rule, Snapshot
from safemem.policy import casefile, load, pieces
from safemem.policy.casefile import BESIDE, EXPECTED, Case
from safemem.policy.compiler import plain
from safemem.policy.forecast import forecast
from safemem.policy.space import Outcomes, Space, State, Value, impossible, smallest

__all__ = ["BESIDE", "EXPECTED", "Case", "Result", "Verdict", "described", "run"]


class Verdict(NamedTuple):
    """What came of one case; `fault` is empty if it holds."""

    case: Case
    states: frozenset[State]
    fault: str
    example: dict[str, Value]


class Result(NamedTuple):
    """What came of one file of cases."""

    file: str
    policy_file: str
    source: casefile.File
    policy: Policy
    verdicts: tuple[Verdict, ...]
    rules: dict[str, bool]  #: rule -> whether a case that holds asks for it by name
    outcomes: Outcomes
    uncovered: frozenset[State]  #: that no case describes

    @property
    def states(self) -> int:
        """How many states policy and cases tell apart."""
        return len(self.outcomes.of)

    @property
    def covered(self) -> int:
        """How many of them some case describes."""
        return self.states - len(self.uncovered)

    @property
    def coverage(self) -> float:
        """The smaller share of rules and of states that the cases cover, 0 to 1."""
        return min(sum(self.rules.values()) / len(self.rules), self.covered / self.states)


def run(path: Path) -> Result:
    """Run the cases in the file `path`.

    Raises:
        load.PolicyError: the file or its policy is not valid.
        OSError: one of them cannot be read.
    """
    file = casefile.read(path)
    target = load.read(path.parent / file.policy)
    space = Space(target, _asking(file.cases, target))
    outcomes = Outcomes(space, target)
    verdicts = (*_beside(target, file.fixed), *(_verdict(case, outcomes) for case in file.cases))
    proved = {verdict.case.expected.get("rule") for verdict in verdicts if not verdict.fault}
    rules = {rule.name: rule.name in proved for rule in outcomes.rules}
    uncovered = frozenset(outcomes.of).difference(*(verdict.states for verdict in verdicts))
    return Result(str(path), str(path.parent / file.policy), file, target, verdicts, rules, outcomes, uncovered)


def _beside(target: Policy, fixed: dict[str, tuple[object, int]]) -> Iterator[Verdict]:
    """Compare what stands outside the rules."""
    for key, (wanted, line) in fixed.items():
        got = plain(getattr(target, key))
        if isinstance(got, dict) and isinstance(wanted, dict):
            got = {name: value for name, value in got.items() if name in wanted}
        fault = "" if got == wanted else f"{key} is `{got}`, expected `{wanted}`"
        yield Verdict(Case(key, (), {}, line), frozenset(), fault, {})


def _asking(cases: tuple[Case, ...], target: Policy) -> Policy:
    """Return a policy that tells apart what the cases do, so that the space does too."""
    rules = tuple(Rule(case.name, "halt", case.conditions) for case in cases if case.conditions)
    return target._replace(rules=rules)


def described(case: Case, outcomes: Outcomes) -> list[State]:
    """Return the states that a case is about, in the order of `outcomes`."""
    space = outcomes.space
    asked = [(space.facts.index(item.fact), item) for item in case.conditions]
    states = [state for state in outcomes.of if all(matches(item, Fact(state[place], "")) for place, item in asked)]
    return _fitting(states, case.snapshot, outcomes) if case.snapshot else states


def _verdict(case: Case, outcomes: Outcomes) -> Verdict:
    states = described(case, outcomes)
    found = frozenset(states)
    if not found:
        who = "this machine cannot" if case.snapshot else "no machine can"
        return Verdict(case, found, f"{who} be in this state", {})
    for state in states:
        fault = _fault(case, outcomes.rule(state))
        if fault:
            bad = [other for other in states if outcomes.of[other] == outcomes.of[state]]
            return Verdict(case, found, fault, smallest(outcomes, bad))
    fault, example = _planned(case, states, outcomes)
    return Verdict(case, found, fault, example)


def _fault(case: Case, rule: Rule) -> str:
    """Return what the rule says otherwise than the case expects, or nothing."""
    made: dict[str, Any] = {**rule._asdict(), "rule": rule.name}
    for key, wanted in case.expected.items():
        got = made[key]
        if isinstance(got, tuple):
            same = len(got) == len(wanted) and all(map(_has, got, wanted))
            got = plain(got)
        else:
            same = str(wanted) in got if key == "message" else wanted == got
        if not same:
            return f"{key} is `{_word(got)}`, expected `{_word(wanted)}`"
    return ""


def _has(got: Any, wanted: object) -> bool:
    """Return whether a table of the policy has what a case says of it."""
    made = plain(got)
    return isinstance(made, dict) and isinstance(wanted, dict) and all(made.get(key) == wanted[key] for key in wanted)


def _seen(snapshot: Snapshot, facts: dict[str, Value], policy: Policy) -> Decision:
    """Return what `policy` decides on a machine that shows `facts`; the derived ones follow from the machine."""
    shown = {name: Fact(value, "case") for name, value in facts.items() if name not in DERIVED}
    return engine.decide(policy, snapshot._replace(facts={**snapshot.facts, **shown}))


def _fitting(states: list[State], snapshot: Snapshot, outcomes: Outcomes) -> list[State]:
    """Return the states that the machine can be in: it decides its nodes, its guard, and what follows from its blocks."""
    space = outcomes.space
    own = {name: fact.value for name, fact in snapshot.facts.items() if fact.value != UNKNOWN}
    seen: dict[Value, dict[str, Value]] = {}
    found = []
    for state in states:
        facts = space.named(state)
        handover = facts["handover"]
        if handover not in seen:
            made = _seen(snapshot, {"handover": handover}, outcomes.policy).facts
            seen[handover] = {**own, **{name: made[name].value for name in DERIVED}}
        fixed = seen[handover]
        same = all(facts[name] == space.stand_in(name, value) for name, value in fixed.items() if name in facts)
        if (
            same
            and not impossible({**facts, **fixed})
            and (snapshot.guarded or facts.get("guard") not in ("full", "part"))
        ):
            found.append(state)
    return found


def _planned(case: Case, states: list[State], outcomes: Outcomes) -> tuple[str, dict[str, Value]]:
    """Return what becomes otherwise of a piece or of the boot, and in which state; those with one rule and handover are alike."""
    if not case.snapshot:
        return "", {}
    groups: dict[tuple[int, Value], list[State]] = {}
    for state in states:
        groups.setdefault((outcomes.of[state], outcomes.space.named(state)["handover"]), []).append(state)
    for group in groups.values():
        facts = outcomes.space.named(group[0])
        decision = _seen(case.snapshot, facts, outcomes.policy)
        for name, wanted in case.plan.items():
            got = pieces.becomes(decision, name, case.snapshot)
            if got != [wanted]:
                words = " in part and ".join(f"`{op}`" for op in got) or "left alone"
                return f"plan: `{name}` is {words}, expected `{wanted}`", smallest(outcomes, group)
        if case.ends is not None:
            ends = forecast(decision, case.snapshot._replace(facts=decision.facts)).ends
            if ends != case.ends:
                return f"the boot {_end(ends)}, expected that it {_end(case.ends)}", smallest(outcomes, group)
    return "", {}


def _end(action: str) -> str:
    return f"ends in {action}" if action else "goes on"


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
