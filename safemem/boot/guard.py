# SPDX-License-Identifier: MIT
"""Where guards for the next kernel can be: memory that nothing of that kernel touches, with room to run beside it.

There are two. `crashkernel=SIZE@START` is one range, exact to 2 MiB; `hugepagesz=1G hugepages=NODE:NUMBER` is any number
of whole, aligned GiB on every node. The next kernel reserves both before it has a page allocator, the range
first, unless it accepts the handover: then early memory comes from scratch, the range fails harmlessly, and pages
come from memory in which nothing is preserved, or from none (seen on 7.2 and 7.3). If anything else is in the range,
its reservation fails: what cannot be known to be free is left out. Of pages the kernel takes the topmost that are free.
"""

from __future__ import annotations

from safemem.boot.ground import CannotSay, Ground, room
from safemem.boot.ranges import Range, common, merge_ranges, size_text, total, without
from safemem.boot.tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    _Cut = Callable[[Range], Range]

#: The kernel wants the start of a crashkernel= range in these steps (x86, CRASH_ALIGN); seen with 7.3: the size is free.
ALIGN = 16 << 20
#: The end is kept to whole large pages, so that they stay whole outside too.
_END_ALIGN = 2 << 20
#: Where memory reaches beyond 4 GiB, devices that reach only below it need buffers there: swiotlb takes 64 MiB.
LOW, LOW_ROOM = 1 << 32, 128 << 20
#: Left out at the top of each node: NODE_DATA lies there before the guard is reserved, and at the top of all memory the
#: first page tables. `memblock=debug` of 7.3.4 shows 2 MiB and a few hundred bytes; a distribution's kernel takes more.
TOP = 32 << 20
#: What lies below it is never free, whatever firmware says (x86, reserve_real_mode).
_FIRST = 1 << 20
#: NODE_DATA is smaller than that: the topmost piece of a node that has so much is certain to lose its end.
_NODE_DATA = 1 << 20


class Gigantic(NamedTuple):
    """The gigantic pages of one node."""

    node: int
    number: int = 0  #: to ask for, the operator's own included
    own: int = 0  #: the operator's own
    ranges: tuple[Range, ...] = ()  #: what the kernel takes for certain if it rejects, ascending and joined
    why_not: str = ""  #: why there are none but the operator's


class Guards(NamedTuple):
    """Both guards; they never overlap."""

    range: Range  #: of `crashkernel=`; always there: only that it fails shows an acceptance where nothing else can
    pages: tuple[Gigantic, ...]  #: one a node that has memory
    page: int  #: bytes of a gigantic page; 0 if none is asked for
    takes: int = 0  #: bytes that both take at most, with pages that lie partly in scratch
    short: int = 0  #: of the operator's own pages, how many there are no room for
    node: int = -1  #: the number of the node that the range is on

    @property
    def ranges(self) -> tuple[Range, ...]:
        """All that is guarded, ascending and joined."""
        return merge_ranges((self.range, *(area for item in self.pages for area in item.ranges)))

    @property
    def asked(self) -> tuple[tuple[int, int], ...]:
        """What `hugepages=` asks for: pairs of node and number."""
        return tuple((item.node, item.number) for item in self.pages if item.number)

    @property
    def size(self) -> int:
        """Bytes that are guarded."""
        return total(self.ranges)


class Left(NamedTuple):
    """Memory that is neither guarded nor scratch."""

    range: Range
    why: str
    node: int = -1


def best_guards(ground: Ground) -> Guards:
    """Return the guards that hold most, with what a rejecting kernel needs to run left beside them.

    Each gap is tried as the place of the range. The operator's own pages come first, then what is guarded; of equals
    those with the fewest pages count.

    Raises:
        CannotSay: there are none.
    """
    whole, needed = total(ground.ram), room(ground)
    if whole <= needed:
        raise CannotSay(f"{size_text(whole)} of memory leave nothing to guard: a kernel needs {size_text(needed)}")
    tried = [found for gap in gaps(ground) if (found := _guards(ground, gap, whole - needed))]
    if ground.own and (not tried or whole - min(found.takes for found in tried) < needed):
        size = sum(number for _, number in ground.own) * ground.page
        raise CannotSay(
            f"the {size_text(size)} of gigantic pages that hugepages= asks for leave a kernel that rejects too little to run:"
            f" it needs {size_text(needed)} of {size_text(whole)}"
        )
    if not tried:
        raise CannotSay("no range of memory is free, in one piece and on one node, that a guard could begin in")
    fits = [found for found in tried if whole - found.takes >= needed]
    return max(fits, key=lambda found: (-found.short, found.size, -sum(item.number for item in found.pages)))


