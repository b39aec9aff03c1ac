# SPDX-License-Identifier: MIT
"""`safemem.guard=` on the kernel's command line: which guards the predecessor asked for, and what of them is the operator's own.

`START-END` is the range of `crashkernel=`. With gigantic pages it is

    START-END;1G=NODE:NUMBER[,…][;own=NODE:NUMBER[,…]];crc32=HEX

where `1G=` is what `hugepagesz=1G hugepages=` asks for, and `own=` what of it the operator wants for programs: that
many pages a node stay when the guard is given back. The range is always there: only that it failed shows that a handover
was accepted. A line that was cut off would leave too few or too many: hence the check sum, of all that stands before it.
"""

from __future__ import annotations

from safemem.boot.cmdline import memparse, sealed, unsealed
from safemem.boot.ranges import Range, parse_range
from safemem.boot.tuples import NamedTuple

#: On the kernel's command line.
ARGUMENT = "safemem.guard"


class Asked(NamedTuple):
    """The guards that a command line asks for. Pages as pairs of a NUMA node and their number, nodes ascending."""

    range: Range  #: of `crashkernel=`
    page: int = 0  #: bytes of a gigantic page; 0 where none is asked for
    pages: tuple[tuple[int, int], ...] = ()  #: the operator's own included
    own: tuple[tuple[int, int], ...] = ()  #: the operator's own


def parse(text: str) -> Asked:
    """Return what `text`, the argument's value, asks for. Raises ValueError, which says what is wrong with it."""
    body, whole = unsealed(text)
    if not whole:
        return Asked(parse_range(text))
    area, *parts = body.split(";")
    found = Asked(parse_range(area))
    for part in parts:
        name, _, value = part.partition("=")
        if name == "own":
            found = found._replace(own=_numbers(value))
        else:
            found = found._replace(page=memparse(name), pages=_numbers(value))
    if found.page <= 0:
        raise ValueError(f"`{text}` names no gigantic pages")
    return found


def write(asked: Asked) -> str:
    """Return the argument's value, as `parse` reads it."""
    if not asked.page:
        return str(asked.range)
    unit = f"{asked.page >> 30}G" if asked.page % (1 << 30) == 0 else f"{asked.page >> 20}M"
    parts = [str(asked.range), f"{unit}={listed(asked.pages)}"]
    if asked.own:
        parts.append(f"own={listed(asked.own)}")
    return sealed(";".join(parts))


def listed(numbers: tuple[tuple[int, int], ...]) -> str:
    """Return `NODE:NUMBER[,…]`, which is also how `hugepages=` takes them (Documentation/admin-guide/mm/hugetlbpage.rst)."""
    return ",".join(f"{node}:{number}" for node, number in numbers)


def _numbers(text: str) -> tuple[tuple[int, int], ...]:
    found: dict[int, int] = {}
    for item in text.split(","):
        node, _, number = item.partition(":")
        if not (node.isascii() and node.isdecimal() and number.isascii() and number.isdecimal()) or int(node) in found:
            raise ValueError(f"`{item}` of `{text}` is no NODE:NUMBER, or its node stands there twice")
        found[int(node)] = int(number)
    return tuple(sorted(found.items()))
