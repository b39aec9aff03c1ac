# SPDX-License-Identifier: MIT
"""The first rule whose every condition holds decides; if none does, `otherwise` decides.

`decide` is the one function that decides, at boot, in `simulate` and for blocks that arrive
later. It is pure and total: no file, clock or environment, an answer for every snapshot.
"""

from __future__ import annotations

from safemem.boot import confidence
from safemem.boot.conditions import fact_text, matches, wanted_text
from safemem.boot.model import (
    FINAL,
    UNKNOWN,
    Decision,
    Fact,
    Miss,
    Note,
    Policy,
    PolicyId,
    Rule,
    Snapshot,
    Step,
)
from safemem.boot.plan import split, steps
from safemem.boot.ranges import Range, common, merge_ranges, size_text, total, without

#: Codes of warnings that follow from the plan.
PLANNED = (
    "no-safe-region", "too-late", "block-cut", "state-unknown", "devices-write", "devices-stopped", "devices-unknown",
    "no-iommu",
)  # fmt: skip
#: Handovers after which no PCI function writes to what it should not: nobody has left one, or its owner claims it.
_CLAIMED = ("none", "accepted")
#: PCI functions that a warning names; the record has all of them.
_NAMED = 4
#: Said of what a policy decides that only observes.
OBSERVES = "the policy only observes: nothing of this is done"
#: Said wherever a policy's trust in the guard made a fact.
TRUSTED = "the handover counts as accepted because the guard is not in force: that is evidence, not proof"

#: Said wherever the predecessor's word that nothing was preserved chose the rule.
WORD = "that nothing was preserved is the predecessor's word alone, and nothing here confirms it"


def decide(policy: Policy, snapshot: Snapshot) -> Decision:
    """Return what `policy` says for `snapshot`, with its reasons and the plan. Never raises on values a reader made."""
    region, region_source = _safe_region(policy, snapshot)
    facts = _derive(snapshot, region, region_source)
    said = []
    trusted = policy.trust_guard and facts["handover"].value == UNKNOWN and bool(snapshot.witness)
    if trusted:
        facts["handover"] = Fact("accepted", "guard", f"{snapshot.witness}; the policy trusts that, it is no proof")
    facts = {**confidence.of(facts, region_source), **facts}
    rule, misses = _first_match(policy, facts)
    if "off" in snapshot.overrides:
        if policy.allow_cmdline_override:
            misses = (*misses, Miss(rule.name, "command line", "no safemem=off", "safemem=off", "command line"))
            rule = Rule("command line", "online-all", message="safemem=off on the kernel command line")
        else:
            said.append(_ignored("safemem=off"))
    if "dry-run" in snapshot.overrides and not policy.allow_cmdline_override:
        said.append(_ignored("safemem.dry_run"))
    if policy.observe:
        said.append(Note("observes", OBSERVES))
    zone = rule.zone or ("auto" if facts["kho"].value == "off" else "movable")
    memory = (*rule.memory, *policy.memory)
    todo = steps(rule, snapshot, region or (), zone, memory, policy.keep_crashkernel)
    if trusted:
        said.append(Note("trusts-guard", TRUSTED))
    asked = (*(miss.fact for miss in misses), *(condition.fact for condition in rule.when))
    if "preserved" in asked and facts["preserved"].value == "no":
        said.append(Note("predecessors-word", WORD))
    return Decision(
        rule=rule,
        policy=PolicyId(*(getattr(policy, name) for name in PolicyId._fields))._replace(memory=memory),
        message=rule.message or f"handover {facts['handover'].value}",
        zone=zone,
        facts=facts,
        region=region or (),
        region_source=region_source,
        misses=misses,
        steps=todo,
        warnings=(*said, *warnings(rule, snapshot, region, todo)),
        # The kernel and udev cannot tell one block that arrives from another: an exception holds all of them.
        arrivals=zone if rule.action == "online-all" and not memory else "",
        gigantic=snapshot.gigantic,
        masters=snapshot.masters,
    )


def _ignored(argument: str) -> Note:
    return Note("argument-ignored", f"{argument} on the command line is ignored: the policy does not allow it")


def _first_match(policy: Policy, facts: dict[str, Fact]) -> tuple[Rule, tuple[Miss, ...]]:
    misses = []
    for rule in policy.rules:
        for condition in rule.when:
            fact = facts.get(condition.fact, Fact(UNKNOWN, "", "not in the snapshot"))
            if not matches(condition, fact):
                misses.append(
                    Miss(rule.name, condition.fact, wanted_text(condition), fact_text(fact.value), fact.source)
                )
                break
        else:
            return rule, tuple(misses)
    return policy.otherwise, tuple(misses)


def _safe_region(policy: Policy, snapshot: Snapshot) -> tuple[tuple[Range, ...] | None, str]:
    """Return the first source that can be resolved, or None if none can; and its name."""
    explicit = tuple(source for source in policy.sources if isinstance(source, Range))
    for source in policy.sources:
        if source == "kho-scratch":
            # After anything but `accepted` the same files list areas that the new kernel chose
            # afresh, possibly on top of preserved memory (seen on 7.3.4).
            if snapshot.facts["handover"].value == "accepted" and snapshot.scratch:
                return merge_ranges(snapshot.scratch), source
        elif source == "cmdline":
            if snapshot.cmdline_safe:
                return merge_ranges(snapshot.cmdline_safe), source
        elif source == "none":
            return (), source
        elif explicit:
            return merge_ranges(explicit), "policy"
    return None, "unresolved"