def gaps(ground: Ground) -> list[Range]:
    """Return the ranges that nothing touches before the next kernel reserves its guards, each on one node."""
    return sorted(gap for node in ground.nodes for gap in _gaps_of(ground, node))


def _gaps_of(ground: Ground, node: tuple[Range, ...]) -> tuple[Range, ...]:
    free = list(without(common(ground.ram, node), ground.scratch))
    _leave_out(free, -1, lambda area: Range(area.start, area.end - TOP))
    if ground.bottom_up:
        _leave_out(free, 0, lambda area: Range(area.start + TOP, area.end))
    return tuple(free)


def _leave_out(free: list[Range], place: int, cut: _Cut) -> None:
    """Take `TOP` bytes in one piece from one end of `free`, with every smaller piece beyond it."""
    while free:
        area = free.pop(place)
        if area.size > TOP:
            free.insert(len(free) if place else 0, cut(area))
        if area.size >= TOP:
            return


class _Node(NamedTuple):
    """The gigantic pages that a rejecting kernel may take on a node, as it takes them: from the top."""

    starts: tuple[int, ...]  #: all that may be free
    certain: frozenset[
        int
    ]  #: of these, which are free for certain: others lie partly in scratch, with an image or without


def _pages_of(ground: Ground, node: tuple[Range, ...], range_: Range) -> _Node:
    taken = (range_,)
    mine = list(common(ground.ram, node))
    for place in range(len(mine) - 1, -1, -1):
        if mine[place].size >= _NODE_DATA:
            mine[place] = mine[place]._replace(end=mine[place].end - 4096)
            break
    page = ground.page
    starts = _whole(without(tuple(mine), taken), page)
    return _Node(tuple(reversed(starts)), frozenset(_whole(without(_gaps_of(ground, node), taken), page)))


