# SPDX-License-Identifier: MIT
"""Snapshots and decisions as JSON values: what `capture` writes, what a boot leaves in /run/safemem.

Both files carry the same snapshot, so `simulate --state` takes either. Schema 1; addresses are
text ranges with both ends included, sizes are bytes. Sentences for people stand in one list and
their codes in another beside it, in the same order.
"""

from __future__ import annotations

from safemem.boot import files, plainjson
from safemem.boot.model import Decision, Note, Snapshot
from safemem.boot.printable import printable
from safemem.boot.ranges import Range
from safemem.boot.tuples import NamedTuple

SCHEMA = 1
RECORD = "run/safemem/decision.json"
#: The same for shells and udev (`env_text`).
ENV = "run/safemem/decision.env"
PROGRESS = "run/safemem/progress"
#: Blocks that were taken offline in this boot and for how many seconds they had been in use, one pair a line.
TAKEN = "run/safemem/quarantined"


class Done(NamedTuple):
    """What came of a decision. Sizes in bytes."""

    complete: bool = False
    bytes_onlined: int = 0
    bytes_wanted: int = 0
    bytes_quarantined: int = 0
    masked: tuple[str, ...] = ()  #: udev rules files and units that were hidden
    problems: tuple[Note, ...] = ()
    shortfall: str = ""  #: in which way less was reached than was decided
    dry_run: bool = False  #: nothing was done, as the command line asked; everything else is as it is by default
    quiesced: tuple[str, ...] = ()  #: addresses of PCI functions that may no longer write to memory
    observed: bool = False  #: nothing was done, as the policy says; what was onlined is what was offline for our hold


def plain(value: object) -> object:
    """Return `value` as JSON has it: a range as text, other named tuples as tables, tuples as lists."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Range):
        return str(value)
    if isinstance(value, tuple):
        table = getattr(value, "_asdict", None)
        return {key: plain(item) for key, item in table().items()} if table else [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} has no form in a record")


def snapshot_to_json(snapshot: Snapshot) -> dict[str, object]:
    """Return `snapshot` as plain JSON values."""
    return {
        **{key: plain(value) for key, value in snapshot._asdict().items()},
        "note_codes": codes(snapshot.notes),
        "witness": snapshot.witness or None,
    }


def decision_to_json(decision: Decision) -> dict[str, object]:
    """Return `decision` as plain JSON values; every word of the rule is there, one that says nothing as null."""
    rule, policy = decision.rule._asdict(), decision.policy._asdict()
    return {
        **{word: None if value == "" else plain(value) for word, value in rule.items() if word not in ("name", "when")},
        "rule": decision.rule.name,
        "message": decision.message,
        "zone": decision.zone,
        "policy": {"name": policy.pop("name"), "digest": policy.pop("digest")},
        "exceptions": plain(policy.pop("memory")),
        **{word: None if value == "" else plain(value) for word, value in policy.items()},
        "facts": plain(decision.facts),
        "safe_region": {"source": decision.region_source, "ranges": plain(decision.region)},
        "not_matched": [
            {"rule": miss.rule, "fact": miss.fact, "wanted": miss.wanted, "value": miss.fact_value, "source": miss.source}
            for miss in decision.misses
        ],
        "plan": [
            {"op": step.op, "range": str(Range(step.start, step.end)), "bytes": step.size,
             "blocks": [step.first, step.last] if step.first >= 0 else None,
             "zone": step.zone or None, "why": step.why or None, "late": step.late,
             "node": step.node if step.node >= 0 else None}
            for step in decision.steps
        ],
        "arrivals": decision.arrivals or None,
        "warnings": list(decision.warnings),
        "warning_codes": codes(decision.warnings),
    }  # fmt: skip


def codes(notes: tuple[Note, ...]) -> list[str]:
    """Return the code of each sentence."""
    return [note.code for note in notes]


def capture_to_json(snapshot: Snapshot) -> dict[str, object]:
    """Return what `capture` writes, as plain JSON values."""
    return {"schema": SCHEMA, "kind": "capture", "snapshot": snapshot_to_json(snapshot)}


def record_text(
    snapshot: Snapshot,
    decision: Decision,
    done: Done | None,
    account: list[dict[str, object]] | None = None,
    totals: dict[str, int] | None = None,
) -> str:
    """Return the decision record; `done` and what became of memory are None until the plan has been carried out."""
    document = {
        "schema": SCHEMA,
        "kind": "decision",
        "decision": decision_to_json(decision),
        "result": None if done is None else done_to_json(done),
        **({} if account is None else {"account": account, "totals": totals}),
        "snapshot": snapshot_to_json(snapshot),
    }
    return plainjson.dumps(document) + "\n"


def done_to_json(done: Done) -> dict[str, object]:
    """Return what came of a decision as plain JSON values."""
    if done.dry_run:
        return {"dry_run": True}
    table = {key: plain(value) for key, value in done._asdict().items() if key != "dry_run"}
    if not done.observed:
        del table["observed"]
    if not done.quiesced:  # most rules stop nothing
        del table["quiesced"]
    return {**table, "problem_codes": codes(done.problems), "shortfall": done.shortfall or None}


def env_text(
    arrivals: str, why: str, *, enter: str, on_shortfall: str = "", finished: bool, dry_run: bool = False
) -> str:
    """Return what shells and udev read of a decision, as `KEY=value` lines; udev/60-safemem.rules imports them.

    Args:
        arrivals: what becomes of blocks that arrive later: `hold`, or the word for their `state`; "" says nothing.
        why: by which rule of which policy.
        enter: the rule's.
        on_shortfall: the rule's, if it is anything but to go on: so the real root ends where it cannot hold.
        finished: the boot program has come to its end: only then may the boot go on.
        dry_run: nothing of the decision is in force, as the command line or an observing policy says.
    """
    values = {
        "SAFEMEM_ARRIVALS": arrivals,
        "SAFEMEM_WHY": "".join(" " if char in "\"'\\$" else char for char in printable(why)),
        "SAFEMEM_ENTER": enter,
        "SAFEMEM_ON_SHORTFALL": "" if on_shortfall == "continue" else on_shortfall,
        "SAFEMEM_DRY_RUN": "yes" if dry_run else "no",
        "SAFEMEM_FINISHED": "yes" if finished else "no",  # last: a file that is cut off does not say it
    }
    # udev takes a key without a value for a damaged line (seen on 252 and 257).
    return "".join(f"{key}={value}\n" for key, value in values.items() if value)


def why_text(action: str, rule: str, policy: str) -> str:
    """Return what decided, in few words."""
    return f"{action} by rule {rule}, policy {policy}"


def read_taken(root: str) -> dict[int, int]:
    """Return what earlier runs in this boot took offline: it is offline now, and was touched. Raises ValueError, OSError."""
    try:
        text = files.read(root, TAKEN).decode()
    except FileNotFoundError:
        return {}
    return {int(number): int(seconds) for number, seconds in map(str.split, text.splitlines())}
