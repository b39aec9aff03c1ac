# SPDX-License-Identifier: MIT
"""Whether a condition of a rule holds for what is known of a fact, and what both are in words."""

from __future__ import annotations

from safemem.boot.model import UNKNOWN, Condition, Fact, Term


def matches(condition: Condition, fact: Fact) -> bool:
    """Return whether `condition` holds.

    INVARIANT: an unknown fact satisfies only a condition that names `unknown`; a negated
    condition (`not`) is no such naming, so what cannot be read is never taken for harmless.
    """
    if fact.value == UNKNOWN:
        return not condition.negate and any(Term("is", UNKNOWN) in group for group in condition.groups)
    hit = any(all(_holds(term, fact.value) for term in group) for group in condition.groups)
    return hit != condition.negate and _comparable(condition, fact.value)


def _holds(term: Term, value: str | int | tuple[str, ...]) -> bool:
    if term.op == "is":
        return value == term.value
    if term.op == "has":
        return isinstance(value, tuple) and term.value in value
    if term.op == "unordered":
        return order_key(value) is None
    if term.op == "glob":
        return _glob(str(term.value), str(value))
    mine, bound = order_key(value), order_key(term.value)
    if mine is None or bound is None:
        return False
    return {"<": mine < bound, "<=": mine <= bound, ">": mine > bound, ">=": mine >= bound}[term.op]


def _comparable(condition: Condition, value: str | int | tuple[str, ...]) -> bool:
    """Return False if a negated comparison holds only because `value` has no order, such as a kernel named `x`."""
    compares = any(term.op in ("<", "<=", ">", ">=") for group in condition.groups for term in group)
    return not (condition.negate and compares and order_key(value) is None)


def order_key(value: str | int | tuple[str, ...]) -> tuple[int, ...] | None:
    """Return a key that orders numbers and kernel releases: 7.3-rc4 < 7.3 < 7.3.4-amd64."""
    if isinstance(value, int):
        return (value,)
    if isinstance(value, tuple):
        return None
    numbers: list[int] = []
    rest = value
    while rest[:1].isdecimal() and len(numbers) < 3:
        digits = len(rest) - len(rest.lstrip("0123456789"))
        if not 0 < digits <= 9:
            return None
        numbers.append(int(rest[:digits]))
        rest = rest[digits:]
        if rest[:1] != "." or not rest[1:2].isdecimal():
            break
        rest = rest[1:]
    if not numbers:
        return None
    numbers += [0] * (3 - len(numbers))
    return (*numbers, 0 if rest.startswith("-rc") else 1)


def _glob(pattern: str, text: str) -> bool:
    """Return whether `pattern`, in which `*` is any text and `?` any character, is all of `text`.

    Written out because `fnmatch` imports `re`; linear, so no pattern can stall a boot.
    """
    p = t = 0
    star, retry = -1, 0
    while t < len(text):
        if p < len(pattern) and pattern[p] == "*":
            star, retry = p, t
            p += 1
        elif p < len(pattern) and pattern[p] in ("?", text[t]):
            p += 1
            t += 1
        elif star >= 0:
            retry += 1
            p, t = star + 1, retry
        else:
            return False
    return pattern[p:].strip("*") == ""


def fact_text(value: str | int | tuple[str, ...]) -> str:
    """Return a fact's value as people write it."""
    return " ".join(value) or "(none)" if isinstance(value, tuple) else str(value)


def wanted_text(condition: Condition) -> str:
    """Return what `condition` asks for, such as `not accepted` or `ready or busy`."""
    groups = [
        ", ".join(
            str(term.value) if term.op in ("is", "glob", "has", "unordered") else f"{term.op}{term.value}"
            for term in group
        )
        for group in condition.groups
    ]
    return ("not " if condition.negate else "") + " or ".join(groups)


def is_version(text: str) -> bool:
    """Return whether `text` is a version that can be ordered: `7`, `7.2`, `7.2.1`, `7.2-rc3`."""
    numbers, dash, candidate = text.partition("-")
    parts = numbers.split(".")
    if dash:
        if not candidate.startswith("rc"):
            return False
        parts.append(candidate[2:])
    return all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts)
