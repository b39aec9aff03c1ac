# SPDX-License-Identifier: MIT
"""What in a command, a script or a path onlines memory: one reader for rules, units, and all that configures others.

Fail closed, but by what is written and where: a loop over `memory*/state` that only counts is no onliner, `echo online`
into a file that a variable names is one where memory is spoken of. A variable may stand for anything.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from safemem.realroot import commands, shelltext

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
    r"|/memory/memory[\d*?\[${%]"
    r"|/memory(?:\d|[*?\[${%])[^\s/'\"]*/(?:state|online)\b|/physical_node\d*/(?:state|online)\b"
    r"|\bonline_(?:movable|kernel)\b"
)
#: What of a search for devices' paths speaks of memory's files.
_SOUGHT = re.compile(r"-i?name\s+\S{0,200}(?:state|online)\b")
#: Another language may put the path together.
_PUT_TOGETHER = re.compile(r"/sys(?:/devices(?:/system)?|/bus)?/?['\"]"), re.compile(r"['\"/]memory['\"/*\d]")
_VALUE = re.compile(r"online(_movable|_kernel)?|[1yte]|yes|true|on|enabled?", re.IGNORECASE)
_OFF = re.compile(r"offline|[0nfd]|no|false|off|disabled?", re.IGNORECASE)
#: Where the root of a machine or a container may be mounted.
_ROOTS = re.compile(r"^/(?:proc/[^/]+/root|(?!tmp/|var/|home/)[\w.-]+(?:/[\w.-]+)?)(?=/sys/(?:devices/system|bus)/)")
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
    r"(?i:\w*write\w*\s*\()|syswrite|file_put_contents"
    r"|open\w*\s*\(?[^)\n]*['\"][wa+>]|>\s*['\"]?[/$]|(?<![/\w])system\s*[(\s]|subprocess|\bexec\b"
)
_QUOTED = re.compile(r"['\"](?:online(?:_movable|_kernel)?|1)(?:\\n)?['\"]")


#: PATH_MAX, and so many wildcards that nobody writes more.
_LONGEST_PATH, _WILD = 4096, 16
#: What the variables of a path are tried with.
_EXPANSIONS = 16


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
    text = _ROOTS.sub("", text)
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
    if _ABOUT.search(text):
        return True
    return "find" in text and "devpath" in text.lower() and bool(_SOUGHT.search(text))


def in_value(text: str) -> bool | None:
    """Return whether a value that is written to such a file onlines memory; None if that is not known."""
    word = re.sub(r"\\[nrt]", " ", text[:_LONGEST_PATH]).strip().strip("'\"").strip()
    if shelltext.VARIABLE.search(word):
        return None
    if _OFF.fullmatch(word):
        return False
    return bool(_VALUE.fullmatch(word))


def speaks(text: str) -> bool:
    """Return whether a script speaks of memory's files, in its comments or what it shows to somebody not counted."""
    lines = shelltext.lines_of(text)
    if _is_shell(lines):
        return any(is_about_memory(piece) for _, piece in shelltext.pieces(lines))
    body = [line for line in lines if not line.lstrip().startswith("#")]
    return any(map(is_about_memory, body)) or all(any(map(sign.search, body)) for sign in _PUT_TOGETHER)


def _is_shell(lines: list[str]) -> bool:
    return (
        not lines
        or not lines[0].startswith("#!")
        or shelltext.interpreter(lines[0]) in shelltext.SHELLS | {"", "openrc-run", "rc", "busybox"}
    )


def is_shell(text: str) -> bool:
    """Return whether a text is a shell's, by its first line."""
    return _is_shell(text[:200].splitlines())


