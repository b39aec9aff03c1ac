# SPDX-License-Identifier: MIT
"""The policy language: its tables and their keys.

The models below are the language; their descriptions are its reference documentation. What may stand at a
key is in `values`; a policy is read and checked in `load`; its schema and its page are made in `reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, create_model

from safemem.boot import compiled, model
from safemem.boot.model import FACTS, Condition
from safemem.policy.catalogue import ERRORS
from safemem.policy.values import Area, Deadline, Held, Limit, Node, OneOf, Size, Source, Text, Zone, condition, fail

NO_RULES = "there are no rules: add a [[rule]] with name, when and action"


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


class Memory(Table):
    """`[[memory]]`: blocks that get something else than the rule says. A hold counts wherever it stands, of zones the first.

    One of `range`, `node` and `driver`, and one of `hold` and `zone`. At the top of the file it counts for every
    rule, as `memory` of a rule for that one only, and there it comes first. It applies where a rule would
    online the block; it never onlines one that a rule holds. A block whose node or driver is not
    known is held by every exception that holds one.
    """

    range: Area = Field(
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
    quiesce: Annotated[str, OneOf(compiled.QUIESCE)] | None = Field(
        None,
        description="Before memory is touched, stop the PCI functions that may still write to memory and that no driver owns (`bus_masters`). It stops no bridge, no device behind a driver, no core that goes on running and nothing of firmware's.",
    )
    memory: list[Memory] = Field(
        [], description="Exceptions of this outcome alone, such as `[{ node = 1, hold = true }]`: see `[[memory]]`."
    )
    accept_data_exposure: bool = Field(
        False,
        description="This outcome may put guests' pages into the allocator; say so on purpose: with `online-all`, and with `online-safe` where the safe region has ranges, for a handover that is lost or unknown.",
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
        description="The first that can be resolved is used; all ranges of the list count as one. A range is taken in every state, after a lost handover too, which `check` wants accepted.",
        min_length=1,
    )


def _rules(value: object) -> object:
    if value == []:
        fail(((), NO_RULES))
    return value


class PolicyFile(Table):
    """A policy file."""

    format: Literal[1] = Field(description="Of this language: 1.")
    name: Text = Field(description="Of the policy; the record and the console say it.")
    allow_cmdline_override: bool = Field(False, description="Let the kernel command line loosen the outcome.")
    observe: bool = Field(
        False,
        description="Decide, record and report, and leave the host as Linux without safemem has it: nothing of this policy is in force. Not from the command line, but where `allow_cmdline_override` lets it.",
    )
    open_luo: bool = Field(False, description="Open /dev/liveupdate, for an instant, to tell `ready` from `failed`.")
    retrieve_token: bool = Field(
        False,
        description="Where `safemem.token=` names one, retrieve from LUO the page that `safemem-token.service` preserved before the kexec: it proves that the handover was accepted, on a kernel without debugfs too. Opens /dev/liveupdate for an instant, and finishes no other session.",
    )
    trust_guard: bool = Field(
        False,
        description="Where nothing else tells, take a handover as accepted if the guard that was asked for is not in force: only an accepted one keeps it from it, but a guard that was computed badly fails too.",
    )
    keep_crashkernel: Size | None = Field(
        None,
        description="What of a guard stays reserved for kdump when it is given back; default: nothing. Not after `online-safe`, which forbids crash kernels for the rest of the boot (Linux 6.3 and later).",
    )
    accept_errors: list[Annotated[str, OneOf(ERRORS)]] = Field(
        [],
        description="Codes of errors that `check` finds and with which this policy may go into an image all the same; the image, the record and `status` say it.",
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
    effective: Callable[[PolicyFile | model.Policy, Outcome | model.Rule], bool]
    otherwise: str  #: why it has none, in words that follow "`key` has no effect"


def _holds(table: PolicyFile | model.Policy, outcome: Outcome | model.Rule) -> bool:
    exceptions = (*outcome.memory, *table.memory)
    return outcome.action == "online-safe" or (outcome.action == "online-all" and any(m.hold for m in exceptions))


#: Of a key that is here twice, the first reason counts.
ONLY_WITH = (
    Only("zone", lambda _, o: o.action not in model.FINAL, ": `{action}` onlines nothing"),
    Only("on_shortfall", lambda _, o: o.action not in model.FINAL, ": after `{action}` the boot does not go on"),
    Only("boot_memory", lambda _, o: o.action == "online-safe", " with `{action}`, only with `online-safe`"),
    Only("floor", lambda _, o: o.boot_memory == "offline", ' without `boot_memory = "offline"`'),
    Only("exposed_max", lambda _, o: o.action == "online-safe", " with `{action}`, only with `online-safe`"),
    Only("exposed_max", lambda _, o: o.on_shortfall != "continue", " while `on_shortfall` is `continue`"),
    Only("enter", lambda _, o: o.action not in model.FINAL, ": after `{action}` the boot does not go on"),
    Only("if_onlined", _holds, ": `{action}` leaves no memory held"),
    Only("final", _holds, ": `{action}` leaves no memory held"),
    Only("quiesce", lambda _, o: o.action not in model.FINAL, ": `{action}` ends the boot before memory is touched"),
    Only("memory", lambda _, o: o.action not in model.FINAL, ": `{action}` onlines nothing that could be excepted"),
)
