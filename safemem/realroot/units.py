# SPDX-License-Identifier: MIT
"""Units of systemd below a root: what their programs are told to do, drop-ins and masks included (systemd.unit(5))."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from safemem.realroot import programs, shelltext

#: In the order of precedence.
FOLDERS = (
    "etc/systemd/system.control",
    "run/systemd/system.control",
    "run/systemd/transient",
    "run/systemd/generator.early",
    "etc/systemd/system",
    "etc/systemd/system.attached",
    "run/systemd/system",
    "run/systemd/system.attached",
    "run/systemd/generator",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
    "run/systemd/generator.late",
)
#: Units that each user's own manager starts.
USER_FOLDERS = (
    "root/.config/systemd/user",
    "etc/systemd/user",
    "run/systemd/user",
    "usr/local/lib/systemd/user",
    "usr/lib/systemd/user",
)
_COMMAND = re.compile(r"Exec(?:StartPre|StartPost|Start|Condition|Reload|StopPre|StopPost|Stop)")
#: Sections whose commands are run (systemd.service(5), systemd.socket(5)).
_RUN = ("Service", "Socket")
#: Where what a command puts out is written to a file (systemd.exec(5)).
_TO_FILE = re.compile(r"(?:file|append|truncate):(/.*)")
#: What may stand before a command (systemd.service(5)).
_PREFIX = "-@:+!|"
_QUOTED = re.compile(r"\"([^\"]*)\"|'([^']*)'|(\S+)")
_SECTION = re.compile(r"\[([^\]]+)\]\s*$")


class Command(NamedTuple):
    """One command of a unit's, and where it stands."""

    file: str
    line: int
    text: str
    cwd: str = ""  #: the folder that it is run in


class Unit(NamedTuple):
    """A unit: what it runs, and every setting of its, as name, value and file."""

    name: str
    commands: tuple[Command, ...]
    settings: tuple[tuple[str, str], ...]


def names(root: str, folders: tuple[str, ...] = FOLDERS) -> dict[str, list[str]]:
    """Return the names of what is in each folder of units that is there."""
    found = {}
    for folder in folders:
        # A folder that leads to one that was listed, as /lib does to /usr/lib, shows nothing new.
        try:
            found[folder] = sorted(os.listdir(os.path.join(root, folder)))
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found


def read(root: str, name: str, there: dict[str, list[str]]) -> Unit | None:
    """Return the unit called `name`, of its template if it is an instance; None if there is none, or it is masked.

    Raises OSError.
    """
    main = _main(root, name, there)
    if main is None or _is_masked(root, main):
        return None
    paths = [main, *(path for path in _drop_ins(root, name, there) if not _is_masked(root, path))]
    # An alias is a link: what it leads to is the file.
    parts = [(programs.resolve(root, path) or path, programs.read(root, path) or "") for path in paths]
    commands: dict[str, list[Command]] = {}
    settings: list[tuple[str, str]] = []
    for path, text in parts:
        for line, section, key, value in lines(text):
            settings.append((key, value))
            if section in _RUN and _COMMAND.fullmatch(key):
                if not value:  # an empty one forgets those before
                    commands[key] = []
                else:
                    commands.setdefault(key, []).append(Command(path, line, _plain(value)))
    values = _environment(root, settings)
    every = (command for each in commands.values() for command in each)
    last = dict(settings)
    cwd = last.get("WorkingDirectory", "").lstrip("-").replace("~", "/root")
    output = _TO_FILE.match(last.get("StandardOutput", ""))
    tail = f" > {output[1]}" if output else ""
    filled = (
        command._replace(
            text=shelltext.filled([command.text], values)[0] + tail, cwd=cwd if cwd.startswith("/") else ""
        )
        for command in every
    )
    return Unit(name, tuple(filled), tuple(settings))


