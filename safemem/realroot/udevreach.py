# SPDX-License-Identifier: MIT
"""Which devices a udev rule can be for, by its own conditions and by the jumps around it (udev(7), udev-rules.c).

What is not certain counts as possible: conditions on names that a pattern may match, on variables, attributes and
results of programs; a jump whose line udev may refuse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from safemem.realroot.udevparse import Item, Rule

#: How far a rule is for a kind of device: not at all, for it among others, for nothing else.
NEVER, AMONG, ALONE = range(3)


class Kind(NamedTuple):
    """A kind of device: its subsystem, how its names begin, and what its path begins with."""

    subsystem: str
    name: str
    path: str


MEMORY = Kind("memory", "memory", "/devices/system/memory/memory")
DAX = Kind("dax", "dax", "")
#: Stands for all devices that no rule about memory is for.
_OTHER = Kind("\x01", "\x01", "/\x01")
#: Keys that udev knows for certain, without an attribute: a line with nothing else is not refused.
_PLAIN = ("SUBSYSTEM", "KERNEL", "DEVPATH", "ACTION")
_FIELDS = {"SUBSYSTEM": 0, "SUBSYSTEMS": 0, "KERNEL": 1, "KERNELS": 1, "DEVPATH": 2}
_SPECIAL = re.compile(r"[*?\[\\]")


def reach(rules: Sequence[Rule], kind: Kind) -> list[int]:
    """Return for each rule of a file, in order, how far it is for devices of this kind."""
    mine = _reached(rules, kind, frozenset())
    # What only rules for this kind set is a mark of it.
    others = _reached(rules, _OTHER, frozenset())
    marks = _marks(rules, [a and not b for a, b in zip(mine, others, strict=True)])
    marks -= _marks(rules, others)
    others = _reached(rules, _OTHER, marks)
    return [(AMONG if other else ALONE) if own else NEVER for own, other in zip(mine, others, strict=True)]


def _reached(rules: Sequence[Rule], kind: Kind, marks: frozenset[tuple[str, str]]) -> list[bool]:
    """Return for each rule whether a device of this kind may get there and match; one with a mark is of another kind."""
    found: list[bool] = []
    here, waiting = True, set[str]()
    labels = [{item.value for item in rule.items if item.key == "LABEL"} for rule in rules]
    last = {name: at for at, names in enumerate(labels) for name in names}
    for at, (rule, names) in enumerate(zip(rules, labels, strict=True)):
        if names & waiting:
            here = True
            waiting -= names
        fits = [_fits(item, kind, marks) for item in rule.items]
        may = here and None not in fits
        found.append(may)
        target = next((item.value for item in rule.items if item.key == "GOTO" and item.operator == "="), None)
        if may and target is not None and last.get(target, -1) > at:
            waiting.add(target)
            # udev drops a line that it cannot read, and the jump with it.
            here = not (all(fits) and not rule.rest and all(_is_plain(item) for item in rule.items))
    return found


def _is_plain(item: Item) -> bool:
    if item.key in ("GOTO", "LABEL"):
        return item.operator == "=" and not item.attribute
    return item.key in _PLAIN and item.operator in ("==", "!=") and not item.attribute


def _fits(item: Item, kind: Kind, marks: frozenset[tuple[str, str]]) -> bool | None:
    """Return True if every device of this kind meets an item, None if none does, and False if that is not certain."""
    if item.operator not in ("==", "!="):
        return item.key in ("GOTO", "LABEL")
    key = item.attribute if item.key == "ENV" and item.attribute in ("SUBSYSTEM", "DEVPATH", "ACTION") else item.key
    if (item.key, item.attribute or item.value) in marks and item.operator == "==" and item.value:
        return None
    if key == "ACTION":
        gone = item.operator == "==" and set(item.value.split("|")) == {"remove"}
        return None if gone else False
    if key not in _FIELDS:
        return False
    may = must = False
    for pattern in item.value.split("|"):
        one_may, one_must = _matches(pattern, kind, _FIELDS[key], item.ignore_case)
        may, must = may or one_may, must or one_must
    if key in ("SUBSYSTEMS", "KERNELS"):  # any device on the way up
        return None if item.operator == "==" and not may else False
    if item.operator == "!=":
        may, must = not must, not may
    return None if not may else must


def _matches(pattern: str, kind: Kind, field: int, ignore_case: bool) -> tuple[bool, bool]:
    """Return whether a pattern may match such a device's field, and whether it does for all of them."""
    name = kind[field]
    if ignore_case:
        pattern = pattern.lower()
    special = _SPECIAL.search(pattern)
    start = pattern[: special.start()] if special else pattern
    known = "\\" not in pattern and "[^" not in pattern  # where fnmatch(3) and fnmatch.py agree
    if field == 0:
        does = known and fnmatchcase(name, pattern)
        return (does, does) if known else (name.startswith(start), False)
    if not name:
        return True, pattern == "*"
    # A number follows the name, and a block's path has nothing after it.
    if not special:
        return pattern.startswith(name) and bool(re.fullmatch(r"\d+(\.\d+)?", pattern[len(name) :])), False
    may = start.startswith(name) or name.startswith(start)
    if start.startswith(name):
        may = bool(re.fullmatch(r"[\d.]*", start[len(name) :]))
    return may, known and all(fnmatchcase(f"{name}{number}", pattern) for number in (0, 7, 32, 99, 1000, 12345))


def _marks(rules: Sequence[Rule], reached: Sequence[bool]) -> frozenset[tuple[str, str]]:
    """Return the variables and tags that those rules set."""
    return frozenset(
        (item.key, item.attribute or item.value)
        for rule, there in zip(rules, reached, strict=True)
        if there
        for item in rule.items
        if (item.key == "ENV" or item.key == "TAG") and item.operator in ("=", "+=", ":=")
    )
