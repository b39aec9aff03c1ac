# SPDX-License-Identifier: MIT
"""Snapshots and decisions as JSON values: what `capture` writes, what a boot leaves in /run/safemem.

Both files carry the same snapshot, so `simulate --state` takes either. Schema 1; addresses are
text ranges with both ends included, sizes are bytes.
"""

from __future__ import annotations

import os

from safemem.boot import plainjson
from safemem.boot.model import UNKNOWN, Decision, Fact, Range, Snapshot, size_text

SCHEMA = 1
RECORD = "run/safemem/decision.json"
ARRIVALS = "run/safemem/arrivals"
PROGRESS = "run/safemem/progress"
#: Blocks that were taken offline in this boot and for how many seconds they had been in use, one pair a line.
TAKEN = "run/safemem/quarantined"


def snapshot_to_json(snapshot: Snapshot) -> dict[str, object]:
    """Return `snapshot` as plain JSON values."""
    return {
        "facts": {
            name: {"value": list(fact.value) if isinstance(fact.value, tuple) else fact.value,
                   "source": fact.source, "reason": fact.reason}
            for name, fact in snapshot.facts.items()
        },
        "block_size": snapshot.block_size,
        "blocks": [{"first": b.first, "last": b.last, "state": b.state, "node": b.node, "driver": b.driver} for b in snapshot.blocks],
        "scratch": [str(area) for area in snapshot.scratch],
        "cmdline": snapshot.cmdline,
        "cmdline_safe": [str(area) for area in snapshot.cmdline_safe],
        "guard": str(snapshot.guard) if snapshot.guard else None,
        "overrides": list(snapshot.overrides),
        "notes": list(snapshot.notes),
        "witness": snapshot.witness or None,
    }  # fmt: skip


def decision_to_json(decision: Decision) -> dict[str, object]:
    """Return `decision` as plain JSON values."""
    return {
        "action": decision.action,
        "rule": decision.rule,
        "message": decision.message,
        "zone": decision.zone,
        "enter": decision.enter or None,
        "on_shortfall": decision.on_shortfall,
        "exposed_max": decision.exposed_max or None,
        "floor": decision.floor or None,
        "keep_crashkernel": decision.keep_crashkernel or None,
        "policy": {"name": decision.policy, "digest": decision.digest},
        "facts": {
            name: {"value": list(fact.value) if isinstance(fact.value, tuple) else fact.value,
                   "source": fact.source, "reason": fact.reason}
            for name, fact in decision.facts.items()
        },
        "safe_region": {"source": decision.region_source, "ranges": [str(area) for area in decision.region]},
        "not_matched": [
            {"rule": miss.rule, "fact": miss.fact, "wanted": miss.wanted, "value": miss.fact_value, "source": miss.source}
            for miss in decision.misses
        ],
        "plan": [
            {"op": step.op, "range": str(Range(step.start, step.end)), "bytes": step.size,
             "blocks": [step.first, step.last] if step.first >= 0 else None,
             "zone": step.zone or None, "why": step.why or None}
            for step in decision.steps
        ],
        "arrivals": decision.arrivals or None,
        "if_onlined": decision.if_onlined,
        "final": decision.final,
        "exceptions": [{**item._asdict(), "range": str(item.range) if item.range else None} for item in decision.exceptions],
        "warnings": list(decision.warnings),
    }  # fmt: skip


def capture_to_json(snapshot: Snapshot) -> dict[str, object]:
    """Return what `capture` writes, as plain JSON values."""
    return {"schema": SCHEMA, "kind": "capture", "snapshot": snapshot_to_json(snapshot)}


def record_text(
    snapshot: Snapshot,
    decision: Decision,
    result: dict[str, object] | None,
    account: list[dict[str, object]] | None = None,
    totals: dict[str, int] | None = None,
) -> str:
    """Return the decision record; `result` and what became of memory are None until the plan has been carried out."""
    return (
        plainjson.dumps(
            {
                "schema": SCHEMA,
                "kind": "decision",
                "decision": decision_to_json(decision),
                "result": result,
                **({} if account is None else {"account": account, "totals": totals}),
                "snapshot": snapshot_to_json(snapshot),
            }
        )
        + "\n"
    )


def arrivals_text(decision: Decision, word: str) -> str:
    """Return what udev/60-safemem.rules imports: what becomes of blocks that arrive later, and why."""
    why = f"{decision.action} by rule {decision.rule}, policy {decision.policy}"
    plain = "".join(" " if char in "\"'\\$" else char for char in why)
    return f"SAFEMEM_ARRIVALS={word}\nSAFEMEM_WHY={plain}\n"


def read_taken(root: str) -> dict[int, int]:
    """Return what earlier runs in this boot took offline: it is offline now, and was touched. Raises ValueError, OSError."""
    try:
        with open(os.path.join(root, TAKEN), encoding="utf-8") as file:
            return {int(number): int(seconds) for number, seconds in map(str.split, file)}
    except FileNotFoundError:
        return {}


def write(root: str, text: str, name: str = RECORD) -> None:
    """Put a file below `root` in place at once, mode 0644: the record, if no other is named. Raises OSError."""
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    draft = f"{path}.new"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with open(fd, "w", encoding="utf-8") as out:
        os.fchmod(fd, 0o644)  # whatever the umask of the initramfs
        out.write(text)
    os.rename(draft, path)


class Progress:
    """Counts in a file, so that the wrapper's watchdog can tell slow work from a hang."""

    def __init__(self, root: str) -> None:
        self.path, self.count = os.path.join(root, PROGRESS), 0

    def step(self) -> None:
        """Count one more. Raises OSError."""
        self.count += 1
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, b"%d\n" % self.count)
        finally:
            os.close(fd)


def summary(decision: Decision) -> list[str]:
    """Return the decision in a few lines for the console, one line a range, the outcome first."""
    lines = [f"{decision.action}: {decision.message} (rule `{decision.rule}`, policy `{decision.policy}`)"]
    handover = decision.facts.get("handover", Fact(UNKNOWN, ""))
    lines.append(f"handover is {handover.value}: {handover.reason or handover.source}")
    for step in decision.steps:
        if step.op == "keep":
            continue
        zone = f" in zone {step.zone}" if step.zone else ""
        why = f": {step.why}" if step.why else ""
        lines.append(f"{step.op} {Range(step.start, step.end)} ({size_text(step.size)}){zone}{why}")
    return lines + list(decision.warnings)
