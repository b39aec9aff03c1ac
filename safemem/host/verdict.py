# SPDX-License-Identifier: MIT
"""How a boot stands by its record, in one word; every exit code that speaks of a boot comes from it."""

from __future__ import annotations

from typing import Literal

from safemem.boot.model import FINAL, Decision
from safemem.host.reader import Record

#: `open` all memory may be used, `held` some is held back, `ended` by panic, reboot or halt, `partly` the decision is
#: not in force or not whole, `unknown` there is none.
Verdict = Literal["open", "held", "ended", "partly", "unknown"]


def decided(decision: Decision) -> Verdict:
    """Return what a decision asks for."""
    if decision.action in FINAL:
        return "ended"
    return "open" if decision.action == "online-all" else "held"


def verdict(record: Record | None, *, held: bool, onlined_by_others: bool = False, unseen: bool = False) -> Verdict:
    """Return how a boot stands.

    Args:
        record: None if there is none that can be understood.
        held: memory is out of use, or reserved by the guard for anybody but kdump.
        onlined_by_others: held memory is online, and nobody released it.
        unseen: what is held cannot be told, or not all of it.
    """
    if record is None:
        return "unknown"
    done = record.done
    if done is not None and done.dry_run:
        return "partly"
    if record.decision.action in FINAL:
        return "ended"
    if done is None or not done.complete or onlined_by_others or unseen:
        return "partly"
    return "held" if held else "open"


def held_then(record: Record) -> bool:
    """Return whether memory was held back when the record was completed."""
    decision = record.decision
    if record.snapshot.guard and decision.action != "online-all":
        return True  # what is left of it after online-all is kdump's
    if record.account:
        return any(share.kind in ("held", "quarantined") for share in record.account)
    return any(step.op in ("hold", "offline") for step in decision.steps)
