# SPDX-License-Identifier: MIT
"""Ranges of physical addresses and sizes: how they are written, read, cut and joined.

Addresses and sizes are bytes. Ranges are half-open, `[start, end)`; text shows them inclusive
(`0x0-0xfff`), as `/proc/iomem` does.
"""

from __future__ import annotations

from safemem.boot.tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeVar

    _Key = TypeVar("_Key")


class Range(NamedTuple):
    """Physical addresses `[start, end)`, in bytes."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"0x{self.start:x}-0x{self.end - 1:x}"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


def size_text(size: int) -> str:
    """Return `size` bytes with the largest binary unit that keeps it whole, or one decimal."""
    if size >= 1 << 64:  # beyond any address: what has been read is no size, and may have any number of digits
        return f"{1 << 24} TiB or more"
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}" if size % unit == 0 else f"{size / unit:.1f} {name}"
    return f"{size} B"


def parse_size(text: str) -> int:
    """Return the bytes that a whole number of KiB, MiB, GiB or TiB is, such as `256MiB`.

    Raises:
        ValueError: anything else.
    """
    number, unit = text[:-3], text[-3:]
    if unit not in _UNITS or not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise ValueError(f"`{text}` is not a size, such as 256MiB or 2GiB")
    return int(number) * _UNITS[unit]


def parse_limit(text: str, whole: int) -> int:
    """Return the bytes of a size, or of a share of `whole` such as `1%` or `0.5%`.

    Raises:
        ValueError: neither.
    """
    if not text.endswith("%"):
        return parse_size(text)
    percent, dot, tenth = text[:-1].partition(".")
    digits = percent + tenth
    if not (
        digits.isascii()
        and digits.isdecimal()
        and percent
        and len(tenth) == len(dot)
        and int(digits) <= 10 ** (2 + len(dot))
    ):
        raise ValueError(f"`{text}` is not a share from 0% to 100% with one decimal at most, such as 1% or 0.5%")
    return whole * int(digits) // (1000 if dot else 100)


_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_range(text: str) -> Range:
    """Return the range that `START-END` names, END included.

    Raises:
        ValueError: not two numbers, backwards, or past 2**64; the message says which.
    """
    start_text, dash, end_text = text.strip().partition("-")
    try:
        start, last = int(start_text, 0), int(end_text, 0)
    except ValueError:
        dash = ""
        start = last = 0
    if not dash:
        raise ValueError(f"`{text}` is not a range START-END, such as 0x100000000-0x1ffffffff")
    if start < 0 or last >= 1 << 64:
        raise ValueError(f"range `{text}` does not fit into 64 bits")
    if last < start:
        raise ValueError(f"range `{text}` is backwards: its end lies before its start")
    return Range(start, last + 1)


def merge_ranges(ranges: tuple[Range, ...]) -> tuple[Range, ...]:
    """Return the same addresses as ascending ranges that neither touch nor overlap."""
    merged: list[Range] = []
    for item in sorted(r for r in ranges if r.end > r.start):
        if merged and item.start <= merged[-1].end:
            merged[-1] = Range(merged[-1].start, max(merged[-1].end, item.end))
        else:
            merged.append(item)
    return tuple(merged)


def without(ranges: tuple[Range, ...], holes: tuple[Range, ...]) -> tuple[Range, ...]:
    """Return what of the ascending `ranges` lies in none of `holes`; the pieces of two ranges stay apart."""
    found: list[Range] = []
    taken, place = merge_ranges(holes), 0
    for area in ranges:
        at = area.start
        while place < len(taken) and taken[place].end <= at:
            place += 1
        index = place
        while index < len(taken) and taken[index].start < area.end:
            if at < taken[index].start:
                found.append(Range(at, taken[index].start))
            at = taken[index].end
            index += 1
        if at < area.end:
            found.append(Range(at, area.end))
    return tuple(found)


def common(one: tuple[Range, ...], other: tuple[Range, ...]) -> tuple[Range, ...]:
    """Return what lies in both, as ascending ranges that neither touch nor overlap."""
    return merge_ranges(
        tuple(
            Range(max(a.start, b.start), min(a.end, b.end))
            for a in one
            for b in other
            if a.start < b.end and b.start < a.end
        )
    )


def total(ranges: Iterable[Range]) -> int:
    """Return the bytes of ranges that do not overlap."""
    return sum(area.size for area in ranges)


def cut(start: int, end: int, areas: Iterable[Range]) -> list[tuple[int, int, int]]:
    """Return `start`..`end` cut at the edges of ascending `areas`: first, end, and the index of the area, -1 outside.

    The numbers need not be bytes: blocks are cut by areas in blocks.
    """
    pieces = []
    for index, area in enumerate(areas):
        low, high = max(start, area.start), min(end, area.end)
        if low >= high:
            continue
        if start < low:
            pieces.append((start, low, -1))
        pieces.append((low, high, index))
        start = high
    if start < end:
        pieces.append((start, end, -1))
    return pieces


def joined(pieces: Iterable[tuple[int, int, _Key]]) -> list[tuple[int, int, _Key]]:
    """Return `(start, end, key)` pieces with those joined that touch and have the same key."""
    found: list[tuple[int, int, _Key]] = []
    for start, end, key in pieces:
        if found and found[-1][1] == start and found[-1][2] == key:
            found[-1] = (found[-1][0], end, key)
        else:
            found.append((start, end, key))
    return found


def whole_blocks(area: Range, size: int) -> Range:
    """Return the blocks that lie wholly inside `area`, as the half-open range of their numbers; may be empty."""
    first = -(-area.start // size)
    return Range(first, max(first, area.end // size))


def blocks_text(first: int, end: int) -> str:
    """Return the numbers of blocks in words, `end` not among them."""
    return f"block {first}" if end - first == 1 else f"blocks {first}-{end - 1}"


def spans(failed: Mapping[int, str], block: int) -> list[tuple[str, str]]:
    """Return blocks with the same reason as ranges in words, each with its reason."""
    runs = joined((number, number + 1, why) for number, why in sorted(failed.items()))
    return [
        (f"{blocks_text(first, end)} ({Range(first * block, end * block)}, {size_text((end - first) * block)})", why)
        for first, end, why in runs
    ]
