# SPDX-License-Identifier: MIT
"""`hugepagesz=`, `hugepages=` and `default_hugepagesz=` read as the kernel does, and our gigantic pages put among them.

The order of the words counts (mm/hugetlb.c): `hugepages=` belongs to the size before it, or before any size to the
default one; a size that stands there twice is ignored, with what follows it.
"""

from __future__ import annotations

from safemem.boot.asked import listed
from safemem.boot.tuples import NamedTuple

NAMES = ("hugepages", "hugepagesz", "default_hugepagesz")
#: Sizes that x86 takes, in bytes, and how they are written; the first is the default.
_SIZES = {2 << 20: "2M", 1 << 30: "1G"}
#: So many of these words the kernel reads (HUGE_MAX_CMDLINE_ARGS, Linux 6.15): whatever comes after them is lost.
LONGEST = 2 * len(_SIZES) + 1
#: Of a number that the kernel can hold.
_DIGITS = 19


class Pool(NamedTuple):
    """How many pages of one size are asked for: on each node, or if `nodes` is empty anywhere."""

    number: int
    nodes: tuple[tuple[int, int], ...] = ()


class Words(NamedTuple):
    """What a command line says of huge pages."""

    words: tuple[str, ...]  #: as they are written
    pools: dict[int, Pool]  #: by the size in bytes; a size that is only named has none
    named: frozenset[int]  #: sizes that a word is about, `default_hugepagesz=` aside
    default: int  #: the size that `default_hugepagesz=` names; -1 if none does


def read(words: list[str]) -> Words:
    """Return what the kernel makes of `words`, a command line's in order, as they are written."""
    mine = []
    for word in words:
        name, _, value = word.replace('"', "").partition("=")
        if name.replace("-", "_") in NAMES:
            mine.append((word, name.replace("-", "_"), value))
    pools: dict[int, Pool] = {}
    named: set[int] = set()
    default = current = last = -1
    first: Pool | None = None  # what stands before any size: the default one's, which may be named later
    known: set[int] = set()
    valid = True
    for _, name, value in mine[:LONGEST]:
        if name == "hugepages":
            if not valid:
                valid = True
                continue
            size = current if known else 0
            if size == last:
                continue
            found = _pool(value)
            if found is None:
                continue
            last = size
            if size:
                pools[size] = found
                named.add(size)
            else:
                first = found
            continue
        valid = False
        size = _size(value)
        if size not in _SIZES or (name == "default_hugepagesz" and default >= 0):
            continue
        if name == "hugepagesz":
            named.add(size)
            if size in known and (size != default or pools.get(size, Pool(0)).number):
                continue
            current = size
        else:
            default = size
            if size not in known:
                current = size
            if first is not None and first.number:
                pools[size] = first
                named.add(size)
                first = None
        known.add(size)
        valid = True
    if first is not None and first.number and default < 0:
        size = next(iter(_SIZES))
        pools[size] = first  # it wins over one that names the size
        named.add(size)
    return Words(tuple(word for word, _, _ in mine), pools, frozenset(named), default)


def _pool(text: str) -> Pool | None:
    """Return what `hugepages=` asks for; None for what the kernel calls invalid."""
    nodes: dict[int, int] = {}
    rest = text
    while rest:
        number, rest = _digits(rest)
        if not number or len(number) > _DIGITS:
            return None
        if rest[:1] != ":":
            return None if nodes else Pool(int(number))
        count, rest = _digits(rest[1:])
        if not count or len(count) > _DIGITS:
            return None
        nodes[int(number)] = int(count)
        if rest[:1] != ",":
            break
        rest = rest[1:]
    return Pool(sum(nodes.values()), tuple(sorted(nodes.items())))


def _size(text: str) -> int:
    """Return the bytes that memparse makes of `text`: whatever stands behind the unit does not count, so `1GB` is 1G."""
    hexadecimal = text[:2].lower() == "0x"
    base = 16 if hexadecimal else 8 if text[:1] == "0" else 10
    digits, value = "0123456789abcdef"[:base], 0
    rest = text[2:] if hexadecimal else text
    while rest and rest[0].lower() in digits:
        value = (value * base + digits.index(rest[0].lower())) % (1 << 64)
        rest = rest[1:]
    return value << {"K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}.get(rest[:1].upper(), 0)


def _digits(text: str) -> tuple[str, str]:
    """Return the digits that `text` begins with, and the rest."""
    end = next((place for place, char in enumerate(text) if char not in "0123456789"), len(text))
    return text[:end], text[end:]


def spread(pool: Pool, holds: dict[int, int]) -> tuple[tuple[int, int], ...]:
    """Return how many pages of a pool each node gets, as `NODE:NUMBER` has it; `holds` is how many fit on each at most.

    A plain number goes round the nodes, one page at a time, past those that are full (mm/hugetlb.c).
    """
    if pool.nodes:
        return tuple((node, number) for node, number in pool.nodes if number and node in holds)
    found = dict.fromkeys(sorted(holds), 0)
    left = pool.number
    while left:
        open_ = [node for node in found if found[node] < holds[node]]
        if not open_:
            break
        # As many rounds at once as everybody can take part in.
        rounds = max(1, min(left // len(open_), *(holds[node] - found[node] for node in open_)))
        for node in open_[:left]:
            found[node] += rounds
            left -= rounds
    return tuple((node, number) for node, number in found.items() if number)


def merged(words: Words, page: int, pages: tuple[tuple[int, int], ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which words have to go, and which to put at the end, so that `pages` of `page` bytes are asked for.

    All other sizes keep what they have, and `default_hugepagesz=` stays where it is, if it is there once.
    """
    new = (f"hugepagesz={_SIZES[page]}", f"hugepages={listed(pages)}")
    if page not in words.named and len(words.words) <= LONGEST - len(new):
        return (), new
    defaults = [word for word in words.words if word.lstrip('"').startswith("default")]
    anew = len(defaults) > 1 or len(words.words) > LONGEST  # one that does not count today would count then
    gone = tuple(word for word in words.words if anew or word not in defaults)
    others = [f"default_hugepagesz={_SIZES[words.default]}"] if anew and words.default > 0 else []
    for size, pool in words.pools.items():
        if size != page:
            others += [f"hugepagesz={_SIZES[size]}", f"hugepages={listed(pool.nodes) if pool.nodes else pool.number}"]
    return gone, (*others, *new)
