# SPDX-License-Identifier: MIT
"""The arithmetic of both guards against a model of the kernel's early allocator, and machines too large to boot here."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from safemem.boot import asked, cmdline, ground, guard, handover_args, memory, pagewords, paths
from safemem.boot.ground import Build, CannotSay, Ground
from safemem.boot.guard import Gigantic, Guards
from safemem.boot.model import Blocks, Fact
from safemem.boot.pagewords import Pool
from safemem.boot.ranges import Range, common, merge_ranges, total
from safemem.cli import main
from safemem.host import reader
from safemem.outgoing import layout, nextkernel
from tests import kit
from tests.fakes import machine
from tests.hosts import capture, host
from tests.kit import handover_args as invoke
from tests.needs import lacking

MIB, GIB = 1 << 20, 1 << 30


def area(start: int, end: int) -> Range:
    """Return a range given in MiB."""
    return Range(start * MIB, end * MIB)


# ---- a model of the kernel


class EarlyAllocator:
    """memblock up to the gigantic pages, as `memblock=debug` shows it on 7.3.4: first fit from the top, on the exact node."""

    def __init__(self, free: tuple[Range, ...], nodes: tuple[tuple[Range, ...], ...]) -> None:
        self.free, self.nodes = [(part.start, part.end) for part in free], nodes

    def reserve(self, low: int, high: int) -> None:
        """Take `[low, high)` out of what is free."""
        kept = [(a, min(b, low)) for a, b in self.free] + [(max(a, high), b) for a, b in self.free]
        self.free = sorted((a, b) for a, b in kept if a < b)

    def top_down(self, size: int, align: int, within: tuple[Range, ...]) -> int:
        """Take the highest free piece of that size and return where it is, -1 if there is none."""
        best = -1
        for a, b in self.free:
            for node in within:
                at = (min(b, node.end) - size) // align * align
                if at >= max(a, node.start):
                    best = max(best, at)
        if best >= 0:
            self.reserve(best, best + size)
        return best

    def boots(self) -> None:
        """Take the first page tables from the top of memory, and NODE_DATA from the top of each node."""
        everywhere = (Range(MIB, 1 << 60),)
        self.top_down(2 * MIB, 2 * MIB, everywhere)
        for node in self.nodes:
            self.top_down(256 << 10, 64, node)
        self.top_down(4 * MIB, 4096, everywhere)

    def range(self, wanted: Range) -> bool:
        """Reserve a crashkernel= range, if all of it is free."""
        if not any(a <= wanted.start and wanted.end <= b for a, b in self.free):
            return False
        self.reserve(wanted.start, wanted.end)
        return True

    def pages(self, size: int, number: int, node: int) -> list[int]:
        """Take as many gigantic pages of the node at `node` as there are, at most `number`, and return where they are."""
        found: list[int] = []
        while len(found) < number and (at := self.top_down(size, size, self.nodes[node])) >= 0:
            found.append(at)
        return found


def rejects(machine: Ground, guards: Guards, image: Range | None) -> tuple[bool, list[list[int]]]:
    """Return whether a rejecting kernel with its image there gets the range, and which pages it takes on each node."""
    kernel = EarlyAllocator(machine.ram, machine.nodes)
    kernel.reserve(0, MIB)
    if image:
        kernel.reserve(image.start, image.end)
    kernel.boots()
    held = kernel.range(guards.range) if guards.range else True
    return held, [kernel.pages(machine.page, item.number, index) for index, item in enumerate(guards.pages)]


@st.composite
def machines(draw: st.DrawFn) -> Ground:
    """Return any machine with pages of 1 GiB: memory with holes, on up to three nodes, with scratch areas anywhere."""
    edges = sorted(draw(st.lists(st.integers(0, 30000), min_size=2, max_size=10, unique=True)))
    ram = tuple(area(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False))
    holes = sorted(draw(st.lists(st.integers(0, 7500), min_size=2, max_size=6, unique=True)))
    scratch = tuple(area(4 * a, 4 * b) for a, b in zip(holes[::2], holes[1::2], strict=False))
    cuts = [0, *sorted(draw(st.lists(st.integers(1, 240), max_size=3, unique=True))), 500]
    spans = [area(128 * a, 128 * b) for a, b in zip(cuts, cuts[1:], strict=False)]
    count = draw(st.integers(1, 3))
    nodes = tuple(merge_ranges(node) for index in range(count) if (node := tuple(spans[index::count])))
    own = draw(st.dictionaries(st.integers(0, len(nodes) - 1), st.integers(1, 3), max_size=2))
    return Ground(
        ram, scratch, nodes, draw(st.integers(0, 64)) * MIB, draw(st.integers(0, 64)) * MIB, page=GIB,
        own=tuple(sorted(own.items())) if draw(st.booleans()) else (), spares_scratch=draw(st.booleans()),
    )  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(machines(), st.randoms(use_true_random=False))
@example(Ground((area(0, 1240),), (area(1024, 1028),), ((area(0, 64000),),), 0, 0, page=GIB), random.Random(0))
def test_what_is_foretold_comes_true(machine: Ground, dice: random.Random) -> None:
    """Wherever in scratch its image lies, a rejecting kernel reserves all of both guards, and has room to run beside them."""
    try:
        guards = guard.best_guards(machine)
    except CannotSay:
        return
    whole = total(machine.ram)
    for _ in range(3):
        image = None
        if machine.scratch and dice.random() < 0.8:
            inside = dice.choice(machine.scratch)
            start = dice.randrange(inside.start, inside.end, 2 * MIB)
            image = Range(start, min(start + 96 * MIB, inside.end))
        held, taken = rejects(machine, guards, image)
        assert held
        for index, item in enumerate(guards.pages):
            pages = merge_ranges(tuple(Range(at, at + GIB) for at in taken[index]))
            assert common(item.ranges, pages) == item.ranges
        if not machine.own:
            left = whole - guards.range.size - GIB * sum(map(len, taken))
            assert left >= ground.room(machine)
            low = total(common(machine.ram, (Range(0, 4 * GIB),)))
            if machine.ram[-1].end > 4 * GIB and low > 128 * MIB:
                below = [at for found in taken for at in found if at < 4 * GIB]
                ranged = total(common((guards.range,), (Range(0, 4 * GIB),)))
                assert low - ranged - GIB * len(below) >= 128 * MIB


@settings(deadline=None, max_examples=300)
@given(machines())
def test_both_guards_are_apart(machine: Ground) -> None:
    """They overlap neither each other nor scratch; pages are aligned, of one node each, and the operator's are there."""
    try:
        guards = guard.best_guards(machine)
    except CannotSay:
        return
    parts = [guards.range, *(part for item in guards.pages for part in item.ranges)]
    assert total(guards.ranges) == total(parts) == guards.size
    assert common(guards.ranges, machine.scratch) == ()
    assert common(guards.ranges, machine.ram) == guards.ranges
    for index, item in enumerate(guards.pages):
        assert all(part.start % GIB == part.end % GIB == 0 for part in item.ranges)
        assert common(item.ranges, machine.nodes[index]) == item.ranges
        assert item.number >= item.own == dict(machine.own).get(index, 0)
        assert total(item.ranges) <= item.number * GIB
    if guards.range:
        assert sum(common((guards.range,), node) == (guards.range,) for node in machine.nodes) == 1


