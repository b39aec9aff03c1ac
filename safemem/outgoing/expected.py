# SPDX-License-Identifier: MIT
"""What the next boot will find and what its policy will make of it: if all goes well, and for each way in which it does not.

The facts of the next boot are those of this machine, with what the kexec changes; they are decided by the engine that
decides at boot, so that what is said here is what happens there.
"""

from __future__ import annotations

from typing import NamedTuple

from safemem.boot import asked, attempts, engine, paths, stake, stricter
from safemem.boot.asked import Asked
from safemem.boot.cmdline import arguments, last
from safemem.boot.model import FINAL, UNKNOWN, Blocks, Decision, Fact, Pages, Policy, Snapshot
from safemem.boot.probe import overrides
from safemem.outgoing.kernel import Kernel
from safemem.outgoing.nextline import Line, names_held_token, safe_region
from safemem.outgoing.prediction import Prediction
from safemem.outgoing.running import Running, hot_added
from safemem.policy.forecast import forecast

#: What may become of a handover in the next boot, in the order in which a person would ask.
STATES = ("accepted", "rejected", "orphaned", "unsupported", "lost", "none")
_IN, _OUT = f"{paths.KHO[-1]}/in/fdt", f"{paths.KHO[-1]}/out"
_SOURCES = {
    "accepted": _IN,
    "rejected": _OUT,
    "orphaned": "command line",
    "unsupported": paths.CONFIG[0],
    "lost": "command line",
    "none": paths.SETUP_DATA,
}
#: What is on the next command line only if a handover is to come.
_FOR_A_KEXEC = (asked.ARGUMENT, attempts.ARGUMENT, stake.ARGUMENT, stake.TOKEN)


class Policies(NamedTuple):
    """The policies that decide in the next boot."""

    built_in: Policy
    named: tuple[Policy, ...] = ()  #: by `safemem.policy=`, if there is one of that name


class Ending(NamedTuple):
    """What comes of one state of the handover."""

    state: str  #: one of STATES, or `panic` of the next kernel by itself
    reads: str  #: what the fact `handover` will be
    action: str  #: one of ACTIONS, or that ends the boot after all; "" if no policy is known, or the kernel panics
    rule: str = ""  #: that decides
    expected: bool = False  #: it is what is predicted


class NextBoot(NamedTuple):
    """What is known of the next boot before it."""

    running: Running
    kernel: Kernel
    line: Line
    policies: Policies | None


def state(found: Prediction, line: Line) -> str:
    """Return what is expected to become of the handover: one of STATES, `panic`, or `unknown`."""
    outcome = found.outcome
    if outcome in ("accepted", "panic"):
        if line.kho is None:
            return UNKNOWN
        if line.kho is False:
            return "orphaned"
        if outcome == "panic" and not line.luo:
            return "accepted"  # LUO, which would panic, is off
    return outcome


def endings(boot: NextBoot, expected: str) -> tuple[Ending, ...]:
    """Return what comes of each state of the handover that there can be, `expected` first."""
    found = [Ending("panic", "", "", expected=True)] if expected == "panic" else []
    for name in sorted(STATES, key=lambda name: (name != expected, STATES.index(name))):
        if name == expected or _may_come(boot, expected, name):
            found.append(ending(boot, name, expected=name == expected))
    return tuple(found)


def _may_come(boot: NextBoot, expected: str, name: str) -> bool:
    """Return whether the handover may become `name` all the same: damaged on the way, or the machine reset before."""
    if expected == "none" or name == "none":
        return False
    return {
        "accepted": expected == UNKNOWN,
        "rejected": boot.kernel.kho.value != "no" and expected in ("accepted", "panic", UNKNOWN),
        "orphaned": boot.kernel.kho.value != "no" and boot.line.kho is None,
        "unsupported": boot.kernel.kho.value == UNKNOWN,
        "lost": True,
    }[name]


def ending(boot: NextBoot, name: str, *, expected: bool = False) -> Ending:
    """Return what comes of one of STATES."""
    fact = reads(boot, name)
    if boot.policies is None:
        return Ending(name, str(fact.value), "", expected=expected)
    found = snapshot(boot, name, fact)
    decision = _decide(boot.policies, found)
    result = forecast(decision, found)
    dry = "dry-run" in found.overrides and boot.policies.built_in.allow_cmdline_override
    action = "online-all" if result.observed or dry else result.ends or decision.action
    return Ending(name, str(fact.value), action, decision.rule.name, expected)


def ends(found: Ending) -> bool:
    """Return whether the boot does not go on."""
    return found.action in FINAL


def _decide(policies: Policies, found: Snapshot) -> Decision:
    """Return what the policies say together, as the boot program has it."""
    own = policies.built_in
    first, *others = stricter.counting(own, policies.named, loosens=own.allow_cmdline_override)
    decision = engine.decide(first, found)
    for other in others:
        decision = stricter.choose(decision, engine.decide(other, found), found)
    return decision