def _whole(areas: tuple[Range, ...], page: int) -> list[int]:
    """Return where whole, aligned pages begin."""
    return [
        start
        for area in areas
        for start in range(-(-max(area.start, _FIRST) // page) * page, area.end - page + 1, page)
    ]


def _why_not(ground: Ground, node: tuple[Range, ...]) -> str:
    """Return why no gigantic pages may be asked for on a node, or nothing."""
    if not ground.spares_scratch and _whole(common(ground.scratch, node), ground.page):
        # Such a kernel has nothing but scratch when it accepts, and takes pages from it.
        return (
            f"scratch on this node holds a whole page of {size_text(ground.page)}, which a kernel before Linux 7.3 that"
            " accepts may take from it"
        )
    return ""


def _guards(ground: Ground, gap: Range, budget: int) -> Guards | None:
    """Return the best guards with the range in `gap`; all of them together take at most `budget` bytes."""
    beyond = bool(ground.ram) and ground.ram[-1].end > LOW
    low = max(0, total(common(ground.ram, (Range(0, LOW),))) - LOW_ROOM) if beyond else 1 << 64
    start, end = max(-(-gap.start // ALIGN) * ALIGN, ALIGN), gap.end // _END_ALIGN * _END_ALIGN
    own = dict(ground.own)
    for index, node in enumerate(ground.nodes if ground.page else ()):
        # What the operator asks for has its place beside the range: what the kernel would take is the topmost.
        wanted = _pages_of(ground, node, Range(0, 0)).starts[: own.get(ground.number(index), 0)]
        end = min([end, *(at for at in wanted if start < at + ground.page and at < end)])
    if end <= start:
        return None
    most = Range(start, end)
    numbers = _numbers(ground, most, budget, low)
    taken = sum(numbers) * ground.page
    size = budget - taken
    if start < LOW:
        size = min(size, low - _low_pages(ground, most, numbers))
    end = min(end, start + size) // _END_ALIGN * _END_ALIGN
    if end <= start:
        return None
    range_ = Range(start, end)
    found, short, takes, at = [], 0, range_.size, -1
    for index, node in enumerate(ground.nodes):
        number, mine = numbers[index], own.get(ground.number(index), 0)
        ranges: tuple[Range, ...] = ()
        why_not = _why_not(ground, node) if ground.page else ground.no_page
        if number or mine:
            pages = _pages_of(ground, node, range_)
            short += max(0, mine - len(pages.starts))
            takes += min(max(number, mine), len(pages.starts)) * ground.page
            ranges = merge_ranges(
                tuple(Range(at, at + ground.page) for at in pages.starts[:number] if at in pages.certain)
            )
        if any(area.start <= range_.start < area.end for area in node):
            at = ground.number(index)
        found.append(Gigantic(ground.number(index), max(number, mine), mine, ranges, why_not))
    asks = ground.page if any(item.number for item in found) else 0
    return Guards(range_, tuple(found), asks, takes, short, at)


def _low_pages(ground: Ground, range_: Range, numbers: list[int]) -> int:
    """Return how many bytes below 4 GiB pages may take."""
    return sum(
        ground.page
        for node, number in zip(ground.nodes, numbers, strict=True)
        if number
        for at in _pages_of(ground, node, range_).starts[:number]
        if at < LOW
    )


def _numbers(ground: Ground, most: Range, budget: int, low: int) -> list[int]:
    """Return how many pages the kernel shall take on each node, beside a range that can be as large as `most`.

    Pages are taken away one by one where they are worth least, as long as there are too many or the range gains as much.
    """
    if not ground.page:
        return [0] * len(ground.nodes)
    page = ground.page
    pages = [_pages_of(ground, node, most) for node in ground.nodes]
    # More than there are the kernel cannot take, whatever the operator asks for.
    wanted = (dict(ground.own).get(ground.number(index), 0) for index in range(len(pages)))
    own = [min(number, len(found.starts)) for number, found in zip(wanted, pages, strict=True)]
    numbers = []
    for node, least, found in zip(ground.nodes, own, pages, strict=True):
        worth = 0 if _why_not(ground, node) else len(found.starts)
        while worth and found.starts[worth - 1] not in found.certain:
            worth -= 1
        numbers.append(max(least, worth))
    taken = sum(numbers) * page
    low_taken = sum(
        page for found, number in zip(pages, numbers, strict=True) for at in found.starts[:number] if at < LOW
    )
    while True:
        size = min(most.size, budget - taken)
        if most.start < LOW:
            size = min(size, low - low_taken)
        # The range gets its least piece in any case.
        too_low = low_taken > (low - _END_ALIGN if most.start < LOW else low)
        too_many = taken > budget - _END_ALIGN
        options = []
        for index, (found, number) in enumerate(zip(pages, numbers, strict=True)):
            if number > own[index]:
                at = found.starts[number - 1]
                if not too_low or at < LOW:
                    options.append((at in found.certain, -number, index, at))
        if not options:
            return numbers
        lost, _, index, at = min(options)
        gained = min(most.size, budget - taken + page) - max(size, 0)
        if most.start < LOW:
            gained = min(gained, low - low_taken + (page if at < LOW else 0) - max(size, 0))
        if not too_low and not too_many and gained < (page if lost else 1):
            return numbers
        numbers[index] -= 1
        taken -= page
        low_taken -= page if at < LOW else 0


# ---- what stays open


def left_open(ground: Ground, guards: Guards) -> tuple[Left, ...]:
    """Return what is neither guarded nor scratch, with the reasons, ascending."""
    found = []
    outside = without(without(ground.ram, ground.scratch), guards.ranges)
    for index, node in enumerate(ground.nodes):
        number, free = ground.number(index), _gaps_of(ground, node)
        for area in common(outside, node):
            inside = common((area,), free)
            for piece in inside:
                found.append(Left(piece, _why_open(ground, guards, guards.pages[index], piece), number))
            for piece in without((area,), inside):
                found.append(Left(piece, "the next kernel's first memory comes from the top of each node", number))
    every = merge_ranges(tuple(area for node in ground.nodes for area in node))
    found += [Left(piece, "which node it is on is not known") for piece in without(outside, every)]
    return tuple(sorted(found))


def _why_open(ground: Ground, guards: Guards, node: Gigantic, piece: Range) -> str:
    if piece.start == guards.range.end:
        return "the next kernel needs room to run"
    if not ground.page:
        return "only one range can be guarded"
    if not _whole((piece,), ground.page):
        return f"no whole page of {size_text(ground.page)} lies in it"
    return node.why_not or "the next kernel needs room to run"