@settings(deadline=None, max_examples=300)
@given(machines())
def test_an_old_kernel_that_accepts_keeps_its_scratch(machine: Ground) -> None:
    """Before 7.3 it has nothing but scratch, and takes from it whatever whole page it is told to: none but the operator's."""
    try:
        guards = guard.best_guards(machine._replace(spares_scratch=False))
    except CannotSay:
        return
    kernel = EarlyAllocator(machine.scratch, machine.nodes)
    kernel.reserve(0, MIB)
    assert not guards.range or not kernel.range(guards.range)
    for index, item in enumerate(guards.pages):
        assert len(kernel.pages(GIB, item.number, index)) <= item.own


@settings(deadline=None, max_examples=150)
@given(machines())
def test_no_better_pair_is_missed(machine: Ground) -> None:
    """Of all numbers of pages beside all places of the range, none guards more than a page beyond what was found."""
    machine = machine._replace(own=(), spares_scratch=True)
    budget = total(machine.ram) - ground.room(machine)
    low = total(common(machine.ram, (Range(0, 4 * GIB),))) - 128 * MIB
    low = max(0, low) if machine.ram[-1].end > 4 * GIB else 1 << 60
    best = 0
    for gap in guard.gaps(machine):
        start, end = max(-(-gap.start // (16 * MIB)) * 16 * MIB, 16 * MIB), gap.end // (2 * MIB) * 2 * MIB
        if end <= start:
            continue
        most = Range(start, end)
        fits = [guard._pages_of(machine, node, most) for node in machine.nodes]
        for numbers in itertools.product(*(range(len(node.starts) + 1) for node in fits)):
            taken = [at for node, number in zip(fits, numbers, strict=True) for at in node.starts[:number]]
            below = GIB * sum(at < 4 * GIB for at in taken)
            if GIB * len(taken) > budget or below > low:
                continue
            size = min(most.size, budget - GIB * len(taken))
            if most.start < 4 * GIB:
                size = min(size, low - below)
            if size < 2 * MIB:  # there is always a range
                continue
            sure = sum(at in node.certain for node in fits for at in node.starts if at in taken)
            best = max(best, size // (2 * MIB) * 2 * MIB + GIB * sure)
    try:
        found = guard.best_guards(machine).size
    except CannotSay:
        found = 0
    assert found >= best - (2 * MIB if budget > 0 else best)


# ---- machines


HOSTS = {
    "2 nodes of 512 GiB": host(512, 512),
    "4 nodes of 1 TiB": host(1024, 1024, 1024, 1024),
    "8 nodes of 256 GiB": host(*[256] * 8),
    "4 nodes of 1 TiB with holes of 3 TiB": host(1024, 1024, 1024, 1024, hole=3072),
    "nodes of 768 and 256 GiB": host(768, 256),
    "nodes of 256, 1024, 64 and 512 GiB": host(256, 1024, 64, 512),
}


@pytest.mark.parametrize("name", HOSTS)
def test_large_hosts(name: str, tmp_path: Path) -> None:
    """With the layout's own scratch the guards cover at least 97 %, and what is printed adds up; it takes less than a second."""
    snapshot = HOSTS[name]
    (tmp_path / "capture").write_text(reader.capture_text(snapshot))
    start = time.process_time()
    result = CliRunner().invoke(main, ["layout", "--state", str(tmp_path / "capture"), "--format", "json"])
    seconds = time.process_time() - start
    document = json.loads(result.stdout)

    assert (result.exit_code, document["notes"]) == (0, [])
    assert seconds < 1
    assert document["after"] >= 0.97 * document["memory"]
    assert document["map"] == document["memory"] // 64
    text = CliRunner().invoke(main, ["layout", "--state", str(tmp_path / "capture")])
    assert text.stdout == document["argument"] + "\n"
    assert f"{document['after'] / document['memory']:.1%}" in text.stderr and "at least" in text.stderr
    assert "numactl" not in text.stderr

    machine = ground.ground(snapshot, ())
    low, rest = (int(part.rstrip("M")) * MIB for part in document["argument"].partition("=")[2].split(",")[:2])
    scratch = layout._areas(machine, low, rest, False)
    assert scratch and total(scratch) == document["scratch"] >= layout.needed(machine) >= document["map"] * 9 // 8
    machine = ground.ground(snapshot, scratch)
    start = time.process_time()
    advice = handover_args.advise_on(snapshot, machine)
    lines = handover_args.explained(advice)
    assert time.process_time() - start < 1
    assert advice.guarded == document["after"]
    assert advice.guarded + advice.safe + advice.open == advice.memory
    assert advice.memory - advice.guarded >= advice.room >= document["map"]
    held, taken = rejects(machine, advice.guards, Range(scratch[-1].start, scratch[-1].start + 96 * MIB))
    assert held and [len(pages) for pages in taken] == [item.number for item in advice.guards.pages]
    # The global area is on the last node, and so is the range; every other node is whole pages.
    assert advice.guards.range and common((advice.guards.range,), machine.nodes[-1]) == (advice.guards.range,)
    assert [item.number > 0 for item in advice.guards.pages] == [True] * (len(machine.nodes) - 1) + [False]
    assert any(
        line.startswith("open") and "which a kernel before Linux 7.3 that accepts may take" in line for line in lines
    )
    assert advice.notes[-2].startswith(
        "if the next kernel is Linux 7.3 or later, `safemem handover-args --kernel IMAGE`"
    )
    assert not any("safemem layout" in note for note in advice.notes)  # its sizes are these
    assert sum(line.startswith("pages") for line in lines) == len(machine.nodes) - 1
    for item in advice.guards.pages[1:-1]:  # nothing but its top, which the kernel needs, and what no page fits into
        assert total(machine.nodes[item.node]) - total(item.ranges) < 2 * GIB


def test_a_kernel_that_spares_scratch_gets_more() -> None:
    """One that takes no pages from scratch may have some above it as well."""
    snapshot = HOSTS["2 nodes of 512 GiB"]
    scratch = layout._areas(ground.ground(snapshot, ()), 128 * MIB, 18 * GIB, False)
    assert scratch
    careful, sure = (
        guard.best_guards(ground.ground(snapshot, scratch, built=Build(spares_scratch=spares)))
        for spares in (None, True)
    )

    assert careful.pages[1].number == 0 and careful.pages[1].why_not
    assert sure.pages[1].number == 7 and not sure.pages[1].why_not
    assert sure.size > careful.size + 6 * GIB


def test_nodes_have_their_own_numbers() -> None:
    """They need not be without gaps; a node whose memory was all hot-added has none at the next boot."""
    snapshot = host(64, 64)
    blocks = tuple(run._replace(node=run.node * 4) for run in snapshot.blocks)
    added = Blocks(1 << 20, (1 << 20) + 63, "online", 6)
    snapshot = snapshot._replace(blocks=(*blocks, added))
    machine = ground.ground(snapshot, ())

    assert machine.numbers == (0, 4)
    assert [node for node, _ in guard.best_guards(machine).asked] in ([0], [4])
    facts = {**snapshot.facts, "numa_nodes": Fact(1, "test")}
    alone = ground.ground(host(64)._replace(facts=facts, blocks=()), ())
    assert alone.numbers == (0,) and alone.nodes == (alone.ram,)


def guest(*nodes: int) -> Ground:
    """Return what QEMU's pc machine gives: 3 GiB below 4 GiB, the rest above, split over nodes of so many MiB."""
    edges = [0, *itertools.accumulate(nodes)]

    def place(span: tuple[int, int]) -> tuple[Range, ...]:
        below, above = area(span[0], min(span[1], 3072)), area(max(span[0], 3072) + 1024, span[1] + 1024)
        return tuple(part for part in (below, above) if part.end > part.start)

    ram = (Range(0, 0x9FC00), area(1, 3072), area(4096, edges[-1] + 1024))
    return Ground(ram, (), tuple(map(place, itertools.pairwise(edges))), 15 * MIB, 20 * MIB, page=GIB)


@pytest.mark.parametrize(
    ("machine", "numbers", "least"),
    [
        (guest(6144), [2], 0.75),
        (guest(4096, 4096), [0, 3], 0.7),
        (guest(4096, 4096, 4096, 4096), [0, 3, 3, 3], 0.7),
        (guest(4096, 8192), [0, 7], 0.8),
        (guest(8192, 4096), [4, 3], 0.8),
    ],
)
def test_small_guests(machine: Ground, numbers: list[int], least: float) -> None:
    """What the guests of tests/vm get with the layout's scratch."""
    found = layout.best(machine)[2]
    assert [item.number for item in found.pages] == numbers
    assert found.size >= least * total(machine.ram)


# ---- words on the command line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("quiet", {}),
        ("hugepages=512", {2 * MIB: Pool(512)}),
        ("hugepagesz=1G hugepages=4", {GIB: Pool(4)}),
        ("hugepagesz=1024M hugepages=0:2,1:3", {GIB: Pool(5, ((0, 2), (1, 3)))}),
        ("default_hugepagesz=1G hugepages=4", {GIB: Pool(4)}),
        ("hugepages=4 default_hugepagesz=1G", {GIB: Pool(4)}),
        ("hugepages=0:1,1:2 default_hugepagesz=1G", {GIB: Pool(3, ((0, 1), (1, 2)))}),
        ("hugepages=512 hugepagesz=1G hugepages=4", {2 * MIB: Pool(512), GIB: Pool(4)}),
        # The one without a size wins (hugetlb_init).
        ("hugepages=512 hugepagesz=2M hugepages=4", {2 * MIB: Pool(512)}),
        ("default_hugepagesz=1G hugepagesz=1G hugepages=4", {GIB: Pool(4)}),
        # A size that is given twice is ignored, with what follows it.
        ("default_hugepagesz=1G hugepages=4 hugepagesz=1G hugepages=8", {GIB: Pool(4)}),
        ("hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=5 hugepagesz=1G", {GIB: Pool(4), 2 * MIB: Pool(5)}),
        ("hugepagesz=1G hugepages=4 hugepagesz=1G hugepages=8 hugepages=9", {GIB: Pool(4)}),
        ("hugepagesz=1G hugepages=4 hugepages=8", {GIB: Pool(4)}),
        ("hugepagesz=1G hugepagesz=1G hugepages=8", {}),
        # A size that the processor does not have is ignored with what follows; what comes then counts.
        ("hugepagesz=16M hugepages=8", {}),
        ("hugepagesz=16M hugepages=8 hugepages=3", {2 * MIB: Pool(3)}),
        ("hugepagesz=1G default_hugepagesz=2M hugepages=3", {2 * MIB: Pool(3)}),
        # One that is there already does not become the current one.
        ("hugepagesz=2M hugepagesz=1G default_hugepagesz=2M hugepages=3", {GIB: Pool(3)}),
        ("hugepagesz=1G hugepages=0:x", {}),
        ("hugepagesz=1G hugepages=0:1,2", {}),
        (f"hugepagesz=1G hugepages=0:{'9' * 5000}", {}),
        (f"hugepagesz=1G hugepages={'9' * 5000}", {}),
        ("hugepagesz=1G hugepages=4x", {GIB: Pool(4)}),
        ('hugepagesz="1G" "hugepages=4"', {GIB: Pool(4)}),
        # memparse looks at nothing behind the unit, and knows hexadecimal and octal numbers.
        ("hugepagesz=1GB hugepages=4", {GIB: Pool(4)}),
        ("hugepagesz=1024MiB hugepages=4", {GIB: Pool(4)}),
        ("hugepagesz=0x400M hugepages=4", {GIB: Pool(4)}),
        ("hugepagesz=02000m hugepages=4", {GIB: Pool(4)}),
        ("hugepagesz=1_024M hugepages=4", {}),
        ("hugepagesz=\u0661G hugepages=4", {}),
        (f"hugepagesz={'9' * 5000} hugepages=4", {}),
        # The kernel reads five of these words.
        ("hugepages=1 hugepages=1 hugepages=1 hugepages=1 hugepagesz=1G hugepages=4", {2 * MIB: Pool(1)}),
    ],
)
def test_words_are_read_as_the_kernel_does(line: str, expected: dict[int, Pool]) -> None:
    """The order counts, as in hugepages_setup, hugepagesz_setup and default_hugepagesz_setup of mm/hugetlb.c."""
    assert pagewords.read(cmdline.split(line)[0]).pools == expected


@pytest.mark.parametrize(
    ("pool", "holds", "expected"),
    [
        (Pool(4), {0: 9, 1: 9}, ((0, 2), (1, 2))),
        (Pool(5), {0: 9, 1: 9}, ((0, 3), (1, 2))),
        (Pool(5), {0: 1, 1: 9}, ((0, 1), (1, 4))),
        (Pool(1), {0: 9, 3: 9}, ((0, 1),)),
        (Pool(99), {0: 3, 1: 2}, ((0, 3), (1, 2))),
        (Pool(10_000), {0: 9000, 1: 500, 2: 9000}, ((0, 4750), (1, 500), (2, 4750))),
        (Pool(5, ((0, 2), (7, 3))), {0: 9}, ((0, 2),)),
        (Pool(0), {0: 9}, ()),
    ],
)
def test_a_plain_number_goes_round_the_nodes(
    pool: Pool, holds: dict[int, int], expected: tuple[tuple[int, int], ...]
) -> None:
    """The first nodes get what is left over, and what one cannot hold the others get."""
    assert pagewords.spread(pool, holds) == expected


_WORDS = st.sampled_from([
    "hugepages=4", "hugepages=512", "hugepages=0:2,1:3", "hugepagesz=1G", "hugepagesz=2M", "hugepagesz=16M",
    "default_hugepagesz=1G", "default_hugepagesz=2M", "quiet", "hugepages=x",
])  # fmt: skip


@settings(deadline=None, max_examples=500)
@given(st.lists(_WORDS, max_size=6))
def test_what_is_merged_reads_back(words: list[str]) -> None:
    """Whatever stands on the line, our pages are what the kernel reads, and pages of other sizes stay as they were."""
    before = pagewords.read(words)
    gone, new = pagewords.merged(before, GIB, ((0, 7), (1, 9)))
    after = pagewords.read([*(word for word in words if word not in gone), *new])

    assert after.pools.get(GIB) == Pool(16, ((0, 7), (1, 9)))
    assert after.pools.get(2 * MIB) == before.pools.get(2 * MIB)
    assert len(after.words) <= pagewords.LONGEST
    assert after.default == before.default
    assert not set(gone) & {"quiet"}


# ---- the commands


def two_nodes(base: Path, line: str = "kho=on liveupdate=on") -> Path:
    """Return a fake root with two nodes of 4 GiB as QEMU has them, and scratch as the layout has it."""
    import struct

    root = machine(base, line)
    page = bytearray(4096)
    table = [(0, 0x9FC00), (MIB, 3 * GIB - MIB), (4 * GIB, 5 * GIB)]
    page[0x1E8] = len(table)
    for index, (start, size) in enumerate(table):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * index, start, size, 1)
    struct.pack_into("<I", page, 0x21C, 20 * MIB)
    (root / paths.BOOT_PARAMS).write_bytes(page)
    (root / paths.IOMEM).write_text(
        "00001000-0009fbff : System RAM\n00100000-bfffffff : System RAM\n  21000000-21efffff : Kernel code\n"
        "100000000-23fffffff : System RAM\n"
    )
    for number in range(8, 72):
        if number not in range(24, 32):
            folder = root / paths.MEMORY / f"memory{number}"
            folder.mkdir(exist_ok=True)
            (folder / "state").write_text("online\n")
            node = root / paths.NODES / f"node{int(number >= 40)}/memory{number}"
            node.mkdir(parents=True, exist_ok=True)
    for number in range(32, 40):
        assert (root / paths.NODES / f"node0/memory{number}").is_dir()
    (root / paths.NODES_ONLINE).write_text("0-1\n")
    out = root / "sys/kernel/debug/kho/out"
    (out / "scratch_phys").write_text(f"{0xB1200000:#x}\n{0x220000000:#x}\n")
    (out / "scratch_len").write_text(f"{128 * MIB:#x}\n{320 * MIB:#x}\n")
    (root / paths.CPUINFO).write_text("processor\t: 0\nflags\t\t: fpu pse pdpe1gb rdtscp lm\n\nprocessor\t: 1\n")
    (root / paths.HUGEPAGES).mkdir(parents=True)
    return root