def shows(boot: NextBoot) -> bool | None:
    """Return whether the next kernel has files that show whether it accepted; None where its configuration is not known."""
    config = boot.kernel.config
    return None if config is None else config.get("CONFIG_KEXEC_HANDOVER_DEBUGFS") == "y"


def by_token(boot: NextBoot) -> bool:
    """Return whether a token will say whether the next kernel accepted, where it has no files for that."""
    if boot.policies is None or not boot.line.text or not boot.line.luo:
        return False
    takes = boot.policies.built_in.retrieve_token
    return takes and names_held_token(boot.running, boot.line.text)


def reads(boot: NextBoot, name: str) -> Fact:
    """Return the fact `handover` of the next boot for one of STATES: it may not be able to tell."""
    if name in ("accepted", "rejected") and not shows(boot):
        if by_token(boot):
            return Fact(name, paths.LUO_DEVICE, "the token tells")
        return Fact(UNKNOWN, paths.LUO_CLASS, "the next kernel has no files to show whether it accepted")
    if name in ("lost", "none"):
        # By what nobody but handover-args writes the next boot knows that one was to come (safemem.boot.probe).
        named = last(arguments(boot.line.text or ""))
        told = any(word in named for word in _FOR_A_KEXEC) or ";" in named.get(stake.SAFE, "")
        name = "lost" if told else "none"
    return Fact(name, _SOURCES[name])


def snapshot(boot: NextBoot, name: str, handover: Fact) -> Snapshot:
    """Return the machine as the next boot will find it, where the handover becomes what `name` says."""
    now, line = boot.running.snapshot, boot.line
    named = last(arguments(line.text or ""))
    wanted = _guard(named)
    reserved = wanted if wanted and name not in ("accepted", "none") else None
    accepted = name == "accepted" and handover.value == "accepted"
    facts = {**now.facts, **_facts(boot, handover, named, accepted=accepted)}
    # An accepted handover leaves no room for the range; of pages it may find some.
    guard = "none" if wanted is None else "full" if reserved else "void"
    facts["guard"] = Fact(guard, "command line")
    try:
        safe = safe_region(line.text or "")[0]
    except ValueError:
        safe = ()
    witness = ""
    if name == "accepted" and wanted and line.kho:
        witness = f"a handover was offered, and the guard {wanted.range} was asked for and could not be reserved"
    return now._replace(
        facts=facts,
        blocks=_blocks(now, named),
        scratch=boot.running.scratch if accepted else (),
        cmdline=line.text or "",
        cmdline_safe=safe,
        guard=reserved.range if reserved else None,
        overrides=overrides(named),
        notes=(),
        witness=witness,
        gigantic=_pages(reserved) if reserved else (),
        masters=(),
    )


def _facts(boot: NextBoot, handover: Fact, named: dict[str, str], *, accepted: bool) -> dict[str, Fact]:
    """Return the facts that a kexec changes."""
    running, line = boot.running, boot.line
    told, held = Fact(UNKNOWN, handover.source, "nothing tells"), named.get("memhp_default_state") == "offline"
    on = bool(line.kho) and boot.kernel.kho.value == "yes"
    count = running.snapshot.facts["kexec_count"].value
    found = {
        "handover": handover,
        "kho": Fact("on" if on else "off", "command line"),
        "luo": Fact("ready" if on and line.luo and boot.kernel.luo.value == "yes" else "off", "command line"),
        "auto_online": Fact("offline" if held else UNKNOWN, "command line", "" if held else "the default is not known"),
        "kernel": Fact(boot.kernel.release or UNKNOWN, boot.kernel.path),
        "previous_kernel": Fact(running.outgoing.release, "") if accepted and running.outgoing.release else told,
        "kexec_count": Fact(count + 1 if isinstance(count, int) else 1, "") if accepted else told,
        "nodes": Fact(tuple(sorted(running.nodes)), "") if accepted and running.nodes else told,
        "preserved": stake.told(arguments(line.text or "")),
        "bus_masters": Fact("none", "", "the next boot looks"),
    }
    number = named.get(attempts.ARGUMENT, "")
    if not attempts.in_firmware(running.snapshot.facts["boot_attempts"]):
        known = number.isascii() and number.isdecimal() and len(number) < 10
        found["boot_attempts"] = Fact(int(number), "command line") if known else told
    return found


def _guard(named: dict[str, str]) -> Asked | None:
    try:
        return asked.parse(named[asked.ARGUMENT])
    except (KeyError, ValueError):
        return None


def _pages(wanted: Asked) -> tuple[Pages, ...]:
    own = dict(wanted.own)
    return tuple(Pages(node, wanted.page, number, number, own.get(node, 0)) for node, number in wanted.pages)


def _blocks(now: Snapshot, named: dict[str, str]) -> tuple[Blocks, ...]:
    """Return the blocks as a kernel has them that has just started: boot memory online, the rest as it is asked for."""
    hot = "offline" if named.get("memhp_default_state") == "offline" else "online"
    return tuple(run._replace(state=hot if hot_added(now, run) else "online") for run in now.blocks)
