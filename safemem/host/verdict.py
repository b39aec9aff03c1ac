# SPDX-License-Identifier: MIT
"""How a boot stands by its record, in one word; every exit code that speaks of a boot comes from it."""

from __future__ import annotations

from typing import Literal

from safemem.boot.model import FINAL, Decision, Note
from safemem.host.reader import Record

#: `open` all memory may be used, `held` some is held back, `ended` by panic, reboot or halt, `partly` the decision is
#: not in force or not whole, `unknown` there is none.
Verdict = Literal["open", "held", "ended", "partly", "unknown"]

#: Codes of problems that a policy tolerates if it goes on with what stays exposed by them. What somebody else has onlined,
#: what could not be masked and what could not be looked at is no such thing: there the hold itself is in doubt.
_TOLERABLE = ("not-offline", "block-gone")


def decided(decision: Decision) -> Verdict:
    """Return what a decision asks for."""
    if decision.action in FINAL:
        return "ended"
    return "open" if decision.action == "online-all" else "held"


def verdict(record: Record | None, *, held: bool, onlined_by_others: bool = False, unseen: bool = False) -> Verdict:
    """Return how a boot stands.

    Args:
        record: None if there is none that can be understood.
        held: memory is out of use, or reserved by a guard for anybody but kdump and the operator.
        onlined_by_others: held memory is online, or a page of the guard in programs' reach, and nobody released it.
        unseen: what is held cannot be told, or not all of it.
    """
    if record is None:
        return "unknown"
    done = record.done
    if done is not None and (done.dry_run or done.observed):
        return "partly"
    if record.decision.action in FINAL:
        return "ended"
    if done is None or faults(record) or not (done.complete or done.problems) or onlined_by_others or unseen:
        return "partly"
    return "held" if held else "open"


def tolerated(record: Record) -> tuple[Note, ...]:
    """Return the problems that the policy itself tolerates: blocks that stayed online, within what it lets be exposed."""
    rule, done = record.decision.rule, record.done
    if done is None or (done.shortfall if rule.exposed_max else rule.on_shortfall != "continue"):
        return ()
    return tuple(note for note in done.problems if note.code in _TOLERABLE)


def faults(record: Record) -> tuple[Note, ...]:
    """Return the problems that the policy does not tolerate."""
    allowed = tolerated(record)
    return tuple(note for note in record.done.problems if note not in allowed) if record.done else ()


def held_then(record: Record) -> bool:
    """Return whether memory was held back when the record was completed."""
    decision = record.decision
    if record.snapshot.guarded and decision.action != "online-all":
        return True  # what is left of it after online-all is kdump's
    if record.account:
        return any(share.kind in ("held", "quarantined") for share in record.account)
    return any(step.op in ("hold", "offline") for step in decision.steps)
