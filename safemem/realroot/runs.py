# SPDX-License-Identifier: MIT
"""Whether what a udev rule has started may online memory: a program, a shell's command, a unit.

For a device of memory's alone whatever is started counts, unless it is known to do nothing of the kind: by its name,
or because it is a script and was read. For other devices it counts by what is written in it.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from safemem.realroot import commands, onlining, programs, shelltext, udevreach, units

_REDIRECTION = re.compile(r"\d?>+\|?\s*(&\d|[^\s;|&]*)")
#: Where a shell may write: not to the kernel, and not to what is not known.
_PLAIN_FILE = re.compile(
    r"&\d|/dev/(null|kmsg|console)|/(?!sys/|proc/|dev/)(?!\S*\.\.)[\w.-]+/(?:[\w./-]|\$env\{\w+\}|%[kn])+|/[\w.-]+"
)
#: Programs of which `safemem.realroot.onlining` has said what these words make them do.
_JUDGED = ("chmem", "daxctl")
#: Units that a distribution reloads for each block, and that online nothing.
_UNITS = ("kdump.service", "kdump-tools.service", "kdump-early.service")
_STARTS = re.compile(
    r"systemctl\s+(?:-\S+\s+)*(?:start|restart|try-restart|reload-or-restart|isolate|enable\s+--now)\s+([^;|&'\"\n]+)"
)
_SUBSTITUTED = re.compile(r"\$\(([^()`]*)\)|`([^`]*)`")
#: What in a command for a device that may be memory's speaks of onlining.
_SPEAKS = re.compile(r"/(online|state)\b|\bonlin|memory", re.IGNORECASE)
#: What udev runs by itself where a rule imports it as a program (src/udev/udev-builtin.c).
_BUILT_IN = frozenset(
    [
        "blkid",
        "btrfs",
        "dissect_image",
        "factory_reset",
        "hwdb",
        "input_id",
        "keyboard",
        "kmod",
        "net_driver",
        "net_id",
        "net_setup_link",
        "path_id",
        "tpm2_id",
        "uaccess",
        "usb_id",
    ]
)
_FOLDERS = (*programs.UDEV_FOLDERS, "usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
_DEPTH = 3
_FUNCTION = re.compile(r"(?m)^\s*(?:function\s+)?([\w.-]+)\s*\(\)|^\s*function\s+([\w.-]+)")
#: What a piece of a shell's text may begin with that is a command.
_COMMAND = re.compile(r"[$\"'{}\w./-]*[\w/}][\"']?")


class Verdict(NamedTuple):
    """That something may online memory, and why that is so or not known."""

    sure: bool
    why: str = ""


class Reader(programs.Scripts):
    """What is read of the programs and units below a root, each once."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.judged: dict[tuple[str, int, bool, int], Verdict | None] = {}
        self._commands: dict[str, list[list[str]]] = {}

    def commands(self, program: programs.Found) -> list[list[str]]:
        """Return the commands of a script but for its own functions, each once."""
        if program.path not in self._commands:
            own = {name for names in _FUNCTION.findall(program.text) for name in names if name}
            every = (shelltext.unwrapped(words) for words in shelltext.commands_of(program.text))
            found = {" ".join(words): words for words in every if words and words[0] not in own}
            self._commands[program.path] = [words for words in found.values() if _COMMAND.fullmatch(words[0])]
        return self._commands[program.path]

    @functools.cached_property
    def units(self) -> dict[str, list[str]]:
        """The names in each folder of units."""
        return units.names(self.root)


def units_started(text: str) -> list[str]:
    """Return the units that a command or a script has systemd start."""
    names = [name.strip("'\"") for match in _STARTS.finditer(text) for name in match[1].split() if name[:1] != "-"]
    return [name if "." in name else f"{name}.service" for name in names if name]


def judge(reader: Reader | None, command: str, reached: int, depth: int = 1, cwd: str = "") -> Verdict | None:
    """Return whether a command that a rule runs may online memory; `reached`: how far the rule is for memory's devices."""
    command = command.replace("$$", "$")
    about = reached > udevreach.NEVER
    found = None
    if reader is None:
        sign = onlining.in_script(command, about=about)
        found = Verdict(sign.sure) if sign else None
    elif does := programs.onlines(reader, command, about=about, folders=_FOLDERS, harmless=commands.HARMLESS, cwd=cwd):
        found = Verdict(does.sure, f"{does.where}: {does.what}" if does.where else "")
    if (found is None or not found.sure) and depth <= _DEPTH:
        verdicts = [judge_unit(reader, name, reached, depth + 1) for name in units_started(command)]
        found = next((each for each in verdicts if each and each.sure), found or next(filter(None, verdicts), None))
    if found is not None and found.sure:
        return found
    speaks = reached == udevreach.ALONE or (about and bool(_SPEAKS.search(command)))
    if speaks and found is None and (unknown := _unknown(reader, command)) is not None:
        return Verdict(sure=False, why=unknown)
    return found


