# SPDX-License-Identifier: MIT
"""Text that others wrote, made fit for a terminal: kernels, predecessors, captures, command lines, rules, policies."""

from __future__ import annotations

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    """Return `text` on one line; what a terminal would obey or not show is written as Python escapes it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    number = ord(char)
    digits = f"x{number:02x}" if number < 0x100 else f"u{number:04x}" if number < 0x10000 else f"U{number:08x}"
    return _SHORT.get(char, f"\\{digits}")