def test_both_are_printed(tmp_path: Path) -> None:
    """The words stand in the order in which the kernel wants them, and `safemem.guard=` tells both."""
    root = two_nodes(tmp_path)
    code, output, _ = invoke(root)
    words = output.split()
    document = json.loads(invoke(root, "--format", "json")[1])
    explained = invoke(root, "--explain")[2]

    assert code == 0
    assert words[0] == f"crashkernel={0xB1200000 - 16 * MIB}@0x1000000"
    assert words[1:3] == ["hugepagesz=1G", "hugepages=1:3"]
    name, _, value = words[3].partition("=")
    assert name == asked.ARGUMENT
    assert asked.parse(value) == asked.Asked(Range(16 * MIB, 0xB1200000), GIB, ((1, 3),))
    assert document["guard"] == str(Range(16 * MIB, 0xB1200000)) and document["page"] == GIB
    assert document["guard_node"] == 0
    assert document["pages"] == [
        {"node": 0, "number": 0, "own": 0, "ranges": [], "why_not": None},
        {"node": 1, "number": 3, "own": 0, "ranges": [str(Range(5 * GIB, 8 * GIB))], "why_not": None},
    ]
    assert document["bytes"]["guarded"] >= 0.6 * document["bytes"]["memory"]
    sizes = document["bytes"]
    assert sizes["guarded"] + sizes["scratch"] + sizes["open"] == sizes["memory"]
    assert sum(item["bytes"] for item in document["open"]) == sizes["open"]
    assert "pages         3 GiB  0x140000000-0x1ffffffff by hugepages=1:3 on node 1" in explained
    assert f"range       2.8 GiB  {Range(16 * MIB, 0xB1200000)} by crashkernel= on node 0" in explained
    assert "on node 0: no whole page of 1 GiB lies in it" in explained
    assert "on node 0: the next kernel's first memory comes from the top of each node" in explained


