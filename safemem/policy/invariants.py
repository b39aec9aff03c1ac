# SPDX-License-Identifier: MIT
"""What is proved of a policy: invariants that hold in every state, or the smallest state in which one does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from safemem.boot import engine
from safemem.boot.conditions import fact_text, matches
from safemem.boot.model import FACTS, FINAL, PERMISSIVENESS, UNKNOWN, Blocks, Fact, Policy, Rule, Snapshot
from safemem.boot.ranges import Range
from safemem.policy.space import FROM_THE_TREE, LOST, Outcomes, Space, State, Value, smallest


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
        if state[0] in LOST and rule.action == "online-all" and not rule.accept_data_exposure:
            bad.setdefault(index, []).append(state)
    for index, states in sorted(bad.items()):
        yield _finding(
            "exposes-handover", outcomes.rules[index].name, "action",
            f"a handover that was {states[0][0]} ends in online-all: guests' memory is put into the allocator",
            "use online-safe or panic, or say `accept_data_exposure = true` if no guest's memory matters here",
            smallest(outcomes, states),
        )  # fmt: skip


def _idle(outcomes: Outcomes) -> Iterator[Finding]:
    lost = (*LOST, UNKNOWN)
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
            f"use panic or halt here, or ask for `boot_attempts`; a reboot ends by itself only where a reset clears the handover: {', '.join(LOST)}",
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


def _same(policy: Policy) -> Iterator[Finding]:
    rules = (*policy.rules, policy.otherwise)
    for rule, after in zip(rules, rules[1:], strict=False):
        if rule._replace(name="", when=()) == after._replace(name="", when=()):
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
