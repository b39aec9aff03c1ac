# SPDX-License-Identifier: MIT
"""What on this machine would defeat or weaken a policy: each finding with its evidence.

Reads only. Every check is a function of one `Machine`, so that a fake root shows each of them; what a finding says
and what to do about it is in `safemem.host.catalogue`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safemem.boot import paths, probe, zeropage
from safemem.boot.cmdline import argument
from safemem.boot.model import UNKNOWN
from safemem.boot.ranges import Range, size_text, total
from safemem.boot.record import RECORD
from safemem.host import guardchecks, nextboot, onlinechecks, standing
from safemem.host.catalogue import SEVERITIES, Finding, finding
from safemem.host.machine import Machine, next_image
from safemem.host.verdict import faults
from safemem.initramfs import check as initramfs
from safemem.initramfs import target

#: What every running system has.
_RUNS = (paths.CMDLINE, "proc/sys/kernel/osrelease")
_MEMMAP = "sys/module/memory_hotplug/parameters/memmap_on_memory"


class Report(NamedTuple):
    """What was found out about a machine."""

    found: list[Finding]  #: the severe first
    proven: str  #: what was proved of the policy of the next boot; "" if nothing is known of it


def examine(root: str) -> list[Finding]:
    """Return everything that is wrong below `root`, the severe first."""
    return report(root).found


def report(root: str) -> Report:
    """Return everything that is wrong below `root`, and what was proved of its policy."""
    snapshot = probe.read_snapshot(root)
    image = next_image(root, str(snapshot.facts["kernel"].value))
    try:
        machine = Machine(root, snapshot, standing.read(root), "", image)
    except standing.NoDecision as error:
        machine = Machine(root, snapshot, None, str(error), image)
    found = [item for check in CHECKS for item in check(machine)]
    inside = machine.image.inside
    known = inside is not None and not initramfs.unproven(inside)
    proven = initramfs.proof_text(inside) if inside is not None and known else ""
    return Report(sorted(found, key=lambda item: SEVERITIES.index(item.severity)), proven)


def _decision(machine: Machine) -> Iterator[Finding]:
    found = machine.standing
    if found is None:
        if not any((Path(machine.root) / path).exists() for path in (*_RUNS, RECORD)):
            yield finding("not-booted", f"there is no {' and no '.join(_RUNS)}")
        else:
            yield finding("no-decision", machine.absent, how=_how(machine))
        return
    for area in found.onlined_by_others:
        yield finding("onlined-by-others", f"memory blocks against {RECORD}", area=area)
    for area in found.taken_offline:
        yield finding("was-online", "memory blocks against run/safemem", area=area)
    for problem in faults(found.record):  # what the policy tolerates is none
        yield finding("not-applied", RECORD, problem=problem)
    for warning in found.decision.warnings:
        if warning.code == "too-late":
            yield finding("too-late", RECORD, warning=warning)
    for note in found.then.notes:
        if note.code in ("onlined-early", "onlined-early-unknown"):
            severity = "severe" if found.decision.holds else "warning"
            yield finding("onlined-before-us", RECORD, severity=severity, note=note)


def _how(machine: Machine) -> str:
    """Return what has safemem decide in the next boot; where its image is good, that is the boot."""
    inside = machine.image.inside
    if inside is not None and not (inside.fault or machine.image.fault):
        return f"reboot, for safemem is in {machine.image.called}"
    if inside is not None and inside.fault == initramfs.UNSTARTED:
        return initramfs.START_IT
    return target.anew(machine.root, machine.image.release)


def _default_onlining(machine: Machine) -> Iterator[Finding]:
    if not machine.snapshot.block_size:
        yield finding("no-blocks", paths.MEMORY)
        return
    value = machine.value("auto_online")
    if machine.holds and value != "offline":
        yield finding("kernel-onlines", f"{paths.AUTO_ONLINE} reads `{value}`")
    if argument(machine.snapshot.cmdline, "memhp_default_state") != "offline":
        yield finding("no-memhp-argument", "memhp_default_state=offline is not on the command line")


def _handover(machine: Machine) -> Iterator[Finding]:
    handover, luo, kho = (machine.snapshot.facts[name] for name in ("handover", "luo", "kho"))
    arch = machine.value("arch")
    if handover.value == UNKNOWN and arch not in (UNKNOWN, *zeropage.KHO):
        yield finding("no-handover-here", f"{paths.ARCH} reads `{arch}`", arch=arch)
    elif kho.value == UNKNOWN or handover.value == UNKNOWN:
        fact = handover if handover.value == UNKNOWN else kho
        yield finding("cannot-tell", f"{fact.source}: {fact.reason}")
    if luo.value == "missing":
        yield finding("luo-missing", f"{luo.source}: {luo.reason}")
    asked = {name: argument(machine.snapshot.cmdline, name) for name in ("kho", "liveupdate")}
    if asked["kho"] in ("0", "off", "n") and asked["liveupdate"] in ("1", "on", "y"):
        yield finding("luo-without-kho", f"{paths.CMDLINE} has kho={asked['kho']} and liveupdate={asked['liveupdate']}")


def _zones(machine: Machine) -> Iterator[Finding]:
    if machine.value("kho") == "off":
        return
    size = machine.snapshot.block_size
    for run in machine.snapshot.blocks:
        if run.state == "online" and run.driver in ("virtio-mem", "kmem"):
            zone = machine.text(f"{paths.MEMORY}/memory{run.first}/valid_zones").split()
            if zone and zone[0] != "Movable":
                area = Range(run.first * size, (run.last + 1) * size)
                yield finding(
                    "kernel-zone", f"blocks {run.first}-{run.last} ({area}, {run.driver}) are in zone {zone[0]}"
                )


def _cost(machine: Machine) -> Iterator[Finding]:
    held = machine.held()
    lines = dict(line.split(":", 1) for line in machine.text(paths.MEMINFO).splitlines() if ":" in line)
    number = lines.get("MemTotal", "").strip().partition(" ")[0]
    in_use = int(number) << 10 if number.isascii() and number.isdecimal() and len(number) < 16 else 0
    on_memory = machine.text(_MEMMAP).lower() in ("y", "1", "force")
    # After a lost handover the map comes out of what is left: the safe region, with a guard little more.
    scratch = total(probe.scratch_now(machine.root))
    if held and not on_memory:
        for source, size, part in (("of memory in use", in_use, 8), ("of safe region", scratch, 2)):
            if size and held // 64 > size // part:
                texts = {"held": size_text(held), "cost": size_text(held // 64), "amount": size_text(size)}
                reads = machine.text(_MEMMAP)
                seen = f"{_MEMMAP} reads `{reads}`" if reads else f"there is no {_MEMMAP}"
                yield finding("memmap-cost", seen, source=source, **texts)
                break
    if str(machine.value("arch")).startswith("ppc64"):
        yield finding("dlpar", f"{paths.ARCH} reads `{machine.value('arch')}`")


def _user(machine: Machine) -> Iterator[Finding]:
    """Say what only root can read: without it, what is said above is not the whole."""
    if os.geteuid() == 0 or os.path.realpath(machine.root) != "/":
        return
    looked = (f"/{paths.DEBUGFS}", *map(str, machine.image.files))
    hidden = [path for path in looked if not os.access(path, os.R_OK)]
    yield finding("not-root", f"user {os.geteuid()}", hidden=", ".join([*hidden, f"/{paths.IOMEM}"]))


#: In the order in which a person would look.
CHECKS = (
    _decision,
    _default_onlining,
    *onlinechecks.CHECKS,
    _handover,
    _zones,
    _cost,
    *guardchecks.CHECKS,
    *nextboot.CHECKS,
    _user,
)
