# SPDX-License-Identifier: MIT
"""What several commands share: options, input that cannot be read, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

import click

from safemem.boot.files import reason
from safemem.boot.model import Refused

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
        raise InputError(f"{error.filename or path}: {reason(error)}") from None


def write_whole(path: str, data: bytes, mode: int | None = None) -> None:
    """Put `data` at `path` in one step, or raise Refused and leave what was there; a device or a pipe is written to."""
    folder = os.path.dirname(path) or "."
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "wb") as out:
                out.write(data)
            return
        fd, draft = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
        try:
            with open(fd, "wb") as out:
                out.write(data)
            if mode is None:
                mask = os.umask(0)
                os.umask(mask)
                mode = 0o666 & ~mask
            os.chmod(draft, mode)
            os.rename(draft, path)
        except BaseException:
            os.unlink(draft)
            raise
    except OSError as error:
        raise Refused(f"{path}: {reason(error, 'cannot be written')}") from None
