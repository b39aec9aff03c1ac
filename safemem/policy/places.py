# SPDX-License-Identifier: MIT
"""Where each key of a TOML text stands, which `tomllib` knows but does not tell.

For messages only: the values come from `tomllib`. The scanner relies on the text being valid
TOML 1.0 and stops at what it does not understand, so that a place may be missing, never wrong.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import tomllib

Path = tuple[str | int, ...]
#: Line and column, both from 1; the column counts characters.
Place = tuple[int, int]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\r\n]+")


class _Unexpected(Exception):
    """The scanner and `tomllib` disagree about what TOML is."""


def find(text: str) -> dict[Path, Place]:
    """Return the place of every table, key and array element of the valid TOML `text`."""
    scanner = _Scanner(text)
    with contextlib.suppress(_Unexpected, RecursionError):
        scanner.document()
    return scanner.places


def nearest(places: dict[Path, Place], path: Path) -> Place:
    """Return the place of `path`, or of the innermost table around it that has one."""
    for length in range(len(path), 0, -1):
        if path[:length] in places:
            return places[path[:length]]
    return 1, 1


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.lines = [0, *(index + 1 for index, char in enumerate(text) if char == "\n")]
        self.places: dict[Path, Place] = {}
        self.lengths: dict[Path, int] = {}  # of arrays of tables

    def document(self) -> None:
        table: Path = ()
        while self.skip(_BLANK) < len(self.text):
            start = self.at
            if self.text.startswith("[", start):
                double = self.text.startswith("[[", start)
                self.at += 2 if double else 1
                table = self.header(self.key(), start, double)
                self.expect("]]" if double else "]")
            else:
                self.pair(table)

    def header(self, parts: tuple[str, ...], start: int, double: bool) -> Path:
        """Return the full path of a table header, with the index of each array of tables on the way."""
        path: Path = ()
        for part in parts[:-1]:
            path += (part,)
            if path in self.lengths:
                path += (self.lengths[path] - 1,)
        path += (parts[-1],)
        self.note(path, start)
        if double:
            index = self.lengths.get(path, 0)
            self.lengths[path] = index + 1
            path += (index,)
            self.note(path, start)
        return path

    def pair(self, table: Path) -> None:
        start = self.at
        path = table
        for part in self.key():
            path += (part,)
            self.note(path, start)
        self.expect("=")
        self.value(path)

    def value(self, path: Path) -> None:
        self.skip(_SPACE)
        opener = self.text[self.at : self.at + 1]
        if opener == "[":
            self.sequence(path, "]", _BLANK)
        elif opener == "{":
            self.sequence(path, "}", _SPACE)
        elif opener in ("'", '"'):
            self.match(_STRING)
        else:
            self.match(_SCALAR)

    def sequence(self, path: Path, closer: str, blank: re.Pattern[str]) -> None:
        self.at += 1
        index = 0
        while True:
            self.skip(blank)
            if self.text.startswith(closer, self.at):
                self.at += 1
                return
            if closer == "]":
                self.note((*path, index), self.at)
                self.value((*path, index))
                index += 1
            else:
                self.pair(path)
            self.skip(blank)
            if not self.text.startswith(closer, self.at):
                self.expect(",")

    def key(self) -> tuple[str, ...]:
        parts = []
        while True:
            self.skip(_SPACE)
            if self.text[self.at : self.at + 1] in ("'", '"'):
                parts.append(str(tomllib.loads(f"key = {self.match(_STRING)}")["key"]))
            else:
                parts.append(self.match(_BARE_KEY))
            self.skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return tuple(parts)
            self.at += 1

    def note(self, path: Path, at: int) -> None:
        line = bisect.bisect_right(self.lines, at)
        self.places.setdefault(path, (line, at - self.lines[line - 1] + 1))

    def skip(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.at

    def match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if not found or not found.group():
            raise _Unexpected
        self.at = found.end()
        return found.group()

    def expect(self, token: str) -> None:
        self.skip(_SPACE)
        if not self.text.startswith(token, self.at):
            raise _Unexpected
        self.at += len(token)
