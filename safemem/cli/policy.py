# SPDX-License-Identifier: MIT
"""`safemem check`, `diff`, `test` and `schema`: what can be known about a policy at a desk."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click

from safemem.boot.model import Refused
from safemem.boot.printable import printable
from safemem.cli import codes
from safemem.cli.codes import Code
from safemem.cli.common import FORMAT, InputError, formats, reading, write_whole
from safemem.cli.policies import examine, find_policy, load_policy
from safemem.outgoing import profile
from safemem.policy import case_reference, cases, compare, installed, reference
from safemem.policy.invariants import Finding
from safemem.policy.load import PolicyError, Problem
from safemem.policy.space import TooLarge
from safemem.render import cases as render
from safemem.render import findings

_DIFF_ENDS = {
    "equal": Code.DONE,
    "stricter": Code.HELD,
    "different": Code.HELD,
    "looser": Code.ENDED,
    "both": Code.ENDED,
}


@click.command(short_help="Prove a policy in every state.")
@click.argument("policy_files", metavar="[POLICY...]", nargs=-1)
@formats("sarif", "junit")
@click.option("--strict", is_flag=True, help="Let warnings count as errors.")
@click.pass_context
@codes.ends(done="they hold", invalid="one does not, with --strict also if there is a warning")
def check(context: click.Context, policy_files: tuple[str, ...], form: str, strict: bool) -> None:
    """Look at every state that each POLICY can meet, and prove its invariants.

    Default: /etc/safemem/policy.toml. A name without `.toml` is a shipped policy, - is standard input.
    """
    results = [_check(path) for path in policy_files or (_operators(),)]
    levels = ("error", "warning") if strict else ("error",)
    failed = any(findings.count(result, level) for result in results for level in levels)
    code = Code.INVALID if failed else Code.DONE
    if form == "json":
        click.echo(findings.check_json(results, code))
    elif form == "sarif":
        click.echo(findings.check_sarif(results))
    elif form == "junit":
        click.echo(findings.check_junit(results, strict))
    elif any(result.valid for result in results):
        click.echo(findings.check_text(results))
    context.exit(code)


def _operators() -> str:
    path = f"/{installed.POLICY}"
    if not os.path.lexists(path):
        raise click.UsageError(f"which POLICY? There is no {path}")
    return path


def _check(path: str) -> findings.Checked:
    """Return what was found out about one policy; that it is none ends nothing, for there may be others."""
    started = time.monotonic()
    try:
        return examine(find_policy(path))._replace(seconds=time.monotonic() - started)
    except Refused as error:
        _tell(error)
        problems = error.problems if isinstance(error, PolicyError) else [Problem((), 1, 1, str(error))]
        found = tuple(
            findings.Located(
                path, item.line, item.column, Finding("invalid-policy", "error", "", "", item.message, "", {})
            )
            for item in problems
        )
        return findings.Checked(path, "", 0, found, valid=False)


def _tell(error: Refused) -> tuple[str, ...]:
    """Say what is wrong with one of several files, as is said of one that ends a command; return the lines."""
    lines = error.lines or tuple(str(error).split("\n"))
    for line in lines:
        click.echo(f"safemem: {printable(line)}", err=True)
    return lines


@click.command(short_help="Compare two policies in every state.")
@click.argument("old_file", metavar="OLD")
@click.argument("new_file", metavar="NEW")
@FORMAT
@click.pass_context
@codes.ends(done="equal", held="different and nowhere looser", ended="looser somewhere", invalid="invalid input")
def diff(context: click.Context, old_file: str, new_file: str, form: str) -> None:
    """Show every state in which policy NEW decides otherwise than OLD, or for another reason."""
    old, new = load_policy(old_file), load_policy(new_file)
    try:
        changes, states = compare.compare(old, new)
    except TooLarge as error:
        raise InputError(f"{new_file}:1:1: {error}") from None
    code = _DIFF_ENDS[findings.verdict(changes)]
    if form == "json":
        click.echo(findings.diff_json(changes, states, code))
    else:
        click.echo(findings.diff_text(changes, states, old_file, new_file))
    context.exit(code)


@click.command("test", short_help="Run *.cases.toml against their policies.")
@click.argument("case_files", metavar="CASES...", nargs=-1, required=True)
@click.option(
    "--coverage", is_flag=True, help="Say which rules and states the cases cover, and print the cases that are missing."
)
@click.option(
    "--threshold", type=click.IntRange(0, 100), metavar="PERCENT", help="Fail below this coverage; implies --coverage."
)
@formats("junit")
@click.pass_context
@codes.ends(
    done="every case holds", failure="one does not or the coverage is below the threshold", invalid="invalid input"
)
def test_cases(
    context: click.Context, case_files: tuple[str, ...], coverage: bool, threshold: int | None, form: str
) -> None:
    """Run the cases in CASES (*.cases.toml) against the policy that each names."""
    results: list[cases.Result] = []
    invalid: dict[str, tuple[str, ...]] = {}
    for path in case_files:
        try:
            with reading(path):
                results.append(cases.run(Path(path)))
        except Refused as error:  # it ends nothing: there may be others
            invalid[path] = _tell(error)
    low = [result for result in results if threshold is not None and result.coverage * 100 < threshold]
    failed = low or any(verdict.fault for result in results for verdict in result.verdicts)
    code = Code.INVALID if invalid else Code.FAILURE if failed else Code.DONE
    if form == "junit":
        click.echo(render.junit(results, invalid, threshold))
    elif form == "json":
        click.echo(render.as_json(results, invalid, code, coverage=coverage or threshold is not None))
    else:
        for result in results:
            for line in render.text(result, coverage=coverage or threshold is not None):
                click.echo(line)
    for result in low:
        click.echo(
            f"safemem: {printable(result.file)}: {result.coverage:.0%} are covered, {threshold} % are asked for",
            err=True,
        )
    context.exit(code)


@click.command(short_help="Write the JSON Schema or the reference.")
@click.option("--output", "-o", metavar="FILE", help="File to write; without it, standard output.")
@click.option(
    "--of",
    "what",
    type=click.Choice(["policy", "cases", "profile"]),
    default="policy",
    show_default=True,
    help="Which files.",
)
@click.option("--reference", "page", is_flag=True, help="Write the reference page (Markdown) instead.")
@codes.ends(done="written", failure="nothing was written")
def schema(output: str | None, what: str, page: bool) -> None:
    """Write the JSON Schema of policy files, files of cases or profiles, for editors that check TOML by one.

    With a first line `#:schema ./FILE` in the TOML, editors such as tombi and Even Better TOML show what each key, fact
    and value means. `taplo lint --schema file:///FILE` checks by it.
    """
    if page and what == "profile":
        raise click.UsageError("profiles have a schema, and no page of their own")
    source = {"policy": reference, "cases": case_reference}.get(what)
    document = source.schema() if source else profile.schema()
    text = source.markdown() if page and source else json.dumps(document, indent=1) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        write_whole(output, text.encode())
