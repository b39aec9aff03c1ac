# SPDX-License-Identifier: MIT
"""Words that several outputs share."""

from __future__ import annotations


def plural(number: int, noun: str) -> str:
    """Return `number` and `noun`, with an `s` unless there is exactly one: `1 error`, `0 errors`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
