# SPDX-License-Identifier: MIT
"""What several commands share: options, input that cannot be read, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

import click

from safemem.boot.files import reason
from safemem.boot.model import Refused
from safemem.boot.printable import printable
from safemem.realroot import storage

ROOT = click.option("--root", metavar="DIR", default="/", help="Look at the /sys, /proc and /run below DIR.")
FORMAT = click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)


class InputError(Refused):
    """The policy or another input is invalid; the message says where."""

    kind = "invalid"


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Let a file that cannot be read be an invalid input, not a failure of ours; `path` is its name."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{printable(str(error.filename or path))}: {reason(error)}") from None


def write_whole(path: str, data: bytes, mode: int | None = None) -> None:
    """Put `data` at `path` in one step, or raise Refused and leave what was there; a device or a pipe is written to.

    The folder may be another user's, who then decides what becomes of the file, and of nothing else.
    """
    above, name = os.path.split(path)
    if mode is None:
        mask = os.umask(0o077)
        os.umask(mask)
        mode = 0o666 & ~mask
    try:
        with storage.Folder(above or ".") as folder:
            if not (folder.ours and _stream(folder, name, data)):
                folder.put(name, data, mode)
    except OSError as error:
        raise Refused(f"{printable(path)}: {reason(error, 'cannot be written')}") from None


def _stream(folder: storage.Folder, name: str, data: bytes) -> bool:
    """Write to a device or a pipe; return False if there is none. A folder is OSError."""
    try:
        if stat.S_ISREG(os.stat(name, dir_fd=folder.fd).st_mode):
            return False
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder.fd)
    except FileNotFoundError:
        return False
    with open(fd, "wb") as out:
        out.write(data)
    return True
