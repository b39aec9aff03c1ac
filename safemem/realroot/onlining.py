# SPDX-License-Identifier: MIT
"""What in a command, a script or a path onlines memory: one reader for rules, units, and all that configures others.

Fail closed, but by what is written and where: a loop over `memory*/state` that only counts is no onliner, `echo online`
into a file that a variable names is one where memory is spoken of. A variable may stand for anything.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from safemem.realroot import shelltext

#: What memory's own files are called, with `memory0` and `node0` for each of them (Documentation/ABI/testing/sysfs-devices-memory).
_BLOCKS = (
    "/sys/devices/system/memory/memory0/",
    "/sys/bus/memory/devices/memory0/",
    "/sys/devices/system/node/node0/memory0/",
    "/sys/bus/node/devices/node0/memory0/",
)
_AUTO = ("/sys/devices/system/memory/auto_online_blocks", "/sys/bus/memory/auto_online_blocks")
_FILES = (*(f"{folder}{name}" for folder in _BLOCKS for name in ("state", "online")), *_AUTO)
#: Words that only memory's files are called by, in any language. What can only be read of them is none.
_ABOUT = re.compile(
    r"(?:devices/system|bus)/memory(?!/(?:block_size_bytes|crash_hotplug|uevent)\b)|auto_online_blocks"
    r"|/memory(?:\d|[*?\[${%])[^\s/'\"]*/(?:state|online)\b|/physical_node\d*/(?:state|online)\b"
    r"|\bonline_(?:movable|kernel)\b|\bfind\s[^;|\n]*(?:devpath|DEVPATH)[^;|\n]*-i?name\s+\S*(?:state|online)\b"
)
_VALUE = re.compile(r"online(_movable|_kernel)?|[1yte]|yes|true|on|enabled?", re.IGNORECASE)
_OFF = re.compile(r"offline|[0nfd]|no|false|off|disabled?", re.IGNORECASE)
_NUMBERED = re.compile(r"(?<=/)(memory|node)(?:\d|[*?{,}-]|\[[^\]/]*\])+(?=/|$)")
_REDIRECTED = re.compile(
    r"(?<![-=<>\d&$])\d*>{1,2}[|!]?\s*(&\d|&-|\"[^\"]*\"|'[^']*'|[^\s;|&)]*)|&>{1,2}\s*([^\s;|&)]+)"
)
#: Stands for a file that such a program names by itself.
_ANY = "{}"
#: Programs that run what they are told to, or another language.
_RUN_MORE = frozenset(["find", "xargs", "parallel", "eval", "awk", "sed", "perl", "python", "python3", "ruby"])
_ONLINE = re.compile(r"\bonline(_movable|_kernel)?\b(?!\s*/)")
_CHMEM = re.compile(r"(?:^|[\s/'\"`(;&|])(chmem)(?=$|[\s'\"`);&|,])([^;&|\n]*)")
_DAXCTL = re.compile(r"(?:^|[\s/'\"`(;&|])(daxctl)(?=$|[\s'\"`);&|,])([^;&|\n]*)")
_DLPAR = re.compile(r"\bdrmgr\b(?=[^\n]*-c\s*mem)(?=[^\n]*\s-a\b)|\bmemory\s+add\b[^\n]*kernel/dlpar")
#: Programs of vendors, by their names.
_NAMED = re.compile(r"\bmem-?hotplug\b|\bhotplug-?mem", re.IGNORECASE)
#: Of daxctl, what changes no memory; reconfiguring onlines, but for where it is told not to (daxctl-reconfigure-device(1)).
_DAXCTL_HARMLESS = re.compile(
    r"[\s'\",]*(list|offline-memory|disable-device|enable-device|destroy-device|split-acpi|version|help|--version|--help|-h|-v)\b"
)
_DAXCTL_OFF = re.compile(r"\s(-N|--no-online|--mode=devdax|-m\s*devdax|--mode\s+devdax)\b")
#: How other languages than a shell's write to a file or run a program.
_WRITES = re.compile(
    r"\.write\(|write_text|write_bytes|writelines|syswrite|file_put_contents|WriteFile|WriteString"
    r"|open\w*\s*\(?[^)\n]*['\"][wa+>]|>\s*['\"]?[/$]|(?<![/\w])system\s*[(\s]|subprocess|\bexec\b"
)
_QUOTED = re.compile(r"['\"](?:online(?:_movable|_kernel)?|1)(?:\\n)?['\"]")


#: PATH_MAX, and so many wildcards that nobody writes more.
_LONGEST_PATH, _WILD = 4096, 16


class Sign(NamedTuple):
    """What in a text onlines memory."""

    line: int
    what: str  #: as it is written, on one line
    sure: bool  #: False where it may: what it writes, or where, is not known


def is_memory(pattern: str) -> bool:
    """Return whether a path, a glob, or a path with variables may be a file that onlines memory."""
    return _may_be(pattern, relative=False)


def _may_be(pattern: str, *, relative: bool) -> bool:
    if len(pattern) > _LONGEST_PATH:
        return False
    text = shelltext.VARIABLE.sub("\0", pattern.strip().strip("'\""))
    if not text:
        return False
    # A block's path below a process's root is the same path.
    text = re.sub(r"^/proc/[^/]+/root(?=/)", "", text)
    text = _NUMBERED.sub(r"\g<1>0", "/" + text if not text.startswith(("/", "\0")) else text)
    parts: list[str] = []
    for part in re.split(r"/+", text):
        if part == ".." and parts and parts[-1] not in ("..", ""):
            parts.pop()
        elif part != ".":
            parts.append(part)
    text = "/".join(parts)
    if relative and not pattern.strip().strip("'\"").startswith(("/", "$", "%", "`")):
        text = f"\0{text}"
    if text.startswith("\0") and not relative:
        text = f"\0{text.lstrip(chr(0))}"
    known = {"\0": ".*", "*": "[^/]*", "?": "[^/]"}
    if re.search(r"/physical_node\d*/(state|online)$", text):  # of an ACPI device: the blocks of a memory device
        return True
    # One after the other they come to one that stands for anything.
    text = re.sub(r"[\0*?]*\0[\0*?]*", "\0", text)
    if len(re.findall(r"[\0*?\[{]", text)) > _WILD:
        return True
    pieces = re.split(r"(\0+|\*+|\?|\[[^\]/]*\]|\{[^}/]*\})", text)
    expression = "".join(
        known.get(piece[:1], "[^/]*") if at % 2 else re.escape(piece) for at, piece in enumerate(pieces)
    )
    try:
        return any(re.fullmatch(expression, name) for name in _FILES)
    except re.error:  # pragma: no cover - all of it is escaped
        return True


def is_about_memory(text: str) -> bool:
    """Return whether a text speaks of the files by which memory is onlined."""
    return bool(_ABOUT.search(text))


def in_value(text: str) -> bool | None:
    """Return whether a value that is written to such a file onlines memory; None if that is not known."""
    word = re.sub(r"\\[nrt]", " ", text[:_LONGEST_PATH]).strip().strip("'\"").strip()
    if shelltext.VARIABLE.search(word):
        return None
    if _OFF.fullmatch(word):
        return False
    return bool(_VALUE.fullmatch(word))


def in_script(text: str, *, about: bool = False) -> Sign | None:
    """Return what in a script onlines memory, the sure before what only may; `about`: it is run for a device of memory's."""
    lines = shelltext.lines_of(text)
    named = bool(lines) and lines[0].startswith("#!")
    shell = (
        not lines
        or not lines[0].startswith("#!")
        or shelltext.interpreter(lines[0]) in shelltext.SHELLS | {"", "openrc-run", "rc"}
    )
    speaks = any(_ABOUT.search(line) for line in lines if not line.lstrip().startswith("#"))
    found: list[Sign] = []
    lines = shelltext.filled(lines) if shell else lines
    for number, statement in shelltext.split(lines, shell=shell):
        for sign in (
            in_programs(statement),
            _in_statement(statement, about=about, speaks=speaks)
            if shell
            else _elsewhere(statement, about=about, speaks=speaks),
        ):
            if sign is not None:
                found.append(sign._replace(line=number))
                if sign.sure:
                    return found[-1]
    if not found and (about or speaks) and not (shell and named):  # what begins with no `#!` may be any language
        found += _in_language(lines)
    return found[0] if found else None


