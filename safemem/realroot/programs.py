# SPDX-License-Identifier: MIT
"""Programs below a root: whether one that somebody names onlines memory, read where it is a script.

A script is read with those that it starts. What a binary does is not known, and neither what one does that is not there.
"""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

from safemem.realroot import onlining, shelltext

#: Where a name without a folder is looked for.
_FOLDERS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
#: Where udev looks for one.
UDEV_FOLDERS = ("usr/lib/udev", "lib/udev")
#: Links on the way to a file; as many as the kernel follows.
_LINKS = 40
#: Bytes of a script that are read; one that is longer is not known.
_LIMIT = 1 << 18
#: Scripts that are followed from one that is run, and how far.
_FOLLOWED, _DEPTH = 32, 3
#: Our own programs online what the decision says.
OURS = ("usr/lib/safemem/", "usr/bin/safemem")
TEXT, BINARY, MISSING = range(3)


class Found(NamedTuple):
    """What a program is: one of TEXT, BINARY and MISSING, its path below the root, and its text."""

    kind: int
    path: str
    text: str


class Onlines(NamedTuple):
    """What in a program onlines memory, and where it stands."""

    what: str
    where: str  #: a script and its line, or ""
    sure: bool
    line: int = 1  #: of the command, if that is more than one


def resolve(root: str, path: str) -> str | None:
    """Return where a path below `root` leads, relative to it, following links as if `root` were `/`; None: nowhere.

    Raises OSError for what cannot be told.
    """
    todo, done, links = path.split("/")[::-1], list[str](), 0
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            done = done[:-1]
            continue
        here = os.path.join(root, *done, name)
        try:
            mode = os.lstat(here).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISLNK(mode):
            done.append(name)
            continue
        links += 1
        if links > _LINKS:
            return None  # the kernel ends here as well
        target = os.readlink(here)
        done = [] if target.startswith("/") else done
        todo += target.split("/")[::-1]
    return "/".join(done)


def read(root: str, path: str) -> str | None:
    """Return the text of a file below `root`; None if there is none, or it is no text. Raises OSError."""
    found = resolve(root, path)
    if found is None:
        return None
    full = os.path.join(root, found)
    if not stat.S_ISREG(os.stat(full).st_mode):  # reading a FIFO would wait for ever
        return None
    with open(full, "rb") as file:
        data = file.read(_LIMIT + 1)
    return None if b"\0" in data or len(data) > _LIMIT else data.decode("utf-8", "replace")


def find(root: str, name: str, folders: tuple[str, ...] = _FOLDERS) -> Found:
    """Return what stands behind a program's name below `root`."""
    places = [name] if "/" in name else [f"{folder}/{name}" for folder in folders]
    for place in places:
        try:
            path = resolve(root, place)
            if path is None or not os.path.isfile(os.path.join(root, path)):
                continue
            text = read(root, path)
        except (OSError, ValueError):
            return Found(BINARY, place.lstrip("/"), "")
        return Found(BINARY if text is None else TEXT, path, text or "")
    return Found(MISSING, name, "")


class Scripts:
    """What is read of the programs below a root, each once."""

    def __init__(self, root: str) -> None:
        self.root = root
        #: Every command and script that was looked at.
        self.texts: dict[str, None] = {}
        #: What was not found beside talk of memory, by where it is named: a script, or a command.
        self.unread: dict[str, str] = {}
        self._found: dict[tuple[str, tuple[str, ...]], Found] = {}
        self._signs: dict[tuple[str, bool, bool], onlining.Sign | None] = {}
        self._speaks: dict[str, bool] = {}
        self._started: dict[str, list[str]] = {}

    def find(self, name: str, folders: tuple[str, ...] = _FOLDERS) -> Found:
        """Return what stands behind a program's name."""
        if (name, folders) not in self._found:
            found = find(self.root, name, folders)
            if found.kind == TEXT:
                found = found._replace(text=shelltext.located(found.text, found.path))
                self.texts.setdefault(found.text)
            self._found[name, folders] = found
        return self._found[name, folders]

    def speaks(self, program: Found) -> bool:
        """Return whether a script speaks of memory's files."""
        if program.path not in self._speaks:
            self._speaks[program.path] = onlining.speaks(program.text)
        return self._speaks[program.path]

    def sign(self, program: Found, *, about: bool, speaks: bool) -> onlining.Sign | None:
        """Return what in a script onlines memory."""
        key = (program.path, about, speaks)
        if key not in self._signs:
            self._signs[key] = onlining.in_script(program.text, about=about, speaks=speaks)
        return self._signs[key]

    def started(self, program: Found) -> list[str]:
        """Return what a script starts."""
        if program.path not in self._started:
            self._started[program.path] = shelltext.started(program.text)
        return self._started[program.path]

    def inside(self, folder: str) -> list[str]:
        """Return the programs in a folder."""
        try:
            where = resolve(self.root, folder)
            return (
                []
                if where is None
                else [f"/{where}/{name}" for name in sorted(os.listdir(os.path.join(self.root, where)))]
            )
        except OSError:
            return []


def onlines(
    scripts: Scripts,
    command: str,
    *,
    about: bool,
    folders: tuple[str, ...] = _FOLDERS,
    harmless: frozenset[str] = frozenset(),
    cwd: str = "",
) -> Onlines | None:
    """Return what in a command onlines memory, or in the scripts that it starts but for those that are `harmless`.

    `about`: it is run for memory's devices; `cwd`: in that folder.
    """
    scripts.texts.setdefault(command)
    programs = _followed(scripts, command, folders, harmless)
    speaks = onlining.speaks(command) or any(map(scripts.speaks, programs))
    sign = onlining.in_script(command, about=about, speaks=speaks, cwd=cwd)
    found = [Onlines(sign.what, "", sign.sure, sign.line)] if sign is not None else []
    for program in programs:
        sign = scripts.sign(program, about=about, speaks=speaks)
        if sign is not None:
            found.append(Onlines(sign.what, f"{program.path}:{sign.line}", sure=sign.sure))
    if speaks and not found:
        named = {command: command} | {program.path: program.text for program in programs}
        scripts.unread |= {
            where: lost[0]
            for where, text in named.items()
            if onlining.is_shell(text) and (lost := shelltext.unresolved(text))
        }
    return next((each for each in found if each.sure), found[0] if found else None)


def _followed(scripts: Scripts, command: str, folders: tuple[str, ...], harmless: frozenset[str]) -> list[Found]:
    """Return the scripts that a command starts, and those that they start."""
    found: dict[str, Found] = {}
    todo = [(name, 1) for name in shelltext.started(_inner(command))]
    for name, depth in todo:
        base = name.rpartition("/")[2]
        if len(found) == _FOLLOWED:
            break
        if shelltext.VARIABLE.search(name) or base in harmless or name.lstrip("/").startswith(OURS):
            continue
        if not base and name.strip("/"):
            todo += [(inside, depth) for inside in scripts.inside(name)[:_FOLLOWED]]
            continue
        program = scripts.find(name, folders if depth == 1 else _FOLDERS)
        if program.kind == TEXT and program.path not in found:
            found[program.path] = program
            if depth < _DEPTH:
                todo += [(other, depth + 1) for other in scripts.started(program)]
    return list(found.values())


def _inner(command: str) -> str:
    """Return what a shell is told to do, where a command is one with -c, in words that stand for themselves."""
    match = re.match(
        r"""\s*(?:\S*/)?(?:sh|bash|dash|ash|busybox\s+sh)\s+-\w*c\s+(['"]?)(.*)\1\s*$""", command, re.DOTALL
    )
    return match[2] if match else command
