# SPDX-License-Identifier: MIT
"""The number the project is about: pages of a guest's memory before a handover that fails, and after.

`make pages` boots every row and writes docs/pages.md; test_pages.py boots some of them and asserts.
A row is one QEMU guest: a first kernel preserves a memfd with a known pattern through LUO and kexecs with what
`handover-args` printed, then a program takes all memory that the second kernel has free. Both are looked at from outside,
page by page, in the files that back the guest's memory: a page is intact if the same page of the pattern stands in the
same place.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import NamedTuple

from safemem.boot import asked
from safemem.boot.ranges import Range, parse_range
from safemem.host import reader
from safemem.outgoing import layout
from tests.vm import harness, kit
from tests.vm.distro import version
from tests.vm.harness import GIB

OUT = harness.REPOSITORY / "docs/pages.md"


class Machine(NamedTuple):
    """A guest; sizes in MiB."""

    name: str
    boot: int
    nodes: tuple[int, ...]  #: what each has of `boot`; of one node, nothing
    memfd: int


MACHINES = (
    Machine("1 GiB", GIB, (), 256),
    Machine("4 GiB", 4 * GIB, (), 2560),
    Machine("6 GiB", 6 * GIB, (), 4608),
    Machine("8 GiB, two nodes", 8 * GIB, (4 * GIB, 4 * GIB), 5 * GIB),
    Machine("8 GiB, nodes of 2 and 6 GiB", 8 * GIB, (2 * GIB, 6 * GIB), 5 * GIB),
    Machine("16 GiB, four nodes", 16 * GIB, (4 * GIB,) * 4, 10 * GIB),
)
#: What the next kernel does -> the kernel that hands over, the next one.
NEXT = {"rejects": ("old-kho", "current"), "has no KHO": ("current", "no-kho"), "accepts": ("current", "current")}
#: Those of the release before, which `make kernels` builds where Debian still has its source.
OLDER = {name: (f"7.2-{first}", f"7.2-{second}") for name, (first, second) in NEXT.items()}
NOTHING, QUARANTINE, CRASH = "nothing", "quarantine", "crash range alone"
GUARD, BOTH = "guards", "guards and quarantine"
GUARDED = (CRASH, GUARD, BOTH)
PAGE, GIGANTIC = 4096, 1 << 30
#: A kernel without KHO moves its image without knowing of the guard.
MORE = {"has no KHO": "nokaslr"}


class Part(NamedTuple):
    """Pages of the pattern in some of a guest's memory."""

    before: int
    after: int  #: of them, intact in their place


class Row(NamedTuple):
    """What became of one guest's pages."""

    machine: str
    next: str
    release: str  #: of both kernels
    protection: str
    crash: Part  #: where `handover-args` puts the crash range, with or without one
    gigantic: Part  #: where the next kernel put gigantic pages, but for the first 4 KiB of each
    rest: Part
    crash_share: float  #: of the machine's boot memory: the crash range that came into force
    gigantic_share: float  #: the gigantic pages that did
    held: bool  #: whether the crash range came into force
    asked: int  #: gigantic pages asked for, on all nodes
    pools: str  #: at the end: `NODE:GIGANTIC PAGES` each
    preserved: int  #: pages through LUO
    retrieved: int  #: of them those that are back; only if accepted
    filled: int  #: MiB that the program got
    fate: str
    seconds: float
    explained: str = ""  #: what `handover-args --explain` said


def advised(machine: Machine) -> layout.Layout:
    """Return what `safemem layout` says on that machine after a cold boot with nothing but KHO."""
    return _advised(machine.boot, machine.nodes)


@functools.cache
def _advised(boot: int, nodes: tuple[int, ...]) -> layout.Layout:
    script = "mount -t debugfs d /sys/kernel/debug\n/usr/lib/safemem/capture >/tmp/capture\nreport_file capture /tmp/capture\n"
    name = f"layout-{boot}-{len(nodes)}"
    guest = kit.guest(name, script, kit.policy_text(), boot_mib=boot, nodes=nodes, dimm_mib=0, timeout=600)
    return layout.advise_on(reader.snapshot_from_text(harness.boot(guest).report["capture"], "capture"))


