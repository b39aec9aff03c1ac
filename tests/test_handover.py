# SPDX-License-Identifier: MIT
"""The guard's arithmetic, and what is said where there is none; tests/vm/test_handover.py boots with it."""

from __future__ import annotations

import json
import random
import shlex
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safemem.boot import cmdline as boot_cmdline
from safemem.boot import guard as boot_guard
from safemem.boot import handover_args, paths, probe, record
from safemem.boot.ground import CannotSay, Ground
from safemem.boot.ranges import Range
from tests.fakes import machine, make_root
from tests.kit import handover_args as invoke
from tests.needs import lacking

MIB, GIB = 1 << 20, 1 << 30


def area(start: int, end: int) -> Range:
    """Return a range given in MiB."""
    return Range(start * MIB, end * MIB)


def ground(
    ram: tuple[Range, ...], scratch: tuple[Range, ...], nodes: tuple[tuple[Range, ...], ...] = ()
) -> Ground:  # fmt: skip
    """Return the ground of a kernel and an initrd that take no memory."""
    return Ground(ram, scratch, nodes or (ram,), 0, 0)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        # The 1 GiB guest: all below the lowest scratch area.
        (ground((area(1, 1024),), (area(548, 776), area(828, 920))), area(16, 548)),
        # A start is rounded up to 16 MiB, and 16 MiB is the lowest; an end need not be.
        (ground((area(1, 1024),), (area(599, 700),)), area(16, 598)),
        # A hole below 4 GiB: the larger gap wins, and the top of memory is left for the first page tables.
        (ground((area(1, 3072), area(4096, 9216)), (area(100, 900),)), area(4096, 9184)),
        # So much that a kernel could not run in the rest: the end is cut off.
        (ground((area(0, 1024),), (area(1008, 1024),)), area(16, 830)),
        # Two nodes: one range cannot hold both, because the first memory of each comes from its top.
        (
            ground(
                (area(1, 3072), area(4096, 9216)), (area(2000, 2500),),
                ((area(0, 3072), area(4096, 5120)), (area(5120, 9216),)),
            ),
            area(5120, 9184),
        ),
    ],
)  # fmt: skip
def test_best_guard(machine: Ground, expected: Range) -> None:
    """The largest piece that nothing touches, and no more than leaves room."""
    assert boot_guard.best_guards(machine).range == expected


@st.composite
def machines(draw: st.DrawFn) -> Ground:
    """Return any machine: memory with holes, on up to three nodes, with scratch areas anywhere."""
    edges = sorted(draw(st.lists(st.integers(0, 12288), min_size=2, max_size=10, unique=True)))
    ram = tuple(area(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False))
    holes = sorted(draw(st.lists(st.integers(0, 3072), min_size=2, max_size=6, unique=True)))
    scratch = tuple(area(4 * a, 4 * b) for a, b in zip(holes[::2], holes[1::2], strict=False))
    cuts = [0, *sorted(draw(st.lists(st.integers(1, 96), max_size=3, unique=True))), 200]
    spans = [area(128 * a, 128 * b) for a, b in zip(cuts, cuts[1:], strict=False)]
    # A node may have several ranges, as the first does around the hole below 4 GiB.
    count = draw(st.integers(1, 3))
    nodes = tuple(node for index in range(count) if (node := tuple(spans[index::count])))
    return Ground(ram, scratch, nodes, draw(st.integers(0, 64)) * MIB, draw(st.integers(0, 64)) * MIB)


