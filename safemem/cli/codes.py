# SPDX-License-Identifier: MIT
"""Exit codes: the one table of them. Help, manual page, README and units say what it says; people script against it."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Code(enum.IntEnum):
    """What a command ends with."""

    meaning: str

    def __new__(cls, number: int, meaning: str) -> Code:
        """Return the code with this number."""
        code = int.__new__(cls, number)
        code._value_, code.meaning = number, meaning
        return code

    DONE = 0, "done, or all memory may be used"
    FAILURE = 1, "failure"
    USAGE = 2, "usage"
    INVALID = 3, "an input is invalid"
    HELD = 4, "memory is held back"
    ENDED = 5, "panic, reboot or halt"
    UNKNOWN = 6, "unknown"
    PARTLY = 64, "partly"
    INTERRUPTED = 130, "interrupted"


def of(name: str) -> Code:
    """Return the code of a verdict (`safemem.host.verdict`), or of the `kind` of what was refused."""
    return Code.DONE if name == "open" else Code[name.upper()]


def listing() -> str:
    """Return all of them in one sentence."""
    return "; ".join(f"{code:d} {code.meaning}" for code in Code) + "."


def ends(**meanings: str) -> Callable[[_Command], _Command]:
    """Say in a command's help which codes it ends with, and what each means there; 2 is every command's."""
    codes = {Code[name.upper()]: meaning for name, meaning in meanings.items()}
    text = "; ".join(f"{code:d} {meaning}" for code, meaning in codes.items())

    def add(command: _Command) -> _Command:
        command.__doc__ = f"{inspect.cleandoc(command.__doc__ or '')}\n\nExit code: {text}."
        vars(command)["codes"] = tuple(codes)
        return command

    return add
