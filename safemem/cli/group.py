# SPDX-License-Identifier: MIT
"""The group of commands: it imports one when that one runs, and is the one place where what was refused is told."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
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


#: Where the format of a command's output is kept, once it is known (`common.formats`), for what is told in its place.
FORM = "safemem.form"


class Told(click.ClickException):
    """Why a command ends here: one line for each thing that is wrong, and a document if a program asked."""

    def __init__(self, ctx: click.Context, lines: tuple[str, ...], code: int, usage: str = "") -> None:
        """Tell `usage`, which has lines of its own, and then `lines`; end with `code`."""
        super().__init__("\n".join(lines))
        self._lines, self._usage = lines, usage
        self._command, self._form = ctx.meta.get(FORM, ("", "text"))
        self.exit_code = code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: object = None) -> None:
        """Print the message; each line already begins with its place."""
        from safemem.boot.printable import printable  # where there is nothing to tell, nothing is loaded

        if self._form in ("json", "sarif", "junit"):
            from safemem.render import refused

            click.echo(refused.document(self._form, self._command, int(self.exit_code), self._lines))
        if self._usage:
            click.echo(self._usage, err=True)
        for line in self._lines:
            click.echo(f"safemem: {printable(line)}", err=True)


@contextlib.contextmanager
def _telling(ctx: click.Context | None) -> Iterator[None]:
    """Let whatever ends a command be told in one way, with the code of its kind."""
    here = ctx or click.Context(click.Command("safemem"))
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:  # no error: the help
        raise
    except click.UsageError as error:
        context = error.ctx
        asked = context is not None and context.command.get_help_option(context) is not None
        hint = f"Try '{context.command_path} {context.help_option_names[0]}' for help.\n" if context and asked else ""
        usage = f"{context.get_usage()}\n{hint}" if context else ""
        # click lists what may be chosen line by line.
        said = error.format_message().replace("\n\t", " ")
        raise Told(context or here, (said,), codes.Code.USAGE, usage) from None
    except Refused as error:
        raise Told(here, error.lines or tuple(str(error).split("\n")), codes.of(error.kind)) from None
    except KeyboardInterrupt:
        raise Told(here, ("interrupted",), codes.Code.INTERRUPTED) from None
    except OSError as error:
        if error.errno == errno.EPIPE:  # nobody reads our output any more: click ends quietly
            raise
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        if not name:
            _drop_output()
        why = reason(error, str(error) or "failed")
        raise Told(here, (f"{name}: {why}" if name else why,), codes.Code.FAILURE) from None


def _drop_output() -> None:
    """Let what is left of our output go nowhere, if it is that which cannot be written: Python would try it again."""
    if sys.stdout is not sys.__stdout__ or sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _colourless() -> bool:
    """Return whether the environment asks for text without colours: no-color.org, and terminals that have none."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


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

    def make_context(self, *words: Any, **options: Any) -> click.Context:
        """Return the context of the group, which says whether there are colours."""
        with _telling(None):
            ctx = super().make_context(*words, **options)
        if _colourless():
            ctx.color = False
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; tell what it was refused, and end with the code of its kind."""
        with _telling(ctx):
            return super().invoke(ctx)
