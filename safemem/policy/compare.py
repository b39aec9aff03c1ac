# SPDX-License-Identifier: MIT
"""What changes from one policy to another: every state in which they differ, and which of the two is stricter there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from safemem.boot.model import FINAL, PERMISSIVENESS, Failure, Policy, Rule
from safemem.boot.ranges import Range, parse_limit
from safemem.policy.space import OUTCOME, Outcomes, Space, State, Value


class Beside(NamedTuple):
    """What a policy says beside its rules, in words; shown as the outcome of a rule is."""

    name: str  #: the key or table of the policy file
    action: str  #: the outcome that it bears on
    message: str


class Change(NamedTuple):
    """States in which two policies differ in the same way, or a difference beside their rules."""

    direction: str  #: `stricter`, `looser`, `other` (neither), or `reason` (same outcome, said otherwise)
    before: Rule | Beside
    after: Rule | Beside
    states: int  #: 0 for a difference beside the rules
    where: dict[str, tuple[Value, ...]]  #: for each fact that matters, the values it has in these states
    example: dict[str, Value]


def compare(old: Policy, new: Policy) -> tuple[list[Change], int]:
    """Return how `new` differs from `old`, and how many states either can tell apart.

    What stands beside the rules comes first, then the states in which the two differ, looser ones first.
    """
    space = Space(old, new)
    before, after = Outcomes(space, old), Outcomes(space, new)
    olds, news = ([_outcome(rule) for rule in outcomes.rules] for outcomes in (before, after))
    groups: dict[tuple[int, int], list[State]] = {}
    for state, index in before.of.items():
        if olds[index] != news[after.of[state]]:
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
    changes.sort(key=lambda change: (order[change.direction], -change.states))
    return [*_beside(old, new), *changes], len(before.of)


# ---- rules


def _allowed(mine: str, other: str) -> int:
    """Return the size of a limit as far as it can be compared with `other`: two sizes, or two shares."""
    if not mine or not other or mine.endswith("%") != other.endswith("%"):
        return 0
    return parse_limit(mine, 1 << 40)


#: A word of a rule -> how strict its value is beside the other rule's; the larger, the stricter. The first word that
#: differs tells: the action; then whether the boot goes on as usual; then what a shortfall leads to, and whether the
#: hold outlasts a hand. None: the word makes a rule neither stricter nor looser.
STRICTNESS: dict[str, Callable[[Any, Any], int] | None] = {
    "action": lambda mine, _: -PERMISSIVENESS[mine],
    "boot_memory": lambda mine, _: mine == "offline",
    "enter": lambda mine, _: bool(mine),
    "on_shortfall": lambda mine, _: mine in FINAL,
    "exposed_max": lambda mine, other: -_allowed(mine, other),
    "floor": lambda mine, other: -_allowed(mine, other),
    "final": lambda mine, _: mine,
    "if_onlined": lambda mine, _: mine == "offline",
    "zone": None,
    "name": None,
    "when": None,
    "message": None,
    "accept_data_exposure": None,
}
#: The words of a rule that do anything.
EFFECT = tuple(word for word in OUTCOME if word not in ("name", "message"))


def _outcome(rule: Rule) -> tuple[object, ...]:
    return tuple(getattr(rule, word) for word in OUTCOME)


def _direction(old: Rule, new: Rule) -> str:
    if all(getattr(old, word) == getattr(new, word) for word in EFFECT):
        return "reason"
    before, after = (
        [strict(getattr(rule, word), getattr(other, word)) for word, strict in STRICTNESS.items() if strict]
        for rule, other in ((old, new), (new, old))
    )
    return "other" if before == after else "stricter" if after > before else "looser"


# ---- beside the rules


class Comparison(NamedTuple):
    """How a field of a policy reads when it is compared, and in which direction a change of it goes."""

    text: Callable[[Any], str]
    direction: Callable[[Any, Any], str]
    name: str = ""  #: in the policy file, where the field's own is another


def _neither(_old: object, _new: object) -> str:
    return "other"


def _permits(_old: bool, new: bool) -> str:
    return "looser" if new else "stricter"


def _region(old: tuple[str | Range, ...], new: tuple[str | Range, ...]) -> str:
    """Return `stricter` for ranges inside of the old ones, the one case that can be told without a machine."""
    olds, news = ([source for source in sources if isinstance(source, Range)] for sources in (old, new))
    inside = all(any(area.start <= item.start and item.end <= area.end for area in olds) for item in news)
    return "stricter" if inside and len(olds) == len(old) and len(news) == len(new) else "looser"


#: A field of a policy -> how it is compared, in the order of the output. None: state by state, or not at all.
FIELDS: dict[str, Comparison | None] = {
    "sources": Comparison(lambda sources: f"sources {', '.join(map(str, sources))}", _region, "safe_region"),
    "allow_cmdline_override": Comparison(
        lambda may: f"the command line may {'' if may else 'not '}loosen the outcome", _permits
    ),
    "memory": Comparison(lambda items: f"{len(items)} [[memory]] tables", _neither),
    "open_luo": Comparison(lambda opened: f"/dev/liveupdate is {'' if opened else 'not '}opened", _neither),
    "trust_guard": Comparison(
        lambda trust: f"a guard that is not in force is {'' if trust else 'not '}taken for an accepted handover",
        _permits,
    ),
    "keep_crashkernel": Comparison(lambda size: f"kdump keeps {size or 'nothing'} of a guard", _neither),
    "on_failure": Comparison(
        lambda failure: f"{failure.message}, after {failure.deadline} s",
        lambda old, new: "other" if old.action != new.action else "reason",
    ),
    "name": None,
    "rules": None,
    "otherwise": None,
    "digest": None,
}


def _beside(old: Policy, new: Policy) -> Iterator[Change]:
    """Yield what differs outside the rules: the safe region, what the command line may do, on_failure and so on."""
    for key, comparison in FIELDS.items():
        before, after = getattr(old, key), getattr(new, key)
        if comparison and before != after:
            first, second = (
                Beside(
                    comparison.name or key,
                    value.action if isinstance(value, Failure) else "online-safe",
                    comparison.text(value),
                )
                for value in (before, after)
            )
            yield Change(comparison.direction(before, after), first, second, 0, {}, {})
