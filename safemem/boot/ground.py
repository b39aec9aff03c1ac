# SPDX-License-Identifier: MIT
"""The memory that guards for the next kernel have to fit into: computed from a snapshot, so that a capture will do.

What cannot be known to be free is left out: if anything else is in the range of a `crashkernel=`, there is no range.
"""

from __future__ import annotations

from safemem.boot import files, memory, pagewords, paths, probe
from safemem.boot.cmdline import argument, arguments, last, split
from safemem.boot.files import reason
from safemem.boot.model import UNKNOWN, Refused, Snapshot
from safemem.boot.ranges import Range, common, merge_ranges, total, without
from safemem.boot.tuples import NamedTuple

#: Bytes that have to stay outside the guards for a shell, its slabs and page tables, and of all memory one part in so many
#: beside it, as larger machines have more of everything; what else grows comes on top (`room`).
ROOM, _ROOM_SHARE = 192 << 20, 512
#: What x86 processors reach of memory.
_LAST = 1 << 52
#: Offsets in a bzImage: init_size, magic.
_INIT_SIZE, _MAGIC = 0x260, 0x202


class CannotSay(Refused):
    """There is no guard that would work; the message says why."""


class Build(NamedTuple):
    """What is known of how the next kernel is built; None is not known."""

    kho: bool | None = None  #: it can read a handover
    hugetlb: bool | None = None  #: it has hugetlb pages
    numa: bool | None = None  #: it has nodes
    spares_scratch: bool | None = None  #: it takes no gigantic pages from scratch: it never accepts, or is 7.3 or later


#: Of a kernel that nobody has looked at.
UNTOLD = Build()


class Ground(NamedTuple):
    """The memory that guards have to fit into; ranges ascending and disjoint."""

    ram: tuple[Range, ...]  #: what firmware gives and nobody keeps
    scratch: tuple[Range, ...]
    nodes: tuple[tuple[Range, ...], ...]  #: the ranges of each NUMA node
    kernel: int  #: bytes that the next kernel's image takes
    initrd: int  #: bytes of its initrd as it is loaded
    bottom_up: bool = False  #: with movable_node the first memory of a node is taken from below
    numbers: tuple[int, ...] = ()  #: of the nodes, in the same order; empty: they count from 0
    page: int = 0  #: bytes of a gigantic page; 0 if there can be none
    no_page: str = ""  #: why there can be none
    own: tuple[tuple[int, int], ...] = ()  #: gigantic pages that the operator wants for programs, by node number
    spares_scratch: bool = False  #: as in `Build`; False where it is not known
    notes: tuple[str, ...] = ()  #: what could not be known

    def number(self, index: int) -> int:
        """Return the number of the node at `index` of `nodes`."""
        return self.numbers[index] if self.numbers else index


def read_ground(
    root: str, scratch: tuple[Range, ...], kernel: str = "", initrd: str = "", built: Build = UNTOLD
) -> tuple[Snapshot, Ground]:
    """Return the machine as it is, and its memory as the next kernel will find it, less what anything keeps for itself.

    Raises:
        CannotSay: part of it cannot be read.
    """
    try:
        memory.firmware_memory(root)
    except OSError as error:
        raise CannotSay(f"/{paths.BOOT_PARAMS}: {reason(error)}: which memory firmware gave is not known") from None
    except ValueError as error:
        raise CannotSay(str(error)) from None
    known = memory.iomem(root)
    if known.fault:
        raise CannotSay(f"/{paths.IOMEM}: {known.fault}")
    room = memory.room(root)
    if built.hugetlb and not room.gigantic:  # this kernel may have none where the next one has
        room = room._replace(gigantic=memory.gigantic(root))
    snapshot = probe.read_snapshot(root)._replace(room=room)
    return snapshot, ground(snapshot, scratch, kernel, initrd, built)


def ground(
    snapshot: Snapshot, scratch: tuple[Range, ...], kernel: str = "", initrd: str = "", built: Build = UNTOLD
) -> Ground:
    """Return the memory of `snapshot`, whose `room` has been read, as the next kernel will find it.

    Without files, that kernel and its initrd are taken to be as large as this boot's.

    Raises:
        CannotSay: part of it is not known, or a file cannot be read.
    """
    room, notes = snapshot.room, []
    if not room.ram:
        raise CannotSay(f"/{paths.IOMEM} shows no System RAM")
    if max(area.end for area in room.ram) > _LAST:
        raise CannotSay(f"/{paths.IOMEM} shows System RAM at {max(room.ram)}, where no processor has any")
    firmware = room.firmware
    if not firmware:
        notes.append("which memory firmware gave is not known: all System RAM is taken for it, hot-added DIMMs too")
        size = snapshot.block_size
        drivers = [run for run in snapshot.blocks if run.driver in ("virtio-mem", "kmem")]
        added = tuple(Range(run.first * size, (run.last + 1) * size) for run in drivers)
        firmware = without(merge_ranges(room.ram), added)
    ram = without(common(firmware, room.ram), room.taken)
    if not ram:
        raise CannotSay(f"{paths.IOMEM} shows nothing of the memory that firmware gave as free for the next kernel")
    nodes = _nodes(snapshot, ram)
    image = max(area.end for area in room.kernel) - min(area.start for area in room.kernel) if room.kernel else 0
    named = last(arguments(snapshot.cmdline))
    found = Ground(
        ram,
        scratch,
        tuple(nodes.values()),
        _image_size(kernel) if kernel else image,
        _file_size(initrd) if initrd else room.initrd,
        "movable_node" in named,
        tuple(nodes),
        no_page=_no_page(room.gigantic, len(nodes), named, built),
        spares_scratch=bool(built.spares_scratch),
        notes=tuple(notes),
    )
    if found.no_page:
        return found
    own, why = _own(snapshot.cmdline, room.gigantic, nodes)
    return found._replace(page=room.gigantic, own=own, notes=(*notes, *why))


