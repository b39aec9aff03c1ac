# SPDX-License-Identifier: MIT
"""Every state that a policy can meet, what it decides there, and what that proves.

A closed fact has finitely many values. Numbers, releases, texts and names are split into the
classes that the policy's own conditions tell apart, each with one value to stand for it. So the
state space is finite and is enumerated whole; no solver is needed, and the answer is a proof.
One restriction: releases with numbers of more than nine digits, which have no order, are not looked for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, product
from typing import NamedTuple

from safemem.boot import engine
from safemem.boot.conditions import fact_text, matches, order_key
from safemem.boot.model import FACTS, FINAL, PERMISSIVENESS, UNKNOWN, Blocks, Condition, Fact, Policy, Rule, Snapshot
from safemem.boot.ranges import Range, parse_limit

Value = str | int | tuple[str, ...]
State = tuple[Value, ...]
#: Facts that only an accepted handover tells.
FROM_THE_TREE = ("nodes", "previous_kernel", "kexec_count")
#: More states than this take minutes; a policy that asks for so much cannot be reviewed either.
MAX_STATES = 5_000_000
_MAX_NAMES = 8


class TooLarge(ValueError):
    """A policy tells more states apart than can be looked at; the message says why."""


class Constraint(NamedTuple):
    """Something that no machine can show; `broken` gets the facts of a state, some of which may be absent."""

    text: str
    broken: Callable[[dict[str, Value]], bool]


#: Every impossible combination, stated here and nowhere else (domain: what the probe can return).
CONSTRAINTS = (
    Constraint(
        "only an accepted handover shows producers, a predecessor and a count",
        lambda s: s["handover"] != "accepted" and any(s.get(name, UNKNOWN) != UNKNOWN for name in FROM_THE_TREE),
    ),
    Constraint("a handover is accepted only where KHO is on", lambda s: s["handover"] == "accepted" and s.get("kho") == "off"),
    Constraint(
        "a handover is orphaned or unsupported only where KHO is off",
        lambda s: s["handover"] in ("orphaned", "unsupported") and s.get("kho", "off") != "off",
    ),
    Constraint(
        "LUO needs KHO",
        lambda s: (s["handover"] in ("orphaned", "unsupported") or s.get("kho") == "off")
        and s.get("luo") in ("ready", "failed", "busy"),
    ),
    Constraint(
        "a guard is in force only if nothing was accepted", lambda s: s["handover"] == "accepted" and s.get("guard") == "held"
    ),
)  # fmt: skip


class Space:
    """The states that one or several policies tell apart: `facts` in order, `classes` of each."""

    def __init__(self, *policies: Policy) -> None:
        """Find the facts that any of `policies` asks for and split them. Raises TooLarge."""
        self.policies = policies
        conditions: dict[str, list[Condition]] = {"handover": []}
        for name in FACTS:
            found = [c for policy in policies for rule in policy.rules for c in rule.when if c.fact == name]
            if found or name == "handover":
                conditions[name] = found
        self.facts = tuple(conditions)
        self.classes = tuple(_classes(name, conditions[name]) for name in self.facts)
        self.size = 1
        for values in self.classes:
            self.size *= len(values)
        if self.size > MAX_STATES:
            wide = sorted(zip((len(values) for values in self.classes), self.facts, strict=True), reverse=True)[:3]
            raise TooLarge(
                f"{self.size:,} states to look at, and {MAX_STATES:,} is the limit; most come from "
                + ", ".join(f"{name} ({count} classes)" for count, name in wide)
            )

    def __iter__(self) -> Iterator[State]:
        """Go through every state that a machine can be in."""
        for state in product(*self.classes):
            if self.possible(state):
                yield state

    def named(self, state: State) -> dict[str, Value]:
        """Return `state` as facts by name."""
        return dict(zip(self.facts, state, strict=True))

    def possible(self, state: State) -> bool:
        """Return whether a machine can be in `state`."""
        facts = self.named(state)
        if any(constraint.broken(facts) for constraint in CONSTRAINTS):
            return False
        region = facts.get("safe_region")
        return region is None or any(region in _region(policy, facts) for policy in self.policies)

    def locate(self, facts: dict[str, Fact]) -> State:
        """Return the state that stands for a machine with `facts`, derived ones included."""
        return tuple(self.stand_in(name, facts[name].value) for name in self.facts)

    def stand_in(self, name: str, value: Value) -> Value:
        """Return the value that stands for the class of `value`."""
        conditions = self._conditions(name)
        wanted = _signature(name, value, conditions)
        return next(
            other
            for other in self.classes[self.facts.index(name)]
            if _signature(name, other, conditions) == wanted and (FACTS[name][0] != "set" or other == value)
        )

    def _conditions(self, name: str) -> list[Condition]:
        return [c for policy in self.policies for rule in policy.rules for c in rule.when if c.fact == name]


def _region(policy: Policy, facts: dict[str, Value]) -> tuple[str, ...]:
    """Return what `safe_region` can be: the sources and the handover decide."""
    if any(isinstance(source, Range) or source == "none" for source in policy.sources):
        return ("resolved",)
    if "cmdline" in policy.sources or facts["handover"] == "accepted":
        return ("resolved", "unresolved")
    return ("unresolved",)


class Outcomes:
    """What one policy decides in every state of a space: the index of the rule, `len(rules)` for `otherwise`.

    For each class of each fact, one bit a rule says whether the engine finds the rule's condition
    on that fact to hold; the lowest bit that is left when all facts are put together decides.
    """

    def __init__(self, space: Space, policy: Policy, progress: Callable[[int], None] = lambda _: None) -> None:
        self.space, self.policy = space, policy
        self.rules = (*policy.rules, policy.otherwise)
        everything = (1 << len(self.rules)) - 1
        masks = []
        for name, values in zip(space.facts, space.classes, strict=True):
            column = {}
            for value in values:
                mask = everything
                for index, rule in enumerate(policy.rules):
                    for condition in rule.when:
                        if condition.fact == name and not matches(condition, Fact(value, "")):
                            mask &= ~(1 << index)
                column[value] = mask
            masks.append(column)
        self.of: dict[State, int] = {}
        for count, state in enumerate(space):
            left = everything
            for column, value in zip(masks, state, strict=True):
                left &= column[value]
            self.of[state] = (left & -left).bit_length() - 1
            if count % 4096 == 0:
                progress(count)

    def rule(self, state: State) -> Rule:
        """Return the rule that decides `state`."""
        return self.rules[self.of[state]]


def _signature(name: str, value: Value, conditions: list[Condition]) -> tuple[bool, ...]:
    fact = Fact(value, "")
    # Unknown is a class of its own: it is what invariant 3 is about.
    return (value == UNKNOWN, *(matches(condition, fact) for condition in conditions))


def _classes(name: str, conditions: list[Condition]) -> tuple[Value, ...]:
    """Return one value for each class of `name` that `conditions` can tell apart."""
    kind, members = FACTS[name]
    if kind == "set":
        return members
    found: dict[tuple[bool, ...], Value] = {}
    for value in (*_candidates(name, kind, conditions), UNKNOWN):
        found.setdefault(_signature(name, value, conditions), value)
    return tuple(found.values())


def _candidates(name: str, kind: str, conditions: list[Condition]) -> Iterable[Value]:
    terms = {term for condition in conditions for group in condition.groups for term in group}
    values = sorted({term.value for term in terms if term.value != UNKNOWN}, key=str)
    if kind == "number":
        return sorted({0, *(max(0, int(value) + step) for value in values for step in (-1, 0, 1))})
    if kind == "names":
        if len(values) > _MAX_NAMES:
            raise TooLarge(
                f"`{name}`: {len(values)} names are {2 ** len(values)} combinations; ask for at most {_MAX_NAMES}"
            )
        every = [str(value) for value in values]
        return (subset for size in range(len(every) + 1) for subset in combinations(every, size))
    globs = [str(term.value) for term in terms if term.op in ("is", "glob") and term.value != UNKNOWN]
    bounds = [str(term.value) for term in terms if term.op in ("<", "<=", ">", ">=")]
    # Without globs the releases around the bounds are all there is, and read better.
    return (*_releases(bounds), *_texts(globs, bounds if globs else []))


def _texts(patterns: list[str], bounds: list[str]) -> list[str]:
    """Return a text for every combination of `patterns` that some text matches and `bounds` that it lies between.

    A walk over the product automaton.
    """
    order = _Order(bounds)
    letters = sorted({letter for text in (*patterns, *order.letters) for letter in text if letter not in "*?"})
    fresh = next(
        letter for letter in "xyzuvw0123456789-" + "".join(map(chr, range(192, 0x2000))) if letter not in letters
    )
    start = (tuple(_closure(pattern, {0}) for pattern in patterns), order.start)
    texts = {start: ""}
    queue = [start]
    for at in queue:
        for letter in (fresh, *letters):
            after = (
                tuple(_step(pattern, places, letter) for pattern, places in zip(patterns, at[0], strict=True)),
                order.step(at[1], letter),
            )
            if after not in texts:
                texts[after] = texts[at] + letter
                queue.append(after)
        if len(texts) > 50_000:
            raise TooLarge(f"{len(patterns)} globs on one fact overlap in too many ways to look at: {patterns[0]}, …")
    # The empty text is no release and no vendor; the fresh letter stands for it.
    return [text or fresh for text in texts.values()]


def _closure(pattern: str, places: set[int]) -> frozenset[int]:
    found = set(places)
    for place in sorted(places):
        while place < len(pattern) and pattern[place] == "*":
            place += 1
            found.add(place)
    return frozenset(found)


def _step(pattern: str, places: frozenset[int], letter: str) -> frozenset[int]:
    after = set()
    for place in places:
        if place < len(pattern):
            if pattern[place] == "*":
                after.add(place)
            elif pattern[place] in ("?", letter):
                after.add(place + 1)
    return _closure(pattern, after)


class _Order:
    """Where a text that is read letter by letter stands among `bounds`, as `order_key` reads it.

    A state is (phase, index of the number, the bounds `low`..`high` that the numbers before are equal to, the number
    so far); two texts in the same state compare alike whatever follows.
    """

    State = tuple[str, int, int, int, int]

    def __init__(self, bounds: list[str]) -> None:
        self._keys = sorted({key for bound in bounds if (key := order_key(bound))})
        self.letters = "0123456789.-rc" if self._keys else ""
        self.start: _Order.State = ("number", 0, 0, len(self._keys), 0) if self._keys else ("over", 0, 0, 0, 0)

    def step(self, state: State, letter: str) -> State:
        """Return the state after one more letter."""
        phase, index, low, high, number = state
        if phase == "number" and letter in "0123456789":
            return ("digits", index, low, high, self._class(state, int(letter)))
        if phase == "digits" and letter in "0123456789":
            return ("digits", index, low, high, self._class(state, 10 * number + int(letter)))
        if phase == "number" and (index == 0 or letter.isdecimal()):  # no number at all, or digits that are not ASCII
            return ("none", 0, 0, 0, 0)
        if phase == "digits":
            column = [key[index] for key in self._keys[low:high]]
            low, high = low + bisect_left(column, number), low + bisect_right(column, number)
            if letter == ".":
                return ("number" if index < 2 else "over", index + 1, low, high, 0)
            return ("-" if letter == "-" else "over", index + 1, low, high, 0)
        if (phase, letter) in (("-", "r"), ("-r", "c")):
            return (phase + letter, index, low, high, 0)
        return state if phase in ("-rc", "none") else ("over", index, low, high, 0)

    def _class(self, state: State, number: int) -> int:
        """Return the smallest number that compares like `number`, and still does with more digits behind."""
        column = [key[state[1]] for key in self._keys[state[2] : state[3]]]
        if not column:
            return 0
        place = bisect_left(column, number)
        if number <= column[-1] // 10 or (place < len(column) and column[place] == number):
            return number
        return max(column[-1] // 10, column[place - 1] if place else 0) + 1


def _releases(bounds: list[str]) -> list[str]:
    """Return releases at, just below, just above and between `bounds`, plain, as candidates and as a distribution's."""
    if not bounds:
        return []
    keys = {(0, 0, 1)}
    for bound in bounds:
        a, b, c = (order_key(bound) or (0, 0, 0))[:3]
        keys.update({(a, b, c), _below(a, b, c), (a, b, c + 1), (a, b + 1, 0), (a + 1, 0, 0)})
    return [f"{a}.{b}.{c}{tail}" for a, b, c in sorted(keys) for tail in ("", "-rc1", "-x")]