@pytest.mark.parametrize(
    ("line", "gone", "kept", "asks", "own"),
    [
        ("hugepagesz=1G hugepages=4", ["hugepagesz=1G", "hugepages=4"], [], "0:2,1:3", ((0, 2), (1, 2))),
        ("default_hugepagesz=1G hugepages=1", ["hugepages=1"], ["default_hugepagesz=1G"], "0:2,1:3", ((0, 1),)),
        ("hugepages=512", [], ["hugepages=512"], "1:3", ()),
        (
            "hugepages=512 hugepagesz=1G hugepages=1:9",
            ["hugepages=512", "hugepagesz=1G", "hugepages=1:9"], ["hugepages=512"], "1:9", ((1, 9),),
        ),
    ],
)  # fmt: skip
def test_the_operators_own_pages(
    tmp_path: Path, line: str, gone: list[str], kept: list[str], asks: str, own: tuple[tuple[int, int], ...]
) -> None:
    """Theirs are in ours, told apart by `own=`; what they ask for of other sizes stays."""
    root = two_nodes(tmp_path, f"kho=on {line} quiet")
    (tmp_path / "image").write_bytes(b"x" * 4096)
    code, output, errors = invoke(root, "--kexec-command", "--kernel", str(tmp_path / "image"))
    found = shlex.split(output)[4].removeprefix("--command-line=")
    words = found.split()
    printed = invoke(root, "--kernel", str(tmp_path / "image"))[1].split()

    assert code == 0
    assert [word for word in words if word in kept] == kept
    assert words[words.index("quiet") + 1].startswith("crashkernel=")
    place = words.index(f"hugepages={asks}")
    assert words[place - 1] == "hugepagesz=1G" and words.count("hugepagesz=1G") == 1
    assert asked.parse(cmdline.argument(found, asked.ARGUMENT) or "").own == own
    before, after = (pagewords.read(cmdline.split(text)[0]).pools for text in (f"{line} quiet", found))
    assert before.get(2 * MIB) == after.get(2 * MIB)
    assert printed == words[words.index("quiet") + 1 :]
    by_hand = invoke(root, "--kernel", str(tmp_path / "image"))[2]
    for word in gone:
        assert f"`{word}`" in by_hand
    assert ("out of the next command line" in by_hand) == bool(gone)
    assert "out of the next command line" not in errors  # in a whole command they are out already


