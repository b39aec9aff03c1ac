# SPDX-License-Identifier: MIT
"""Words of a policy that say nothing, and amounts that limit nothing or leave no room to run.

What `load` finds to be without effect in any policy is an error there; this needs the rest of the policy, or is a
matter of size. No machine is known here: the one bound is what the largest machine has use for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from safemem.boot.model import CONFIDENT, FACTS, FINAL, UNKNOWN, Policy, Rule
from safemem.boot.plan import FLOOR
from safemem.boot.ranges import Range, parse_limit, parse_size, size_text
from safemem.policy import exceptions
from safemem.policy.space import FROM_THE_TREE, Outcomes

#: Bytes that no kernel needs to run in: the default floor of 64 TiB, which four levels of page tables can map.
MOST = 1 << 40
#: No kernel and initrd are smaller.
_KDUMP = 16 << 20
#: Seconds; half of it is what a block has to go offline, and two are little for one that is in use.
_DEADLINE = 4
#: The smallest block of x86-64, bytes.
_BLOCK = 128 << 20


class Complaint(NamedTuple):
    """A finding without its level and example."""

    code: str
    rule: str
    key: str | int
    message: str
    advice: str


def check(policy: Policy, outcomes: Outcomes) -> Iterator[Complaint]:
    """Yield what limits nothing, then what changes nothing, then what another exception overrules."""
    for rule in (*policy.rules, policy.otherwise):
        yield from _limits(rule)
    yield from _beside(policy)
    yield from _ranges(policy)
    yield from _releases(policy)
    yield from _idle(policy, outcomes)
    yield from _exceptions(policy)


def _limits(rule: Rule) -> Iterator[Complaint]:
    if rule.exposed_max:
        half = rule.exposed_max.endswith("%") and parse_limit(rule.exposed_max, 1000) > 500
        if half or parse_limit(rule.exposed_max, 0) > MOST:
            more = "more than half of all memory" if half else f"more than {size_text(MOST)}"
            yield Complaint(
                "useless-limit", rule.name, "exposed_max",
                f"`exposed_max = \"{rule.exposed_max}\"` lets {more} be exposed before `on_shortfall` applies",
                "give it the share that the host itself runs in, such as `5%`",
            )  # fmt: skip
        share = rule.exposed_max.endswith("%") and parse_limit(rule.exposed_max, 6400) < 100
        if share and rule.boot_memory == "leave":
            yield Complaint(
                "tight-limit", rule.name, "exposed_max",
                f"`exposed_max = \"{rule.exposed_max}\"`: boot memory stays in use here, and what no guard keeps of it is exposed",
                'look at it with `simulate --machine`, or say `boot_memory = "offline"`',
            )  # fmt: skip
        elif share and not rule.floor:
            yield Complaint(
                "tight-limit", rule.name, "exposed_max",
                f"`exposed_max = \"{rule.exposed_max}\"` is less than the 1/64 of all memory that stays available by default:"
                " on a host without hot-added memory or a safe region it cannot be met",
                "look at it with `simulate --machine`, or give a `floor`",
            )  # fmt: skip
    if rule.floor and parse_size(rule.floor) > MOST:
        yield Complaint(
            "useless-limit", rule.name, "floor",
            f"`floor = \"{rule.floor}\"` is more than any machine runs in: no memory is taken offline",
            "leave it out, so that it grows with the machine",
        )  # fmt: skip
    elif rule.floor and parse_size(rule.floor) < FLOOR:
        yield Complaint(
            "useless-limit", rule.name, "floor",
            f"`floor = \"{rule.floor}\"` leaves less than the {size_text(FLOOR)} that the first programs take",
            "leave it out, so that it grows with the machine",
        )  # fmt: skip


def _beside(policy: Policy) -> Iterator[Complaint]:
    keep = parse_size(policy.keep_crashkernel) if policy.keep_crashkernel else None
    if keep is not None and not _KDUMP <= keep <= MOST:
        why = "no kernel for kdump fits into that" if keep < _KDUMP else "that is every guard as a whole"
        yield Complaint(
            "useless-limit", "keep_crashkernel", "keep_crashkernel", f"`keep_crashkernel = \"{policy.keep_crashkernel}\"`: {why}",
            "give it what `crashkernel=` has on this host, such as `256MiB`",
        )  # fmt: skip
    off = [rule for rule in (*policy.rules, policy.otherwise) if rule.boot_memory == "offline"]
    if off and policy.on_failure.deadline < _DEADLINE:
        yield Complaint(
            "useless-limit", "on_failure", "deadline",
            f"`deadline = {policy.on_failure.deadline}` gives each block half of it to go offline, as rule `{off[0].name}` wants",
            f"give it {_DEADLINE} seconds or more",
        )  # fmt: skip


def _ranges(policy: Policy) -> Iterator[Complaint]:
    yield from _edges(policy)
    named: list[tuple[str, str | int, Range]] = [
        ("safe_region", "sources", source) for source in policy.sources if isinstance(source, Range)
    ]
    named += [("memory", place, item.range) for place, item in enumerate(policy.memory) if item.range and item.zone]
    for table, key, area in named:
        if -(-area.start // _BLOCK) >= area.end // _BLOCK:
            yield Complaint(
                "useless-region", table, key, f"range {area} holds no whole memory block of {size_text(_BLOCK)}",
                "give it edges at multiples of the machine's block size, or leave it out",
            )  # fmt: skip


def _edges(policy: Policy) -> Iterator[Complaint]:
    """Yield the ranges that end with the first byte of a block: who writes them takes the end for excluded."""
    rules = (*policy.rules, policy.otherwise)
    named: list[tuple[str, str | int, Range | str | None]] = [
        ("safe_region", "sources", source) for source in policy.sources
    ]
    named += [("memory", place, item.range) for place, item in enumerate(policy.memory)]
    named += [(rule.name, "memory", item.range) for rule in rules for item in rule.memory]
    for table, key, area in named:
        if isinstance(area, Range) and area.end % _BLOCK == 1:
            yield Complaint(
                "odd-edge", table, key, f"range {area} ends with the first byte of a memory block: both ends of a range are included",
                f"write 0x{area.start:x}-0x{area.end - 2:x}",
            )  # fmt: skip


def _releases(policy: Policy) -> Iterator[Complaint]:
    """Yield the releases that no kernel has: since Linux 3.0 each begins with three numbers."""
    for rule in policy.rules:
        for condition in rule.when:
            for term in (term for group in condition.groups for term in group):
                numbers = str(term.value).split("-")[0].rstrip("+").split(".")
                if (
                    FACTS[condition.fact][0] == "version"
                    and term.op == "is"
                    and numbers[0].isdecimal()
                    and len(numbers) < 3
                ):
                    yield Complaint(
                        "exact-release", rule.name, "when",
                        f"`{condition.fact} = \"{term.value}\"` is that one name only, and kernels call themselves such as"
                        f" {'.'.join([*numbers, '0', '0'][:3])}",
                        f"write `{'.'.join(numbers[:2])}.*` or a comparison",
                    )  # fmt: skip


def _idle(policy: Policy, outcomes: Outcomes) -> Iterator[Complaint]:
    """Yield the keys of the policy, and of a rule the zone, that change nothing with these rules."""
    rules = (*policy.rules, policy.otherwise)
    nowhere = policy.sources == ("none",)
    for rule in rules:
        if rule.zone and rule.action == "online-safe" and nowhere:
            yield _says_nothing(rule.name, "zone", "with `none` as the safe region, online-safe onlines nothing")
    if policy.memory and all(rule.action in FINAL or (rule.action == "online-safe" and nowhere) for rule in rules):
        yield _says_nothing("memory", 0, "no rule onlines memory that they could be exceptions of", "[[memory]] tables")
    if policy.keep_crashkernel and all(rule.action != "online-all" for rule in rules):
        yield _says_nothing(
            "keep_crashkernel", "keep_crashkernel", "only online-all gives a guard back, and no rule says that"
        )
    if policy.open_luo and "luo" not in outcomes.space.facts:
        yield _says_nothing("open_luo", "open_luo", "no rule asks for `luo`")
    told = any(c.fact in _TOLD for rule in policy.rules for c in rule.when)
    told |= "kho-scratch" in policy.sources and any(rule.action == "online-safe" for rule in rules)
    if policy.retrieve_token and not told:
        yield _says_nothing("retrieve_token", "retrieve_token", "no rule asks for `handover`")
    if policy.trust_guard and not _trusting(outcomes):
        text = "a handover that is accepted and one that cannot be told end alike"
        yield _says_nothing("trust_guard", "trust_guard", text)


#: What a token can tell.
_TOLD = ("handover", CONFIDENT["handover"], "safe_region", CONFIDENT["safe_region"], *FROM_THE_TREE)


def _says_nothing(rule: str, key: str | int, why: str, name: str = "") -> Complaint:
    return Complaint(
        "idle-word", rule, key, f"{name or f'`{key}`'} change{'' if name else 's'} nothing: {why}", "remove it"
    )


def _trusting(outcomes: Outcomes) -> bool:
    """Return whether some handover that cannot be told ends otherwise if it is taken for an accepted one."""
    place = outcomes.space.facts.index("handover")
    for state, index in outcomes.of.items():
        if state[place] == UNKNOWN and any(
            outcomes.of.get(trusted, index) != index
            for trusted in outcomes.space.changed(state, "handover", "accepted")
        ):
            return True
    return False


def _exceptions(policy: Policy) -> Iterator[Complaint]:
    for rule in (*policy.rules, policy.otherwise):
        idle = exceptions.idle((*rule.memory, *policy.memory)) if rule.memory else []
        for place in idle:
            if place < len(rule.memory):
                text = f"{exceptions.one_text(rule.memory[place])}: no block fares otherwise with the exception than without it"
                yield Complaint("idle-word", rule.name, "memory", text, "remove it")
    clean = next((rule for rule in policy.rules if rule.action == "online-all" and not rule.accept_data_exposure), None)
    for place, item in enumerate(policy.memory):
        if item.hold and not item.driver and clean:  # a driver's memory is of one kind in every boot
            yield Complaint(
                "held-everywhere", "memory", place,
                f"{exceptions.one_text(item)} counts for every rule: `{clean.name}`, which onlines all memory, holds it too",
                "write it as `memory` of the rules that are to hold it, if only those are meant",
            )  # fmt: skip
    idle = exceptions.idle(policy.memory) if len(policy.memory) > 1 else []
    for place in idle:
        text = "no block fares otherwise with the exception than without it"
        yield Complaint(
            "idle-word", "memory", place, f"{exceptions.one_text(policy.memory[place])}: {text}", "remove it"
        )
    for place, hold in exceptions.overruled(policy.memory):
        if place not in idle:
            yield Complaint(
                "held-anyway", "memory", place,
                f"{exceptions.one_text(policy.memory[place])} gives no zone to the blocks that {exceptions.one_text(hold)}"
                " is about: a hold counts, wherever it stands", "",
            )  # fmt: skip
