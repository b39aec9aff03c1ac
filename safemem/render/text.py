# SPDX-License-Identifier: MIT
"""Words that several outputs share."""

from __future__ import annotations

import time


def plural(number: int, noun: str) -> str:
    """Return `number` and `noun`, with an `s` unless there is exactly one: `1 error`, `0 errors`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def utc(seconds: float) -> str:
    """Return a time that is given in seconds since 1970."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
