# SPDX-License-Identifier: MIT
"""`safemem simulate` and `safemem capture`."""

from __future__ import annotations

import difflib
import itertools
import os
from pathlib import Path

import click

from safemem.boot import engine, probe
from safemem.boot.model import DERIVED, FACTS, UNKNOWN, Blocks, Decision, Fact, Policy, Snapshot
from safemem.cli import codes
from safemem.cli.common import FORMAT, InputError, reading, write_whole
from safemem.cli.policies import load_policy
from safemem.host import reader, verdict
from safemem.render import decision as render

#: A machine to imagine when none is given: 1 GiB of boot memory, 1 GiB held, in blocks of 128 MiB.
_IMAGINED = (Blocks(0, 7, "online", 0), Blocks(32, 39, "offline", 0))


@click.command(short_help="Show what a policy decides, and do nothing.")
@click.argument("policy_file", metavar="POLICY")
@click.option("--live", is_flag=True, help="Use the state of this machine, read-only.")
@click.option("--state", metavar="FILE", help="Use a capture, or the record of a boot.")
@click.option("--root", metavar="DIR", help="Use the /sys, /proc and /dev below DIR.")
@click.option("--set", "changes", metavar="FACT=VALUE", multiple=True, help="Change a fact; may be repeated.")
@click.option("--matrix", is_flag=True, help="Show the outcome of every handover state.")
@click.option(
    "--explain",
    is_flag=True,
    help="For each rule, show which condition held, which failed, and where the fact was read.",
)
@FORMAT
@click.pass_context
@codes.ends(
    done="memory comes online", held="memory is held back", ended="panic, reboot or halt", invalid="invalid input"
)
def simulate(
    context: click.Context,
    policy_file: str,
    live: bool,
    state: str | None,
    root: str | None,
    changes: tuple[str, ...],
    matrix: bool,
    explain: bool,
    form: str,
) -> None:
    """Show what POLICY decides, without doing any of it.

    Without --live, --state or --root the state is imagined: every fact unknown but those that
    --set gives, 1 GiB of memory online and 1 GiB held.
    """
    if sum((live, state is not None, root is not None)) > 1:
        raise click.UsageError("--live, --state and --root exclude each other")
    policy = load_policy(policy_file)
    snapshot, where = _snapshot(policy, live, state, root)
    for change in changes:
        snapshot = _with_fact(snapshot, change)
    if explain and (matrix or form == "json"):
        raise click.UsageError("--explain is for the text of one decision; JSON has `not_matched`")
    if matrix:
        facts, rows = _matrix(policy, snapshot)
        click.echo(render.matrix_json(rows) if form == "json" else render.matrix_text(rows, facts))
        return
    decision = engine.decide(policy, snapshot)
    code = codes.of(verdict.decided(decision))
    if form == "json":
        click.echo(render.decision_json(decision, snapshot, code))
    else:
        click.echo(render.decision_text(decision, snapshot, where=" ".join([where, *(f"{c}" for c in changes)])))
        if explain:
            click.echo("\n" + render.trace_text(policy, decision))
    context.exit(code)


@click.command(short_help="Write the state of this machine to a file.")
@click.option("--output", "-o", metavar="FILE", required=True, help="File to write; - for standard output.")
@click.option("--root", metavar="DIR", default="/", help="Read the /sys, /proc and /dev below DIR.")
def capture(output: str, root: str) -> None:
    """Write the state of this machine to FILE, for `simulate --state` elsewhere."""
    text = reader.capture_text(_probe(root))
    if output == "-":
        click.echo(text, nl=False)
    else:
        write_whole(output, text.encode())


def _snapshot(policy: Policy, live: bool, state: str | None, root: str | None) -> tuple[Snapshot, str]:
    if state is not None:
        try:
            with reading(state):
                return reader.snapshot_from_text(Path(state).read_text("utf-8"), state), f"captured in {state}"
        except UnicodeDecodeError:
            raise InputError(f"{state}: this is not a capture: it is not text") from None
    if live or root is not None:
        return _probe(root or "/", open_luo=policy.open_luo and live), "this machine" if live else f"below {root}"
    facts = {name: Fact(UNKNOWN, "imagined", "not given by --set") for name in FACTS if name not in DERIVED}
    return Snapshot(facts, 128 << 20, _IMAGINED, (), "", ()), "imagined"


def _probe(root: str, *, open_luo: bool = False) -> Snapshot:
    if not os.path.isdir(os.path.join(root, "sys/kernel")):
        raise InputError(f"{os.path.join(root, 'sys/kernel')}: there is no such folder; is sysfs mounted below {root}?")
    return probe.read_snapshot(root, open_luo=open_luo)


def _with_fact(snapshot: Snapshot, change: str) -> Snapshot:
    """Return `snapshot` with one fact set by hand. Raises UsageError."""
    name, equals, text = change.partition("=")
    if not equals:
        raise click.UsageError(f"--set `{change}`: expected FACT=VALUE")
    if name not in FACTS:
        raise click.UsageError(f"--set `{name}`: there is no such fact{_suggest(name, list(FACTS))}")
    kind, values = FACTS[name]
    value: str | int | tuple[str, ...] = text
    if kind == "set" and text not in values:
        raise click.UsageError(
            f"--set {name}: `{text}` is not one of {', '.join(values)}{_suggest(text, list(values))}"
        )
    if kind == "number" and text != UNKNOWN:
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise click.UsageError(f"--set {name}: `{text}` is not a whole number")
        value = int(text)
    elif kind == "names" and text != UNKNOWN:
        value = tuple(sorted(item for item in text.split(",") if item))
    return snapshot._replace(facts={**snapshot.facts, name: Fact(value, "--set")})


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(known)}"


def _matrix(policy: Policy, snapshot: Snapshot) -> tuple[list[str], list[tuple[dict[str, str], Decision]]]:
    """Return every combination of the closed facts that the policy asks for, handover first, and what it decides."""
    asked = {condition.fact for rule in policy.rules for condition in rule.when}
    facts = ["handover"] + [
        name for name in FACTS if name in asked and name not in (*DERIVED, "handover") and FACTS[name][0] == "set"
    ]
    rows = []
    for values in itertools.product(*(FACTS[name][1] for name in facts)):
        state = dict(zip(facts, values, strict=True))
        made = {name: Fact(value, "--matrix") for name, value in state.items()}
        rows.append((state, engine.decide(policy, snapshot._replace(facts={**snapshot.facts, **made}))))
    return facts, rows