def in_programs(command: str) -> Sign | None:
    """Return the program in a command that onlines memory by itself, whatever device it is run for."""
    what = " ".join(command.split())[:120]
    for match in _CHMEM.finditer(command):
        words = [word.strip("'\",") for word in match[2].split()]
        options = [word for word in words if word[:1] == "-"]
        enable = any(re.match(r"--enable|-[a-zA-Z]*e", word) for word in options)
        # Without one of its options it only says how it is used; what a variable holds may be one.
        if enable or (
            not {"-d", "--disable"} & set(options) and any(shelltext.VARIABLE.search(word) for word in words)
        ):
            return Sign(1, what, sure=enable)
    for match in _DAXCTL.finditer(command):
        rest = match[2]
        onlines = re.search(r"\b(online-memory|reconfigure-device)\b", rest)
        if onlines and not _DAXCTL_OFF.search(rest):
            return Sign(1, what, sure=True)
        if not onlines and not _DAXCTL_HARMLESS.match(rest) and shelltext.VARIABLE.search(rest):
            return Sign(1, what, sure=bool(re.search(r"\s(-C|--check-config)\b", rest)))
    if _DLPAR.search(command) or _NAMED.search(command):
        return Sign(1, what, sure=True)
    return None


def is_off(statement: str) -> bool:
    """Return whether what a pipeline of a shell puts out would online nothing, wherever it is written."""
    return _value(statement.split("|")[0]) is False