def row(machine: Machine, next_kernel: str, protection: str, kernels: dict[str, tuple[str, str]] = NEXT) -> Row:
    """Boot one guest and look at its pages."""
    first, second = kernels[next_kernel]
    quarantine = 'boot_memory = "offline"' if protection in (QUARANTINE, BOTH) else ""
    text = kit.policy_text("online-safe", extra=quarantine)
    script = harness.shell(
        "pages",
        MEMFD=machine.memfd,
        PROTECTION=protection,
        MORE=MORE.get(next_kernel, ""),
        THEN="state" if protection == NOTHING else "decide",
        RETRIEVE="yes" if next_kernel == "accepts" else "",
        BOOT=machine.boot,
    )
    before: array[int] = array("I")
    with tempfile.TemporaryDirectory(prefix="safemem-pages-") as folder:
        memory = Path(folder)

        def look(_: dict[str, str]) -> None:
            before[:] = harness.boot_places(memory, machine.memfd, len(machine.nodes) or 1)

        name = f"pages-{machine.boot}-{len(machine.nodes)}-{second}-{protection}".replace(" ", "-")
        guest = kit.guest(
            name, script, text, files=kit.gigantic(), kernel=first, next_kernel=second, boot_mib=machine.boot,
            nodes=machine.nodes, dimm_mib=0, cmdline=advised(machine).argument, memory=memory, checkpoint=look, timeout=1200,
        )  # fmt: skip
        result = harness.boot(guest)
        report = result.report
        if report.get("luo") != "preserved" or not before:
            raise RuntimeError(f"nothing was handed over: {report}")
        after = harness.boot_places(memory, machine.memfd, len(machine.nodes) or 1)
    wanted = asked.parse(kit.argument(report["arguments"], asked.ARGUMENT))
    crash = [wanted.range]
    gigantic = gigantic_areas(report)
    # What was in scratch has been moved out when it was preserved; copies stay behind, and are nobody's.
    safe = kit.argument(report["arguments"], "safemem.safe").partition(";")[0].split(",")
    scratch = [parse_range(area) for area in safe]
    held = report.get("guard") == str(crash[0].size)
    boot = machine.boot << 20
    parts = [part_of(before, after, areas) for areas in (crash, gigantic, scratch)]
    whole = part_of(before, after, [Range(0, 1 << 62)])
    rest = Part(*(all_ - sum(found) for all_, *found in zip(whole, *parts, strict=True)))
    return Row(
        machine.name, next_kernel, version(harness.kernel(second)), protection, parts[0], parts[1], rest,
        crash[0].size / boot if held else 0, len(gigantic) * GIGANTIC / boot, held,
        sum(number for _, number in wanted.pages), report.get("nr", "").strip(),
        machine.memfd * 256, int(report.get("retrieved") or 0), int(report.get("filled") or 0),
        result.fate, result.seconds, report.get("explained", ""),
    )  # fmt: skip


def gigantic_areas(report: dict[str, str]) -> list[Range]:
    """Return what no kernel writes of the gigantic pages that the guest reported: all but the first 4 KiB of each."""
    starts = [int(word, 16) for word in report.get("gigantic", "").split()]
    return [Range(start + PAGE, start + GIGANTIC) for start in starts]


def part_of(before: array[int], after: array[int], areas: list[Range]) -> Part:
    """Return how many pages of the pattern there were in these areas, and how many of them are where they were."""
    there = intact = 0
    for part in harness.pages_at(len(before) * PAGE, [(area.start, area.end) for area in areas]):
        then, now = before[part], after[part]
        there += len(then) - then.count(0)
        intact += sum(number == found for number, found in zip(then, now, strict=True) if number)
    return Part(there, intact)


def plan() -> list[tuple[Machine, str, str, dict[str, tuple[str, str]]]]:
    """Return every row's arguments: what is lost first, then what is handed over with the same arguments."""
    # In a machine too small for gigantic pages, the guards are the crash range.
    small, compared = MACHINES[:2], MACHINES[3]
    lost: list[tuple[Machine, str, str, dict[str, tuple[str, str]]]] = []
    for machine in MACHINES:
        rejects: tuple[str, ...] = (GUARD, BOTH)
        if machine in (*small, compared):
            rejects = (NOTHING, QUARANTINE, *((CRASH,) if machine == compared else ()), GUARD, BOTH)
        lost += [(machine, "rejects", protection, NEXT) for protection in rejects]
        lost += [(machine, "has no KHO", protection, NEXT) for protection in rejects if protection in (NOTHING, GUARD)]
    accepted = [(machine, "accepts", GUARD, NEXT) for machine in MACHINES]
    older = [(machine, name, GUARD, OLDER) for name in ("rejects", "has no KHO", "accepts") for machine in MACHINES[2:]]
    return lost + accepted + (older if older_kernels() else [])


def older_kernels() -> bool:
    """Return whether there are kernels of the release before."""
    try:
        return all(harness.kernel(name).is_file() for pair in OLDER.values() for name in pair)
    except FileNotFoundError:
        return False


