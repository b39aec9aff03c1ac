# SPDX-License-Identifier: MIT
"""What will come of a decision on a machine, as far as its state tells: how the boot ends, and what becomes of memory.

At best: a block that refuses to go offline for a reason that no state shows, such as a page that cannot be moved,
makes more of memory exposed, never less. The account and its kinds are those of the boot program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from safemem.boot import account, devices, gigantic, plan, probe
from safemem.boot.model import FINAL, UNKNOWN, Blocks, Decision, Snapshot, Step
from safemem.boot.ranges import Range, cut, joined, merge_ranges, parse_limit, size_text, total


class Tried(NamedTuple):
    """What a boot on record has found out about the machine."""

    blocks: frozenset[int] = frozenset()  #: that were to go offline
    refused: Mapping[int, str] = {}
    available: int = 0  #: bytes that were free to run in when the boot program began; 0 is not known
    whole: bool = False  #: this very policy has decided there, and come to its end


class Forecast(NamedTuple):
    """What becomes of a machine."""

    ends: str  #: the action that ends the boot; "" if it goes on
    short: str = ""  #: in which way less is reached than was decided, for certain; "" if nothing shows that
    sure: bool = True  #: nothing that the state does not show can make it worse
    totals: Mapping[str, int] = {}
    limit: int = -1  #: bytes that may be exposed before `on_shortfall` applies; -1 where there is no limit
    stays: Mapping[int, str] = {}
    dry_run: bool = False  #: nor is anything of it done, as the command line asks
    observed: bool = False  #: nothing of the decision is done: the machine is what Linux alone makes of it


def forecast(decision: Decision, snapshot: Snapshot, tried: Tried = Tried()) -> Forecast:  # noqa: B008  (a tuple)
    """Return what comes of `decision`, which the engine made of this very `snapshot`."""
    rule = decision.rule
    if any(note.code == "observes" for note in decision.warnings):
        return Forecast("", observed=True)
    if rule.action in FINAL:
        return Forecast(rule.action)
    wanted = _wanted(decision)
    those = set(wanted)
    known = {number: why for number, why in _stays(decision, snapshot, tried).items() if number in those}
    taken = _taken(decision, snapshot, tried, wanted, known)
    shares = account.account(decision, snapshot, _after(decision, snapshot, taken), _guarded(decision), known, {})
    totals = account.totals(shares)
    whole = sum(totals.values())
    limit = parse_limit(rule.exposed_max, whole) if rule.exposed_max and whole else -1
    short = _short(decision, snapshot, totals, limit, known)
    ends = rule.on_shortfall if short and rule.on_shortfall in FINAL else ""
    # Onlining, masking and holding can fail too, and what is on its way offline may be there by then.
    moving = any(run.state == "going-offline" for run in snapshot.blocks)
    sure = tried.whole or (not moving and (bool(ends) or (those <= tried.blocks and rule.on_shortfall not in FINAL)))
    return Forecast(ends, short, sure, totals, limit, known)


def reached(decision: Decision, found: Forecast) -> tuple[Step, ...]:
    """Return the steps of a decision with those blocks left online that cannot be taken offline, each with the reason."""
    steps: list[Step] = []
    for step in decision.steps:
        if step.op != "offline" or not found.stays:
            steps.append(step)
            continue
        size = step.size // (step.last - step.first + 1)
        numbers = range(step.first, step.last + 1)
        for first, end, why in joined((number, number + 1, found.stays.get(number, "")) for number in numbers):
            piece = step._replace(start=first * size, end=end * size, first=first, last=end - 1)
            steps.append(piece._replace(op="keep", why=why) if why else piece)
    return tuple(steps)


def _wanted(decision: Decision) -> list[int]:
    """Return the blocks that are to go offline, in the order in which they are tried: from the top down."""
    steps = [step for step in reversed(decision.steps) if step.op == "offline"]
    return [number for step in steps for number in range(step.last, step.first - 1, -1)]


def _stays(decision: Decision, snapshot: Snapshot, tried: Tried) -> dict[int, str]:
    """Return which blocks do not go offline: a boot that has tried knows, of others the kernel's map tells some."""
    found: dict[int, str] = {}
    for step in (step for step in decision.steps if step.op == "offline"):
        kept = plan.fixed(step, snapshot.room, tuple(guard.range for guard in _guarded(decision)))
        found |= {number: plan.KEPT[why] for number, why in kept.items()}
    # What never goes is not tried either, and where a part of it is safe or guarded, no account calls it refused.
    never = (plan.KEPT["kernel"], plan.KEPT["guard"])
    stays = {number: why for number, why in found.items() if number not in tried.blocks or why in never}
    return stays | dict(tried.refused)


