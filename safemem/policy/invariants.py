# SPDX-License-Identifier: MIT
"""What is proved of a policy: invariants that hold in every state, or the smallest state in which one does not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from safemem.boot import engine
from safemem.boot.conditions import fact_text, matches, wanted_text
from safemem.boot.model import (
    CONFIDENT,
    DERIVED,
    FACTS,
    FINAL,
    PERMISSIVENESS,
    UNKNOWN,
    Blocks,
    Fact,
    Policy,
    Rule,
    Snapshot,
    Term,
)
from safemem.boot.ranges import Range, size_text, total
from safemem.policy import limits
from safemem.policy.catalogue import CODES
from safemem.policy.compare import looser_words
from safemem.policy.space import CONSTRAINTS, FROM_THE_TREE, LOST, Outcomes, Space, State, Value, smallest

#: Values of `handover` after which memory may hold a guest's pages.
_LOST = (*LOST, UNKNOWN)
#: What a condition on `preserved` accepts that takes the predecessor's word.
_NOTHING = ((Term("is", "no"),),)


class Finding(NamedTuple):
    """One thing that is wrong with a policy, or worth knowing."""

    code: str
    level: str  #: `error` an invariant fails; `warning`; `note`
    rule: str  #: name, `otherwise`, or another table or key beside the rules
    key: str | int  #: of the rule's table that the message is about; of `memory`, which table
    message: str
    advice: str
    example: dict[str, Value]  #: the smallest state that shows it; facts that do not matter are left out


def check(policy: Policy, outcomes: Outcomes) -> list[Finding]:
    """Return everything that is wrong with `policy`, the invariants first."""
    return [
        *_unreachable(policy, outcomes), *_exposes(policy, outcomes), *_idle(policy, outcomes), *_unknowns(outcomes),
        *_milder(policy, outcomes), *_loops(outcomes), *_blocks(policy), *_failure(policy), *_same(policy),
        *(_finding(*complaint) for complaint in limits.check(policy, outcomes)), *_overrides(policy),
        *_observes(policy), *_trusts(policy, outcomes), *_quiesces(outcomes), *_words(outcomes), *_otherwise(policy, outcomes),
    ]  # fmt: skip


def _finding(
    code: str, rule: str, key: str | int, message: str, advice: str, example: dict[str, Value] | None = None
) -> Finding:
    return Finding(code, CODES[code][0], rule, key, message, advice, example or {})


def _unreachable(policy: Policy, outcomes: Outcomes) -> Iterator[Finding]:
    deciding = set(outcomes.of.values())
    for index, rule in enumerate(policy.rules):
        if index in deciding:
            continue
        takers = {outcomes.of[state] for state in outcomes.of if _holds(rule, outcomes.space.named(state))}
        names = ", ".join(f"`{outcomes.rules[taker].name}`" for taker in sorted(takers))
        if names:
            why, advice = f"every state it matches is decided by {names} before", "remove it or move it up"
        else:
            why, advice = (
                f"no machine can be in a state that it matches{_contradiction(rule, outcomes.space)}",
                "remove it",
            )
        yield _finding("unreachable-rule", rule.name, "name", f"rule `{rule.name}` never decides: {why}", advice)


def _contradiction(rule: Rule, space: Space) -> str:
    """Return which of the rule's conditions cannot hold, or which cannot hold together and why."""
    allowed = []
    for condition in rule.when:
        values = space.classes[space.facts.index(condition.fact)]
        allowed.append([value for value in values if matches(condition, Fact(value, ""))])
        if not allowed[-1]:
            return f": nothing is `{condition.fact}` {wanted_text(condition)}"
    names = [condition.fact for condition in rule.when]
    if "handover" not in names:
        names, allowed = ["handover", *names], [[*space.classes[0]], *allowed]
    broken = {
        next((item.text for item in CONSTRAINTS if item.broken(dict(zip(names, state, strict=True)))), "")
        for state in product(*allowed)
    } - {""}  # fmt: skip
    return f": {'; '.join(sorted(broken))}" if broken else ""


def _holds(rule: Rule, facts: dict[str, Value]) -> bool:
    return all(matches(condition, Fact(facts[condition.fact], "")) for condition in rule.when)


