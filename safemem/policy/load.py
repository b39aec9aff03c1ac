# SPDX-License-Identifier: MIT
"""A policy file: TOML in, a checked `model.Policy` out, or every error at once, each with its place."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from safemem.boot import compiled, model
from safemem.boot.model import FACTS, Condition
from safemem.policy import compiler, places
from safemem.policy.language import (
    NO_RULES,
    ONLY_WITH,
    Failure,
    Memory,
    Outcome,
    PolicyFile,
    RuleTable,
    SafeRegion,
    When,
)
from safemem.policy.values import listed, near, show

FORMAT = 1
#: Bytes; real policies have a few thousand.
MAX_SIZE = 1 << 20


class Problem(NamedTuple):
    """One thing that is wrong in a policy file."""

    path: places.Path
    line: int
    column: int
    message: str


class PolicyError(model.Refused, ValueError):
    """A policy cannot be used. One line a problem: `FILE:LINE:COLUMN: message`."""

    kind = "invalid"

    def __init__(self, where: str, problems: list[Problem]) -> None:
        self.lines = tuple(f"{where}:{p.line}:{p.column}: {p.message}" for p in problems)
        super().__init__("\n".join(self.lines))
        self.problems = problems


class Authored(NamedTuple):
    """A policy and where each of its tables and keys stands in its file."""

    policy: model.Policy
    found: dict[places.Path, places.Place]

    def place(self, rule: str, key: str | int) -> places.Place:
        """Return line and column of `key` of a rule or another table or key of the file, or of that."""
        table: places.Path = (rule,)
        for index, candidate in enumerate(self.policy.rules):
            if candidate.name == rule:
                table = ("rule", index)
        return places.nearest(self.found, (*table, key))


def read(path: Path) -> model.Policy:
    """Return the policy in the file `path`.

    Raises:
        PolicyError: it is not a valid policy.
        OSError: it cannot be read.
    """
    return authored(path).policy


def authored(path: Path) -> Authored:
    """Return the policy in the file `path` with its places. Raises as `read` does."""
    with open(path, "rb") as file:
        return parse(file.read(MAX_SIZE + 1), str(path))


def parse(data: bytes, where: str) -> Authored:
    """Return the policy that the TOML `data`, read from `where`, means. Raises PolicyError."""
    text = decode(data, where)
    document = toml(text, where)
    found = places.find(text)
    table, faults = _validate(document)
    if table is not None:
        faults = list(_contradictions(table, found))
    if table is None or faults:
        problems = [Problem(fault.path, *places.nearest(found, fault.path), _text(document, fault)) for fault in faults]
        raise PolicyError(where, sorted(problems, key=lambda p: (p.line, p.column)))
    policy = _policy(table)
    return Authored(policy._replace(digest=compiled.load(compiler.dump(policy), where).digest), found)


def toml(text: str, where: str) -> dict[str, Any]:
    """Return what the TOML `text` holds. Raises PolicyError with the place."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(text, str(error), where) from None
    except RecursionError:
        raise PolicyError(where, [Problem((), 1, 1, "the file is nested too deeply")]) from None
    except ValueError:  # Python reads no integer of more than 4,300 digits
        raise PolicyError(where, [Problem((), 1, 1, "the file holds a number with thousands of digits")]) from None