class EarlyAllocator:
    """What memblock of a rejecting kernel does before it reserves the guard, as `memblock=debug` shows it on 7.3.4."""

    def __init__(self, machine: Ground, image: Range | None) -> None:
        self.free = [(a.start, a.end) for a in machine.ram]
        for low, high in ((0, MIB), *([(image.start, image.end)] if image else [])):
            self.reserve(low, high)
        self.nodes = machine.nodes

    def reserve(self, low: int, high: int) -> None:
        """Take `[low, high)` out of what is free."""
        kept = [(a, min(b, low)) for a, b in self.free] + [(max(a, high), b) for a, b in self.free]
        self.free = sorted((a, b) for a, b in kept if a < b)

    def top_down(self, size: int, align: int, within: tuple[Range, ...]) -> None:
        """Take the highest free piece of that size, as memblock does."""
        best = -1
        for a, b in self.free:
            for node in within:
                low, high = max(a, node.start), min(b, node.end)
                at = (high - size) // align * align
                if at >= low:
                    best = max(best, at)
        if best >= 0:
            self.reserve(best, best + size)

    def boots_to_the_reservation(self) -> None:
        """Take the first page tables from the top of memory, and NODE_DATA from the top of each node."""
        everywhere = (Range(MIB, 1 << 60),)
        self.top_down(2 * MIB, 2 * MIB, everywhere)
        for node in self.nodes:
            self.top_down(256 << 10, 64, node)
        self.top_down(4 * MIB, 4096, everywhere)  # the log of a kernel for many processors

    def can_have(self, guard: Range) -> bool:
        """Return whether a crashkernel= of this range succeeds."""
        return guard.start % (16 * MIB) == 0 and any(a <= guard.start and guard.end <= b for a, b in self.free)


@settings(deadline=None)
@given(machines(), st.randoms(use_true_random=False))
def test_a_guard_never_fails(machine: Ground, dice: random.Random) -> None:
    """On any machine a rejecting kernel can reserve it, wherever in scratch its image lies, and has room to run."""
    try:
        guard = boot_guard.best_guards(machine).range
    except CannotSay:
        return
    assert guard
    for _ in range(3):
        image = None
        if machine.scratch:
            inside = dice.choice(machine.scratch)
            start = dice.randrange(inside.start, inside.end, 2 * MIB)
            image = Range(start, min(start + 96 * MIB, inside.end))
        kernel = EarlyAllocator(machine, image)
        kernel.boots_to_the_reservation()
        assert kernel.can_have(guard)
    rest = sum(a.end - a.start for a in machine.ram) - (guard.end - guard.start)
    assert rest >= 192 * MIB + machine.kernel + machine.initrd
    # Accepted: memory comes from scratch alone, so a guard that touched scratch could come into force.
    assert not any(hole.start < guard.end and guard.start < hole.end for hole in machine.scratch)


