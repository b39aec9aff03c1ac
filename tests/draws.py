# SPDX-License-Identifier: MIT
"""What tests draw: policies, machines, and what comes of the one on the other, as numbers that are larger for looser."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from hypothesis import strategies as st

from safemem.boot import engine
from safemem.boot.model import (
    DERIVED,
    DRIVERS,
    FACTS,
    FINAL,
    UNKNOWN,
    Blocks,
    Decision,
    Fact,
    Failure,
    Override,
    Pages,
    Policy,
    Rule,
    Snapshot,
    Term,
)
from safemem.boot.ranges import Range, parse_limit, parse_size
from safemem.policy.language import ONLY_WITH
from tests.kit import policy, when

#: `make draws` asks for 100,000.
DRAWS = int(os.environ.get("SAFEMEM_DRAWS", "1200"))
BLOCK = 128 << 20
ASKED = ("handover", "luo", "guard", "safe_region", "held_blocks", "online_outside_safe")
ENDS = {"continue": 0, "reboot": 1, "panic": 2, "halt": 2}
ZONES = {"": 0, "movable": 1, "auto": 2, "kernel": 3}


# ---- policies

LIMITS = ("0%", "1%", "10%", "10.0%", "50%", "100%", "0KiB", "128MiB", "1GiB", "1024MiB", "64TiB")
FLOORS = ("64MiB", "128MiB", "512MiB", "64GiB")
AREAS = tuple(
    Range(first * BLOCK, last * BLOCK + odd) for first, last, odd in ((0, 2, 0), (1, 4, 1), (4, 8, 0), (5, 9, -1))
)
NAMED = st.one_of(
    st.sampled_from(AREAS).map(lambda area: Override(range=area)),
    st.integers(0, 1).map(lambda node: Override(node=node)),
    st.sampled_from(DRIVERS).map(lambda driver: Override(driver=driver)),
)
EXCEPTION = st.one_of(
    NAMED.map(lambda item: item._replace(hold=True)),
    st.builds(lambda item, zone: item._replace(zone=zone), NAMED, st.sampled_from(["movable", "auto", "kernel"])),
)
WORDS: dict[str, st.SearchStrategy[Any]] = {
    "action": st.sampled_from(["online-all", "online-safe", "online-safe", "panic", "reboot", "halt"]),
    "zone": st.sampled_from(["", "movable", "auto", "kernel"]),
    "enter": st.sampled_from(["", "maintenance"]),
    "on_shortfall": st.sampled_from(["continue", "panic", "reboot", "halt"]),
    "exposed_max": st.sampled_from(["", *LIMITS]),
    "boot_memory": st.sampled_from(["leave", "offline"]),
    "floor": st.sampled_from(["", *FLOORS]),
    "if_onlined": st.sampled_from(["report", "offline"]),
    "final": st.booleans(),
    "quiesce": st.sampled_from(["", "pci"]),
    "accept_data_exposure": st.booleans(),
    "memory": st.lists(EXCEPTION, max_size=2).map(tuple),
}
BESIDE: dict[str, st.SearchStrategy[Any]] = {
    "sources": st.sampled_from([("kho-scratch",), ("cmdline",), ("none",), ("kho-scratch", "cmdline"), AREAS[:1], (AREAS[0], AREAS[2]), AREAS[2:3], ("cmdline", AREAS[3])]),
    "allow_cmdline_override": st.booleans(),
    "memory": st.lists(EXCEPTION, max_size=3).map(tuple),
    "open_luo": st.booleans(),
    "retrieve_token": st.booleans(),
    "keep_crashkernel": st.sampled_from(["", "128MiB", "256MiB", "64TiB"]),
    "trust_guard": st.booleans(),
    "on_failure": st.tuples(st.sampled_from(FINAL), st.just(""), st.sampled_from([1, 10, 600])).map(lambda it: Failure(*it)),
}  # fmt: skip


def written(drawn: Policy) -> Policy:
    """Return `drawn` without the words that `load` refuses because they say nothing there."""

    def said(one: Rule) -> Rule:
        for only in ONLY_WITH:
            if not only.effective(drawn, one):
                one = one._replace(**{only.key: Rule._field_defaults[only.key]})
        return one

    return drawn._replace(rules=tuple(map(said, drawn.rules)), otherwise=said(drawn.otherwise))


@st.composite
def conditions(draw: st.DrawFn) -> tuple[Any, ...]:
    """Return what a rule asks for, of one or two facts."""
    found: tuple[Any, ...] = ()
    for fact in draw(st.lists(st.sampled_from(ASKED), min_size=1, max_size=2, unique=True)):
        members = draw(st.lists(st.sampled_from(FACTS[fact][1]), min_size=1, max_size=3, unique=True))
        found += when(fact, *(Term("is", member) for member in members), negate=draw(st.booleans()))
    return found


@st.composite
def rules(draw: st.DrawFn, name: str) -> Rule:
    """Return a rule with at most a few words beside its action."""
    more = draw(st.lists(st.sampled_from(sorted(WORDS)), max_size=4, unique=True))
    words = {word: draw(WORDS[word]) for word in dict.fromkeys(["action", *more])}
    return Rule(name, words.pop("action"), draw(conditions()) if name != "otherwise" else (), **words)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Return a policy of up to three rules."""
    ordered = [draw(rules(f"r{index}")) for index in range(draw(st.integers(0, 2)))]
    beside = draw(st.lists(st.sampled_from(sorted(BESIDE)), max_size=3, unique=True))
    drawn = policy(*ordered, otherwise=draw(rules("otherwise")))
    return written(drawn._replace(**{key: draw(BESIDE[key]) for key in beside}))