def _below(a: int, b: int, c: int) -> tuple[int, int, int]:
    if c:
        return a, b, c - 1
    return (a, b - 1, 999) if b else (max(0, a - 1), 999, 999)


# ---- what is proved


class Finding(NamedTuple):
    """One thing that is wrong with a policy, or worth knowing."""

    code: str
    level: str  #: `error` an invariant fails; `warning`; `note`
    rule: str  #: name, `otherwise`, `on_failure` or `safe_region`
    key: str  #: of the rule's table that the message is about
    message: str
    advice: str
    example: dict[str, Value]  #: the smallest state that shows it; facts that do not matter are left out


#: code -> (level, what it is about), in the order in which they are checked.
CODES = {
    "unreachable-rule": ("error", "Every rule decides some state."),
    "exposes-handover": ("error", "A handover that was offered and not accepted never ends in online-all by accident."),
    "unknown-permissive": ("error", "Not knowing a fact is never more permissive than knowing it at its worst."),
    "reboot-loop": ("error", "No reboot finds the state that it was decided in again."),
    "unsafe-block": ("error", "online-safe never onlines a block that reaches outside the safe region."),
    "failure-loop": ("warning", "A failure that lasts does not reboot for ever."),
    "useless-region": ("warning", "A range of the safe region holds at least one whole memory block."),
    "idle-acceptance": ("warning", "`accept_data_exposure` stands only where it is needed."),
    "same-as-next": ("warning", "A rule differs from the one after it."),
    "trusts-guard": ("note", "Evidence that is no proof counts as an accepted handover only where the policy says so."),
    "only-otherwise": ("note", "States that no rule asks for are decided by `otherwise`."),
}


