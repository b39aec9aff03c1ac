# SPDX-License-Identifier: MIT
"""The policy language: its tables, their keys, and what may stand there.

The models below are the language; their descriptions are its reference documentation. A policy
is read and checked in `load`; its schema and its reference page are made in `reference`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    create_model,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from safemem.boot import compiled, model
from safemem.boot.model import FACTS, UNKNOWN, Condition, Term
from safemem.policy import places

_COMPARISON = re.compile(r"(<=|>=|<|>)\s*(\S+)")

NO_RULES = "there are no rules: add a [[rule]] with name, when and action"


def show(value: object) -> str:
    """Return `value` in backticks as TOML would write it, on one line, short."""
    if isinstance(value, str) and value.isprintable():
        text = value
    else:
        try:
            text = json.dumps(value, default=str)
        except (ValueError, RecursionError):
            text = type(value).__name__
    return f"`{text[:60]}…`" if len(text) > 60 else f"`{text}`"


def listed(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def near(word: object, known: tuple[str, ...]) -> str:
    """Return a suggestion for a mistyped `word`, or nothing."""
    close = difflib.get_close_matches(word, known, 1) if isinstance(word, str) else []
    return f"; did you mean `{close[0]}`?" if close else ""


class OneOf(NamedTuple):
    """In `Annotated[str, OneOf(words)]`, text that is one of `words`, which the boot half has; `Literal` takes no names."""

    words: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        """Return what pydantic checks a value by."""
        return core_schema.literal_schema(list(self.words))


def _fail(*problems: tuple[places.Path, str]) -> NoReturn:
    """Report `problems` from inside a validator; the paths are relative to what it validates."""
    raise PydanticCustomError("policy", "{text}", {"text": problems[0][1], "problems": problems})


def _text(value: object) -> str:
    if not isinstance(value, str):
        _fail(((), f"expected text, not {show(value)}"))
    if not value.strip():
        _fail(((), "must not be empty"))
    if not value.isprintable():  # it goes to consoles and to the kernel log
        _fail(((), f"{show(value)} holds characters that cannot be printed on one line"))
    return value


def condition(fact: str, value: object) -> Condition:
    """Return what a rule's `when` asks of `fact`: a value, a list of them, or `{ not = … }`."""
    negate = isinstance(value, dict)
    path: places.Path = ()
    if isinstance(value, dict):
        if list(value) != ["not"]:
            _fail(((), f"expected a value, a list of values, or {{ not = … }}, not {show(value)}"))
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
            raise ValueError(f"{show(value)} is not one of {listed(members)}{near(value, members)}")
        return (Term("is", str(value)),)
    if kind == "number" and type(value) is int and 0 <= value < 1 << 64:
        return (Term("is", value),)
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"expected {_EXPECTED[kind]}, not {show(value)}")
    if kind in ("number", "version") and value.lstrip()[0] in "<>=!~^":
        return _comparisons(kind, value)
    if kind == "number":
        raise ValueError(f"expected {_EXPECTED[kind]}, not {show(value)}")
    if kind == "names":
        return (Term("has", value),)
    if "[" in value or "]" in value:
        raise ValueError(f"{show(value)}: only `*` and `?` stand for other characters, `[` does not")
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


def _source(value: object) -> str | model.Range:
    if not isinstance(value, str):
        _fail(((), f"expected text, not {show(value)}"))
    if value in compiled.SOURCES:
        return value
    if not value[:1].isdigit():
        _fail(
            (
                (),
                f"{show(value)} is neither one of {listed(compiled.SOURCES)} nor a range{near(value, compiled.SOURCES)}",
            )
        )
    try:
        return model.parse_range(value)
    except ValueError as error:
        _fail(((), str(error)))


def _amount(parse: Callable[[str], int], expected: str, value: object) -> str:
    if not isinstance(value, str):
        _fail(((), f"expected {expected}, not {show(value)}"))
    try:
        parse(value)
    except ValueError as error:
        _fail(((), str(error)))
    return value


def _whole(low: int, high: int, unit: str, value: object) -> int:
    if type(value) is not int or not low <= value <= high:
        _fail(((), f"expected {unit} from {low} to {high}, not {show(value)}"))
    return value


def _true(value: object) -> bool:
    if value is not True:
        _fail(((), f"expected true, or a `zone` instead of this key, not {show(value)}"))
    return True


_size = partial(_amount, model.parse_size, "a size such as `256MiB`")
_limit = partial(_amount, partial(model.parse_limit, whole=0), "a size such as `2GiB` or a share such as `1%`")
Size = Annotated[str, PlainValidator(_size), WithJsonSchema({"type": "string", "examples": ["256MiB"]})]
Limit = Annotated[str, PlainValidator(_limit), WithJsonSchema({"type": "string", "examples": ["2GiB", "1%"]})]
Deadline = Annotated[
    int,
    PlainValidator(partial(_whole, *compiled.DEADLINE, "whole seconds")),
    WithJsonSchema({"maximum": compiled.DEADLINE[1], "minimum": compiled.DEADLINE[0], "type": "integer"}),
]
Node = Annotated[
    int,
    PlainValidator(partial(_whole, 0, 1 << 16, "a whole number")),
    WithJsonSchema({"maximum": 1 << 16, "minimum": 0, "type": "integer"}),
]
Held = Annotated[bool, PlainValidator(_true), WithJsonSchema({"const": True, "type": "boolean"})]
Text = Annotated[str, PlainValidator(_text), WithJsonSchema({"type": "string", "minLength": 1})]
Source = Annotated[
    Any,
    PlainValidator(_source),
    WithJsonSchema({"type": "string", "examples": [*compiled.SOURCES, "0x100000000-0x1ffffffff"]}),
]
Zone = Annotated[str, OneOf(model.ZONES)]


