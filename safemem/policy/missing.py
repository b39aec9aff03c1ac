# SPDX-License-Identifier: MIT
"""The cases that a file lacks: states that none of its cases describes, folded into few that can be pasted."""

from __future__ import annotations

import json
from itertools import product
from typing import NamedTuple

from safemem.boot.conditions import matches
from safemem.boot.model import FACTS, UNKNOWN, UNORDERED, Condition, Fact, Policy, Rule, Term
from safemem.policy.cases import Result, described
from safemem.policy.space import Outcomes, Space, State, Value

#: More cases than this nobody reads; the next run shows the next ones.
MOST = 20
_COMPARISONS = ("<", "<=", ">", ">=")
#: States that one case may describe: beyond that, looking for a wider one takes too long.
_LARGEST = 20_000


class Missing(NamedTuple):
    """A case that would describe states that no case does."""

    state: dict[str, object]  #: fact -> condition, as a file of cases has it
    rule: Rule  #: that decides there
    states: int  #: that only this one would describe


def missing(result: Result) -> tuple[tuple[Missing, ...], int]:
    """Return the first MOST cases that are missing, and how many states are left then.

    A case that is pasted tells apart what it asks for and its opposite: the states are those of a space that does already.
    """
    first = result.outcomes.space
    opposites = tuple(
        Rule("", "halt", (condition,))
        for name in first.facts if FACTS[name][0] != "set"
        for _, condition in _literals(first.policies, name)
    )  # fmt: skip
    space = Space(*first.policies, result.policy._replace(rules=opposites))
    outcomes = Outcomes(space, result.policy)
    left = set(outcomes.of).difference(*(described(case, outcomes) for case in result.source.cases))
    found: list[Missing] = []
    for state in outcomes.of:
        if state in left and len(found) < MOST:
            box = _widest(outcomes, state)
            inside = {other for other in product(*box) if other in left}
            left -= inside
            asked = {
                name: _condition(space, name, values)
                for name, values, classes in zip(space.facts, box, space.classes, strict=True)
                if len(values) < len(classes)
            }
            found.append(Missing(asked, outcomes.rule(state), len(inside)))
    return tuple(found), len(left)


def case_text(item: Missing, number: int) -> str:
    """Return a missing case as it can be pasted into the file."""
    state = ", ".join(f"{name} = {toml(value)}" for name, value in item.state.items())
    lines = ["[[case]]", f"name = {toml(f'{item.rule.name}, {number}')}"]
    lines += [f"state = {{ {state} }}"] if state else []
    return "\n".join([*lines, f"action = {toml(item.rule.action)}", f"rule = {toml(item.rule.name)}"])


def toml(value: object) -> str:
    """Return a value of a case as TOML has it, on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # what TOML escapes in a basic string is a superset of JSON's


def _widest(outcomes: Outcomes, state: State) -> list[tuple[Value, ...]]:
    """Return values of each fact, as many as the same rule decides in all their combinations; `state` is among them."""
    space, wanted = outcomes.space, outcomes.of[state]
    box: list[tuple[Value, ...]] = [(value,) for value in state]
    size = 1
    for place in reversed(range(len(box))):
        everything = space.classes[place]
        mine = [state[place]]
        for value in everything:
            # Only what is new has to be looked at. What no machine can be in does no harm, but is no handover to name.
            if value != state[place] and size * (len(mine) + 1) <= _LARGEST:
                made = [outcomes.of.get(other) for other in product(*box[:place], (value,), *box[place + 1 :])]
                if {decided for decided in made if decided is not None} <= {wanted} and (place or wanted in made):
                    mine.append(value)
        box[place] = tuple(value for value in everything if value in mine)
        if len(mine) < len(everything) and _condition(space, space.facts[place], box[place]) is None:
            box[place] = (state[place],)
        size *= len(box[place])
    return box


def _condition(space: Space, name: str, wanted: tuple[Value, ...]) -> object:
    """Return what a case says to mean these classes of a fact and no other; None if no condition can."""
    everything = space.classes[space.facts.index(name)]
    if FACTS[name][0] == "set":
        return wanted[0] if len(wanted) == 1 else list(wanted)
    literals = _literals(space.policies, name)
    chosen = set(wanted)
    for text, condition in literals:
        if {value for value in everything if matches(condition, Fact(value, ""))} == chosen:
            return text
    if len(wanted) > 1:
        return None
    value = wanted[0]
    if value == UNKNOWN:
        return UNKNOWN
    true = [(text, condition) for text, condition in literals if matches(condition, Fact(value, ""))]
    for item in list(true):
        rest = [other for other in true if other is not item]
        if rest and _meant(everything, rest) == {value}:
            true = rest
    return true[0][0] if len(true) == 1 else {"all": [text for text, _ in true]}


def _meant(everything: tuple[Value, ...], literals: list[tuple[object, Condition]]) -> set[Value]:
    return {value for value in everything if all(matches(item, Fact(value, "")) for _, item in literals)}


def _literals(policies: tuple[Policy, ...], name: str) -> list[tuple[object, Condition]]:
    """Return each condition on a fact and its opposite, as a case says it, the plain ones first."""
    asked = [c for policy in policies for rule in policy.rules for c in rule.when if c.fact == name]
    if any(term.op in _COMPARISONS for condition in asked for group in condition.groups for term in group):
        asked += [Condition(name, ((Term(UNORDERED, UNORDERED),),))] if FACTS[name][0] == "version" else []
    found: dict[str, tuple[object, Condition]] = {}
    for condition in (*asked, *(item._replace(negate=not item.negate) for item in asked)):
        known = [group for group in condition.groups if group != (Term("is", UNKNOWN),)]
        if known:
            texts = [_group(group) for group in known]
            value: object = texts[0] if len(texts) == 1 else texts
            plain = condition._replace(groups=tuple(known))
            text: object = {"not": value} if condition.negate else value
            found.setdefault(repr(text), (text, plain))
    return list(found.values())


def _group(group: tuple[Term, ...]) -> str | int:
    """Return terms that must all hold as a policy writes them."""
    if len(group) == 1 and group[0].op not in _COMPARISONS:
        return group[0].value
    return ", ".join(f"{term.op}{term.value}" for term in group)