def _derive(snapshot: Snapshot, region: tuple[Range, ...] | None, source: str) -> dict[str, Fact]:
    """Return the facts with those that follow from region and blocks; a value that was set by hand stays."""
    states = {run.state for run in snapshot.blocks}
    unsure = not snapshot.block_size or bool(states - {"online", "offline"})
    outside = any(
        run.state == "online"
        and sum(r.number for r, inside in split(run, snapshot.block_size, region or ()) if not inside)
        for run in snapshot.blocks
    )
    derived = {
        "safe_region": Fact("unresolved", "policy", "none of its sources can be resolved here")
        if region is None
        else Fact("resolved", "policy", f"source {source}"),
        "held_blocks": Fact("yes" if "offline" in states else UNKNOWN if unsure else "no", "memory blocks"),
        "online_outside_safe": Fact("yes" if outside else UNKNOWN if unsure else "no", "memory blocks"),
    }
    return {**derived, **snapshot.facts}


def warnings(rule: Rule, snapshot: Snapshot, region: tuple[Range, ...] | None, todo: tuple[Step, ...]) -> list[Note]:
    """Return what the plan cannot protect, one sentence each; their codes are those in PLANNED."""
    found = []
    if rule.action == "online-safe":
        if region is None:
            found.append(Note("no-safe-region", "no safe region is known: no held block is onlined"))
        late = [step for step in todo if step.late]
        if late:
            found += _too_late(rule, snapshot, late)
        found += _cuts(snapshot, region or ())
    for run in snapshot.blocks:
        if run.state not in ("online", "offline"):
            text = f"blocks {run.first}-{run.last} are `{run.state}`: left alone, protection unknown"
            found.append(Note("state-unknown", text))
    return [*found, *_devices(rule, snapshot)]


def _too_late(rule: Rule, snapshot: Snapshot, late: list[Step]) -> list[Note]:
    steps = tuple(Range(step.start, step.end) for step in late)
    guarded = snapshot.guarded
    areas = without(steps, guarded)
    if not areas:
        return []
    outside = " outside the guard" if common(steps, guarded) else ""
    fate = (
        "are taken offline where the kernel can: what was used until then is lost"
        if rule.boot_memory == "offline"
        else "are not protected"
    )
    spans = ", ".join(map(str, areas))
    return [Note("too-late", f"{size_text(total(areas))}{outside} were online before the decision and {fate}: {spans}")]


def _cuts(snapshot: Snapshot, region: tuple[Range, ...]) -> list[Note]:
    """Return which held blocks the region covers in part only."""
    size = snapshot.block_size
    found = []
    for area in region if size else ():
        for number in sorted({area.start // size, (area.end - 1) // size}):
            start, end = number * size, (number + 1) * size
            if area.start <= start and end <= area.end:
                continue
            if any(run.state == "offline" and run.first <= number <= run.last for run in snapshot.blocks):
                lost = size_text(min(end, area.end) - max(start, area.start))
                text = f"safe region {area} cuts through block {number}, which stays held: {lost} of it are safe but unused"
                found.append(Note("block-cut", text))
    return found


def _devices(rule: Rule, snapshot: Snapshot) -> list[Note]:
    """Return what devices that nobody owns may do to memory, one sentence each."""
    masters, there = snapshot.masters, snapshot.facts.get("bus_masters", Fact("none", ""))
    stops = bool(rule.quiesce) and rule.action not in FINAL
    unclaimed = snapshot.facts["handover"].value not in _CLAIMED
    if not (stops or unclaimed):
        return []
    if not masters:
        if there.value == "some":
            return [Note("devices-write", "PCI functions may still write to memory; which, is not known here")]
        if there.value == UNKNOWN and stops:
            return [Note("devices-unknown", f"which PCI functions may write to memory cannot be told: {there.reason}")]
        return []
    more = f", and {len(masters) - _NAMED} more" if len(masters) > _NAMED else ""
    which = f"{', '.join(map(str, masters[:_NAMED]))}{more}"
    number = f"{len(masters)} PCI function{'s' if len(masters) > 1 else ''}"
    if stops:
        limits = "that stops no device behind a driver, no core that goes on running and nothing of firmware's"
        verb = "are" if len(masters) > 1 else "is"
        found = [Note("devices-stopped", f"{number} {verb} stopped before memory is touched: {which}; {limits}")]
    else:
        found = [Note("devices-write", f"{number} may still write to memory: {which}; no driver owns them")]
    iommu = snapshot.facts.get("iommu", Fact(UNKNOWN, "", "not read"))
    if unclaimed and iommu.value == "off":
        found.append(Note("no-iommu", "there is no IOMMU in the way: a stray device reaches all memory"))
    elif unclaimed and iommu.value == UNKNOWN:
        found.append(
            Note("no-iommu", f"whether an IOMMU is in the way of a stray device cannot be told: {iommu.reason}")
        )
    return found
