# SPDX-License-Identifier: MIT
"""The program that the initramfs runs: hold, probe, decide, record, act, compare.

Exit status, read by the wrapper (boot.sh): 0 the boot may go on; 5 the decision is halt, which needs a
program that the standard library has not; anything else ends in the policy's `on_failure`, which the
wrapper knows by itself.
"""

from __future__ import annotations

import sys

from safemem.boot import (
    account,
    apply,
    attempts,
    compiled,
    console,
    crashkernel,
    engine,
    files,
    hold,
    memory,
    plainjson,
    plan,
    probe,
    record,
    stricter,
)
from safemem.boot.cmdline import argument
from safemem.boot.console import EMERGENCY, NOTICE, WARNING, say
from safemem.boot.model import FINAL, UNKNOWN, Blocks, Decision, Note, Policy, Snapshot
from safemem.boot.ranges import Range, common, merge_ranges, parse_limit, size_text, without

POLICY = "usr/lib/safemem/policy.json"
#: On the kernel command line: one of the policies beside it.
NAMED = "safemem.policy"
POLICIES = "usr/lib/safemem/policies"
#: Names of udev rules files that online memory, with their digest; found when the archive was built.
MASKS = "usr/lib/safemem/masks"
_FAILED, _HALT = 1, 5


def main(argv: list[str]) -> int:
    """Decide and act for the machine under `--root` (default `/`); `capture` only prints the snapshot."""
    files.umask()
    root, words = "/", list(argv)
    if words[:1] == ["--root"] and len(words) > 1:
        root = words[1]
        del words[:2]
    if words == ["capture"]:
        sys.stdout.write(
            plainjson.dumps(record.capture_to_json(probe.read_snapshot(root)._replace(room=memory.room(root)))) + "\n"
        )
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
        say(root, EMERGENCY, text)
        sys.stderr.write(f"safemem: {text}\n")
        return _FAILED


def _boot(root: str) -> int:
    # The hold comes before everything else, also before reading what it changes: a block that
    # arrives in between must not come online.
    before = probe.auto_online(root)
    problems = hold.hold(root)
    policy = _policy(root, POLICY)
    cmdline = probe.command_line(root)
    named = _named(root, policy, cmdline)
    policies = (policy, *(named or ()))
    snapshot = probe.read_snapshot(
        root,
        open_luo=any(item.open_luo for item in policies),
        token=any(item.retrieve_token for item in policies),
    )
    snapshot = snapshot._replace(facts={**snapshot.facts, "auto_online": before}, room=memory.room(root))
    snapshot = snapshot._replace(notes=(*snapshot.notes, *memory.onlined_early(root, snapshot)))
    decision, limits = _decide(policy, named, snapshot, cmdline)
    observing = all(item.observe for item in _counting(policy, named, cmdline))
    files.replace(root, record.RECORD, record.record_text(snapshot, decision, None))
    priority, lines = console.outcome(decision, observing=observing)
    for line in lines:
        say(root, priority, line)
    for line in console.summary(decision):
        say(root, NOTICE, line)
    for text in (*problems, *snapshot.notes):
        say(root, WARNING, text)
    if observing:
        from safemem.boot import observe  # most policies act

        done = observe.give_back(root, snapshot)
        done = done._replace(problems=(*problems, *done.problems))
        files.replace(root, record.RECORD, record.record_text(snapshot, decision, done))
        _write_env(root, decision, "", finished=True, dry_run=True)
        return 0
    if "dry-run" in snapshot.overrides and policy.allow_cmdline_override:
        return _dry_run(root, snapshot, decision)
    if decision.action in FINAL:
        must = decision.action == "reboot"
        for text in _count(root, policies, snapshot, whole=False, must=must):
            say(root, WARNING, text)
        return _end(root, policy, decision.action, "decided", decision.message)
    return _carry_out(root, policies, snapshot, decision, limits, [*problems, *probe.unseen(snapshot.notes)])


def _policy(root: str, path: str) -> Policy:
    return compiled.load(files.read(root, path, compiled.MAX_SIZE + 1), path)


def _named(root: str, policy: Policy, cmdline: str | None) -> tuple[Policy, ...] | None:
    """Return the policies beside the built-in one that have a say: the one that the command line names, if it is built in.

    If the command line cannot be read, it is all of them: it may have named any. None is a name that is not built in.
    """
    wanted = argument(cmdline or "", NAMED)
    if cmdline is not None and wanted is None:
        return ()
    try:
        shown = sorted(files.names(root, POLICIES))
    except FileNotFoundError:  # none was built in; anything else is a failure
        shown = []
    # Compared, never opened by the name: nothing that is written on a command line leads elsewhere.
    asked = [name for name in shown if cmdline is None or name == f"{wanted}.json"]
    return tuple(_policy(root, f"{POLICIES}/{name}") for name in asked) if asked or wanted is None else None


