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
_LIMIT = 1 << 20
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


def onlines(
    root: str,
    command: str,
    *,
    about: bool,
    folders: tuple[str, ...] = _FOLDERS,
    harmless: frozenset[str] = frozenset(),
) -> Onlines | None:
    """Return what in a command onlines memory, or in the scripts that it starts but for those that are `harmless`.

    `about`: it is run for memory's devices.
    """
    sign = onlining.in_script(command, about=about)
    if sign is not None and sign.sure:
        return Onlines(sign.what, "", sure=True)
    found = [Onlines(sign.what, "", sure=False)] if sign is not None else []
    seen: set[str] = set()
    todo = [(name, 1) for name in shelltext.started(_inner(command))]
    while todo and len(seen) < _FOLLOWED:
        name, depth = todo.pop(0)
        base = name.rpartition("/")[2]
        if shelltext.VARIABLE.search(name) or base in harmless or name.lstrip("/").startswith(OURS):
            continue
        program = find(root, name, folders if depth == 1 else _FOLDERS)
        if program.kind != TEXT or program.path in seen:
            continue
        seen.add(program.path)
        sign = onlining.in_script(program.text, about=about)
        if sign is not None:
            found.append(Onlines(sign.what, f"{program.path}:{sign.line}", sure=sign.sure))
            if sign.sure:
                return found[-1]
        if depth < _DEPTH:
            todo += [(other, depth + 1) for other in shelltext.started(program.text)]
    return found[0] if found else None


def _inner(command: str) -> str:
    """Return what a shell is told to do, where a command is one with -c, in words that stand for themselves."""
    match = re.match(
        r"""\s*(?:\S*/)?(?:sh|bash|dash|ash|busybox\s+sh)\s+-\w*c\s+(['"]?)(.*)\1\s*$""", command, re.DOTALL
    )
    return match[2] if match else command