def _exposes(policy: Policy, outcomes: Outcomes) -> Iterator[Finding]:
    """Yield the rules by which memory comes online after a handover that was lost, or may have been, without a word."""
    named = [source for source in policy.sources if isinstance(source, Range)]
    bad: dict[int, list[State]] = {}
    for state, index in outcomes.of.items():
        rule = outcomes.rules[index]
        opens = rule.action == "online-all" or (rule.action == "online-safe" and named)
        if state[0] in _LOST and opens and not rule.accept_data_exposure and not _takes_word(rule):
            bad.setdefault(index, []).append(state)
    for index, states in sorted(bad.items()):
        rule, wide = outcomes.rules[index], total(named) > limits.MOST
        what = "cannot be told" if states[0][0] == UNKNOWN else f"was {states[0][0]}"
        if rule.action == "online-all":
            yield _finding(
                "exposes-handover", rule.name, "action",
                f"a handover that {what} ends in online-all: guests' memory is put into the allocator",
                "use online-safe or panic, or say `accept_data_exposure = true` if no guest's memory matters here",
                smallest(outcomes, states),
            )  # fmt: skip
        else:
            yield _finding(
                "exposes-handover" if wide else "named-region", rule.name, "action",
                f"a handover that {what} ends in online-safe with {size_text(total(named))} that the policy names:"
                + (" no host runs in so much" if wide else " no predecessor has kept its pages out of there"),
                "take `kho-scratch` or `cmdline`, which the predecessor fills in, or say `accept_data_exposure = true`",
                smallest(outcomes, states),
            )  # fmt: skip


def _takes_word(rule: Rule) -> bool:
    """Return whether a rule asks for nothing but the predecessor's word that nothing was preserved."""
    return any(item.fact == "preserved" and item.groups == _NOTHING and not item.negate for item in rule.when)


def _words(outcomes: Outcomes) -> Iterator[Finding]:
    """Yield the rules by which a handover that was lost, or may have been, ends milder because of the predecessor's word."""
    space = outcomes.space
    if "preserved" not in space.facts:
        return
    place = space.facts.index("preserved")
    found: dict[int, list[State]] = {}
    for state, index in outcomes.of.items():
        other = outcomes.of.get((*state[:place], UNKNOWN, *state[place + 1 :]), index)
        mine, without = (PERMISSIVENESS[outcomes.rules[one].action] for one in (index, other))
        if state[0] in _LOST and state[place] == "no" and mine > without:
            found.setdefault(index, []).append(state)
    for index, states in sorted(found.items()):
        rule, what = outcomes.rules[index], "cannot be told" if states[0][0] == UNKNOWN else f"was {states[0][0]}"
        yield _finding(
            "predecessors-word", rule.name, "when",
            f"a handover that {what} ends in {rule.action} where the predecessor says that nothing was preserved: that is its"
            " word alone, on the command line, and nothing here confirms it", "",
            smallest(outcomes, states, keep=("preserved",)),
        )  # fmt: skip


def _idle(policy: Policy, outcomes: Outcomes) -> Iterator[Finding]:
    named = any(isinstance(source, Range) for source in policy.sources)
    lost = {index for state, index in outcomes.of.items() if state[0] in _LOST}
    needed = {index for index in lost if not _takes_word(outcomes.rules[index])}
    for index, rule in enumerate(outcomes.rules):
        opens = rule.action == "online-all" or (rule.action == "online-safe" and named)
        if rule.accept_data_exposure and not (opens and index in needed):
            yield _finding(
                "idle-acceptance", rule.name, "accept_data_exposure",
                "`accept_data_exposure` changes nothing here: no lost handover has memory onlined by this rule",
                "remove it, so that it does not hide what a later edit does",
            )  # fmt: skip


def _overrides(policy: Policy) -> Iterator[Finding]:
    if policy.allow_cmdline_override:
        yield _finding(
            "loosened-by-cmdline", "allow_cmdline_override", "allow_cmdline_override",
            "the kernel command line may say `safemem=off`, which is online-all after a lost handover too", "",
            {"handover": LOST[0]},
        )  # fmt: skip


