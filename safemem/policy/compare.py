# SPDX-License-Identifier: MIT
"""What changes from one policy to another: every state in which they differ, and which of the two is stricter there.

Judged word by word: a change that is looser in one word is looser, whatever else is stricter in it. What cannot be
compared, such as a share with a size, counts as looser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from safemem.boot.model import CONFIDENT, DERIVED, FINAL, UNKNOWN, Failure, Override, Policy, Rule
from safemem.boot.plan import FLOOR
from safemem.boot.ranges import Range, parse_limit, parse_size
from safemem.policy.exceptions import HELD, changes_of, text_of
from safemem.policy.language import ONLY_WITH
from safemem.policy.space import OUTCOME, Outcomes, Space, State, Value


class Beside(NamedTuple):
    """What a policy says beside its rules, in words; shown as the outcome of a rule is."""

    name: str  #: the key or table of the policy file
    action: str  #: the outcome that it bears on
    message: str


class Change(NamedTuple):
    """States in which two policies differ in the same way, or a difference beside their rules."""

    direction: str  #: `stricter`, `looser`, `both`, `other` (neither), or `reason` (same outcome, said otherwise)
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
            _direction(old, before.rules[first], new, after.rules[second]),
            before.rules[first], after.rules[second], len(states), where,
            {name: space.named(states[0])[name] for name in (*where, *(["handover"] if "handover" not in where else []))},
        ))  # fmt: skip
    order = {"looser": 0, "both": 1, "stricter": 2, "other": 3, "reason": 4}
    changes.sort(key=lambda change: (order[change.direction], -change.states))
    return [*_beside(old, new, before, after), *changes], len(before.of)


# ---- rules

#: A reset is followed by a boot that knows of no handover and uses all memory.
_ENDS = {"continue": 0, "reboot": 1, "panic": 2, "halt": 2}
#: What may be allocated in a zone: the more, the larger. Without a zone the engine takes movable or auto.
_ZONES = {HELD: -1, "movable": 0, "": 1, "auto": 2, "kernel": 3}
_LARGEST = 1 << 100


def _strictness_of_action(mine: str, _: str) -> int:
    return {"online-all": -2, "online-safe": -1}.get(mine, _ENDS.get(mine, 0))


def _allowed(mine: str, other: str) -> int | None:
    """Return how much a limit allows; None for a share beside a size, and beside none, which counts other memory."""
    if not mine or not other:
        return None
    whole = 1 << 40
    sizes = [parse_limit(text, whole) for text in (mine, other)]
    shares = [text.endswith("%") for text in (mine, other)]
    bounds = [not size or (share and size == whole) for size, share in zip(sizes, shares, strict=True)]
    if shares[0] != shares[1] and not any(bounds):
        return None
    return _LARGEST if shares[0] and sizes[0] == whole else sizes[0]


def _kept(mine: str, other: str) -> int | None:
    """Return how much a floor keeps in use; the default grows with the machine, so a large size cannot be compared."""
    if "" in (mine, other) and parse_size(mine or other) > FLOOR:
        return None
    return parse_size(mine) if mine else _LARGEST


def _less(amount: Callable[[str, str], int | None]) -> Callable[[str, str], int | None]:
    def strict(mine: str, other: str) -> int | None:
        size = amount(mine, other)
        return None if size is None else -size

    return strict


#: A word of a rule -> how strict its value is beside the other rule's; the larger, the stricter. None as the answer: the
#: two cannot be compared. None in the table: the word makes a rule neither stricter nor looser.
STRICTNESS: dict[str, Callable[[Any, Any], int | None] | None] = {
    "action": _strictness_of_action,
    "boot_memory": lambda mine, _: mine == "offline",
    "enter": lambda mine, _: bool(mine),
    "on_shortfall": lambda mine, _: _ENDS[mine],
    "exposed_max": _less(_allowed),
    "floor": _less(_kept),
    "final": lambda mine, _: mine,
    "if_onlined": lambda mine, _: mine == "offline",
    "quiesce": lambda mine, _: bool(mine),
    "zone": lambda mine, _: -_ZONES[mine],
    "name": None,
    "when": None,
    "message": None,
    "accept_data_exposure": None,
    "memory": None,  # compared block by block, with the policy's own exceptions: `_excepted`
}
#: The words of a rule that do anything.
EFFECT = tuple(word for word in OUTCOME if word not in ("name", "message"))


def _outcome(rule: Rule) -> tuple[object, ...]:
    return tuple(getattr(rule, word) for word in OUTCOME)


def _direction(old: Policy, before: Rule, new: Policy, after: Rule) -> str:
    if all(getattr(before, word) == getattr(after, word) for word in EFFECT):
        return "reason"
    return _joined(direction for _, direction in _words(old, before, new, after))


def _words(old: Policy, before: Rule, new: Policy, after: Rule) -> Iterator[tuple[str, str]]:
    """Yield each word and its direction that differs and counts in both rules; what makes it idle in one is judged itself."""
    if before.memory != after.memory and before.action not in FINAL and after.action not in FINAL:
        mine, other = ((*rule.memory, *policy.memory) for policy, rule in ((old, before), (new, after)))
        yield "memory", _excepted(mine, other, {before.zone, after.zone})
    for word, strict in STRICTNESS.items():
        first, second = _value(word, before), _value(word, after)
        if strict and first != second and _counts(word, old, before) and _counts(word, new, after):
            yield word, _step(strict(first, second), strict(second, first))


def looser_words(policy: Policy, before: Rule, after: Rule) -> tuple[str, ...]:
    """Return the words in which the second of two rules of one policy is looser, or cannot be compared."""
    return tuple(word for word, direction in _words(policy, before, policy, after) if direction == "looser")


def _value(word: str, rule: Rule) -> Any:
    """An action that ends the boot ends it after a shortfall too."""
    return rule.action if word == "on_shortfall" and rule.action in FINAL else getattr(rule, word)


def _counts(word: str, policy: Policy, rule: Rule) -> bool:
    if word == "exposed_max":  # where no limit may stand, none does: that is compared as well
        return rule.action not in FINAL and rule.on_shortfall != "continue"
    return word == "on_shortfall" or all(only.effective(policy, rule) for only in ONLY_WITH if only.key == word)


def _step(before: int | None, after: int | None) -> str:
    """Return the direction from one strictness to the other."""
    if before is None or after is None:
        return "looser"
    return "other" if before == after else "stricter" if after > before else "looser"


def _joined(directions: Iterable[str]) -> str:
    found = set(directions)
    if {"looser", "stricter"} <= found:
        return "both"
    return next((direction for direction in ("both", "looser", "stricter") if direction in found), "other")


# ---- beside the rules


class Comparison(NamedTuple):
    """How a field of a policy reads when it is compared, and in which direction a change of it goes, from policy to policy."""

    text: Callable[[Any], str]
    direction: Callable[[Policy, Policy], str]
    name: str = ""  #: in the policy file, where the field's own is another


def _neither(_old: object, _new: object) -> str:
    return "other"


def _command_line(old: Policy, new: Policy) -> str:
    """`safemem=off` is as loose as can be in all but the zone, where a rule may be looser."""
    if new.allow_cmdline_override:
        return "looser"
    off = Rule("command line", "online-all")
    return _joined({"stricter", *(_direction(old, off, new, rule) for rule in (*new.rules, new.otherwise))})


def _region(old: Policy, new: Policy) -> str:
    """Return `stricter` for ranges inside of the old ones, the one case that can be told without a machine."""
    olds, news = ([item for item in policy.sources if isinstance(item, Range)] for policy in (old, new))
    inside = all(any(area.start <= item.start and item.end <= area.end for area in olds) for item in news)
    named = len(olds) == len(old.sources) and len(news) == len(new.sources)
    # With another region the same machine can be decided by another rule.
    derived = any(c.fact in DERIVED for policy in (old, new) for rule in policy.rules for c in rule.when)
    return "stricter" if inside and named and not derived else "looser"


def _failure(old: Policy, new: Policy) -> str:
    before, after = old.on_failure, new.on_failure
    found = {_step(_ENDS[before.action], _ENDS[after.action])} if before.action != after.action else {"reason"}
    if before.deadline != after.deadline:
        # Half of it is the time in which a block has to go offline.
        found.add("looser" if after.deadline < before.deadline and _takes_offline(new) else "other")
    return "reason" if found == {"reason"} else _joined(found)


def _takes_offline(policy: Policy) -> bool:
    return any(rule.boot_memory == "offline" for rule in (*policy.rules, policy.otherwise))


def _kdump(old: Policy, new: Policy) -> str:
    """Less that is kept is more for the allocator, which writes into all of it."""
    before, after = (parse_size(policy.keep_crashkernel or "0KiB") for policy in (old, new))
    return _step(before, after)


def _exceptions(old: Policy, new: Policy) -> str:
    return _excepted(
        old.memory, new.memory, {rule.zone for policy in (old, new) for rule in (*policy.rules, policy.otherwise)}
    )


def _excepted(old: tuple[Override, ...], new: tuple[Override, ...], zones: set[str]) -> str:
    """Return in which direction exceptions change for rules with these zones."""
    found = {_step(-_ZONES[before], -_ZONES[after]) for before, after in changes_of(old, new, zones)}
    # Any exception has what arrives later held, because nobody can tell one block that arrives from another.
    arrives = "other" if bool(old) == bool(new) else "looser" if old else "stricter"
    return _joined({*found, arrives})


#: A field of a policy -> how it is compared, in the order of the output. None: state by state, or not at all.
FIELDS: dict[str, Comparison | None] = {
    "sources": Comparison(lambda sources: f"sources {', '.join(map(str, sources))}", _region, "safe_region"),
    "allow_cmdline_override": Comparison(
        lambda may: f"the command line may {'' if may else 'not '}loosen the outcome",
        _command_line,
    ),
    "observe": Comparison(
        lambda only: f"what is decided is {'only recorded' if only else 'done'}",
        lambda _, new: "looser" if new.observe else "stricter",
    ),
    "memory": Comparison(text_of, _exceptions),
    "open_luo": Comparison(lambda opened: f"/dev/liveupdate is {'' if opened else 'not '}opened", _neither),
    "retrieve_token": Comparison(
        lambda asked: f"the token of the predecessor is {'' if asked else 'not '}retrieved from LUO", _neither
    ),
    "trust_guard": Comparison(
        lambda trust: f"a guard that is not in force is {'' if trust else 'not '}taken for an accepted handover",
        lambda _, new: "looser" if new.trust_guard else "stricter",
    ),
    "keep_crashkernel": Comparison(lambda size: f"kdump keeps {size or 'nothing'} of a guard", _kdump),
    "accept_errors": Comparison(
        lambda codes: f"built in with {'these errors: ' + ', '.join(codes) if codes else 'no error'}",
        lambda old, new: "looser" if set(new.accept_errors) - set(old.accept_errors) else "stricter",
    ),
    "on_failure": Comparison(lambda failure: f"{failure.message}, after {failure.deadline} s", _failure),
    "name": None,
    "rules": None,
    "otherwise": None,
    "digest": None,
}


def _beside(old: Policy, new: Policy, before: Outcomes, after: Outcomes) -> Iterator[Change]:
    """Yield what differs outside the rules: the safe region, what the command line may do, on_failure and so on."""
    seen: set[str] | None = None
    for key, comparison in FIELDS.items():
        first, second = getattr(old, key), getattr(new, key)
        if not comparison or first == second:
            continue
        direction = comparison.direction(old, new)
        if key in ("open_luo", "retrieve_token", "trust_guard"):
            seen = seen if seen is not None else set(_sight(before, after))
            direction = _joined({*seen, direction})
        one, other = (
            Beside(
                comparison.name or key,
                value.action if isinstance(value, Failure) else "online-safe",
                comparison.text(value),
            )
            for value in (first, second)
        )
        yield Change(direction, one, other, 0, {}, {})


def _sight(before: Outcomes, after: Outcomes) -> Iterator[str]:
    """Yield how outcomes change on machines that the two policies see in different states, in one of three ways.

    Who does not open /dev/liveupdate takes any device for `ready`; who trusts the guard takes a handover that cannot be
    told for an accepted one; who retrieves a token can tell it.
    """
    space, old, new = before.space, before.policy, after.policy
    rules = {
        (before.of[first], after.of[second])
        for state in before.of
        for device in (True, False)
        for witness in (True, False)
        for token in ("", "accepted", "rejected")
        for first, second in [[_seen(space, policy, state, device, witness, token) for policy in (old, new)]]
        if first != second and first in before.of and second in after.of
    }
    for first, second in rules:
        yield _direction(old, before.rules[first], new, after.rules[second])


def _seen(space: Space, policy: Policy, state: State, device: bool, witness: bool, token: str) -> State:
    facts = space.named(state)
    if device and not policy.open_luo and facts.get("luo") in ("failed", "busy", UNKNOWN):
        facts["luo"] = "ready"
    told, sure = "", ""
    if facts["handover"] == UNKNOWN and policy.retrieve_token and token:
        told, sure = token, "proven"
    elif facts["handover"] == UNKNOWN and policy.trust_guard and witness and facts.get("guard", "void") == "void":
        told, sure = "accepted", "evidence"
    if told:
        facts["handover"] = told
        facts.update({CONFIDENT["handover"]: sure} if CONFIDENT["handover"] in facts else {})
    return tuple(facts.values())
