# SPDX-License-Identifier: MIT
"""What on this machine would defeat or weaken a policy: each finding with its evidence and a remedy.

Reads only. Every check is a function of one `Machine`, so that a fake root shows each of them.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safemem.boot import crashkernel, paths, probe
from safemem.boot.cmdline import argument
from safemem.boot.hold import UNITS_RUN
from safemem.boot.model import UNKNOWN, Snapshot
from safemem.boot.ranges import Range, size_text
from safemem.host import standing, suspects
from safemem.initramfs import check as initramfs
from safemem.policy import installed, load
from safemem.realroot import hold as realroot
from safemem.realroot import udevrules

SEVERITIES = ("severe", "warning", "note")


class Finding(NamedTuple):
    """One thing that stands in the policy's way."""

    code: str
    severity: str
    message: str
    evidence: str
    remedy: str


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
    found = [finding for check in CHECKS for finding in check(machine)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _decision(machine: Machine) -> Iterator[Finding]:
    if machine.standing is None:
        yield Finding(
            "no-decision", "severe", "safemem decided nothing in this boot", machine.absent,
            "put it into the initramfs: `safemem initramfs install`",
        )  # fmt: skip
        return
    for area in machine.standing.loose:
        yield Finding(
            "onlined-by-others", "severe", f"{area} was held and somebody onlined it", "memory blocks against run/safemem/decision.json",
            "find who did (the findings below), stop it, and treat what was in that memory as lost",
        )  # fmt: skip
    for area in machine.standing.used:
        yield Finding(
            "was-online", "warning", f"{area} was online in this boot and was taken offline: what was in it may be lost",
            "memory blocks against run/safemem", "see `safemem status`: who may have onlined it, or what was released",
        )  # fmt: skip
    result = machine.standing.result or {}
    for text in result.get("problems", []):
        yield Finding("not-applied", "warning", text, "run/safemem/decision.json", "see `safemem status`")
    late = [text for text in machine.standing.decision["warnings"] if "online before the decision" in text]
    for text in late:
        yield Finding(
            "too-late", "warning", text, "run/safemem/decision.json",
            "boot with memhp_default_state=offline, and with a guard for boot memory",
        )  # fmt: skip
    for text in machine.standing.then.notes:
        if "before safemem ran" in text:
            yield Finding(
                "onlined-before-us", "warning" if machine.standing.decision.get("arrivals") else "severe", text,
                "run/safemem/decision.json", "boot with memhp_default_state=offline; what was in that memory may be lost",
            )  # fmt: skip


def _default_onlining(machine: Machine) -> Iterator[Finding]:
    if not machine.snapshot.block_size:
        yield Finding(
            "no-blocks", "note", "this kernel shows no memory blocks, so there is nothing to hold", paths.MEMORY, ""
        )
        return
    holds = machine.standing is None or not machine.standing.decision.get("arrivals")
    value = machine.value("auto_online")
    if holds and value != "offline":
        yield Finding(
            "kernel-onlines", "severe", "the kernel onlines memory that is plugged in, before udev hears of it",
            f"{paths.AUTO_ONLINE} reads `{value}`", "boot with memhp_default_state=offline, and let safemem run in the initramfs",
        )  # fmt: skip
    if argument(machine.snapshot.cmdline, "memhp_default_state") != "offline":
        yield Finding(
            "no-memhp-argument", "warning", "a DIMM that is there at boot is onlined by the kernel before any program runs",
            "memhp_default_state=offline is not on the command line", "add memhp_default_state=offline to the kernel's command line",
        )  # fmt: skip


def _udev(machine: Machine) -> Iterator[Finding]:
    for rule in udevrules.find(machine.root):
        yield Finding(
            "udev-rule", "severe", f"a udev rule onlines memory: {rule.what}", f"{rule.file}:{rule.line}",
            f"mask it: ln -s /dev/null /etc/udev/rules.d/{os.path.basename(rule.file)}",
        )  # fmt: skip
    held = machine.standing is not None and not machine.standing.decision.get("arrivals")
    if held and not (Path(machine.root) / realroot.MASKED).exists():
        yield Finding(
            "real-root-not-masked", "warning", "this system's own udev rules were not looked at before udev started",
            f"{realroot.MASKED} does not exist", "install and enable safemem-hold.service",
        )  # fmt: skip
    ours = any((Path(machine.root) / folder / udevrules.OURS).exists() for folder in udevrules.FOLDERS)
    if not ours:
        yield Finding(
            "no-udev-rule", "warning", "udev does not know what to do with blocks that arrive later", f"{udevrules.OURS} is in no rules folder",
            f"install udev/{udevrules.OURS} to /usr/lib/udev/rules.d",
        )  # fmt: skip


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
                yield Finding(
                    "daxctl", "severe", f"daxctl turns a dax device into system RAM and onlines it ([{section}])",
                    str(path), "remove the section, or keep it from onlining: daxctl-reconfigure-device(1)",
                )  # fmt: skip


def _agents(machine: Machine) -> Iterator[Finding]:
    for name, path in suspects.running(machine.root):
        yield Finding(
            "agent", "warning", f"{name} is running: {suspects.PROGRAMS[name]}", path, "keep it from onlining memory, or stop it",
        )  # fmt: skip


def _handover(machine: Machine) -> Iterator[Finding]:
    handover, luo, kho = (machine.snapshot.facts[name] for name in ("handover", "luo", "kho"))
    if kho.value == UNKNOWN or handover.value == UNKNOWN:
        fact = handover if handover.value == UNKNOWN else kho
        yield Finding(
            "cannot-tell", "warning", "whether a handover was accepted cannot be told on this machine", f"{fact.source}: {fact.reason}",
            "use a kernel with CONFIG_KEXEC_HANDOVER_DEBUGFS and /proc/config.gz, and let debugfs be mounted",
        )  # fmt: skip
    if luo.value == "missing":
        yield Finding(
            "luo-missing", "warning", "liveupdate= asks for LUO, and there is no /dev/liveupdate", f"{luo.source}: {luo.reason}",
            "boot with kho=on, and a kernel with CONFIG_LIVEUPDATE",
        )  # fmt: skip
    asked = {name: argument(machine.snapshot.cmdline, name) for name in ("kho", "liveupdate")}
    if asked["kho"] in ("0", "off", "n") and asked["liveupdate"] in ("1", "on", "y"):
        yield Finding(
            "luo-without-kho",
            "warning",
            "liveupdate= is on and kho= is off: LUO cannot start",
            "command line",
            "add kho=on, or remove liveupdate=",
        )


def _zones(machine: Machine) -> Iterator[Finding]:
    if machine.value("kho") == "off":
        return
    for run in machine.snapshot.blocks:
        if run.state == "online" and run.driver in ("virtio-mem", "kmem"):
            zone = machine.text(f"{paths.MEMORY}/memory{run.first}/valid_zones").split()
            if zone and zone[0] != "Movable":
                size = machine.snapshot.block_size
                yield Finding(
                    "kernel-zone", "severe", "hot-added memory is in a kernel zone: the next live update dies if it preserves a page there",
                    f"blocks {run.first}-{run.last} ({Range(run.first * size, (run.last + 1) * size)}, {run.driver}) are in zone {zone[0]}",
                    'online it movable: `zone = "movable"`, the default of online-all where KHO is on',
                )  # fmt: skip


def _cost(machine: Machine) -> Iterator[Finding]:
    held = machine.held()
    lines = dict(line.split(":", 1) for line in machine.text("proc/meminfo").splitlines() if ":" in line)
    total = int(lines.get("MemTotal", "0 kB").split()[0]) << 10
    on_memory = machine.text("sys/module/memory_hotplug/parameters/memmap_on_memory").lower() in ("y", "1", "force")
    # After a lost handover the map comes out of what is left: the safe region, with a guard little more.
    scratch = sum(area.size for area in probe.scratch_now(machine.root))
    if held and not on_memory:
        for what, size, part in (("of memory in use", total, 8), ("of safe region", scratch, 2)):
            if size and held // 64 > size // part:
                yield Finding(
                    "memmap-cost", "warning", f"holding {size_text(held)} costs {size_text(held // 64)} of memory map, out of {size_text(size)} {what}",
                    "sys/module/memory_hotplug/parameters/memmap_on_memory", "boot with memory_hotplug.memmap_on_memory=1",
                )  # fmt: skip
                break
    if any(run.driver == "virtio-mem" and run.state == "offline" for run in machine.snapshot.blocks):
        yield Finding(
            "virtio-mem-stalls", "warning", "virtio-mem plugs no more memory while many of its blocks are offline", "memory blocks",
            "release what may be used, or let the host ask for less",
        )  # fmt: skip
    if str(machine.value("arch")).startswith("ppc64"):
        yield Finding(
            "dlpar",
            "severe",
            "ppc64 DLPAR onlines memory whatever the policy says",
            "arch",
            "add no memory by DLPAR while some is held",
        )


def _guard(machine: Machine) -> Iterator[Finding]:
    guard = machine.snapshot.facts["guard"]
    if guard.value == "void" and machine.value("handover") != "accepted":
        yield Finding(
            "guard-void",
            "warning",
            "a guard was asked for and is not in force",
            f"{guard.source}: {guard.reason}",
            "compute it anew before the next kexec",
        )
    if guard.value != "held" or (machine.standing and machine.standing.guard is None):
        return
    if machine.text("sys/kernel/kexec_crash_loaded") == "1":
        yield Finding(
            "crash-kernel-in-guard",
            "severe",
            "a crash kernel was loaded into the guard: that part of it is overwritten",
            "sys/kernel/kexec_crash_loaded",
            "stop kdump's unit on hosts that use a guard",
        )
    limit = machine.text(paths.LOAD_LIMIT)
    if limit and not crashkernel.forbidden(machine.root):
        yield Finding(
            "crash-kernel-allowed", "severe", "a crash kernel may be loaded, and would be written into the guard",
            f"{paths.LOAD_LIMIT} is not 0", "sysctl -w kernel.kexec_load_limit_panic=0",
        )  # fmt: skip
    for unit in () if limit else crashkernel.KDUMP:
        there = any((Path(machine.root) / folder / unit).exists() for folder in _UNITS)
        if there and not _masked(machine, unit):
            yield Finding(
                "crash-kernel-allowed", "severe", f"{unit} loads a crash kernel, which would be written into the guard",
                f"there is no {paths.LOAD_LIMIT} (Linux 6.3), and the unit is not masked", f"systemctl mask {unit}",
            )  # fmt: skip


_UNITS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")


def _masked(machine: Machine, unit: str) -> bool:
    """Return whether a unit is a link to /dev/null in one of the places that systemd looks into first."""
    links = (os.path.join(machine.root, folder, unit) for folder in ("etc/systemd/system", UNITS_RUN))
    return any(os.path.islink(link) and os.readlink(link) == "/dev/null" for link in links)


def _initrd(machine: Machine) -> Iterator[Finding]:
    release = str(machine.value("kernel"))
    image = initramfs.find(machine.root, release)
    if image is None:
        yield Finding(
            "no-initrd", "note", f"no initrd was found for kernel {release}: whether safemem is in it is not known",
            " ".join(place.format(release) for place in initramfs.PLACES), "`safemem initramfs check IMAGE` looks into one",
        )  # fmt: skip
        return
    rebuild = "rebuild the initrd: `safemem initramfs install`"
    try:
        inside = initramfs.inside(image.read_bytes())
    except (OSError, ValueError) as error:
        why = (error.strerror or "cannot be read").lower() if isinstance(error, OSError) else error
        yield Finding(
            "initrd-unreadable", "severe", "whether safemem decides at the next boot cannot be told", f"{image}: {why}", rebuild,
        )  # fmt: skip
        return
    if inside is None:
        yield Finding(
            "initrd-without-safemem", "severe", "the next boot is not safemem's: it is not in the initrd", str(image), rebuild,
        )  # fmt: skip
        return
    if inside.fault:
        yield Finding(
            "initrd-not-first", "severe", "safemem is in the initrd, but it would not decide before everything else",
            f"{image}: {inside.fault}", rebuild,
        )  # fmt: skip
    own = Path(machine.root) / installed.POLICY
    if not os.path.lexists(own):
        return
    try:
        digest = load.read(installed.find(machine.root)).digest
    except (installed.Untrusted, load.PolicyError, OSError) as error:
        yield Finding(
            "policy-refused", "severe", "the policy of this machine cannot be built into the next initrd", str(error).splitlines()[0],
            f"mend /{installed.POLICY}, then {rebuild}",
        )  # fmt: skip
        return
    if digest != inside.digest:
        yield Finding(
            "initrd-other-policy", "severe", f"the initrd has another policy than /{installed.POLICY}",
            f"{image} has digest {inside.digest[:12]}, the file {digest[:12]}", rebuild,
        )  # fmt: skip


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
                yield Finding(
                    "old-kexec", "severe", "a reboot may load the next kernel with the old system call: it hands nothing over, and the next boot looks like a cold one",
                    f"{script}:{number}: {line.strip()}", f"set LOAD_KEXEC=false in /{settings}, and load with `kexec -s -l` (systemctl kexec then takes what is loaded)",
                )  # fmt: skip
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
