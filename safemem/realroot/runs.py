# SPDX-License-Identifier: MIT
"""Whether what a udev rule has started may online memory: a program, a shell's command, a unit.

For a device of memory's alone whatever is started counts, unless it is known to do nothing of the kind: by its name,
or because it is a script and was read. For other devices it counts by what is written in it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from safemem.realroot import onlining, programs, shelltext, udevreach, units

#: Programs that online nothing, whatever they are told; distributions reload kdump's kernel for each block.
_HARMLESS = frozenset(
    [
        "[",
        "basename",
        "cat",
        "cut",
        "date",
        "dirname",
        "echo",
        "exit",
        "false",
        "grep",
        "head",
        "hostname",
        "kdump-config",
        "kdump-udev-throttler",
        "kdumpctl",
        "logger",
        "ls",
        "lsmem",
        "mkdir",
        "printf",
        "readlink",
        "seq",
        "sleep",
        "sort",
        "systemd-detect-virt",
        "stat",
        "tail",
        "test",
        "systemd-cat",
        "systemd-notify",
        "touch",
        "true",
        "tr",
        "udevadm",
        "uname",
        "wall",
        "wc",
    ]
)
_SHELLS = ("sh", "bash", "dash")
_REDIRECTION = re.compile(r"\d?>+\|?\s*(&\d|[^\s;|&]*)")
#: Where a shell may write: not to the kernel, and not to what is not known.
_PLAIN_FILE = re.compile(r"&\d|/dev/(null|kmsg|console)|/(?!sys/|proc/|dev/)(?!\S*\.\.)[\w./-]+")
#: Programs of which `safemem.realroot.onlining` has said what these words make them do.
_JUDGED = ("chmem", "daxctl")
#: Units that a distribution reloads for each block, and that online nothing.
_UNITS = ("kdump.service", "kdump-tools.service")
_STARTS = re.compile(r"systemctl\s+(?:-\S+\s+)*(?:start|restart|try-restart|reload-or-restart|isolate)\s+([^;|&'\"]+)")
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
#: Distributions' own programs, which scripts start by the dozen: what of them onlines memory is known by name.
_SYSTEM = re.compile(r"/?(usr/)?s?bin/[^/]+")
_DEPTH = 3


class Verdict(NamedTuple):
    """That something may online memory, and why that is so or not known."""

    sure: bool
    why: str = ""


def judge(root: str | None, command: str, reached: int, depth: int = 1) -> Verdict | None:
    """Return whether a command that a rule runs may online memory; `reached`: how far the rule is for memory's devices."""
    command = command.replace("$$", "$")
    about = reached > udevreach.NEVER
    found = None
    if root is None:
        sign = onlining.in_script(command, about=about)
        found = Verdict(sign.sure) if sign else None
    elif does := programs.onlines(root, command, about=about, folders=_FOLDERS, harmless=_HARMLESS):
        found = Verdict(does.sure, f"{does.where}: {does.what}" if does.where else "")
    if (found is None or not found.sure) and depth <= _DEPTH:
        units_started = [name for match in _STARTS.finditer(command) for name in match[1].split() if name[:1] != "-"]
        verdicts = [judge_unit(root, name, reached, depth + 1) for name in units_started]
        found = next((each for each in verdicts if each and each.sure), found or next(filter(None, verdicts), None))
    if found is not None and found.sure:
        return found
    speaks = reached == udevreach.ALONE or (about and bool(_SPEAKS.search(command)))
    if speaks and found is None and (unknown := _unknown(root, command)) is not None:
        return Verdict(sure=False, why=unknown)
    return found


def judge_unit(root: str | None, name: str, reached: int, depth: int = 1) -> Verdict | None:
    """Return whether a unit that a rule wants may online memory."""
    alone = reached == udevreach.ALONE
    name = name if "." in name else f"{name}.service"
    if name in _UNITS:
        return None
    if root is None:
        return Verdict(sure=False) if alone else None
    there = units.names(root)
    unit = units.read(root, name, there)
    if unit is None and units.is_masked(root, name, there):
        return None
    if unit is None:
        return Verdict(sure=False, why=f"there is no {name} here, so what it does is not known") if alone else None
    verdicts = []
    for command in unit.commands:
        verdict = judge(root, command.text, reached, depth)
        if verdict is not None:
            verdicts.append(
                Verdict(verdict.sure, f"{command.file}:{command.line}" + (f": {verdict.why}" if verdict.why else ""))
            )
    return next((each for each in verdicts if each.sure), verdicts[0] if verdicts else None)


def _unknown(root: str | None, command: str) -> str | None:
    """Return why it is not known what a command does; None if it is known, and harmless."""
    words = command.split(None, 2)
    if len(words) < 3 or words[0].rpartition("/")[2] not in _SHELLS or words[1] != "-c":
        return _of_program(root, command.split()) if words else None
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
    return next((why for piece in pieces if (why := _of_program(root, piece.split())) is not None), None)


def _of_program(root: str | None, words: list[str], depth: int = 1) -> str | None:
    while words and words[0] in ("if", "then", "else", "do", "!", "while", "fi", "done"):
        words = words[1:]
    if not words:
        return None
    program = words[0].rpartition("/")[2]
    if program in _HARMLESS or program in _BUILT_IN or program in _JUDGED:
        return None
    if program == "systemctl" and root is not None and _STARTS.search(" ".join(words)):
        return None  # the unit was looked into
    if program == "systemctl" and ("is-active" in words or words[-1] in ("kdump.service", "kdump")):
        return None
    if program == "systemd-run" and words[-1].rpartition("/")[2] in _HARMLESS:
        return None
    if root is None:
        return ""
    found = programs.find(root, words[0], _FOLDERS)
    if found.kind == programs.MISSING:
        return f"there is no {words[0]} here, so what it does is not known"
    if found.kind == programs.BINARY:
        return f"{found.path} is no script that can be read, so what it does is not known"
    if depth < _DEPTH:
        for name in shelltext.started(found.text):
            if (
                "/" in name
                and not _SYSTEM.fullmatch(name)
                and (why := _of_program(root, [name], depth + 1)) is not None
            ):
                return why
    return None
