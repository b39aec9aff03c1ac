# SPDX-License-Identifier: MIT
"""What a policy decides in every state that it tells apart, on one machine or on any: a table that is as short as can be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, product
from typing import Any, NamedTuple

from safemem.boot import engine
from safemem.boot.conditions import fact_text, matches, wanted_text
from safemem.boot.model import DERIVED, FACTS, UNKNOWN, Decision, Fact, Policy, Refused, Snapshot, Term
from safemem.policy.space import Space, TooLarge, Value, impossible

#: Facts that say what a machine is, not what has become of it.
MACHINE = ("arch", "virt", "product", "machine_class", "numa_nodes", "kernel", "auto_online")
#: More rows than this nobody reads, and each is decided by the engine.
MAX_STATES = 50_000
ANY = "any"


class Impossible(Refused, ValueError):
    """No machine can be in any of the states that are left; the message says why."""

    kind = "invalid"


class Row(NamedTuple):
    """States with one outcome: for each column the values that they have, ANY for all that are possible there."""

    values: tuple[tuple[str, ...], ...]
    decision: Decision


class Matrix(NamedTuple):
    """Every state and its outcome."""

    columns: tuple[str, ...]  #: facts
    rows: tuple[Row, ...]
    states: tuple[tuple[dict[str, str], Decision], ...]  #: one by one, with a value that stands for each class
    given: dict[str, Fact]  #: facts that the policy asks for and that are the same in all of them


def matrix(policy: Policy, snapshot: Snapshot, fixed: set[str], *, whole: bool) -> Matrix:
    """Return the outcomes of `policy`.

    Args:
        policy: whose conditions tell states apart.
        snapshot: the machine.
        fixed: facts that are as the snapshot has them.
        whole: any machine counts; else those facts are fixed as well that say what this one is.

    Raises:
        TooLarge: there are more than MAX_STATES.
        Impossible: there is none.
    """
    space = Space(policy)
    bound = {*fixed, *(() if whole else (*DERIVED, *MACHINE))}
    columns = tuple(name for name in space.facts if name not in bound)
    classes = [space.classes[space.facts.index(name)] for name in columns]
    size = 1
    for values in classes:
        size *= len(values)
    if size > MAX_STATES:
        raise TooLarge(f"{size:,} states are no table: give some facts with --set, such as {columns[-1]}")
    labels = [_labels(policy, name, values) for name, values in zip(columns, classes, strict=True)]
    decided = engine.decide(policy, snapshot).facts
    given = {name: decided[name] for name in space.facts if name in bound}
    found = []
    for state in product(*classes):
        named = dict(zip(columns, state, strict=True))
        if impossible(_values(given) | named):
            continue
        made = {name: Fact(value, "--matrix") for name, value in named.items()}
        found.append((state, engine.decide(policy, snapshot._replace(facts={**snapshot.facts, **made}))))
    if not found:
        raise Impossible(f"no machine shows what was set: {', '.join(impossible(_values(given)))}")
    decisions = {_outcome(decision): decision for _, decision in found}
    paths = [
        (*(label[value] for label, value in zip(labels, state, strict=True)), _outcome(decision))
        for state, decision in found
    ]
    return Matrix(
        columns,
        tuple(Row(values, decisions[outcome]) for values, outcome in _rows(_fold(paths))),
        tuple(({name: fact_text(value) for name, value in zip(columns, state, strict=True)}, decision) for state, decision in found),
        given,
    )  # fmt: skip


def _values(facts: dict[str, Fact]) -> dict[str, Value]:
    # The handover is a part of every state, also where it is none of the given ones.
    return {"handover": UNKNOWN} | {name: fact.value for name, fact in facts.items()}


def _outcome(decision: Decision) -> str:
    return f"{decision.action}\n{decision.rule.name}"


def _labels(policy: Policy, name: str, values: tuple[Value, ...]) -> dict[Value, str]:
    """Return what each class is called: the value itself of a closed fact, else what is asked for and holds."""
    if FACTS[name][0] == "set":
        return {value: str(value) for value in values}
    unknown = (Term("is", UNKNOWN),)
    conditions = [c for rule in policy.rules for c in rule.when if c.fact == name]
    plain = [c._replace(groups=tuple(group for group in c.groups if group != unknown)) for c in conditions]
    asked = {wanted_text(c): c for c in plain if c.groups}
    return {
        value: UNKNOWN
        if value == UNKNOWN
        else " and ".join(text for text, condition in asked.items() if matches(condition, Fact(value, ""))) or "other"
        for value in values
    }


def _fold(paths: list[tuple[str, ...]]) -> Any:
    """Return a decision diagram: of each column the groups of values behind which everything is the same."""
    if len(paths[0]) == 1:
        return paths[0][0]
    groups: dict[Any, list[str]] = {}
    for value, below in groupby(paths, key=lambda path: path[0]):
        groups.setdefault(_fold([path[1:] for path in below]), []).append(value)
    if len(groups) == 1:
        return (((ANY,), next(iter(groups))),)
    return tuple((tuple(dict.fromkeys(values)), below) for below, values in groups.items())


def _rows(diagram: Any) -> Iterator[tuple[tuple[tuple[str, ...], ...], str]]:
    """Yield the paths of a diagram."""
    if isinstance(diagram, str):
        yield (), diagram
        return
    for values, below in diagram:
        for rest, outcome in _rows(below):
            yield (values, *rest), outcome