def in_script(text: str, *, about: bool = False, speaks: bool | None = None, cwd: str = "") -> Sign | None:
    """Return what in a script onlines memory, the sure before what only may.

    `about`: it is run for a device of memory's; `speaks`: it, or a script that belongs to it, speaks of memory's files;
    `cwd`: the folder that it is run in.
    """
    lines = shelltext.lines_of(text)
    shell = _is_shell(lines)
    spoken = _speaks(text) if speaks is None else speaks
    found: list[Sign] = []
    if shell:
        reader = _Shell(lines, about=about, speaks=spoken, cwd=cwd)
        every = ((number, sign) for number, piece in reader.pieces for sign in (in_programs(piece), reader.sign(piece)))
    else:
        every = (
            (number, sign)
            for number, line in shelltext.split(lines)
            for sign in (in_programs(line), _elsewhere(line, about=about, speaks=spoken))
        )
    for number, sign in every:
        if sign is not None:
            found.append(sign._replace(line=number))
            if sign.sure:
                return found[-1]
    named = bool(lines) and lines[0].startswith("#!")
    if not found and (about or spoken) and not (shell and named):  # what begins with no `#!` may be any language
        found += _in_language(lines)
    return found[0] if found else None


_speaks = speaks


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


def _first(texts: list[str]) -> list[str]:
    """Return as many texts as are tried, those of memory's first."""
    found = list(dict.fromkeys(texts))
    return found if len(found) <= _EXPANSIONS else sorted(found, key=lambda text: "memory" not in text)[:_EXPANSIONS]


