# SPDX-License-Identifier: MIT
"""What `test` found: as text, JSON and JUnit XML; the command that shows a state that fails, the cases that are missing."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator

import click

from safemem.policy.cases import Result, Verdict
from safemem.policy.missing import case_text, missing
from safemem.policy.space import TooLarge
from safemem.render import findings
from safemem.render.findings import state_text
from safemem.render.text import clean, plural

SCHEMA = 1


def text(result: Result, *, coverage: bool) -> Iterator[str]:
    """Yield what became of one file of cases, and with `coverage` how much of its policy they cover."""
    original, result = result, clean(result)
    base = os.path.join(os.path.dirname(result.file), "")
    for verdict in result.verdicts:
        if verdict.fault:
            mark = click.style("FAIL", fg="red", bold=True)
            yield f"{result.file}:{verdict.case.line}: {mark} {verdict.case.name}: {verdict.fault}"
            if verdict.example:
                yield f"    try: {simulate_text(result, verdict)}"
    held = sum(not verdict.fault for verdict in result.verdicts)
    yield f"{result.file}: {held} of {len(result.verdicts)} cases hold"
    if coverage:
        named = [name for name, seen in result.rules.items() if not seen]
        rest = f"; no case that holds asks for: {', '.join(f'`{name}`' for name in named)}" if named else ""
        yield f"{base}{result.policy.name}: {len(result.rules) - len(named)} of {len(result.rules)} rules{rest}"
        share = result.covered / result.states
        yield f"{base}{result.policy.name}: {result.covered:,} of {result.states:,} states ({share:.0%})"
        if original.uncovered:
            yield f"\n{missing_text(original)}\n"


def simulate_text(result: Result, verdict: Verdict) -> str:
    """Return the command that shows what the policy decides where a case fails, fit to be pasted."""
    machine = f" --machine {shlex.quote(verdict.case.machine)}" if verdict.case.machine else ""
    return clean(f"safemem simulate {shlex.quote(result.policy_file)}{machine} {state_text(verdict.example)}")


def missing_text(result: Result) -> str:
    """Return the cases that the file lacks, fit to be pasted into it; nothing if it lacks none."""
    try:
        found, left = missing(result)
    except TooLarge as error:
        return f"# which cases are missing cannot be listed: {error}"
    if not found:
        return ""
    head = f"# no case describes these states; {plural(len(found), 'case')} to paste, once the outcome is what you want"
    texts = [case_text(clean(item), number) for number, item in enumerate(found, 1)]
    more = [f"# and {left:,} states more: paste these, and ask again"] if left else []
    return "\n\n".join([head, *texts, *more])


def as_json(results: list[Result], invalid: dict[str, tuple[str, ...]], exit_code: int, *, coverage: bool) -> str:
    """Return what became of every file as JSON, schema 1; `invalid` says what is wrong with those that cannot be run.

    With `coverage` the cases that a file lacks are in it, as TOML.
    """
    files: list[dict[str, object]] = [
        {
            "file": result.file, "policy": result.policy.name, "errors": [],
            "cases": [
                {
                    "name": verdict.case.name, "line": verdict.case.line, "holds": not verdict.fault,
                    "fault": verdict.fault or None, "example": verdict.example or None,
                }
                for verdict in result.verdicts
            ],
            "rules": result.rules, "covered": result.covered, "states": result.states,
            "missing": missing_text(result) or None if coverage else None,
        }
        for result in results
    ]  # fmt: skip
    empty: dict[str, object] = {"policy": None, "cases": [], "rules": {}, "covered": 0, "states": 0, "missing": None}
    files += [{"file": file, **empty, "errors": list(lines)} for file, lines in invalid.items()]
    return json.dumps({"schema": SCHEMA, "kind": "test", "exit_code": exit_code, "files": files}, indent=1)


def junit(results: list[Result], invalid: dict[str, tuple[str, ...]], threshold: int | None) -> str:
    """Return one test case for each case, and with a `threshold` one for the coverage of each file."""
    items = [findings.Case(file, "invalid", f"{len(lines)} found", "\n".join(lines)) for file, lines in invalid.items()]
    for result in results:
        for verdict in result.verdicts:
            items.append(findings.Case(result.file, verdict.case.name, verdict.fault, state_text(verdict.example)))
        if threshold is not None:
            short = result.coverage * 100 < threshold
            items.append(
                findings.Case(result.file, "coverage", f"{result.coverage:.0%} of {threshold} %" if short else "")
            )
    return findings.junit("safemem test", items)