def _counting(policy: Policy, named: tuple[Policy, ...] | None, cmdline: str | None) -> tuple[Policy, ...]:
    loosens = policy.allow_cmdline_override and cmdline is not None
    return stricter.counting(policy, named or (), loosens=loosens)


def _decide(
    policy: Policy, named: tuple[Policy, ...] | None, snapshot: Snapshot, cmdline: str | None
) -> tuple[Decision, tuple[str, ...]]:
    """Return what the built-in policy says, with those that `named` returned beside it, which may only be stricter.

    And what may be exposed, by each policy that ends the boot over it.
    """
    first, *others = _counting(policy, named, cmdline)
    decision = engine.decide(first, snapshot)
    said = [decision]
    if first is not policy and cmdline is not None:
        decision = stricter.instead(decision)
    if named is None:
        wanted = argument(cmdline or "", NAMED)
        text = f"{NAMED}={wanted} on the command line is ignored: no policy of that name is built in"
        decision = decision._replace(warnings=(Note("named-policy-missing", text), *decision.warnings))
    for other in others:
        said.append(engine.decide(other, snapshot))
        join = stricter.both if cmdline is None else stricter.choose
        decision = join(decision, said[-1], snapshot)
    if named and not others and first is policy and cmdline is not None:
        decision = stricter.ignored(decision, named[0].name)
    ends = [one.rule.exposed_max for one in said if one.rule.on_shortfall in FINAL]
    return decision, tuple(dict.fromkeys(ends)) or (decision.rule.exposed_max,)


def _dry_run(root: str, snapshot: Snapshot, decision: Decision) -> int:
    """Leave everything as it was before the hold."""
    files.replace(root, record.RECORD, record.record_text(snapshot, decision, record.Done(dry_run=True)))
    hold.unhold(root, str(snapshot.facts["auto_online"].value))
    say(root, WARNING, "safemem.dry_run on the command line: nothing of this is done")
    _write_env(root, decision, "", finished=True, dry_run=True)
    return 0


def _carry_out(
    root: str,
    policies: tuple[Policy, ...],
    snapshot: Snapshot,
    decision: Decision,
    limits: tuple[str, ...],
    held: list[Note],
) -> int:
    """Act, compare, account, complete the record, and end the boot if what was reached is too little.

    Args:
        policies: the one that is built in first, then those that were asked as well.
        limits: what may be exposed, as `_decide` returned it.
        held: what `hold` could not hold, and what could not be looked at.
    """
    arrivals = "hold" if decision.holds else hold.ONLINE_WORD[decision.arrivals]
    _write_env(root, decision, arrivals, finished=False)
    masked, problems = _keep_others_off(root, snapshot, decision)
    patience = policies[0].on_failure.deadline / 2
    result = apply.carry_out(decision.plan, root, console.Counter(root).step, patience)
    taken = {**record.read_taken(root), **result.taken}
    if taken:
        files.replace(root, record.TAKEN, "".join(f"{number} {seconds}\n" for number, seconds in taken.items()))
    after, more = _after(root, snapshot, decision, result)
    result = result._replace(problems=(*result.problems, *more), exposed=result.exposed or bool(more))
    shares = account.account(
        decision,
        snapshot,
        after,
        _guarded(root, snapshot),
        result.refused,
        taken,
    )
    totals = account.totals(shares)
    short = _shortfall(decision, limits, result, [*held, *problems, *probe.unseen(result.problems)], totals)
    ends = bool(short) and decision.rule.on_shortfall != "continue"
    whole = decision.action == "online-all" and not ends
    problems += _count(root, policies, snapshot, whole=whole, must=ends and decision.rule.on_shortfall == "reboot")
    done = record.Done(
        complete=result.complete and not held and not problems,
        bytes_onlined=result.onlined,
        bytes_wanted=result.wanted,
        bytes_quarantined=result.quarantined,
        masked=tuple(masked),
        problems=(*held, *problems, *result.problems),
        shortfall=short,
    )
    text = record.record_text(snapshot, decision, done, account.to_json(shares), totals)
    files.replace(root, record.RECORD, text)
    for text in (*result.problems, *problems):
        say(root, WARNING, text)
    quarantine = f", {size_text(result.quarantined)} taken offline" if result.quarantined else ""
    say(root, NOTICE, f"done: {size_text(result.onlined)} of {size_text(result.wanted)} onlined{quarantine}")
    say(root, NOTICE, account.totals_text(totals))
    if ends:
        return _end(root, policies[0], decision.rule.on_shortfall, "shortfall", short)
    _write_env(root, decision, arrivals, finished=True)
    return 0


def _keep_others_off(root: str, snapshot: Snapshot, decision: Decision) -> tuple[list[str], list[Note]]:
    """Hide what would online held memory, and keep a crash kernel out of the guard; return what was hidden, and what could not be."""
    names = compiled.names(files.read(root, MASKS), MASKS) if decision.holds else []
    problems: list[Note] = []
    # Where it cannot be read, it may be reserved.
    asked = snapshot.guard or (snapshot.facts["guard"].value == UNKNOWN and crashkernel.may_be_reserved(root))
    if asked and decision.action != "online-all":
        problems, units = crashkernel.forbid(root)
        names += units
        if units:
            text = "kdump's units are masked; a crash kernel loaded by hand would overwrite the guard"
            say(root, WARNING, text)
    return names, problems + hold.mask(root, names)