@settings(deadline=None)
@given(machines())
def test_no_larger_guard_is_missed(machine: Ground) -> None:
    """On a grid of 16 MiB nothing that is free on one node, short of its top, is larger than what was found."""
    taken = {
        cell for hole in machine.scratch for cell in range(hole.start // (16 * MIB), -(-hole.end // (16 * MIB)))
    }  # fmt: skip
    longest = 0
    for node in machine.nodes:
        runs, run = [], 0
        for cell in range(1, 768):
            low, high = cell * 16 * MIB, (cell + 1) * 16 * MIB
            free = cell not in taken and any(
                max(a.start, n.start) <= low and high <= min(a.end, n.end) for a in machine.ram for n in node
            )
            run = run + 1 if free else 0
            runs.append(run)
        longest = max(longest, *runs)
    total = sum(a.end - a.start for a in machine.ram)
    room = 192 * MIB + total // 512 + total // 64 + machine.kernel + 4 * machine.initrd
    try:
        found = boot_guard.best_guards(machine).size
    except CannotSay:
        found = 0
    low = sum(max(0, min(a.end, 4 * GIB) - a.start) for a in machine.ram)
    # Less a node's top, which a range may end at; with memory beyond 4 GiB some has to stay free below it.
    wanted = min(longest * 16 * MIB - 48 * MIB, total - room - 2 * MIB, low - 130 * MIB)
    assert found >= wanted


def test_arguments(tmp_path: Path) -> None:
    """What is printed is what the next boot's probe reads back."""
    root = machine(tmp_path)
    code, output, errors = invoke(root)
    words = output.split()

    assert code == 0
    assert words[0] == f"crashkernel={532 * MIB}@0x1000000"
    assert words[1] == "safemem.guard=0x1000000-0x223fffff"
    assert words[4] == "memhp_default_state=offline"
    assert "should the next kernel have no KHO, append nokaslr too" in errors
    (tmp_path / "next").mkdir()
    after = probe.read_snapshot(str(make_root(tmp_path / "next", cmdline=output.strip())))
    assert after.cmdline_safe == (Range(548 * MIB, 776 * MIB), Range(828 * MIB, 920 * MIB))
    assert after.facts["guard"].value == "void"  # asked for, and this fake did not reserve it
    document = json.loads(invoke(root, "--format", "json")[1])
    assert document["bytes"]["guarded"] == 532 * MIB
    assert sum(item["bytes"] for item in document["open"]) == document["bytes"]["open"]
    assert sum(document["bytes"].values()) == 2 * document["bytes"]["memory"]
    explained = invoke(root, "--explain")[2]
    assert "guarded" in explained and "52.0% of the memory" in explained
    assert "0x39800000-0x3dfdefff: only one range can be guarded" in explained
    assert "the next kernel's first memory comes from the top of each node" in explained


def test_what_lies_inside_memory_is_avoided(tmp_path: Path) -> None:
    """A piece of System RAM that somebody keeps is no place for a guard; this kernel's own image is."""
    root = machine(tmp_path)
    text = (root / paths.IOMEM).read_text().replace("  21000000", "  08000000-080000ff : Reserved\n  21000000")
    (root / paths.IOMEM).write_text(text)
    assert invoke(root)[1].startswith(f"crashkernel={(548 - 144) * MIB}@0x9000000 ")


def test_the_next_kernel_and_its_initrd_need_room(tmp_path: Path) -> None:
    """What they take stays outside the guard: the image as it says itself, the initrd packed and unpacked."""
    root = machine(tmp_path)
    image = bytearray(4096)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<I", image, 0x260, 100 * MIB)
    (tmp_path / "image").write_bytes(image)
    with (tmp_path / "initrd").open("wb") as file:
        file.truncate(75 * MIB)
    output = invoke(root, "--kernel", str(tmp_path / "image"), "--initrd", str(tmp_path / "initrd"))[1]
    size = int(output.partition("@")[0].partition("=")[2])
    memory = 0x3FFDF000 - 0x100000 + 0x9FC00 - 0x1000
    assert size == (memory - memory // 64 - memory // 512 - (192 + 100 + 4 * 75) * MIB) // (2 * MIB) * 2 * MIB
    assert "no such file" in invoke(root, "--kernel", str(tmp_path / "absent"))[2]


@pytest.mark.parametrize("name", ["current", "no-kho"])
def test_nokaslr_is_for_a_kernel_without_kho(tmp_path: Path, name: str) -> None:
    """Only such a kernel puts its image outside of scratch; the real images tell it."""
    from tests.vm import harness

    try:
        image = harness.kernel(name)
    except FileNotFoundError as error:
        lacking(str(error))
    code, output, errors = invoke(machine(tmp_path), "--kernel", str(image))
    assert code == 0
    assert ("nokaslr" in output.split()) == (name == "no-kho") == ("has no KHO" in errors)


COMMAND_LINES = [
    "kho=on quiet",
    'root=/dev/sda1 dyndbg="file a.c +p; file b.c +p" crashkernel=256M crashkernel=72M,low -- single',
    "BOOT_IMAGE=/vmlinuz it's=$(reboot) `x` memhp-default-state=online safemem.guard=0-0xfff safemem.safe=x;y -- a",
    "quiet safemem.policy=strict safemem.dry_run -- safemem.policy=stricter",
    "safemem.attempt=3 \"safemem.guard=0-1\" tab\there \"a b\"='c d' \\",
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "action", "expected"),
    [
        ("", None, "0"),
        ("", "online-safe", "1"),
        ("safemem.attempts=1", "online-safe", "2"),
        ("safemem.attempts=1", "online-all", "0"),
        ("safemem.attempts=1", None, "1"),
        ("safemem.attempts=1", "damaged", "2"),
    ],
)
def test_boots_are_counted_for_the_next_kernel(tmp_path: Path, given: str, action: str | None, expected: str) -> None:
    """One more for each boot whose decision was not online-all, and that ends in a kexec; firmware counts by itself."""
    root = machine(tmp_path, f"kho=on liveupdate=on {given}")
    if action:
        (root / "run/safemem").mkdir(parents=True)
        text = '{"decision"' if action == "damaged" else f'{{"decision":{{"action":"{action}"}}}}'
        (root / record.RECORD).write_text(text)
    assert invoke(root)[1].split()[5] == f"safemem.attempts={expected}"

    (root / paths.EFIVARS).mkdir(parents=True)
    (root / paths.EFIVARS / "Timeout-8be4df61-93ca-11d2-aa0d-00e098032b8c").touch()
    assert "safemem.attempts" not in invoke(root)[1]


@pytest.mark.parametrize("cmdline", COMMAND_LINES)
def test_kexec_command(tmp_path: Path, cmdline: str) -> None:
    """A shell takes it apart into the words of the command; what the advice replaces is gone, all else is as it was."""
    root = machine(tmp_path, cmdline)
    (tmp_path / "my image").write_bytes(b"x" * 4096)
    code, output, _ = invoke(root, "--kexec-command", "--kernel", str(tmp_path / "my image"))
    words = shlex.split(output)

    assert code == 0
    assert words[:4] == ["kexec", "-s", "-l", str(tmp_path / "my image")]
    assert len(words) == 5 and words[4].startswith("--command-line=")
    found = words[4].removeprefix("--command-line=")
    names = [key for key, _ in boot_cmdline.arguments(found)]
    replaced = {
        "crashkernel",
        "safemem.guard",
        "safemem.safe",
        "safemem.preserved",
        "memhp_default_state",
        "safemem.attempts",
    }
    assert all(names.count(name) == 1 for name in replaced)
    before = [
        pair for pair in boot_cmdline.arguments(cmdline) if pair[0].replace("-", "_") not in replaced | {"BOOT_IMAGE"}
    ]
    assert [pair for pair in boot_cmdline.arguments(found) if pair[0] not in replaced] == [
        pair for pair in before if not pair[0].startswith("safemem.") or pair[0] == "safemem.policy"
    ]
    assert found.partition(" -- ")[2] == cmdline.partition(" -- ")[2]


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1))
def test_quoting(text: str) -> None:
    """Any word comes through a shell as it was."""
    assert shlex.split(handover_args._quoted(text)) == [text]