def table(rows: list[Row], layouts: dict[str, str]) -> str:
    """Return the page: what was measured, how, and the table."""
    lost, kept = ([item for item in rows if (item.next == "accepts") == accepts] for accepts in (False, True))
    releases = " and ".join(dict.fromkeys(item.release for item in rows))
    lines = [
        "# What is left of guests' memory",
        "",
        f"Written by `make pages`. Linux {releases} in QEMU (`-accel tcg`), {time.strftime('%Y-%m-%d', time.gmtime())}.",
        "Pages of 4 KiB of a memfd that was preserved through LUO, looked at from outside the guest: before the kexec, and",
        "after a program in the next kernel has taken all the memory that was free. A page is intact if what it held is",
        "where it was. `crash range` is the range that `handover-args` printed, in the rows without it too; `gigantic",
        "pages` is where the next kernel put them, but for the first 4 KiB of each, in which it keeps its list. Everything on",
        "the next command line is what `handover-args` printed. `quarantine` takes pages away from a kernel that had them in",
        "use until then; only guards hold from the first instruction. `crash range alone` is the same range without the",
        "pages: by itself it would be laid out to cover more, of one node.",
        "",
        "Boot loader's command line, from `safemem layout`: "
        + "; ".join(f"{name}: `{argument}`" for name, argument in layouts.items())
        + ".",
        "",
        "| guest | Linux | next kernel | safemem | guarded: crash range | gigantic pages | in the crash range: before | after"
        " | in gigantic pages: before | after | elsewhere: before | after | intact | program got |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for item in lost:
        parts = (item.crash, item.gigantic, item.rest)
        before, after = sum(part.before for part in parts), sum(part.after for part in parts)
        ended = "" if item.fate == "poweroff" else f" ({item.fate})"
        lines.append(
            f"| {item.machine} | {item.release} | {item.next} | {item.protection}"
            f" | {item.crash_share:.0%} | {item.gigantic_share:.0%}"
            + "".join(f" | {part.before:,} | {part.after:,}" for part in parts)
            + f" | {after * 1000 // before / 10}% | {item.filled} MiB{ended} |"
        )
    if rows and not any(item.release != rows[0].release for item in rows):
        lines += ["", "Rows of the release before are left out: its kernels are not built here (`make kernels`)."]
    for item in lost:
        if (item.next, item.protection, item.release) == ("rejects", GUARD, rows[0].release):
            lines += [
                "",
                f"`handover-args --explain` on the guest of {item.machine}:",
                "",
                "```text",
                item.explained.rstrip(),
                "```",
            ]
    lines += [
        "",
        "What is lost in spite of everything was in use before safemem could act, or lies in blocks that hold the kernel",
        "itself or what it cannot move; the account in `safemem status` names each range and why. The crash range is in one",
        "piece, on one node: it cannot cross the hole below 4 GiB, nor the top of a node, where that node's first memory is",
        "taken from before any guard. Gigantic pages are whole, aligned GiB on every node; the GiB with the kernel, the",
        "hole below 4 GiB, scratch or the top of a node in it is none. On guests as small as these that is a large share.",
        "Hot-added memory that is held loses nothing (tests/vm/test_memory.py); LUO itself moves what it preserves out of it.",
        "",
        "Handed over with the same arguments to a kernel that accepts: the crash range fails, as it should, gigantic pages",
        "are few or none and are given back, and every page comes back.",
        "",
        "| guest | Linux | pages preserved | retrieved through /dev/liveupdate | gigantic pages left, by node |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for item in kept:
        lines.append(
            f"| {item.machine} | {item.release} | {item.preserved:,} | {item.retrieved:,} | {item.pools or 'none'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Boot everything; the page is written anew after each row, so that a run cut short leaves what it has."""
    rows: list[Row] = []
    for machine, name, protection, kernels in plan():
        rows.append(row(machine, name, protection, kernels))
        print(rows[-1], flush=True)
        layouts = {item.name: advised(item).argument for item in MACHINES if item.name in {r.machine for r in rows}}
        OUT.write_text(table(rows, layouts))
    print(OUT.read_text())
    return 0 if all(sound(item) for item in rows) else 1


def sound(item: Row) -> bool:
    """Return whether the row shows what safemem promises: every guarded page intact, or every page retrieved."""
    if item.next == "accepts":
        given_back = all(word.endswith(":0") for word in item.pools.split())
        return not item.held and item.retrieved == item.preserved and given_back
    if item.protection not in GUARDED:
        return True
    number = sum(int(word.partition(":")[2]) for word in item.pools.split())
    got = number == (item.asked if item.protection != CRASH else 0)
    return (
        got and item.held and item.crash.before == item.crash.after > 0 and item.gigantic.before == item.gigantic.after
    )


if __name__ == "__main__":
    sys.exit(main())
