# SPDX-License-Identifier: MIT
"""What changes from one policy to another: every state in which they differ, and which of the two is stricter there."""

from __future__ import annotations

from typing import NamedTuple

from safemem.boot.model import FINAL, PERMISSIVENESS, Policy, Rule, parse_limit
from safemem.policy.space import Outcomes, Space, State, Value


class Change(NamedTuple):
    """States in which two policies differ in the same way."""

    direction: str  #: `stricter`, `looser`, `other` (neither), or `reason` (same outcome, said otherwise)
    before: Rule
    after: Rule
    states: int
    where: dict[str, tuple[Value, ...]]  #: for each fact that matters, the values it has in these states
    example: dict[str, Value]


def compare(old: Policy, new: Policy) -> tuple[list[Change], int]:
    """Return how `new` differs from `old` in every state that either can tell apart, and how many states there are."""
    space = Space(old, new)
    before, after = Outcomes(space, old), Outcomes(space, new)
    groups: dict[tuple[int, int], list[State]] = {}
    for state, index in before.of.items():
        mine, other = before.rules[index], after.rule(state)
        if _effect(mine) != _effect(other) or _said(mine) != _said(other):
            groups.setdefault((index, after.of[state]), []).append(state)
    changes = []
    for (first, second), states in groups.items():
        where = {}
        for place, name in enumerate(space.facts):
            values = tuple(value for value in space.classes[place] if any(state[place] == value for state in states))
            if len(values) < len(space.classes[place]):
                where[name] = values
        changes.append(Change(
            _direction(before.rules[first], after.rules[second]), before.rules[first], after.rules[second], len(states), where,
            {name: space.named(states[0])[name] for name in (*where, *(["handover"] if "handover" not in where else []))},
        ))  # fmt: skip
    order = {"looser": 0, "stricter": 1, "other": 2, "reason": 3}
    return sorted(changes, key=lambda change: (order[change.direction], -change.states)), len(before.of)


def _effect(rule: Rule) -> tuple[object, ...]:
    """Return what a rule does, without what it is called, asks for and says."""
    return tuple(rule._replace(name="", when=(), message="", accept_data_exposure=False))


def _said(rule: Rule) -> tuple[str, str]:
    return rule.name, rule.message


def _direction(old: Rule, new: Rule) -> str:
    if _effect(old) == _effect(new):
        return "reason"
    # The action first; then whether the boot goes on as usual; then what a shortfall leads to, and whether the hold outlasts a hand.
    strict = [
        (-PERMISSIVENESS[rule.action], rule.boot_memory == "offline", bool(rule.enter), rule.on_shortfall in FINAL,
         -_allowed(rule.exposed_max, other.exposed_max), -_allowed(rule.floor, other.floor), rule.final, rule.if_onlined == "offline")
        for rule, other in ((old, new), (new, old))
    ]  # fmt: skip
    return "other" if strict[0] == strict[1] else "stricter" if strict[1] > strict[0] else "looser"


def _allowed(text: str, other: str) -> int:
    """Return the size of a limit as far as it can be compared with `other`: two sizes, or two shares."""
    if not text or not other or text.endswith("%") != other.endswith("%"):
        return 0
    return parse_limit(text, 1 << 40)
