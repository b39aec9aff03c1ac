# SPDX-License-Identifier: MIT
"""The first rule whose every condition holds decides; if none does, `otherwise` decides.

`decide` is the one function that decides, at boot, in `simulate` and for blocks that arrive
later. It is pure and total: no file, clock or environment, an answer for every snapshot.
"""

from __future__ import annotations

from safemem.boot.model import (
    PERMISSIVENESS,
    UNKNOWN,
    Blocks,
    Condition,
    Decision,
    Fact,
    Miss,
    Override,
    Policy,
    Range,
    Rule,
    Snapshot,
    Step,
    Term,
    merge_ranges,
    parse_size,
    size_text,
)

#: Said wherever a policy's trust in the guard made a fact.
TRUSTED = "the handover counts as accepted because the guard is not in force: that is evidence, not proof"


def decide(policy: Policy, snapshot: Snapshot) -> Decision:
    """Return what `policy` says for `snapshot`, with its reasons and the plan. Never raises on values a reader made."""
    region, region_source = _safe_region(policy, snapshot)
    facts = _derive(snapshot, region, region_source)
    trusted = policy.trust_guard and facts["handover"].value == UNKNOWN and bool(snapshot.witness)
    if trusted:
        facts["handover"] = Fact("accepted", "guard", f"{snapshot.witness}; the policy trusts that, it is no proof")
    rule, misses = _first_match(policy, facts)
    ignored = []
    if "off" in snapshot.overrides:
        if policy.allow_cmdline_override:
            misses = (*misses, Miss(rule.name, "command line", "no safemem=off", "safemem=off", "command line"))
            rule = Rule("command line", "online-all", message="safemem=off on the kernel command line")
        else:
            ignored.append("safemem=off on the command line is ignored: the policy does not allow it")
    if "dry-run" in snapshot.overrides and not policy.allow_cmdline_override:
        ignored.append("safemem.dry_run on the command line is ignored: the policy does not allow it")
    zone = rule.zone or ("auto" if facts["kho"].value == "off" else "movable")
    steps = (
        *_guard_steps(rule, snapshot, policy.keep_crashkernel),
        *_block_steps(rule, snapshot, region or (), zone, policy.memory),
    )
    return Decision(
        action=rule.action,
        rule=rule.name,
        message=rule.message or f"handover {facts['handover'].value}",
        zone=zone,
        enter=rule.enter,
        on_shortfall=rule.on_shortfall,
        exposed_max=rule.exposed_max,
        floor=rule.floor,
        keep_crashkernel=policy.keep_crashkernel,
        if_onlined=rule.if_onlined,
        final=rule.final,
        exceptions=policy.memory,
        policy=policy.name,
        digest=policy.digest,
        facts=facts,
        region=region or (),
        region_source=region_source,
        misses=misses,
        steps=steps,
        # The kernel and udev cannot tell one block that arrives from another: an exception holds all of them.
        arrivals=zone if rule.action == "online-all" and not policy.memory else "",
        warnings=(*ignored, *([TRUSTED] if trusted else []), *_warnings(rule, snapshot, region, steps)),
    )


def choose(own: Decision, named: Decision, allowed: bool) -> Decision:
    """Return the decision of the policy that the command line names, if that is stricter or loosening is `allowed`."""
    if allowed or PERMISSIVENESS[named.action] < PERMISSIVENESS[own.action]:
        return named._replace(warnings=(f"policy `{named.policy}` decides: the command line names it", *named.warnings))
    ignored = f"policy `{named.policy}`, which the command line names, is ignored: {named.action} is not stricter than {own.action}"
    return own._replace(warnings=(ignored, *own.warnings))


def held(action: str, snapshot: Snapshot, region: tuple[Range, ...], memory: tuple[Override, ...]) -> tuple[Range, ...]:
    """Return what `action` holds of the snapshot's blocks wherever they are offline, online now or not."""
    offline = tuple(run._replace(state="offline") for run in snapshot.blocks)
    steps = _block_steps(Rule("", action), snapshot._replace(blocks=offline), region, "auto", memory)
    return tuple(Range(step.start, step.end) for step in steps if step.op == "hold")


def matches(condition: Condition, fact: Fact) -> bool:
    """Return whether `condition` holds.

    INVARIANT: an unknown fact satisfies only a condition that names `unknown`; a negated
    condition (`not`) is no such naming, so what cannot be read is never taken for harmless.
    """
    if fact.value == UNKNOWN:
        return not condition.negate and any(Term("is", UNKNOWN) in group for group in condition.groups)
    hit = any(all(_holds(term, fact.value) for term in group) for group in condition.groups)
    return hit != condition.negate and _comparable(condition, fact.value)


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


def _holds(term: Term, value: str | int | tuple[str, ...]) -> bool:
    if term.op == "is":
        return value == term.value
    if term.op == "has":
        return isinstance(value, tuple) and term.value in value
    if term.op == "glob":
        return _glob(str(term.value), str(value))
    mine, bound = order_key(value), order_key(term.value)
    if mine is None or bound is None:
        return False
    return {"<": mine < bound, "<=": mine <= bound, ">": mine > bound, ">=": mine >= bound}[term.op]