def check(policy: Policy, outcomes: Outcomes) -> list[Finding]:
    """Return everything that is wrong with `policy`, the invariants first."""
    return [
        *_unreachable(policy, outcomes), *_exposes(outcomes), *_idle(outcomes), *_unknowns(outcomes), *_loops(outcomes),
        *_blocks(policy), *_failure(policy), *_regions(policy), *_same(policy), *_trusts(policy, outcomes),
        *_otherwise(policy, outcomes),
    ]  # fmt: skip


def _finding(
    code: str, rule: str, key: str, message: str, advice: str, example: dict[str, Value] | None = None
) -> Finding:
    return Finding(code, CODES[code][0], rule, key, message, advice, example or {})


def _unreachable(policy: Policy, outcomes: Outcomes) -> Iterator[Finding]:
    deciding = set(outcomes.of.values())
    for index, rule in enumerate(policy.rules):
        if index in deciding:
            continue
        takers = {outcomes.of[state] for state in outcomes.of if _holds(rule, outcomes.space.named(state))}
        names = ", ".join(f"`{outcomes.rules[taker].name}`" for taker in sorted(takers))
        why = (
            f"every state it matches is decided by {names} before"
            if names
            else "no machine can be in a state that it matches"
        )
        yield _finding(
            "unreachable-rule", rule.name, "name", f"rule `{rule.name}` never decides: {why}", "remove it or move it up"
        )