def test_a_second_update_knows_what_is_the_operators(tmp_path: Path) -> None:
    """A line that a kexec brought tells which pages are ours; one that was cut off does not, and then nothing is printed."""
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    (tmp_path / "3").mkdir()
    (tmp_path / "image").write_bytes(b"x" * 4096)
    command = ("--kexec-command", "--kernel", str(tmp_path / "image"))
    root = two_nodes(tmp_path / "1", "kho=on hugepagesz=1G hugepages=1:1")
    line = shlex.split(invoke(root, *command)[1])[4].removeprefix("--command-line=")
    again = two_nodes(tmp_path / "2", line)
    assert shlex.split(invoke(again, *command)[1])[4].removeprefix("--command-line=") == line
    assert "own=1:1" in line
    cut = two_nodes(tmp_path / "3", line.replace("own=1:1", "own=1:2"))
    code, output, errors = invoke(cut)
    assert (code, output) == (1, "") and "which of the gigantic pages are the operator's cannot be told" in errors


def test_words_for_init(tmp_path: Path) -> None:
    """The kernel looks behind `--` for crashkernel=, and not for hugepages=: appended there, half of the guards would be lost."""
    root = two_nodes(tmp_path, "kho=on -- single")
    assert "before the `--` of the next command line" in invoke(root)[2]
    (tmp_path / "image").write_bytes(b"x" * 4096)
    _, output, _ = invoke(root, "--kexec-command", "--kernel", str(tmp_path / "image"))
    assert output.index("hugepages=") < output.index("memhp_default_state=offline") < output.index(" -- single")


