# SPDX-License-Identifier: MIT
"""The number the project is about: pages of a guest's memory before a handover that fails, and after.

`make pages` boots every row and writes docs/pages.md; test_pages.py boots some of them and asserts.
A row is one QEMU guest: a first kernel preserves a memfd with a known pattern through LUO and kexecs,
then a program takes all memory that the second kernel has free. Both counts are made from outside, in
the file that backs the guest's memory.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from safemem.boot.ranges import parse_range
from safemem.outgoing import layout
from tests.vm import harness, kit
from tests.vm.distro import version

OUT = harness.REPOSITORY / "docs/pages.md"


class Machine(NamedTuple):
    """A guest; sizes in MiB."""

    name: str
    boot: int
    nodes: int
    memfd: int
    bound: bool = False  #: to the node that `safemem layout` names; otherwise page by page over all nodes


MACHINES = (
    Machine("1 GiB", 1024, 1, 256),
    Machine("4 GiB", 4096, 1, 2560),
    Machine("8 GiB, two nodes", 8192, 2, 2048),
    Machine("8 GiB, two nodes, guests bound to the advised one", 8192, 2, 2048, True),
)
NEXT = {"rejects": ("old-kho", "current"), "has no KHO": ("current", "no-kho"), "accepts": ("current", "current")}
NOTHING, QUARANTINE, GUARD, BOTH = "nothing", "quarantine", "guard", "guard and quarantine"


class Row(NamedTuple):
    """What became of one guest's pages: (before, after) each."""

    machine: str
    next: str
    protection: str
    guard: tuple[int, int]  #: where `handover-args` puts the guard, with or without one
    rest: tuple[int, int]
    guarded_share: float  #: of the machine's boot memory
    held: bool  #: whether the guard came into force
    retrieved: int  #: pages back through LUO; only if accepted
    filled: int  #: MiB that the program got
    fate: str
    seconds: float


def advised(machine: Machine) -> layout.Layout:
    """Return what `safemem layout` says on that machine after a cold boot with nothing but KHO."""
    return _advised(machine.boot, machine.nodes)


@functools.cache
def _advised(boot: int, nodes: int) -> layout.Layout:
    script = "mount -t debugfs d /sys/kernel/debug\nmachine\n"
    name = f"layout-{boot}"
    guest = kit.guest(name, script, kit.policy_text(), boot_mib=boot, nodes=nodes, dimm_mib=0, timeout=600)
    result = harness.boot(guest)
    with tempfile.TemporaryDirectory() as folder:
        return layout.advise(kit.machine_root(result, Path(folder)))


def row(machine: Machine, next_kernel: str, protection: str) -> Row:
    """Boot one guest and count."""
    first, second = NEXT[next_kernel]
    quarantine = 'boot_memory = "offline"' if protection in (QUARANTINE, BOTH) else ""
    text = kit.policy_text("online-safe", extra=quarantine)
    script = harness.shell(
        "pages",
        MEMFD=machine.memfd,
        NODE=advised(machine).node if machine.bound else "",
        PROTECTION=protection,
        MORE="nokaslr" if second == "no-kho" else "",
        THEN="state" if protection == NOTHING else "decide",
        RETRIEVE="yes" if next_kernel == "accepts" else "",
        BOOT=machine.boot,
    )
    counts: list[tuple[int, int]] = []
    guard = ""
    with tempfile.TemporaryDirectory(prefix="safemem-pages-") as folder:
        memory = Path(folder)

        def count(report: dict[str, str]) -> None:
            nonlocal guard
            guard = report["arguments"].split()[1].partition("=")[2]
            ranges = [(parse_range(guard).start, parse_range(guard).end)]
            inside = harness.count_at(memory, machine.memfd, ranges, machine.nodes)
            # What was in scratch has been moved out when it was preserved; copies stay behind, and are nobody's.
            safe = report["arguments"].split()[2].partition("=")[2].partition(";")[0].split(",")
            edges = [0, *(edge for area in sorted(map(parse_range, [guard, *safe])) for edge in area), 1 << 62]
            rest = list(zip(edges[::2], edges[1::2], strict=True))
            counts.append((inside, harness.count_at(memory, machine.memfd, rest, machine.nodes)))

        name = f"pages-{machine.boot}-{second}-{protection}".replace(" ", "-")
        guest = kit.guest(
            name, script, text, kernel=first, next_kernel=second, boot_mib=machine.boot, nodes=machine.nodes, dimm_mib=0,
            cmdline=advised(machine).argument, memory=memory, checkpoint=count, timeout=900,
        )  # fmt: skip
        result = harness.boot(guest)
        if result.report.get("luo") != "preserved" or not counts:
            raise RuntimeError(f"nothing was handed over: {result.report}")
        count(result.report)
    (guard_before, rest_before), (guard_after, rest_after) = counts
    area = parse_range(guard)
    return Row(
        machine.name, next_kernel, protection, (guard_before, guard_after), (rest_before, rest_after),
        (area.end - area.start) / (machine.boot << 20), result.report.get("guard") == str(area.end - area.start),
        int(result.report.get("retrieved") or 0), int(result.report.get("filled") or 0), result.fate, result.seconds,
    )  # fmt: skip


