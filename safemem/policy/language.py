# SPDX-License-Identifier: MIT
"""The policy that operators write: TOML in, a checked `model.Policy` out, or every error at once.

The models below are the language; their descriptions are its reference documentation.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    create_model,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from safemem.boot import compiled, model, ranges
from safemem.boot.model import FACTS, UNKNOWN, Condition, Term
from safemem.policy import places

FORMAT = 1
#: Bytes; real policies have a few thousand.
MAX_SIZE = 1 << 20

_COMPARISON = re.compile(r"(<=|>=|<|>)\s*(\S+)")


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


def _fail(*problems: tuple[places.Path, str]) -> NoReturn:
    """Report `problems` from inside a validator; the paths are relative to what it validates."""
    raise PydanticCustomError("policy", "{text}", {"text": problems[0][1], "problems": problems})


def _text(value: object) -> str:
    if not isinstance(value, str):
        _fail(((), f"expected text, not {_show(value)}"))
    if not value.strip():
        _fail(((), "must not be empty"))
    if not value.isprintable():  # it goes to consoles and to the kernel log
        _fail(((), f"{_show(value)} holds characters that cannot be printed on one line"))
    return value


def condition(fact: str, value: object) -> Condition:
    """Return what a rule's `when` asks of `fact`: a value, a list of them, or `{ not = … }`."""
    negate = isinstance(value, dict)
    path: places.Path = ()
    if isinstance(value, dict):
        if list(value) != ["not"]:
            _fail(((), f"expected a value, a list of values, or {{ not = … }}, not {_show(value)}"))
        value, path = value["not"], ("not",)
    if value == []:
        _fail((path, "the list is empty, so the rule could never match"))
    groups, problems = [], []
    for place, item in [((*path, i), v) for i, v in enumerate(value)] if isinstance(value, list) else [(path, value)]:
        try:
            groups.append(_group(fact, item))
        except ValueError as error:
            problems.append((place, str(error)))
    if problems:
        _fail(*problems)
    return Condition(fact, tuple(groups), negate)


def _group(fact: str, value: object) -> tuple[Term, ...]:
    """Return the terms that must all hold. Raises ValueError."""
    kind, members = FACTS[fact]
    if value == UNKNOWN:
        if kind == "set" and UNKNOWN not in members:
            raise ValueError(f"`{fact}` is always known")
        return (Term("is", UNKNOWN),)
    if kind == "set":
        if value not in members:
            raise ValueError(f"{_show(value)} is not one of {_list(members)}{near(value, members)}")
        return (Term("is", str(value)),)
    if kind == "number" and type(value) is int and 0 <= value < 1 << 64:
        return (Term("is", value),)
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"expected {_EXPECTED[kind]}, not {_show(value)}")
    if kind in ("number", "version") and value.lstrip()[0] in "<>=!~^":
        return _comparisons(kind, value)
    if kind == "number":
        raise ValueError(f"expected {_EXPECTED[kind]}, not {_show(value)}")
    if kind == "names":
        return (Term("has", value),)
    if "[" in value or "]" in value:
        raise ValueError(f"{_show(value)}: only `*` and `?` stand for other characters, `[` does not")
    return (Term("glob" if "*" in value or "?" in value else "is", value),)


def _comparisons(kind: str, text: str) -> tuple[Term, ...]:
    terms = []
    for part in text.split(","):
        found = _COMPARISON.fullmatch(part.strip())
        if not found:
            raise ValueError(
                f"`{part.strip()}` is not a comparison; use <, <=, > or >= and commas, such as `{_EXAMPLE[kind]}`"
            )
        op, bound = found.groups()
        if kind == "version":
            if not compiled.is_version(bound):
                raise ValueError(f"`{bound}` is not a version that can be compared, such as 7.2, 7.2.1 or 7.2-rc3")
            terms.append(Term(op, bound))
        elif not (bound.isascii() and bound.isdigit() and len(bound) < 20):
            raise ValueError(f"`{bound}` is not a whole number below 10^19")
        else:
            terms.append(Term(op, int(bound)))
    return tuple(terms)


_EXAMPLE = {"version": ">=7.2, <7.4", "number": ">=1, <3"}
_EXPECTED = {
    "text": "text with `*` and `?` as wildcards",
    "version": "a release, a glob or a comparison such as `>=7.2, <7.4`",
    "number": "a whole number or a comparison such as `>=1, <3`",
    "names": "a name",
}