def _holds(rule: Rule, facts: dict[str, Value]) -> bool:
    return all(matches(condition, Fact(facts[condition.fact], "")) for condition in rule.when)


def _exposes(outcomes: Outcomes) -> Iterator[Finding]:
    bad: dict[int, list[State]] = {}
    for state, index in outcomes.of.items():
        rule = outcomes.rules[index]
        if (
            state[0] in ("rejected", "orphaned", "unsupported")
            and rule.action == "online-all"
            and not rule.accept_data_exposure
        ):
            bad.setdefault(index, []).append(state)
    for index, states in sorted(bad.items()):
        yield _finding(
            "exposes-handover", outcomes.rules[index].name, "action",
            f"a handover that was {states[0][0]} ends in online-all: guests' memory is put into the allocator",
            "use online-safe or panic, or say `accept_data_exposure = true` if no guest's memory matters here",
            smallest(outcomes, states),
        )  # fmt: skip


def _idle(outcomes: Outcomes) -> Iterator[Finding]:
    lost = ("rejected", "orphaned", "unsupported", UNKNOWN)
    needed = {index for state, index in outcomes.of.items() if state[0] in lost}
    for index, rule in enumerate(outcomes.rules):
        if rule.accept_data_exposure and (rule.action != "online-all" or index not in needed):
            yield _finding(
                "idle-acceptance", rule.name, "accept_data_exposure",
                "`accept_data_exposure` changes nothing here: no lost handover ends in online-all by this rule",
                "remove it, so that it does not hide what a later edit does",
            )  # fmt: skip


