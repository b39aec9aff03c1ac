# SPDX-License-Identifier: MIT
"""Gigantic pages as a guard: which the kernel has set aside, where they are, kept from programs, given back.

`hugepages=` of a gigantic size takes whole pages on each node before there is a page allocator; of each the kernel writes
the first 4 KiB and no more. Until they are reserved any program may map one, and the kernel then zeroes it. A file on
hugetlbfs that was mapped once reserves its pages for as long as it is there, and the pool cannot be made smaller than
what is reserved (mm/hugetlb.c; seen on 7.2 and 7.3).
"""

from __future__ import annotations

from safemem.boot import files, memory, paths
from safemem.boot.files import reason
from safemem.boot.model import UNKNOWN, Blocks, Fact, Note, Pages
from safemem.boot.ranges import Range, merge_ranges, size_text
from safemem.boot.tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What the account says of them.
WRITTEN = "gigantic pages, of each of which the kernel has written the first 4 KiB"
#: Bits of /proc/kpageflags: mapped by a program; head and tail of a compound page; of hugetlbfs.
_MMAP, _HEAD, _TAIL, _HUGE = 1 << 11, 1 << 15, 1 << 16, 1 << 17
_FREE = _HEAD | _HUGE
#: Where a huge page of the usual size would end: what is a tail there is part of a gigantic one.
_NEXT = 2 << 20
_PAGE = 4096
#: The node of a block that two of them share: blocks of 2 GiB hold whole pages of either.
_SHARED = -1
#: Pages given back by one write, and by the time of one sign of progress: the kernel frees them one by one.
_AT_ONCE = 4


class Found(NamedTuple):
    """The gigantic pages of this boot, and whether they are what was asked for."""

    fact: Fact  #: as the guard's
    pages: tuple[Pages, ...] = ()


def read(
    root: str,
    page: int,
    wanted: tuple[tuple[int, int], ...],
    own: tuple[tuple[int, int], ...],
    size: int,
    blocks: tuple[Blocks, ...],
) -> Found:
    """Return the gigantic pages that the kernel has now.

    Args:
        page: bytes of one.
        wanted: nodes and how many pages each was to get.
        own: of them the operator's own.
        size: bytes of a memory block.
        blocks: all of them; without, the machine has no nodes that could be told apart.
    """
    keeps, pools = dict(own), {}
    for node in sorted({*keeps, *dict(wanted)}):
        pool = _pool(root, node, page)
        if pool is None:
            where = folder_of(root, node, page)
            if files.exists(root, paths.HUGE.format(page >> 10)) is False:
                return Found(Fact("void", where, f"this kernel has no pages of {size_text(page)}"))
            return Found(Fact(UNKNOWN, where, "how many gigantic pages there are cannot be read"))
        pools[node] = pool
    places, why = _places(root, page, size, blocks, sum(number for number, _ in pools.values()))
    shared = places.pop(_SHARED, [])
    for node, (_, free) in pools.items():
        # Addresses ascend with the nodes: what a node lacks is in the block that it shares with its neighbour.
        mine = places.setdefault(node, [])
        lacks = max(0, free - len(mine))
        mine += shared[:lacks]
        shared = shared[lacks:]
    pages = tuple(
        Pages(node, page, number, free, keeps.get(node, 0), merge_ranges(tuple(places.get(node, ()))))
        for node, (number, free) in pools.items()
    )
    for item in pages:
        if not why and not item.placed:
            why = f"node {item.node} has {item.free} of {item.number} gigantic pages free, and it shows another number"
    if why:
        return Found(Fact(UNKNOWN, paths.PAGEFLAGS, why), pages)
    got = [(min(number, pools[node][1]), number, node) for node, number in wanted]
    value = (
        "full" if all(has == number for has, number, _ in got) else "part" if any(has for has, _, _ in got) else "void"
    )
    text = ", ".join(f"{has} of {number} on node {node}" for has, number, node in got)
    return Found(Fact(value, folder_of(root, wanted[0][0], page), f"gigantic pages: {text}"), pages)


def now(root: str, pages: tuple[Pages, ...], size: int, blocks: tuple[Blocks, ...]) -> tuple[Pages, ...]:
    """Return the same nodes' pages as they are now; arguments as of `read`."""
    numbers = tuple((item.node, item.number) for item in pages)
    own = tuple((item.node, item.own) for item in pages)
    return read(root, pages[0].size, numbers, own, size, blocks).pages


