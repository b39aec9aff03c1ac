# SPDX-License-Identifier: MIT
"""What a service may ask of this boot before it starts: that the decision is in force, and in which form."""

from __future__ import annotations

from safemem.boot.ranges import merge_ranges, size_text, total
from safemem.host.standing import Standing
from safemem.host.verdict import faults

#: form -> what it asks for.
FORMS = {
    "decided": "memory has been decided on, and the decision is in force",
    "all": "the same, and all memory may be used",
    "accepted": "the same as `decided`, and a handover was accepted",
}


def lacks(found: Standing, form: str) -> str:
    """Return why this boot is not what `form`, one of FORMS, asks for, in one sentence; "" if it is."""
    why = _not_in_force(found)
    if why:
        return why
    handover = found.decision.facts["handover"]
    if form == "accepted" and handover.value != "accepted":
        return f"no handover was accepted: handover is {handover.value} ({handover.reason or handover.source})"
    if form == "all" and found.verdict != "open":
        guard = (found.guard,) if found.guard else ()
        areas = merge_ranges((*found.held, *guard, *found.reserved, *found.taken_offline))
        much = f"{size_text(total(areas))} of memory is" if areas else "memory is"
        return (
            f"{much} held back: {found.decision.action} by rule `{found.decision.rule.name}`, handover {handover.value};"
            " `safemem release` ends the hold, and what is preserved there is lost"
        )
    return ""


def _not_in_force(found: Standing) -> str:
    """Return why the decision is not in force, or not wholly; or ""."""
    if found.mode != "enforce":
        who = "the policy only observes" if found.mode == "observe" else "this boot is a dry run"
        return f"the decision is not in force: {who}"
    if found.verdict in ("open", "held"):
        return ""
    if found.verdict == "ended":
        return f"the decision of this boot was {found.decision.action}, and the boot has gone on"
    others = f"held memory was onlined by others: {', '.join(map(str, found.onlined_by_others))}" if found.onlined_by_others else ""  # fmt: skip
    gone = f"the guard has lost memory: {', '.join(map(str, found.let_go))}" if found.let_go else ""
    known = [*map(str, faults(found.record)), others, gone, *map(str, found.unseen)]
    first = next((text for text in known if text), "the boot program has not come to its end")
    return f"the decision is only partly in force: {first}"
