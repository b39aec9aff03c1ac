# SPDX-License-Identifier: MIT
"""Values of JSON, each checked as it is taken out, with the way to it, so that every error can say where."""

from __future__ import annotations

from typing import Any, TypeVar

from safemem.boot import compiled
from safemem.boot.model import Note, Refused
from safemem.boot.printable import printable
from safemem.boot.ranges import Range, parse_range

Value = TypeVar("Value")


class Invalid(Refused):
    """A file cannot be used; the message says which, where and why."""

    kind = "invalid"

    def __init__(self, message: str) -> None:
        """Say `message`, in which there may be anything that the file has."""
        super().__init__(printable(message))


class Place:
    """A JSON value and the way to it. Its methods return what they are named for, or raise Invalid."""

    def __init__(self, value: object, where: str) -> None:
        self.value, self.where = value, where

    def item(self, key: str) -> Place:
        """Return the value at `key`, which has to be there."""
        if key not in self.table():
            raise Invalid(f"{self.where}: `{key}` is missing")
        return self._below(key)

    def given(self, key: str) -> Place | None:
        """Return the value at `key`, or None if it is missing or null."""
        return self._below(key) if self.table().get(key) is not None else None

    def _below(self, key: str) -> Place:
        return Place(self.table()[key], f"{self.where}: {key}" if ": " not in self.where else f"{self.where}.{key}")

    def table(self) -> dict[str, object]:
        """Return all values of an object by key."""
        if not isinstance(self.value, dict):
            raise Invalid(f"{self.where}: should be an object")
        return self.value

    def items(self) -> list[Place]:
        """Return the items of a list."""
        if not isinstance(self.value, list):
            raise Invalid(f"{self.where}: should be a list")
        return [Place(value, f"{self.where}[{index}]") for index, value in enumerate(self.value)]

    def items_of(self, key: str) -> list[Place]:
        """Return the items of the list at `key`; none if it is missing or null."""
        found = self.given(key)
        return found.items() if found else []

    def text(self) -> str:
        """Return text."""
        if not isinstance(self.value, str) or any("\ud800" <= char <= "\udfff" for char in self.value):
            raise Invalid(f"{self.where}: should be text")
        return self.value

    def text_of(self, key: str) -> str:
        """Return the text at `key`; "" if it is missing or null."""
        found = self.given(key)
        return found.text() if found else ""

    def one_of(self, choices: tuple[Value, ...]) -> Value:
        """Return that of the words in `choices` which stands here."""
        for choice in choices:
            if choice == self.text():
                return choice
        raise Invalid(f"{self.where}: `{self.value}` is not one of {', '.join(map(str, choices))}")

    def flag(self) -> bool:
        """Return true or false."""
        if not isinstance(self.value, bool):
            raise Invalid(f"{self.where}: `{self.value}` should be true or false")
        return self.value

    def number(self, low: int = 0) -> int:
        """Return a whole number from `low` up, of at most 64 bits."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not low <= self.value < 1 << 64:
            raise Invalid(f"{self.where}: `{self.value}` should be a whole number from {low} to 2^64")
        return self.value

    def number_of(self, key: str) -> int:
        """Return the number at `key`; 0 if it is missing or null."""
        found = self.given(key)
        return found.number() if found else 0

    def area(self) -> Range:
        """Return a range."""
        try:
            return parse_range(self.text())
        except ValueError as error:
            raise Invalid(f"{self.where}: {error}") from None

    def areas(self) -> tuple[Range, ...]:
        """Return the ranges of a list."""
        return tuple(item.area() for item in self.items())

    def notes(self, texts: str, codes: str) -> tuple[Note, ...]:
        """Return the sentences at `texts` with their codes; a record of version 0.1.0 has none."""
        found = [item.text() for item in self.item(texts).items()]
        known = [item.text() for item in self.items_of(codes)] if self.given(codes) else [""] * len(found)
        if len(known) != len(found):
            raise Invalid(f"{self.where}: {len(found)} {texts}, but {len(known)} {codes}")
        return tuple(Note(code, text) for code, text in zip(known, found, strict=True))

    def word(self, checks: dict[str, compiled.Check], name: str, default: Any, key: str = "") -> Any:
        """Return a word of the policy as `checks` has it; null says nothing, and `default` stands for one left out."""
        key = key or name
        if key not in self.table():
            return default
        found = self._below(key)
        try:
            return compiled.check(checks[name], "" if found.value is None else found.value, key)
        except compiled.Invalid as error:
            raise Invalid(f"{found.where}: {error}") from None
