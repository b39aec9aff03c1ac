# SPDX-License-Identifier: MIT
"""`safemem check`, `diff`, `test` and `schema`: what can be known about a policy at a desk."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import click

from safemem.boot.printable import printable
from safemem.cli import codes
from safemem.cli.codes import Code
from safemem.cli.common import InputError, reading, write_whole
from safemem.cli.policies import load_authored, load_policy
from safemem.policy import cases, compare, invariants, reference
from safemem.policy.space import Outcomes, Space, TooLarge
from safemem.render import findings
from safemem.render.text import clean

_DIFF_ENDS = {
    "equal": Code.DONE,
    "stricter": Code.HELD,
    "different": Code.HELD,
    "looser": Code.ENDED,
    "both": Code.ENDED,
}


@click.command(short_help="Prove a policy in every state.")
@click.argument("policy_files", metavar="POLICY...", nargs=-1, required=True)
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "sarif", "junit"]), default="text", show_default=True
)
@click.option("--strict", is_flag=True, help="Let warnings count as errors.")
@click.pass_context
@codes.ends(done="they hold", invalid="one does not, with --strict also if there is a warning")
def check(context: click.Context, policy_files: tuple[str, ...], form: str, strict: bool) -> None:
    """Look at every state that each POLICY can meet, and prove its invariants."""
    results = [_check(path) for path in policy_files]
    if form == "json":
        click.echo(findings.check_json(results))
    elif form == "sarif":
        click.echo(findings.check_sarif(results))
    elif form == "junit":
        click.echo(findings.check_junit(results, strict))
    else:
        click.echo(findings.check_text(results))
    levels = ("error", "warning") if strict else ("error",)
    failed = any(findings.count(result, level) for result in results for level in levels)
    context.exit(Code.INVALID if failed else Code.DONE)


def _check(path: str) -> findings.Checked:
    authored = load_authored(path)
    started = time.monotonic()
    try:
        space = Space(authored.policy)
        hidden = not sys.stderr.isatty() or space.size < 200_000
        bar = click.progressbar(
            length=space.size, label=f"{path}: {space.size:,} states", file=sys.stderr, hidden=hidden
        )
        with bar:
            outcomes = Outcomes(space, authored.policy, lambda done: bar.update(done - bar.pos))
    except TooLarge as error:
        raise InputError(f"{path}:1:1: {error}") from None
    found = [
        findings.Located(path, *authored.place(finding.rule, finding.key), finding)
        for finding in invariants.check(authored.policy, outcomes)
    ]
    found.sort(key=lambda item: (item.line, item.column))
    return findings.Checked(path, authored.policy.name, len(outcomes.of), time.monotonic() - started, tuple(found))


@click.command(short_help="Compare two policies in every state.")
@click.argument("old_file", metavar="OLD")
@click.argument("new_file", metavar="NEW")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
@codes.ends(done="equal", held="different and nowhere looser", ended="looser somewhere", invalid="invalid input")
def diff(context: click.Context, old_file: str, new_file: str, form: str) -> None:
    """Show every state in which policy NEW decides otherwise than OLD, or for another reason."""
    old, new = load_policy(old_file), load_policy(new_file)
    try:
        changes, states = compare.compare(old, new)
    except TooLarge as error:
        raise InputError(f"{new_file}:1:1: {error}") from None
    if form == "json":
        click.echo(findings.diff_json(changes, states))
    else:
        click.echo(findings.diff_text(changes, states, old_file, new_file))
    context.exit(_DIFF_ENDS[findings.verdict(changes)])


@click.command("test", short_help="Run *.cases.toml against their policies.")
@click.argument("case_files", metavar="CASES...", nargs=-1, required=True)
@click.option("--coverage", is_flag=True, help="Say which rules and how many states the cases cover.")
@click.option(
    "--threshold", type=click.IntRange(0, 100), metavar="PERCENT", help="Fail below this coverage; implies --coverage."
)
@click.option("--format", "form", type=click.Choice(["text", "junit"]), default="text", show_default=True)
@click.pass_context
@codes.ends(
    done="every case holds", failure="one does not or the coverage is below the threshold", invalid="invalid input"
)
def test_cases(
    context: click.Context, case_files: tuple[str, ...], coverage: bool, threshold: int | None, form: str
) -> None:
    """Run the cases in CASES (*.cases.toml) against the policy that each names."""
    results = []
    for path in case_files:
        with reading(path):
            results.append(cases.run(Path(path)))
    low = [result for result in results if threshold is not None and result.coverage * 100 < threshold]
    if form == "junit":
        click.echo(_junit(results, threshold))
    else:
        for result in results:
            _print_result(clean(result), coverage or threshold is not None)
        for result in low:
            click.echo(
                f"safemem: {printable(result.file)}: {result.coverage:.0%} are covered, {threshold} % are asked for",
                err=True,
            )
    failed = any(verdict.fault for result in results for verdict in result.verdicts)
    context.exit(Code.FAILURE if failed or low else Code.DONE)


def _print_result(result: cases.Result, coverage: bool) -> None:
    base = os.path.join(os.path.dirname(result.file), "")
    for verdict in result.verdicts:
        if verdict.fault:
            mark = click.style("FAIL", fg="red", bold=True)
            click.echo(f"{result.file}:{verdict.case.line}: {mark} {verdict.case.name}: {verdict.fault}")
            if verdict.example:
                click.echo(f"    in state: {findings.state_text(verdict.example)}")
    held = sum(not verdict.fault for verdict in result.verdicts)
    click.echo(f"{result.file}: {held} of {len(result.verdicts)} cases hold")
    if coverage:
        named = [name for name, seen in result.rules.items() if not seen]
        rest = f"; no case that holds asks for: {', '.join(f'`{name}`' for name in named)}" if named else ""
        click.echo(f"{base}{result.policy.name}: {len(result.rules) - len(named)} of {len(result.rules)} rules{rest}")
        click.echo(
            f"{base}{result.policy.name}: {result.covered:,} of {result.states:,} states ({result.covered / result.states:.0%})"
        )


def _junit(results: list[cases.Result], threshold: int | None) -> str:
    items = []
    for result in results:
        for verdict in result.verdicts:
            items.append(
                findings.Case(result.file, verdict.case.name, verdict.fault, findings.state_text(verdict.example))
            )
        if threshold is not None:
            short = result.coverage * 100 < threshold
            items.append(
                findings.Case(result.file, "coverage", f"{result.coverage:.0%} of {threshold} %" if short else "")
            )
    return findings.junit("safemem test", items)


@click.command(short_help="Write the JSON Schema or the reference.")
@click.option("--output", "-o", metavar="FILE", help="File to write; without it, standard output.")
@click.option("--reference", "page", is_flag=True, help="Write the reference page (Markdown) instead.")
def schema(output: str | None, page: bool) -> None:
    """Write the JSON Schema of policy files, for editors that check TOML by one."""
    text = reference.markdown() if page else json.dumps(reference.schema(), indent=1) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        write_whole(output, text.encode())
