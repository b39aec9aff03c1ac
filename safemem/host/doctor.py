# SPDX-License-Identifier: MIT
"""What on this machine would defeat or weaken a policy: each finding with its evidence.

Reads only. Every check is a function of one `Machine`, so that a fake root shows each of them; what a finding says
and what to do about it is in `safemem.host.catalogue`.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safemem.boot import crashkernel, files, paths, probe
from safemem.boot.cmdline import argument
from safemem.boot.hold import UNITS_RUN
from safemem.boot.model import UNKNOWN, Refused, Snapshot
from safemem.boot.ranges import Range, size_text, total
from safemem.boot.record import RECORD
from safemem.host import standing, suspects
from safemem.host.catalogue import SEVERITIES, Finding, finding
from safemem.initramfs import check as initramfs
from safemem.policy import installed
from safemem.realroot import hold as realroot
from safemem.realroot import udevrules

_MEMMAP = "sys/module/memory_hotplug/parameters/memmap_on_memory"


class Machine(NamedTuple):
    """What the checks look at."""

    root: str
    snapshot: Snapshot
    standing: standing.Standing | None
    absent: str  #: why there is no decision

    def text(self, path: str) -> str:
        """Return a file's text, or nothing if it cannot be read."""
        try:
            return (Path(self.root) / path).read_text("utf-8", "replace").strip()
        except OSError:
            return ""

    def value(self, fact: str) -> object:
        """Return a fact's value."""
        return self.snapshot.facts[fact].value

    @property
    def holds(self) -> bool:
        """Whether memory that arrives is to stay offline; without a decision, that is the safe answer."""
        return self.standing is None or self.standing.decision.holds

    def held(self) -> int:
        """Return the bytes that are offline now."""
        return sum(run.number for run in self.snapshot.blocks if run.state == "offline") * self.snapshot.block_size


def examine(root: str) -> list[Finding]:
    """Return everything that is wrong below `root`, the severe first."""
    snapshot = probe.read_snapshot(root)
    try:
        machine = Machine(root, snapshot, standing.read(root), "")
    except standing.NoDecision as error:
        machine = Machine(root, snapshot, None, str(error))
    found = [item for check in CHECKS for item in check(machine)]
    return sorted(found, key=lambda item: SEVERITIES.index(item.severity))


def _decision(machine: Machine) -> Iterator[Finding]:
    found = machine.standing
    if found is None:
        yield finding("no-decision", machine.absent)
        return
    for area in found.onlined_by_others:
        yield finding("onlined-by-others", f"memory blocks against {RECORD}", area=area)
    for area in found.taken_offline:
        yield finding("was-online", "memory blocks against run/safemem", area=area)
    for problem in found.record.done.problems if found.record.done else ():
        yield finding("not-applied", RECORD, problem=problem)
    for warning in found.decision.warnings:
        if warning.code == "too-late":
            yield finding("too-late", RECORD, warning=warning)
    for note in found.then.notes:
        if note.code in ("onlined-early", "onlined-early-unknown"):
            severity = "severe" if found.decision.holds else "warning"
            yield finding("onlined-before-us", RECORD, severity=severity, note=note)


def _default_onlining(machine: Machine) -> Iterator[Finding]:
    if not machine.snapshot.block_size:
        yield finding("no-blocks", paths.MEMORY)
        return
    value = machine.value("auto_online")
    if machine.holds and value != "offline":
        yield finding("kernel-onlines", f"{paths.AUTO_ONLINE} reads `{value}`")
    if argument(machine.snapshot.cmdline, "memhp_default_state") != "offline":
        yield finding("no-memhp-argument", "memhp_default_state=offline is not on the command line")


def _udev(machine: Machine) -> Iterator[Finding]:
    for rule in udevrules.find(machine.root):
        yield finding("udev-rule", f"{rule.file}:{rule.line}", rule=rule.what, name=os.path.basename(rule.file))
    if machine.standing is not None and machine.holds and not (Path(machine.root) / realroot.MASKED).exists():
        yield finding("real-root-not-masked", f"{realroot.MASKED} does not exist")
    ours = any((Path(machine.root) / folder / udevrules.OURS).exists() for folder in udevrules.FOLDERS)
    if not ours:
        yield finding("no-udev-rule", f"{udevrules.OURS} is in no rules folder", name=udevrules.OURS)


def _daxctl(machine: Machine) -> Iterator[Finding]:
    for path in sorted((Path(machine.root) / "etc/daxctl.conf.d").glob("*.conf")):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        try:
            parser.read_string(path.read_text("utf-8", "replace"))
        except configparser.Error:
            continue
        for section in parser.sections():
            table = parser[section]
            # Onlining is what it does unless told otherwise; both spellings count as told.
            told = table.get("online", "").strip() == "false" or table.get("no-online", "").strip() == "true"
            if table.get("mode", "").strip() == "system-ram" and not told:
                yield finding("daxctl", str(path), section=section)


def _agents(machine: Machine) -> Iterator[Finding]:
    for name, path in suspects.running(machine.root):
        yield finding("agent", path, name=name, about=suspects.PROGRAMS[name])


