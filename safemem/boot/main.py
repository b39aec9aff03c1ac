# SPDX-License-Identifier: MIT
"""The program that the initramfs runs: hold, probe, decide, record, act, compare.

Exit status, read by the wrapper (initramfs/boot.sh): 0 the boot may go on; 5 the decision is
halt, which needs a program that the standard library has not; anything else ends in the
policy's `on_failure`, which the wrapper knows by itself.
"""

from __future__ import annotations

import os
import sys

from safemem.boot import account, apply, compiled, engine, plainjson, probe, record
from safemem.boot.model import FINAL, Decision, Policy, Range, Snapshot, parse_limit, size_text

POLICY = "usr/lib/safemem/policy.json"
#: Policies beside it that `safemem.policy=NAME` may name.
POLICIES = "usr/lib/safemem/policies"
#: Names of udev rules files that online memory, one a line; found when the archive was built.
MASKS = "usr/lib/safemem/masks"
_NOTICE, _WARNING, _EMERGENCY = 5, 4, 0
_MOST_ATTEMPTS = 1 << 16


def main(argv: list[str]) -> int:
    """Decide and act for the machine under `--root` (default `/`); `capture` only prints the snapshot."""
    root, words = "/", list(argv)
    if words[:1] == ["--root"] and len(words) > 1:
        root = words[1]
        del words[:2]
    if words == ["capture"]:
        sys.stdout.write(plainjson.dumps(record.capture_to_json(probe.read_snapshot(root))) + "\n")
        sys.stdout.flush()
        return 0
    if words:
        sys.stderr.write(f"safemem: unknown argument `{words[0]}`: the only one is capture\n")
        return 2
    try:
        return _boot(root)
    except Exception as error:  # whatever it is, the boot must not go on: the wrapper acts on this status
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        text = f"cannot decide: {kind}{error}"
        apply.say(root, _EMERGENCY, text)
        sys.stderr.write(f"safemem: {text}\n")
        return 1


def _boot(root: str) -> int:
    # The hold comes before everything else, also before reading what it changes: a block that
    # arrives in between must not come online.
    before = probe.auto_online(root)
    problems = apply.hold(root)
    policy = compiled.load(_read(os.path.join(root, POLICY)), POLICY)
    snapshot = probe.read_snapshot(root, open_luo=policy.open_luo)
    snapshot = snapshot._replace(facts={**snapshot.facts, "auto_online": before})
    snapshot = snapshot._replace(notes=(*snapshot.notes, *probe.onlined_early(root, snapshot)))
    decision, policies = _decide(root, policy, snapshot)
    record.write(root, record.record_text(snapshot, decision, None))
    for line in record.summary(decision):
        apply.say(root, _NOTICE, line)
    for text in (*problems, *snapshot.notes):
        apply.say(root, _WARNING, text)
    said = len(problems)
    if "dry-run" in snapshot.overrides and policy.allow_cmdline_override:
        record.write(root, record.record_text(snapshot, decision, {"dry_run": True}))
        apply.unhold(root, str(before.value))
        apply.say(root, _WARNING, "safemem.dry_run on the command line: nothing of this is done")
        return 0
    if decision.action in FINAL:
        for text in _count(root, policies, snapshot, False, must=decision.action == "reboot"):
            apply.say(root, _WARNING, text)
        return _end(root, decision.action, decision.message)
    word = apply.ONLINE_WORD[decision.arrivals] if decision.arrivals else "hold"
    record.write(root, record.arrivals_text(decision, word), record.ARRIVALS)
    masked = [] if decision.arrivals else _read(os.path.join(root, MASKS)).decode().split()
    if snapshot.guard and decision.action != "online-all":
        trouble, units = apply.forbid_crash_kernel(root)
        problems += trouble
        masked += units
        if units:
            apply.say(
                root, _WARNING, "kdump's units are masked; a crash kernel loaded by hand would overwrite the guard"
            )
    problems += apply.mask(root, masked)
    result = apply.carry_out(decision, root, record.Progress(root).step, policy.on_failure.deadline / 2)
    taken = {**record.read_taken(root), **result.taken}
    if taken:
        record.write(root, "".join(f"{number} {seconds}\n" for number, seconds in taken.items()), record.TAKEN)
    shares = account.account(
        decision,
        snapshot,
        result.after or probe.states(root),
        _guard_now(root, snapshot),
        result.refused,
        taken,
    )
    totals = account.totals(shares)
    short = _shortfall(decision, result, problems, totals)
    ends = bool(short) and decision.on_shortfall != "continue"
    problems += _count(
        root,
        policies,
        snapshot,
        decision.action == "online-all" and not ends,
        must=ends and decision.on_shortfall == "reboot",
    )
    record.write(
        root,
        record.record_text(
            snapshot,
            decision,
            {
                "complete": result.complete and not problems,
                "bytes_onlined": result.onlined,
                "bytes_wanted": result.wanted,
                "bytes_quarantined": result.quarantined,
                "masked": masked,
                "problems": [*problems, *result.problems],
                "shortfall": short or None,
            },
            account.to_json(shares),
            totals,
        ),
    )
    for text in (*result.problems, *problems[said:]):
        apply.say(root, _WARNING, text)
    quarantine = f", {size_text(result.quarantined)} taken offline" if result.quarantined else ""
    apply.say(root, _NOTICE, f"done: {size_text(result.onlined)} of {size_text(result.wanted)} onlined{quarantine}")
    apply.say(root, _NOTICE, account.totals_text(totals))
    if ends:
        return _end(root, decision.on_shortfall, short)
    return 0


