# SPDX-License-Identifier: MIT
"""GRUB's script as commands: words with their variables, blocks, branches and loops; nothing is run here.

Syntax: the manual of GRUB, "Writing full configuration files directly". Braces, `;` and ends of lines are words of their own
wherever they stand unquoted; a backslash before the end of a line joins it with the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

#: Blocks within blocks that are followed; a menu has three or four.
_DEEPEST = 40
_PARTS = re.compile(
    r"""(?P<gap>(?:[ \t\r]|\\\r?\n)+)|(?P<end>[;\n&|]+)|(?P<brace>[{}])|'(?P<single>[^']*)'?|(?P<double>")"""
    r"""|(?P<var>\$(?:\{[^}\n]*\}?|[A-Za-z_][A-Za-z0-9_]*|[0-9?@*#]))|\\(?P<escaped>.)|(?P<plain>[^ \t\r\n;&|{}'"$\\]+|.)""",
    re.DOTALL,
)
_QUOTED = re.compile(
    r"""(?P<close>")|(?P<var>\$(?:\{[^}\n]*\}?|[A-Za-z_][A-Za-z0-9_]*|[0-9?@*#]))|\\(?P<escaped>["$\\\n])|(?P<plain>[^"$\\]+|.)""",
    re.DOTALL,
)


class Piece(NamedTuple):
    """A part of a word: text as it is, or a variable."""

    text: str
    variable: bool = False
    quoted: bool = False  #: the value of a variable that is not is split at blanks


Word = tuple[Piece, ...]


class Command(NamedTuple):
    """A command with its words; of `if`, `while`, `until`, `for`, `function` and menus with what they hold."""

    words: tuple[Word, ...]
    block: tuple[Command, ...] = ()
    #: Of `if`: each condition with what is done then; the last condition is () for `else`.
    branches: tuple[tuple[tuple[Command, ...], tuple[Command, ...]], ...] = ()

    @property
    def name(self) -> str:
        """The command's name, as it is written; "" for one that a variable names."""
        return plain(self.words[0]) if self.words else ""


def plain(word: Word) -> str:
    """Return a word without variables as text; "" if it has one."""
    return "" if any(piece.variable for piece in word) else "".join(piece.text for piece in word)


def parse(text: str) -> tuple[Command, ...]:
    """Return the commands of a script; what is not closed goes on to its end."""
    return _Parser(_tokens(text)).block(("",), 0)


_Token = Word | str  #: a word, or one of `{`, `}` and `;`


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    word: list[Piece] | None = None
    at = 0
    while at < len(text):
        if word is None and text[at] == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
            continue
        match = _PARTS.match(text, at)
        assert match is not None  # `.` matches whatever else there is
        at, kind = match.end(), match.lastgroup
        if kind in ("gap", "end", "brace"):
            if word is not None:
                tokens.append(tuple(word))
                word = None
            if kind != "gap":
                tokens.append(";" if kind == "end" else match[0])
            continue
        word = [] if word is None else word
        if kind == "double":
            at = _quoted(text, at, word)
        elif kind == "var":
            word.append(Piece(match[0][1:].strip("{}"), variable=True))
        else:
            word.append(Piece(match[match.lastgroup or 0], quoted=kind != "plain"))
    return [*tokens, tuple(word)] if word is not None else tokens


def _quoted(text: str, at: int, word: list[Piece]) -> int:
    """Add what stands between double quotes to a word; return where it ends."""
    word.append(Piece("", quoted=True))
    while at < len(text):
        match = _QUOTED.match(text, at)
        assert match is not None
        at = match.end()
        if match.lastgroup == "close":
            break
        if match.lastgroup == "var":
            word.append(Piece(match[0][1:].strip("{}"), variable=True, quoted=True))
        else:
            part = match[match.lastgroup or 0]
            word.append(Piece("" if match.lastgroup == "escaped" and part == "\n" else part, quoted=True))
    return at


class _Parser:
    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens, self._at = tokens, 0

    def _peek(self) -> _Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _keyword(self) -> str:
        """Return the word that comes next where it is bare, or the brace; "" at the end of the script."""
        token = self._peek()
        if isinstance(token, str):
            return token
        return "" if any(piece.quoted for piece in token) else plain(token) or "?"

    def block(self, ends: tuple[str, ...], depth: int) -> tuple[Command, ...]:
        """Return the commands up to one of the words `ends`, which is not taken."""
        commands = []
        while self._at < len(self._tokens):
            word = self._keyword()
            if word in ends and word:
                break
            if word in (";", "{", "}"):
                self._at += 1
                continue
            commands.append(self._command(word, depth + 1))
        return tuple(commands)

    def _command(self, word: str, depth: int) -> Command:
        if depth < _DEEPEST:
            if word == "if":
                return self._if(depth)
            if word in ("while", "until", "for"):
                words = self._words()
                body = self._between("do", "done", depth)
                return Command(words, body)
        words = self._words()
        if self._peek() == "{" and depth < _DEEPEST:
            return Command(words, self._between("{", "}", depth))
        return Command(words)

    def _words(self) -> tuple[Word, ...]:
        words = []
        while self._at < len(self._tokens) and not isinstance(token := self._peek(), str):
            words.append(token)
            self._at += 1
        return tuple(words)

    def _between(self, begin: str, end: str, depth: int) -> tuple[Command, ...]:
        while self._peek() == ";":
            self._at += 1
        self._at += self._keyword() == begin
        body = self.block((end,), depth)
        self._at += 1
        return body

    def _if(self, depth: int) -> Command:
        words = (self._tokens[self._at],)
        branches = []
        while (word := self._keyword()) in ("if", "elif", "else"):
            self._at += 1
            asked = () if word == "else" else self.block(("then", "fi"), depth)
            self._at += self._keyword() == "then"
            branches.append((asked, self.block(("elif", "else", "fi"), depth)))
        self._at += 1
        return Command(words, (), tuple(branches))  # type: ignore[arg-type]  # the word `if`, which is no brace


def expand(word: Word, value: Callable[[str], str | None]) -> list[str]:
    """Return the words that GRUB makes of one; NUL stands where a variable's value is not known."""
    fields, last = [""], False
    for piece in word:
        text = value(piece.text) if piece.variable else piece.text
        text = "\0" if text is None else text
        if piece.variable and not piece.quoted:
            head, *rest = re.split(r"[ \t\n]+", text)
            fields[-1] += head
            fields += rest
        else:
            fields[-1] += text
            last = last or piece.quoted
    return [field for field in fields if field or (last and len(fields) == 1)]