# ---- machines


class Machine(NamedTuple):
    """What a boot meets: what can be read, and what will become of the plan."""

    snapshot: Snapshot
    device: bool  #: /dev/liveupdate is there, so who does not open the device takes it for ready
    exposed: int  #: bytes, in the end
    loose: bool  #: memory that should be held is online
    default: int  #: the floor of a rule that names none
    token: str = ""  #: what retrieving one says of a handover that nothing else tells


@st.composite
def machines(draw: st.DrawFn, handovers: tuple[str, ...] = FACTS["handover"][1]) -> Machine:
    """Return a machine of a dozen blocks, with facts that go together."""
    facts: dict[str, Any] = {name: UNKNOWN for name in FACTS if name not in DERIVED}
    facts |= {"handover": draw(st.sampled_from(handovers)), "luo": draw(st.sampled_from(FACTS["luo"][1])),
              "kho": draw(st.sampled_from(["on", "off"])), "guard": draw(st.sampled_from(FACTS["guard"][1]))}  # fmt: skip
    if facts["handover"] == "accepted":
        facts["kho"] = "on"
    if facts["handover"] in ("orphaned", "unsupported"):
        facts["kho"] = "off"
    if facts["kho"] == "off" and facts["luo"] in ("ready", "failed", "busy"):
        facts["luo"] = "off"
    if facts["guard"] == "full" and facts["handover"] == "accepted":
        facts["guard"] = "part"
    if facts["guard"] in ("full", "part", "void") and facts["handover"] == "none":
        facts["guard"] = "none"
    kinds = st.tuples(st.sampled_from(["online", "offline", "offline"]), st.integers(-1, 1), st.sampled_from(DRIVERS))
    runs, at = [], 0
    for _ in range(draw(st.integers(1, 5))):
        last = at + draw(st.integers(0, 3))
        runs.append(Blocks(at, last, *draw(kinds)))
        at = last + 1
    force = facts["guard"] in ("full", "part")
    guard = Range(BLOCK, 4 * BLOCK) if force and facts["handover"] != "accepted" else None
    own = draw(st.integers(0, 2))
    pages = Pages(0, BLOCK, 2, 2, own, draw(st.sampled_from([(), (Range(4 * BLOCK, 6 * BLOCK),)]))) if force else None
    shows = facts["handover"] == UNKNOWN and facts["guard"] == "void" and facts["kho"] == "on"
    witness = "a sign" if shows and draw(st.booleans()) else ""
    seen = Snapshot(
        {name: Fact(value, "test") for name, value in facts.items()}, BLOCK, tuple(runs),
        draw(st.sampled_from([(), AREAS[:1]])) if facts["handover"] == "accepted" else (), "",
        draw(st.sampled_from([(), AREAS[1:2]])), guard, draw(st.sampled_from([(), (), ("off",)])), (), witness,
        gigantic=(pages,) if pages else (),
    )  # fmt: skip
    whole = at * BLOCK
    exposed = draw(st.sampled_from([0, 1, whole // 50, whole // 9, whole // 2, whole]))
    told = "" if facts["handover"] != UNKNOWN else draw(st.sampled_from(["", "accepted", "rejected"]))
    if (told == "accepted" and force) or facts["kho"] != "on":
        told = ""
    return Machine(
        seen, draw(st.booleans()), exposed, draw(st.booleans()), draw(st.sampled_from([BLOCK, 4 << 30])), told
    )


def decide(drawn: Policy, machine: Machine) -> Decision:
    """Return what the engine decides with what the policy has looked at."""
    seen = machine.snapshot
    if machine.device and not drawn.open_luo and seen.facts["luo"].value in ("failed", "busy", UNKNOWN):
        seen = seen._replace(facts={**seen.facts, "luo": Fact("ready", "test")})
    if drawn.retrieve_token and machine.token:
        seen = seen._replace(facts={**seen.facts, "handover": Fact(machine.token, "test")})
    return engine.decide(drawn, seen)


def outcome(drawn: Policy, machine: Machine) -> dict[Any, int]:
    """Return what comes of a policy on a machine: how loose it is in each respect, more than one way to be looser."""
    if drawn.observe:
        return {"end": 1}  # looser than whatever it decides: nothing of that is done
    decision = decide(drawn, machine)
    return came_of(decision, (decision.rule.exposed_max,), drawn.on_failure.deadline, machine)


def came_of(decision: Decision, limits: tuple[str, ...], deadline: int, machine: Machine) -> dict[Any, int]:
    """Return what comes of a decision: as `outcome`; any of `limits` may be exceeded."""
    rule, whole = decision.rule, sum(run.number for run in machine.snapshot.blocks) * BLOCK
    ends = ENDS.get(decision.action, 0)
    if not ends:
        over = any(machine.exposed > parse_limit(limit, whole) if limit else machine.loose for limit in limits)
        ends = ENDS[rule.on_shortfall] if over else 0
    if ends:
        return {"end": -ends}
    found: dict[Any, int] = {"end": 0, "arrivals": ZONES[decision.arrivals], "enter": not rule.enter}
    if decision.holds:
        found |= {"final": not rule.final, "if_onlined": rule.if_onlined != "offline"}
    found["quiesce"] = not rule.quiesce
    off = False
    for step in decision.steps:
        if step.first < 0:
            released = step.size if step.op == "release-guard" else 0
            found["guard"] = found.get("guard", 0) + released
            continue
        off |= step.op == "offline"
        rank = {"hold": 0, "offline": 1, "keep": 5}.get(step.op) or (1 + ZONES[step.zone] if step.op == "online" else 0)
        found |= dict.fromkeys(range(step.first, step.last + 1), rank)
    if off:
        found["floor"] = parse_size(rule.floor) if rule.floor else machine.default
        found["patience"] = -deadline
    return found


def looser(before: dict[Any, int], after: dict[Any, int]) -> list[Any]:
    """Return in which respects the second outcome is looser; a boot that ends has no other respect."""
    if before["end"] != after["end"] or before["end"]:
        return ["end"] if after["end"] > before["end"] else []
    return [key for key in before.keys() & after.keys() if after[key] > before[key]]
