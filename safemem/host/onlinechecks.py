# SPDX-License-Identifier: MIT
"""What onlines memory on this machine, or waits for somebody to: checks of doctor."""

from __future__ import annotations

import configparser
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from safemem.boot import paths
from safemem.host import configured, remedies, starters, suspects
from safemem.host.catalogue import Finding, finding
from safemem.host.configured import Onliner
from safemem.host.machine import Machine
from safemem.realroot import alongside, programs, udevrules
from safemem.realroot import hold as realroot

#: Where masks go, by what reads them; and the program that the kernel starts for each device.
_RULES, _TMPFILES, _MODPROBE = "etc/udev/rules.d", "etc/tmpfiles.d", "etc/modprobe.d"
_HELPER = "sys/kernel/uevent_helper"
#: Where hv_balloon shows: the module, built in or loaded, and the driver of a bus.
_HV_MODULE, _HV_DRIVER = "sys/module/hv_balloon", "sys/bus/vmbus/drivers/hv_balloon"
_VMBUS = "sys/bus/vmbus/devices"
#: The class of Hyper-V's dynamic memory (HV_DM_GUID of drivers/hv/hv_balloon.c and include/linux/hyperv.h).
_DYNAMIC_MEMORY = "525074dc-8985-46e2-8057-a307dc18a502"


def _udev(machine: Machine) -> Iterator[Finding]:
    for rule in udevrules.find(machine.root, every=True):
        where = f"{rule.file}:{rule.line}"
        if rule.file in udevrules.FOLDERS:  # it cannot be listed, and a folder has no mask
            yield _unread(rule.file, rule.file, severity="severe")
            continue
        seen, command = f"{where}; {rule.why}" if rule.why else where, remedies.masked(machine.root, rule.file, _RULES)
        if rule.sure:
            yield finding("udev-rule", seen, rule=rule.what, command=command)
        else:
            yield finding("udev-program", seen, rule=rule.what, command=command)
    besides: dict[str, list[alongside.Besides]] = {}
    for item in alongside.kept(machine.text(alongside.KEPT)):
        besides.setdefault(item.file, []).append(item)
    for file, found in besides.items():
        yield finding("masked-besides", alongside.KEPT, file=f"/{file}", others=alongside.text(found))
    if machine.standing is not None and machine.holds and not (Path(machine.root) / realroot.MASKED).exists():
        yield finding("real-root-not-masked", f"{realroot.MASKED} does not exist")
    ours = any((Path(machine.root) / folder / udevrules.OURS).exists() for folder in udevrules.FOLDERS)
    if not ours:
        yield finding("no-udev-rule", f"{udevrules.OURS} is in no rules folder", name=udevrules.OURS)


def _daxctl(machine: Machine) -> Iterator[Finding]:
    for path in sorted((Path(machine.root) / "etc/daxctl.conf.d").glob("*.conf")):
        name = os.path.relpath(path, machine.root)
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        try:
            parser.read_string(path.read_text("utf-8", "replace"))
        except (configparser.Error, OSError):
            yield _unread(name, name)
            continue
        for section in parser.sections():
            table = parser[section]
            # Onlining is what it does unless told otherwise; both spellings count as told.
            told = table.get("online", "").strip() == "false" or table.get("no-online", "").strip() == "true"
            if table.get("mode", "").strip() == "system-ram" and not told:
                yield finding("daxctl", name, section=section)


def _others(machine: Machine) -> Iterator[Finding]:
    """Look into units, and into every other file that something carries out."""
    scripts = programs.Scripts(machine.root)
    others = [*configured.find(machine.root, scripts)]  # what they run may start a unit
    for found in (*starters.find(machine.root, scripts), *others):
        if not isinstance(found, Onliner):
            yield _unread(found.where, f"{found.where}: {found.why}")
            continue
        yield _told(machine.root, found)
    for where, name in scripts.unread.items():
        text = f"{' '.join(where.split())[:120]}: speaks of memory and reads in {name}, which is not found"
        yield _unread(name.lstrip("/"), text, severity="warning")


def _unread(path: str, seen: str, *, severity: str = "") -> Finding:
    return finding(
        "not-looked-at", seen, severity=severity, path=f"/{path}", command=f"ls -la {shlex.quote(f'/{path}')}"
    )


def _told(root: str, found: Onliner) -> Finding:
    verb, severity = ("onlines", "severe") if found.sure else ("may online", "warning")
    when = ", if something starts it; nothing does now" if found.idle else ""
    severity = "warning" if found.idle else severity
    where, owner, what = found.where, found.owner, found.what
    path = re.sub(r":[0-9]+$", "", where)
    if found.code == "unit-onlines":
        command = remedies.unit(root, path)
        return finding(
            "unit-onlines", where, severity=severity, owner=owner, verb=verb, when=when, what=what, command=command
        )
    if found.code == "tmpfiles-online":
        command = remedies.masked(root, path, _TMPFILES)
        return finding("tmpfiles-online", where, severity=severity, verb=verb, what=what, command=command)
    if found.code == "settings-online":
        return finding("settings-online", where, severity=severity, verb=verb, what=what, how=_out(root, path))
    return finding("script-onlines", where, severity=severity, owner=f"/{owner}", verb=verb, when=when, what=what)


def _out(root: str, path: str) -> str:
    """Return how a setting is taken out of its file; those of a package come back with it."""
    if path == _HELPER:
        return f"echo >/{_HELPER}, and take away what has written it there"
    if f"/{_MODPROBE.rpartition('/')[2]}/" in path and not path.startswith(_MODPROBE):
        return remedies.masked(root, path, _MODPROBE)
    return f"the line in /{path}"


def _agents(machine: Machine) -> Iterator[Finding]:
    running = suspects.running(machine.root)
    for name, path in running:
        yield finding("agent", path, name=name, about=suspects.PROGRAMS[name])
    for name, path in suspects.installed(machine.root):
        if name not in [each for each, _ in running]:
            yield finding("agent-installed", path, name=name, about=suspects.PROGRAMS[name])


def _waits(machine: Machine) -> Iterator[Finding]:
    """Look for drivers that wait for what they add to come online."""
    for run in [run for run in machine.snapshot.blocks if run.driver == "virtio-mem" and run.state == "offline"][:1]:
        seen = f"{paths.MEMORY}/memory{run.first}/state reads `{run.state}`"
        yield finding("virtio-mem-stalls", seen)
    where = _hyperv(machine)
    if machine.holds and where:
        yield finding("hv-balloon-stalls", where)


def _hyperv(machine: Machine) -> str:
    """Return what shows that Hyper-V may add memory to this machine; "" if nothing does, or hv_balloon is told not to."""
    if machine.text(f"{_HV_MODULE}/parameters/hot_add").upper() in ("N", "0"):
        return ""
    root = Path(machine.root)
    for path in (_HV_MODULE, _HV_DRIVER):
        if (root / path).is_dir():
            return path
    for device in sorted((root / _VMBUS).glob("*/class_id")):
        path = str(device.relative_to(root))
        if machine.text(path).strip("{}").lower() == _DYNAMIC_MEMORY:
            return path
    return ""


CHECKS = (_udev, _daxctl, _others, _agents, _waits)
