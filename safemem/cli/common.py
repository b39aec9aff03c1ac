# SPDX-License-Identifier: MIT
"""What several commands share: input errors, reading policies, writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from safemem.boot.model import Policy
from safemem.host import standing
from safemem.policy import load

ROOT = click.option("--root", metavar="DIR", default="/", help="Look at the /sys, /proc and /run below DIR.")


class InputError(click.ClickException):
    """The policy or another input is invalid; the message says where."""

    exit_code = 3

    def show(self, file: object = None) -> None:
        """Print the message without a prefix of click's: each line already begins with its place."""
        for line in self.message.splitlines():
            click.echo(f"safemem: {line}", err=True)


def load_policy(path: str) -> Policy:
    """Return the policy at `path`. Raises InputError."""
    return load_authored(path).policy


def load_authored(path: str) -> load.Authored:
    """Return the policy at `path` with the places of its rules. Raises InputError."""
    try:
        return load.authored(Path(path))
    except load.PolicyError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None


def write_whole(path: str, data: bytes, mode: int | None = None) -> None:
    """Put `data` at `path` in one step, or raise ClickException and leave what was there."""
    folder = os.path.dirname(path) or "."
    try:
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
        raise click.ClickException(f"{path}: {(error.strerror or 'cannot be written').lower()}") from None


def read_standing(context: click.Context, root: str) -> standing.Standing:
    """Return the decision that stands below `root`, or say that there is none and end with 6."""
    try:
        return standing.read(root)
    except standing.NoDecision as error:
        click.echo(f"safemem: {error}", err=True)
        context.exit(6)
