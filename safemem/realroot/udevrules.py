# SPDX-License-Identifier: MIT
"""Read udev rules (udev(7)) and find those that online memory behind safemem's back.

A real parse: comments, continuation lines, quoted values with escapes, every operator. A rule that could online memory
counts, be its conditions what they may, unless it is certain to be for other devices (`safemem.realroot.udevreach`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from safemem.realroot import programs, runs, udevreach, units
from safemem.realroot.udevparse import Item as Item
from safemem.realroot.udevparse import Rule as Rule
from safemem.realroot.udevparse import parse as parse

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

#: A line that cannot be read and speaks of these may online memory in an udev that can read it.
_HINTS = re.compile(r"state|online|memory|chmem|daxctl")
#: Names that count where nobody can read the unit, and a rule may be for memory's devices; what makes up a name.
_UNIT = re.compile(r"dax|memory|onlin", re.IGNORECASE)
#: ndctl's unit, which turns a dax device into memory: known, read or not.
_NDCTL = "daxdev-reconfigure@"
_MADE_UP = re.compile(r"%c|\$result|%E|\$env", re.IGNORECASE)
_TEMPLATE = re.compile(r"--template[= ]\s*(\S+)")
_WANTS = ("SYSTEMD_WANTS", "SYSTEMD_USER_WANTS")
#: What the kernel takes for yes (kstrtobool).
_YES = re.compile(r"[1yte]|on", re.IGNORECASE)
_ENV = re.compile(r"\$env\{(\w+)\}|%E\{(\w+)\}")
#: Values of one variable that are tried in a command.
_VALUES = 8


class Onliner(NamedTuple):
    """A rule that onlines memory."""

    file: str
    line: int
    what: str
    sure: bool = True  #: False where it runs what may online memory, and nobody can tell
    why: str = ""  #: what the program that it runs does, and where; or why that is not known


class Found(NamedTuple):
    """A rule of one file that onlines memory, and what in it does."""

    rule: Rule
    what: str
    sure: bool = True
    why: str = ""
    other: bool = False  #: the rule is for other devices than memory's; what is known of it stands in a script


def onliners(rules: list[Rule], root: str | None = None, reader: runs.Reader | None = None) -> list[Found]:
    """Return the rules of one file that online memory, each with what in it does.

    `root`: where the programs and units are that they name, or a `reader` of it; None: nowhere, so none of them is known.
    """
    memory, dax = (udevreach.reach(rules, kind) for kind in (udevreach.MEMORY, udevreach.DAX))
    file = _File(reader or (None if root is None else runs.Reader(root)), rules)
    found = []
    for rule, *reached in zip(rules, memory, dax, strict=True):
        # udev drops such a line. One that can read it would go by what stands before as well.
        if rule.rest and max(reached) > udevreach.NEVER and _HINTS.search(rule.rest):
            found.append(Found(rule, f"cannot be read from `{rule.rest[:40]}` on, so it may online memory", sure=False))
        elif what := _written(rule, reached[0]):
            found.append(Found(rule, what))
        elif run := file.run(rule, max(reached)):
            found.append(run)
    return found


def onlines(rule: Rule) -> str | None:
    """Return what in `rule` onlines memory, as if it stood alone; or None."""
    return next((found.what for found in onliners([rule])), None)


def _written(rule: Rule, reached: int) -> str | None:
    """Return the attribute of a block that a rule sets so that memory comes online."""
    for item in rule.items:
        if item.key != "ATTR" or item.operator in ("==", "!="):
            continue
        # `[subsystem/name]attribute` is that device's; a path leads to other devices, such as a node's blocks.
        _device, bracket, path = item.attribute.rpartition("]")
        mine = any(sign in item.attribute for sign in ("memory", "physical_node", "*"))
        # What is filled in when the rule runs may be the name of a block.
        mine = mine or (not bracket and (reached > udevreach.NEVER or bool(re.search(r"[$%].*/", path))))
        name, value = path.rpartition("/")[2], item.value.strip()
        filled = "$" in value or "%" in value
        if name == "auto_online_blocks" and value != "offline":
            return item.text
        if mine and name == "state" and (filled or value.startswith("online")):
            return item.text
        if mine and name == "online" and (filled or _YES.match(value)):
            return item.text
    return None


class _File:
    """One file of rules: what they run, with the values that they set before."""

    def __init__(self, reader: runs.Reader | None, rules: list[Rule]) -> None:
        self.reader = reader
        self.values: dict[str, list[str]] = {}
        self.templates: list[str] = []
        for item in (item for rule in rules for item in rule.items):
            if item.key == "ENV" and item.operator in ("=", "+=", ":="):
                self.values.setdefault(item.attribute, []).append(item.value)
            if item.key == "PROGRAM":
                self.templates += _TEMPLATE.findall(item.value)

    def run(self, rule: Rule, reached: int) -> Found | None:
        """Return the program or unit that a rule has started, if that may online memory; the sure before the others."""
        found = []
        for item in rule.items:
            # Old versions ran more kinds than `program`, such as {fail_event_on_error}.
            runs_it = item.key == "PROGRAM" or (item.key == "RUN" and item.attribute != "builtin")
            runs_it = runs_it or (item.key == "IMPORT" and item.attribute in ("", "program"))
            if runs_it and item.operator != "-=":
                for command in self._filled(item.value):
                    if verdict := runs.judge(self.reader, command, reached):
                        found.append(
                            Found(
                                rule,
                                item.text,
                                verdict.sure,
                                verdict.why,
                                reached == udevreach.NEVER and verdict.why != "",
                            )
                        )
            wants = item.key == "ENV" and item.attribute in _WANTS and item.operator in ("=", "+=", ":=") and item.value
            if wants and (verdict := self._wants(item.value, reached)):
                found.append(
                    Found(rule, item.text, verdict.sure, verdict.why, reached == udevreach.NEVER and verdict.why != "")
                )
        return next((each for each in found if each.sure), found[0] if found else None)

    def _filled(self, command: str) -> list[str]:
        """Return a command, as it is and with each value that this file gives to a variable in it."""
        commands = [command]
        for match in _ENV.finditer(command):
            for value in self.values.get(match[1] or match[2], [])[:_VALUES]:
                commands.append(command.replace(match[0], value))
        return commands[: _VALUES * 2]

    def _wants(self, value: str, reached: int) -> runs.Verdict | None:
        """Return whether a unit that is started for a device onlines memory: by what is in it, and where it is not there by its name."""
        known = value.split()
        if _MADE_UP.search(units.template(value) if " " not in value else value):
            known = self.templates if re.search(r"%c|\$result", value) else []
        if reached > udevreach.NEVER and any(_NDCTL in name for name in (value, *known)):
            return runs.Verdict(sure=True)
        verdicts = [self._unit(name, reached) for name in known]
        if not known and reached == udevreach.ALONE:
            return runs.Verdict(sure=True, why="the name of the unit is made up when the rule runs")
        return next((each for each in verdicts if each and each.sure), next(filter(None, verdicts), None))

    def _unit(self, name: str, reached: int) -> runs.Verdict | None:
        # A name that says what a unit does counts for memory's devices, where there is nothing to read.
        by_name = reached > udevreach.NEVER and bool(_UNIT.search(name))
        return runs.judge_unit(self.reader, name, reached, named=by_name)


def find(root: str, masked: frozenset[str] = frozenset(), *, every: bool = False) -> list[Onliner]:
    """Return every rule below `root` that is in force and onlines memory; masked files are not, but for those `masked`.

    `every`: also those that are for other devices and run a script that only may online memory. Whoever masks does not ask for
    them: without the rules of disks there may be no boot at all.
    """
    found, seen, reader = [], set(), runs.Reader(root)
    for folder in FOLDERS:
        base = Path(root) / folder
        try:
            names = sorted(name for name in os.listdir(base) if name.endswith(".rules"))
        except OSError as error:
            if isinstance(error, (FileNotFoundError, NotADirectoryError)) and _is_missing(root, folder):
                continue
            found.append(Onliner(folder, 1, "cannot be listed, so a rule in it may online memory"))
            continue
        for name in names:
            if name in seen or name == OURS:
                continue
            if name in masked and (base / name).is_char_device():
                continue
            try:
                if is_nowhere(root, f"{folder}/{name}"):
                    continue
                seen.add(name)
                rules = read(root, f"{folder}/{name}")
                if rules is None:
                    continue
                onlining = onliners(rules, reader=reader)
            except (OSError, ValueError, RecursionError):
                seen.add(name)
                found.append(Onliner(f"{folder}/{name}", 1, "cannot be read, so it may online memory"))
                continue
            found += [
                Onliner(f"{folder}/{name}", each.rule.line, each.what, each.sure, each.why)
                for each in onlining
                if every or each.sure or not each.other
            ]
    return found


def read(root: str, path: str) -> list[Rule] | None:
    """Return the rules of a file below `root`; None for a mask. Raises OSError, also for what is no plain file."""
    if (Path(root) / path).is_char_device():  # /dev/null, as a link or mounted over the file: a mask
        return None
    where = programs.resolve(root, path)
    file = Path(root) / (path if where is None else where)
    if not file.is_file():  # also: reading a FIFO would wait for ever
        raise OSError
    data = file.read_bytes()
    if len(data) != file.stat().st_size:  # cut off, it would be a file without that rule
        raise OSError
    return parse(data.decode("utf-8", "replace"))


def is_nowhere(root: str, path: str) -> bool:
    """Return whether a file of rules is a link to nowhere or a folder, which is nobody's rule: udev reads nothing there.

    Of a link to nowhere, systemd 252 and 257 then read no file of that name at all, 262 reads the one in a later
    folder, and heeds a mask in /run before it (seen in all three): so that one counts, and the mask is enough.
    """
    full = os.path.join(root, path)
    if os.path.islink(full) and os.readlink(full) == "/dev/null":
        return False
    where = programs.resolve(root, path)
    return os.path.islink(full) if where is None else os.path.isdir(os.path.join(root, where))


def _is_missing(root: str, folder: str) -> bool:
    """Return whether no such folder is listed where it would be: it is not that it cannot be found at this moment."""
    above, _, name = folder.rpartition("/")
    try:
        return name not in os.listdir(os.path.join(root, above))
    except (FileNotFoundError, NotADirectoryError):
        return bool(above) and _is_missing(root, above)
    except OSError:
        return False


def masks(root: str) -> tuple[str, ...]:
    """Return the names of all files to mask: those found below `root` and the known ones."""
    names = {os.path.basename(item.file) for item in find(root)}
    return tuple(sorted({*KNOWN, *(name for name in names if name.endswith(".rules"))}))
