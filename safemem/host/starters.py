# SPDX-License-Identifier: MIT
"""Units of this machine that online memory, and whether something starts them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from safemem.host.configured import Onliner, Unread, first, names
from safemem.realroot import programs, udevrules, units

#: Settings by which a unit starts another one.
_STARTS = frozenset(
    ["Wants", "Requires", "Requisite", "BindsTo", "Upholds", "OnFailure", "OnSuccess", "Unit", "Service", "Sockets"]
)
_WANTED = re.compile(r"SYSTEMD_WANTS\}\s*\+?=\s*\"([^\"]*)\"|--template[= ]([^\s\"]+)")
_DBUS = "usr/share/dbus-1/system-services"
_LINKS = (".wants", ".requires", ".upholds")
#: Units that start the service of their own name.
_TRIGGERS = (".timer", ".path", ".socket")
_KINDS = (".service", *_TRIGGERS, ".target", ".mount", ".automount", ".swap")
#: Scripts that are looked at by themselves.
_ELSEWHERE = ("etc/rc.local", "etc/rc.d/", "etc/init.d/")
#: What is ours onlines what the decision says.
_OURS = "safemem"


def find(root: str) -> Iterator[Onliner | Unread]:
    """Return the units below `root` that online memory."""
    try:
        there = units.names(root)
        known = _read(root, there)
    except OSError as error:
        yield Unread(
            str(error.filename or "units").removeprefix(f"{root.rstrip('/')}/"), (error.strerror or "").lower()
        )
        return
    try:
        started = _started(root, there, known)
    except OSError as error:  # what cannot be looked at may start them all
        yield Unread(
            str(error.filename or "units").removeprefix(f"{root.rstrip('/')}/"), (error.strerror or "").lower()
        )
        started = set(known)
    found: dict[str, Onliner] = {}  # of several names of one unit, one that is started
    for name, unit in sorted(known.items(), key=lambda item: (item[0] not in started, item[0])):
        for command in () if name.startswith(_OURS) else unit.commands:
            does = programs.onlines(root, command.text, about=False)
            if does is None or does.where.startswith(_ELSEWHERE):
                continue
            what = f"{does.what} ({does.where})" if does.where else does.what
            where = f"{command.file}:{command.line}"
            found.setdefault(where, Onliner("unit-onlines", where, what, name, does.sure, name not in started))
    yield from found.values()


def _read(root: str, there: dict[str, list[str]]) -> dict[str, units.Unit]:
    """Return every unit that is there and not masked, those that are only a drop-in among them."""
    found = {}
    every = {name.removesuffix(".d") for inside in there.values() for name in inside}
    for name in sorted(every):
        if name.endswith(_KINDS) and (unit := units.read(root, name, there)):
            found[name] = unit
    return found


def _from_outside(root: str) -> Iterator[str]:
    """Return the units that udev's rules want, made-up names by their template, and those that D-Bus starts."""
    for path in first(root, udevrules.FOLDERS, ".rules"):
        text = "" if udevrules.is_nowhere(root, path) else programs.read(root, path) or ""
        for match in _WANTED.finditer(text):
            yield from re.sub(r"@[^\s.]*", "@", match[1] or match[2]).split()
    for name in names(root, _DBUS):
        yield from re.findall(r"(?m)^SystemdService=(\S+)", programs.read(root, f"{_DBUS}/{name}") or "")


def _started(root: str, there: dict[str, list[str]], known: dict[str, units.Unit]) -> set[str]:
    """Return the units that something starts: a link in a folder of wants, another unit, a timer, udev, D-Bus."""
    found: set[str] = set()
    for folder, inside in there.items():
        for name in inside:
            if name.endswith(_LINKS):
                for link in (Path(root) / folder / name).iterdir():
                    found |= {link.name, *([link.readlink().name] if link.is_symlink() else [])}
    for unit in known.values():
        found |= {word for key, value in unit.settings if key in _STARTS for word in value.split()}
    found |= set(_from_outside(root))
    for folder, inside in there.items():  # an alias stands for what it leads to
        found |= {
            at.readlink().name for name in inside if name in found and (at := Path(root) / folder / name).is_symlink()
        }
    for name in list(found):
        stem, dot, kind = name.rpartition(".")
        if f"{dot}{kind}" in _TRIGGERS:
            found.add(f"{stem}.service")
    return found | {units.template(name) for name in found}
