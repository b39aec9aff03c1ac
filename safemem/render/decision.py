# SPDX-License-Identifier: MIT
"""Decisions as text for people and JSON for programs. Nothing here decides or reads a file."""

from __future__ import annotations

import json
from itertools import groupby
from typing import NamedTuple

import click

from safemem.boot import conditions, record
from safemem.boot.model import FINAL, UNKNOWN, Decision, Policy, Snapshot, Step
from safemem.boot.ranges import Range, size_text
from safemem.render.text import clean

_COLOUR = {"online-all": "green", "online-safe": "yellow", "panic": "red", "reboot": "red", "halt": "red"}


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
    "hold": Sign(".", "held", "yellow", 2),
    "offline": Sign("q", "taken offline", "magenta", 0),
    "keep-guard": Sign("G", "guarded", "cyan", 3),
}
_NO_MEMORY = Sign(" ", "", None, 0)
VERBS = {
    "online": "online",
    "hold": "hold",
    "keep": "leave online",
    "offline": "take offline",
    "release-guard": "give back guard",
    "keep-guard": "keep guard",
}


def decision_json(decision: Decision, snapshot: Snapshot, exit_code: int) -> str:
    """Return the decision as JSON, schema 1, with the exit code and the snapshot it follows from."""
    return json.dumps(
        {
            "schema": record.SCHEMA,
            "kind": "simulation",
            "exit_code": exit_code,
            "decision": record.decision_to_json(decision),
            "snapshot": record.snapshot_to_json(snapshot),
        },
        indent=1,
    )


def action_text(action: str) -> str:
    """Return an action in its colour."""
    return click.style(action, fg=_COLOUR[action], bold=True)


def decision_text(decision: Decision, snapshot: Snapshot, *, where: str, width: int = 64) -> str:
    """Return the outcome, then why, then the plan, then what is not protected or not known."""
    decision, snapshot, where = clean(decision), clean(snapshot), clean(where)
    lines = [f"{action_text(decision.action)}  {decision.message}", ""]
    lines += [
        f"policy  {decision.policy.name}  {decision.policy.digest[:12]}",
        f"state   {where}",
        f"rule    {decision.rule.name}",
    ]
    if decision.rule.enter:
        lines.append(f"enter   {decision.rule.enter}")
    lines += ["", "why"]
    for miss in decision.misses:
        lines.append(f"  not `{miss.rule}`: {miss.fact} is {miss.fact_value}, it wants {miss.wanted}")
    lines.append(
        f"  so `{decision.rule.name}` decides"
        if decision.misses
        else f"  `{decision.rule.name}` is the first rule, and matches"
    )
    for name in ("handover", "luo", "guard", "safe_region"):
        fact = decision.facts[name]
        because = f": {fact.reason}" if fact.reason else ""
        lines.append(f"  {name} = {fact.value}  ({fact.source}{because})")
    lines += ["", "plan"]
    if decision.action in FINAL:
        lines.append(f"  {decision.action} before any memory is onlined; memory stands as follows")
    lines += [f"  {_step_text(step)}" for step in decision.steps] or ["  no memory blocks to act on"]
    drawn = memory_map(decision, width)
    if drawn:
        lines += ["", *(f"  {line}" for line in drawn)]
    if decision.warnings:
        lines += ["", "not protected", *(f"  {text}" for text in decision.warnings)]
    unknown: dict[str, list[str]] = {}
    for name, fact in decision.facts.items():
        if fact.value == UNKNOWN:
            unknown.setdefault(f"{fact.source}: {fact.reason}", []).append(name)
    if unknown or snapshot.notes:
        lines += ["", "not known"]
        lines += [f"  {', '.join(names)}: {why}" for why, names in unknown.items()]
        lines += [f"  {note}" for note in snapshot.notes]
    return "\n".join(lines)


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
            because = f": {fact.reason}" if fact.reason else ""
            lines.append(
                f"    {sign}  {condition.fact} wants {conditions.wanted_text(condition)};"
                f" it is {conditions.fact_text(fact.value)}  ({fact.source}{because})"
            )
        if not rule.when:
            lines.append("    asks for nothing")
        if decides:
            break
    return "\n".join(lines)


def _step_text(step: Step) -> str:
    blocks = f"  blocks {step.first}-{step.last}" if step.first >= 0 else ""
    zone = f"  zone {step.zone}" if step.zone else ""
    why = f"  ({step.why})" if step.why else ""
    return f"{VERBS[step.op]:<16}{Range(step.start, step.end)!s:<28}{size_text(step.size):>9}{blocks}{zone}{why}"


def memory_map(decision: Decision, width: int = 64) -> list[str]:
    """Return the plan as one bar of physical memory, holes kept, and its legend.

    A cell that covers more than one kind shows the one that is kept back: the map may
    understate what comes online, never what is held.
    """
    spans = [(step.start, step.end, SIGNS[step.op]) for step in decision.steps if step.op in SIGNS]
    if not spans:
        return []
    low, high = min(s for s, _, _ in spans), max(e for _, e, _ in spans)
    cell = max(1, -(-(high - low) // width))
    cells = []
    for start in range(low, high, cell):
        signs = [sign for s, e, sign in spans if s < start + cell and start < e]
        cells.append(max(signs, key=lambda sign: sign.rank) if signs else _NO_MEMORY)
    bar = "".join(click.style(sign.sign * len(list(run)), fg=sign.colour) for sign, run in groupby(cells))
    legend = "   ".join(f"{sign.sign} {sign.legend}" for sign in SIGNS.values() if sign in cells)
    return [f"0x{low:x} [{bar}] 0x{high - 1:x}", f"{legend}   one sign is {size_text(cell)}"]


def matrix_text(rows: list[tuple[dict[str, str], Decision]], facts: list[str]) -> str:
    """Return one row for each group of states with the same outcome; `facts` are the columns."""
    rows = clean(rows)
    groups: list[tuple[list[set[str]], Decision]] = []
    for state, decision in rows:
        for columns, other in groups:
            same = (decision.action, decision.rule) == (other.action, other.rule)
            # Only the last column is folded: a reader can then still find a state by its first one.
            if same and all(columns[i] == {state[name]} for i, name in enumerate(facts[:-1])):
                columns[-1].add(state[facts[-1]])
                break
        else:
            groups.append(([{state[name]} for name in facts], decision))
    table = [[*facts, "decision", "by rule"]]
    order = {name: [state[name] for state, _ in rows] for name in facts}
    totals = {name: len(set(values)) for name, values in order.items()}
    for columns, decision in groups:
        words = [
            "any" if len(column) == totals[name] > 1 else ", ".join(sorted(column, key=order[name].index))
            for name, column in zip(facts, columns, strict=True)
        ]
        enter = f" + {decision.rule.enter}" if decision.rule.enter else ""
        table.append([*words, decision.action + enter, decision.rule.name])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in table]
    for index, (_, decision) in enumerate(groups, start=1):
        lines[index] = click.style(lines[index], fg=_COLOUR[decision.action])
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def matrix_json(rows: list[tuple[dict[str, str], Decision]]) -> str:
    """Return every state of the matrix with its outcome, schema 1."""
    states = [
        {"facts": state, "action": d.action, "rule": d.rule.name, "enter": d.rule.enter or None, "message": d.message}
        for state, d in rows
    ]
    return json.dumps({"schema": record.SCHEMA, "kind": "matrix", "states": states}, indent=1)
