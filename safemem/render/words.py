# SPDX-License-Identifier: MIT
"""Small pieces of sentences."""

from __future__ import annotations

import time


def plural(number: int, noun: str) -> str:
    """Return a number and what is counted, such as `1 finding` or `2 findings`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def utc(seconds: float) -> str:
    """Return a time that is given in seconds since 1970."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