def _environment(root: str, settings: list[tuple[str, str]]) -> dict[str, str]:
    """Return the variables that a unit sets, and those of the files that it names."""
    rows = []
    for key, value in settings:
        if key == "Environment":
            rows += [match[1] or match[2] or match[3] for match in _QUOTED.finditer(value)]
        elif key == "EnvironmentFile":
            try:
                rows += (programs.read(root, value.lstrip("-")) or "").splitlines()
            except OSError:
                continue
    found = {}
    for row in rows:
        name, equals, value = row.strip().partition("=")
        if equals and name.isidentifier():
            found[name] = value.strip().strip("'\"")
    return found


def is_masked(root: str, name: str, there: dict[str, list[str]]) -> bool:
    """Return whether a unit is there, and a mask."""
    main = _main(root, name, there)
    return main is not None and _is_masked(root, main)


def _main(root: str, name: str, there: dict[str, list[str]]) -> str | None:
    """Return the file of a unit, or of its template."""
    for own in dict.fromkeys((name, template(name))):
        for folder, inside in there.items():
            if own in inside and _leads(root, f"{folder}/{own}"):
                return f"{folder}/{own}"
    return None


def lines(text: str) -> list[tuple[int, str, str, str]]:
    """Return the settings of a unit's text: line, section, name and value; comments are left out, continued lines joined."""
    found, section, at = [], "", 0
    rows = text.splitlines()
    while at < len(rows):
        number, row = at + 1, rows[at]
        at += 1
        if not row.strip() or row.lstrip()[0] in "#;":
            continue
        while row.endswith("\\") and at < len(rows):
            more, at = rows[at], at + 1
            if more.lstrip()[:1] in ("#", ";"):  # left out, and the line goes on
                continue
            row = row[:-1] + " " + more
        if match := _SECTION.match(row.strip()):
            section = match[1]
            continue
        key, equals, value = row.partition("=")
        if equals:
            found.append((number, section, key.strip(), value.strip()))
    return found


def _drop_ins(root: str, name: str, there: dict[str, list[str]]) -> list[str]:
    """Return the drop-ins of a unit in the order in which they count: of one name the first folder's."""
    stem, dot, kind = name.rpartition(".")
    owners = [f"{name}.d"]  # the special before the general, which is passed over where it has the same name
    if template(name) != name:
        owners.append(f"{template(name)}.d")
    cut = stem
    while (place := cut.rstrip("-").rfind("-")) > 0:  # foo-.service.d is for all whose names begin so
        cut = cut[: place + 1]
        owners.append(f"{cut}{dot}{kind}.d")
    owners.append(f"{kind}.d")
    found: dict[str, str] = {}
    for owner in owners:
        for folder, inside in there.items():
            if owner not in inside:
                continue
            try:
                files = os.listdir(os.path.join(root, folder, owner))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for file in files:
                if file.endswith(".conf"):
                    found.setdefault(file, f"{folder}/{owner}/{file}")
    return [found[file] for file in sorted(found)]


def _leads(root: str, path: str) -> bool:
    """Return whether a unit's file is there: not a link to nowhere."""
    return os.path.lexists(os.path.join(root, path)) and (
        _is_masked(root, path) or programs.resolve(root, path) is not None
    )


def _is_masked(root: str, path: str) -> bool:
    """Return whether a file is a mask: a link to /dev/null, or empty."""
    full = os.path.join(root, path)
    try:
        if os.path.islink(full) and os.readlink(full) == "/dev/null":
            return True
        found = programs.resolve(root, path)
        return found is not None and os.path.getsize(os.path.join(root, found)) == 0
    except OSError:
        return False


def template(name: str) -> str:
    """Return the name of the template that an instance is made of; of other units their own name."""
    stem, dot, kind = name.rpartition(".")
    at = stem.find("@")
    return f"{stem[: at + 1]}{dot}{kind}" if at >= 0 else name


def _plain(value: str) -> str:
    """Return a command as its shell would have it: without marks before it, `$$` and `%%` as what they stand for."""
    return value.lstrip(_PREFIX).strip().replace("$$", "$").replace("%%", "%")