def _unknowns(outcomes: Outcomes) -> Iterator[Finding]:
    space = outcomes.space
    bad: dict[tuple[int, str], list[tuple[State, State]]] = {}
    for place, name in enumerate(space.facts):
        if UNKNOWN not in space.classes[place]:
            continue
        for state, index in outcomes.of.items():
            if state[place] != UNKNOWN:
                continue
            mine = PERMISSIVENESS[outcomes.rules[index].action]
            for known in (one for value in space.classes[place] for one in space.changed(state, name, value)):
                other = outcomes.of.get(known)
                if other is not None and PERMISSIVENESS[outcomes.rules[other].action] < mine:
                    bad.setdefault((index, name), []).append((state, known))
                    break
    for (index, name), found in sorted(bad.items(), key=lambda item: item[0]):
        state, known = found[0]
        value, stricter = known[space.facts.index(name)], outcomes.rules[outcomes.of[known]]
        yield _finding(
            "unknown-permissive", outcomes.rules[index].name, "when",
            f"with `{name}` unknown the outcome is {outcomes.rules[index].action}, with {name} = {fact_text(value)} it is"
            f" {stricter.action} (rule `{stricter.name}`): not knowing is rewarded",
            f"ask for {name} = \"unknown\" in a rule before it that is at least as strict",
            smallest(outcomes, [state for state, _ in found], keep=(name,)),
        )  # fmt: skip


def _milder(policy: Policy, outcomes: Outcomes) -> Iterator[Finding]:
    """Yield the rules that decide with a fact unknown as a known one does, but mildly: compared where actions are equal."""
    space = outcomes.space
    bad: dict[tuple[int, str], tuple[str, State, State]] = {}
    for place, name in enumerate(space.facts):
        for state, index in outcomes.of.items() if UNKNOWN in space.classes[place] else ():
            values = space.classes[place] if state[place] == UNKNOWN else ()
            for changed in (one for value in values for one in space.changed(state, name, value)):
                other = outcomes.of.get(changed, index)
                mine, known = outcomes.rules[index], outcomes.rules[other]
                if other == index or mine.action != known.action or (index, name) in bad:
                    continue
                words = [word for word in looser_words(policy, known, mine) if word != "zone"]
                if words:
                    bad[index, name] = (words[0], state, changed)
    for (index, name), (word, state, changed) in sorted(bad.items(), key=lambda item: item[0]):
        value, stricter = changed[space.facts.index(name)], outcomes.rules[outcomes.of[changed]]
        yield _finding(
            "unknown-milder", outcomes.rules[index].name, word,
            f"with `{name}` unknown `{word}` is milder than with {name} = {fact_text(value)} (rule `{stricter.name}`)",
            "give both rules the same words, or ask for `unknown` in the stricter one", smallest(outcomes, [state], keep=(name,)),
        )  # fmt: skip


#: What a reset does away with for certain. Why a handover is unknown, nobody knows; and the arguments by which one is
#: lost may stand in the boot loader's own line.
_CLEARED = ("accepted", *(value for value in LOST if value != "lost"))


def _loops(outcomes: Outcomes) -> Iterator[Finding]:
    """A firmware reset clears the handover and what came with it; each boot that ends so is counted where anything counts."""
    space = outcomes.space
    bad: dict[int, list[State]] = {}
    for state, index in outcomes.of.items():
        if not _reboots(outcomes.rules[index]):
            continue
        cleared = dict.fromkeys((*FROM_THE_TREE, "preserved"), UNKNOWN) | {"handover": "none"}
        if space.named(state).get("guard") in ("full", "part", "void"):
            cleared["guard"] = "none"  # who asked for it was the predecessor
        after = tuple(cleared.get(name, value) for name, value in zip(space.facts, state, strict=True))
        again = _counted(space, after if state[0] in _CLEARED else state)
        if any(_reboots(outcomes.rules[following]) for following in _after(outcomes, again)):
            bad.setdefault(index, []).append(state)
    for index, states in sorted(bad.items()):
        yield _finding(
            "reboot-loop", outcomes.rules[index].name, "action",
            f"handover {states[0][0]} ends in reboot, and the next boot finds a state that reboots again",
            f"use panic or halt here, or ask for `boot_attempts`; a reboot ends by itself only where a reset clears the handover: {', '.join(_CLEARED)}",
            smallest(outcomes, states),
        )  # fmt: skip