@pytest.mark.parametrize(
    ("cmdline", "says"),
    [
        ("cma=64M", "`cma=64M` on the command line is reserved before the guard"),
        ('"hugetlb-cma=4G"', "on the command line is reserved before the guard"),
        ("a=crashkernel=1G", "`a=crashkernel=1G` on the command line would be read as a crashkernel= of its own"),
        ("quiet -- crashkernel=1G", "would be read as a crashkernel="),
        ('a="b', "a quotation mark on this kernel's command line is not closed"),
        ("x" * 1900, "the kernel takes 2047"),
    ],
)
def test_a_command_line_that_would_undo_the_guard(tmp_path: Path, cmdline: str, says: str) -> None:
    """No command is printed that would load a kernel without its guard."""
    (tmp_path / "image").write_bytes(b"x")
    code, output, errors = invoke(
        machine(tmp_path, cmdline), "--kexec-command", "--kernel", str(tmp_path / "image")
    )  # fmt: skip
    assert (code, output) == (1, "") and says in errors


def test_without_kho_nothing_is_asked_of_debugfs(tmp_path: Path) -> None:
    """Where KHO is off it is said what it takes; where it may be on, who can read its scratch areas."""
    (tmp_path / "off").mkdir()
    (tmp_path / "blind").mkdir()
    off = make_root(tmp_path / "off", kho_out=False, config="CONFIG_KEXEC=y\n")
    blind = make_root(tmp_path / "blind", debugfs=False)
    text = "KHO is off (not built in): without it nothing is handed over; boot a kernel that has KHO with kho=on"
    assert text in invoke(off)[2]
    text = "run it as root, with debugfs on /sys/kernel/debug"
    assert "no scratch areas can be read (KHO is on: " in invoke(blind)[2] and text in invoke(blind)[2]


