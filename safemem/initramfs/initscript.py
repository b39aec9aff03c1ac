# SPDX-License-Identifier: MIT
"""What a shell script that is /init does before a command of it, as far as its words tell.

No shell is run and no file that it sources is read. So what is found here is never more than: this command is reached by
every boot, and none of the words before it loads a driver or gives the boot away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

#: Bytes of an /init that are read as a script; those of distributions have 11 KiB.
_MOST = 1 << 20
_SHELL = re.compile(r"#![ \t]*(?:\S*/env[ \t]+)?(?:\S*/)?(?:(?:ba|da|a|k|mk)?sh|busybox(?:[ \t]+a?sh)?)(?:[ \t]|\n|$)")
_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r]|\\\n)+) | (?P<comment>\#[^\n]*) | (?P<line>\n)
    | (?P<redirect>(?:[0-9]*(?:<<<|<<-?|<>|>>|>\||[<>])|&>>?)(?:&[0-9-]*)?) | (?P<operator>&&|\|\||;;&?|;&|[;&|()])
    | (?P<word>(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s;&|()<>'"\\])+) | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
#: Words that begin a command by another name.
_WRAPPERS = ("busybox", "command", "builtin", "env", "nohup", "setsid", "time")
#: Commands that only speak of what they name.
_SPEAK = ("echo", "printf", "[", "[[", "test", "type", "which", "for", "case", "unset", "export")
_LOADS = ("modprobe", "insmod", "udevd", "systemd-udevd", "mdev", "load_modules")
_TESTS = {"[", "[[", "test", "case"}
_LEAVES = ("switch_root", "run-init", "pivot_root")
_MEMORY = "/sys/devices/system/memory"


class Command(NamedTuple):
    """One simple command, or an assignment."""

    words: tuple[str, ...]  #: without quotation marks, redirections and assignments in front
    assigned: tuple[str, ...]  #: those assignments
    writes: tuple[str, ...]  #: the files of its redirections
    before: str  #: the operator before it
    after: str  #: the operator behind it
    asked: bool  #: it stands between `if` or `while` and `then` or `do`
    maybe: bool  #: not every boot comes by: it is under a condition, in a loop, in a function or a subshell

    @property
    def name(self) -> str:
        """The program or function that it runs, or ""."""
        return next((word for word in self.words if word not in _WRAPPERS and "=" not in word), "")


class Script(NamedTuple):
    """A shell script, by its commands in their order."""

    commands: tuple[Command, ...]
    open: bool  #: its end is inside of a block, a quotation or a here-document


def text(data: bytes) -> str | None:
    """Return the text of a script that the kernel starts a shell for; None if this is something else."""
    found = data[:_MOST].decode("utf-8", "replace") if len(data) <= _MOST else ""
    return found if _SHELL.match(found) else None


def read(script: str) -> Script:
    """Return the commands of a shell script, or of the beginning of one."""
    reading = _Reading()
    at = 0
    while at < len(script):
        token = _TOKEN.match(script, at)
        assert token is not None  # of every character, at least `other`
        kind, at = token.lastgroup, token.end()
        if kind == "word":
            reading.word(token[0])
        elif kind == "redirect":
            reading.redirect(token[0])
        elif kind == "operator":
            reading.operator(token[0])
        elif kind == "line":
            reading.end("\n")
            at = reading.skip(script, at)
        elif kind == "other":
            reading.broken = True
    reading.end("")
    return Script(tuple(reading.commands), reading.broken or bool(reading.stack or reading.heres))


class _Reading:
    """The commands so far, and the blocks that are open."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.stack: list[str] = []
        self.words: list[str] = []
        self.assigned: list[str] = []
        self.writes: list[str] = []
        self.heres: list[str] = []  #: the words that here-documents end with
        self.before, self.broken, self.function = "\n", False, False
        self.next = ""  #: what the next word is, "file" or "here"

    def word(self, raw: str) -> None:
        plain = re.sub(r"['\"]|\\(?!\n)|\\\n", "", raw)
        if self.next:
            (self.writes if self.next == "file" else self.heres).append(plain)
            self.next = ""
        elif not self.words and not self.assigned and self._keyword(raw):
            pass
        elif not self.words and re.match(r"[A-Za-z_]\w*=", raw):
            self.assigned.append(plain)
        else:
            self.words.append(plain)

    def redirect(self, raw: str) -> None:
        if re.search(r"&[0-9-]+$", raw):
            return  # another name of what is open
        self.next = "here" if raw.rstrip("-").endswith("<<") and not raw.endswith("<<<") else "file"

    def _keyword(self, word: str) -> bool:
        top = self.stack[-1] if self.stack else ""
        if word in ("if", "while", "until"):
            self.stack.append("asked" if self.before not in ("&&", "||") else "block")
        elif word in ("then", "do", "elif", "else"):
            self.broken |= not self.stack
            self.stack[-1:] = ["block"] if self.stack else []
        elif word in ("fi", "done", "esac", "}"):
            self.broken |= top in ("", "(")
            self.stack[-1:] = []
        elif word == "{":
            self.stack.append("block" if self.function or self.before in ("&&", "||") else "group")
        elif word in ("for", "case", "select"):
            self.stack.append("block" if word != "case" else "case")
            self.words.append(word)
        else:
            return False
        self.function = False
        return True

    def operator(self, raw: str) -> None:
        if raw == "(" and len(self.words) == 1 and self.words[0][-1:] != "$":
            self.function, self.words = True, []
            self.stack.append("(")
        elif raw == "(":
            self.end(raw)
            self.stack.append("(")
        elif raw == ")" and self.stack[-1:] == ["("]:
            self.end(raw)
            self.stack.pop()
        else:
            self.broken |= raw == ")" and self.stack[-1:] != ["case"]
            self.end(raw)

    def end(self, operator: str) -> None:
        there = self.words or self.assigned or self.writes
        if there:
            maybe = self.before in ("&&", "||") or any(item in ("block", "case", "(") for item in self.stack)
            self.commands.append(
                Command(
                    tuple(self.words), tuple(self.assigned), tuple(self.writes), self.before, operator,
                    "asked" in self.stack[-1:], maybe,
                )
            )  # fmt: skip
            self.words, self.assigned, self.writes = [], [], []
        self.next = ""
        # A line may end behind an operator that goes on.
        if there or operator != "\n" or self.before not in ("&&", "||", "|"):
            self.before = operator

    def skip(self, script: str, at: int) -> int:
        """Return where the lines go on behind here-documents."""
        for word in self.heres:
            found = re.compile(rf"^\t*{re.escape(word)}$", re.MULTILINE).search(script, at)
            self.broken |= found is None
            at = found.end() if found else len(script)
        self.heres = []
        return at