def decode(data: bytes, where: str) -> str:
    """Return the text of a TOML file. Raises PolicyError if it is too large or no text."""
    if len(data) > MAX_SIZE:
        raise PolicyError(where, [Problem((), 1, 1, "the file is larger than 1 MiB: this is no policy")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = data[: error.start].decode("utf-8", "replace")
        line, column = good.count("\n") + 1, len(good) - good.rfind("\n")
        raise PolicyError(
            where,
            [Problem((), line, column, f"byte 0x{data[error.start]:02x} is not UTF-8 text: is this a TOML file?")],
        ) from None


#: A part of tomllib's complaint -> what was meant.
_SLIPS = {
    "Cannot declare ('rule',) twice": "; each rule begins with [[rule]]",
    "Invalid value": "; text stands in quotes",
    "Cannot overwrite a value": "; it is given twice",
}


def _syntax_error(text: str, message: str, where: str) -> PolicyError:
    """Return tomllib's complaint with the place in front and the offending line in backticks."""
    found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    lines = text.splitlines() or [""]
    line, column = (int(found[1]), int(found[2])) if found else (len(lines), len(lines[-1]) + 1)
    what = message[: found.start()] if found else message.removesuffix(" (at end of document)")
    offending = lines[line - 1].strip() if line <= len(lines) else ""
    hint = next((hint for part, hint in _SLIPS.items() if part in message), "")
    return PolicyError(
        where, [Problem((), line, column, f"not valid TOML: {what[:1].lower()}{what[1:]}: {show(offending)}{hint}")]
    )


class _Fault(NamedTuple):
    """What is wrong with the value at `path`, as said of it alone."""

    path: places.Path
    message: str
    named: bool = False  #: the message names the last part of `path`


def _validate(document: dict[str, Any]) -> tuple[PolicyFile | None, list[_Fault]]:
    try:
        return PolicyFile.model_validate(document), []
    except ValidationError as error:
        return None, [fault for details in error.errors(include_url=False) for fault in _explain(details)]


def _explain(details: ErrorDetails) -> Iterator[_Fault]:
    """Yield one of pydantic's errors as we would say it."""
    path, value, context = tuple(details["loc"]), details["input"], details.get("ctx", {})
    key = str(path[-1]) if path else ""
    match details["type"]:
        case "policy":
            for below, message in context["problems"]:
                yield _Fault((*path, *below), message)
        case "extra_forbidden" if key in PolicyFile.model_fields:
            yield _Fault(
                path, f"`{key}` is a key of the policy: it goes to the top, before the first table", named=True
            )
        case "extra_forbidden" if path[-2:-1] == ("when",) and key in _MEANT:
            yield _Fault(path, f"unknown key `{key}`: {_MEANT[key]}", named=True)
        case "extra_forbidden":
            yield _Fault(path, f"unknown key `{key}`{near(key, _keys(path[:-1]))}", named=True)
        case "missing" if path == ("rule",):
            yield _Fault((), NO_RULES)
        case "missing":
            yield _Fault(path[:-1], f"`{key}` is missing; add {_TO_ADD.get(key, f'a value for `{key}`')}")
        case "literal_error" if path == ("format",):
            yield _Fault(path, f"{show(value)} is not a format that this safemem reads; it reads {FORMAT}")
        case "literal_error":
            words = tuple(re.findall(r"'([^']*)'", context["expected"]))
            other = next((name for name, choices in _CHOICES.items() if value in choices and name != key), "")
            hint = f'; `{other} = "{value}"` is another key' if other else near(value, words)
            yield _Fault(path, f"{show(value)} is not one of {listed(words)}{hint}")
        case "too_short":
            yield _Fault(path, "the list is empty")
        case "list_type" if key == "memory" and isinstance(value, dict):
            yield _Fault(path, "expected a list: put it in brackets, such as `[{ node = 1, hold = true }]`")
        case kind if kind in _EXPECTED and path == ("otherwise",) and isinstance(value, list):
            yield _Fault(path, "expected one table: write `[otherwise]`")
        case kind if kind in _EXPECTED:
            yield _Fault(path, f"expected {_EXPECTED[kind]}, not {show(value)}")
        case _:
            yield _Fault(path, f"{details['msg'].lower()}: {show(value)}")


#: What is asked for under another name.
_MEANT = {
    **dict.fromkeys(
        ("node", "numa", "numa_node", "nodes_online"),
        "`numa_nodes` is how many NUMA nodes there are; `memory = [{ node = 1, … }]` of a rule is about one",
    ),
    **dict.fromkeys(
        ("hostname", "host", "class"),
        "`machine_class` is a line of /etc/safemem/machine-class, `product` the machine's make",
    ),
}
#: Keys of an outcome whose words are taken for another's.
_CHOICES = {"action": model.ACTIONS, "enter": compiled.ENTER, "zone": model.ZONES}
#: An error of pydantic's -> what should have stood there.
_EXPECTED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a table"),
    "list_type": "a list",
    "bool_type": "true or false",
}
_TO_ADD = {
    "format": f"`format = {FORMAT}`",
    "name": 'a name, such as `name = "…"`',
    "when": 'conditions, such as `when = { handover = "none" }`',
    "action": f"one of {', '.join(f'`{action}`' for action in model.ACTIONS)}",
    "otherwise": 'what decides if no rule does, such as `[otherwise]` with `action = "panic"`',
    "on_failure": 'what happens if safemem cannot finish, such as `[on_failure]` with `action = "panic"`',
    "sources": f"a list of {', '.join(f'`{source}`' for source in compiled.SOURCES)} and ranges",
}


def _keys(path: places.Path) -> tuple[str, ...]:
    """Return the keys that the table at `path` may have."""
    tables: dict[places.Path, type[BaseModel]] = {
        (): PolicyFile, ("memory",): Memory, ("rule",): RuleTable, ("rule", "when"): When,
        ("otherwise",): Outcome, ("on_failure",): Failure, ("safe_region",): SafeRegion,
        ("rule", "memory"): Memory, ("otherwise", "memory"): Memory,
    }  # fmt: skip
    table = tables.get(tuple(part for part in path if isinstance(part, str)))
    return tuple(table.model_fields) if table else ()


def _contradictions(table: PolicyFile, found: dict[places.Path, places.Place]) -> Iterator[_Fault]:
    """Yield what is wrong between values that are each valid; `found` tells where they stand."""
    yield from _idle(table, ("otherwise",), table.otherwise)
    seen: dict[str, int] = {}
    for index, rule in enumerate(table.rule):
        at = ("rule", index)
        if rule.name in seen:
            line, _ = places.nearest(found, ("rule", seen[rule.name], "name"))
            yield _Fault((*at, "name"), f"rule {seen[rule.name] + 1} in line {line} has this name already")
        elif rule.name == compiled.OTHERWISE:
            yield _Fault((*at, "name"), f"the name `{rule.name}` is reserved for [otherwise]")
        seen.setdefault(rule.name, index)
        if not _conditions(rule):
            yield _Fault((*at, "when"), "a rule without conditions always matches: that is what [otherwise] is for")
        yield from _idle(table, at, rule)
        yield from _exceptions((*at, "memory"), rule.memory)
    yield from _exceptions(("otherwise", "memory"), table.otherwise.memory)
    yield from _exceptions(("memory",), table.memory)
    for index, code in enumerate(table.accept_errors):
        if code in table.accept_errors[:index]:
            yield _Fault(("accept_errors", index), f"`{code}` is listed twice")
    fault = compiled.source_fault(table.safe_region.sources)
    if fault is not None:
        yield _Fault(("safe_region", "sources", fault[0]), fault[1])


def _exceptions(path: places.Path, memory: list[Memory]) -> Iterator[_Fault]:
    for index, item in enumerate(memory):
        at = (*path, index)
        about = [key for key in ("range", "node", "driver") if getattr(item, key) is not None]
        if len(about) != 1:
            yield _Fault(at, f"needs exactly one of `range`, `node` and `driver`, and has {len(about)}")
        if (item.hold is None) == (item.zone is None):
            yield _Fault(at, "needs `hold = true` or a `zone`, and not both")
        for earlier in memory[:index] if item.range else ():
            if earlier.range and item.range.start < earlier.range.end and earlier.range.start < item.range.end:
                yield _Fault((*at, "range"), f"range `{item.range}` overlaps `{earlier.range}`")


def _idle(table: PolicyFile, path: places.Path, outcome: Outcome) -> Iterator[_Fault]:
    """Yield each key of `outcome` that is set and changes nothing there, with the first reason why."""
    found: dict[str, str] = {}
    for only in ONLY_WITH:
        if getattr(outcome, only.key) != Outcome.model_fields[only.key].default and not only.effective(table, outcome):
            found.setdefault(only.key, only.otherwise.format(action=outcome.action))
    for key, why in found.items():
        yield _Fault((*path, key), f"`{key}` has no effect{why}")


def _conditions(rule: RuleTable) -> tuple[Condition, ...]:
    return tuple(condition for fact in FACTS if (condition := getattr(rule.when, fact)) is not None)


def _policy(table: PolicyFile) -> model.Policy:
    rules = tuple(
        model.Rule(**_given(rule) | {"when": _conditions(rule), "memory": _overrides(rule.memory)})
        for rule in table.rule
    )
    given = {key: value for key, value in _given(table).items() if key in model.Policy._fields}
    return model.Policy(**given | {
        "rules": rules,
        "otherwise": model.Rule(
            compiled.OTHERWISE, **_given(table.otherwise) | {"memory": _overrides(table.otherwise.memory)}
        ),
        "on_failure": model.Failure(**_given(table.on_failure)),
        "accept_errors": tuple(table.accept_errors),
        "sources": tuple(table.safe_region.sources),
        "memory": _overrides(table.memory),
    })  # fmt: skip


def _overrides(memory: list[Memory]) -> tuple[model.Override, ...]:
    return tuple(model.Override(**_given(item)) for item in memory)


def _given(table: BaseModel) -> dict[str, Any]:
    """Return what a table of the file says, by key; for what it leaves out the model has the defaults."""
    return {key: getattr(table, key) for key in table.model_fields_set}


def _text(document: dict[str, Any], fault: _Fault) -> str:
    """Return the message with the rule or table and the key in front."""
    rest, head = fault.path, ""
    if rest[:1] == ("rule",) and len(rest) > 1:
        index, rest = rest[1], rest[2:]
        try:
            name = document["rule"][index]["name"]
        except (KeyError, IndexError, TypeError):
            name = None
        head = f"rule `{name}`" if isinstance(name, str) and name.isprintable() else f"rule {int(index) + 1}"
    key = ".".join(part for part in (rest[:-1] if fault.named else rest) if isinstance(part, str))
    place = ", ".join(filter(None, (head, key)))
    return f"{place}: {fault.message}" if place else fault.message