def _unknowns(outcomes: Outcomes) -> Iterator[Finding]:
    space = outcomes.space
    bad: dict[tuple[int, str], list[tuple[State, Value]]] = {}
    for place, name in enumerate(space.facts):
        if UNKNOWN not in space.classes[place]:
            continue
        for state, index in outcomes.of.items():
            if state[place] != UNKNOWN:
                continue
            mine = PERMISSIVENESS[outcomes.rules[index].action]
            for value in space.classes[place]:
                known = (*state[:place], value, *state[place + 1 :])
                other = outcomes.of.get(known)
                if other is not None and PERMISSIVENESS[outcomes.rules[other].action] < mine:
                    bad.setdefault((index, name), []).append((state, value))
                    break
    for (index, name), found in sorted(bad.items()):
        state, value = found[0]
        place = space.facts.index(name)
        stricter = outcomes.rules[outcomes.of[(*state[:place], value, *state[place + 1 :])]]
        yield _finding(
            "unknown-permissive", outcomes.rules[index].name, "when",
            f"with `{name}` unknown the outcome is {outcomes.rules[index].action}, with {name} = {fact_text(value)} it is"
            f" {stricter.action} (rule `{stricter.name}`): not knowing is rewarded",
            f"ask for {name} = \"unknown\" in a rule before it that is at least as strict",
            smallest(outcomes, [state for state, _ in found], keep=(name,)),
        )  # fmt: skip


def _loops(outcomes: Outcomes) -> Iterator[Finding]:
    """A firmware reset clears the handover and what came with it; each boot that ends so is counted where anything counts."""
    space = outcomes.space
    bad: dict[int, list[State]] = {}
    for state, index in outcomes.of.items():
        if not _reboots(outcomes.rules[index]):
            continue
        cleared = dict.fromkeys(FROM_THE_TREE, UNKNOWN) | {"handover": "none"}
        after = tuple(cleared.get(name, value) for name, value in zip(space.facts, state, strict=True))
        # Why the handover is unknown, nobody knows: the reset may find it unknown again.
        again = _counted(space, state if state[0] == UNKNOWN else after)
        following = outcomes.of.get(again)
        if following is not None and _reboots(outcomes.rules[following]):
            bad.setdefault(index, []).append(state)
    for index, states in sorted(bad.items()):
        yield _finding(
            "reboot-loop", outcomes.rules[index].name, "action",
            f"handover {states[0][0]} ends in reboot, and the next boot finds a state that reboots again",
            "use panic or halt here, or ask for `boot_attempts`; a reboot ends by itself only where a reset clears the handover: rejected, orphaned, unsupported",
            smallest(outcomes, states),
        )  # fmt: skip


def _counted(space: Space, state: State) -> State:
    """Return `state` with the count of boots beyond every bound, where it ends up; not known stays not known."""
    return tuple(
        space.stand_in(name, 1 << 63) if name == "boot_attempts" and value != UNKNOWN else value
        for name, value in zip(space.facts, state, strict=True)
    )


def _reboots(rule: Rule) -> bool:
    return rule.action == "reboot" or (rule.action not in FINAL and rule.on_shortfall == "reboot")


