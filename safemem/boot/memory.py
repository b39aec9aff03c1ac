# SPDX-License-Identifier: MIT
"""What memory there is and in which state: blocks, NUMA nodes, /proc/iomem and firmware's map.

One reader of each, for the boot program, for the guard that the next kernel gets, and for the desk.
"""

from __future__ import annotations

from safemem.boot import files, paths, usermap, zeropage
from safemem.boot.cmdline import arguments
from safemem.boot.files import reason
from safemem.boot.model import UNKNOWN, Blocks, Fact, Note, Room, Snapshot
from safemem.boot.ranges import Range, cut, merge_ranges, parse_range, size_text, whole_blocks, without
from safemem.boot.tuples import NamedTuple

#: An offset in the x86 zero page (Documentation/arch/x86/zero-page.rst).
_RAMDISK_SIZE = 0x21C
#: Bytes of a gigantic page on x86, and of /proc/cpuinfo that hold the flags of the first processor.
GIGANTIC, _ONE_PROCESSOR = 1 << 30, 16 << 10
#: How names in /proc/iomem begin of what this kernel keeps inside System RAM and the next one does not.
_OURS = ("Kernel ", "Crash kernel")
#: None begins with another one, so none is another one that was cut off.
_STATES = {state + end: state.decode() for state in (b"online", b"offline", b"going-offline") for end in (b"\n", b"")}


class Resource(NamedTuple):
    """One line of /proc/iomem."""

    area: Range
    name: str
    depth: int  #: 0 at the outside


class Iomem(NamedTuple):
    """/proc/iomem, in its order."""

    resources: tuple[Resource, ...]
    fault: str = ""  #: why it is not all of what there is; then nothing may be concluded from what is missing

    def named(self, name: str) -> list[Range]:
        """Return where resources whose names begin so lie."""
        return [item.area for item in self.resources if item.name.startswith(name)]

    @property
    def taken(self) -> tuple[Range, ...]:
        """What lies inside System RAM and will for the next kernel too: all but what this kernel has put there."""
        found, within = [], False
        for item in self.resources:
            if not item.depth:
                within = item.name == "System RAM"
            elif within and not item.name.startswith(_OURS):
                found.append(item.area)
        return merge_ranges(tuple(found))


