# SPDX-License-Identifier: MIT
"""The files of an initramfs, by path: what they are, where ours come from, and how they get into a tree."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safemem.boot.model import Refused
from safemem.realroot import storage

#: Where everything of ours is in an initramfs, and below it what `safemem.policy=NAME` may name.
PREFIX = "usr/lib/safemem"
POLICIES = f"{PREFIX}/policies"
#: The folder of the Python package that this is.
PACKAGE = Path(__file__).resolve().parent.parent
_FILES = Path(__file__).resolve().parent / "files"


class BuildError(Refused):
    """The files of an initramfs cannot be made, or do not work; the message says why."""

    kind = "invalid"


class Item(NamedTuple):
    """One file of an initramfs."""

    data: bytes
    mode: int


def plain(items: Mapping[str, bytes]) -> dict[str, Item]:
    """Return files that anybody may read and nobody runs."""
    return {path: Item(data, 0o644) for path, data in items.items()}


def put(items: Mapping[str, Item], folder: Path) -> None:
    """Write the files below `folder`, such as the tree that a distribution makes its initramfs of.

    Raises:
        OSError: also where a link in the tree leads out of it; one in place of a file is replaced.
    """
    base = folder.resolve()
    for path, item in items.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.parent.resolve().is_relative_to(base):
            raise OSError(errno.ELOOP, f"a link on the way leads out of {folder}", str(place))
        place.unlink(missing_ok=True)
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as out:
            os.fchmod(fd, item.mode)
            out.write(item.data)


def replace(place: Path, data: bytes, mode: int) -> None:
    """Put a file in place in one step that a power failure does not cut in half. Raises OSError."""
    with storage.Folder(str(place.parent)) as folder:
        folder.put(place.name, data, mode, durable=True)


def shipped(name: str) -> bytes:
    """Return one of the files in safemem/initramfs/files."""
    return (_FILES / name).read_bytes()


def beside(name: str) -> bytes:
    """Return a file that is installed in the package, or lies beside it in a checkout. Raises BuildError."""
    for folder in (PACKAGE, PACKAGE.parent):
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    raise BuildError(f"{name} is neither in {PACKAGE} nor beside it: the installation is not complete")