def _comparable(condition: Condition, value: str | int | tuple[str, ...]) -> bool:
    """Return False if a negated comparison holds only because `value` has no order, such as a kernel named `x`."""
    compares = any(term.op in ("<", "<=", ">", ">=") for group in condition.groups for term in group)
    return not (condition.negate and compares and order_key(value) is None)


def order_key(value: str | int | tuple[str, ...]) -> tuple[int, ...] | None:
    """Return a key that orders numbers and kernel releases: 7.3-rc4 < 7.3 < 7.3.4-amd64."""
    if isinstance(value, int):
        return (value,)
    if isinstance(value, tuple):
        return None
    numbers: list[int] = []
    rest = value
    while rest[:1].isdecimal() and len(numbers) < 3:
        digits = len(rest) - len(rest.lstrip("0123456789"))
        if not 0 < digits <= 9:
            return None
        numbers.append(int(rest[:digits]))
        rest = rest[digits:]
        if rest[:1] != "." or not rest[1:2].isdecimal():
            break
        rest = rest[1:]
    if not numbers:
        return None
    numbers += [0] * (3 - len(numbers))
    return (*numbers, 0 if rest.startswith("-rc") else 1)


def _glob(pattern: str, text: str) -> bool:
    """Return whether `pattern`, in which `*` is any text and `?` any character, is all of `text`.

    Written out because `fnmatch` imports `re`; linear, so no pattern can stall a boot.
    """
    p = t = 0
    star, retry = -1, 0
    while t < len(text):
        if p < len(pattern) and pattern[p] == "*":
            star, retry = p, t
            p += 1
        elif p < len(pattern) and pattern[p] in ("?", text[t]):
            p += 1
            t += 1
        elif star >= 0:
            retry += 1
            p, t = star + 1, retry
        else:
            return False
    return pattern[p:].strip("*") == ""


def fact_text(value: str | int | tuple[str, ...]) -> str:
    """Return a fact's value as people write it."""
    return " ".join(value) or "(none)" if isinstance(value, tuple) else str(value)


def wanted_text(condition: Condition) -> str:
    """Return what `condition` asks for, such as `not accepted` or `ready or busy`."""
    groups = [
        ", ".join(str(term.value) if term.op in ("is", "glob", "has") else f"{term.op}{term.value}" for term in group)
        for group in condition.groups
    ]
    return ("not " if condition.negate else "") + " or ".join(groups)


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
    odd = not snapshot.block_size or bool(states - {"online", "offline"})
    outside = any(
        run.state == "online"
        and sum(r.number for r, inside in _split(run, snapshot.block_size, region or ()) if not inside)
        for run in snapshot.blocks
    )
    derived = {
        "safe_region": Fact("unresolved" if region is None else "resolved", "policy", f"source {source}"),
        "held_blocks": Fact("yes" if "offline" in states else UNKNOWN if odd else "no", "memory blocks"),
        "online_outside_safe": Fact("yes" if outside else UNKNOWN if odd else "no", "memory blocks"),
    }
    return {**derived, **snapshot.facts}


def _guard_steps(rule: Rule, snapshot: Snapshot, keep: str) -> tuple[Step, ...]:
    if snapshot.guard is None:
        return ()
    if rule.action == "online-all":
        return release_guard(snapshot.guard, keep, f"{rule.name}: all memory may be used")
    return (Step("keep-guard", *snapshot.guard, why="reserved since the first instruction of this boot"),)


def release_guard(guard: Range, keep: str, why: str = "") -> tuple[Step, ...]:
    """Return the steps that give a guard back, but for its first `keep` bytes, which kdump gets."""
    cut = min(guard.end, guard.start + (parse_size(keep) if keep else 0))
    kept = (Step("keep-guard", guard.start, cut, why="left to kdump"),) if keep else ()
    return (*kept, *((Step("release-guard", cut, guard.end, why=why),) if cut < guard.end else ()))


def _block_steps(
    rule: Rule, snapshot: Snapshot, region: tuple[Range, ...], zone: str, memory: tuple[Override, ...]
) -> tuple[Step, ...]:
    steps: list[Step] = []
    size = snapshot.block_size
    for run in _cut(snapshot.blocks, memory, size, snapshot.guard):
        override = next((item for item in memory if _about(item, run, size)), None)
        held = override is not None and override.hold
        pieces = _split(run, size, region) if rule.action == "online-safe" else ((run, rule.action == "online-all"),)
        for piece, wanted in pieces:
            if piece.state == "offline" and wanted and held:
                op, why = "hold", "[[memory]] says so"
            elif piece.state == "offline" and wanted:
                op, why = "online", "safe region" if rule.action == "online-safe" else ""
            elif piece.state == "offline":
                op, why = "hold", "outside the safe region" if rule.action == "online-safe" else ""
            elif (
                piece.state == "online"
                and (held or not wanted)
                and rule.boot_memory == "offline"
                and not _guarded(piece, snapshot)
            ):
                op, why = "offline", "was online before the decision"
            elif piece.state == "online":
                op, why = "keep", "" if wanted and not held else "was online before the decision"
            else:
                op, why = "hold", f"state is {piece.state}"
            step = Step(
                op,
                piece.first * size,
                (piece.last + 1) * size,
                piece.first,
                piece.last,
                ((override.zone if override else "") or zone) if op == "online" else "",
                why,
            )
            last = steps[-1] if steps else None
            # Runs are split by node and driver, a plan need not be.
            if (
                last
                and last.last + 1 == step.first
                and (last.op, last.zone, last.why) == (step.op, step.zone, step.why)
            ):
                steps[-1] = last._replace(end=step.end, last=step.last)
            else:
                steps.append(step)
    return tuple(steps)


