# SPDX-License-Identifier: MIT
"""What to append to the next kernel's command line, right before the kexec: guard, safe region, hold.

Runs in the outgoing system and from the boot archive: standard library only. A guard is a
`crashkernel=SIZE@START` outside the scratch areas. The next kernel reserves it before it has an
allocator, unless it accepts the handover: then early memory comes from scratch only, and the
reservation fails harmlessly (seen on 7.2 and 7.3). Scratch moves at each cold boot (KASLR), so this
has to be computed anew each time.

If anything else is in the range, the reservation fails and there is no guard at all. So what cannot
be known to be free is left out, and where too little is known nothing is printed.
"""

from __future__ import annotations

import os
import sys

from safemem.boot import plainjson, probe, record
from safemem.boot.model import Fact, Range, merge_ranges, size_text, without
from safemem.boot.tuples import NamedTuple

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
#: What x86 takes as a command line (COMMAND_LINE_SIZE less its end); what is longer the kernel cuts off.
LONGEST = 2047
#: Offsets in a bzImage: init_size, magic.
_INIT_SIZE, _MAGIC = 0x260, 0x202
#: Names in /proc/iomem of what this kernel keeps inside System RAM and the next one does not.
_OURS = ("Kernel code", "Kernel rodata", "Kernel data", "Kernel bss", "Crash kernel")
#: Arguments that are written anew; the kernel reads `-` in a name as `_`.
_REPLACED = ("crashkernel", "memhp_default_state", "BOOT_IMAGE")


class CannotSay(Exception):
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


class Advice(NamedTuple):
    """What to append, and what it is worth. Sizes in bytes."""

    arguments: tuple[str, ...]
    guard: Range
    memory: int  #: what firmware says there is
    safe: int  #: in scratch areas
    open: int  #: neither guarded nor scratch
    left: tuple[Left, ...]  #: the same, range by range
    notes: tuple[str, ...]
    cmdline: str  #: of the running kernel

    @property
    def guarded(self) -> int:
        return self.guard.end - self.guard.start


def advise(root: str = "/", kernel: str = "", initrd: str = "", understands: bool | None = None) -> Advice:
    """Return the arguments for the next kernel, whose image is the file `kernel` and whose initrd is `initrd`.

    Without them, both are taken to be as large as this boot's. `understands` says whether that kernel has KHO at all, None
    where nobody has looked: the boot archive cannot unpack an image.

    Raises:
        CannotSay: KHO is off, or its scratch areas, the machine's memory or a file cannot be read.
    """
    snapshot = probe.read_snapshot(root)
    scratch = probe.scratch_now(root)
    if not scratch:
        kho = snapshot.facts["kho"]
        raise CannotSay(
            f"no scratch areas can be read (KHO is {kho.value}: {kho.reason or kho.source}): is debugfs mounted?"
        )
    ground = read_ground(root, snapshot.cmdline, scratch, kernel, initrd)
    guard = best_guard(ground)
    safe = ",".join(str(area) for area in scratch)
    import binascii

    arguments = [
        f"crashkernel={guard.end - guard.start}@{guard.start:#x}",
        f"safemem.guard={guard}",
        f"safemem.safe={safe};crc32={binascii.crc32(safe.encode()):08x}",
        "memhp_default_state=offline",
        *_attempts(root, snapshot.facts["boot_attempts"]),
    ]
    notes = _notes(snapshot.cmdline)
    if understands is False:
        # Its unpacker knows nothing of scratch areas and puts the image anywhere: into the guard in 2 of 3 boots of a
        # 7.3.4 without KHO. Where kexec loads it is scratch. A kernel with KHO keeps its randomisation within scratch.
        arguments.append("nokaslr")
        notes.append(f"{kernel} has no KHO: nokaslr keeps its image out of the guard, and its addresses are not random")
    elif understands is None:
        notes.append("should the next kernel have no KHO, append nokaslr too: its image could be put inside the guard")
    left = _left(ground, guard)
    return Advice(
        tuple(arguments), guard, _size(ground.ram), _size(_common(ground.ram, scratch)),
        _size(tuple(item.range for item in left)), left, tuple(notes), snapshot.cmdline,
    )  # fmt: skip