def judge_unit(
    reader: Reader | None, name: str, reached: int, depth: int = 1, *, named: bool = False
) -> Verdict | None:
    """Return whether a unit that a rule wants may online memory; `named`: it may by its name, where it is not there."""
    missing = named or reached == udevreach.ALONE
    name = name if "." in name else f"{name}.service"
    if name in _UNITS:
        return None
    if reader is None:
        return Verdict(sure=False) if missing else None
    key = (name, reached, missing, depth)
    if key not in reader.judged:
        reader.judged[key] = None  # one that starts itself ends
        reader.judged[key] = _of_unit(reader, name, reached, depth, missing=missing)
    return reader.judged[key]


def _of_unit(reader: Reader, name: str, reached: int, depth: int, *, missing: bool) -> Verdict | None:
    unit = units.read(reader.root, name, reader.units)
    if unit is None and units.is_masked(reader.root, name, reader.units):
        return None
    if unit is None:
        return Verdict(sure=False, why=f"there is no {name} here, so what it does is not known") if missing else None
    verdicts = []
    for command in unit.commands:
        verdict = judge(reader, command.text, reached, depth, command.cwd)
        if verdict is not None:
            verdicts.append(
                Verdict(verdict.sure, f"{command.file}:{command.line}" + (f": {verdict.why}" if verdict.why else ""))
            )
    return next((each for each in verdicts if each.sure), verdicts[0] if verdicts else None)


def _unknown(reader: Reader | None, command: str) -> str | None:
    """Return why it is not known what a command does; None if it is known, and harmless."""
    words = command.split(None, 2)
    if len(words) < 3 or words[0].rpartition("/")[2] not in shelltext.SHELLS or words[1] != "-c":
        return _of_program(reader, command.split()) if words else None
    script = words[2].strip().strip("'\"")
    # What a substitution runs is run as well; its text is one word.
    inner = [match[1] or match[2] for match in _SUBSTITUTED.finditer(script)]
    script = _SUBSTITUTED.sub("x", script)
    for part in (each for text in (script, *inner) for each in shelltext.statements(text)):
        # What is known to be no word that onlines may be written anywhere, such as another subsystem's `running`.
        if re.search(r"\$\(|`|<\(", part) or not (
            onlining.is_off(part) or all(_PLAIN_FILE.fullmatch(at) for at in _REDIRECTION.findall(part))
        ):
            return "what a shell does with it is not known"
    pieces = [piece for text in (script, *inner) for piece in re.split(r"[;|&{}\n]+", _REDIRECTION.sub(" ", text))]
    return next((why for piece in pieces if (why := _of_program(reader, piece.split())) is not None), None)


def _of_program(reader: Reader | None, words: list[str], seen: tuple[str, ...] = ()) -> str | None:
    """Return why it is not known what one command does: for a script, why it is not of one that it starts."""
    told, words = words, shelltext.unwrapped(words)
    if not words:
        return None
    if words[0].rpartition("/")[2] == "find" and (at := {"-exec", "-execdir", "-ok"} & {*words}):
        return _of_program(reader, words[words.index(at.pop()) + 1 :], seen)
    name = words[0].strip("'\"")
    program = name.rpartition("/")[2]
    if program in commands.HARMLESS or program in _BUILT_IN or program in _JUDGED or told[0].startswith("socket:"):
        return None
    if seen and program in commands.WRITERS:
        return None
    if program == "systemctl" and reader is not None and _STARTS.search(" ".join(words)):
        return None  # the unit was looked into
    if program == "systemctl" and (
        {"is-active", "is-enabled", "show", "status"} & {*words} or words[-1] in ("kdump.service", "kdump")
    ):
        return None
    if reader is None:
        return ""
    found = reader.find(name, _FOLDERS)
    if found.kind == programs.MISSING:
        return f"there is no {name} here, so what it does is not known"
    if found.kind == programs.BINARY or not onlining.is_shell(found.text):
        return f"{found.path} is no script that can be read, so what it does is not known"
    if found.path in seen:
        return None
    if len(seen) == _DEPTH:
        return f"what {found.path} starts is not known"
    every = (_of_program(reader, command, (*seen, found.path)) for command in reader.commands(found))
    return next((why for why in every if why is not None), None)