def _count(root: str, policies: tuple[Policy, ...], snapshot: Snapshot, whole: bool, must: bool) -> list[str]:
    """Keep count of boots in a row that did not online all memory, if a policy asks and firmware can keep it.

    Returns what went wrong, one sentence.

    Raises:
        OSError: it `must` be counted, because a reboot would find the same state again. Panic and halt end as decided:
            what `on_failure` says instead could be a reboot.
    """
    fact = snapshot.facts["boot_attempts"]
    asked = (c.fact for policy in policies for rule in policy.rules for c in rule.when)
    if fact.source != probe.ATTEMPTS or "boot_attempts" not in asked:
        return []
    number = 0 if whole else (fact.value if isinstance(fact.value, int) else 0) + 1
    # Flash wears off: what is there already is not written again.
    trouble = None if number == fact.value else apply.count_boot(root, min(number, _MOST_ATTEMPTS))
    if trouble and must:
        raise OSError(trouble)
    return [trouble] if trouble else []


def _shortfall(decision: Decision, result: apply.Result, problems: list[str], totals: dict[str, int]) -> str:
    """Return in which way less was reached than was decided, or nothing."""
    whole, exposed = sum(totals.values()), totals["exposed"]
    if decision.exposed_max and whole:  # without a block in the account, nothing shows that the limit is kept
        limit = parse_limit(decision.exposed_max, whole)
        if exposed > limit:
            allowed = f"{decision.exposed_max}, {size_text(limit)}"
            return f"{size_text(exposed)} of {size_text(whole)} are exposed, and the policy allows {allowed}"
    elif result.shortfall:
        what = "should be in use is not" if decision.action == "online-all" else "should be held is online"
        return f"memory that {what}: {result.problems[0]}"
    # A hold that somebody else can end is none: what could not be masked or forbidden counts as well.
    return problems[0] if problems and not decision.arrivals else ""


def _decide(root: str, policy: Policy, snapshot: Snapshot) -> tuple[Decision, tuple[Policy, ...]]:
    """Return what the policy says, or the one that `safemem.policy=NAME` names, which may only be stricter; and both."""
    policies: tuple[Policy, ...] = (policy,)
    decision = engine.decide(policy, snapshot)
    for item in snapshot.overrides:
        what, _, name = item.partition("=")
        if what != "policy":
            continue
        path = os.path.join(root, POLICIES)
        # Compared, never opened by the name: nothing that is written on a command line leads elsewhere.
        if f"{name}.json" in (os.listdir(path) if os.path.isdir(path) else ()):
            named = compiled.load(_read(os.path.join(path, f"{name}.json")), f"{POLICIES}/{name}.json")
            policies = (*policies, named)
            decision = engine.choose(decision, engine.decide(named, snapshot), policy.allow_cmdline_override)
        else:
            text = f"safemem.policy={name} on the command line is ignored: no policy of that name is built in"
            decision = decision._replace(warnings=(text, *decision.warnings))
    return decision, policies


def _guard_now(root: str, snapshot: Snapshot) -> Range | None:
    """Return what is left of the guard: it is given back from its end."""
    if not snapshot.guard:
        return None
    left = probe.crash_size(root)
    return snapshot.guard._replace(end=snapshot.guard.start + left) if left else None


def _end(root: str, action: str, reason: str) -> int:
    apply.end(action, reason, root)
    return 5 if action == "halt" else 1


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