def _span(number: int, snapshot: Snapshot) -> Range:
    return Range(number * snapshot.block_size, (number + 1) * snapshot.block_size)


def _taken(decision: Decision, snapshot: Snapshot, tried: Tried, wanted: list[int], known: dict[int, str]) -> list[int]:
    """Return the blocks that go offline; those for which no room is left are added to `known`."""
    size = snapshot.block_size
    online = sum(run.number for run in snapshot.blocks if run.state == "online") * size
    # Without a figure from the boot itself all that is online counts: at best.
    left = tried.available or online - total(snapshot.guarded)
    left += sum(step.size for step in decision.steps if step.op == "online")
    least = plan.floor(decision.plan, snapshot.room)
    taken = []
    for number in (number for number in wanted if number not in known):
        if number not in tried.blocks and left - size < least:
            known[number] = f"{plan.BELOW}: {size_text(least)} of memory have to stay available"
        else:
            left -= size
            taken.append(number)
    return taken


def _after(decision: Decision, snapshot: Snapshot, taken: list[int]) -> tuple[Blocks, ...]:
    """Return the blocks as they are when the plan has been carried out."""
    areas = dict.fromkeys(merge_ranges(tuple(Range(number, number + 1) for number in taken)), "offline")
    areas |= {Range(step.first, step.last + 1): "online" for step in decision.steps if step.op == "online"}
    ordered = sorted(areas)
    return tuple(
        run._replace(first=first, last=end - 1, state=run.state if index < 0 else areas[ordered[index]])
        for run in snapshot.blocks
        for first, end, index in cut(run.first, run.last + 1, ordered)
    )


def _guarded(decision: Decision) -> tuple[account.Guarded, ...]:
    """Return what is left of the guards."""
    kept = (step for step in decision.steps if step.op == "keep-guard")
    return tuple(
        sorted(
            account.Guarded(Range(step.start, step.end), gigantic.WRITTEN if step.node >= 0 else "") for step in kept
        )
    )


def _short(
    decision: Decision, snapshot: Snapshot, totals: Mapping[str, int], limit: int, known: Mapping[int, str]
) -> str:
    unseen = probe.unseen(snapshot.notes)
    if limit >= 0:
        if totals["exposed"] > limit:
            exposed, whole = size_text(totals["exposed"]), size_text(sum(totals.values()))
            allowed = f"the policy allows {decision.rule.exposed_max}, {size_text(limit)}"
            return f"at best {exposed} of {whole} stay exposed, and {allowed}"
    elif known:
        return f"{_span(min(known), snapshot)} cannot be taken offline: {known[min(known)]}"
    odd = {run.state for run in snapshot.blocks} - {"online", "offline", *(["going-offline"] if limit >= 0 else [])}
    if odd:
        return f"some memory is neither online nor offline: its state is {sorted(odd)[0]}"
    masters = decision.facts.get("bus_masters")
    if decision.rule.quiesce and masters and masters.value == UNKNOWN and not unseen:
        return f"{devices.UNSEEN}: {masters.reason}"
    return unseen[0] if unseen else ""
