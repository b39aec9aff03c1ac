# SPDX-License-Identifier: MIT
"""Cases: what a policy is expected to decide, written beside it as NAME.cases.toml.

    policy = "live-update-host.toml"
    on_failure = { action = "panic", deadline = 10 }    # what stands beside the rules, as the policy has it

    [[case]]
    name = "a lost handover never boots"
    state = { handover = ["rejected", "orphaned"] }     # facts left out may have any value
    action = "panic"
    rule = "otherwise"
    message = "handover lost"                           # a part of it; every other word of a rule as the policy has it

A case holds if every state that it describes has the expected outcome, from the expected rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safemem.boot.conditions import matches
from safemem.boot.model import FACTS, Condition, Fact, Policy, Rule
from safemem.policy import load, places, values
from safemem.policy.compiler import plain
from safemem.policy.space import OUTCOME, Outcomes, Space, State, Value, smallest

#: What a file of cases may say of the policy itself.
BESIDE = tuple(key for key in Policy._fields if key not in ("name", "rules", "otherwise", "memory", "digest"))
#: What a case may say of an outcome; `rule` is the name of the rule that decides.
EXPECTED = ("action", "rule", *(word for word in OUTCOME if word not in ("action", "name")))


class Case(NamedTuple):
    """One expectation and where it stands."""

    name: str
    state: tuple[tuple[str, object], ...]  #: fact -> condition as in a policy's `when`
    expected: dict[str, str | bool]
    line: int


class Verdict(NamedTuple):
    """What came of one case; `fault` is empty if it holds."""

    case: Case
    states: frozenset[State]
    fault: str
    example: dict[str, Value]


class Result(NamedTuple):
    """What came of one file of cases."""

    file: str
    policy: Policy
    verdicts: tuple[Verdict, ...]
    rules: dict[str, bool]  #: rule -> whether a case that holds asks for it by name
    covered: int  #: states that some case describes
    states: int

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
    target, fixed, cases = _read(path)
    space = Space(target, _asking(cases, target))
    outcomes = Outcomes(space, target)
    verdicts = (*_beside(target, fixed), *(_verdict(case, outcomes) for case in cases))
    proved = {verdict.case.expected.get("rule") for verdict in verdicts if not verdict.fault}
    rules = {rule.name: rule.name in proved for rule in outcomes.rules}
    covered = frozenset().union(*(verdict.states for verdict in verdicts))
    return Result(str(path), target, verdicts, rules, len(covered), len(outcomes.of))


def _beside(target: Policy, fixed: dict[str, tuple[object, int]]) -> Iterator[Verdict]:
    """Compare what stands outside the rules."""
    for key, (wanted, line) in fixed.items():
        got = plain(getattr(target, key))
        if isinstance(got, dict) and isinstance(wanted, dict):
            got = {name: value for name, value in got.items() if name in wanted}
        fault = "" if got == wanted else f"{key} is `{got}`, expected `{wanted}`"
        yield Verdict(Case(key, (), {}, line), frozenset(), fault, {})


def _asking(cases: list[Case], target: Policy) -> Policy:
    """Return a policy that tells apart what the cases do, so that the space does too."""
    rules = tuple(Rule(case.name, "halt", tuple(_conditions(case))) for case in cases)
    return target._replace(rules=tuple(rule for rule in rules if rule.when))


def _conditions(case: Case) -> list[Condition]:
    return [values.condition(fact, value) for fact, value in case.state]


def _verdict(case: Case, outcomes: Outcomes) -> Verdict:
    conditions = _conditions(case)
    space = outcomes.space
    states = frozenset(
        state for state in outcomes.of
        if all(matches(item, Fact(space.named(state)[item.fact], "")) for item in conditions)
    )  # fmt: skip
    if not states:
        return Verdict(case, states, "no machine can be in this state", {})
    ordered = [state for state in outcomes.of if state in states]
    for state in ordered:
        rule = outcomes.rule(state)
        made = {**rule._asdict(), "rule": rule.name}
        for key, wanted in case.expected.items():
            got = made[key]
            if str(wanted) not in got if key == "message" else wanted != got:
                bad = [other for other in ordered if outcomes.of[other] == outcomes.of[state]]
                fault = f"{key} is `{_word(got)}`, expected `{_word(wanted)}`"
                return Verdict(case, states, fault, smallest(outcomes, bad))
    return Verdict(case, states, "", {})


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(path: Path) -> tuple[Policy, dict[str, tuple[object, int]], list[Case]]:
    with open(path, "rb") as file:
        text = load.decode(file.read(load.MAX_SIZE + 1), str(path))
    document = load.toml(text, str(path))
    found = places.find(text)
    problems: list[load.Problem] = []

    def bad(at: places.Path, message: str) -> None:
        problems.append(load.Problem(at, *places.nearest(found, at), message))

    name, items = document.get("policy"), document.get("case")
    for key in document:
        if key not in ("policy", "case", *BESIDE):
            bad((key,), f"unknown key `{key}`{values.near(key, ('policy', 'case', *BESIDE))}")
    if not isinstance(name, str):
        bad(("policy",), "`policy` is missing; add the file that the cases are about, relative to this one")
    if not isinstance(items, list) or not items:
        bad(("case",), "there are no cases: add a [[case]] with name, state, action and rule")
    cases = []
    for index, item in enumerate(items if isinstance(items, list) else []):
        case = _case(item, ("case", index), bad)
        if case:
            cases.append(case._replace(line=places.nearest(found, ("case", index, "name"))[0]))
    if problems:
        raise load.PolicyError(str(path), sorted(problems, key=lambda p: (p.line, p.column)))
    fixed = {key: (document[key], places.nearest(found, (key,))[0]) for key in BESIDE if key in document}
    return load.read(path.parent / str(name)), fixed, cases


def _case(item: Any, at: places.Path, bad: Callable[[places.Path, str], None]) -> Case | None:
    if not isinstance(item, dict):
        bad(at, "expected a table")
        return None
    known = ("name", "state", *EXPECTED)
    for key in item:
        if key not in known:
            bad((*at, key), f"unknown key `{key}`{values.near(key, known)}")
    for key in ("name", "action", "rule"):
        if key not in item:
            bad(at, f"`{key}` is missing")
    for key in ("name", *EXPECTED):
        kind = type(Rule._field_defaults.get(key, ""))
        if key in item and not isinstance(item[key], kind):
            bad((*at, key), f"{key}: expected {'true or false' if kind is bool else 'text'}")
    state = item.get("state", {})
    if not isinstance(state, dict):
        bad((*at, "state"), "state: expected a table of facts")
        state = {}
    for fact, value in state.items():
        if fact not in FACTS:
            bad((*at, "state", fact), f"unknown fact `{fact}`{values.near(fact, tuple(FACTS))}")
            continue
        try:
            values.condition(fact, value)
        except ValueError as error:
            bad((*at, "state", fact), f"state.{fact}: {error}")
    expected = {key: item[key] for key in EXPECTED if key in item}
    return Case(str(item.get("name", "")), tuple(state.items()), expected, 0)
