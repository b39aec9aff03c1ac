# SPDX-License-Identifier: MIT
"""Words that several outputs share, and the one place where what others wrote is made fit for a terminal."""

from __future__ import annotations

import time
from typing import Any, TypeVar

from safemem.boot.model import Note
from safemem.boot.printable import printable

_Value = TypeVar("_Value")


def clean(value: _Value) -> _Value:
    """Return a value in which each text, however deep, is one printable line; every text output begins with this.

    Kernels, predecessors, captures and command lines supply them. JSON needs none of it: its strings have escapes.
    """
    found: Any = value
    if isinstance(found, Note):
        found = Note(found.code, printable(found))
    elif isinstance(found, str):
        found = printable(found)
    elif isinstance(found, dict):
        found = {clean(key): clean(item) for key, item in found.items()}
    elif isinstance(found, list):
        found = [clean(item) for item in found]
    elif isinstance(found, tuple):
        items = tuple(clean(item) for item in found)
        found = type(found)(*items) if hasattr(found, "_fields") else items
    return found  # type: ignore[no-any-return]


def plural(number: int, noun: str) -> str:
    """Return `number` and `noun`, with an `s` unless there is exactly one: `1 error`, `0 errors`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def utc(seconds: float) -> str:
    """Return a time that is given in seconds since 1970; as a number of them if no calendar has it."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"