def test_pages_on_a_node_without_memory(tmp_path: Path) -> None:
    """They are left out, and that is said: such a number would undo the whole argument."""
    root = two_nodes(tmp_path, "kho=on hugepagesz=1G hugepages=1:1,5:2")
    _, output, errors = invoke(root)
    assert "hugepages=1:3" in output.split()
    assert "hugepages= asks for pages on node 5, which has no memory of its own: left out" in errors


@pytest.mark.parametrize(
    ("file", "text", "line", "says"),
    [
        (paths.CPUINFO, "flags\t: fpu lm\n", "", "this processor or kernel shows no pages of 1 GiB"),
        (paths.CPUINFO, "", "", "this processor or kernel shows no pages of 1 GiB"),
        (
            "",
            "",
            "hugetlb_cma=4G",
            "with hugetlb_cma= on the command line the kernel reserves none at boot: boot once without it",
        ),
    ],
)
def test_without_pages_the_range_is_left(tmp_path: Path, file: str, text: str, line: str, says: str) -> None:
    """The range alone is printed, it is said why, and the operator's own words stay as they are."""
    root = two_nodes(tmp_path, f"kho=on hugepagesz=1G hugepages=2 {line}")
    if file:
        (root / file).write_text(text)
    code, output, errors = invoke(root, "--explain")
    assert code == 0
    assert "hugepages=" not in output and "crashkernel=" in output
    assert f"only one range can be guarded, without gigantic pages: {says}" in errors
    assert "out of the next command line" not in errors


def test_a_kernel_without_hugetlb_pages_shows_none(tmp_path: Path) -> None:
    """sysfs says it: /sys/kernel/mm is there, and no folder for huge pages."""
    root = two_nodes(tmp_path)
    assert memory.room(str(root)).gigantic == GIB
    (root / paths.HUGEPAGES).rmdir()
    assert memory.room(str(root)).gigantic == 0
    # The next kernel may have them where this one has none.
    assert ground.read_ground(str(root), (), built=Build(hugetlb=True))[1].page == GIB
    assert ground.read_ground(str(root), (), built=Build(hugetlb=False))[1].no_page.endswith("CONFIG_HUGETLBFS")
    assert "without CONFIG_NUMA" in ground.read_ground(str(root), (), built=Build(hugetlb=True, numa=False))[1].no_page


def test_room_is_read_back_from_a_capture(tmp_path: Path) -> None:
    """A capture describes the machine for both commands; an older one lacks firmware's map, and that is said."""
    root = two_nodes(tmp_path)
    snapshot, live = ground.read_ground(str(root), ())
    text = reader.capture_text(snapshot)
    again = reader.snapshot_from_text(text, "capture")
    assert again.room == snapshot.room
    assert ground.ground(again, ()) == live
    document = json.loads(text)
    for key in ("firmware", "taken", "gigantic"):
        del document["snapshot"]["room"][key]
    old = reader.snapshot_from_text(json.dumps(document), "capture")
    found = ground.ground(old, ())
    assert "which memory firmware gave is not known" in found.notes[0]
    assert found.page == 0 and found.ram == snapshot.room.ram
    (tmp_path / "old").write_text(json.dumps(document))
    assert CliRunner().invoke(main, ["layout", "--state", str(tmp_path / "old"), "--root", str(root)]).exit_code == 2
    result = CliRunner().invoke(main, ["layout", "--state", str(tmp_path / "old")])
    assert result.exit_code == 0 and "which memory firmware gave is not known" in result.stderr


