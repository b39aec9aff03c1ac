# SPDX-License-Identifier: MIT
"""The group of commands: it imports one when that one runs, and is the one place where what was refused is told."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import click

from safemem.boot.files import reason
from safemem.boot.model import Refused
from safemem.cli import codes


class Entry(NamedTuple):
    """Where a command is, and what the list of commands says of it; that much is known without importing it."""

    module: str
    attribute: str
    help: str  #: the command's own short help


class Told(click.ClickException):
    """Why a command ends here: one line for each thing that is wrong, without a prefix of click's."""

    def __init__(self, lines: tuple[str, ...], code: codes.Code) -> None:
        """Tell `lines`, and end with `code`."""
        super().__init__("\n".join(lines))
        self._lines = lines
        self.exit_code = code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: object = None) -> None:
        """Print the message; each line already begins with its place."""
        from safemem.boot.printable import printable  # where there is nothing to tell, nothing is loaded

        for line in self._lines:
            click.echo(f"safemem: {printable(line)}", err=True)


class Group(click.Group):
    """Commands by name, none of which is imported before it is asked for (as click documents)."""

    def __init__(self, *words: Any, table: Mapping[str, Entry], **options: Any) -> None:
        """Take the commands of `table`."""
        super().__init__(*words, **options)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None if there is none of that name."""
        entry = self._table.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands as click does, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._table[name].help) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; tell what it was refused, and end with the code of its kind."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            from safemem.boot.printable import printable

            error.message = printable(error.message)  # type: ignore[misc]  # click reads it from the instance
            raise
        except Refused as error:
            raise Told(error.lines or tuple(str(error).split("\n")), codes.of(error.kind)) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # nobody reads our output any more: click ends quietly
                raise
            why = reason(error, str(error) or "failed")
            name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
            raise Told((f"{name}: {why}" if name else why,), codes.Code.FAILURE) from None
