# SPDX-License-Identifier: MIT
"""Every state of a policy and its outcome: a table, or a list where the terminal is too narrow for one."""

from __future__ import annotations

import json

import click

from safemem.boot import record
from safemem.boot.conditions import fact_text
from safemem.policy.matrix import ANY, Matrix
from safemem.render.decision import COLOUR
from safemem.render.text import clean, rooted, width


def matrix_text(found: Matrix) -> str:
    """Return one row for each group of states with the same outcome."""
    found = clean(found)
    table = [[*found.columns, "decision", "by rule"]]
    for row in found.rows:
        enter = f" + {row.decision.rule.enter}" if row.decision.rule.enter else ""
        table.append(
            [*(", ".join(values) for values in row.values), row.decision.action + enter, row.decision.rule.name]
        )
    widths = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
    actions = [row.decision.action for row in found.rows]
    if sum(widths) + 2 * len(widths) <= width():
        lines = ["  ".join(word.ljust(size) for word, size in zip(row, widths, strict=True)).rstrip() for row in table]
        body = [click.style(line, fg=COLOUR[action]) for line, action in zip(lines[1:], actions, strict=True)]
        lines = [lines[0], "  ".join("-" * size for size in widths), *body]
    else:
        lines = _list(table, actions)
    same = [f"in every row {name} = {fact_text(fact.value)}  ({fact.source})" for name, fact in found.given.items()]
    return rooted("\n".join([*lines, *(["", *same] if same else [])]))


def _list(table: list[list[str]], actions: list[str]) -> list[str]:
    """Return each outcome with its states below it, a group a line; facts that may have any value are left out."""
    head, *rows = table
    groups: dict[tuple[str, str], list[list[str]]] = {}
    for row in rows:
        groups.setdefault((row[-2], row[-1]), []).append(row[:-2])
    colours = {row[-2]: COLOUR[action] for row, action in zip(rows, actions, strict=True)}
    lines = []
    for (decision, rule), states in groups.items():
        lines.append(click.style(f"{decision} by `{rule}`", fg=colours[decision]))
        for state in states:
            words = [f"{name} {value}" for name, value in zip(head, state, strict=False) if value != ANY]
            text = "; ".join(words) or "any state"
            lines.append(click.wrap_text(text, width(), initial_indent="    ", subsequent_indent="        "))
    return lines


def matrix_json(found: Matrix) -> str:
    """Return every state of the matrix with its outcome, schema 1."""
    states = [
        {"facts": state, "action": d.action, "rule": d.rule.name, "enter": d.rule.enter or None, "message": d.message}
        for state, d in found.states
    ]
    given = {name: fact_text(fact.value) for name, fact in found.given.items()}
    return json.dumps(
        {"schema": record.SCHEMA, "kind": "matrix", "exit_code": 0, "given": given, "states": states}, indent=1
    )