def folder_of(root: str, node: int, page: int) -> str:
    """Return the folder of a node's pool; a kernel without nodes has one pool."""
    alone = node == 0 and files.is_folder(root, paths.NODES) is False
    return paths.HUGE.format(page >> 10) if alone else paths.NODE_HUGE.format(node, page >> 10)


def _pool(root: str, node: int, page: int) -> tuple[int, int] | None:
    """Return how many pages a node has, and how many of them no program has mapped; None if that cannot be read."""
    folder = folder_of(root, node, page)
    if files.is_folder(root, paths.NODES) and files.exists(root, f"{paths.NODES}/node{node}") is False:
        return 0, 0  # the kernel gives nothing to a node that it does not know
    number, free = (_number(files.word(root, f"{folder}/{name}")) for name in ("nr_hugepages", "free_hugepages"))
    return None if number is None or free is None or free > number else (number, free)


def _places(
    root: str, page: int, size: int, blocks: tuple[Blocks, ...], number: int
) -> tuple[dict[int, list[Range]], str]:
    """Return where gigantic pages are that nobody has mapped, by node, and why that cannot be told."""
    found: dict[int, list[Range]] = {}
    if not number:
        return found, ""
    try:
        for node, area in _areas(root, size, blocks):
            starts = range(-(-area.start // page) * page, area.end - page + 1, page)
            heads = files.numbers(root, paths.PAGEFLAGS, (start // _PAGE * 8 for start in starts))
            free = [start for start, head in zip(starts, heads, strict=True) if head & (_HEAD | _HUGE | _MMAP) == _FREE]
            inside = files.numbers(root, paths.PAGEFLAGS, ((start + _NEXT) // _PAGE * 8 for start in free))
            found.setdefault(node, []).extend(
                Range(start, start + page)
                for start, tail in zip(free, inside, strict=True)
                if tail & (_TAIL | _HUGE) == _TAIL | _HUGE
            )
    except OSError as error:
        return {}, f"where gigantic pages are cannot be told: {reason(error)}"
    return found, ""


def _areas(root: str, size: int, blocks: tuple[Blocks, ...]) -> Iterator[tuple[int, Range]]:
    """Return where memory is in use, by node; a kernel that knows no nodes has one, 0."""
    if not blocks:
        yield from ((0, area) for area in merge_ranges(tuple(memory.iomem(root).named("System RAM"))))
        return
    nodes = {run.node for run in blocks}
    for node in sorted(nodes):
        runs = (run for run in blocks if run.node == node and run.state == "online")
        yield from (
            (0 if nodes == {_SHARED} else node, area)
            for area in merge_ranges(tuple(Range(run.first * size, (run.last + 1) * size) for run in runs))
        )


# ---- kept from programs


def reserve(root: str, pages: tuple[Pages, ...]) -> list[Note]:
    """Reserve every page that no program has yet, the operator's own too: where they are, guests' memory may be.

    A reservation is a number, over all nodes: only when all are reserved, each is kept. Returns what went wrong.
    """
    if not any(item.free for item in pages):
        return []
    failed = ""
    for item in pages:
        # Never less than our file has: what is reserved stays so. Where somebody else has reserved some, of the rest as
        # many as there are.
        mine = _set_aside(root, item)
        left = (_free(root, item.size) or 0) - max(0, _reserved(root, pages))
        for number in (max(item.free, mine), min(item.free, mine + left)):
            if number < mine or not number:
                break
            try:
                files.set_aside(root, _file(item.node), number * item.size)
                break
            except (OSError, ValueError) as error:  # ValueError: a size that no address space has
                failed = reason(error, "cannot be written") if isinstance(error, OSError) else str(error)
    if kept(root, pages):
        return []
    size, free = pages[0].size, sum(item.free for item in pages)
    reserved = max(0, _reserved(root, pages))
    ours = min(reserved, sum(_set_aside(root, item) for item in pages))
    others = reserved - ours
    why = f"{ours} of {free} are reserved" + (f", and a program has reserved {others}" if others else "")
    text = (
        f"gigantic pages, {size_text(free * size)}, could not all be reserved, so any program can map some: {why}"
        + (f" ({failed})" if failed else f" (is hugetlbfs mounted at /{paths.PAGES}?)")
    )
    return [Note("pages-not-reserved", text)]


def kept(root: str, pages: tuple[Pages, ...]) -> bool:
    """Return whether no program can get one of the pages that nobody has mapped yet.

    INVARIANT: all that are free count, on whichever node. A reservation is a number: of a free page on one node, which
    nobody has reserved, the kernel may make one on another node.
    """
    if not any(item.free for item in pages):
        return False
    free = _free(root, pages[0].size)
    # What a program has reserved it can touch at any time: of what is reserved, ours alone count.
    ours = min(_reserved(root, pages), sum(_set_aside(root, item) for item in pages))
    return free is not None and ours >= max(free, sum(item.free for item in pages))


def _free(root: str, size: int) -> int | None:
    """Return how many pages of this size no program has mapped, on all nodes."""
    return _number(files.word(root, f"{paths.HUGE.format(size >> 10)}/free_hugepages"))


def _set_aside(root: str, item: Pages) -> int:
    """Return for how many pages the file of a node stands; 0 if there is none."""
    try:
        return files.size(root, _file(item.node)) // item.size
    except OSError:
        return 0


def _reserved(root: str, pages: tuple[Pages, ...]) -> int:
    """Return how many pages of this size are reserved; -1 if that cannot be read."""
    found = _number(files.word(root, f"{paths.HUGE.format(pages[0].size >> 10)}/resv_hugepages")) if pages else None
    return -1 if found is None else found


def _file(node: int) -> str:
    return f"{paths.PAGES}/node{node}"


# ---- given back


def give_back(
    root: str, pages: tuple[Pages, ...], progress: Callable[[int], None], *, keep_own: bool = False
) -> list[Note]:
    """Give the pages of these nodes back, but for the operator's own; return what went wrong.

    First the pool is told how many pages it is to have, then what is reserved shrinks: at no moment a program can map
    a page on its way, and what was cut off goes on from there (seen on 7.3). A pool that has less than the operator
    asked for is filled up to that: a kernel that accepts a handover may have had no room for it at first. `progress`
    gets bytes. With `keep_own` the operator's own stay reserved, as they must while other nodes' pages are kept (`kept`).
    """
    problems: list[Note] = []
    for item in pages:
        name = f"{folder_of(root, item.node, item.size)}/nr_hugepages"
        own = max(0, item.own - (item.number - item.free)) if keep_own else 0
        failed = _shrink(root, item, name, progress, own)
        now = _number(files.word(root, name))
        if now is None or now > item.own:
            why = failed or f"{name} reads `{files.word(root, name) or 'nothing'}`"
            problems.append(
                Note("guard-kept", f"the gigantic pages of node {item.node} could not be given back: {why}")
            )
        elif now < item.own:
            text = (
                f"hugepages= asks for {item.own} pages of {size_text(item.size)} on node {item.node}, and it has {now}"
            )
            problems.append(Note("pages-missing", text))
    return problems


def let_go(root: str, pages: tuple[Pages, ...]) -> list[Note]:
    """End every reservation on these nodes: what their pools still have is for programs. Return what went wrong."""
    problems = []
    for item in pages:
        if files.exists(root, _file(item.node)):
            try:
                files.remove(root, _file(item.node))
            except OSError as error:
                why = reason(error, "cannot be removed")
                text = f"{_file(item.node)}, which reserves pages of the operator's: {why}"
                problems.append(Note("guard-kept", text))
    return problems


def _shrink(root: str, item: Pages, name: str, progress: Callable[[int], None], stays: int) -> str | None:
    """Bring one node's pool to the operator's own number, of which `stays` stay reserved; return why that failed."""
    left = 0
    try:
        if files.exists(root, _file(item.node)):
            left = files.size(root, _file(item.node)) // item.size
        now = max(item.number, left)
        while now > item.own and not left:
            # Nothing is reserved: the pool shrinks as it is told, page by page.
            step = min(_AT_ONCE, now - item.own)
            now -= step
            files.put(root, name, str(now))
            progress(step * item.size)
        files.put(root, name, str(item.own))
        while left > stays:
            step = min(_AT_ONCE, left - stays)
            left -= step
            files.shorten(root, _file(item.node), left * item.size)
            progress(step * item.size)
        if not stays and files.exists(root, _file(item.node)):
            files.remove(root, _file(item.node))
    except OSError as error:
        return reason(error, "cannot be written")
    return None


def _number(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdecimal() and len(word) < 10 else None
