# SPDX-License-Identifier: MIT
"""Read udev rules (udev(7)) and find those that online memory behind safemem's back.

A real parse: comments, continuation lines, quoted values with escapes, every operator. What a
rule's conditions would match is not evaluated: a rule that could online memory counts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

#: In the order of precedence: a file hides those of the same name in later folders.
FOLDERS = (
    "etc/udev/rules.d",
    "run/udev/rules.d",
    "usr/local/lib/udev/rules.d",
    "usr/lib/udev/rules.d",
    "lib/udev/rules.d",
)
OURS = "60-safemem.rules"
#: Files of distributions that are known to online memory; masked also where this machine does not show them.
KNOWN = ("40-redhat.rules", "40-vm-hotadd.rules", "80-hotplug-cpu-mem.rules", "90-daxctl-device.rules")

_ITEM = re.compile(r'\s*([A-Z]+)(?:\{([^}]*)\})?\s*(==|!=|\+=|-=|:=|=)\s*([ei]{0,2})"((?:[^"\\]|\\.)*)"\s*,?')
#: Programs that are run to online memory, and what a shell would write to.
_PROGRAMS = re.compile(
    r"\b(chmem|daxctl|memhotplug|hotplug-?mem)|devices/system/memory|/state\b|online_(movable|kernel)"
)


#: A line that cannot be read and speaks of these may online memory in an udev that can read it.
_HINTS = re.compile(r"state|online|memory|chmem|daxctl")
#: As udev's own reader ends lines; `splitlines` would cut at more characters.
_LINE_END = re.compile(r"\r\n|[\n\r\0]")


class Item(NamedTuple):
    """One `KEY{attribute}OPERATOR"value"`."""

    key: str
    attribute: str
    operator: str
    value: str


class Rule(NamedTuple):
    """One rule and the line that it begins on."""

    line: int
    items: tuple[Item, ...]
    rest: str  #: what could not be read; empty for a valid rule


class Onliner(NamedTuple):
    """A rule that onlines memory."""

    file: str
    line: int
    what: str


def parse(text: str) -> list[Rule]:
    """Return the rules in `text`; nothing is ever left out silently: what cannot be read is `rest`."""
    rules = []
    lines = _LINE_END.split(text)
    at = 0
    while at < len(lines):
        start, line = at, lines[at]
        at += 1
        if line.lstrip().startswith("#") or not line.strip():
            continue
        # What ends a line is looked for in the file's own lines: of two backslashes, one stays.
        more = line.endswith("\\")
        line = line.removesuffix("\\")
        while more and at < len(lines):
            follow, at = lines[at], at + 1
            if not follow.lstrip().startswith("#"):  # a comment inside a continued rule is skipped, as udev does
                more = follow.endswith("\\")
                line += follow.removesuffix("\\")
        items, place = [], 0
        while found := _ITEM.match(line, place):
            key, attribute, operator, escaped, value = found.groups()
            items.append(
                Item(
                    key,
                    attribute or "",
                    operator,
                    re.sub(r"\\(.)", r"\1", value) if "e" in escaped else value.replace('\\"', '"'),
                )
            )
            place = found.end()
        rules.append(Rule(start + 1, tuple(items), line[place:].strip()))
    return rules


def onlines(rule: Rule) -> str | None:
    """Return what in `rule` onlines memory, or None."""
    subsystem = [
        item.value.lower() for item in rule.items if item.key in ("SUBSYSTEM", "SUBSYSTEMS") and item.operator == "=="
    ]
    elsewhere = subsystem and not any(re.search(r"memory|dax|[*?\[]", value) for value in subsystem)
    named = [*subsystem, *(item.value for item in rule.items if item.key in ("KERNEL", "KERNELS", "DEVPATH"))]
    if rule.rest and _HINTS.search(rule.rest):
        return f"cannot be read from `{rule.rest[:40]}` on, so it may online memory"
    for item in rule.items:
        if item.operator in ("==", "!=") and item.key != "PROGRAM":
            continue
        shown = (
            f'{item.key}{{{item.attribute}}}{item.operator}"{item.value}"'
            if item.attribute
            else f'{item.key}{item.operator}"{item.value}"'
        )
        if item.key == "ATTR" and not elsewhere:
            if item.attribute == "state" and item.value.startswith(("online", "$", "%")):
                return shown
            if item.attribute == "online" and item.value == "1" and any("memory" in value for value in named):
                return shown
        if item.key in ("RUN", "PROGRAM", "IMPORT") and item.attribute != "file" and _PROGRAMS.search(item.value):
            return shown
        # ndctl starts a unit for each dax device, which onlines it.
        if item.key == "ENV" and item.attribute == "SYSTEMD_WANTS" and re.search(r"dax|memory", item.value):
            return shown
    return None


def find(root: str) -> list[Onliner]:
    """Return every rule below `root` that is in force and onlines memory; masked files are not."""
    found, seen = [], set()
    for folder in FOLDERS:
        base = Path(root) / folder
        try:
            names = sorted(name for name in os.listdir(base) if name.endswith(".rules"))
        except OSError:
            continue
        for name in names:
            if name in seen or name == OURS:
                continue
            seen.add(name)
            try:
                if (base / name).is_char_device():  # /dev/null, as a link or mounted over the file: a mask
                    continue
                if not (base / name).is_file():  # also: reading a FIFO would wait for ever
                    raise OSError
                text = (base / name).read_text("utf-8", "replace")
            except OSError:
                found.append(Onliner(f"{folder}/{name}", 1, "cannot be read, so it may online memory"))
                continue
            found += [Onliner(f"{folder}/{name}", rule.line, what) for rule in parse(text) if (what := onlines(rule))]
    return found


def masks(root: str) -> tuple[str, ...]:
    """Return the names of all files to mask: those found below `root` and the known ones."""
    return tuple(sorted({*KNOWN, *(os.path.basename(item.file) for item in find(root))}))
