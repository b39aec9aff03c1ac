# SPDX-License-Identifier: MIT
"""Gigantic pages as a guard: what a command line asks for, what the kernel has, kept from programs, given back."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot import asked, engine, files, gigantic, guards, memory, plan, probe, record
from safemem.boot import main as boot
from safemem.boot.asked import Asked
from safemem.boot.model import Blocks, Pages, Room, Rule, Term
from safemem.boot.ranges import Range
from safemem.policy import values
from tests.fakes import AREA, BLOCK, GIB, MIB, rejecting
from tests.kit import install, policy, snapshot, when

NUMBERS = st.dictionaries(st.integers(0, 9), st.integers(0, 5000), min_size=1, max_size=4).map(
    lambda found: tuple(sorted(found.items()))
)


def seen(root: Path) -> guards.Guards:
    """Return what the boot program makes of the guards of a root."""
    size, blocks, _ = memory.blocks(str(root))
    return guards.read(
        str(root),
        {"safemem.guard": (root / "proc/cmdline").read_text().split("safemem.guard=")[1].strip()},
        size,
        blocks,
    )


# ---- the argument


@given(NUMBERS, st.one_of(st.just(()), NUMBERS), st.sampled_from([GIB, 16 * GIB, 512 * MIB]))
def test_what_is_written_is_read(
    pages: tuple[tuple[int, int], ...], own: tuple[tuple[int, int], ...], page: int
) -> None:
    wanted = Asked(AREA, page, pages, own)
    text = asked.write(wanted)
    assert asked.parse(text) == wanted and " " not in text
    for end in range(len(str(AREA)) + 1, len(text)):  # up to there it is the older form, which has no check sum
        with pytest.raises(ValueError):
            asked.parse(text[:end])


def test_the_older_form_is_read() -> None:
    assert asked.parse(str(AREA)) == Asked(AREA) and asked.write(Asked(AREA)) == str(AREA)


@pytest.mark.parametrize(
    "body", ["1G=0:1", f"{AREA};1G=0", f"{AREA};1G=0:1,0:2", f"{AREA};1G=a:1", f"{AREA};own=0:1", f"{AREA};1G=0:-1", f"{AREA};x"]
)  # fmt: skip
def test_nonsense_with_a_check_sum_is_refused(body: str) -> None:
    import zlib

    with pytest.raises(ValueError):
        asked.parse(f"{body};crc32={zlib.crc32(body.encode()):08x}")


# ---- what is in force


@pytest.mark.parametrize(
    ("pages", "wanted", "value"),
    [
        ({0: (4, 5), 1: (6, 7)}, {0: 2, 1: 2}, "full"),
        ({0: (4, 5), 1: (6, 7)}, {0: 1, 1: 2}, "full"),
        ({0: (4,), 1: (6, 7)}, {0: 2, 1: 2}, "part"),
        ({0: (), 1: ()}, {0: 2, 1: 2}, "part"),  # the range is in force
        ({0: (4,)}, {0: 1, 5: 1}, "part"),  # a node that this kernel does not have
    ],
)
def test_what_is_in_force(
    tmp_path: Path, pages: dict[int, tuple[int, ...]], wanted: dict[int, int], value: str
) -> None:
    found = seen(rejecting(tmp_path, pages, wanted))
    assert (found.fact.value, found.crash.value, found.range) == (value, "full", AREA)
    there = [
        start for item in found.pages for area in item.ranges for start in range(area.start // GIB, area.end // GIB)
    ]
    assert sorted(there) == sorted(each for own in pages.values() for each in own)
    for item in found.pages:
        assert item.number == len(pages.get(item.node, ()))


def test_a_block_that_two_nodes_share(tmp_path: Path) -> None:
    """Blocks of 2 GiB, and node 2 begins in the middle of one: the page in its first half is node 1's."""
    root = rejecting(tmp_path, {0: (4,), 1: (5, 6), 2: (7,)}, {0: 1, 1: 2, 2: 1})
    memory_ = root / "sys/devices/system/memory"
    (memory_ / "block_size_bytes").write_text("80000000\n")
    for path in (*memory_.glob("memory*"), *root.glob("sys/devices/system/node/node*/memory*")):
        shutil.rmtree(path)
    for block, nodes in ((0, (0,)), (2, (0, 1)), (3, (1, 2))):
        (memory_ / f"memory{block}").mkdir()
        (memory_ / f"memory{block}/state").write_text("online\n")
        for node in nodes:
            (root / f"sys/devices/system/node/node{node}/memory{block}").mkdir()
    (root / "sys/devices/system/node/online").write_text("0-2\n")
    found = seen(root)
    assert found.fact.value == "full"
    assert [item.ranges for item in found.pages] == [
        (Range(4 * GIB, 5 * GIB),), (Range(5 * GIB, 7 * GIB),), (Range(7 * GIB, 8 * GIB),)
    ]  # fmt: skip


