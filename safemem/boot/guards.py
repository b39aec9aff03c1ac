# SPDX-License-Identifier: MIT
"""Which guards of boot memory are in force: the crash range and the gigantic pages, as one fact."""

from __future__ import annotations

from safemem.boot import crashkernel, paths
from safemem.boot.asked import ARGUMENT, parse
from safemem.boot.model import UNKNOWN, Blocks, Fact, Pages
from safemem.boot.ranges import Range
from safemem.boot.tuples import NamedTuple


class Guards(NamedTuple):
    """What our predecessor asked for, and what the kernel has made of it."""

    fact: Fact  #: both together: none, full, part, void or unknown
    crash: Fact  #: the crash range alone
    range: Range | None = None  #: what of it is reserved now
    pages: tuple[Pages, ...] = ()


def read(root: str, arguments: dict[str, str] | None, size: int, blocks: tuple[Blocks, ...]) -> Guards:
    """Return the state of the guards and the memory that they reserve now.

    Only `safemem.guard=` makes a reservation ours; without it a crash range is kdump's, gigantic pages are the
    operator's, and neither is any business of ours.

    Args:
        arguments: of the kernel by name, None if they cannot be read.
        size: bytes of a memory block.
        blocks: all of them.
    """
    if arguments is None:
        fact = Fact(UNKNOWN, paths.CMDLINE, "the command line cannot be read")
        return Guards(fact, fact)
    text = arguments.get(ARGUMENT)
    if text is None:
        fact = Fact("none", "command line", f"no {ARGUMENT}=")
        return Guards(fact, fact)
    try:
        asked = parse(text)
    except ValueError as error:
        fact = Fact("void", "command line", f"{ARGUMENT}=: {error}")
        return Guards(fact, fact)
    crash, area = crashkernel.guard(root, asked.range)
    if not asked.page:
        return Guards(crash, crash, area)
    from safemem.boot import gigantic

    found = gigantic.read(root, asked.page, asked.pages, asked.own, size, blocks)
    return Guards(_together(crash, found.fact), crash, area, found.pages)


def _together(crash: Fact, pages: Fact) -> Fact:
    for fact in (crash, pages):
        if fact.value == UNKNOWN:
            return fact
    value = crash.value if crash.value == pages.value else "part"
    return Fact(value, crash.source, f"{crash.reason}; {pages.reason}")