def _guarded(root: str, snapshot: Snapshot) -> tuple[account.Guarded, ...]:
    """Return what the guards reserve now. Gigantic pages that any program can map guard nothing, nor do those of which nobody knows where they are."""
    crash = crashkernel.left(root, snapshot.guard)
    found = [account.Guarded(crash)] if crash else []
    if snapshot.gigantic:
        from safemem.boot import gigantic  # most boots have none

        pages = gigantic.now(root, snapshot.gigantic, snapshot.block_size, snapshot.blocks)
        if gigantic.kept(root, pages):
            found += [account.Guarded(area, gigantic.WRITTEN) for item in pages if item.placed for area in item.ranges]
    return tuple(sorted(found))


def _after(
    root: str, snapshot: Snapshot, decision: Decision, result: apply.Result
) -> tuple[tuple[Blocks, ...], list[Note]]:
    """Return the blocks as they are now, none if that cannot be told; and what has arrived and is online though it should be held."""
    try:
        after = result.after or memory.states(root)
    except OSError as error:
        if not decision.holds or result.exposed:  # said already, or nothing to say
            return (), []
        text = f"whether memory that arrived stayed offline cannot be told: {error.filename or root}: {files.reason(error)}"
        return (), [Note("not-looked-at", text)]
    if not decision.holds or not snapshot.block_size:  # without a size no block has a place, which is a problem already
        return after, []
    size, known = snapshot.block_size, tuple(Range(run.first, run.last + 1) for run in snapshot.blocks)
    held = plan.held(decision.action, snapshot._replace(blocks=after), decision.region, decision.policy.memory)
    online = tuple(Range(run.first, run.last + 1) for run in after if run.state == "online")
    new = tuple(Range(area.start * size, area.end * size) for area in without(online, known))
    return after, [
        Note("onlined-by-others", f"{area} ({size_text(area.size)}) has arrived since, and somebody has onlined it")
        for area in common(new, merge_ranges(held))
    ]


def _shortfall(
    decision: Decision, limits: tuple[str, ...], result: apply.Result, problems: list[Note], totals: dict[str, int]
) -> str:
    """Return in which way less was reached than was decided, or nothing; `limits` are what may be exposed, "" no refusal."""
    whole, exposed = sum(totals.values()), totals["exposed"]
    for allowed in limits:
        if allowed and whole:  # without a block in the account, nothing shows that the limit is kept
            limit = parse_limit(allowed, whole)
            if exposed > limit:
                return (
                    f"{size_text(exposed)} of {size_text(whole)} are exposed,"
                    f" and the policy allows {allowed}, {size_text(limit)}"
                )
        elif decision.action == "online-all" and (result.missed or result.exposed):
            return f"memory that should be in use is not: {result.problems[0]}"
        elif result.exposed:
            return f"memory that should be held is online: {result.problems[0]}"
    # A hold that somebody else can end is none: what could not be masked, forbidden or looked at counts as well.
    counts = tuple(problems) if decision.holds else probe.unseen(tuple(problems))
    return counts[0] if counts else ""


def _count(root: str, policies: tuple[Policy, ...], snapshot: Snapshot, *, whole: bool, must: bool) -> list[Note]:
    """Keep count of boots in a row that did not online all memory, if a policy asks and firmware can keep it.

    Returns what went wrong, one sentence.

    Raises:
        OSError: it `must` be counted, because a reboot would find the same state again. Panic and halt end as decided:
            what `on_failure` says instead could be a reboot.
    """
    fact = snapshot.facts["boot_attempts"]
    asked = (c.fact for policy in policies for rule in policy.rules for c in rule.when)
    if not attempts.in_firmware(fact) or "boot_attempts" not in asked:
        return []
    number = attempts.following(fact, whole)
    # Flash wears off: what is there already is not written again.
    failed = None if number == fact.value else attempts.keep(root, number)
    if failed and must:
        raise OSError(failed)
    return [failed] if failed else []


def _write_env(root: str, decision: Decision, arrivals: str, *, finished: bool, dry_run: bool = False) -> None:
    why = record.why_text(decision.action, decision.rule.name, decision.policy.name)
    short = decision.rule.on_shortfall if arrivals == "hold" else ""
    text = record.env_text(
        arrivals, why, enter=decision.rule.enter, on_shortfall=short, finished=finished, dry_run=dry_run
    )
    files.replace(root, record.ENV, text)


def _end(root: str, policy: Policy, action: str, code: str, reason: str) -> int:
    """End the boot; return what the wrapper makes of that if it cannot. That of a `policy` that observes would go on."""
    console.end(root, action, code, reason)
    return _HALT if action == "halt" or policy.observe else _FAILED
