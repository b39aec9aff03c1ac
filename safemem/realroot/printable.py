# SPDX-License-Identifier: MIT
"""Text that others wrote, made fit for a terminal: kernels, predecessors, captures, command lines, rules, policies."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` on one line; what a terminal would obey or not show is written as Python escapes it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