def iomem(root: str) -> Iomem:
    """Return what lies where in physical memory, as far as that can be read."""
    try:
        text = files.read(root, paths.IOMEM).decode("utf-8", "replace")
    except OSError as error:
        return Iomem((), reason(error))
    # A name that is cut off can be another one: who added a block would be somebody else.
    text, _, rest = text.rpartition("\n")
    found, fault = [], "it is cut off" if rest else ""
    for line in filter(str.strip, text.splitlines()):
        span, _, name = line.partition(" : ")
        start, _, last = span.strip().partition("-")
        try:
            area = parse_range(f"0x{start.strip()}-0x{last}")
        except ValueError:  # also one that runs backwards
            fault = fault or f"line `{line.strip()}` cannot be understood"
            continue
        found.append(Resource(area, name.strip(), (len(line) - len(line.lstrip(" "))) // 2))
    # Whoever may not see addresses sees zeros.
    seen = tuple(item for item in found if item.area.end > 1)
    if len(seen) < len(found):
        fault = "it shows addresses to root only"
    return Iomem(seen, fault or ("" if seen else "it is empty"))


def firmware_memory(root: str) -> tuple[Range, ...]:
    """Return the memory that this kernel booted with: firmware's map in the x86 zero page, as the command line leaves it.

    What was hot-added is not in it, and neither is what a driver has made of memory that `memmap=` had taken away.
    /sys/firmware/memmap is no second source: the kernel adds each DIMM to it that arrives (add_memory_resource in
    mm/memory_hotplug.c), so it cannot tell which memory came later.

    Raises:
        OSError: it cannot be read, as on everything that is not x86.
        ValueError: it holds no memory map, or what has become of it cannot be told.
    """
    entries = []
    for start, size, kind in zeropage.firmware_map(root):
        if start + size > 1 << 64:  # then the kernel drops the whole map (__append_e820_table)
            raise ValueError(f"{paths.BOOT_PARAMS} holds a memory map with an entry that ends beyond all addresses")
        entries.append((Range(start, start + size), kind))
    found = usermap.usable(usermap.applied(entries, arguments(files.line(root, paths.CMDLINE))))
    if not found:
        raise ValueError(f"{paths.BOOT_PARAMS} holds no memory map")
    return without(found, added(iomem(root)))


def added(known: Iomem) -> tuple[Range, ...]:
    """Return the memory that drivers have added, by their names; a DIMM of ACPI has none there."""
    return merge_ranges(tuple(item.area for item in known.resources if item.name.startswith("System RAM (")))


def initrd_size(root: str) -> int:
    """Return the bytes of the initrd as it was loaded, from the x86 zero page; 0 if that cannot be read."""
    try:
        data = files.read(root, paths.BOOT_PARAMS)
    except OSError:
        return 0
    return int.from_bytes(data[_RAMDISK_SIZE : _RAMDISK_SIZE + 4], "little")


def room(root: str) -> Room:
    """Return what tells which memory cannot be taken offline now, and which the next kernel will have."""
    known = iomem(root)
    if known.fault:  # of part of it nothing follows: what is missing may be taken
        known = Iomem(())
    kernel, ram = (tuple(known.named(name)) for name in ("Kernel ", "System RAM"))
    try:
        firmware = firmware_memory(root)
    except (OSError, ValueError):
        firmware = ()
    return Room(
        kernel,
        ram,
        available(root),
        initrd_size(root),
        firmware,
        known.taken,
        gigantic(root) if has_hugetlb(root) else 0,
    )


def gigantic(root: str) -> int:
    """Return the bytes of a gigantic page that the processor can have; 0 if it cannot, or that cannot be read.

    On x86 the flag is `pdpe1gb` (Documentation/admin-guide/mm/hugetlbpage.rst).
    """
    try:
        # One processor is enough, and a large machine has megabytes of them.
        data = files.read(root, paths.CPUINFO, _ONE_PROCESSOR)
    except OSError:
        return 0
    for line in data.split(b"\n"):
        name, _, flags = line.partition(b":")
        if name.strip() == b"flags":
            return GIGANTIC if b"pdpe1gb" in flags.split() else 0
    return 0


def has_hugetlb(root: str) -> bool:
    """Return False only where sysfs is there and shows that this kernel has no hugetlb pages."""
    return files.exists(root, paths.KERNEL_MM) is not True or files.exists(root, paths.HUGEPAGES) is not False


def available(root: str) -> int:
    """Return MemAvailable in bytes; 0 if it cannot be read, which takes nothing off."""
    for line in files.word(root, paths.MEMINFO).splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemAvailable" and words and words[0].isdecimal():
            return int(words[0]) << 10
    return 0


def nodes(root: str) -> dict[int, frozenset[int]]:
    """Return the numbers of each NUMA node's blocks; a block that several nodes share is no node's.

    Raises:
        OSError: they cannot be read, as on a machine without NUMA.
    """
    lists: dict[int, set[int]] = {}
    for name in files.names(root, paths.NODES):
        if name[:4] == "node" and name[4:].isdecimal():
            # One listing a node, not one a block.
            lists[int(name[4:])] = set(_numbers(files.names(root, f"{paths.NODES}/{name}")))
    seen: set[int] = set()
    shared: set[int] = set()
    for blocks in lists.values():
        shared |= blocks & seen
        seen |= blocks
    return {node: frozenset(blocks - shared) for node, blocks in lists.items()}


def node_count(root: str) -> Fact:
    """Return how many NUMA nodes are online; a kernel that knows no nodes has one."""
    try:
        text = files.line(root, paths.NODES_ONLINE)
    except OSError as error:
        try:
            whole = files.names(root, paths.SYSTEM)
        except OSError:
            whole = []
        if whole and "node" not in whole:
            return Fact(1, paths.SYSTEM, "it has no nodes")
        return Fact(UNKNOWN, paths.NODES_ONLINE, reason(error))
    count = 0
    for span in text.split(","):
        first, _, last = span.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first)):
            return Fact(UNKNOWN, paths.NODES_ONLINE, f"`{text}` is no list of numbers")
        count += int(last or first) - int(first) + 1
    return Fact(count, paths.NODES_ONLINE)


def blocks(root: str) -> tuple[int, tuple[Blocks, ...], tuple[Note, ...]]:
    """Return the size of a block in bytes, all blocks as runs, and what could not be read of them.

    The size is 0 where the machine shows no blocks: a kernel that cannot hot-add memory, or a fault.
    """
    notes: list[Note] = []
    if not can_hotplug(root):
        return 0, (), ()
    try:
        size = int(files.line(root, paths.BLOCK_SIZE), 16)
        if not 0 < size < 1 << 64:
            raise ValueError
        with files.Folder(root, paths.MEMORY) as folder:
            runs = _runs(folder, _node_of(root), notes)
    except OSError as error:
        return 0, (), (_unreadable(f"{paths.MEMORY}: {reason(error)}"),)
    except ValueError:
        return 0, (), (_unreadable(f"{paths.BLOCK_SIZE} is not a size"),)
    if not runs:  # what the kernel itself runs in is there always
        return 0, (), (_unreadable(f"{paths.MEMORY} shows none"),)
    added_by = _drivers(root)
    return size, tuple(piece for run in runs for piece in _by_driver(run, size, added_by)), tuple(notes)