class _Shell:
    """A shell's script: what its variables come from, and the folder that it is in."""

    def __init__(self, lines: list[str], *, about: bool, speaks: bool, cwd: str = "") -> None:
        self.pieces = shelltext.pieces(lines)
        self.about, self.speaks, self.cwd = about, speaks, cwd
        every = shelltext.origins([piece for _, piece in self.pieces])
        self._origins = {name: _first(origins) for name, origins in every.items()}

    def sign(self, statement: str) -> Sign | None:
        """Return what one pipeline writes to memory's files."""
        parts = [shelltext.opened(part) for part in shelltext.closed(statement).split("|")]
        targets = [match[1] or match[2] for match in _REDIRECTED.finditer(statement) if match[1] or match[2]]
        told: list[str] = []
        for part in parts:
            words = [shelltext.opened(word) for word in shelltext.closed(part).split()]
            words = shelltext.unwrapped([word.strip("'\"") if place else word for place, word in enumerate(words)])
            name = words[0].strip("'\"").rpartition("/")[2] if words else ""
            given = [word for word in words[1:] if word[:1] != "-"]
            if name in ("cd", "pushd", "popd"):
                self._go(given[0] if given else "")
            elif name in ("tee", "cp", "sponge", "install", "mv"):
                targets += given[0 if name in ("tee", "sponge") else -1 :]
            elif name == "dd":
                targets += [word[3:] for word in words if word.startswith("of=")]
            elif name in ("sed", "perl") and any(re.match(r"-\w*i", word) for word in words[1:]):
                targets += given[-1:]
            elif name not in commands.HARMLESS and len(given) > 1:
                told += self._told(given)
            runs_more = _RUN_MORE & {word.rpartition("/")[2] for word in part.split()[:6]}
            orders = (self.about or self.speaks) and runs_more and re.search(r"-exec|-c\b|-i\b|-e\b|>", part)
            if orders and (_QUOTED.search(part) or _ONLINE.search(part)):
                targets.append(_ANY)
        what = " ".join(statement.split())[:120]
        value, says = _value(parts[0]), bool(_ONLINE.search(parts[0]))
        for target in targets if value is not False else ():
            path = _ANY if target is _ANY else self._memory(target, says=says)
            if path is not None:
                return Sign(1, what, sure=value is True and bool(says or _ABOUT.search(path)))
        return Sign(1, what, sure=False) if told else None

    def _go(self, folder: str) -> None:
        to = next(iter(self._expanded(folder)), "")
        self.cwd = to if to.startswith(("/", "$")) or not self.cwd else f"{self.cwd}/{to}"
        if not to or to == "-":
            self.cwd = ""

    def _told(self, words: list[str]) -> list[str]:
        """Return the file of memory's that a function or a program is told of, beside a word that onlines."""
        if not any(word.startswith("online") and in_value(word) for word in words):
            on = any(in_value(word) for word in words)
            words = [word for word in words if on and re.search(r"(online|auto_online_blocks)$", word)]
        files = (word for word in words if re.search(r"/(state|online)$|auto_online_blocks$", word))
        return [word for word in files if self._memory(word, says=False) is not None]

    def _memory(self, target: str, *, says: bool) -> str | None:
        """Return a file as which a target is memory's; `says`: the word `online` is written to it."""
        text = _QUOTES.sub("", target)
        if not text or text.startswith("&"):
            return None
        return next((path for path in self._expanded(text) if self._reaches(path, says=says)), None)

    def _reaches(self, path: str, *, says: bool) -> bool:
        """Return whether a path, with what its variables come from, may be memory's."""
        head = shelltext.VARIABLE.match(path)
        if head is None and self.cwd and not path.startswith("/"):
            path = f"{self.cwd}/{path}"
        if not _may_be(path, relative=self.about or self.speaks):
            return False
        plain = bool(re.search(r"(state|online|auto_online_blocks)$", path))
        if head is None:
            return is_about_memory(path) or self.speaks or (self.about and (plain or says))
        made = head[0].startswith(("$(", "`"))
        if made:
            if is_about_memory(head[0]) or "system/memory" in head[0]:
                return True
            # A file that is made for it, and what other folders than memory's are searched for.
            if "mktemp" in head[0] or re.search(r"\s/(?!dev/null|usr/s?bin/|s?bin/|proc/self|sys(?:/\s|$))\w", head[0]):
                return False
        if self.about:
            return plain or says
        # What nobody sets here is another's business, such as the file of a report.
        given = made or bool(re.fullmatch(r"\$\{?(\d|[@*]).*|\$\{?_\}?", path))
        return self.speaks and (plain or (says and given))

    def _expanded(self, text: str) -> list[str]:
        """Return a word with its variables as what they come from."""
        found = [text]
        for _ in range(3):
            more = [each for path in found for each in self._once(path)]
            if more == found:
                break
            found = list(dict.fromkeys(more))[:_EXPANSIONS]
        return found

    def _once(self, text: str) -> list[str]:
        match = _NAME.search(text)
        if match is None or (match[1] or match[2]) not in self._origins:
            return [text]
        found = []
        for origin in self._origins[match[1] or match[2]]:
            words = [origin] if origin.startswith(("$(", "`")) else _first(origin.split()) or [""]
            found += [f"{text[: match.start()]}{_QUOTES.sub('', word)}{text[match.end() :]}" for word in words]
        return found[:_EXPANSIONS]


_QUOTES = re.compile(r"[\"']")
_NAME = re.compile(r"\$(?:\{!?([A-Za-z_]\w*)[^}]*\}|([A-Za-z_]\w*))")


def _value(command: str) -> bool | None:
    """Return whether what the first part of a pipeline puts out onlines memory; None if that is not known."""
    words = shelltext.words_of(_REDIRECTED.sub(" ", command))
    words = shelltext.unwrapped(words)
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
    return _Shell([re.sub(r"^.*?(?=echo|printf)", "", statement)], about=about, speaks=speaks).sign(
        re.sub(r"^.*?(?=echo|printf)", "", statement)
    )


def _in_language(lines: list[str]) -> list[Sign]:
    """Return where a script in another language may online memory: it speaks of it, has the word, and writes."""
    body = [(number, line) for number, line in enumerate(lines, 1) if not line.lstrip().startswith("#")]
    word = next(((number, line) for number, line in body if _QUOTED.search(line)), None)
    if word is None or not any(_WRITES.search(line) for _, line in body):
        return []
    return [Sign(word[0], " ".join(word[1].split())[:120], sure=bool(_WRITES.search(word[1])))]
