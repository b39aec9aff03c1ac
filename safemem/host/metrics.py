# SPDX-License-Identifier: MIT
"""The decision that stands as a text file for node_exporter, in the exposition format of Prometheus 0.0.4."""

from __future__ import annotations

from safemem.boot import account
from safemem.boot.ranges import total
from safemem.host.incidents import Counts
from safemem.host.standing import Standing


def text(found: Standing | None) -> str:
    """Return the metrics; None is a boot without a decision, which has to be told from a machine without safemem."""
    lines = _metric(
        "safemem_decision_recorded", "Whether this boot has a decision on record.", {"": int(found is not None)}
    )
    if found is None:
        return "".join(lines)
    decision = found.decision
    info = {
        "action": decision.action,
        "rule": decision.rule.name,
        "policy": decision.policy.name,
        "digest": decision.policy.digest,
        "handover": str(found.then.facts["handover"].value),
    }
    memory = account.totals(found.record.account)
    # What may have changed since is counted now.
    memory["held"] = total(found.held)
    memory["quarantined"] += total(found.taken_offline)
    memory["guarded"] = found.guard.size if found.guard else 0
    lines += _metric("safemem_decision_info", "What was decided in this boot.", {_labels(info): 1})
    lines += _metric(
        "safemem_decision_in_force",
        "Whether the decision was carried out whole and nobody has undone it since.",
        {"": int(found.verdict in ("open", "held"))},
    )
    lines += _metric(
        "safemem_memory_bytes",
        "Memory by what became of it; only held and guarded memory was never used in this boot.",
        {_labels({"state": kind}): amount for kind, amount in memory.items()},
    )
    lines += _metric(
        "safemem_onlined_by_others_bytes",
        "Held memory that is online although nobody released it, now.",
        {"": total(found.onlined_by_others)},
    )
    lines += _metric(
        "safemem_releases", "Times that memory was released by hand in this boot.", {"": len(found.releases)}
    )
    lines += _metric(
        "safemem_problems",
        "Parts of the decision that could not be carried out.",
        {"": len(found.record.done.problems) if found.record.done else 0},
    )
    if found.watched:
        lines += _counters(found.watched)
    return "".join(lines)


def _counters(seen: Counts) -> list[str]:
    """Return what `watch` counts in this boot; without it there is nothing, which an alert can tell from 0."""
    found = {
        "held_memory_onlined": ("Times that held memory was found online although nobody released it.", seen.incidents),
        "held_memory_onlined_bytes": ("Held memory that was found online although nobody released it.", seen.onlined),
        "held_memory_reverted_bytes": ("Of that, what was taken offline again.", seen.reverted),
        "arrivals": ("Times that memory which arrived was onlined, as the decision says.", seen.bursts),
        "arrivals_bytes": ("Memory that arrived and was onlined, as the decision says.", seen.applied),
        "events_lost": ("Times that the kernel dropped events; all blocks were read anew.", seen.lost),
    }
    return [
        line
        for name, (about, value) in found.items()
        for line in _metric(f"safemem_{name}_total", about, {"": value}, "counter")
    ]


def _metric(name: str, about: str, samples: dict[str, int], kind: str = "gauge") -> list[str]:
    head = [f"# HELP {name} {about}\n", f"# TYPE {name} {kind}\n"]
    return head + [f"{name}{labels} {value}\n" for labels, value in samples.items()]


def _labels(pairs: dict[str, str]) -> str:
    escaped = {
        name: value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') for name, value in pairs.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"
