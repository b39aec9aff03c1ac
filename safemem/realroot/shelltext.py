# SPDX-License-Identifier: MIT
"""A shell's text, taken apart as far as it is needed to see what it writes and starts: no shell, and no syntax errors."""

from __future__ import annotations

import re

#: A variable, a substitution of a shell's, udev's or systemd's.
VARIABLE = re.compile(r"\$\{[^}]*\}|\$\([^)]*\)|`[^`]*`|\$(?:env|attr)\{[^}]*\}|\$\w+|\$[@*#?]|%\w(?:\{[^}]*\})?")
_ENDS = re.compile(r";|&&|\|\||(?<![>&\d])&(?![>&\d])")
OPENING = frozenset(["if", "then", "else", "elif", "do", "while", "until", "!", "{", "(", "time", "[[", "fi", "done"])
#: Programs that run another one; their own options and numbers come before it.
WRAPPERS = frozenset(
    [
        "sudo",
        "doas",
        "env",
        "nice",
        "ionice",
        "chrt",
        "taskset",
        "timeout",
        "setsid",
        "nohup",
        "exec",
        "command",
        "builtin",
        "eval",
        "systemd-run",
        "flock",
        "chroot",
        "xargs",
        "systemd-inhibit",
        "busybox",
        "unshare",
        "nsenter",
        "stdbuf",
    ]
)
SHELLS = frozenset(["sh", "bash", "dash", "ash", "ksh", "zsh"])
_SOURCES = frozenset([".", "source"])
#: Interpreters that are started with a script: the script is what is started.
_INTERPRETERS = re.compile(r"(python|perl|ruby|lua|php)[\d.]*|node")
#: `NAME=value` where a command may begin, with a value that stands for itself.
_ASSIGNED = re.compile(
    r"(?:^|[\s;&({])(?:local\s+|export\s+|readonly\s+)?([A-Za-z_]\w*)="
    r"(\"[^\"$`]*\"|'[^']*'|[^\s;&|$`\"'()]*)(?=$|[\s;&|)])"
)
#: Characters of a line that are looked at; a longer one is no script that somebody has written.
_LONGEST_LINE = 16384
#: Where a variable gets a value in whichever way.
_SET = re.compile(r"\b(?:for|read(?:\s+-\w+)*)\s+([A-Za-z_]\w*)|(?:^|[\s;&({])([A-Za-z_]\w*)\+?=")


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, none of them longer than what is looked at."""
    return [line[:_LONGEST_LINE] for line in text.splitlines()]


def statements(text: str) -> list[str]:
    """Return what a shell's text does, piece by piece."""
    return [statement for _, statement in split(lines_of(text), shell=True)]


def started(text: str) -> list[str]:
    """Return the programs that a shell's text starts or reads in, each once, by what they are called there."""
    found: dict[str, None] = {}
    for statement in statements(text):
        for part in re.split(r"\||\$\(|`", statement):
            words = words_of(part)
            while words and (words[0] in OPENING or re.match(r"\w+=", words[0])):
                words = words[1:]
            while words and words[0].rpartition("/")[2] in WRAPPERS | SHELLS | _SOURCES:
                words = words[1:]
                while words and (words[0][:1] == "-" or re.match(r"\d|\w+=", words[0])):
                    words = words[1:]
            if len(words) > 1 and _INTERPRETERS.fullmatch(words[0].rpartition("/")[2]):
                words = [word for word in words[1:] if word[:1] != "-"] or words
            if words:
                found.setdefault(words[0].strip("'\"(){}"))
    return [name for name in found if name]


def filled(lines: list[str], values: dict[str, str] | None = None) -> list[str]:
    """Return lines with each variable as what it stands for that is set once in them, to a text, or is among `values`."""
    known: dict[str, set[str]] = {name: {value} for name, value in (values or {}).items()}
    literal: dict[str, int] = {}
    every: dict[str, int] = {}
    for line in lines:
        for match in _ASSIGNED.finditer(line):
            known.setdefault(match[1], set()).add(match[2].strip("'\""))
            literal[match[1]] = literal.get(match[1], 0) + 1
        for match in _SET.finditer(line):
            name = match[1] or match[2]
            every[name] = every.get(name, 0) + 1
    # What is set in another way as well may be anything.
    sure = {
        name: texts.pop()
        for name, texts in known.items()
        if len(texts) == 1 and every.get(name, 0) <= literal.get(name, 0)
    }
    if not sure:
        return lines
    pattern = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
    return [pattern.sub(lambda m: sure.get(m[1] or m[2], m[0]), line) for line in lines]


def words_of(text: str) -> list[str]:
    return [word.strip("'\"") for word in text.split()]


def interpreter(line: str) -> str:
    words = [word.rpartition("/")[2] for word in line[2:].split() if not word.startswith("-")]
    return (words[1] if words[:1] == ["env"] and len(words) > 1 else words[0]) if words else ""


def split(lines: list[str], *, shell: bool) -> list[tuple[int, str]]:
    """Return what a script does, piece by piece, with its line: comments left out, continued lines joined."""
    found, at = [], 0
    while at < len(lines):
        number, line = at + 1, lines[at]
        at += 1
        if line.lstrip().startswith("#"):
            continue
        while line.endswith("\\") and at < len(lines):
            line = line[:-1] + " " + lines[at]
            at += 1
        found += [(number, part) for part in (_ENDS.split(line) if shell else [line]) if part.strip()]
    return found