def test_neither_is_in_force(tmp_path: Path) -> None:
    root = rejecting(tmp_path, {0: (), 1: ()}, {0: 2, 1: 2})
    (root / "sys/kernel/kexec_crash_size").write_text("0\n")
    assert seen(root).fact.value == "void"


def test_a_page_that_a_program_has_mapped_guards_nothing(tmp_path: Path) -> None:
    found = seen(rejecting(tmp_path, {0: (4, 5), 1: (6, 7)}, {0: 2, 1: 2}, mapped=(5,)))
    assert found.fact.value == "part" and found.pages[0] == Pages(0, GIB, 2, 1, 0, (Range(4 * GIB, 5 * GIB),))


def test_pages_of_the_usual_size_are_none(tmp_path: Path) -> None:
    """512 pages of 2 MiB where one of 1 GiB could be: each has a head, so none has a tail 2 MiB further on."""
    root = rejecting(tmp_path, {0: (4, 5), 1: (6, 7)}, {0: 1, 1: 2})
    with open(root / "proc/kpageflags", "r+b") as file:
        file.seek((5 * GIB + 2 * MIB) // 4096 * 8)
        file.write((0x28000).to_bytes(8, "little"))
    assert seen(root).fact.value == "unknown"  # the pool says 2
    for where in ("sys/kernel/mm/hugepages", "sys/devices/system/node/node0/hugepages"):
        for name in ("nr_hugepages", "free_hugepages"):
            (root / where / "hugepages-1048576kB" / name).write_text("1\n")
    assert seen(root).fact.value == "full" and seen(root).pages[0].ranges == (Range(4 * GIB, 5 * GIB),)


@pytest.mark.parametrize(
    "lost", ["proc/kpageflags", "sys/devices/system/node/node1/hugepages/hugepages-1048576kB/free_hugepages"]
)
def test_what_cannot_be_read_is_unknown(tmp_path: Path, lost: str) -> None:
    root = rejecting(tmp_path, {0: (4, 5), 1: (6, 7)}, {0: 2, 1: 2})
    (root / lost).unlink()
    found = probe.read_snapshot(str(root))
    assert found.facts["guard"].value == "unknown" and "guard-unknown" in {note.code for note in found.notes}


def test_a_kernel_without_gigantic_pages(tmp_path: Path) -> None:
    root = rejecting(tmp_path, {}, {0: 2, 1: 2})
    (root / "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages").unlink()
    for path in (root / "sys/kernel/mm/hugepages/hugepages-1048576kB").iterdir():
        path.unlink()
    (root / "sys/kernel/mm/hugepages/hugepages-1048576kB").rmdir()
    found = seen(root)
    assert found.fact.value == "part" and found.pages == ()


def test_pages_and_an_accepted_handover(tmp_path: Path) -> None:
    """Since 7.3 an accepting kernel has some: no contradiction, unlike a crash range."""
    root = rejecting(tmp_path, {0: (), 1: (6,)}, {0: 2, 1: 2})
    for name in ("fdt", "sub_fdts/kexec-metadata"):
        path = root / "sys/kernel/debug/kho/in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (root / "sys/kernel/kexec_crash_size").write_text("0\n")
    found = probe.read_snapshot(str(root))
    assert (found.facts["handover"].value, found.facts["guard"].value) == ("accepted", "part")


# ---- the boot program


def boots(root: Path, action: str, **modifiers: object) -> dict[str, object]:
    """Return the record of a boot."""
    install(root, otherwise=Rule("otherwise", action, **modifiers), sources=("none",))  # type: ignore[arg-type]
    assert boot.main(["--root", str(root)]) == 0
    found: dict[str, object] = json.loads((root / record.RECORD).read_text())
    return found


def test_online_safe_reserves_them(tmp_path: Path) -> None:
    root = rejecting(tmp_path, {0: (4, 5), 1: (6, 7)}, {0: 2, 1: 2})
    found = boots(root, "online-safe")
    assert found["result"]["problems"] == []  # type: ignore[index]
    assert found["totals"] == {
        "in_use": 0, "safe": 0, "guarded": 4 * GIB + AREA.size, "held": 8 * BLOCK, "quarantined": 0,
        "exposed": GIB - AREA.size,
    }  # fmt: skip
    made = {
        path.name: (path.stat().st_size, path.stat().st_mode & 0o777) for path in (root / "run/safemem/pages").iterdir()
    }
    assert made == {"node0": (2 * GIB, 0o600), "node1": (2 * GIB, 0o600)}


class Pool:
    """The kernel's reservations of one pool, ours and a program's: what `mmap` of a file on hugetlbfs changes of them."""

    def __init__(self, root: Path, free: int, programs: int, patched: pytest.MonkeyPatch) -> None:
        self.folder, self.free, self.programs = root / "sys/kernel/mm/hugepages/hugepages-1048576kB", free, programs
        self.files: dict[str, int] = {}
        patched.setattr(files, "set_aside", self.set_aside)
        self.tell()

    def tell(self) -> None:
        (self.folder / "free_hugepages").write_text(f"{self.free}\n")
        (self.folder / "resv_hugepages").write_text(f"{self.programs + sum(self.files.values())}\n")

    def set_aside(self, root: str, name: str, size: int) -> None:
        others = self.programs + sum(pages for other, pages in self.files.items() if other != name)
        if others + size // GIB > self.free:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        self.files[name] = size // GIB
        with open(f"{root}/{name}", "ab") as file:
            file.truncate(size)
        self.tell()


def test_what_a_program_has_reserved_is_not_kept_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may touch one of any node at any time; all that it has not reserved are ours all the same."""
    root = rejecting(tmp_path, {0: (4, 5), 1: (6, 7)}, {0: 2, 1: 2}, reserved=False)
    pages, pool = seen(root).pages, Pool(root, 4, 1, monkeypatch)
    (note,) = gigantic.reserve(str(root), pages)
    assert note.code == "pages-not-reserved" and "3 of 4" in note and "a program has reserved 1" in note
    assert sum(pool.files.values()) == 3 and not gigantic.kept(str(root), pages)
    pool.programs = 0
    pool.tell()
    assert gigantic.reserve(str(root), pages) == [] and gigantic.kept(str(root), pages)


def test_a_reservation_that_is_made_again_is_never_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = rejecting(tmp_path, {0: (4, 5, 6, 7)}, {0: 4}, reserved=False)
    pages, pool = seen(root).pages, Pool(root, 3, 0, monkeypatch)
    gigantic.reserve(str(root), tuple(item._replace(free=3) for item in pages))
    assert list(pool.files.values()) == [3]
    pool.free, pool.programs = 6, 1
    pool.tell()
    for _ in range(3):
        gigantic.reserve(str(root), tuple(item._replace(free=6) for item in pages))
        assert list(pool.files.values()) == [5]


def test_pages_that_cannot_be_reserved_are_exposed(tmp_path: Path) -> None:
    """Whatever the mount is, only the kernel's own count says that no program can get one."""
    root = rejecting(tmp_path, {0: (4, 5), 1: (6, 7)}, {0: 2, 1: 2}, reserved=False)
    found = boots(root, "online-safe")
    assert found["result"]["problem_codes"] == ["pages-not-reserved"]  # type: ignore[index]
    assert found["totals"]["exposed"] == 5 * GIB - AREA.size and found["result"]["shortfall"]  # type: ignore[index]
    assert found["totals"]["guarded"] == AREA.size  # type: ignore[index]


def test_pages_that_cannot_be_placed_are_exposed(tmp_path: Path) -> None:
    """Of a node whose pool and flags disagree, what the flags show may be anything."""
    root = rejecting(tmp_path, {0: (4, 5), 1: (6, 7)}, {0: 2, 1: 2})
    for folder, number in (("devices/system/node/node0/hugepages", 1), ("kernel/mm/hugepages", 3)):
        for name in ("nr_hugepages", "free_hugepages"):
            (root / f"sys/{folder}/hugepages-1048576kB" / name).write_text(f"{number}\n")
    found = boots(root, "online-safe")
    assert "guard-unknown" in found["snapshot"]["note_codes"]  # type: ignore[index]
    assert found["totals"]["guarded"] == 2 * GIB + AREA.size  # type: ignore[index]


def test_online_all_gives_them_back_but_for_the_operators_own(tmp_path: Path) -> None:
    root = rejecting(tmp_path, {0: (4, 5), 1: (6, 7)}, {0: 2, 1: 2}, own={1: 1})
    found = boots(root, "online-all")
    pools = [
        (root / f"sys/devices/system/node/node{node}/hugepages/hugepages-1048576kB/nr_hugepages") for node in (0, 1)
    ]
    assert [path.read_text().strip() for path in pools] == ["0", "1"]
    assert found["result"]["problem_codes"] == ["not-onlined"]  # type: ignore[index]  # a fake block keeps what is written
    assert found["totals"]["in_use"] == 5 * GIB and found["totals"]["guarded"] == 0  # type: ignore[index]


def test_online_all_asks_for_what_the_operator_wanted(tmp_path: Path) -> None:
    """A kernel that accepted may have had no room for it before."""
    root = rejecting(tmp_path, {0: (), 1: ()}, {0: 2, 1: 2}, own={0: 1, 1: 1})
    boots(root, "online-all")
    pools = [
        (root / f"sys/devices/system/node/node{node}/hugepages/hugepages-1048576kB/nr_hugepages") for node in (0, 1)
    ]
    assert [path.read_text().strip() for path in pools] == ["1", "1"]


def test_quarantine_leaves_them_alone(tmp_path: Path) -> None:
    root = rejecting(tmp_path, {0: (5,), 1: (6, 7)}, {0: 1, 1: 2})
    (root / "proc/meminfo").write_text("MemAvailable: 8388608 kB\n")
    boots(root, "online-safe", boot_memory="offline")
    states = {
        number: (root / f"sys/devices/system/memory/memory{number}/state").read_text().strip()
        for number in range(32, 64)
    }
    assert {states[number] for number in range(40, 64)} == {"online"}
    assert {states[number] for number in range(32, 40)} == {"offline"}


def test_a_block_with_a_part_of_a_page_is_not_tried() -> None:
    """Blocks of 2 GiB: the kernel would dissolve the page."""
    before = snapshot((Blocks(0, 3, "online"),), size=2 * GIB)._replace(
        gigantic=(Pages(0, GIB, 1, 1, 0, (Range(3 * GIB, 4 * GIB),)),), room=Room(available=8 * GIB)
    )
    decision = engine.decide(
        policy(otherwise=Rule("o", "online-safe", boot_memory="offline"), sources=("none",)), before
    )
    step = next(step for step in decision.steps if step.op == "offline")
    assert (step.first, step.last) == (0, 3)
    kept = tuple(Range(step.start, step.end) for step in decision.steps if step.op == "keep-guard")
    assert kept == (Range(3 * GIB, 4 * GIB),) and plan.fixed(step, before.room, kept) == {1: "guard"}


def test_where_pages_cannot_be_placed_no_block_is_tried() -> None:
    """Any of them may have a part of one."""
    before = snapshot((Blocks(0, 9, "online"),), size=2 * GIB)
    rule = Rule("o", "online-safe", boot_memory="offline")
    for pages, ops in (
        ((), {"offline"}),
        ((Pages(0, GIB, 1, 1, 0),), {"keep"}),
        ((Pages(0, GIB, 1, 0, 0),), {"offline"}),
    ):
        decision = engine.decide(policy(otherwise=rule, sources=("none",)), before._replace(gigantic=pages))
        assert {step.op for step in decision.steps} == ops and all(step.late for step in decision.steps)


def test_the_pool_is_looked_at_again(tmp_path: Path) -> None:
    root = rejecting(tmp_path, {0: (4, 5), 1: (6, 7)}, {0: 2, 1: 2})
    size, blocks, _ = memory.blocks(str(root))
    pages = seen(root).pages
    assert gigantic.now(str(root), pages, size, blocks) == pages
    assert gigantic.reserve(str(root), pages) == [] and gigantic.kept(str(root), pages)
    (root / "sys/kernel/mm/hugepages/hugepages-1048576kB/resv_hugepages").write_text("3\n")
    assert not gigantic.kept(str(root), pages)


def test_the_rule_for_a_whole_guard() -> None:
    """A policy of before gigantic pages that asks for a guard in force means all of it."""
    assert values.condition("guard", "held") == when("guard", Term("is", "full"))[0]