@pytest.mark.parametrize(
    ("key", "value", "status", "says"),
    [
        ("gigantic", 1, 3, "`gigantic` is neither 0 nor 1073741824"),  # there would be more pages than can be listed
        ("ram", ["0x0-0xfffffffffffffff"], 1, "where no processor has any"),
        ("taken", ["0x0-0xffffffffffff"], 1, "shows nothing of the memory that firmware gave as free"),
    ],
)
def test_a_capture_that_nobody_can_have_made(tmp_path: Path, key: str, value: object, status: int, says: str) -> None:
    document = json.loads(reader.capture_text(host(64, 64)))
    document["snapshot"]["room"][key] = value
    (tmp_path / "capture").write_text(json.dumps(document))
    result = CliRunner().invoke(main, ["layout", "--state", str(tmp_path / "capture")])
    assert result.exit_code == status and says in result.stderr, result.output


def test_a_node_whose_scratch_holds_a_page(tmp_path: Path) -> None:
    """It gets no pages, as an old kernel that accepts would take them from scratch, and it is said what helps."""
    root = two_nodes(tmp_path)
    out = root / "sys/kernel/debug/kho/out"
    (out / "scratch_phys").write_text(f"{0xB1200000:#x}\n{0x1C0000000:#x}\n")
    (out / "scratch_len").write_text(f"{128 * MIB:#x}\n{1536 * MIB:#x}\n")
    code, _, errors = invoke(root, "--explain")
    assert code == 0
    why = "scratch on this node holds a whole page of 1 GiB, which a kernel before Linux 7.3 that accepts may take from it"
    assert f"no gigantic pages guard node 1: {why}" in errors
    assert "`safemem handover-args --kernel IMAGE` sees that, and guards more" in errors
    assert "prints, only one node has such scratch" not in errors
    (out / "scratch_phys").write_text(f"{GIB:#x}\n{0x1C0000000:#x}\n")
    (out / "scratch_len").write_text(f"{GIB:#x}\n{1536 * MIB:#x}\n")
    both = invoke(root)[2]
    assert f"guard node 0: {why}" in both and f"guard node 1: {why}" in both
    assert "with the scratch sizes that `safemem layout` prints, only one node has such scratch" in both
    (root / paths.CMDLINE).write_text("kho=on hugepagesz=1G hugepages=1:1\n")
    assert f"no gigantic pages but those of hugepages= guard node 1: {why}" in invoke(root)[2]


def test_small_pages_that_leave_too_little() -> None:
    """A kernel that rejects takes them while it starts: those that it has no room for are named, and how many it has room for."""
    for number, said in ((1000, False), (4872, False), (4873, True), (200_000, True)):
        snapshot = host(512, 512)._replace(cmdline=f"kho=on hugepages={number}")
        notes = layout.advise_on(snapshot).notes
        scratch = layout._areas(ground.ground(snapshot, ()), 128 * MIB, 18928 * MIB, False)
        assert scratch
        advice = handover_args.advise_on(snapshot, ground.ground(snapshot, scratch))
        mine = [note for note in advice.notes if note.startswith("hugepages= asks for")]
        assert list(notes) == mine
        assert bool(mine) == said
        assert not said or "ask for at most 4872 on the next command line" in mine[0]
    assert (
        "hugepages= asks for 390.6 GiB in pages of 2 MiB, and a kernel that rejects has 28.5 GiB beside the guards"
        in mine[0]
    )


def test_what_is_promised_is_what_is_shown(tmp_path: Path) -> None:
    """The least is no more than the most, and pages that may lie in scratch are told apart."""
    snapshot = host(512, 512)._replace(cmdline="kho=on hugepagesz=1G hugepages=400")
    found = layout.advise_on(snapshot)
    assert found.least <= found.after
    (tmp_path / "capture").write_text(reader.capture_text(snapshot))
    lines = CliRunner().invoke(main, ["layout", "--state", str(tmp_path / "capture")]).stderr.splitlines()
    assert "                 494 GiB by hugepages=0:494 on node 0" in lines
    assert (
        "                 180 GiB by hugepages=1:200 on node 1; 20 GiB more may lie partly in scratch, and does not count"
        in lines
    )
    assert "  open           20.4 GiB, neither guarded nor scratch" in lines


def test_a_guard_of_the_predecessors_is_not_kdumps(tmp_path: Path) -> None:
    """Only a crashkernel= without `safemem.guard=` beside it is."""
    for line, said in (("crashkernel=256M", True), ("crashkernel=64M@64M safemem.guard=0x4000000-0x7ffffff", False)):
        (tmp_path / line[:14]).mkdir(exist_ok=True)
        errors = invoke(two_nodes(tmp_path / line[:14], f"kho=on {line}"))[2]
        assert ("kdump" in errors) == said
        assert "out of the next command line: only one crashkernel= counts" in errors


@pytest.mark.parametrize("name", ["current", "old-kho", "no-kho"])
def test_a_real_image_tells_how_it_is_built(name: str) -> None:
    """All of these are 7.3.4 with their configuration inside."""
    from tests.vm import harness

    try:
        image = harness.kernel(name)
    except FileNotFoundError as error:
        lacking(str(error))
    assert nextkernel.build(str(image)) == Build(name != "no-kho", hugetlb=True, numa=True, spares_scratch=True)


def unpacked(release: str, config: str | None = None, *, kho: bool = True) -> bytes:
    """Return what `nextkernel` looks at of a kernel that is not packed: an arm64 Image."""
    inside = b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED" if config is not None else b""
    header = bytes(56) + b"ARM\x64" + bytes(4)
    return header + f"Linux version {release} (gcc)".encode() + (b"\0kho-v4\0" if kho else b"") + inside


HEAD = "# Linux/arm64 7.3.4 Kernel Configuration\n"