def _nodes(snapshot: Snapshot, ram: tuple[Range, ...]) -> dict[int, tuple[Range, ...]]:
    """Return the ranges of each node that has memory of `ram`, by its number; a block that two share is no node's."""
    blocks: dict[int, list[Range]] = {}
    size = snapshot.block_size
    for run in snapshot.blocks:
        if run.node >= 0:
            blocks.setdefault(run.node, []).append(Range(run.first * size, (run.last + 1) * size))
    count = snapshot.facts["numa_nodes"].value
    if len(blocks) < 2:
        if count == UNKNOWN or (isinstance(count, int) and count > 1 and not blocks):
            shown = f"{count} nodes, and " if count != UNKNOWN else ""
            raise CannotSay(f"/{paths.NODES}: {shown}which memory is on which node is not shown")
        if count == 1:
            return {next(iter(blocks), 0): ram}
    found = {node: common(ram, merge_ranges(tuple(areas))) for node, areas in sorted(blocks.items())}
    return {node: areas for node, areas in found.items() if areas}


def _no_page(size: int, nodes: int, named: dict[str, str], built: Build) -> str:
    """Return why there can be no gigantic pages, or nothing."""
    if built.hugetlb is False:
        return "the next kernel is built without CONFIG_HUGETLBFS"
    if built.numa is False and nodes > 1:
        # It would find fault with the number of a node and drop the whole argument.
        return "the next kernel is built without CONFIG_NUMA, and cannot be told how many pages each node gets"
    if named.get("hugetlb_cma", "0") not in ("0", ""):
        return "with hugetlb_cma= on the command line the kernel reserves none at boot: boot once without it"
    if not size:
        return f"this processor or kernel shows no pages of 1 GiB (pdpe1gb in /{paths.CPUINFO}, /{paths.HUGEPAGES})"
    return ""


def _own(
    cmdline: str, page: int, nodes: dict[int, tuple[Range, ...]]
) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    """Return how many gigantic pages on each node the operator wants for programs, and what is to be said of it.

    A line that a kexec brought has ours among them, and tells which in `safemem.guard=`.

    Raises:
        CannotSay: which they are cannot be told.
    """
    from safemem.boot import asked

    words = pagewords.read(split(cmdline)[0])
    pool = words.pools.get(page)
    if pool is None:
        return (), ()
    holds = {node: total(areas) // page for node, areas in nodes.items()}
    found, notes = pagewords.spread(pool, holds), []
    if gone := [str(node) for node, number in pool.nodes if number and node not in holds]:
        notes.append(f"hugepages= asks for pages on node {', '.join(gone)}, which has no memory of its own: left out")
    text = argument(cmdline, asked.ARGUMENT)
    if text is not None:
        try:
            before = asked.parse(text)
        except ValueError as error:
            why = f"{asked.ARGUMENT}=: {error}: which of the gigantic pages are the operator's cannot be told"
            raise CannotSay(why) from None
        if before.page == page:
            if pool.nodes == before.pages:
                return tuple(item for item in before.own if item[1]), tuple(notes)
            notes.append(
                f"hugepages= is not what {asked.ARGUMENT}= tells, so all of its pages are taken for the operator's: put the"
                " number that programs are to have on the next command line instead"
            )
    return found, tuple(notes)


def room(ground: Ground) -> int:
    """Return what has to stay outside: image, map of all memory (64 bytes a page), the initrd packed and unpacked."""
    whole = total(ground.ram)
    return ROOM + whole // _ROOM_SHARE + whole // 64 + ground.kernel + 4 * ground.initrd


# ---- files


def _file_size(path: str) -> int:
    try:
        return files.size("", path)
    except OSError as error:
        raise CannotSay(f"{path}: {reason(error)}") from None


def _image_size(path: str) -> int:
    """Return what the kernel in `path` takes in memory: what a bzImage says, or else four times the file."""
    size = _file_size(path)
    try:
        head = files.read("", path, 4096)
    except OSError as error:
        raise CannotSay(f"{path}: {reason(error)}") from None
    if head[_MAGIC : _MAGIC + 4] == b"HdrS":
        return max(int.from_bytes(head[_INIT_SIZE : _INIT_SIZE + 4], "little"), size)
    return 4 * size
