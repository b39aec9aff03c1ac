# SPDX-License-Identifier: MIT
"""A policy file: TOML in, a checked `model.Policy` out, or every error at once, each with its place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from safemem.boot import compiled, model
from safemem.boot.model import FACTS, Condition
from safemem.policy import compiler, places
from safemem.policy.language import (
    NO_RULES,
    Failure,
    Memory,
    Outcome,
    PolicyFile,
    RuleTable,
    SafeRegion,
    When,
    listed,
    near,
    show,
)

FORMAT = 1
#: Bytes; real policies have a few thousand.
MAX_SIZE = 1 << 20


class Problem(NamedTuple):
    """One thing that is wrong in a policy file."""

    path: places.Path
    line: int
    column: int
    message: str


class PolicyError(ValueError):
    """A policy cannot be used. One line a problem: `FILE:LINE:COLUMN: message`."""

    def __init__(self, where: str, problems: list[Problem]) -> None:
        super().__init__("\n".join(f"{where}:{p.line}:{p.column}: {p.message}" for p in problems))
        self.problems = problems


class Authored(NamedTuple):
    """A policy and where each of its tables and keys stands in its file."""

    policy: model.Policy
    found: dict[places.Path, places.Place]

    def place(self, rule: str, key: str) -> places.Place:
        """Return line and column of `key` of a rule, `otherwise`, `on_failure` or `safe_region`, or of its table."""
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
    table, problems = _validate(document)
    if table is not None:
        problems = _contradictions(table)
    found = places.find(text)
    if table is None or problems:
        located = [
            Problem(path, *places.nearest(found, path), _named(document, path, message)) for path, message in problems
        ]
        raise PolicyError(where, sorted(located, key=lambda p: (p.line, p.column)))
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


def _syntax_error(text: str, message: str, where: str) -> PolicyError:
    """Return tomllib's complaint with the place in front and the offending line in backticks."""
    found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    lines = text.splitlines() or [""]
    line, column = (int(found[1]), int(found[2])) if found else (len(lines), len(lines[-1]) + 1)
    what = message[: found.start()] if found else message.removesuffix(" (at end of document)")
    offending = lines[line - 1].strip() if line <= len(lines) else ""
    return PolicyError(
        where, [Problem((), line, column, f"not valid TOML: {what[:1].lower()}{what[1:]}: {show(offending)}")]
    )


def _validate(document: dict[str, Any]) -> tuple[PolicyFile | None, list[tuple[places.Path, str]]]:
    try:
        return PolicyFile.model_validate(document), []
    except ValidationError as error:
        return None, [problem for details in error.errors(include_url=False) for problem in _explain(details)]


def _explain(details: ErrorDetails) -> list[tuple[places.Path, str]]:
    """Return one of pydantic's errors as we would say it."""
    path, value, context = tuple(details["loc"]), details["input"], details.get("ctx", {})
    key = path[-1] if path else ""
    match details["type"]:
        case "policy":
            return [((*path, *below), message) for below, message in context["problems"]]
        case "extra_forbidden":
            return [(path, f"unknown key `{key}`{near(key, _keys(path[:-1]))}")]
        case "missing":
            what = (
                NO_RULES
                if path == ("rule",)
                else f"`{key}` is missing; add {_TO_ADD.get(str(key), f'a value for `{key}`')}"
            )
            return [(path[:-1], what)]
        case "literal_error":
            if path == ("format",):
                return [(path, f"{show(value)} is not a format that this safemem reads; it reads {FORMAT}")]
            words = tuple(re.findall(r"'([^']*)'", context["expected"]))
            return [(path, f"{show(value)} is not one of {listed(words)}{near(value, words)}")]
        case "too_short":
            return [(path, "the list is empty")]
        case "model_type" | "model_attributes_type" | "dict_type":
            return [(path, f"expected a table, not {show(value)}")]
        case "list_type":
            return [(path, f"expected a list, not {show(value)}")]
        case "bool_type":
            return [(path, f"expected true or false, not {show(value)}")]
        case "int_type" | "greater_than_equal" | "less_than_equal":
            low, high = compiled.DEADLINE
            return [(path, f"expected whole seconds from {low} to {high}, not {show(value)}")]
    return [(path, f"{details['msg'].lower()}: {show(value)}")]


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
    }  # fmt: skip
    table = tables.get(tuple(part for part in path if isinstance(part, str)))
    return tuple(table.model_fields) if table else ()


