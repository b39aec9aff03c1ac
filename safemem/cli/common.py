# SPDX-License-Identifier: MIT
"""What several commands share: options, input that cannot be read, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from safemem.boot.files import reason
from safemem.boot.model import Refused
from safemem.boot.printable import printable
from safemem.cli.group import FORM
from safemem.realroot import storage

#: As many links as the kernel follows on one path (MAXSYMLINKS).
LINKS = 40
_Command = TypeVar("_Command", bound=Callable[..., Any])

ROOT = click.option("--root", metavar="DIR", default="/", help="Look at the /sys, /proc and /run below DIR.")


def formats(*more: str, **words: str) -> Callable[[_Command], _Command]:
    """Return the option --format with text, JSON and `more`; what is told in place of the output has it too.

    `words` are those of its help, where a command has them: `help`, `metavar`.
    """

    def keep(context: click.Context, _: click.Parameter, value: str) -> str:
        context.meta[FORM] = (context.command_path.partition(" ")[2], value)
        return value

    choice = click.Choice(["text", "json", *more])
    # Eager: what is wrong with the other words is told in the format that was asked for.
    return click.option(
        "--format", "form", type=choice, default="text", show_default=not words, is_eager=True, callback=keep,
        help=words.get("help"), metavar=words.get("metavar"),
    )  # fmt: skip


FORMAT = formats()


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
    """Put `data` at `path` in one step, or raise Refused and leave what was there; `-` is standard output.

    What is no file is never replaced: a link is followed, a device or a pipe written to. Those of others are refused, and
    so is any in a folder that others can change. Who owns the folder decides what becomes of the file, and of nothing else.
    """
    if path == "-":
        click.echo(data, nl=False)
        return
    if mode is None:
        mask = os.umask(0o077)
        os.umask(mask)
        mode = 0o666 & ~mask
    place = path
    try:
        for _ in range(LINKS):
            above, name = os.path.split(place)
            with storage.Folder(above or ".") as folder:
                target = _put(folder, name, data, mode)
            if target is None:
                return
            place = os.path.join(above, target)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    except OSError as error:
        raise Refused(f"{printable(path)}: {reason(error, 'cannot be written')}") from None


def _put(folder: storage.Folder, name: str, data: bytes, mode: int) -> str | None:
    """Put `data` at `name`; where that is a link to a file or to nothing, return where it leads instead."""
    try:
        state = os.lstat(name, dir_fd=folder.fd)
    except FileNotFoundError:
        folder.put(name, data, mode)
        return None
    if stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode):
        folder.put(name, data, mode)
        return None
    if not folder.ours or state.st_uid not in (0, os.geteuid()):
        what = "link" if stat.S_ISLNK(state.st_mode) else "pipe" if stat.S_ISFIFO(state.st_mode) else "device"
        raise OSError(errno.EPERM, f"this is a {what} that others can change: name a file")
    try:
        state = os.stat(name, dir_fd=folder.fd)
    except FileNotFoundError:
        return os.readlink(name, dir_fd=folder.fd)
    if not stat.S_ISREG(state.st_mode):
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder.fd)
        except OSError as error:
            if error.errno == errno.ENXIO and stat.S_ISFIFO(state.st_mode):
                raise OSError(errno.ENXIO, "nobody reads this pipe") from None
            raise
        os.set_blocking(fd, True)
        with open(fd, "wb") as out:
            out.write(data)
        return None
    # /dev/stdout of a shell that has redirected it: what is there already stays.
    if sys.stdout is sys.__stdout__ and os.path.samestat(state, os.fstat(1)):
        click.echo(data, nl=False)
        return None
    return os.readlink(name, dir_fd=folder.fd)
