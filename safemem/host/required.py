# SPDX-License-Identifier: MIT
"""What a service may ask of this boot before it starts: that the decision is in force, and in which form."""

from __future__ import annotations

from typing import NamedTuple

from safemem.boot import plan
from safemem.boot.ranges import Range, common, merge_ranges, size_text, total, without
from safemem.host.standing import Standing
from safemem.host.verdict import faults

_ALL = Range(0, 1 << 64)
#: form -> what it asks for.
FORMS = {
    "decided": "memory has been decided on, and the decision is in force",
    "all": "the same, and all memory may be used",
    "accepted": "the same as `decided`, and a handover was accepted",
}


class Lack(NamedTuple):
    """Why a boot is not what was asked for."""

    kind: str  #: a verdict (`safemem.host.verdict`), or `failure` where the decision is in force and no handover was accepted
    text: str  #: one sentence


def lacks(found: Standing, form: str) -> Lack | None:
    """Return why this boot is not what `form`, one of FORMS, asks for; None if it is."""
    why = _not_in_force(found)
    if why:
        return Lack("ended" if found.verdict == "ended" else "partly", why)
    decision, handover = found.decision, found.decision.facts["handover"]
    if form == "accepted" and handover.value != "accepted":
        why = f"no handover was accepted: handover is {handover.value} ({handover.reason or handover.source})"
        return Lack("failure", why)
    held = _held(found) if form == "all" and found.verdict != "open" else 0
    if not held:
        return None
    return Lack(
        "held",
        f"{size_text(held)} of memory is held back: {decision.action} by rule `{decision.rule.name}`, handover"
        f" {handover.value}; `safemem release` ends the hold, and what is preserved there is lost",
    )


def _held(found: Standing) -> int:
    """Return the bytes that the decision keeps out of use; a block that only happens to be offline, or has just arrived, is none."""
    decision, now = found.decision, found.now
    asked = plan.held(decision.action, now, decision.region, decision.policy.memory)
    quarantined = (Range(share.start, share.end) for share in found.record.account if share.kind == "quarantined")
    offline = common(_offline(found), merge_ranges((*asked, *quarantined)))
    guard = (found.guard,) if found.guard else ()
    # Where a gigantic page is that somebody has mapped is not shown.
    pages = sum(item.number * item.size for item in found.gigantic)
    # As in `Standing.held`: what a release has begun and not ended is still held.
    released = (area for item in found.releases if item.state == "done" for area in item.ranges)
    return total(merge_ranges((*without(offline, tuple(released)), *guard))) + pages


def _offline(found: Standing) -> tuple[Range, ...]:
    size = found.now.block_size
    return merge_ranges(tuple(Range(run.first * size, (run.last + 1) * size) for run in found.offline))


def _in_doubt(found: Standing) -> str:
    """Return what leaves a decision that was carried out without effect on what comes later, or unseen; or ""."""
    if found.problem:
        return f"what has become of the decision cannot be told: {found.problem}"
    if found.then.blocks and not found.now.blocks:
        return "what has become of the decision cannot be told: no memory block is shown any more"
    auto = found.now.facts["auto_online"]
    if found.decision.holds and _ALL not in found.released and auto.value != "offline":
        return f"memory that arrives is onlined by the kernel: {auto.source} reads `{auto.value}`"
    return ""


def _not_in_force(found: Standing) -> str:
    """Return why the decision is not in force, or not wholly; or ""."""
    if found.mode != "enforce":
        who = "the policy only observes" if found.mode == "observe" else "this boot is a dry run"
        return f"the decision is not in force: {who}"
    if found.verdict in ("open", "held"):
        return _in_doubt(found)
    if found.verdict == "ended":
        return f"the decision of this boot was {found.decision.action}, and the boot has gone on"
    others = f"held memory was onlined by others: {', '.join(map(str, found.onlined_by_others))}" if found.onlined_by_others else ""  # fmt: skip
    gone = f"the guard has lost memory: {', '.join(map(str, found.let_go))}" if found.let_go else ""
    known = [*map(str, faults(found.record)), others, gone, *map(str, found.unseen)]
    first = next((text for text in known if text), "the boot program has not come to its end")
    return f"the decision is only partly in force: {first}"