def _source(value: object) -> str | ranges.Range:
    if not isinstance(value, str):
        _fail(((), f"expected text, not {_show(value)}"))
    if value in compiled.SOURCES:
        return value
    if not value[:1].isdigit():
        _fail(
            (
                (),
                f"{_show(value)} is neither one of {_list(compiled.SOURCES)} nor a range{near(value, compiled.SOURCES)}",
            )
        )
    try:
        return ranges.parse_range(value)
    except ValueError as error:
        _fail(((), str(error)))


def _amount(parse: Callable[[str], int], expected: str, value: object) -> str:
    if not isinstance(value, str):
        _fail(((), f"expected {expected}, not {_show(value)}"))
    try:
        parse(value)
    except ValueError as error:
        _fail(((), str(error)))
    return value


_size = partial(_amount, ranges.parse_size, "a size such as `256MiB`")
_limit = partial(_amount, partial(ranges.parse_limit, whole=0), "a size such as `2GiB` or a share such as `1%`")
Size = Annotated[str, PlainValidator(_size), WithJsonSchema({"type": "string", "examples": ["256MiB"]})]
Limit = Annotated[str, PlainValidator(_limit), WithJsonSchema({"type": "string", "examples": ["2GiB", "1%"]})]
Text = Annotated[str, PlainValidator(_text), WithJsonSchema({"type": "string", "minLength": 1})]
Source = Annotated[
    Any,
    PlainValidator(_source),
    WithJsonSchema({"type": "string", "examples": [*compiled.SOURCES, "0x100000000-0x1ffffffff"]}),
]
Action = Literal["online-all", "online-safe", "panic", "reboot", "halt"]
Final = Literal["panic", "reboot", "halt"]
Zone = Literal["auto", "movable", "kernel"]
Shortfall = Literal["continue", "panic", "reboot", "halt"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _schema(fact: str) -> dict[str, object]:
    kind, members = FACTS[fact]
    one: dict[str, object] = (
        {"enum": list(members)} if members else {"type": ["string", "integer"] if kind == "number" else "string"}
    )
    several = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
    return {
        "anyOf": [
            *several["anyOf"],
            {"type": "object", "properties": {"not": several}, "required": ["not"], "additionalProperties": False},
        ]
    }


_when_fields: Any = {
    fact: (Annotated[Condition | None, PlainValidator(partial(condition, fact)), WithJsonSchema(_schema(fact))], None)
    for fact in FACTS
}
When = create_model("When", __base__=_Table, **_when_fields)


class Outcome(_Table):
    """What to do: the part that `[[rule]]` and `[otherwise]` have in common."""

    action: Action = Field(description="What happens to memory, or to the boot.")
    message: Text = Field("", description="Said on the console and in the record; default: the handover state.")
    zone: Zone | None = Field(
        None, description="Zone for what comes online; default: movable, or auto where KHO is off."
    )
    enter: Literal["maintenance"] | None = Field(None, description="Go on to this mode instead of a normal boot.")
    on_shortfall: Shortfall = Field(
        "continue", description="What if memory that should be held turns out to be online."
    )
    exposed_max: Limit | None = Field(
        None,
        description="With `online-safe`: `on_shortfall` applies if more than this is exposed in the end, `2GiB` or `1%` of all memory; default: if anything that should be off is on.",
    )
    boot_memory: Literal["leave", "offline"] = Field(
        "leave",
        description="With `online-safe`: take memory offline that was online before the decision, outside the safe region.",
    )
    floor: Size | None = Field(
        None,
        description="With `boot_memory`: what stays available to run in; default: 128 MiB, four times the initrd and 1/64 of all memory.",
    )
    if_onlined: Literal["report", "offline"] = Field(
        "report",
        description="What `watch` does with held memory that somebody onlines: say so and count it, or also take it offline again.",
    )
    final: bool = Field(False, description="`release` ends this hold only with `--force`, which is recorded.")
    accept_data_exposure: bool = Field(
        False, description="This outcome may put guests' pages into the allocator; say so on purpose."
    )


class RuleTable(Outcome):
    """`[[rule]]`: the first one whose every condition holds decides."""

    name: Text = Field(description="Unique; every decision names the rule it came from.")
    when: When = Field(description="Facts and what they may be; all of them must hold.")  # type: ignore[valid-type]


class Failure(_Table):
    """`[on_failure]`: what the boot path does if safemem itself cannot finish."""

    action: Final = Field(description="How the boot ends.")
    message: Text = Field("", description="Said on the console.")
    deadline: int = Field(10, ge=compiled.DEADLINE[0], le=compiled.DEADLINE[1], description="Seconds without progress.")


class SafeRegion(_Table):
    """`[safe_region]`: memory that can hold nothing of a guest's."""

    sources: list[Source] = Field(
        description="The first that can be resolved is used; all ranges of the list count as one.", min_length=1
    )


def _area(value: object) -> ranges.Range:
    if not isinstance(value, str):
        _fail(((), f"expected a range such as `0x100000000-0x1ffffffff`, not {_show(value)}"))
    try:
        return ranges.parse_range(value)
    except ValueError as error:
        _fail(((), str(error)))


class Memory(_Table):
    """`[[memory]]`: blocks that get something else than the rule says. The first that is about a block counts.

    One of `range`, `node` and `driver`, and one of `hold` and `zone`. It applies where a rule would
    online the block; it never onlines one that a rule holds. A block whose node or driver is not
    known is held by every exception that holds one.
    """

    range: Annotated[Any, PlainValidator(_area), WithJsonSchema({"type": "string"})] = Field(
        None,
        description="Physical addresses, both ends included. Holds every block that it touches; gives a zone to those wholly inside.",
    )
    node: Annotated[int, Field(ge=0, le=1 << 16)] | None = Field(None, description="NUMA node.")
    driver: Literal["dimm", "virtio-mem", "kmem", "unknown"] | None = Field(
        None, description="Who added it: `dimm` is plain System RAM, `kmem` dax or CXL memory."
    )
    hold: Literal[True] | None = Field(
        None, description='Never online it; with `boot_memory = "offline"`, take it offline in the safe region too.'
    )
    zone: Zone | None = Field(None, description="Online it in this zone.")


def _rules(value: object) -> object:
    if value == []:
        _fail(((), _NO_RULES))
    return value


_NO_RULES = "there are no rules: add a [[rule]] with name, when and action"


class PolicyFile(_Table):
    """A policy file."""

    format: Literal[1] = Field(description="Of this language: 1.")
    name: Text = Field(description="Of the policy; the record and the console say it.")
    allow_cmdline_override: bool = Field(False, description="Let the kernel command line loosen the outcome.")
    open_luo: bool = Field(False, description="Open /dev/liveupdate, for an instant, to tell `ready` from `failed`.")
    trust_guard: bool = Field(
        False,
        description="Where nothing else tells, take a handover as accepted if the guard that was asked for is not in force: only an accepted one keeps it from it, but a guard that was computed badly fails too.",
    )
    keep_crashkernel: Size | None = Field(
        None,
        description="What of a guard stays reserved for kdump when it is given back; default: nothing. Not after `online-safe`, which forbids crash kernels for the rest of the boot (Linux 6.3 and later).",
    )
    safe_region: SafeRegion = Field(
        SafeRegion(sources=["kho-scratch"]), description="Where `online-safe` may online memory."
    )
    memory: list[Memory] = Field([], description="Exceptions for some of the memory.")
    rule: Annotated[list[RuleTable], BeforeValidator(_rules)] = Field(
        description="In order.", json_schema_extra={"minItems": 1}
    )
    otherwise: Outcome = Field(description="Decides if no rule does.")
    on_failure: Failure = Field(description="Decides if safemem cannot.")


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
    return load(path).policy


def load(path: Path) -> Authored:
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
    return Authored(policy._replace(digest=compiled.load(compiled.dump(policy), where).digest), found)


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


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of policy files, as the models have it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **PolicyFile.model_json_schema()}


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
        where, [Problem((), line, column, f"not valid TOML: {what[:1].lower()}{what[1:]}: {_show(offending)}")]
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
                _NO_RULES
                if path == ("rule",)
                else f"`{key}` is missing; add {_TO_ADD.get(str(key), f'a value for `{key}`')}"
            )
            return [(path[:-1], what)]
        case "literal_error":
            if path == ("format",):
                return [(path, f"{_show(value)} is not a format that this safemem reads; it reads {FORMAT}")]
            words = tuple(re.findall(r"'([^']*)'", context["expected"]))
            return [(path, f"{_show(value)} is not one of {_list(words)}{near(value, words)}")]
        case "too_short":
            return [(path, "the list is empty")]
        case "model_type" | "model_attributes_type" | "dict_type":
            return [(path, f"expected a table, not {_show(value)}")]
        case "list_type":
            return [(path, f"expected a list, not {_show(value)}")]
        case "bool_type":
            return [(path, f"expected true or false, not {_show(value)}")]
        case "int_type" | "greater_than_equal" | "less_than_equal":
            low, high = compiled.DEADLINE
            return [(path, f"expected whole seconds from {low} to {high}, not {_show(value)}")]
    return [(path, f"{details['msg'].lower()}: {_show(value)}")]


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
    failure = table.on_failure
    return model.Policy(
        name=table.name,
        rules=tuple(_rule(rule, rule.name, _conditions(rule)) for rule in table.rule),
        otherwise=_rule(table.otherwise, compiled.OTHERWISE, ()),
        on_failure=model.Failure(failure.action, failure.message, failure.deadline),
        sources=tuple(table.safe_region.sources),
        allow_cmdline_override=table.allow_cmdline_override,
        memory=tuple(
            model.Override(
                item.range, -1 if item.node is None else item.node, item.driver or "", bool(item.hold), item.zone or ""
            )
            for item in table.memory
        ),
        open_luo=table.open_luo,
        keep_crashkernel=table.keep_crashkernel or "",
        trust_guard=table.trust_guard,
    )


