# SPDX-License-Identifier: MIT
"""What `check`, `diff` and `test` found: as text, JSON, SARIF 2.1.0 and JUnit XML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

import click

from safemem.boot.conditions import fact_text
from safemem.boot.model import Rule
from safemem.policy.catalogue import CODES
from safemem.policy.compare import EFFECT, Beside, Change
from safemem.policy.compiler import plain
from safemem.policy.exceptions import text_of
from safemem.policy.invariants import Finding
from safemem.policy.space import Value
from safemem.render.text import clean, fit, plural

SCHEMA = 1
_COLOUR = {"error": "red", "warning": "yellow", "note": "cyan"}
SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


class Located(NamedTuple):
    """A finding and its place."""

    file: str
    line: int
    column: int
    finding: Finding


class Checked(NamedTuple):
    """What was found out about one policy."""

    file: str
    policy: str
    states: int
    found: tuple[Located, ...]
    seconds: float = 0
    valid: bool = True  #: the file is a policy; if not, what is wrong with it is all that was found


def state_text(state: dict[str, Value]) -> str:
    """Return a state as the options that make `simulate` show it."""
    return " ".join(f"--set {name}={shlex.quote(_value(value))}" for name, value in state.items())


def _value(value: Value) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def check_text(results: list[Checked]) -> str:
    """Return the findings as a compiler would print them, and one line a policy."""
    text = []
    for result in clean(results):
        if not result.valid:
            continue
        for item in result.found:
            text += lines(item, click.style(item.finding.level, fg=_COLOUR[item.finding.level], bold=True))
        errors, warnings = (count(result, level) for level in ("error", "warning"))
        accepted = sum(is_accepted(item.finding) for item in result.found)
        good = "all invariants hold" if not errors + accepted else plural(errors, "error")
        more = f", {plural(accepted, 'error')} accepted" if accepted else ""
        more += f", {plural(warnings, 'warning')}" if warnings else ""
        text.append(f"{result.file}: {good}{more} ({result.states:,} states in {result.seconds:.2f} s)")
    return fit("\n".join(text))


def is_accepted(finding: Finding) -> bool:
    """Return whether this is an error that the policy accepts by name, which makes a note of it."""
    return finding.level == "note" and CODES[finding.code][0] == "error"


def lines(item: Located, level: str = "") -> list[str]:
    """Return one finding as a compiler would print it; `level` is its level, as it is to be printed."""
    finding = item.finding
    text = [f"{item.file}:{item.line}:{item.column}: {level or finding.level}: {finding.message} [{finding.code}]"]
    if finding.example:
        text.append(f"    try: safemem simulate {item.file} {state_text(finding.example)}")
    if finding.advice:
        text.append(f"    help: {finding.advice}")
    return text


def count(result: Checked, level: str) -> int:
    """Return how many findings have this level."""
    return sum(item.finding.level == level for item in result.found)


def check_json(results: list[Checked], exit_code: int) -> str:
    """Return the findings as JSON, schema 1."""
    policies = [
        {
            "file": result.file, "policy": result.policy if result.valid else None, "states": result.states,
            "findings": [
                {
                    "code": item.finding.code, "level": item.finding.level, "line": item.line, "column": item.column,
                    "rule": item.finding.rule, "message": item.finding.message, "advice": item.finding.advice or None,
                    "example": item.finding.example or None,
                }
                for item in result.found
            ],
        }
        for result in results
    ]  # fmt: skip
    return json.dumps({"schema": SCHEMA, "kind": "check", "exit_code": exit_code, "policies": policies}, indent=1)


def check_sarif(results: list[Checked]) -> str:
    """Return the findings as SARIF 2.1.0 (OASIS)."""
    return sarif([item for result in results for item in result.found])


def sarif(found: list[Located], failed: tuple[str, ...] = ()) -> str:
    """Return a run with these findings, or one that has `failed` for these reasons."""
    codes = list(CODES)
    driver = {
        "name": "safemem",
        "version": version("safemem"),
        "rules": [
            {"id": code, "shortDescription": {"text": text}, "defaultConfiguration": {"level": level}}
            for code, (level, text) in CODES.items()
        ],
    }
    items = [
        {
            "ruleId": item.finding.code,
            "ruleIndex": codes.index(item.finding.code),
            "level": item.finding.level,
            "message": {"text": ". ".join(filter(None, (item.finding.message, item.finding.advice)))},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": quote(item.file)},
                        "region": {"startLine": item.line, "startColumn": item.column},
                    }
                }
            ],
            **(
                {"suppressions": [{"kind": "inSource", "justification": "accept_errors"}]}
                if is_accepted(item.finding)
                else {}
            ),
            "properties": {"example": {name: _value(value) for name, value in item.finding.example.items()}},
        }
        for item in found
    ]
    run: dict[str, object] = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": items}
    if failed:
        told = [{"level": "error", "message": {"text": text}} for text in failed]
        run["invocations"] = [{"executionSuccessful": False, "toolExecutionNotifications": told}]
    return json.dumps({"$schema": SARIF, "version": "2.1.0", "runs": [run]}, indent=1)


class Case(NamedTuple):
    """One line of a JUnit report; `fault` is empty for what passed."""

    suite: str
    name: str
    fault: str = ""
    detail: str = ""


def check_junit(results: list[Checked], strict: bool) -> str:
    """Return one test case for each policy and code."""
    levels = ("error", "warning") if strict else ("error",)
    cases = []
    for result in results:
        for code in CODES if result.valid else ("invalid-policy",):
            bad = [item for item in result.found if item.finding.code == code and item.finding.level in levels]
            text = "\n".join(f"{item.file}:{item.line}:{item.column}: {item.finding.message}" for item in bad)
            cases.append(Case(result.file, code, f"{len(bad)} found" if bad else "", text))
    return junit("safemem check", cases)


def junit(name: str, cases: list[Case]) -> str:
    """Return JUnit XML as build servers read it: one suite a file."""
    top = ElementTree.Element("testsuites", name=name)
    for suite in dict.fromkeys(case.suite for case in cases):
        mine = [case for case in cases if case.suite == suite]
        failed = sum(bool(case.fault) for case in mine)
        node = ElementTree.SubElement(
            top, "testsuite", name=suite, tests=str(len(mine)), failures=str(failed), errors="0"
        )
        for case in mine:
            item = ElementTree.SubElement(node, "testcase", classname=suite, name=case.name)
            if case.fault:
                ElementTree.SubElement(item, "failure", message=case.fault).text = case.detail
    ElementTree.indent(top)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(top, encoding="unicode")


# ---- diff

VERDICTS = {
    "equal": "the same outcome for the same reason in every state",
    "stricter": "stricter somewhere, looser nowhere",
    "looser": "looser somewhere, stricter nowhere",
    "both": "stricter in some states or words, looser in others",
    "different": "different, but neither stricter nor looser",
}


def verdict(changes: list[Change]) -> str:
    """Return one of VERDICTS."""
    directions = {change.direction for change in changes}
    if "both" in directions or {"looser", "stricter"} <= directions:
        return "both"
    for direction in ("looser", "stricter"):
        if direction in directions:
            return direction
    return "different" if changes else "equal"


def diff_text(changes: list[Change], states: int, old: str, new: str) -> str:
    """Return the differences grouped, looser ones first."""
    changes, old, new = clean((changes, old, new))
    lines = []
    colours = {"looser": "red", "both": "red", "stricter": "green"}
    for change in changes:
        head = click.style(change.direction, fg=colours.get(change.direction, "cyan"), bold=True)
        where = "; ".join(
            f"{name} {' or '.join(fact_text(value) for value in values)}" for name, values in change.where.items()
        )
        lines.append(
            f"{head} in {change.states:,} of {states:,} states{f': {where}' if where else ''}"
            if change.states
            else head
        )
        lines += [f"  - {_outcome_text(change.before)}", f"  + {_outcome_text(change.after)}"]
        if change.example:
            lines.append(f"    try: safemem simulate {new} {state_text(change.example)}")
        lines.append("")
    result = verdict(changes)
    return fit("\n".join([*lines, f"{new} against {old}: {click.style(result, bold=True)}: {VERDICTS[result]}"]))


def _outcome_text(side: Rule | Beside) -> str:
    words = ", ".join([side.action, *(_words(side) if isinstance(side, Rule) else ())])
    said = f" ({side.message})" if side.message else ""
    return f"{words} by `{side.name}`{said}"


def _words(rule: Rule) -> list[str]:
    """Return what a rule does beside its action, as far as that is not the default."""
    words = []
    for word in (*_READS, *(word for word in EFFECT if word not in ("action", *_READS))):
        value = getattr(rule, word)
        if value != Rule._field_defaults[word]:
            words.append(_READS[word](rule) if word in _READS else word if value is True else f"{word} {value}")
    return [text for text in words if text]


#: The words that come first, and those that read better otherwise than as a key and its value.
_READS: dict[str, Callable[[Rule], str]] = {
    "zone": lambda rule: f"zone {rule.zone}",
    "enter": lambda rule: f"enter {rule.enter}",
    "boot_memory": lambda rule: f"boot memory {rule.boot_memory}",
    "floor": lambda rule: f"keep {rule.floor} available",
    "on_shortfall": lambda rule: (
        f"on_shortfall {rule.on_shortfall}{rule.exposed_max and f' beyond {rule.exposed_max} exposed'}"
    ),
    "exposed_max": lambda rule: "",  # said with `on_shortfall`, without which it has no effect
    "if_onlined": lambda rule: "onlined by hand: offline again",
    "memory": lambda rule: f"except {text_of(rule.memory)}",
}


def _side(side: Rule | Beside) -> dict[str, object]:
    """Return one side of a difference; text that is empty is null."""
    words = {word: plain(getattr(side, word, Rule._field_defaults.get(word))) for word in EFFECT}
    texts = {"rule": side.name, **words, "message": side.message}
    return {key: None if value == "" else value for key, value in texts.items()}


def diff_json(changes: list[Change], states: int, exit_code: int) -> str:
    """Return the differences as JSON, schema 1."""
    items = [
        {"direction": change.direction, "states": change.states, "where": change.where, "old": _side(change.before),
         "new": _side(change.after), "example": change.example}
        for change in changes
    ]  # fmt: skip
    return json.dumps(
        {
            "schema": SCHEMA, "kind": "diff", "exit_code": exit_code, "verdict": verdict(changes), "states": states,
            "changes": items,
        },
        indent=1,
    )  # fmt: skip
