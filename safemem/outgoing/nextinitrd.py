# SPDX-License-Identifier: MIT
"""What the next boot's initrd has of safemem: every part of it, read as the kernel reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from safemem.boot import compiled
from safemem.initramfs import check, packed
from safemem.outgoing.expected import Policies
from safemem.outgoing.findings import REBUILD, SEVERITIES, Finding, finding
from safemem.outgoing.nextline import Line


class Initrd(NamedTuple):
    """One that is given, or that is in a unified image."""

    name: str
    data: bytes


class Looked(NamedTuple):
    """What was found in all of them together."""

    names: str
    size: int  #: bytes
    inside: check.Inside | None
    found: tuple[Finding, ...]


def look(initrds: tuple[Initrd, ...]) -> Looked:
    """Return what the initrds have of safemem, one behind the other as a kernel is given them."""
    if not initrds:
        return Looked("", 0, None, (finding("no-initrd", "neither --initrd nor the image has one"),))
    names, last = ", ".join(item.name for item in initrds), len(initrds) - 1
    for item in initrds:
        if none := _none(item):
            return Looked(names, sum(len(part.data) for part in initrds), None, (none,))
    # Each begins at a multiple of four bytes (Documentation/driver-api/early-userspace/buffer-format.rst).
    data = initrds[0].data
    if last:
        data = b"".join(item.data.ljust(-(-len(item.data) // 4) * 4, b"\0") for item in initrds)
    try:
        judged = check.judged(data)
    except check.NotLookedInto as error:
        return Looked(names, len(data), None, (finding("initrd-not-looked-into", names, why=error),))
    except packed.Unreadable as error:
        return Looked(names, len(data), None, (finding("initrd-unreadable", names, why=error),))
    except compiled.Invalid as error:
        return Looked(names, len(data), None, (finding("initrd-policy-unfit", names, why=error),))
    where = f"{names}: {judged.why}" if judged.why else names
    found = () if judged.inside else (finding("initrd-without-safemem", where),)
    return Looked(names, len(data), judged.inside, found)


def badness(looked: Looked) -> int:
    """Return how bad what was found is, to compare the profiles of one image."""
    worst = max((len(SEVERITIES) - SEVERITIES.index(item.severity) for item in looked.found), default=0)
    inside = looked.inside
    if inside is None:
        return 10 * worst
    return 3 if inside.fault else 2 if check.unproven(inside) else 1 if inside.built_in.observe else 0


def _none(item: Initrd) -> Finding | None:
    """Return why a file is no initrd at all: of such the kernel unpacks nothing, and says so to nobody."""
    head = item.data[:0x206]
    if not item.data:
        return finding("initrd-none", item.name, why="the file is empty", help=REBUILD)
    # A bzImage, a unified image, an arm64 one, an ELF file.
    if head[:2] == b"MZ" or head[0x202:] == b"HdrS" or head[56:60] == b"ARM\x64" or head[:4] == b"\x7fELF":
        return finding("initrd-none", item.name, why="this is a kernel", help="did you swap --kernel and --initrd?")
    return None


def policies(looked: Looked, line: Line) -> Policies | None:
    """Return the policies that decide in the next boot; None if the initrd has none."""
    inside = looked.inside
    if inside is None:
        return None
    named = line.get("safemem.policy")
    other = inside.others.get(named) if named is not None else None
    return Policies(inside.built_in, (other,) if other else ())


def checks(looked: Looked, line: Line, wanted: check.Wanted | None, *, careless: bool = False) -> Iterator[Finding]:
    """Yield what is wrong with the initrd; `wanted` are the policies that are meant, None if nobody says.

    `careless` is that nothing is preserved, so that a boot which holds nothing back harms nothing.
    """
    yield from looked.found
    inside = looked.inside
    if inside is None:
        return
    if inside.fault:
        yield finding("initrd-not-first", looked.names, why=inside.fault)
    if wanted is not None and (why := check.differs(inside, wanted)):
        yield finding("initrd-other-policy", looked.names, why=why)
    if why := check.unproven(inside):
        yield finding("initrd-unproven", looked.names, why=why)
    if inside.built_in.observe:
        yield finding("only-observes", looked.names, severity="warning" if careless else "error")
    named = line.get("safemem.policy")
    if named is not None and named not in inside.others:
        yield finding("policy-not-named", looked.names, name=named)