def _rule(table: Outcome, name: str, when: tuple[Condition, ...]) -> model.Rule:
    return model.Rule(
        name=name,
        action=table.action,
        when=when,
        message=table.message,
        zone=table.zone or "",
        enter=table.enter or "",
        on_shortfall=table.on_shortfall,
        exposed_max=table.exposed_max or "",
        floor=table.floor or "",
        boot_memory=table.boot_memory,
        accept_data_exposure=table.accept_data_exposure,
        if_onlined=table.if_onlined,
        final=table.final,
    )


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


def _show(value: object) -> str:
    """Return `value` in backticks as TOML would write it, on one line, short."""
    if isinstance(value, str) and value.isprintable():
        text = value
    else:
        try:
            text = json.dumps(value, default=str)
        except (ValueError, RecursionError):
            text = type(value).__name__
    return f"`{text[:60]}…`" if len(text) > 60 else f"`{text}`"


def _list(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def near(word: object, known: tuple[str, ...]) -> str:
    """Return a suggestion for a mistyped `word`, or nothing."""
    close = difflib.get_close_matches(word, known, 1) if isinstance(word, str) else []
    return f"; did you mean `{close[0]}`?" if close else ""


def reference() -> str:
    """Return the reference of the policy language as Markdown, from the models and the facts themselves."""
    lines = [
        "# The policy language",
        "",
        "Generated by `safemem schema --reference`; a test keeps it in step. TOML 1.0, UTF-8. The first",
        "`[[rule]]` whose every condition holds decides; if none does, `[otherwise]` decides.",
    ]
    tables: tuple[tuple[str, type[BaseModel]], ...] = (
        ("Top level", PolicyFile), ("`[safe_region]`", SafeRegion), ("`[[rule]]`", RuleTable), ("`[otherwise]`", Outcome),
        ("`[[memory]]`", Memory), ("`[on_failure]`", Failure),
    )  # fmt: skip
    for title, table in tables:
        lines += ["", f"## {title}", ""]
        if table is Memory:
            lines += [*((Memory.__doc__ or "").replace("    ", "").strip().split("\n\n", 1)[1].splitlines()), ""]
        lines += ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
        schema = table.model_json_schema()
        for key, field in table.model_fields.items():
            if table is RuleTable and key in Outcome.model_fields:
                continue
            default = "required" if field.is_required() else _default(field.default)
            lines.append(f"| `{key}` | {_values(schema['properties'][key])} | {default} | {field.description} |")
        if table is RuleTable:
            lines += ["", "and every key of `[otherwise]`."]
    lines += ["", "## Facts", "", "What `when` may ask for. `unknown` matches only a condition that names it; `{ not = … }` never matches it.", "",
              "| fact | values |", "| --- | --- |"]  # fmt: skip
    lines += [
        f"| `{fact}` | {', '.join(f'`{v}`' for v in members) or _FACT_KINDS[kind]} |"
        for fact, (kind, members) in FACTS.items()
    ]
    lines += [
        "",
        "A condition is a value, a list of values of which one must hold, or `{ not = … }` around either.",
        "",
    ]
    return "\n".join(lines)


_FACT_KINDS = {
    "text": "text; `*` and `?` are wildcards",
    "version": 'a release, with wildcards, or comparisons such as `">=7.2, <7.4"`',
    "number": 'a whole number, or comparisons such as `">=1, <3"`',
    "names": "a name that has to be among them",
}


def _default(value: object) -> str:
    if isinstance(value, SafeRegion):
        return "`kho-scratch`"
    return "" if value in ("", None, []) else f"`{json.dumps(value)}`"


def _values(schema: dict[str, Any]) -> str:
    options = schema.get("anyOf", [schema])
    words = [word for option in options for word in option.get("enum", [option["const"]] if "const" in option else [])]
    if words:
        return ", ".join(f"`{word if isinstance(word, str) else json.dumps(word)}`" for word in words)
    kind = next((option["type"] for option in options if option.get("type") not in (None, "null")), "object")
    return {
        "string": "text",
        "integer": "whole number",
        "boolean": "`true`, `false`",
        "array": "list",
        "object": "table",
    }[kind]
