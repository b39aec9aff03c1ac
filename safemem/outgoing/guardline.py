# SPDX-License-Identifier: MIT
"""Whether the guard on the next command line is one, on this machine; and whether its scratch areas hold the next kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator

from safemem.boot import asked, files, handover_args, pagewords
from safemem.boot.cmdline import argument, arguments, boolean, last, memparse, split
from safemem.boot.ground import CannotSay, Ground, read_ground
from safemem.boot.guard import best_guards, gaps
from safemem.boot.model import UNKNOWN
from safemem.boot.ranges import Range, size_text, total, without
from safemem.outgoing import layout, nextkernel
from safemem.outgoing.findings import Finding, finding
from safemem.outgoing.kernel import Kernel
from safemem.outgoing.nextline import Line
from safemem.outgoing.running import Running

_WHERE = "the next command line"
#: What is reserved before the guard, and may lie where it is to be (setup_arch on x86; `hugetlb_cma=` before Linux 7.3).
_BEFORE = ("cma", "hugetlb_cma")
#: What has the kernel write over memory at boot.
_WRITES = ("init_on_free", "page_poison")


def ground(running: Running, kernel: Kernel, initrd: int) -> tuple[Ground | None, str]:
    """Return the memory that a guard has to fit into, or why that cannot be told; `initrd` is in bytes."""
    if not running.root:
        return None, "a capture does not tell where this kernel's scratch areas are"
    if not running.scratch:
        return None, "the scratch areas cannot be read"
    try:
        found = read_ground(running.root, running.scratch, "", "", nextkernel.of(kernel))[1]
        return found._replace(kernel=image_size(kernel.path) or found.kernel, initrd=initrd), ""
    except CannotSay as error:
        return None, str(error)


def image_size(path: str) -> int:
    """Return the bytes that the kernel in `path` takes in memory, at least; 0 if the file cannot be read.

    A bzImage and an arm64 Image say it (Documentation/arch/x86/boot.rst, arch/arm64/booting.rst); of another, its file's size.
    """
    try:
        size, head = os.path.getsize(path), files.read("", path, 4096)
    except (OSError, ValueError):
        return 0
    if head[0x202:0x206] == b"HdrS":
        return max(int.from_bytes(head[0x260:0x264], "little"), size)
    if head[56:60] == b"ARM\x64":
        return max(int.from_bytes(head[16:24], "little"), size)
    return size


def scratch(running: Running, kernel: Kernel, initrd: int, found: Ground | None) -> Iterator[Finding]:
    """Yield whether the scratch areas hold what `kexec -s` puts into them, and what a kernel that accepts needs beside it.

    Segments of an image go into scratch, each into one area (kernel/liveupdate/kexec_handover.c, kho_locate_mem_hole).
    """
    if running.outgoing.kho.value == "no":
        return
    if not running.root:
        yield finding("scratch-untold", "a capture does not tell them")
        return
    if not running.scratch:
        # What does not fit `kexec -s` refuses to load. A kernel before 7.3 may still starve once it has started.
        severity = "warning" if nextkernel.of(kernel).spares_scratch else ""
        yield finding("scratch-untold", f"KHO is {running.snapshot.facts['kho'].value}", severity=severity)
        return
    have, largest = total(running.scratch), max(area.size for area in running.scratch)
    image = image_size(kernel.path)
    seen = ", ".join(map(str, running.scratch))
    if image + initrd > have or max(image, initrd) > largest:
        yield finding("scratch-small", seen, need=size_text(image + initrd), have=size_text(have))
    # Since Linux 7.3 a kernel that accepts has each GiB without preserved pages as well.
    elif found is not None and not found.spares_scratch and layout.needed(found) > have:
        yield finding("scratch-tight", seen, need=size_text(layout.needed(found)), have=size_text(have))


def check(running: Running, kernel: Kernel, line: Line, found: Ground | None, why: str) -> Iterator[Finding]:
    """Yield what is wrong with the guard on the next command line; `why` is for what reason there is no `found`."""
    if line.text is None:
        return
    told = line.get(asked.ARGUMENT)
    if told is None:
        if running.outgoing.kho.value != "no":
            yield finding("no-guard", f"{_WHERE}: no {asked.ARGUMENT}=")
        return
    try:
        wanted = asked.parse(told)
    except ValueError as error:
        yield finding("guard-bad", f"{_WHERE}: {asked.ARGUMENT}={told}", why=error)
        return
    missing = _missing(line.text, wanted)
    if missing:
        yield finding("guard-not-asked", f"{_WHERE}: {asked.ARGUMENT}={told}", missing=missing)
    yield from _defeated(line.text)
    if found is None:
        severity = "note" if running.at_stake.value == "no" else UNKNOWN
        yield finding("guard-untold", f"{asked.ARGUMENT}={told}", severity=severity, why=why)
        return
    free = tuple(gaps(found))
    if without((wanted.range,), free):
        yield finding("guard-stale", f"{wanted.range}; free are {', '.join(map(str, free)) or 'none'}")
        return
    try:
        best = best_guards(found)
    except CannotSay as error:
        yield finding("guard-untold", f"{asked.ARGUMENT}={told}", why=error)
        return
    if (best.range, best.asked if best.page else ()) != (wanted.range, wanted.pages):
        yield finding("guard-other", f"{wanted.range}, and {best.range} would be computed now")
    for note in handover_args.small_pages(pagewords.read(split(line.text)[0]).pools, found, best):
        yield finding("guard-pages", _WHERE, note=note)


def _missing(text: str, wanted: asked.Asked) -> str:
    """Return which argument that reserves the guard is not there as it is told; "" if all are."""
    size, at, start = (argument(text, "crashkernel") or "").partition("@")
    try:
        area = Range(memparse(start), memparse(start) + memparse(size)) if at else None
    except ValueError:
        area = None
    if area != wanted.range:
        return f"crashkernel={wanted.range.size}@{wanted.range.start:#x}"
    if wanted.page:
        pool = pagewords.read(split(text)[0]).pools.get(wanted.page)
        if pool is None or pool.nodes != wanted.pages:
            return f"hugepages={asked.listed(wanted.pages)}"
    return ""


def _defeated(text: str) -> Iterator[Finding]:
    named = last(arguments(text))
    for name in _BEFORE:
        if named.get(name, "0") not in ("0", ""):
            yield finding("guard-defeated", _WHERE, word=f"{name}={named[name]}")
    for name in _WRITES:
        if boolean(named.get(name)):
            yield finding("guard-overwritten", _WHERE, word=f"{name}={named[name]}")
    yield finding("no-kdump", f"{_WHERE}: crashkernel={named.get('crashkernel', '')}")