def plan() -> list[tuple[Machine, str, str]]:
    """Return every row's arguments: what is lost first, then what is handed over with the same arguments."""
    lost = [
        (machine, name, protection)
        for machine in MACHINES
        for name in ("rejects", "has no KHO")
        for protection in (NOTHING, QUARANTINE, GUARD, BOTH)
        if not (machine.bound and protection in (NOTHING, QUARANTINE))
    ]
    return lost + [(machine, "accepts", GUARD) for machine in MACHINES]


def table(rows: list[Row], layouts: dict[str, str], release: str) -> str:
    """Return the page: what was measured, how, and the table."""
    lines = [
        "# What is left of guests' memory",
        "",
        f"Written by `make pages`. Linux {release} in QEMU (`-accel tcg`), {time.strftime('%Y-%m-%d', time.gmtime())}.",
        "Pages of 4 KiB of a memfd that was preserved through LUO, counted from outside the guest: before the kexec, and after",
        "a program in the next kernel has taken all the memory that was free. `in the guard` is the range that `handover-args`",
        "printed, in the rows without a guard too. `quarantine` takes pages away from a kernel that had them in use until",
        "then; only the guard holds from the first instruction.",
        "",
        "Boot loader's command line, from `safemem layout`: "
        + "; ".join(f"{name}: `{argument}`" for name, argument in layouts.items())
        + ".",
        "",
        "| guest | next kernel | safemem | guard covers | in the guard: before | after | elsewhere: before | after"
        " | intact | program got |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for item in rows:
        if item.next == "accepts":
            continue
        before, after = (item.guard[i] + item.rest[i] for i in (0, 1))
        covers = f"{item.guarded_share:.0%}" if item.protection in (GUARD, BOTH) else "none"
        ended = "" if item.fate == "poweroff" else f" ({item.fate})"
        lines.append(
            f"| {item.machine} | {item.next} | {item.protection} | {covers} | {item.guard[0]:,} | {item.guard[1]:,}"
            f" | {item.rest[0]:,} | {item.rest[1]:,} | {after * 1000 // before / 10}% | {item.filled} MiB{ended} |"
        )
    lines += [
        "",
        "What is lost in spite of both was in use before safemem could act, or lies in blocks that hold the kernel itself or",
        "what it cannot move; the account in `safemem status` names each range and why. A guard is in one piece, on one node:",
        "it cannot cross the hole below 4 GiB, nor the top of a node, where that node's first memory is taken from before",
        "any guard. So what must not be lost is bound to the node that `safemem layout` names, as in the last rows.",
        "Hot-added memory that is held loses nothing (tests/vm/test_memory.py); LUO itself moves what it preserves out of it.",
        "",
        "Handed over with the same arguments to a kernel that accepts: the guard fails, as it should, and every page comes back.",
        "",
        "| guest | pages preserved | retrieved through /dev/liveupdate |",
        "| --- | ---: | ---: |",
    ]
    for item in rows:
        if item.next == "accepts":
            lines.append(
                f"| {item.machine} | {sum(part[0] for part in (item.guard, item.rest)):,} | {item.retrieved:,} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Boot everything; the page is written anew after each row, so that a run cut short leaves what it has."""
    rows: list[Row] = []
    release = version(harness.kernel("current"))
    for machine, name, protection in plan():
        rows.append(row(machine, name, protection))
        print(rows[-1], flush=True)
        layouts = {item.name: advised(item).argument for item in MACHINES if item.name in {r.machine for r in rows}}
        OUT.write_text(table(rows, layouts, release))
    print(OUT.read_text())
    return 0 if all(sound(item) for item in rows) else 1


def sound(item: Row) -> bool:
    """Return whether the row shows what safemem promises: every page in the guard, or every page retrieved."""
    if item.next == "accepts":
        return not item.held and item.retrieved == item.guard[0] + item.rest[0]
    return item.protection not in (GUARD, BOTH) or (item.held and item.guard[0] == item.guard[1] > 0)


if __name__ == "__main__":
    sys.exit(main())
