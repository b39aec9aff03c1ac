# SPDX-License-Identifier: MIT
"""The decision of two policies at once: what either of them holds is held.

A policy that the command line names may only make the built-in one stricter: block by block, with the exceptions, limits
and modifiers of both. Pure, as the engine is.
"""

from __future__ import annotations

from safemem.boot.engine import PLANNED, warnings
from safemem.boot.model import FINAL, PERMISSIVENESS, Decision, Note, Rule, Snapshot
from safemem.boot.plan import steps
from safemem.boot.ranges import common, parse_limit, parse_size


def instead(named: Decision) -> Decision:
    """Return the decision of a policy that the command line names, where the built-in one lets it loosen the outcome."""
    return _noted(named, Note("named-policy", f"policy `{named.policy.name}` decides: the command line names it"))


def choose(own: Decision, named: Decision, snapshot: Snapshot) -> Decision:
    """Return what comes of the built-in policy's decision and that of the one that the command line names."""
    name = f"policy `{named.policy.name}`"
    found = both(own, named, snapshot)
    if found.rule == own.rule and found.plan == own.plan:
        text = f"{name}, which the command line names, is ignored: {named.action} is not stricter than {own.action}"
        return _noted(own, Note("named-policy-ignored", text))
    if found.policy.digest == own.policy.digest:
        text = f"{name}, which the command line names, makes the outcome stricter"
    else:
        text = f"{name} decides: the command line names it, and its {named.action} is stricter than {own.action}"
    return _noted(found, Note("named-policy", text))


def _noted(decision: Decision, note: Note) -> Decision:
    return decision._replace(warnings=(note, *decision.warnings))


def both(own: Decision, other: Decision, snapshot: Snapshot) -> Decision:
    """Return the decision that is as strict as either: that of the stricter action, with whatever the two hold.

    Of two that end the boot, `own` counts.
    """
    first, second = (other, own) if PERMISSIVENESS[other.action] < PERMISSIVENESS[own.action] else (own, other)
    if first.action in FINAL:
        return first
    # Only `online-safe` has a region; beside it, that of `online-all` is everything.
    region = common(first.region, second.region) if second.action == "online-safe" else first.region
    policy = first.policy._replace(
        memory=(*own.policy.memory, *(item for item in other.policy.memory if item not in own.policy.memory)),
        keep_crashkernel=_larger(own.policy.keep_crashkernel, other.policy.keep_crashkernel),
    )
    rule = _rule(first.rule, second.rule, snapshot)._replace(zone=own.rule.zone)
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


def _rule(first: Rule, second: Rule, snapshot: Snapshot) -> Rule:
    """Return the `first` rule with the modifiers of the `second` where those are stricter."""
    ends = [rule for rule in (first, second) if rule.on_shortfall in FINAL]
    return first._replace(
        enter=first.enter or second.enter,
        on_shortfall=ends[0].on_shortfall if ends else first.on_shortfall,
        exposed_max=_smaller(*(rule.exposed_max for rule in ends or (first, second)), memory=snapshot),
        boot_memory=max(first.boot_memory, second.boot_memory, key=lambda word: word == "offline"),
        floor=_smaller(*(rule.floor for rule in (first, second) if rule.boot_memory == "offline")),
        if_onlined=max(first.if_onlined, second.if_onlined, key=lambda word: word == "offline"),
        final=first.final or second.final,
        accept_data_exposure=first.accept_data_exposure and second.accept_data_exposure,
    )


def _smaller(*limits: str, memory: Snapshot | None = None) -> str:
    """Return the smallest of the limits that are given; shares are of the blocks of `memory`."""
    whole = sum(run.number for run in memory.blocks) * memory.block_size if memory else 0
    return min((limit for limit in limits if limit), key=lambda limit: parse_limit(limit, whole), default="")


def _larger(one: str, other: str) -> str:
    return max(one, other, key=lambda size: parse_size(size) if size else 0)