@pytest.mark.parametrize(
    ("data", "beside", "expected"),
    [
        (unpacked("7.2.13"), "", Build(True, None, None, False)),
        (unpacked("7.2.13", kho=False), "", Build(False, None, None, True)),
        (unpacked("7.3.0-rc1"), "", Build(True, None, None, True)),
        (unpacked("7.3.4", "CONFIG_NUMA=y\n# CONFIG_HUGETLBFS is not set\n"), "", Build(True, False, True, True)),
        (unpacked("7.3.4"), f"{HEAD}CONFIG_HUGETLBFS=y\n", Build(True, True, False, True)),
        (unpacked("7.3.4"), "CONFIG_HUGETLBFS=y\n", Build(True, None, None, True)),
        (unpacked("7.3.4"), "nonsense", Build(True, None, None, True)),
        (b"no kernel", f"{HEAD}CONFIG_HUGETLBFS=y\n", Build()),
    ],
)
def test_how_the_next_kernel_is_built(tmp_path: Path, data: bytes, beside: str, expected: Build) -> None:
    """By its image, or by the `config` beside a `vmlinuz`; whatever is not known is said to be so."""
    (tmp_path / "vmlinuz").write_bytes(data)
    if beside:
        (tmp_path / "config").write_text(beside)
    assert nextkernel.build(str(tmp_path / "vmlinuz")) == expected


def test_systemctl_command(tmp_path: Path) -> None:
    """The whole line is one word for a shell; it needs no image, as systemd finds one."""
    root = two_nodes(tmp_path, "kho=on root=/dev/sda1 dyndbg='a b'")
    code, output, _ = invoke(root, "--systemctl-command")
    words = shlex.split(output)
    assert code == 0
    assert words[:2] == ["systemctl", "kexec"] and len(words) == 3
    assert words[2].startswith("--kernel-cmdline=kho=on root=/dev/sda1 dyndbg='a b' crashkernel=")
    assert invoke(root, "--systemctl-command", "--kexec-command", "--kernel", "x")[0] == 2
    (tmp_path / "cma").mkdir()
    assert invoke(two_nodes(tmp_path / "cma", "cma=64M"), "--systemctl-command")[:2] == (1, "")


def test_the_archives_program_prints_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--systemctl-command` and `--explain` as well."""
    root = two_nodes(tmp_path)
    for words in (["--systemctl-command"], ["--explain"], []):
        assert handover_args.main(["--root", str(root), *words]) == 0
        printed = capsys.readouterr()
        code, output, errors = invoke(root, *words)
        assert (code, output, errors) == (0, printed.out, printed.err)
    assert handover_args.main(["--systemctl-command", "--kexec-command", "--kernel", "x"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_the_archives_program_mounts_debugfs(tmp_path: Path) -> None:
    """As the boot program's wrapper does, and before the interpreter starts; without that file it goes on."""
    text = (kit.REPOSITORY / "safemem/initramfs/files/handover-args.sh").read_text()
    assert "PREFIX=/usr/lib/safemem\n" in text
    (tmp_path / "lib").mkdir()
    loader = tmp_path / "lib/ld.so"
    loader.write_text('#!/bin/sh\necho "mounted=$MOUNTED"; for word; do last=$word; done; echo "last=$last"\n')
    loader.chmod(0o755)
    script = text.replace("PREFIX=/usr/lib/safemem\n", f"PREFIX={tmp_path}\n")
    for there in ("", "yes"):
        if there:
            (tmp_path / "mounts.sh").write_text("export MOUNTED=yes\n")
        run = subprocess.run(["sh", "-c", script, "handover-args", "--explain"], capture_output=True, text=True)
        assert (run.returncode, run.stdout) == (0, f"mounted={there}\nlast=--explain\n")
    assert (
        "mount -t debugfs debugfs /sys/kernel/debug"
        in (kit.REPOSITORY / "safemem/initramfs/files/mounts.sh").read_text()
    )


def test_no_command_without_a_guard(tmp_path: Path) -> None:
    """Where no guard would work, a whole command is not printed either, and it is said why."""
    root = machine(tmp_path)
    (root / paths.IOMEM).write_text("00100000-07ffffff : System RAM\n")
    (tmp_path / "image").write_bytes(b"x")
    for words in (["--kexec-command", "--kernel", str(tmp_path / "image")], ["--systemctl-command"]):
        code, output, errors = invoke(root, *words)
        assert (code, output) == (1, "")
        assert "of memory leave nothing to guard" in errors


def test_own_pages_that_leave_too_little() -> None:
    """A kernel that rejects could not run: there is no guard, and it is said why."""
    memory = (Range(4 * GIB, 69 * GIB),)
    for number, short in ((64, True), (63, True), (62, False)):
        snapshot = capture(memory, (memory,), line=f"hugepagesz=1G hugepages={number}")
        if short:
            with pytest.raises(
                CannotSay,
                match=f"{number} GiB of gigantic pages that hugepages= asks for leave a kernel that rejects too little",
            ):
                handover_args.advise_on(snapshot, ground.ground(snapshot, ()))
            continue
        advice = handover_args.advise_on(snapshot, ground.ground(snapshot, ()))
        assert f"hugepages=0:{number}" in advice.arguments


def test_the_values() -> None:
    """What is asked for is told by node, and only where there is something."""
    found = Guards(Range(0, GIB), (Gigantic(0, 0), Gigantic(3, 2, 1, (Range(2 * GIB, 4 * GIB),))), GIB)
    assert (found.asked, found.size, found.ranges) == (((3, 2),), 3 * GIB, (Range(0, GIB), Range(2 * GIB, 4 * GIB)))