@pytest.mark.parametrize(
    ("cmdline", "says"),
    [
        # Another crashkernel= would be the one that counts.
        (
            "kho=on crashkernel=256M",
            "take `crashkernel=256M` out of the next command line: only one crashkernel= counts",
        ),
        ("kho=on crashkernel=256M", "the next kernel reserves nothing for kdump"),
        ("hugetlb_cma=4G", "hugetlb_cma= is reserved before the guard"),
        (
            "init_on_free=1",
            "init_on_free=1 zeroes all memory that is not guarded at boot, and a guard when it is given back",
        ),
        ("page_poison=on", "page_poison= overwrites all memory that is not guarded at boot"),
    ],
)
def test_notes(tmp_path: Path, cmdline: str, says: str) -> None:
    """What is at odds with a guard on this command line is named."""
    assert says in invoke(machine(tmp_path, cmdline))[2]


@pytest.mark.parametrize(
    ("path", "data", "says"),
    [
        ("sys/kernel/debug/kho/out/scratch_phys", b"", "no scratch areas can be read"),
        (paths.BOOT_PARAMS, None, "which memory firmware gave is not known"),
        (paths.BOOT_PARAMS, b"short", "holds no memory map"),
        (paths.BOOT_PARAMS, bytes(4096), "holds no memory map"),
        (paths.IOMEM, None, "proc/iomem: no such file or directory"),
        (paths.IOMEM, b"00000000-00000000 : System RAM\n", "it shows addresses to root only"),
        (paths.IOMEM, b"nonsense\n", "cannot be understood"),
        ("sys/devices/system/node/node1/memory8", b"", "2 nodes, and which memory is on which node is not shown"),
        ("sys/devices/system/node/node1/memoryx", b"", "2 nodes, and which memory is on which node is not shown"),
        (paths.NODES_ONLINE, b"", "sys/devices/system/node: which memory is on which node is not shown"),
    ],
)
def test_no_guard_is_said_and_not_guessed(tmp_path: Path, path: str, data: bytes | None, says: str) -> None:
    """Nothing is printed on standard output that a script could append."""
    root = machine(tmp_path)
    if "node1" in path:
        for name in (root / "sys/devices/system/node/node0").iterdir():
            (name / "phys_index").unlink()
            name.rmdir()
        (root / path).parent.mkdir()
        (root / paths.NODES_ONLINE).write_text("0-1\n")
        if path.endswith("x"):
            (root / paths.MEMORY / "block_size_bytes").unlink()
    (root / path).unlink() if data is None else (root / path).write_bytes(data)
    code, output, errors = invoke(root)

    assert (code, output) == (1, "")
    assert says in errors


def test_nodes(tmp_path: Path) -> None:
    """One guard stays on one node, and out of a block that two of them share."""
    root = machine(tmp_path)
    (root / paths.NODES_ONLINE).write_text("0-1\n")
    node = root / "sys/devices/system/node/node1"
    for number in range(1, 8):
        (node / f"memory{number}").mkdir(parents=True)
        if number != 1:
            (node.parent / f"node0/memory{number}/phys_index").unlink()
            (node.parent / f"node0/memory{number}").rmdir()
    assert invoke(root)[1].startswith(f"crashkernel={(548 - 256) * MIB}@0x10000000 ")


def test_the_archives_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The boot archive's handover-args prints what the command prints, and says when it is called wrongly."""
    root = machine(tmp_path)
    (tmp_path / "image").write_bytes(b"x")
    words = ["--root", str(root), "--kernel", str(tmp_path / "image")]
    for more in ([], ["--kexec-command"]):
        assert handover_args.main([*words, *more]) == 0
        assert capsys.readouterr().out == invoke(root, *words[2:], *more)[1]
    assert handover_args.main(["--root", str(root), "--kexec-command"]) == 2
    assert handover_args.main(["--nonsense"]) == 2
    assert "usage: handover-args" in capsys.readouterr().err
    (root / paths.IOMEM).unlink()
    assert handover_args.main(["--root", str(root)]) == 1