def _attempts(root: str, fact: Fact) -> list[str]:
    """Return the argument that carries the count of boots to the next kernel; nothing where firmware keeps it."""
    if fact.source == probe.ATTEMPTS:
        return []
    number = fact.value if isinstance(fact.value, int) else 0
    try:
        with open(os.path.join(root, record.RECORD), encoding="utf-8") as file:
            document = plainjson.loads(file.read())
        number = 0 if document["decision"]["action"] == "online-all" else number + 1  # type: ignore[index]
    except FileNotFoundError:
        pass  # no decision in this boot: it is not counted
    except (OSError, ValueError, KeyError, TypeError):
        number += 1
    return [f"safemem.attempts={number}"]


def read_ground(root: str, cmdline: str, scratch: tuple[Range, ...], kernel: str = "", initrd: str = "") -> Ground:
    """Return the machine's memory as the next kernel will find it, less what anything keeps for itself.

    Raises:
        CannotSay: part of it cannot be read.
    """
    try:
        firmware = probe.firmware_memory(root)
    except OSError as error:
        raise CannotSay(
            f"{probe.BOOT_PARAMS}: {(error.strerror or 'cannot be read').lower()}: which memory firmware gave is not known"
        ) from None
    except ValueError as error:
        raise CannotSay(str(error)) from None
    ram, taken, image = _resources(root)
    nodes = _nodes(root)
    return Ground(
        without(_common(firmware, ram), taken),
        scratch,
        nodes or (firmware,),
        _image_size(kernel) if kernel else image,
        _file_size(initrd) if initrd else probe.initrd_size(root),
        any(key.replace("-", "_") == "movable_node" for key, _ in probe.arguments(cmdline)),
    )