def _blocks(policy: Policy) -> Iterator[Finding]:
    """Let the engine plan online-safe over machines whose blocks straddle every edge of the named ranges."""
    ranges = [source for source in policy.sources if isinstance(source, Range)]
    safe = policy._replace(rules=(), otherwise=policy.otherwise._replace(action="online-safe"))
    for size in (128 << 20, 2 << 30):
        edges = sorted({max(0, edge // size + step) for area in ranges for edge in area for step in (-1, 0, 1)})
        blocks = tuple(Blocks(number, number, "offline") for number in edges)
        facts = {
            name: Fact(UNKNOWN, "")
            for name in FACTS
            if name not in ("safe_region", "held_blocks", "online_outside_safe")
        }
        decision = engine.decide(safe, Snapshot(facts, size, blocks, (), "", ()))
        for step in decision.steps:
            if step.op == "online" and not any(
                area.start <= step.start and step.end <= area.end for area in decision.region
            ):
                yield _finding(
                    "unsafe-block", "safe_region", "sources",
                    f"online-safe would online {Range(step.start, step.end)}, which reaches outside", "report this: the engine is wrong",
                )  # fmt: skip


def _regions(policy: Policy) -> Iterator[Finding]:
    block = 128 << 20
    for source in policy.sources:
        if isinstance(source, Range) and -(-source.start // block) >= source.end // block:
            yield _finding(
                "useless-region", "safe_region", "sources", f"range {source} holds no whole memory block of 128 MiB",
                "give it edges at multiples of the machine's block size, or leave it out",
            )  # fmt: skip


def _failure(policy: Policy) -> Iterator[Finding]:
    if policy.on_failure.action == "reboot":
        yield _finding(
            "failure-loop", "on_failure", "action",
            "if safemem cannot finish for a reason that lasts, such as a missing interpreter, the machine reboots for ever",
            "use panic or halt",
        )  # fmt: skip


def _effect(rule: Rule) -> tuple[object, ...]:
    """Return what a rule does, without what it is called, asks for and says."""
    return tuple(rule._replace(name="", when=(), message="", accept_data_exposure=False))


def _outcome(rule: Rule) -> tuple[object, ...]:
    return (*_effect(rule), rule.accept_data_exposure, rule.message)


def _same(policy: Policy) -> Iterator[Finding]:
    rules = (*policy.rules, policy.otherwise)
    for rule, after in zip(rules, rules[1:], strict=False):
        if _outcome(rule) == _outcome(after):
            yield _finding(
                "same-as-next", rule.name, "name", f"rule `{rule.name}` does and says what `{after.name}` after it does",
                "join them, or give one its own message",
            )  # fmt: skip


def _trusts(policy: Policy, outcomes: Outcomes) -> Iterator[Finding]:
    """States are what the engine matches: one that it derives from a guard is among the accepted ones already."""
    if not policy.trust_guard:
        return
    found: dict[str, list[State]] = {}
    for state in outcomes.of:
        facts = outcomes.space.named(state)
        unknown = tuple({"handover": UNKNOWN}.get(name, facts[name]) for name in outcomes.space.facts)
        before = outcomes.of.get(unknown)
        if facts["handover"] == "accepted" and facts.get("guard", "void") == "void" and before is not None:
            mine, other = outcomes.rule(state).action, outcomes.rules[before].action
            if PERMISSIVENESS[mine] > PERMISSIVENESS[other]:
                found.setdefault(f"{mine} instead of {other}", []).append(state)
    for what, states in found.items():
        yield _finding(
            "trusts-guard", outcomes.rule(states[0]).name, "action",
            f"with trust_guard, a handover that nobody can tell ends in {what} if the guard is not in force", "",
            smallest(outcomes, states, keep=("guard",)),
        )  # fmt: skip


def _otherwise(policy: Policy, outcomes: Outcomes) -> Iterator[Finding]:
    states = [state for state, index in outcomes.of.items() if index == len(policy.rules)]
    if states:
        handovers = ", ".join(str(value) for value in dict.fromkeys(state[0] for state in states))
        yield _finding(
            "only-otherwise", "otherwise", "action",
            f"{len(states)} of {len(outcomes.of)} states are decided by `otherwise` only: handover {handovers}", "",
        )  # fmt: skip


def smallest(outcomes: Outcomes, states: list[State], keep: tuple[str, ...] = ()) -> dict[str, Value]:
    """Return the first of `states` without the facts that could have any other value and change nothing."""
    space, wanted = outcomes.space, set(states)
    group = {states[0]}
    facts = list(space.facts)
    for place, name in enumerate(space.facts):
        if name == "handover" or name in keep:
            continue
        wider = {
            (*state[:place], value, *state[place + 1 :]) for state in group for value in space.classes[place]
        } & outcomes.of.keys()  # fmt: skip
        if wider <= wanted:
            group = wider
            facts.remove(name)
    first = space.named(states[0])
    return {name: first[name] for name in facts}


# ---- two policies


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