def _guarded(piece: Blocks, snapshot: Snapshot) -> bool:
    """Return whether all of `piece` lies in the guard: it is online by name only, and reserved pages keep it so."""
    size, guard = snapshot.block_size, snapshot.guard
    return guard is not None and guard.start <= piece.first * size and (piece.last + 1) * size <= guard.end


def _reach(override: Override, size: int) -> tuple[int, int]:
    """Return the first and last block that an override's range is about.

    INVARIANT: a block is held if the range touches it by one byte, and gets a zone only if it lies wholly inside.
    """
    area = override.range or Range(0, 0)
    if override.hold:
        return area.start // size, -(-area.end // size) - 1
    return -(-area.start // size), area.end // size - 1


def _about(override: Override, run: Blocks, size: int) -> bool:
    """Return whether the override is about every block of `run`, which was cut at its edges.

    INVARIANT: a block whose node or driver is not known is held by every override that holds one.
    """
    if override.range is not None:
        first, last = _reach(override, size)
        return first <= run.first and run.last <= last
    if override.node >= 0:
        return run.node == override.node or (override.hold and run.node < 0)
    return run.driver == override.driver or (override.hold and run.driver == UNKNOWN)


def _cut(blocks: tuple[Blocks, ...], memory: tuple[Override, ...], size: int, guard: Range | None) -> list[Blocks]:
    """Return the runs cut at the edges of the overrides' ranges, and of the blocks that lie wholly in the guard."""
    reaches = [_reach(item, size) for item in memory if item.range]
    if guard and blocks:
        reaches.append((-(-guard.start // size), guard.end // size - 1))
    edges = sorted({edge for first, last in reaches for edge in (first, last + 1)})
    runs = []
    for run in blocks:
        at = run.first
        for edge in edges:
            if at < edge <= run.last:
                runs.append(run._replace(first=at, last=edge - 1))
                at = edge
        runs.append(run._replace(first=at))
    return runs


def _split(run: Blocks, size: int, region: tuple[Range, ...]) -> list[tuple[Blocks, bool]]:
    """Return `run` cut where it enters and leaves `region`; True for blocks wholly inside.

    INVARIANT: a block that reaches outside by even one byte counts as outside.
    """
    pieces = []
    at = run.first
    for area in region:
        first = max(at, -(-area.start // size))
        last = min(run.last, area.end // size - 1)
        if first > last:
            continue
        if at < first:
            pieces.append((run._replace(first=at, last=first - 1), False))
        pieces.append((run._replace(first=first, last=last), True))
        at = last + 1
    if at <= run.last:
        pieces.append((run._replace(first=at), False))
    return pieces


def _warnings(rule: Rule, snapshot: Snapshot, region: tuple[Range, ...] | None, steps: tuple[Step, ...]) -> list[str]:
    """Return what the plan cannot protect, one sentence each."""
    if rule.action != "online-safe":
        odd = []
    else:
        odd = [] if region is not None else ["no safe region is known: no held block is onlined"]
        late = [step for step in steps if step.op in ("keep", "offline") and step.why]
        if late:
            total = sum(step.size for step in late)
            spans = ", ".join(str(Range(step.start, step.end)) for step in late)
            held = (
                f", of which the guard keeps {size_text(snapshot.guard.end - snapshot.guard.start)}"
                if snapshot.guard
                else ""
            )
            fate = (
                "are taken offline where the kernel can: what was used until then is lost"
                if rule.boot_memory == "offline"
                else "are not protected"
            )
            odd.append(f"{size_text(total)} were online before the decision and {fate}{held}: {spans}")
        odd += _cuts(snapshot, region or ())
    for run in snapshot.blocks:
        if run.state not in ("online", "offline"):
            odd.append(f"blocks {run.first}-{run.last} are `{run.state}`: left alone, protection unknown")
    return odd


def _cuts(snapshot: Snapshot, region: tuple[Range, ...]) -> list[str]:
    size = snapshot.block_size
    found = []
    for area in region if size else ():
        first, last = area.start // size, (area.end - 1) // size
        for number in sorted({first, last}):
            start, end = number * size, (number + 1) * size
            if area.start <= start and end <= area.end:
                continue
            if any(run.state == "offline" and run.first <= number <= run.last for run in snapshot.blocks):
                lost = min(end, area.end) - max(start, area.start)
                found.append(
                    f"safe region {area} cuts through block {number}, which stays held: {size_text(lost)} of it are safe but unused"
                )
    return found