def _handover(machine: Machine) -> Iterator[Finding]:
    handover, luo, kho = (machine.snapshot.facts[name] for name in ("handover", "luo", "kho"))
    if kho.value == UNKNOWN or handover.value == UNKNOWN:
        fact = handover if handover.value == UNKNOWN else kho
        yield finding("cannot-tell", f"{fact.source}: {fact.reason}")
    if luo.value == "missing":
        yield finding("luo-missing", f"{luo.source}: {luo.reason}")
    asked = {name: argument(machine.snapshot.cmdline, name) for name in ("kho", "liveupdate")}
    if asked["kho"] in ("0", "off", "n") and asked["liveupdate"] in ("1", "on", "y"):
        yield finding("luo-without-kho", "command line")


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
                yield finding("memmap-cost", _MEMMAP, source=source, **texts)
                break
    if any(run.driver == "virtio-mem" and run.state == "offline" for run in machine.snapshot.blocks):
        yield finding("virtio-mem-stalls", "memory blocks")
    if str(machine.value("arch")).startswith("ppc64"):
        yield finding("dlpar", "arch")


def _guard(machine: Machine) -> Iterator[Finding]:
    guard = machine.snapshot.facts["guard"]
    if guard.value == "void" and machine.value("handover") != "accepted":
        yield finding("guard-void", f"{guard.source}: {guard.reason}")
    if guard.value != "held" or (machine.standing and machine.standing.guard is None):
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
        there = any((Path(machine.root) / folder / unit).exists() for folder in _UNITS)
        if there and not _masked(machine, unit):
            yield finding(
                "crash-kernel-allowed",
                f"there is no {paths.LOAD_LIMIT} (Linux 6.3), and the unit is not masked",
                how=f"{unit} loads a crash kernel, which",
                command=f"systemctl mask {unit}",
            )


_CRASH_LOADED = "sys/kernel/kexec_crash_loaded"
_UNITS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")


def _masked(machine: Machine, unit: str) -> bool:
    """Return whether a unit is a link to /dev/null in one of the places that systemd looks into first."""
    links = (os.path.join(machine.root, folder, unit) for folder in ("etc/systemd/system", UNITS_RUN))
    return any(os.path.islink(link) and os.readlink(link) == "/dev/null" for link in links)


def _initrd(machine: Machine) -> Iterator[Finding]:
    release = str(machine.value("kernel"))
    image = initramfs.find(machine.root, release)
    if image is None:
        yield finding("no-initrd", " ".join(place.format(release) for place in initramfs.PLACES), release=release)
        return
    try:
        inside = initramfs.inside(image.read_bytes())
    except (OSError, ValueError) as error:
        why = files.reason(error) if isinstance(error, OSError) else error
        yield finding("initrd-unreadable", f"{image}: {why}")
        return
    if inside is None:
        yield finding("initrd-without-safemem", str(image))
        return
    if inside.fault:
        yield finding("initrd-not-first", f"{image}: {inside.fault}")
    if os.path.lexists(Path(machine.root) / installed.POLICY):
        yield from _other_policy(machine, f"{image} has digest {inside.digest[:12]}", inside.digest)


def _other_policy(machine: Machine, seen: str, digest: str) -> Iterator[Finding]:
    """Compare the operator's policy with the one in the initrd."""
    try:
        from safemem.policy import load  # pydantic: for this check only
    except (ImportError, SystemError) as error:  # the latter is a pydantic that does not fit its own core
        yield finding("policy-not-read", str(error), policy=installed.POLICY)
        return
    try:
        file = installed.find(machine.root)
        own = load.parse(file.data, str(file.path)).policy.digest
    except (Refused, OSError) as error:
        yield finding("policy-refused", str(error).splitlines()[0], policy=installed.POLICY)
        return
    if own != digest:
        yield finding("initrd-other-policy", f"{seen}, the file {own[:12]}", policy=installed.POLICY)


def _kexec(machine: Machine) -> Iterator[Finding]:
    """Find what would load the next kernel with kexec_load(2), which hands nothing over and leaves no mark."""
    if machine.value("kho") == "off":
        return
    script, settings = "etc/init.d/kexec-load", "etc/default/kexec"
    for number, line in enumerate(machine.text(script).splitlines(), 1):
        words = line.split()
        loads = words[:1] == ["/sbin/kexec"] and ("-l" in words or "--load" in words)
        if loads and not {"-s", "--kexec-file-syscall", "-a", "--kexec-syscall-auto"} & set(words):
            if _setting(machine.text(settings), "LOAD_KEXEC", "true") == "true":
                yield finding("old-kexec", f"{script}:{number}: {line.strip()}", settings=settings)
            return


def _setting(text: str, name: str, default: str) -> str:
    """Return what a shell file of plain assignments sets `name` to."""
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and key == name:
            default = value.strip().strip("\"'")
    return default


#: In the order in which a person would look.
CHECKS = (_decision, _default_onlining, _udev, _daxctl, _agents, _handover, _zones, _cost, _guard, _initrd, _kexec)