def _contradictions(table: PolicyFile) -> list[tuple[places.Path, str]]:
    """Return what is wrong between values that are each valid."""
    problems: list[tuple[places.Path, str]] = []
    seen: dict[str, int] = {}
    outcomes: list[tuple[places.Path, Outcome]] = [(("otherwise",), table.otherwise)]
    for index, rule in enumerate(table.rule):
        outcomes.append((("rule", index), rule))
        if rule.name in seen:
            problems.append((("rule", index, "name"), f"rule {seen[rule.name] + 1} has this name already"))
        elif rule.name == compiled.OTHERWISE:
            problems.append((("rule", index, "name"), f"the name `{rule.name}` is reserved for [otherwise]"))
        seen.setdefault(rule.name, index)
        if not _conditions(rule):
            problems.append(
                (("rule", index, "when"), "a rule without conditions always matches: that is what [otherwise] is for")
            )
    for path, outcome in outcomes:
        if outcome.boot_memory != "leave" and outcome.action != "online-safe":
            problems.append(
                (
                    (*path, "boot_memory"),
                    f"`boot_memory` has no effect with `{outcome.action}`, only with `online-safe`",
                )
            )
        if outcome.floor and outcome.boot_memory != "offline":
            problems.append(((*path, "floor"), '`floor` has no effect without `boot_memory = "offline"`'))
        if outcome.exposed_max and outcome.action != "online-safe":
            problems.append(
                (
                    (*path, "exposed_max"),
                    f"`exposed_max` has no effect with `{outcome.action}`, only with `online-safe`",
                )
            )
        elif outcome.exposed_max and outcome.on_shortfall == "continue":
            problems.append(((*path, "exposed_max"), "`exposed_max` has no effect while `on_shortfall` is `continue`"))
        if outcome.enter and outcome.action in model.FINAL:
            problems.append(
                ((*path, "enter"), f"`enter` has no effect: after `{outcome.action}` the boot does not go on")
            )
        holds = outcome.action == "online-safe" or (
            outcome.action == "online-all" and any(item.hold for item in table.memory)
        )
        for key, wanted in (("if_onlined", outcome.if_onlined != "report"), ("final", outcome.final)):
            if wanted and not holds:
                problems.append(((*path, key), f"`{key}` has no effect: `{outcome.action}` leaves no memory held"))
    for index, item in enumerate(table.memory):
        about = [key for key in ("range", "node", "driver") if getattr(item, key) is not None]
        if len(about) != 1:
            problems.append(
                (("memory", index), f"needs exactly one of `range`, `node` and `driver`, and has {len(about)}")
            )
        if (item.hold is None) == (item.zone is None):
            problems.append((("memory", index), "needs `hold = true` or a `zone`, and not both"))
        for earlier in table.memory[:index]:
            if (
                item.range
                and earlier.range
                and item.range.start < earlier.range.end
                and earlier.range.start < item.range.end
            ):
                problems.append((("memory", index, "range"), f"range `{item.range}` overlaps `{earlier.range}`"))
    fault = compiled.source_fault(table.safe_region.sources)
    if fault is not None:
        problems.append((("safe_region", "sources", fault[0]), fault[1]))
    return problems


def _conditions(rule: RuleTable) -> tuple[Condition, ...]:
    return tuple(condition for fact in FACTS if (condition := getattr(rule.when, fact)) is not None)


def _policy(table: PolicyFile) -> model.Policy:
    rules = tuple(model.Rule(**_given(rule) | {"when": _conditions(rule)}) for rule in table.rule)
    given = {key: value for key, value in _given(table).items() if key in model.Policy._fields}
    return model.Policy(**given | {
        "rules": rules,
        "otherwise": model.Rule(compiled.OTHERWISE, **_given(table.otherwise)),
        "on_failure": model.Failure(**_given(table.on_failure)),
        "sources": tuple(table.safe_region.sources),
        "memory": tuple(model.Override(**_given(item)) for item in table.memory),
    })  # fmt: skip


def _given(table: BaseModel) -> dict[str, Any]:
    """Return what a table of the file says, by key; for what it leaves out the model has the defaults."""
    return {key: getattr(table, key) for key in table.model_fields_set}


def _named(document: dict[str, Any], path: places.Path, message: str) -> str:
    """Return `message` with the rule or table and the key in front."""
    rest = path
    head = ""
    if path[:1] == ("rule",) and len(path) > 1:
        rest = path[2:]
        index = path[1]
        try:
            name = document["rule"][index]["name"]
        except (KeyError, IndexError, TypeError):
            name = None
        head = f"rule `{name}`" if isinstance(name, str) and name.isprintable() else f"rule {int(index) + 1}"
    if message.startswith("unknown key"):  # which is named there
        rest = rest[:-1]
    key = ".".join(str(part) for part in rest if isinstance(part, str))
    return ": ".join((*filter(None, [", ".join(filter(None, (head, key)))]), message))
