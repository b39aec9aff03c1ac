# SPDX-License-Identifier: MIT
"""Every state that a policy can meet, and what it decides there.

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

from safemem.boot.conditions import matches, order_key
from safemem.boot.confidence import HANDOVER
from safemem.boot.model import CONFIDENT, FACTS, UNKNOWN, UNORDERED, Condition, Fact, Policy, Refused, Rule, Term
from safemem.boot.ranges import Range

Value = str | int | tuple[str, ...]
State = tuple[Value, ...]
#: Facts that only an accepted handover tells.
FROM_THE_TREE = ("nodes", "previous_kernel", "kexec_count")
#: Values of `handover` that say that a handover was to come and did not arrive.
LOST = ("lost", "rejected", "orphaned", "unsupported")
#: The words of a rule that tell what comes of it; when it decides and what its author accepts tell nothing of that.
OUTCOME = tuple(word for word in Rule._fields if word not in ("when", "accept_data_exposure"))
#: More states than this take minutes; a policy that asks for so much cannot be reviewed either.
MAX_STATES = 5_000_000
_MAX_NAMES = 8


class TooLarge(Refused, ValueError):
    """A policy tells more states apart than can be looked at; the message says why."""

    kind = "invalid"


class Constraint(NamedTuple):
    """A combination that no machine can show; `broken` gets the facts of a state, some of which may be absent."""

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
        "who asks for a guard offers a handover: without one it is lost",
        lambda s: s["handover"] == "none" and s.get("guard") in ("full", "part", "void"),
    ),
    Constraint(
        "who says what was preserved offers a handover: without one it is lost",
        lambda s: s["handover"] == "none" and s.get("preserved", UNKNOWN) != UNKNOWN,
    ),
    Constraint(
        "how sure a safe region is can be said of one that is resolved",
        lambda s: "safe_region" in s and CONFIDENT["safe_region"] in s
        and (s["safe_region"] == "unresolved") != (s[CONFIDENT["safe_region"]] == UNKNOWN),
    ),
    Constraint("every machine has a NUMA node", lambda s: s.get("numa_nodes") == 0),
    Constraint(
        "how sure a handover is follows from what it is",
        lambda s: s.get(CONFIDENT["handover"], UNKNOWN) not in (UNKNOWN, *HANDOVER[str(s["handover"])])
        or (s.get(CONFIDENT["handover"]) == UNKNOWN and s["handover"] != UNKNOWN),
    ),
    Constraint(
        "the kernel shows what became of a guard, or it is unknown",
        lambda s: s.get(CONFIDENT["guard"], UNKNOWN) not in ("proven", UNKNOWN)
        or (CONFIDENT["guard"] in s and "guard" in s and (s[CONFIDENT["guard"]] == UNKNOWN) != (s["guard"] == UNKNOWN)),
    ),
    Constraint(
        "a guard is in force as a whole only if nothing was accepted",
        lambda s: s["handover"] == "accepted" and s.get("guard") == "full",
    ),
)  # fmt: skip


def impossible(facts: dict[str, Value]) -> tuple[str, ...]:
    """Return why no machine can show `facts`; `handover` is among them."""
    return tuple(constraint.text for constraint in CONSTRAINTS if constraint.broken(facts))


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
        if impossible(facts):
            return False
        asked = ("safe_region", CONFIDENT["safe_region"])
        return any(
            all(facts.get(name, value) == value for name, value in zip(asked, pair, strict=True))
            for policy in self.policies
            for pair in _region(policy, facts)
        )

    def changed(self, state: State, name: str, value: Value) -> Iterator[State]:
        """Yield `state` with another value of one fact; how sure that is follows from it, so that may be anything."""
        free = [CONFIDENT.get(name, ""), CONFIDENT["safe_region"] if name == "handover" else ""]
        yield from product(
            *(
                (value,) if fact == name else classes if fact in free else (mine,)
                for fact, classes, mine in zip(self.facts, self.classes, state, strict=True)
            )
        )

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


def _region(policy: Policy, facts: dict[str, Value]) -> Iterator[tuple[str, Value]]:
    """Yield what `safe_region` can be and how sure: the sources and the handover decide."""
    always = [source for source in policy.sources if isinstance(source, Range) or source == "none"]
    if always:
        yield "resolved", "proven" if always[0] == "none" else "word"
    else:
        yield "unresolved", UNKNOWN
    if "cmdline" in policy.sources:
        yield "resolved", "word"
    if "kho-scratch" in policy.sources and facts["handover"] == "accepted":
        sure = facts.get(CONFIDENT["handover"])
        yield from (("resolved", one) for one in ((sure,) if sure is not None else HANDOVER["accepted"]))


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
    values = sorted({term.value for term in terms if term.value != UNKNOWN and term.op != UNORDERED}, key=str)
    if kind == "number":
        found = {0, *(max(0, int(value) + step) for value in values for step in (-1, 0, 1))}
        # What no machine has stands for a class only if nothing else does.
        return sorted(found, key=lambda number: (name == "numa_nodes" and not number, number))
    if kind == "names":
        if len(values) > _MAX_NAMES:
            raise TooLarge(
                f"`{name}`: {len(values)} names are {2 ** len(values)} combinations; ask for at most {_MAX_NAMES}"
            )
        every = [str(value) for value in values]
        return (subset for size in range(len(every) + 1) for subset in combinations(every, size))
    globs = [str(term.value) for term in terms if term.op in ("is", "glob") and term.value != UNKNOWN]
    bounds = [str(term.value) for term in terms if term.op in ("<", "<=", ">", ">=")]
    if Term(UNORDERED, UNORDERED) in terms:
        bounds.append("0")  # so that texts with an order are told from those without
    # Without globs the releases around the bounds are all there is. A class is shown by the first text that is found.
    return (*_plain(globs, bounds), *_releases(bounds), *_texts(globs, bounds if globs else []))


def _plain(globs: list[str], bounds: list[str]) -> list[str]:
    """Return texts that read like what they stand for: what is asked for itself, and another one."""
    asked = [text.replace("*", "1").replace("?", "1") for text in globs]
    around = []
    for bound in bounds:
        a, b, c = (order_key(bound) or (0, 0, 0))[:3]
        around += [bound, f"{a}.{b - 1}" if b else f"{max(0, a - 1)}.99", f"{a}.{b}.{c + 1}"]
    return [*asked, *around, "other"]


def _texts(patterns: list[str], bounds: list[str]) -> list[str]:
    """Return a text for every combination of `patterns` that some text matches and `bounds` that it lies between.

    A walk over the product automaton.
    """
    order = _Order(bounds)
    letters = sorted({letter for text in (*patterns, *order.letters) for letter in text if letter not in "*?"})
    unnamed = next(
        letter for letter in "xyzuvw0123456789-" + "".join(map(chr, range(192, 0x2000))) if letter not in letters
    )
    start = (tuple(_closure(pattern, {0}) for pattern in patterns), order.start)
    texts = {start: ""}
    queue = [start]
    for at in queue:
        for letter in (unnamed, *letters):
            after = (
                tuple(_step(pattern, places, letter) for pattern, places in zip(patterns, at[0], strict=True)),
                order.step(at[1], letter),
            )
            if after not in texts:
                texts[after] = texts[at] + letter
                queue.append(after)
        if len(texts) > 50_000:
            raise TooLarge(f"{len(patterns)} globs on one fact overlap in too many ways to look at: {patterns[0]}, …")
    # The empty text is no release and no vendor; the letter that no pattern names stands for it.
    return [text or unnamed for text in texts.values()]


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