def _after(outcomes: Outcomes, state: State) -> set[int]:
    """Return which rules can decide a state of which what follows from the handover and the guard is still the old one."""
    space = outcomes.space
    if state in outcomes.of:
        return {outcomes.of[state]}
    values = (
        classes if name in ("safe_region", *CONFIDENT.values()) else (value,)
        for name, classes, value in zip(space.facts, space.classes, state, strict=True)
    )
    return {outcomes.of[other] for other in product(*values) if other in outcomes.of}


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
        facts = {name: Fact(UNKNOWN, "") for name in FACTS if name not in DERIVED}
        decision = engine.decide(safe, Snapshot(facts, size, blocks, (), "", ()))
        for step in decision.steps:
            if step.op == "online" and not any(
                area.start <= step.start and step.end <= area.end for area in decision.region
            ):
                yield _finding(
                    "unsafe-block", "safe_region", "sources",
                    f"online-safe would online {Range(step.start, step.end)}, which reaches outside", "report this: the engine is wrong",
                )  # fmt: skip


def _failure(policy: Policy) -> Iterator[Finding]:
    if policy.on_failure.action == "reboot":
        yield _finding(
            "failure-loop", "on_failure", "action",
            "if safemem cannot finish for a reason that lasts, such as a missing interpreter, the machine reboots for ever",
            "use panic or halt",
        )  # fmt: skip


def _same(policy: Policy) -> Iterator[Finding]:
    rules = (*policy.rules, policy.otherwise)
    for rule, after in zip(rules, rules[1:], strict=False):
        if rule._replace(name="", when=()) == after._replace(name="", when=()):
            yield _finding(
                "same-as-next", rule.name, "name", f"rule `{rule.name}` does and says what `{after.name}` after it does",
                "join them, or give one its own message",
            )  # fmt: skip


def _observes(policy: Policy) -> Iterator[Finding]:
    if policy.observe:
        yield _finding(
            "observes", "observe", "observe",
            "nothing of this policy is in force: with `observe = true` each boot only records what it would have done",
            "leave it out once the records say what you expect",
        )  # fmt: skip


def _trusts(policy: Policy, outcomes: Outcomes) -> Iterator[Finding]:
    """States are what the engine matches: one that it derives from a guard is among the accepted ones already."""
    if not policy.trust_guard:
        return
    found: dict[str, list[State]] = {}
    for state in outcomes.of:
        facts = outcomes.space.named(state)
        evident = facts["handover"] == "accepted" and facts.get(CONFIDENT["handover"], "evidence") == "evidence"
        for unknown in outcomes.space.changed(state, "handover", UNKNOWN) if evident else ():
            before = outcomes.of.get(unknown)
            if before is None or facts.get("guard", "void") != "void":
                continue
            mine, other = outcomes.rule(state).action, outcomes.rules[before].action
            if PERMISSIVENESS[mine] > PERMISSIVENESS[other]:
                found.setdefault(f"{mine} instead of {other}", []).append(state)
    for what, states in found.items():
        yield _finding(
            "trusts-guard", outcomes.rule(states[0]).name, "action",
            f"with trust_guard, a handover that nobody can tell ends in {what} if the guard is not in force", "",
            smallest(outcomes, states, keep=("guard",)),
        )  # fmt: skip


def _quiesces(outcomes: Outcomes) -> Iterator[Finding]:
    """Yield the rules that stop devices whose owners are yet to claim them."""
    bad: dict[int, list[State]] = {}
    for state, index in outcomes.of.items():
        rule = outcomes.rules[index]
        if rule.quiesce and rule.action not in FINAL and state[0] == "accepted":
            bad.setdefault(index, []).append(state)
    for index, states in sorted(bad.items()):
        yield _finding(
            "quiesces-accepted", outcomes.rules[index].name, "quiesce",
            "`quiesce` stops devices after an accepted handover too: one that was preserved has no driver until its owner"
            " claims it",
            "leave it to rules for a handover that is lost or unknown", smallest(outcomes, states),
        )  # fmt: skip


def _otherwise(policy: Policy, outcomes: Outcomes) -> Iterator[Finding]:
    states = [state for state, index in outcomes.of.items() if index == len(policy.rules)]
    if states:
        known = {state[0] for state, index in outcomes.of.items() if index != len(policy.rules)}
        alone = [str(value) for value in dict.fromkeys(state[0] for state in states) if value not in known]
        handovers = f": handover {', '.join(alone)}, whatever else is known" if alone else ""
        yield _finding(
            "only-otherwise", "otherwise", "action",
            f"{len(states)} of {len(outcomes.of)} states are decided by `otherwise` only{handovers}", "",
        )  # fmt: skip
