# SPDX-License-Identifier: MIT
"""What a mask takes along: rules for other devices in a file that is masked because of memory.

udev can only be kept from a whole file. So whoever masks one says what else stood in it, before nobody can read it.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from safemem.boot import console, files
from safemem.boot.hold import UDEV_RUN
from safemem.realroot import storage, udevreach, udevrules

#: What was masked besides: one rule a line, as file, line and device, separated by tabs. It is as old as the mask.
KEPT = "run/safemem/masked-besides"
#: Keys that do nothing by themselves.
_IDLE = frozenset(["GOTO", "LABEL"])


class Besides(NamedTuple):
    """A rule for other devices than memory's in a file that is masked."""

    file: str
    line: int
    device: str  #: the condition that says which; "" for every device


def find(root: str, name: str) -> list[Besides]:
    """Return the rules for other devices in the file called `name` that a mask hides, the first of each device's."""
    for folder in udevrules.FOLDERS:
        path = f"{folder}/{name}"
        if not os.path.lexists(os.path.join(root, path)) or udevrules.is_nowhere(root, path):
            continue
        rules = udevrules.read(root, path)
        if rules is not None:
            return [Besides(path, line, device) for line, device in _others(rules)]
        if not os.path.islink(os.path.join(root, path)) or folder == udevrules.FOLDERS[0]:
            return []  # covered before, or the operator's own mask
    return []


def tell(root: str, name: str) -> None:
    """Say, and write down, which rules for other devices a mask takes along; nothing of that may end the hold."""
    with contextlib.suppress(Exception):
        found = find(root, name) if name.endswith(".rules") else []
        before = kept(files.text(root, KEPT) or "")
        new = [item for item in found if item not in before]
        if new:
            console.say(
                root, console.NOTICE, f"{found[0].file} is masked, and with it rules for other devices: {text(found)}"
            )
            storage.put(root, KEPT, write([*before, *new]))


def tell_all(root: str) -> None:
    """Say it of the files that are masked already: the initramfs knew them."""
    with contextlib.suppress(Exception):
        folder = os.path.join(root, UDEV_RUN)
        for name in sorted(os.listdir(folder)):
            if os.path.islink(os.path.join(folder, name)) and os.readlink(os.path.join(folder, name)) == "/dev/null":
                tell(root, name)


def tell_unsure(root: str, found: list[udevrules.Onliner]) -> None:
    """Say why a file is masked of which nobody knows whether it onlines memory."""
    for rule in found:
        if not rule.sure:
            why = f", and {rule.why}" if rule.why else ""
            text = f"{rule.file} is masked: {rule.what} at line {rule.line} may online memory{why}"
            console.say(root, console.NOTICE, text)


def _others(rules: list[udevrules.Rule]) -> list[tuple[int, str]]:
    kinds = (udevreach.MEMORY, udevreach.DAX)
    reached = zip(*(udevreach.reach(rules, kind) for kind in kinds), strict=True)
    found: dict[str, int] = {}
    device = ""
    for rule, how_far in zip(rules, reached, strict=True):
        named = next(
            (
                i.text
                for key in ("SUBSYSTEM", "KERNEL", "DEVPATH")
                for i in rule.items
                if i.key == key and i.operator == "=="
            ),
            "",
        )
        # Behind a jump for all but one subsystem, that is the one.
        jumps = [item for item in rule.items if item.key == "SUBSYSTEM" and item.operator == "!="]
        if jumps and any(item.key == "GOTO" for item in rule.items):
            device = f'SUBSYSTEM=="{jumps[0].value}"'
        does = any(item.key not in _IDLE and item.operator not in ("==", "!=") for item in rule.items)
        if does and max(how_far) == udevreach.NEVER:
            found.setdefault(named or device, rule.line)
    return [(line, device) for device, line in found.items()]


def write(found: list[Besides]) -> str:
    """Return the text that is kept of what was masked besides."""
    return "".join(f"{item.file}\t{item.line}\t{item.device}\n" for item in found)


def kept(text: str) -> list[Besides]:
    """Return what was masked besides, as `write` has put it; a line that is none is left out."""
    found = []
    for row in text.splitlines():
        file, _, rest = row.partition("\t")
        line, tab, device = rest.partition("\t")
        if tab and line.isascii() and line.isdecimal() and len(line) < 10:
            found.append(Besides(file, int(line), device))
    return found


def text(found: list[Besides]) -> str:
    """Return in words what was masked besides in one file."""
    return ", ".join(f"{item.device or 'every device'} at line {item.line}" for item in found)