def best_guard(ground: Ground) -> Range:
    """Return the largest range that a rejecting kernel can reserve and still run beside.

    Raises:
        CannotSay: there is none.
    """
    total, room = _size(ground.ram), _room(ground)
    if total <= room:
        raise CannotSay(f"{size_text(total)} of memory leave nothing to guard: a kernel needs {size_text(room)}")
    found = []
    for gap in gaps(ground):
        start = max(-(-gap.start // ALIGN) * ALIGN, ALIGN)
        end = min(gap.end, start + total - room)
        if total and ground.ram[-1].end > LOW and start < LOW:
            low = _size(_common(ground.ram, (Range(0, LOW),)))
            end = min(end, start + low - LOW_ROOM) if low > LOW_ROOM else start
        end = end // _END_ALIGN * _END_ALIGN
        if end > start:
            found.append(Range(start, end))
    if not found:
        raise CannotSay("no range of memory is free, in one piece and on one node, that a guard could begin in")
    return max(found, key=lambda guard: guard.end - guard.start)


def gaps(ground: Ground) -> list[Range]:
    """Return the ranges that nothing touches before the next kernel reserves its guard, each on one node."""
    found = []
    for node in ground.nodes:
        free = list(without(_common(ground.ram, node), ground.scratch))
        _leave_out(free, -1, lambda area: Range(area.start, area.end - TOP))
        if ground.bottom_up:
            _leave_out(free, 0, lambda area: Range(area.start + TOP, area.end))
        found += free
    return sorted(found)


def _leave_out(free: list[Range], place: int, cut: _Cut) -> None:
    """Take `TOP` bytes in one piece from one end of `free`, with every smaller piece beyond it."""
    while free:
        area = free.pop(place)
        if area.end - area.start > TOP:
            free.insert(len(free) if place else 0, cut(area))
        if area.end - area.start >= TOP:
            return


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    _Cut = Callable[[Range], Range]


def _room(ground: Ground) -> int:
    """Return what has to stay outside: image, map of all memory (64 bytes a page), and the initrd packed and unpacked."""
    return ROOM + _size(ground.ram) // 64 + ground.kernel + 4 * ground.initrd


def _left(ground: Ground, guard: Range) -> tuple[Left, ...]:
    free = gaps(ground)
    found = []
    for area in without(without(ground.ram, ground.scratch), (guard,)):
        inside = _common((area,), tuple(free))
        for piece in inside:
            why = "only one range can be guarded"
            if piece.start == guard.end:
                why = "the next kernel needs room to run"
            found.append(Left(piece, why))
        for piece in without((area,), inside):
            found.append(Left(piece, "the next kernel's first memory comes from the top of each node"))
    return tuple(sorted(found))


def _notes(cmdline: str) -> list[str]:
    """Return what on the command line, if the next kernel has it too, is at odds with a guard."""
    names = {key.replace("-", "_"): value for key, value in probe.arguments(cmdline)}
    notes = []
    if "crashkernel" in names:
        notes.append(
            "crashkernel= of this boot is kdump's: leave it out of the next command line, only one range counts"
        )
    # dma_contiguous_reserve and hugetlb_cma_reserve come before arch_reserve_crashkernel in setup_arch.
    for name in ("cma", "hugetlb_cma"):
        if names.get(name, "0") not in ("0", ""):
            notes.append(f"{name}= is reserved before the guard and may lie where the guard should: leave it out")
    if "hugepages" in names:
        notes.append("hugepages= takes what the guard leaves open: a kernel that rejects may have too little to run")
    return notes


# ---- the whole command


def kexec_command(advice: Advice, kernel: str, initrd: str) -> str:
    """Return the command that loads the next kernel, for a shell: this kernel's command line with the advice in it.

    Raises:
        CannotSay: this kernel's command line cannot be reused with a guard.
    """
    words = ["kexec", "-s", "-l", kernel, *([f"--initrd={initrd}"] if initrd else [])]
    return " ".join(_quoted(word) for word in (*words, f"--command-line={next_cmdline(advice)}"))


def next_cmdline(advice: Advice) -> str:
    """Return this kernel's command line with what the advice replaces taken out, and the advice put in.

    Raises:
        CannotSay: something on it would undo the guard, or it becomes too long.
    """
    kept, init = _kept(advice.cmdline)
    for word in (*kept, *init):
        name, _, value = word.partition("=")
        if name in ("cma", "hugetlb_cma") and value not in ("", "0"):
            raise CannotSay(f"`{word}` on the command line is reserved before the guard, and may be put inside it")
        if "crashkernel=" in word:
            # The kernel looks for this text anywhere in the line, even inside another word.
            raise CannotSay(f"`{word}` on the command line would be read as a crashkernel= of its own")
    text = " ".join([*kept, *advice.arguments, *init])
    if len(text.encode()) > LONGEST:
        raise CannotSay(f"the next command line would have {len(text.encode())} bytes, and the kernel takes {LONGEST}")
    return text


def _kept(cmdline: str) -> tuple[list[str], list[str]]:
    """Return the words to keep, as they are written, and those for init, from `--` on."""
    words, word, quoted = [], "", False
    for char in cmdline + " ":
        if char.isspace() and not quoted:
            words += [word] if word else []
            word = ""
            continue
        quoted ^= char == '"'
        word += char
    if quoted:
        raise CannotSay("a quotation mark on this kernel's command line is not closed: what is appended would be lost")
    end = words.index("--") if "--" in words else len(words)
    kept = []
    for word in words[:end]:
        name = word.lstrip('"').partition("=")[0].replace("-", "_")
        if name not in _REPLACED and not name.startswith("safemem."):
            kept.append(word)
    return kept, words[end:]


def _quoted(word: str) -> str:
    """Return `word` for a shell; like shlex.quote, which the boot archive does not carry."""
    if word and all(char.isalnum() or char in "@%+=:,./-_" for char in word) and word.isascii():
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


# ---- reading


def _resources(root: str) -> tuple[tuple[Range, ...], tuple[Range, ...], int]:
    """Return System RAM, what lies inside it and stays, and how many bytes this kernel's image spans."""
    try:
        with open(os.path.join(root, probe.IOMEM), encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise CannotSay(f"{probe.IOMEM}: {(error.strerror or 'cannot be read').lower()}") from None
    ram, inside, image = [], [], []
    within = False
    for line in lines:
        span, _, name = line.partition(" : ")
        start, _, last = span.strip().partition("-")
        try:
            area = Range(int(start, 16), int(last, 16) + 1)
        except ValueError:
            raise CannotSay(f"{probe.IOMEM}: line `{line.strip()}` cannot be understood") from None
        if not line.startswith(" "):
            within = name == "System RAM"
            if within:
                ram.append(area)
        elif within and name.startswith("Kernel "):
            image.append(area)
        elif within and name not in _OURS:
            inside.append(area)
    if not ram or ram[-1].end == 1:
        raise CannotSay(f"{probe.IOMEM} shows no System RAM: it shows addresses to root only")
    size = max(area.end for area in image) - min(area.start for area in image) if image else 0
    return merge_ranges(tuple(ram)), merge_ranges(tuple(inside)), size


def _nodes(root: str) -> tuple[tuple[Range, ...], ...]:
    """Return each node's memory; nothing if the machine shows no nodes.

    A block that several nodes share is no node's.
    """
    base = os.path.join(root, probe.NODES)
    try:
        names = [name for name in os.listdir(base) if name[:4] == "node" and name[4:].isdecimal()]
        if len(names) < 2:
            return ()
        with open(os.path.join(root, probe.MEMORY, "block_size_bytes"), encoding="utf-8") as file:
            size = int(file.read(), 16)
        blocks = [
            {int(item[6:]) for item in os.listdir(os.path.join(base, name)) if item[:6] == "memory" and item[6:].isdecimal()}
            for name in names
        ]  # fmt: skip
    except (OSError, ValueError) as error:
        raise CannotSay(f"which memory is on which node cannot be read: {error}") from None
    seen: set[int] = set()
    shared: set[int] = set()
    for node in blocks:
        shared |= node & seen
        seen |= node
    if not seen:
        raise CannotSay(f"{probe.NODES}: {len(names)} nodes, and which memory is on which is not shown")
    return tuple(
        merge_ranges(tuple(Range(number * size, (number + 1) * size) for number in node - shared)) for node in blocks
    )


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise CannotSay(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None


def _image_size(path: str) -> int:
    """Return what the kernel in `path` takes in memory: what a bzImage says, or else four times the file."""
    size = _file_size(path)
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise CannotSay(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    if head[_MAGIC : _MAGIC + 4] == b"HdrS":
        return max(int.from_bytes(head[_INIT_SIZE : _INIT_SIZE + 4], "little"), size)
    return 4 * size


# ---- ranges


def _size(ranges: tuple[Range, ...]) -> int:
    return sum(area.end - area.start for area in ranges)


def _common(one: tuple[Range, ...], other: tuple[Range, ...]) -> tuple[Range, ...]:
    return merge_ranges(
        tuple(
            Range(max(a.start, b.start), min(a.end, b.end))
            for a in one
            for b in other
            if a.start < b.end and b.start < a.end
        )
    )


_USAGE = "usage: handover-args [--root DIR] [--kernel IMAGE [--initrd FILE] [--kexec-command]]"


def main(argv: list[str]) -> int:
    """Print the arguments on one line; return 0, 1 if there are none to give, or 2 for a call that is wrong."""
    options = {"--root": "/", "--kernel": "", "--initrd": ""}
    words, whole = list(argv), False
    while words:
        word = words.pop(0)
        if word in options and words:
            options[word] = words.pop(0)
        elif word == "--kexec-command":
            whole = True
        else:
            sys.stderr.write(f"{_USAGE}\n")
            return 2
    root, kernel, initrd = options.values()
    if whole and not kernel:
        sys.stderr.write(f"safemem: --kexec-command needs --kernel\n{_USAGE}\n")
        return 2
    try:
        advice = advise(root, kernel, initrd)
        text = kexec_command(advice, kernel, initrd) if whole else " ".join(advice.arguments)
    except CannotSay as error:
        sys.stderr.write(f"safemem: {error}\n")
        return 1
    for note in advice.notes:
        sys.stderr.write(f"safemem: {note}\n")
    sys.stdout.write(f"{text}\n")
    return 0
