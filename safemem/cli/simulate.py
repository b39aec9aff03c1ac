# SPDX-License-Identifier: MIT
"""`safemem simulate` and `safemem capture`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from safemem.boot import engine, memory, probe
from safemem.boot.model import CONFIDENT, DERIVED, FACTS, OLDER, UNKNOWN, Fact, Policy, Snapshot
from safemem.cli import codes
from safemem.cli.common import FORMAT, InputError, reading, write_whole
from safemem.cli.policies import load_policy
from safemem.host import reader, tried, verdict
from safemem.host.reader import Record
from safemem.policy import forecast, imagined
from safemem.policy.matrix import matrix as made_matrix
from safemem.policy.space import FROM_THE_TREE, impossible
from safemem.render import decision as render
from safemem.render import matrix as tables
from safemem.render.text import IMAGINED


class State(NamedTuple):
    """What is simulated on."""

    snapshot: Snapshot
    where: str  #: it comes from
    fixed: bool = False  #: it is a machine that is there, or was: what it is does not change from state to state
    record: Record | None = None  #: of a boot


@click.command(short_help="Show what a policy decides, and do nothing.")
@click.argument("policy_file", metavar="POLICY")
@click.option("--live", is_flag=True, help="Use the state of this machine, read-only.")
@click.option("--state", metavar="FILE", help="Use a capture, or the record of a boot.")
@click.option("--root", metavar="DIR", help="Use the /sys, /proc and /dev below DIR.")
@click.option(
    "--machine", "words", metavar="TEXT", help="Imagine a machine, such as `2 nodes of 512GiB, DIMM 256GiB on node 1`."
)
@click.option("--set", "changes", metavar="FACT=VALUE", multiple=True, help="Change a fact; may be repeated.")
@click.option("--matrix", is_flag=True, help="Show the outcome of every state that the policy tells apart.")
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
    words: str | None,
    changes: tuple[str, ...],
    matrix: bool,
    explain: bool,
    form: str,
) -> None:
    """Show what POLICY decides and what comes of it, without doing any of it.

    Without --live, --state, --root or --machine the machine is imagined: 1 GiB of memory online, 1 GiB held, and
    every fact unknown but those that --set gives.
    """
    if sum((live, *(given is not None for given in (state, root, words)))) > 1:
        raise click.UsageError("--live, --state, --root and --machine exclude each other")
    if explain and (matrix or form == "json"):
        raise click.UsageError("--explain is for the text of one decision; JSON has `not_matched`")
    policy = load_policy(policy_file)
    given = _state(policy, live, state, root, words)
    snapshot = given.snapshot
    for change in changes:
        snapshot = _with_fact(snapshot, change)
    if matrix:
        fixed = {change.partition("=")[0] for change in changes}
        if words is not None:  # what follows from memory that was described
            fixed |= {"numa_nodes", *DERIVED, *(["guard"] if snapshot.guarded else [])}
        made = made_matrix(policy, snapshot, fixed, whole=not given.fixed)
        click.echo(tables.matrix_json(made) if form == "json" else tables.matrix_text(made))
        return
    decision = engine.decide(policy, snapshot)
    found = forecast.forecast(decision, snapshot, tried.of(given.record, decision.policy.digest))
    if "dry-run" in snapshot.overrides and policy.allow_cmdline_override:
        found = forecast.Forecast("", dry_run=True)
    if any(text.startswith("policy=") for text in snapshot.overrides):
        found = found._replace(sure=False)
    faults: tuple[str, ...] = ()
    if changes:
        faults = impossible({name: fact.value for name, fact in decision.facts.items()})
        faults += _contradictions(policy, given.snapshot, snapshot)
    code = codes.of("ended" if found.ends else verdict.decided(decision))
    asked = frozenset(condition.fact for rule in policy.rules for condition in rule.when)
    shown = render.Simulation(decision, snapshot, found, faults, given.record, asked)
    if form == "json":
        click.echo(render.simulation_json(shown, code))
    else:
        click.echo(render.simulation_text(shown, where="; set ".join(filter(None, [given.where, ", ".join(changes)]))))
        if explain:
            click.echo("\n" + render.trace_text(policy, decision))
    context.exit(code)


@click.command(short_help="Write the state of this machine to a file.")
@click.option("--output", "-o", metavar="FILE", required=True, help="File to write; - for standard output.")
@click.option("--root", metavar="DIR", default="/", help="Read the /sys, /proc and /dev below DIR.")
@codes.ends(done="written", failure="nothing was written", invalid="there is no machine below DIR")
def capture(output: str, root: str) -> None:
    """Write the state of this machine to FILE, for `simulate --state` elsewhere."""
    write_whole(output, reader.capture_text(_probe(root)).encode())


def _state(policy: Policy, live: bool, state: str | None, root: str | None, words: str | None) -> State:
    if state is not None:
        try:
            with reading(state):
                text = Path(state).read_text("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{state}: this is not a capture: it is not text") from None
        snapshot, record = reader.state_from_text(text, state)
        return State(snapshot, f"{'recorded' if record else 'captured'} in {state}", True, record)
    if live or root is not None:
        snapshot = _probe(root or "/", open_luo=policy.open_luo and live)
        return State(snapshot, "this machine" if live else f"below {root}", True)
    words = imagined.DEFAULT if words is None else words
    return State(imagined.imagine(words), f"imagined: {words}")


def _probe(root: str, *, open_luo: bool = False) -> Snapshot:
    if not os.path.isdir(os.path.join(root, "sys/kernel")):
        raise InputError(f"{os.path.join(root, 'sys/kernel')}: there is no such folder; is sysfs mounted below {root}?")
    # What is free now says nothing of the next boot.
    room = memory.room(root)._replace(available=0)
    return probe.read_snapshot(root, open_luo=open_luo)._replace(room=room)


def _with_fact(snapshot: Snapshot, change: str) -> Snapshot:
    """Return `snapshot` with one fact set by hand, and what follows from it. Raises UsageError."""
    name, equals, text = change.partition("=")
    if not equals:
        raise click.UsageError(f"--set `{change}`: expected FACT=VALUE")
    if name not in FACTS:
        raise click.UsageError(f"--set `{name}`: there is no such fact{_suggest(name, list(FACTS))}")
    text = OLDER.get((name, text), text)
    facts = {**snapshot.facts, name: Fact(_value(name, text), "--set")}
    if name == "handover" and text != snapshot.facts["handover"].value:
        # What the machine's own handover showed, or did not show, is not this one's.
        told = (fact for fact in FROM_THE_TREE if snapshot.facts[fact].source not in IMAGINED)
        facts |= {fact: Fact(UNKNOWN, "--set", f"handover was set to {text}, and this was not") for fact in told}
    snapshot = snapshot._replace(facts=facts)
    if name == "guard":
        if text not in ("full", "part"):
            return snapshot._replace(guard=None, gigantic=())
        found = imagined.with_guard(snapshot)
        if found is not snapshot:
            return found._replace(facts={**facts, name: Fact(text, "--set", _IMAGINED_GUARD)})
    return snapshot


def _contradictions(policy: Policy, before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """Return which facts were set to what the memory of this very machine cannot be."""
    plain = after._replace(facts={name: fact for name, fact in after.facts.items() if name not in DERIVED})
    shown = engine.decide(policy, plain).facts | {"numa_nodes": before.facts.get("numa_nodes", Fact(UNKNOWN, ""))}
    return tuple(
        f"{name} is {shown[name].value} by the memory that it has"
        for name in (*(name for name in DERIVED if name not in CONFIDENT.values()), "numa_nodes")
        if name in after.facts and UNKNOWN not in (shown[name].value, after.facts[name].value)
        if after.facts[name].value != shown[name].value
    )


def _value(name: str, text: str) -> str | int | tuple[str, ...]:
    kind, values = FACTS[name]
    if text == UNKNOWN and (kind != "set" or UNKNOWN in values):
        return UNKNOWN
    if kind == "set" and text not in values:
        raise click.UsageError(f"--set {name}: `{text}` is not one of {', '.join(values)}{_near(text, values)}")
    if kind == "number":
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise click.UsageError(f"--set {name}: `{text}` is not a whole number")
        return int(text)
    if kind == "names":
        return tuple(sorted(item for item in text.split(",") if item))
    if not text or text[0] in "<>=!" or "*" in text or "?" in text:
        raise click.UsageError(
            f"--set {name}: `{text}` is a condition; a machine has one value, such as `{_EXAMPLE[kind]}`"
        )
    return text


_IMAGINED_GUARD = (
    "where it lies is imagined, as half of the largest piece of memory: `guard SIZE on node N` in --machine says it;"
    " `safemem layout` says what guards a machine can have"
)
_EXAMPLE = {"version": "7.3.4", "text": "qemu"}


def _suggest(word: str, known: list[str]) -> str:
    return _near(word, known) or f"; known are {', '.join(known)}"


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean `{near[0]}`?" if near else ""
