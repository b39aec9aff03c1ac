# SPDX-License-Identifier: MIT
"""Read udev rules as udev does (udev(7); udev_rules_parse_file() and parse_line() in systemd's src/udev/udev-rules.c)."""

from __future__ import annotations

import re
from typing import NamedTuple

#: Blanks to udev; not all that Python takes for one.
_SPACE = " \t\n\r"
#: Commas may be missing, or be many. Of a plain value only `\"` is an escape; of e"" each backslash begins one.
_ITEM = re.compile(
    r"[\s,]*([A-Z_]+)(?:\{([^}]*)\})?\s*(==|!=|\+=|-=|:=|=)\s*"
    r'(?:(i?e|ei)"((?:[^"\\]|\\.)*)"|(i?)"((?:\\"|[^"\\]|\\(?!"))*)")'
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)")
#: As udev's own reader ends lines; `splitlines` would cut at more characters.
_LINE_END = re.compile(r"\r\n|[\n\r\0]")


class Item(NamedTuple):
    """One `KEY{attribute}OPERATOR"value"`."""

    key: str
    attribute: str
    operator: str
    value: str
    ignore_case: bool = False

    @property
    def text(self) -> str:
        """The item as it is written."""
        attribute = f"{{{self.attribute}}}" if self.attribute else ""
        return f'{self.key}{attribute}{self.operator}"{self.value}"'


class Rule(NamedTuple):
    """One rule and the line that it begins on."""

    line: int
    items: tuple[Item, ...]
    rest: str  #: what could not be read; empty for a valid rule


def parse(text: str) -> list[Rule]:
    """Return the rules in `text`; nothing is ever left out silently: what cannot be read is `rest`."""
    rules = []
    lines = _LINE_END.split(text)
    at = 0
    while at < len(lines):
        start, line = at, lines[at].lstrip(_SPACE)
        at += 1
        if not line or line.startswith("#"):
            continue
        # A line that goes on loses its backslash, and what follows the blanks before it: `on\` and `  line` are one word.
        # What has been put together is looked at for the next one, so two backslashes before an empty line go on.
        parts = [line]
        while parts and parts[-1].endswith("\\"):
            if at == len(lines):
                parts[-1] = parts[-1][:-1]
                break
            follow, at = lines[at].lstrip(_SPACE), at + 1
            if follow.startswith("#"):  # a comment inside a continued rule is skipped, as udev does
                continue
            parts[-1:] = [parts[-1][:-1], follow]
            while parts and not parts[-1]:
                parts.pop()
        items, rest = _items("".join(parts))
        if items or rest:
            rules.append(Rule(start + 1, items, rest))
    return rules


def _items(line: str) -> tuple[tuple[Item, ...], str]:
    """Return the items of one rule, and what comes after the last one that can be read."""
    items, place = [], 0
    while found := _ITEM.match(line, place):
        key, attribute, operator, escaped, inside, mark, plain = found.groups()
        text = _unescaped(inside) if escaped else plain.replace('\\"', '"')
        items.append(Item(key, attribute or "", operator, text, "i" in (escaped or mark)))
        place = found.end()
    rest = line[place:].strip()
    return tuple(items), rest if not items or rest.strip(f"{_SPACE},") else ""


def _unescaped(value: str) -> str:
    """Return what udev reads between the quotes of e"" (cunescape of systemd)."""
    return _ESCAPE.sub(lambda found: _escape(found[1]), value)


def _escape(text: str) -> str:
    if text[0] in "xuU" and len(text) > 1:  # alone it is a letter like any other
        return chr(min(int(text[1:], 16), 0x10FFFF))
    return chr(int(text, 8)) if len(text) == 3 else {"t": "\t", "n": "\n", "s": " "}.get(text, text)
