# SPDX-License-Identifier: MIT
"""What the command line makes of firmware's map on x86: `mem=` and `memmap=` (arch/x86/kernel/e820.c).

What they take away is nobody's at boot. It can come back all the same, from the driver of a device that is made of it
(kmem on what `memmap=` has marked as soft reserved), and was not there when the kernel laid out its own memory.
"""

from __future__ import annotations

from safemem.boot.ranges import Range, common, merge_ranges, without

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: A range, and its type in firmware's map.
Entry = tuple[Range, int]
RAM = 1
#: The sign between size and place -> the type that the range gets.
_SIGNS = {"@": RAM, "#": 3, "$": 2, "!": 12}
_TOP = 1 << 64
_UNITS = "KMGTPE"


def usable(entries: Iterable[Entry]) -> tuple[Range, ...]:
    """Return the memory of a map: where entries overlap, the highest type counts (`e820__update_table`)."""
    known = [(area, kind) for area, kind in entries if area.end > area.start]
    other = tuple(area for area, kind in known if kind > RAM)
    return without(merge_ranges(tuple(area for area, kind in known if kind == RAM)), other)


def applied(entries: Iterable[Entry], arguments: list[tuple[str, str]]) -> list[Entry]:
    """Return a map as `mem=` and `memmap=` leave it.

    Args:
        entries: the map.
        arguments: the kernel's, in order, as name and value.

    Raises:
        ValueError: the kernel makes something of one of them that is not known here.
    """
    found = list(entries)
    for name, value in arguments:
        if name == "memmap":
            for item in value.split(","):
                found = _memmap(found, item)
        elif name == "mem" and value[:1].isdigit():
            found = _mem(found, value)
        elif name == "add_efi_memmap" or (name == "efi" and "nosoftreserve" in value.split(",")):
            # What of EFI's own map becomes RAM then is not in this one.
            raise ValueError(f"with `{name}{'=' if value else ''}{value}` on the command line EFI's own map counts")
    return found


def _mem(entries: list[Entry], text: str) -> list[Entry]:
    try:
        size, rest = _size(text)
    except ValueError:
        rest = text
    if rest:
        raise ValueError(f"`mem={text}` on the command line cannot be understood") from None
    # Of a size of 0 the kernel makes nothing.
    return _changed(entries, Range(size, _TOP), RAM, 0) if size else entries


def _memmap(entries: list[Entry], text: str) -> list[Entry]:
    if text.startswith("exactmap"):
        return []
    try:
        return _understood(entries, text)
    except ValueError:
        raise ValueError(f"`memmap={text}` on the command line cannot be understood") from None


def _understood(entries: list[Entry], text: str) -> list[Entry]:
    size, rest = _size(text)
    if not rest:
        return _changed(entries, Range(size, _TOP), RAM, 0)
    start, end = _size(rest[1:])
    area = Range(start, min(start + size, _TOP))
    if rest[0] in _SIGNS and not end:
        return [*entries, (area, _SIGNS[rest[0]])]
    if rest[0] != "%":
        raise ValueError
    # `SIZE%START[-OLD][+NEW]`
    old_text, _, new_text = end.partition("+")
    if old_text[:1] not in ("", "-") or old_text == "-" or end.endswith("+"):
        raise ValueError
    old, new = int(old_text[1:] or "0", 0), int(new_text or "0", 0)
    if new and not old:
        return [*entries, (area, new)]
    return _changed(entries, area, old, new)


def _changed(entries: list[Entry], area: Range, old: int, new: int) -> list[Entry]:
    """Return the map with that range of type `old`, 0 is any, made `new`, 0 is nothing."""
    found: list[Entry] = []
    for part, kind in entries:
        if old and kind != old:
            found.append((part, kind))
            continue
        found += [(piece, kind) for piece in without((part,), (area,))]
        if new:
            found += [(piece, new) for piece in common((part,), (area,))]
    return found


def _size(text: str) -> tuple[int, str]:
    """Return the number that a text begins with, as the kernel's memparse takes it, and the rest. Raises ValueError."""
    digits = "0123456789abcdefABCDEF" if text[:2].lower() == "0x" else "0123456789"
    end = 2 if len(digits) > 10 else 0
    while end < len(text) and text[end] in digits:
        end += 1
    # A number that begins with 0 is octal to the kernel.
    number = int(f"0o{text[:end]}" if text[:1] == "0" and text[:end].isdigit() else text[:end], 0)
    unit = _UNITS.find(text[end : end + 1].upper()) if text[end : end + 1] else -1
    size = number << 10 * (unit + 1) if unit >= 0 else number
    if size >= _TOP:
        raise ValueError
    return size, text[end + (unit >= 0) :]
