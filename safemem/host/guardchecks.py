# SPDX-License-Identifier: MIT
"""What defeats a guard, or the memory that no guard covers: checks of doctor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from safemem.boot import crashkernel, paths
from safemem.boot.asked import ARGUMENT, parse
from safemem.boot.cmdline import argument, boolean, memparse
from safemem.boot.hold import UNITS_RUN
from safemem.boot.model import Fact, Pages
from safemem.boot.ranges import size_text
from safemem.host import remedies, suspects
from safemem.host.catalogue import Finding, finding
from safemem.host.machine import Machine

_CRASH_LOADED = "sys/kernel/kexec_crash_loaded"
_UNITS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_SYSCTL = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")
#: Arguments with which the kernel writes into memory that is free, and what it does then.
_CLEARS = {"init_on_free": "clears", "page_poison": "overwrites"}


def _in_force(machine: Machine) -> Iterator[Finding]:
    guard = _guard(machine)
    accepted = machine.value("handover") == "accepted"
    if guard.value == "void" and not accepted:
        yield finding("guard-void", f"{guard.source}: {guard.reason}")
    if guard.value == "part" and not accepted:
        yield finding("guard-part", f"{guard.source}: {guard.reason}")
    try:
        asked = parse(argument(machine.snapshot.cmdline, ARGUMENT) or "")
    except ValueError:  # none, or one that is void
        return
    for node, _ in asked.pages:
        folder = Path(machine.root) / paths.NODES
        if folder.is_dir() and not (folder / f"node{node}").exists():
            yield finding("guard-node-missing", f"{paths.NODES}/node{node} does not exist", node=node)


def _guard(machine: Machine) -> Fact:
    """Return what was in force when this boot began: what has been released since is not missing."""
    snapshot = machine.standing.then if machine.standing else machine.snapshot
    return snapshot.facts["guard"]


def _pages(machine: Machine) -> Iterator[Finding]:
    """Look at gigantic pages that are to be kept from programs."""
    found = machine.standing
    if found is None or not found.gigantic or found.mode != "enforce" or found.decision.action == "online-all":
        return
    for area in found.let_go:
        yield finding("guard-let-go", f"{paths.PAGEFLAGS} and the pools, against run/safemem", area=area)
    if not found.kept and any(item.free for item in found.gigantic):
        size = size_text(sum(item.free * item.size for item in found.gigantic))
        yield finding(
            "pages-not-reserved", f"{paths.HUGE.format(found.gigantic[0].size >> 10)}/resv_hugepages", size=size
        )
    for item in found.gigantic:
        if item.number > item.free:
            yield finding("page-mapped", _who(machine, item), number=item.number - item.free, node=item.node)


def _who(machine: Machine, item: Pages) -> str:
    who = suspects.find_for_pages(machine.root, item.size)
    return (
        "; ".join(f"{one.who} ({one.evidence})" for one in who)
        or "free_hugepages of the node is less than nr_hugepages"
    )


def _crash(machine: Machine) -> Iterator[Finding]:
    """Look at what would write into the crash range."""
    if machine.snapshot.guard is None or (machine.standing and machine.standing.guard is None):
        return
    if machine.text(_CRASH_LOADED) == "1":
        yield finding("crash-kernel-in-guard", _CRASH_LOADED)
    limit = machine.text(paths.LOAD_LIMIT)
    if limit and not crashkernel.forbidden(machine.root):
        yield finding(
            "crash-kernel-allowed",
            f"{paths.LOAD_LIMIT} is not 0",
            how="a crash kernel may be loaded, and",
            command="sysctl -w kernel.kexec_load_limit_panic=0",
        )
    for unit in () if limit else crashkernel.KDUMP:
        there = next((folder for folder in _UNITS if (Path(machine.root) / folder / unit).exists()), None)
        if there and not _masked(machine, unit):
            yield finding(
                "crash-kernel-allowed",
                f"there is no {paths.LOAD_LIMIT} (Linux 6.3), and the unit is not masked",
                how=f"{unit} loads a crash kernel, which",
                command=remedies.unit(machine.root, f"{there}/{unit}"),
            )


def _arguments(machine: Machine) -> Iterator[Finding]:
    """Look at the command line, which `handover-args` hands on."""
    for name, what in _CLEARS.items():
        value = argument(machine.snapshot.cmdline, name)
        if boolean(value):
            yield finding("clears-free-memory", f"command line: {name}={value}", name=name, what=what)
    value = argument(machine.snapshot.cmdline, "hugetlb_cma")
    if value and value.strip("0,:"):
        yield finding("hugetlb-cma", f"command line: hugetlb_cma={value}")
    try:
        usual = memparse(argument(machine.snapshot.cmdline, "default_hugepagesz") or "0")
    except ValueError:
        return
    if usual >= 1 << 30:
        yield from _sysctl(machine)


def _sysctl(machine: Machine) -> Iterator[Finding]:
    """Look for what sets the pool of the usual size at each boot, where that is a gigantic one."""
    root = Path(machine.root)
    found = [root / "etc/sysctl.conf", *(path for folder in _SYSCTL for path in sorted((root / folder).glob("*.conf")))]
    for path in found:
        for number, line in enumerate(machine.text(str(path.relative_to(root))).splitlines(), 1):
            key = line.partition("=")[0].strip().lstrip("-").replace("/", ".")
            if key in ("vm.nr_hugepages", "vm.nr_hugepages_mempolicy"):
                yield finding("sysctl-pool", f"{path.relative_to(root)}:{number}", key=key)


def _masked(machine: Machine, unit: str) -> bool:
    """Return whether a unit is a link to /dev/null in one of the places that systemd looks into first."""
    links = (os.path.join(machine.root, folder, unit) for folder in ("etc/systemd/system", UNITS_RUN))
    return any(os.path.islink(link) and os.readlink(link) == "/dev/null" for link in links)


CHECKS = (_in_force, _pages, _crash, _arguments)