def can_hotplug(root: str) -> bool:
    """Return False only where sysfs is there and lists no folder for memory blocks: this kernel cannot hot-add memory."""
    if files.is_folder(root, paths.MEMORY) is not False:
        return True
    try:
        shown = files.names(root, paths.SYSTEM)
    except OSError:
        return True
    return not shown or "memory" in shown


def _unreadable(why: str) -> Note:
    return Note("blocks-unreadable", f"memory blocks cannot be read: {why}")


def states(root: str) -> tuple[Blocks, ...]:
    """Return the blocks as they are now, with their states only: what has changed since they were read whole.

    Raises:
        OSError: they cannot be listed, or none is shown by a kernel that has some; a state that cannot be read is `unknown`.
    """
    if not can_hotplug(root):
        return ()
    with files.Folder(root, paths.MEMORY) as folder:
        found = _runs(folder, {}, [])
    if not found:
        raise OSError(0, "no block is shown", paths.MEMORY)
    return found


def _numbers(names: list[str]) -> list[int]:
    """Return the numbers of the memory blocks among the names in a folder."""
    return [int(name[6:]) for name in names if name[:6] == "memory" and name[6:].isdecimal()]


def _node_of(root: str) -> dict[int, int]:
    try:
        return {block: node for node, numbers in nodes(root).items() for block in numbers}
    except OSError:
        return {}  # nodes are for display and exceptions; a machine without NUMA has none


def _runs(folder: files.Folder, node_of: dict[int, int], notes: list[Note]) -> tuple[Blocks, ...]:
    # Joined on the way: this runs once for every block of the machine.
    found: list[tuple[int, int, str, int]] = []
    first = end = -1
    last: tuple[str, int] = ("", -1)
    for number in sorted(_numbers(folder.names())):
        try:
            read = folder.read(f"memory{number}/state", 64)
            state = _STATES.get(read, UNKNOWN)
            if state == UNKNOWN:
                notes.append(Note("block-unreadable", f"state of block {number} reads {ascii(read)[1:]}"))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and folder.has(f"memory{number}") is False:
                notes.append(Note("block-gone", f"block {number} disappeared while it was read"))
                continue
            notes.append(Note("block-unreadable", f"state of block {number} cannot be read: {reason(error)}"))
            state = UNKNOWN
        this = (state, node_of.get(number, -1))
        if number != end or this != last:
            if last[0]:
                found.append((first, end - 1, *last))
            first, last = number, this
        end = number + 1
    if last[0]:
        found.append((first, end - 1, *last))
    return tuple(Blocks(*run) for run in found)


def _drivers(root: str) -> list[tuple[Range, str]]:
    """Return who added which memory, from the names in /proc/iomem, ascending.

    A driver of its own writes `System RAM (virtio_mem)` or `System RAM (kmem)`; what firmware and
    ACPI add is plain `System RAM`.
    """
    known = {"": "dimm", "(virtio_mem)": "virtio-mem", "(kmem)": "kmem"}
    return sorted(
        (item.area, known.get(item.name[10:].strip(), UNKNOWN))
        for item in iomem(root).resources
        if item.name.startswith("System RAM")
    )


def _by_driver(run: Blocks, size: int, added_by: list[tuple[Range, str]]) -> list[Blocks]:
    """Return `run` cut by who added its blocks; a block that two added, or nobody known, is nobody's."""
    pieces = cut(run.first, run.last + 1, [whole_blocks(area, size) for area, _ in added_by])
    return [
        run._replace(first=first, last=end - 1, driver=added_by[index][1] if index >= 0 else run.driver)
        for first, end, index in pieces
    ]


def onlined_early(root: str, snapshot: Snapshot) -> tuple[Note, ...]:
    """Return, in a boot that has not decided yet, which hot-added memory the kernel has onlined already.

    INVARIANT: a block of which firmware's map knows one byte is boot memory.
    """
    online = [run for run in snapshot.blocks if run.state == "online"]
    if not online:
        return ()
    notes: tuple[Note, ...] = ()
    try:
        ram = firmware_memory(root)
    except (OSError, ValueError) as error:
        # What a driver has added says so by its name.
        online = [run for run in online if run.driver in ("virtio-mem", "kmem")]
        ram = ()
        if snapshot.facts["auto_online"].value != "offline":
            why = reason(error) if isinstance(error, OSError) else str(error)
            text = f"whether hot-added memory was online before safemem ran cannot be told: {paths.BOOT_PARAMS}: {why}"
            notes = (Note("onlined-early-unknown", text),)
    size, late = snapshot.block_size, []
    for run in online:
        for number in range(run.first, run.last + 1):
            area = Range(number * size, (number + 1) * size)
            if not any(area.start < part.end and part.start < area.end for part in ram):
                late.append(area)
    return notes + tuple(
        Note(
            "onlined-early",
            f"{area} ({size_text(area.size)}) was hot-added and online before safemem ran: boot with memhp_default_state=offline",
        )
        for area in merge_ranges(tuple(late))
    )