class Table(BaseModel):
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
When = create_model("When", __base__=Table, **_when_fields)


class Outcome(Table):
    """What to do: the part that `[[rule]]` and `[otherwise]` have in common."""

    action: Annotated[str, OneOf(model.ACTIONS)] = Field(description="What happens to memory, or to the boot.")
    message: Text = Field("", description="Said on the console and in the record; default: the handover state.")
    zone: Zone | None = Field(
        None, description="Zone for what comes online; default: movable, or auto where KHO is off."
    )
    enter: Annotated[str, OneOf(compiled.ENTER)] | None = Field(
        None, description="Go on to this mode instead of a normal boot."
    )
    on_shortfall: Annotated[str, OneOf(compiled.ON_SHORTFALL)] = Field(
        "continue", description="What if memory that should be held turns out to be online."
    )
    exposed_max: Limit | None = Field(
        None,
        description="With `online-safe`: `on_shortfall` applies if more than this is exposed in the end, `2GiB` or `1%` of all memory; default: if anything that should be off is on.",
    )
    boot_memory: Annotated[str, OneOf(compiled.BOOT_MEMORY)] = Field(
        "leave",
        description="With `online-safe`: take memory offline that was online before the decision, outside the safe region.",
    )
    floor: Size | None = Field(
        None,
        description="With `boot_memory`: what stays available to run in; default: 128 MiB, four times the initrd and 1/64 of all memory.",
    )
    if_onlined: Annotated[str, OneOf(compiled.IF_ONLINED)] = Field(
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


class Failure(Table):
    """`[on_failure]`: what the boot path does if safemem itself cannot finish."""

    action: Annotated[str, OneOf(model.FINAL)] = Field(description="How the boot ends.")
    message: Text = Field("", description="Said on the console.")
    deadline: Deadline = Field(10, description="Seconds without progress.")


class SafeRegion(Table):
    """`[safe_region]`: memory that can hold nothing of a guest's."""

    sources: list[Source] = Field(
        description="The first that can be resolved is used; all ranges of the list count as one.", min_length=1
    )


def _area(value: object) -> model.Range:
    if not isinstance(value, str):
        _fail(((), f"expected a range such as `0x100000000-0x1ffffffff`, not {show(value)}"))
    try:
        return model.parse_range(value)
    except ValueError as error:
        _fail(((), str(error)))


class Memory(Table):
    """`[[memory]]`: blocks that get something else than the rule says. The first that is about a block counts.

    One of `range`, `node` and `driver`, and one of `hold` and `zone`. It applies where a rule would
    online the block; it never onlines one that a rule holds. A block whose node or driver is not
    known is held by every exception that holds one.
    """

    range: Annotated[Any, PlainValidator(_area), WithJsonSchema({"type": "string"})] = Field(
        None,
        description="Physical addresses, both ends included. Holds every block that it touches; gives a zone to those wholly inside.",
    )
    node: Node | None = Field(None, description="NUMA node.")
    driver: Annotated[str, OneOf(model.DRIVERS)] | None = Field(
        None, description="Who added it: `dimm` is plain System RAM, `kmem` dax or CXL memory."
    )
    hold: Held | None = Field(
        None, description='Never online it; with `boot_memory = "offline"`, take it offline in the safe region too.'
    )
    zone: Zone | None = Field(None, description="Online it in this zone.")


def _rules(value: object) -> object:
    if value == []:
        _fail(((), NO_RULES))
    return value


class PolicyFile(Table):
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


class Only(NamedTuple):
    """A key of an outcome that has an effect only together with others."""

    key: str
    effective: Callable[[PolicyFile, Outcome], bool]
    otherwise: str  #: why it has none, in words that follow "`key` has no effect"


def _holds(table: PolicyFile, outcome: Outcome) -> bool:
    return outcome.action == "online-safe" or (outcome.action == "online-all" and any(m.hold for m in table.memory))


#: Of a key that is here twice, the first reason counts.
ONLY_WITH = (
    Only("boot_memory", lambda _, o: o.action == "online-safe", " with `{action}`, only with `online-safe`"),
    Only("floor", lambda _, o: o.boot_memory == "offline", ' without `boot_memory = "offline"`'),
    Only("exposed_max", lambda _, o: o.action == "online-safe", " with `{action}`, only with `online-safe`"),
    Only("exposed_max", lambda _, o: o.on_shortfall != "continue", " while `on_shortfall` is `continue`"),
    Only("enter", lambda _, o: o.action not in model.FINAL, ": after `{action}` the boot does not go on"),
    Only("if_onlined", _holds, ": `{action}` leaves no memory held"),
    Only("final", _holds, ": `{action}` leaves no memory held"),
)
