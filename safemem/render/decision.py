# SPDX-License-Identifier: MIT
"""Decisions as text for people and JSON for programs. Nothing here decides or reads a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

import click

from safemem.boot import account, conditions, record
from safemem.boot.model import FINAL, UNKNOWN, Decision, Fact, Policy, Rule, Snapshot, Step
from safemem.boot.ranges import Range, blocks_text, merge_ranges, size_text, spans, without
from safemem.host.reader import Record
from safemem.policy.forecast import Forecast, reached
from safemem.render.text import clean, fit, rooted, sure, width

COLOUR = {"online-all": "green", "online-safe": "yellow", "panic": "red", "reboot": "red", "halt": "red"}


class Sign(NamedTuple):
    """How the map draws one kind of step."""

    sign: str
    legend: str
    colour: str | None
    rank: int  #: of the kinds in one cell, the highest is shown


#: By the step's op, in the order of the legend. A guard that is given back is not drawn: its blocks are.
SIGNS = {
    "online": Sign("+", "comes online", "green", 1),
    "keep": Sign("#", "online already", None, 0),
    "hold": Sign(".", "held", "yellow", 3),
    "offline": Sign("q", "taken offline", "magenta", 0),
    "keep-guard": Sign("G", "guarded", "cyan", 4),
}
#: Memory that should not be in use, and is.
_LATE = Sign("!", "stays online, unprotected", "red", 5)
_NO_MEMORY = Sign(" ", "", None, 0)
VERBS = {
    "online": "online",
    "hold": "hold",
    "keep": "leave online",
    "offline": "take offline",
    "release-guard": "give back guard",
    "keep-guard": "keep guard",
}


class Simulation(NamedTuple):
    """What `simulate` shows."""

    decision: Decision
    snapshot: Snapshot
    forecast: Forecast
    faults: tuple[str, ...] = ()  #: why no machine can be in this state
    record: Record | None = None  #: of the boot that it was taken from
    asked: frozenset[str] = frozenset()  #: facts that the policy asks for


def simulation_json(shown: Simulation, exit_code: int) -> str:
    """Return the decision, what comes of it and the snapshot it follows from as JSON, schema 1."""
    found, happened = shown.forecast, shown.record
    document: dict[str, object] = {
        "schema": record.SCHEMA,
        "kind": "simulation",
        "exit_code": exit_code,
        "impossible": list(shown.faults),
        "decision": record.decision_to_json(shown.decision),
        "outcome": {
            "ends": found.ends or None,
            "shortfall": found.short or None,
            "sure": found.sure,
            "totals": dict(found.totals) or None,
            "exposed_limit": found.limit if found.limit >= 0 else None,
            "stays_online": [{"range": area, "why": why} for area, why in _spans(found.stays, shown.snapshot)],
        },
    }
    if happened:
        done = happened.done
        document["happened"] = {
            "action": happened.decision.action,
            "rule": happened.decision.rule.name,
            "policy": happened.decision.policy.name,
            "ends": ended(happened) or None,
            "shortfall": (done.shortfall or None) if done else None,
            "totals": account.totals(happened.account) if happened.account else None,
        }
    return json.dumps({**document, "snapshot": record.snapshot_to_json(shown.snapshot)}, indent=1)


def ended(happened: Record) -> str:
    """Return the action that ended a boot on record; "" if it went on, or nobody knows."""
    rule, done = happened.decision.rule, happened.done
    if done and (done.dry_run or done.observed):
        return ""
    if rule.action in FINAL:
        return rule.action
    return rule.on_shortfall if done and done.shortfall and rule.on_shortfall in FINAL else ""


def action_text(action: str) -> str:
    """Return an action in its colour."""
    return click.style(action, fg=COLOUR[action], bold=True)


def simulation_text(shown: Simulation, *, where: str) -> str:
    """Return the outcome, then why, then the plan, then what comes of it, and what is not protected or not known."""
    shown, where = clean(shown), clean(where)
    decision, snapshot = shown.decision, shown.snapshot
    head = f"{action_text(decision.action)}  {decision.message}"
    if decision.action not in FINAL and shown.forecast.ends:
        head = f"{action_text(decision.action)}, then {action_text(shown.forecast.ends)}  {decision.message}"
    lines = [head, *(f"impossible: no machine shows this: {fault}" for fault in shown.faults), ""]
    lines += [
        f"policy  {decision.policy.name}  {decision.policy.digest[:12]}",
        f"state   {where}",
        f"rule    {decision.rule.name}",
    ]
    if decision.rule.enter:
        lines.append(f"enter   {decision.rule.enter}")
    lines += ["", "why", *_why(decision), "", "plan"]
    if decision.action in FINAL:
        lines.append(f"  {decision.action} before any memory is onlined; memory stands as follows")
    todo = reached(decision, shown.forecast)
    lines += [f"  {text}" for text in _steps(todo, snapshot)] or ["  no memory blocks to act on"]
    drawn = memory_map(todo, width() - 2, final=decision.action in FINAL)
    if drawn:
        lines += ["", *(f"  {line}" for line in drawn)]
    lines += ["", "outcome", *(f"  {text}" for text in outcome(shown))]
    if decision.warnings:
        lines += ["", "not protected", *(f"  {text}" for text in decision.warnings)]
    lines += _unknown(shown)
    return fit("\n".join(lines))


def _unknown(shown: Simulation) -> list[str]:
    """Return what nobody knows: with the reason, if the policy asks for it."""
    unknown: dict[str, list[str]] = {}
    rest = []
    for name, fact in shown.decision.facts.items():
        if fact.value == UNKNOWN and name in shown.asked:
            unknown.setdefault(rooted(f"{fact.source}: {fact.reason}"), []).append(name)
        elif fact.value == UNKNOWN:
            rest.append(name)
    lines = [f"  {', '.join(names)}, for which the policy asks: {why}" for why, names in unknown.items()]
    lines += [f"  {rooted(note)}" for note in shown.snapshot.notes]
    if rest:
        lines.append(
            f"  and, for which it does not ask: {', '.join(rest)}"
            if lines
            else f"  {', '.join(rest)}: the policy does not ask"
        )
    return ["", "not known", *lines] if lines else []


def _why(decision: Decision) -> list[str]:
    lines = [
        f"  not `{miss.rule}`: {miss.fact} is {miss.fact_value}, it wants {miss.wanted}" for miss in decision.misses
    ]
    named = f"`{decision.rule.name}`"
    lines.append(f"  so {named} decides" if decision.misses else f"  {named} is the first rule, and matches")
    asked = [condition.fact for condition in decision.rule.when]
    beside = ["guard"] if decision.facts["guard"].value not in ("none", UNKNOWN) else []
    beside += ["safe_region"] if decision.action == "online-safe" else []
    for name in dict.fromkeys(["handover", *(miss.fact for miss in decision.misses), *asked, *beside]):
        fact = decision.facts.get(name)
        if fact is None:  # `safemem=off` is no fact
            continue
        lines.append(f"  {name} = {conditions.fact_text(fact.value)}{sure(decision.facts, name)}  {_read(fact)}")
    return lines


def _read(fact: Fact) -> str:
    """Return where a fact was read and how it follows, in brackets; of paths that it names each begins at the root."""
    return rooted(f"({fact.source}{f': {fact.reason}' if fact.reason else ''})")


def outcome(shown: Simulation) -> Iterator[str]:
    """Yield what comes of the decision, one sentence a line: the end, memory, and what holds for the rest of the boot."""
    decision, found, happened = shown.decision, shown.forecast, shown.record
    rule = decision.rule
    if found.observed:
        yield "nothing of this is done, because the policy only observes: memory comes online as Linux alone onlines it"
    elif found.dry_run:
        yield "nothing of this is done: safemem.dry_run on the command line"
    elif rule.action in FINAL:
        yield f"{rule.action}: the boot ends here; memory that is not online stays untouched until the reset"
    else:
        if found.totals and any(found.totals.values()):
            yield f"{'' if found.sure else 'at best '}{account.totals_text(dict(found.totals))}"
        yield from _shortfall(rule, found)
        if not found.ends:
            yield from _later(decision)
    for name in (text.removeprefix("policy=") for text in shown.snapshot.overrides if text.startswith("policy=")):
        yield f"the command line names policy `{name}`, which is not looked at here: it may make this stricter"
    if happened:
        yield from _happened(happened)


def _shortfall(rule: Rule, found: Forecast) -> Iterator[str]:
    share = f", {size_text(found.limit)}," if rule.exposed_max.endswith("%") else ""
    beyond = f"more than {rule.exposed_max}{share} is exposed" if rule.exposed_max else "anything refuses"
    if found.ends:
        yield f"on_shortfall = {rule.on_shortfall}: {found.short}"
    elif rule.on_shortfall in FINAL:
        kept = (
            ""
            if found.sure
            else "; as far as this state tells that is not so, and a page that cannot be moved may make it so"
        )
        yield f"on_shortfall = {rule.on_shortfall} if {beyond}{kept}"
    elif found.short:
        yield f"on_shortfall = continue: the boot goes on, although {found.short}"


def _later(decision: Decision) -> Iterator[str]:
    rule = decision.rule
    if rule.enter:
        yield f"enter = {rule.enter}: the boot goes on to it, and no guest starts by itself"
    holds = any(step.op in ("hold", "offline", "keep-guard") for step in decision.steps)
    if decision.arrivals:
        yield f"memory that arrives later comes online in zone {decision.arrivals}"
    elif rule.action == "online-all":
        yield "memory that arrives later waits for `watch`, which tells by the exceptions what comes online"
    else:
        yield "memory that arrives later is held, but for what lies in the safe region"
    if holds:
        also = {"offline": ", taken offline again", "report": ""}[rule.if_onlined]
        yield f"if_onlined = {rule.if_onlined}: held memory that somebody onlines is reported and counted{also}"
    if rule.quiesce:
        yield f"quiesce = {rule.quiesce}: PCI functions without a driver stop writing to memory before any is touched"
    if rule.final:
        yield "final = true: `release` ends this hold only with --force"


def _happened(happened: Record) -> Iterator[str]:
    rule, done, end = happened.decision.rule, happened.done, ended(happened)
    by = f"{rule.action} by rule `{rule.name}` of policy `{happened.decision.policy.name}`"
    if done is None:
        yield f"happened: {by}; " + ("the boot ended in it" if end else "the boot program did not complete its record")
    elif done.dry_run or done.observed:
        yield f"happened: nothing: {'a dry run' if done.dry_run else 'an observed boot'} of {by}"
    else:
        totals = f"; {account.totals_text(account.totals(happened.account))}" if happened.account else ""
        short = f"; {end or 'went on'}: {done.shortfall}" if done.shortfall else ""
        yield f"happened: {by}{totals}{short}"


def _spans(stays: Mapping[int, str], snapshot: Snapshot) -> list[tuple[str, str]]:
    return spans(stays, snapshot.block_size) if stays else []


def trace_text(policy: Policy, decision: Decision) -> str:
    """Return every rule up to the one that decides, with each of its conditions, what it met and where that was read."""
    policy, decision = clean(policy), clean(decision)
    lines = ["trace"]
    for rule in (*policy.rules, policy.otherwise):
        decides = rule == decision.rule
        lines.append(f"  rule `{rule.name}`: {'decides' if decides else 'does not match'}")
        for condition in rule.when:
            fact = decision.facts[condition.fact]
            held = conditions.matches(condition, fact)
            sign = click.style("holds", fg="green") if held else click.style("fails", fg="red")
            lines.append(
                f"    {sign}  {condition.fact} wants {conditions.wanted_text(condition)};"
                f" it is {conditions.fact_text(fact.value)}  {_read(fact)}"
            )
        if not rule.when:
            lines.append("    asks for nothing")
        if decides:
            break
    return "\n".join(lines)


def _steps(steps: tuple[Step, ...], snapshot: Snapshot) -> list[str]:
    """Return the steps, cut where a NUMA node ends if there are several."""
    nodes = {run.node for run in snapshot.blocks}
    if len(nodes) < 2:
        return [_step_text(step) for step in steps]
    size, texts = snapshot.block_size, []
    for step in steps:
        if step.first < 0:
            texts.append(_step_text(step))
            continue
        inside = [run for run in snapshot.blocks if run.first <= step.last and step.first <= run.last]
        for node, runs in groupby(inside, key=lambda run: run.node):
            pieces = list(runs)
            first, last = max(step.first, pieces[0].first), min(step.last, pieces[-1].last)
            piece = step._replace(start=first * size, end=(last + 1) * size, first=first, last=last)
            texts.append(_step_text(piece, f"  node {node}" if node >= 0 else "  node unknown"))
    return texts


def _step_text(step: Step, node: str = "") -> str:
    blocks = f"  {blocks_text(step.first, step.last + 1)}" if step.first >= 0 else ""
    zone = f"  zone {step.zone}" if step.zone else ""
    why = f"  ({step.why})" if step.why else ""
    area = f"{Range(step.start, step.end)!s:<28}{size_text(step.size):>9}"
    return f"{VERBS[step.op]:<16}{area}{node}{blocks}{zone}{why}"


def memory_map(steps: tuple[Step, ...], columns: int = 80, *, final: bool = False) -> list[str]:
    """Return the steps as one bar of physical memory, holes kept, with its addresses, and its legend.

    A cell that covers more than one kind shows the worst: what is unprotected, then what is kept back. So the map may
    understate what comes online, never what is at stake.
    """
    guarded = merge_ranges(tuple(Range(step.start, step.end) for step in steps if step.op == "keep-guard"))
    spans = [
        (area.start, area.end, _LATE if step.late and step.op == "keep" and not final else SIGNS[step.op])
        for step in steps
        if step.op in SIGNS
        # A block that lies in a guard stays online by name only.
        for area in without((Range(step.start, step.end),), guarded if step.op == "keep" else ())
    ]
    if not spans:
        return []
    low, high = min(s for s, _, _ in spans), max(e for _, e, _ in spans)
    cells_at_most = max(16, min(64, columns - len(f"0x{low:x} [] 0x{high - 1:x}")))
    cell = max(1, -(-(high - low) // cells_at_most))
    cells = []
    for start in range(low, high, cell):
        signs = [sign for s, e, sign in spans if s < start + cell and start < e]
        cells.append(max(signs, key=lambda sign: sign.rank) if signs else _NO_MEMORY)
    bar = "".join(click.style(sign.sign * len(list(run)), fg=sign.colour) for sign, run in groupby(cells))
    words = [f"{sign.sign} {sign.legend}" for sign in (*SIGNS.values(), _LATE) if sign in cells]
    legend = click.wrap_text(
        "   ".join(word.replace(" ", "\0") for word in [*words, f"one sign is {size_text(cell)}"]), columns
    )
    return [f"0x{low:x} [{bar}] 0x{high - 1:x}", *legend.replace("\0", " ").splitlines()]
