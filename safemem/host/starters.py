# SPDX-License-Identifier: MIT
"""Units of this machine that online memory, and whether something starts them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from safemem.host import configured
from safemem.host.configured import Onliner, Unread, first, names
from safemem.realroot import programs, runs, udevrules, units

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


def find(root: str, scripts: programs.Scripts | None = None) -> Iterator[Onliner | Unread]:
    """Return the units below `root` that online memory; `scripts`: by which everything else was looked at."""
    if scripts is None:
        scripts = programs.Scripts(root)
        list(configured.find(root, scripts))
    for folders in (units.FOLDERS, units.USER_FOLDERS):
        yield from _find(scripts, folders)


def _find(scripts: programs.Scripts, folders: tuple[str, ...]) -> Iterator[Onliner | Unread]:
    root = scripts.root
    try:
        there = units.names(root, folders)
        known = _read(root, there)
    except OSError as error:
        yield _unread(root, error)
        return
    looked = [
        (name, command, does)
        for name, unit in known.items()
        if not name.startswith(_OURS)
        for command in unit.commands
        if (does := programs.onlines(scripts, command.text, about=False, cwd=command.cwd)) is not None
        and not does.where.startswith(_ELSEWHERE)
    ]
    started, unread = _started(scripts, there, known)
    yield from unread
    found: dict[str, Onliner] = {}  # of several names of one unit, one that is started
    for name, command, does in sorted(looked, key=lambda item: (item[0] not in started, item[0])):
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


def _from_outside(scripts: programs.Scripts) -> Iterator[str]:
    """Return the units that udev's rules want, made-up names by their template, those that D-Bus starts, and commands."""
    root = scripts.root
    for path in first(root, udevrules.FOLDERS, ".rules"):
        text = "" if udevrules.is_nowhere(root, path) else programs.read(root, path) or ""
        for match in _WANTED.finditer(text):
            yield from re.sub(r"@[^\s.]*", "@", match[1] or match[2]).split()
        yield from runs.units_started(text)
    for name in names(root, _DBUS):
        yield from re.findall(r"(?m)^SystemdService=(\S+)", programs.read(root, f"{_DBUS}/{name}") or "")
    for text in scripts.texts:
        yield from runs.units_started(text)


def _started(
    scripts: programs.Scripts, there: dict[str, list[str]], known: dict[str, units.Unit]
) -> tuple[set[str], list[Unread]]:
    """Return the units that something starts: a link in a folder of wants, another unit, a timer, udev, D-Bus, a command.

    And what could not be looked at, each by itself.
    """
    root, found, unread = scripts.root, set[str](), list[Unread]()
    for folder, inside in there.items():
        for name in inside:
            at = Path(root) / folder / name
            if not name.endswith(_LINKS) or (at.is_symlink() and not at.exists()):  # a link to nowhere wants nothing
                continue
            try:
                for link in at.iterdir():
                    found |= {link.name, *([link.readlink().name] if link.is_symlink() else [])}
            except OSError as error:
                unread.append(_unread(root, error))
    for unit in known.values():
        found |= {word for key, value in unit.settings if key in _STARTS for word in value.split()}
    try:
        found |= set(_from_outside(scripts))
    except OSError as error:
        unread.append(_unread(root, error))
    if unread:  # what cannot be looked at may start them all
        return set(known), unread
    for folder, inside in there.items():  # an alias stands for what it leads to
        found |= {
            at.readlink().name for name in inside if name in found and (at := Path(root) / folder / name).is_symlink()
        }
    for name in list(found):
        stem, dot, kind = name.rpartition(".")
        if f"{dot}{kind}" in _TRIGGERS:
            found.add(f"{stem}.service")
    return found | {units.template(name) for name in found}, unread


def _unread(root: str, error: OSError) -> Unread:
    return Unread(str(error.filename or "units").removeprefix(f"{root.rstrip('/')}/"), (error.strerror or "").lower())
