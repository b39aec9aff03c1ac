# SPDX-License-Identifier: MIT
"""A file of cases, NAME.cases.toml beside its policy: what may stand in it, read and checked; docs/cases.md is its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safemem.boot.model import FACTS, FINAL, Condition, Policy, Rule, Snapshot
from safemem.policy import imagined, load, pieces, places, values
from safemem.policy.space import OUTCOME

#: What a file of cases may say of the policy itself.
BESIDE = tuple(key for key in Policy._fields if key not in ("name", "rules", "otherwise", "memory", "digest"))
#: What a case may say of an outcome; `rule` is the name of the rule that decides.
EXPECTED = ("action", "rule", *(word for word in OUTCOME if word not in ("action", "name")))
_KEYS = ("policy", "machine", "case", *BESIDE)
_OF_A_CASE = ("name", "state", *EXPECTED, "machine", "plan", "ends")
#: How a boot may end; "" is that it goes on.
ENDS = ("", *FINAL)

#: Takes where something stands and what is wrong with it.
Bad = Callable[[places.Path, str], None]


class Case(NamedTuple):
    """One expectation and where it stands."""

    name: str
    conditions: tuple[Condition, ...]  #: of the state; facts that none is about may have any value
    expected: dict[str, Any]
    line: int
    machine: str = ""  #: as `simulate --machine` takes it; only if the case has a plan or an end
    snapshot: Snapshot | None = None  #: of that machine
    plan: Mapping[str, str] = {}  #: piece of the machine -> what becomes of it, the `op` of a step
    ends: str | None = None  #: one of ENDS, if the case says it


class File(NamedTuple):
    """What a file of cases says."""

    policy: str  #: as the file names it, relative to its own folder
    fixed: dict[str, tuple[object, int]]  #: key beside the rules -> what the policy is to have there, and the line
    cases: tuple[Case, ...]


def read(path: Path) -> File:
    """Return what the file `path` says.

    Raises:
        load.PolicyError: it is not valid; every problem with its place.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        text = load.decode(file.read(load.MAX_SIZE + 1), str(path))
    document = load.toml(text, str(path))
    found = places.find(text)
    problems: list[load.Problem] = []

    def bad(at: places.Path, message: str) -> None:
        problems.append(load.Problem(at, *places.nearest(found, at), message))

    name, items = document.get("policy"), document.get("case")
    for key in document:
        if key not in _KEYS:
            bad((key,), f"unknown key `{key}`{values.near(key, _KEYS)}")
    if not isinstance(name, str):
        bad(("policy",), "`policy` is missing; add the file that the cases are about, relative to this one")
    elif "\0" in name:
        bad(("policy",), f"policy: {values.show(name)} is no name of a file")
    if not isinstance(items, list) or not items:
        bad(("case",), "there are no cases: add a [[case]] with name, state, action and rule")
    usual = _words(document.get("machine"), ("machine",), bad)
    cases = []
    for index, item in enumerate(items if isinstance(items, list) else []):
        case = _case(item, ("case", index), usual, bad)
        if case:
            cases.append(case._replace(line=places.nearest(found, ("case", index, "name"))[0]))
    if problems:
        raise load.PolicyError(str(path), sorted(problems, key=lambda p: (p.line, p.column)))
    fixed = {key: (document[key], places.nearest(found, (key,))[0]) for key in BESIDE if key in document}
    return File(str(name), fixed, tuple(cases))


def _words(value: Any, at: places.Path, bad: Bad) -> str:
    """Return the words that describe a machine, or nothing."""
    if value is None:
        return ""
    try:
        if not isinstance(value, str):
            raise ValueError(
                f"expected text such as `2 nodes of 512GiB, DIMM 256GiB on node 1`, not {values.show(value)}"
            )
        imagined.imagine(value)
    except (ValueError, imagined.Unclear) as error:
        bad(at, f"machine: {error}")
        return ""
    return value


def _case(item: Any, at: places.Path, usual: str, bad: Bad) -> Case | None:
    if not isinstance(item, dict):
        bad(at, "expected a table")
        return None
    for key in item:
        if key not in _OF_A_CASE:
            bad((*at, key), f"unknown key `{key}`{values.near(key, _OF_A_CASE)}")
    for key in ("name", "action", "rule"):
        if key not in item:
            bad(at, f"`{key}` is missing")
    for key in ("name", *EXPECTED):
        kind, form = _KINDS.get(type(Rule._field_defaults.get(key, "")), _KINDS[str])
        if key in item and not isinstance(item[key], kind):
            bad((*at, key), f"{key}: expected {form}")
    state = item.get("state", {})
    if not isinstance(state, dict):
        bad((*at, "state"), "state: expected a table of facts")
        state = {}
    conditions = tuple(_conditions(state, (*at, "state"), bad))
    words = _words(item.get("machine"), (*at, "machine"), bad) or usual
    plan, ends = item.get("plan", {}), item.get("ends")
    if not isinstance(plan, dict):
        bad((*at, "plan"), "plan: expected a table of pieces of the machine")
        plan = {}
    if ends is not None and ends not in ENDS:
        bad(
            (*at, "ends"),
            f'ends: {values.show(ends)} is not one of {values.listed(FINAL)}; `""` says that the boot goes on',
        )
    made = None
    if plan or ends is not None:
        if not words:
            bad(at, "`machine` is missing, in the case or at the top of the file: `plan` and `ends` are about one")
            return None
        made = imagined.imagine(words)
        _plan(plan, made, (*at, "plan"), bad)
    expected = {key: item[key] for key in EXPECTED if key in item}
    return Case(str(item.get("name", "")), conditions, expected, 0, words if made else "", made, plan, ends)


def _plan(plan: dict[str, Any], made: Snapshot, at: places.Path, bad: Bad) -> None:
    for name, op in plan.items():
        try:
            pieces.find(name, made)
        except ValueError as error:
            bad((*at, name), f"plan: {error}{values.near(name, tuple(pieces.KINDS))}")
        if op not in pieces.OPS:
            known = f"is not one of {values.listed(pieces.OPS)}{values.near(op, pieces.OPS)}"
            bad((*at, name), f"plan.{name}: {values.show(op)} {known}")


_KINDS: dict[type, tuple[type, str]] = {bool: (bool, "true or false"), str: (str, "text"), tuple: (list, "a list of tables")}  # fmt: skip


def _conditions(state: dict[str, Any], at: places.Path, bad: Bad) -> Iterator[Condition]:
    for fact, value in state.items():
        if fact not in FACTS:
            bad((*at, fact), f"unknown fact `{fact}`{values.near(fact, tuple(FACTS))}")
            continue
        try:
            yield from conditions(fact, value)
        except ValueError as error:
            bad((*at, fact), f"state.{fact}: {error}")


def conditions(fact: str, value: object) -> list[Condition]:
    """Return what a case's state asks of `fact`: what `when` can, and `{ all = [ … ] }` of that. Raises ValueError."""
    if isinstance(value, dict) and list(value) == ["all"]:
        if not isinstance(value["all"], list) or not value["all"]:
            raise ValueError("expected a list of conditions in `all`")
        return [values.condition(fact, item) for item in value["all"]]
    return [values.condition(fact, value)]
