# SPDX-License-Identifier: MIT
"""The decision of two policies at once: what either of them holds is held.

A policy that the command line names may only make the built-in one stricter: block by block, with the exceptions, limits
and modifiers of both. Pure, as the engine is.
"""

from __future__ import annotations

from safemem.boot.engine import PLANNED, warnings
from safemem.boot.model import FINAL, PERMISSIVENESS, Decision, Note, Policy, Rule, Snapshot
from safemem.boot.plan import FLOOR, steps
from safemem.boot.ranges import common, parse_limit, parse_size

#: How strict an end of the boot is: after a reset, the next boot knows of no handover and uses all memory.
_ENDS = {"reboot": 1, "panic": 2, "halt": 2}


def counting(own: Policy, named: tuple[Policy, ...], *, loosens: bool) -> tuple[Policy, ...]:
    """Return the policies that decide together; `loosens` is whether the command line may have one of its own instead.

    INVARIANT: one that only observes has no say beside one that does not. What it says is not to be done, and that
    nothing is to be done would loosen the other.
    """
    if loosens and named:
        return named[:1]
    acting = tuple(policy for policy in (own, *named) if not policy.observe)
    return acting or (own, *named)


def ignored(own: Decision, name: str) -> Decision:
    """Return the decision where the command line names a policy that only observes, and the built-in one does not."""
    text = f"policy `{name}`, which the command line names, is ignored: it only observes"
    return _noted(own, Note("named-policy-ignored", text))


def instead(named: Decision) -> Decision:
    """Return the decision of a policy that the command line names, where the built-in one lets it loosen the outcome."""
    return _noted(named, Note("named-policy", f"policy `{named.policy.name}` decides: the command line names it"))


def choose(own: Decision, named: Decision, snapshot: Snapshot) -> Decision:
    """Return what comes of the built-in policy's decision and that of the one that the command line names."""
    name = f"policy `{named.policy.name}`"
    found = both(own, named, snapshot)
    if found._replace(warnings=()) == own._replace(warnings=()):
        text = f"{name}, which the command line names, is ignored: {named.action} is not stricter than {own.action}"
        return _noted(own, Note("named-policy-ignored", text))
    if found.policy.digest == own.policy.digest:
        text = f"{name}, which the command line names, makes the outcome stricter"
    else:
        text = f"{name} decides: the command line names it"
    return _noted(found, Note("named-policy", text))


def _noted(decision: Decision, note: Note) -> Decision:
    return decision._replace(warnings=(note, *decision.warnings))


def both(own: Decision, other: Decision, snapshot: Snapshot) -> Decision:
    """Return the decision that is as strict as either: that of the stricter action, with whatever the two hold.

    Of two that are as strict as each other, `own` counts.
    """
    first, second = (other, own) if _strictness(other.action) > _strictness(own.action) else (own, other)
    if first.action in FINAL:
        return first
    # Only `online-safe` has a region; beside it, that of `online-all` is everything.
    region = common(first.region, second.region) if second.action == "online-safe" else first.region
    # A zone of the other's could be a larger one.
    holds = (item for item in other.policy.memory if item.hold and item not in own.policy.memory)
    policy = first.policy._replace(
        memory=(*own.policy.memory, *holds),
        keep_crashkernel=_larger(own.policy.keep_crashkernel, other.policy.keep_crashkernel),
    )
    rule = _with(first.rule, own.rule, other.rule, snapshot)
    todo = steps(rule, snapshot, region, own.zone, policy.memory, policy.keep_crashkernel)
    said = [note for note in (*first.warnings, *second.warnings) if note.code not in PLANNED]
    return first._replace(
        rule=rule,
        policy=policy,
        zone=own.zone,
        region=region,
        steps=todo,
        warnings=(*dict.fromkeys(said), *warnings(rule, snapshot, region, todo)),
        arrivals=own.arrivals if first.arrivals and second.arrivals else "",
    )


def _strictness(action: str) -> tuple[int, int]:
    return -PERMISSIVENESS[action], _ENDS.get(action, 0)


def _with(rule: Rule, own: Rule, other: Rule, snapshot: Snapshot) -> Rule:
    """Return `rule`, one of the two, with the stricter of their modifiers; of two that cannot be compared, `own`."""
    ends = [each for each in (own, other) if each.on_shortfall in FINAL]
    return rule._replace(
        zone=own.zone,
        enter=rule.enter or own.enter or other.enter,
        on_shortfall=max(own.on_shortfall, other.on_shortfall, key=lambda end: _ENDS.get(end, 0)),
        exposed_max=_smaller(*(each.exposed_max for each in ends or (own, other)), memory=snapshot),
        boot_memory=max(own.boot_memory, other.boot_memory, key=lambda word: word == "offline"),
        floor=_floor([each.floor for each in (own, other) if each.boot_memory == "offline"]),
        if_onlined=max(own.if_onlined, other.if_onlined, key=lambda word: word == "offline"),
        final=own.final or other.final,
        quiesce=own.quiesce or other.quiesce,
        accept_data_exposure=own.accept_data_exposure and other.accept_data_exposure,
    )


def _floor(sizes: list[str]) -> str:
    """Return the smallest; what `quarantine` works out for "" is FLOOR at least, and more than that is not known here."""
    if "" in sizes and all(parse_size(size) > FLOOR for size in sizes if size):
        return sizes[0]
    return _smaller(*sizes)


def _smaller(*limits: str, memory: Snapshot | None = None) -> str:
    """Return the smallest of the limits that are given; shares are of the blocks of `memory`."""
    whole = sum(run.number for run in memory.blocks) * memory.block_size if memory else 0
    return min((limit for limit in limits if limit), key=lambda limit: parse_limit(limit, whole), default="")


def _larger(one: str, other: str) -> str:
    return max(one, other, key=lambda size: parse_size(size) if size else 0)