def before(commands: Sequence[Command]) -> str:
    """Return the word of these commands that may load a driver, online memory or end the script, or ""."""
    for item in commands:
        if any(_MEMORY in path for path in (*item.writes, *(item.words if item.name == "tee" else ()))):
            return _MEMORY
        if item.name == "exec" and len(item.words) > 1:
            return "exec"
        if item.name in _SPEAK or item.words[:2] == ("command", "-v"):
            continue
        words = [word.rpartition("/")[2] for text in item.words for word in text.split()]
        if found := next((word for word in words if word in _LOADS or word in _LEAVES), ""):
            return found
        if "udevadm" in words and "trigger" in words:
            return "udevadm trigger"
    return ""


def looks(commands: Sequence[Command], status: int) -> bool:
    """Return whether the first of these commands, or what it keeps `$?` for, makes the rest depend on `status`."""
    name, _, value = commands[0].assigned[-1].partition("=") if commands and commands[0].assigned else ("", "", "")
    kept = value == "$?" and not commands[0].words
    names = {f"${name}", f"${{{name}}}"} if kept else {"$?"}
    rest = commands[1:] if kept else commands
    near = enumerate(rest[: None if kept else 1])
    number = next((number for number, item in near if names & {*item.words} and {*item.words[:2]} & _TESTS), -1)
    if number < 0:
        return False
    item = rest[number]
    if item.words[0] == "case":
        return (str(status),) in [each.words[-1:] for each in rest[number:] if each.after in (")", "|")]
    follows = rest[number + 1].words if number + 1 < len(rest) else ()
    used = item.asked or (item.after in ("&&", "||") and follows not in ((), ("true",), (":",)))
    return used and str(status) in item.words
