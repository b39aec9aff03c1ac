# SPDX-License-Identifier: MIT
"""The decision that stands as a text file for node_exporter, in the exposition format of Prometheus 0.0.4."""

from __future__ import annotations

from safemem.boot import account
from safemem.boot.ranges import total
from safemem.host.catalogue import SEVERITIES
from safemem.host.incidents import Counts
from safemem.host.standing import MODES, Standing
from safemem.host.verdict import faults


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
    lines += _metric("safemem_decision_info", "What was decided in this boot.", {_labels(info): 1})
    lines += _metric(
        "safemem_decision_in_force",
        "Whether the decision was carried out whole and nobody has undone it since.",
        {"": int(found.verdict in ("open", "held"))},
    )
    lines += _metric(
        "safemem_memory_bytes",
        "All memory blocks by what they are now; only held and guarded memory was never used in this boot.",
        {_labels({"state": kind}): (found.totals or {}).get(kind, 0) for kind in account.KINDS},
    )
    lines += _metric(
        "safemem_onlined_by_others_bytes",
        "Held memory that is online, and gigantic pages of a guard that programs can map, although nobody released it, now.",
        {"": total(found.onlined_by_others) + total(found.let_go)},
    )
    lines += _metric(
        "safemem_releases", "Times that memory was released by hand in this boot.", {"": len(found.releases)}
    )
    lines += _metric(
        "safemem_problems",
        "Parts of the decision that could not be carried out.",
        {"": len(found.record.done.problems) if found.record.done else 0},
    )
    lines += _metric(
        "safemem_findings",
        "What `status` says of this boot: problems, warnings, and what the policy tolerates.",
        {_labels({"severity": severity}): number for severity, number in _findings(found).items()},
    )
    lines += _metric(
        "safemem_mode",
        "Whether the decision was carried out, or only recorded.",
        {_labels({"mode": name}): int(name == found.mode) for name in MODES},
    )
    lines += _metric(
        "safemem_maintenance",
        "Whether the decision sent this boot to maintenance, and it is there or has not released everything.",
        {"": int(found.maintenance)},
    )
    lines += _metric(
        "safemem_shortfall",
        "Whether less was reached than was decided and the policy tolerates.",
        {"": int(bool(found.shortfall))},
    )
    lines += _metric(
        "safemem_releases_unfinished",
        "Releases by hand of which not all was given back.",
        {"": len([item for item in found.releases if item.state != "done"])},
    )
    lines += _metric(
        "safemem_decision_timestamp_seconds",
        "When the decision was recorded, since 1970 by the clock of then.",
        {"": found.written},
    )
    if found.watched:
        lines += _counters(found.watched)
    return "".join(lines)


def _findings(found: Standing) -> dict[str, int]:
    """Return how much there is of each severity that `doctor` has."""
    done = found.record.done
    severe = len(faults(found.record)) + len(found.unseen) + (done is None) + bool(found.problem)
    counts = (severe, len(found.decision.warnings), len(found.tolerated))
    return dict(zip(SEVERITIES, counts, strict=True))


def _counters(seen: Counts) -> list[str]:
    """Return what `watch` counts in this boot; without it there is nothing, which an alert can tell from 0."""
    found = {
        "held_memory_onlined": (
            "Times that held memory was found online, or guarded memory in reach of programs, although nobody released it.",
            seen.incidents,
        ),
        "held_memory_onlined_bytes": ("Memory that was found so.", seen.onlined),
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
