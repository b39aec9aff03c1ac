# SPDX-License-Identifier: MIT
"""The range that `crashkernel=` reserves: ours as a guard, or kdump's; asked for, in force, given back, kept from kdump."""

from __future__ import annotations

from safemem.boot import files, paths
from safemem.boot.asked import ARGUMENT, parse
from safemem.boot.cmdline import memparse
from safemem.boot.memory import iomem
from safemem.boot.model import UNKNOWN, Fact, Note, Step
from safemem.boot.ranges import Range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: What loads a crash kernel at boot: Fedora, RHEL and SUSE; SUSE's early one; Debian and Ubuntu.
KDUMP = ("kdump.service", "kdump-early.service", "kdump-tools.service")
#: Bytes; of the kernels that have larger ones, a multiple.
_PAGE = 4096
#: Bytes given back by one write, and by the time of one sign of progress. The kernel frees a range page by page: in one
#: write, a guard of terabytes would look like a hang.
PIECE = 256 << 20


def reserved_bytes(root: str) -> int:
    """Return the bytes reserved for a crash kernel or a guard; 0 if that cannot be read."""
    return _number(files.word(root, paths.CRASH_SIZE)) or 0


def may_be_reserved(root: str) -> bool:
    """Return False only if it can be read that nothing is reserved."""
    return files.word(root, paths.CRASH_SIZE) != "0"


def _number(text: str) -> int | None:
    """Return the number that `text` writes, if the kernel can have written it."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def forbidden(root: str) -> bool:
    """Return whether no crash kernel can be loaded in the rest of this boot: the limit can only be lowered."""
    return files.word(root, paths.LOAD_LIMIT) == "0"


def forbid(root: str) -> tuple[list[Note], list[str]]:
    """Forbid loading a crash kernel, which would be written into the guard, until the next boot.

    `kernel.kexec_load_limit_panic` (Linux 6.3) can only be lowered, and a kernel refuses even the 0 that it has
    already (kernel/kexec_core.c). An older kernel leaves kdump's units to be masked.

    Returns what could not be done, and the names that are to be masked instead.
    """
    failed = files.attempt(root, paths.LOAD_LIMIT, "0")
    if forbidden(root):
        return [], []
    if files.exists(root, paths.LOAD_LIMIT) is False:
        return [], list(KDUMP)
    why = failed or f"it reads `{files.word(root, paths.LOAD_LIMIT) or 'nothing'}` after it was written"
    text = f"{paths.LOAD_LIMIT} could not be set to 0, so a crash kernel could be loaded into the guard: {why}"
    return [Note("crash-kernel-allowed", text)], list(KDUMP)


def guard(root: str, asked: Range) -> tuple[Fact, Range | None]:
    """Return the state of the range that was asked for as a guard, and what of it is reserved now."""
    size = _number(files.word(root, paths.CRASH_SIZE))
    if size == 0:
        return Fact("void", paths.CRASH_SIZE, f"{asked} was asked for and is not reserved"), None
    known = iomem(root)
    found = known.named("Crash kernel")
    for area in found:
        # Given back from the end, a guard keeps its start.
        if area.start == asked.start and area.start < area.end <= asked.end:
            return Fact("full" if area == asked else "part", paths.IOMEM, f"{area} is reserved"), area
    if known.fault:
        return Fact(UNKNOWN, paths.IOMEM, known.fault), None
    if found:
        return Fact("void", paths.IOMEM, f"{asked} was asked for, but {found[0]} is reserved and is not ours"), None
    if size is None and files.exists(root, paths.CRASH_SIZE) is False:  # a kernel that cannot reserve any
        return Fact("void", paths.IOMEM, f"{asked} was asked for and is not reserved"), None
    why = "cannot be read" if size is None else f"says that {size} bytes are reserved"
    return Fact(UNKNOWN, paths.CRASH_SIZE, f"it {why}, and {paths.IOMEM} shows no such range"), None


def left(root: str, guard: Range | None) -> Range | None:
    """Return what is left of `guard` now: it is given back from its end."""
    size = reserved_bytes(root) if guard else 0
    return guard._replace(end=guard.start + size) if guard and size else None


def witness(root: str, arguments: dict[str, str], kho: Fact, offered: Fact) -> str:
    """Return how a guard that is not in force shows that the handover was accepted, or nothing if it does not.

    While an accepted handover is set up, the early allocator is in scratch areas only, and a `crashkernel=` outside
    fails (seen on 7.2 and 7.3). The same happens with `kho=off`; so KHO has to be on for certain.
    """
    text, asked = arguments.get(ARGUMENT), arguments.get("crashkernel")
    if not text or not asked or kho.value != "on" or offered.value != "yes":
        return ""
    if may_be_reserved(root):  # something else is, or this kernel never reserves
        return ""
    size, at, start = asked.partition("@")
    try:
        area = parse(text).range
        if not at or Range(memparse(start), memparse(start) + memparse(size)) != area:
            return ""
    except ValueError:
        return ""
    return f"a handover was offered, and the guard {area} was asked for and could not be reserved"


def give_back(root: str, step: Step, progress: Callable[[int], None]) -> list[Note]:
    """Give the step's range, which is the guard or its tail, back from its end; return what went wrong.

    `kexec_crash_size` holds bytes and can only shrink. `progress` gets the bytes of each piece.
    """
    failed = None
    size = _number(files.word(root, paths.CRASH_SIZE))
    # Cut off by a digit, it is no number of pages: what is to go could not be told from what is to stay.
    if size is None or size < step.size or size % _PAGE:
        text = f"the guard {Range(step.start, step.end)} could not be given back: {paths.CRASH_SIZE} cannot be read"
        return [Note("guard-kept", text)]
    target = max(0, size - step.size)
    while size > target and not failed:
        piece = min(PIECE, size - target)
        size -= piece
        failed = files.attempt(root, paths.CRASH_SIZE, str(size))
        progress(piece)
    now = files.word(root, paths.CRASH_SIZE)
    if now == str(target):
        return []
    why = failed or f"{paths.CRASH_SIZE} reads `{now}`"
    return [Note("guard-kept", f"the guard {Range(step.start, step.end)} could not be given back: {why}")]
