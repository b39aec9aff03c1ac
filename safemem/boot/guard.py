# SPDX-License-Identifier: MIT
"""Where a guard for the next kernel can be: the largest range that nothing of that kernel touches, with room to run beside it.

A guard is a `crashkernel=SIZE@START` outside the scratch areas. The next kernel reserves it before it has an
allocator, unless it accepts the handover: then early memory comes from scratch only, and the reservation
fails harmlessly (seen on 7.2 and 7.3). If anything else is in the range, the reservation fails and there is no
guard at all: what cannot be known to be free is left out.
"""

from __future__ import annotations

from safemem.boot import files, memory, paths
from safemem.boot.cmdline import arguments
from safemem.boot.files import reason
from safemem.boot.model import Refused
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
#: Bytes that have to stay outside the guard for a shell, its slabs and page tables; what grows comes on top (`_room`).
ROOM = 192 << 20
#: Where memory reaches beyond 4 GiB, devices that reach only below it need buffers there: swiotlb takes 64 MiB.
LOW, LOW_ROOM = 1 << 32, 128 << 20
#: Left out at the top of each node: NODE_DATA lies there before the guard is reserved, and at the top of all memory the
#: first page tables. `memblock=debug` of 7.3.4 shows 2 MiB and a few hundred bytes; a distribution's kernel takes more.
TOP = 32 << 20
#: Offsets in a bzImage: init_size, magic.
_INIT_SIZE, _MAGIC = 0x260, 0x202
#: Names in /proc/iomem of what this kernel keeps inside System RAM and the next one does not.
_OURS = ("Kernel code", "Kernel rodata", "Kernel data", "Kernel bss", "Crash kernel")


class CannotSay(Refused):
    """There is no guard that would work; the message says why."""


class Ground(NamedTuple):
    """The memory that a guard has to fit into; ranges ascending and disjoint."""

    ram: tuple[Range, ...]  #: what firmware gives and nobody keeps
    scratch: tuple[Range, ...]
    nodes: tuple[tuple[Range, ...], ...]  #: the ranges of each NUMA node
    kernel: int  #: bytes that the next kernel's image takes
    initrd: int  #: bytes of its initrd as it is loaded
    bottom_up: bool = False  #: with movable_node the first memory of a node is taken from below


class Left(NamedTuple):
    """Memory that is neither guarded nor scratch."""

    range: Range
    why: str


def read_ground(root: str, cmdline: str, scratch: tuple[Range, ...], kernel: str = "", initrd: str = "") -> Ground:
    """Return the machine's memory as the next kernel will find it, less what anything keeps for itself.

    Raises:
        CannotSay: part of it cannot be read.
    """
    try:
        firmware = memory.firmware_memory(root)
    except OSError as error:
        raise CannotSay(f"{paths.BOOT_PARAMS}: {reason(error)}: which memory firmware gave is not known") from None
    except ValueError as error:
        raise CannotSay(str(error)) from None
    ram, taken, image = _resources(root)
    nodes = _nodes(root)
    return Ground(
        without(common(firmware, ram), taken),
        scratch,
        nodes or (firmware,),
        _image_size(kernel) if kernel else image,
        _file_size(initrd) if initrd else memory.initrd_size(root),
        "movable_node" in dict(arguments(cmdline)),
    )


def best_guard(ground: Ground) -> Range:
    """Return the largest range that a rejecting kernel can reserve and still run beside.

    Raises:
        CannotSay: there is none.
    """
    whole, room = total(ground.ram), _room(ground)
    if whole <= room:
        raise CannotSay(f"{size_text(whole)} of memory leave nothing to guard: a kernel needs {size_text(room)}")
    found = []
    for gap in gaps(ground):
        start = max(-(-gap.start // ALIGN) * ALIGN, ALIGN)
        end = min(gap.end, start + whole - room)
        if whole and ground.ram[-1].end > LOW and start < LOW:
            low = total(common(ground.ram, (Range(0, LOW),)))
            end = min(end, start + low - LOW_ROOM) if low > LOW_ROOM else start
        end = end // _END_ALIGN * _END_ALIGN
        if end > start:
            found.append(Range(start, end))
    if not found:
        raise CannotSay("no range of memory is free, in one piece and on one node, that a guard could begin in")
    return max(found, key=lambda guard: guard.size)


def gaps(ground: Ground) -> list[Range]:
    """Return the ranges that nothing touches before the next kernel reserves its guard, each on one node."""
    found = []
    for node in ground.nodes:
        free = list(without(common(ground.ram, node), ground.scratch))
        _leave_out(free, -1, lambda area: Range(area.start, area.end - TOP))
        if ground.bottom_up:
            _leave_out(free, 0, lambda area: Range(area.start + TOP, area.end))
        found += free
    return sorted(found)


def _leave_out(free: list[Range], place: int, cut: _Cut) -> None:
    """Take `TOP` bytes in one piece from one end of `free`, with every smaller piece beyond it."""
    while free:
        area = free.pop(place)
        if area.size > TOP:
            free.insert(len(free) if place else 0, cut(area))
        if area.size >= TOP:
            return


def _room(ground: Ground) -> int:
    """Return what has to stay outside: image, map of all memory (64 bytes a page), and the initrd packed and unpacked."""
    return ROOM + total(ground.ram) // 64 + ground.kernel + 4 * ground.initrd


def left_open(ground: Ground, guard: Range) -> tuple[Left, ...]:
    free = gaps(ground)
    found = []
    for area in without(without(ground.ram, ground.scratch), (guard,)):
        inside = common((area,), tuple(free))
        for piece in inside:
            why = "only one range can be guarded"
            if piece.start == guard.end:
                why = "the next kernel needs room to run"
            found.append(Left(piece, why))
        for piece in without((area,), inside):
            found.append(Left(piece, "the next kernel's first memory comes from the top of each node"))
    return tuple(sorted(found))


# ---- reading


def _resources(root: str) -> tuple[tuple[Range, ...], tuple[Range, ...], int]:
    """Return System RAM, what lies inside it and stays, and how many bytes this kernel's image spans."""
    known = memory.iomem(root)
    if known.fault:
        raise CannotSay(f"{paths.IOMEM}: {known.fault}")
    ram, inside, image = [], [], []
    within = False
    for area, name, depth in known.resources:
        if not depth:
            within = name == "System RAM"
            if within:
                ram.append(area)
        elif within and name.startswith("Kernel "):
            image.append(area)
        elif within and name not in _OURS:
            inside.append(area)
    if not ram:
        raise CannotSay(f"{paths.IOMEM} shows no System RAM")
    span = max(area.end for area in image) - min(area.start for area in image) if image else 0
    return merge_ranges(tuple(ram)), merge_ranges(tuple(inside)), span


def _nodes(root: str) -> tuple[tuple[Range, ...], ...]:
    """Return each node's memory; nothing if the machine shows less than two."""
    if files.is_folder(root, paths.NODES) is False:
        return ()
    try:
        numbers = memory.nodes(root)
        if len(numbers) < 2:
            return ()
        size = int(files.read(root, paths.BLOCK_SIZE), 16)
    except (OSError, ValueError) as error:
        raise CannotSay(f"which memory is on which node cannot be read: {error}") from None
    if not any(numbers.values()):
        raise CannotSay(f"{paths.NODES}: {len(numbers)} nodes, and which memory is on which is not shown")
    return tuple(
        merge_ranges(tuple(Range(number * size, (number + 1) * size) for number in blocks))
        for blocks in numbers.values()
    )


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
