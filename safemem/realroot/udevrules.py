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

from safemem.realroot import udevreach

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

_ITEM = re.compile(r'\s*([A-Z_]+)(?:\{([^}]*)\})?\s*(==|!=|\+=|-=|:=|=)\s*([ei]{0,2})"((?:[^"\\]|\\.)*)"\s*,?')
#: Programs that are run to online memory, and what a shell would write to: for whichever device.
_PROGRAMS = re.compile(
    r"\b(chmem|daxctl|memhotplug|hotplug-?mem)|devices/system/memory|bus/memory|online_(movable|kernel)"
)
#: The same for a device that may be memory.
_WRITES = re.compile(r"/(online|state)\b|\bonlin|memory", re.IGNORECASE)
#: Programs that online nothing, whatever they are told; distributions reload kdump's kernel for each block.
_HARMLESS = frozenset(
    [
        "[",
        "cat",
        "echo",
        "exit",
        "false",
        "kdump-config",
        "kdump-udev-throttler",
        "kdumpctl",
        "logger",
        "printf",
        "readlink",
        "seq",
        "sleep",
        "systemd-detect-virt",
        "test",
        "true",
        "uname",
    ]
)
_SHELLS = ("sh", "bash", "dash")
_REDIRECTION = re.compile(r"\d?>+\|?\s*(&\d|[^\s;|&]*)")
#: Where a shell may write: not to the kernel, and not to what is not known.
_PLAIN_FILE = re.compile(r"&\d|/dev/(null|kmsg|console)|/(?!sys/|proc/|dev/)(?!\S*\.\.)[\w./-]+")
_UNIT = re.compile(r"dax|memory|onlin", re.IGNORECASE)
_WANTS = ("SYSTEMD_WANTS", "SYSTEMD_USER_WANTS")
#: What the kernel takes for yes (kstrtobool).
_YES = re.compile(r"[1yt]|on", re.IGNORECASE)

#: A line that cannot be read and speaks of these may online memory in an udev that can read it.
_HINTS = re.compile(r"state|online|memory|chmem|daxctl")
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
                    _unescaped(value) if "e" in escaped else value.replace('\\"', '"'),
                    "i" in escaped,
                )
            )
            place = found.end()
        rules.append(Rule(start + 1, tuple(items), line[place:].strip()))
    return rules


def onliners(rules: list[Rule]) -> list[tuple[Rule, str]]:
    """Return the rules of one file that online memory, each with what in it does."""
    memory, dax = (udevreach.reach(rules, kind) for kind in (udevreach.MEMORY, udevreach.DAX))
    found = []
    for rule, *reached in zip(rules, memory, dax, strict=True):
        what = _written(rule, reached[0]) or _run(rule, max(reached))
        if rule.rest and _HINTS.search(rule.rest):
            what = f"cannot be read from `{rule.rest[:40]}` on, so it may online memory"
        if what:
            found.append((rule, what))
    return found


def onlines(rule: Rule) -> str | None:
    """Return what in `rule` onlines memory, as if it stood alone; or None."""
    return next((what for _, what in onliners([rule])), None)


def _written(rule: Rule, reached: int) -> str | None:
    """Return the attribute of a block that a rule sets so that memory comes online."""
    for item in rule.items:
        if item.key != "ATTR" or item.operator in ("==", "!="):
            continue
        # `[subsystem/name]attribute` is that device's; a path leads to other devices, such as a node's blocks.
        _device, bracket, path = item.attribute.rpartition("]")
        mine = any(sign in item.attribute for sign in ("memory", "physical_node", "*"))
        mine = mine or (not bracket and reached > udevreach.NEVER)
        name, value = path.rpartition("/")[2], item.value.strip()
        filled = "$" in value or "%" in value
        if name == "auto_online_blocks" and value != "offline":
            return item.text
        if mine and name == "state" and (filled or value.startswith("online")):
            return item.text
        if mine and name == "online" and (filled or _YES.match(value)):
            return item.text
    return None


def _run(rule: Rule, reached: int) -> str | None:
    """Return the program or unit that a rule has started, if that may online memory."""
    for item in rule.items:
        runs = item.key == "PROGRAM" or (item.key in ("RUN", "IMPORT") and item.attribute in ("", "program"))
        if runs and item.operator != "-=" and _onlines(item.value, reached):
            return item.text
        # A unit for each device; ndctl's onlines dax devices.
        wants = item.key == "ENV" and item.attribute in _WANTS and item.operator in ("=", "+=", ":=") and item.value
        if wants and (reached == udevreach.ALONE or _UNIT.search(item.value)):
            return item.text
    return None


def _onlines(command: str, reached: int) -> bool:
    """Return whether a program may online memory: any that is run for memory alone, and is not known not to."""
    if _PROGRAMS.search(command):
        return True
    if reached == udevreach.ALONE:
        return not _is_harmless(command)
    return reached > udevreach.NEVER and bool(_WRITES.search(command)) and not _is_harmless(command)


def _is_harmless(command: str) -> bool:
    """Return whether all that a command runs is known to be harmless; a shell's command has to be plain."""
    words = command.split(None, 2)
    if len(words) < 3 or words[0].rpartition("/")[2] not in _SHELLS or words[1] != "-c":
        return not words or _is_known(command.split())
    script = words[2].strip().strip("'\"")
    if re.search(r"\$\(|`|<\(", script) or not all(_PLAIN_FILE.fullmatch(at) for at in _REDIRECTION.findall(script)):
        return False
    parts = [part.split() for part in re.split(r"[;|&{}\n]+", _REDIRECTION.sub(" ", script))]
    return all(_is_known(part) for part in parts)


def _is_known(words: list[str]) -> bool:
    while words and words[0] in ("if", "then", "else", "do", "!", "while", "fi", "done"):
        words = words[1:]
    if not words:
        return True
    program = words[0].rpartition("/")[2]
    if program == "systemctl":
        return "is-active" in words or words[-1] in ("kdump.service", "kdump")
    if program == "systemd-run":
        return words[-1].rpartition("/")[2] in _HARMLESS
    return program in _HARMLESS


def _unescaped(value: str) -> str:
    """Return what udev reads between the quotes of e"" (cunescape of systemd)."""
    return _ESCAPE.sub(lambda found: _escape(found[1]), value)


def _escape(text: str) -> str:
    if text[0] in "xuU" and len(text) > 1:  # alone it is a letter like any other
        return chr(min(int(text[1:], 16), 0x10FFFF))
    return chr(int(text, 8)) if len(text) == 3 else {"t": "\t", "n": "\n", "s": " "}.get(text, text)


def find(root: str, masked: frozenset[str] = frozenset()) -> list[Onliner]:
    """Return every rule below `root` that is in force and onlines memory; masked files are not, but for those `masked`."""
    found, seen = [], set()
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
            if (base / name).exists():  # of a link to nowhere, udev since 254 reads the file that comes after it
                seen.add(name)
            try:
                if (base / name).is_char_device():  # /dev/null, as a link or mounted over the file: a mask
                    continue
                if not (base / name).is_file():  # also: reading a FIFO would wait for ever
                    raise OSError
                data = (base / name).read_bytes()
                if len(data) != (base / name).stat().st_size:  # cut off, it would be a file without that rule
                    raise OSError
                rules = onliners(parse(data.decode("utf-8", "replace")))
            except (OSError, ValueError, RecursionError):
                found.append(Onliner(f"{folder}/{name}", 1, "cannot be read, so it may online memory"))
                continue
            found += [Onliner(f"{folder}/{name}", rule.line, what) for rule, what in rules]
    return found


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