def _in_statement(statement: str, *, about: bool, speaks: bool) -> Sign | None:
    """Return what one pipeline of a shell writes to memory's files."""
    targets = [match[1] or match[2] for match in _REDIRECTED.finditer(statement) if match[1] or match[2]]
    parts = statement.split("|")
    for part in parts:
        words = part.split()
        while words and (words[0] in shelltext.OPENING or words[0].rpartition("/")[2] in shelltext.WRAPPERS):
            words = words[1:]
        name = words[0].rpartition("/")[2] if words else ""
        if name in ("tee", "cp", "sponge", "install", "mv"):
            targets += [word for word in words[1:] if word[:1] != "-"][0 if name in ("tee", "sponge") else -1 :]
        if name == "dd":
            targets += [word[3:] for word in words if word.startswith("of=")]
        runs_more = _RUN_MORE & {word.rpartition("/")[2] for word in part.split()[:6]}
        told = (about or speaks) and runs_more and re.search(r"-exec|-c\b|-i\b|-e\b|>", part)
        if told and (_QUOTED.search(part) or _ONLINE.search(part)):
            targets.append(_ANY)
    what = " ".join(statement.split())[:120]
    for target in targets:
        text = target.strip("'\"")
        named = _may_be(text, relative=about or speaks) and not text.startswith("&")
        plain = bool(re.search(r"(state|online|auto_online_blocks)$", text))
        # A file that only a variable names counts where memory is spoken of, or `online` is what is written to it.
        counts = target is _ANY or (
            named and (_ABOUT.search(text) or speaks or (about and (plain or _ONLINE.search(parts[0]))))
        )
        if not counts:
            continue
        value = _value(parts[0])
        if value is False:
            continue
        sure = value is True and bool(_ABOUT.search(text) or _ONLINE.search(parts[0]))
        return Sign(1, what, sure=sure)
    return None


def _value(command: str) -> bool | None:
    """Return whether what the first part of a pipeline puts out onlines memory; None if that is not known."""
    words = shelltext.words_of(_REDIRECTED.sub(" ", command))
    while words and (
        words[0] in shelltext.OPENING
        or words[0].rpartition("/")[2] in shelltext.WRAPPERS
        or words[0] in ("-c", "-n", "-e")
    ):
        words = words[1:]
    if words and words[0].rpartition("/")[2] in shelltext.SHELLS:  # sh -c 'echo online > …'
        words = [word for word in words[1:] if word[:1] != "-"]
    if not words or words[0].rpartition("/")[2] not in ("echo", "printf"):
        return None
    words = [word for word in words[1:] if word not in ("-n", "-e", "-en", "-ne", "--", "%s", "%s\\n")]
    while words and words[-1] in ("}", ")", ""):
        words.pop()
    return in_value(" ".join(words))


def _elsewhere(statement: str, *, about: bool, speaks: bool) -> Sign | None:
    """Return a shell's command inside a line of another language."""
    if not _ABOUT.search(statement) or ">" not in statement:
        return None
    return _in_statement(re.sub(r"^.*?(?=echo|printf)", "", statement), about=about, speaks=speaks)


def _in_language(lines: list[str]) -> list[Sign]:
    """Return where a script in another language may online memory: it speaks of it, has the word, and writes."""
    body = [(number, line) for number, line in enumerate(lines, 1) if not line.lstrip().startswith("#")]
    word = next(((number, line) for number, line in body if _QUOTED.search(line)), None)
    if word is None or not any(_WRITES.search(line) for _, line in body):
        return []
    return [Sign(word[0], " ".join(word[1].split())[:120], sure=bool(_WRITES.search(word[1])))]
