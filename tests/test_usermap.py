# SPDX-License-Identifier: MIT
"""What the kernel booted with, where the command line has taken memory away from firmware's map, or a driver has put it back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot import ground, memory, paths, probe, usermap
from safemem.boot.cmdline import arguments
from safemem.boot.ranges import Range, common, total
from tests.fakes import GIB, MIB, make_root, pass_on, zero_page

#: 2 GiB, and what firmware keeps.
MAP = ((0, 0x9FC00, 1), (0x9FC00, 0x400, 2), (MIB, 2 * GIB - MIB, 1), (0xFFFC0000, 0x40000, 2))
ENTRIES = [(Range(start, start + size), kind) for start, size, kind in MAP]
LOW = Range(0, 0x9FC00)


def left(line: str) -> tuple[Range, ...]:
    """Return the memory that is left of the map with that command line."""
    return usermap.usable(usermap.applied(ENTRIES, arguments(line)))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("quiet", (LOW, Range(MIB, 2 * GIB))),
        ("mem=1G", (LOW, Range(MIB, GIB))),
        ("mem=0x40000000", (LOW, Range(MIB, GIB))),
        ("mem=nopentium", (LOW, Range(MIB, 2 * GIB))),
        ("mem=0", (LOW, Range(MIB, 2 * GIB))),
        ("memmap=1G", (LOW, Range(MIB, GIB))),
        ("memmap=512M$1G", (LOW, Range(MIB, GIB), Range(1536 * MIB, 2 * GIB))),
        ('memmap="512M$1G"', (LOW, Range(MIB, GIB), Range(1536 * MIB, 2 * GIB))),
        ("memmap=512M!1G", (LOW, Range(MIB, GIB), Range(1536 * MIB, 2 * GIB))),
        ("memmap=512m#1g", (LOW, Range(MIB, GIB), Range(1536 * MIB, 2 * GIB))),
        ("memmap=512M%1G-1+0xefffffff", (LOW, Range(MIB, GIB), Range(1536 * MIB, 2 * GIB))),
        ("memmap=512M%1G+0xefffffff", (LOW, Range(MIB, GIB), Range(1536 * MIB, 2 * GIB))),
        ("memmap=512M%1G-1", (LOW, Range(MIB, GIB), Range(1536 * MIB, 2 * GIB))),
        ("memmap=512M%1G", (LOW, Range(MIB, GIB), Range(1536 * MIB, 2 * GIB))),
        ("memmap=512M%1G-7+1", (LOW, Range(MIB, 2 * GIB))),
        ("memmap=4G@4G", (LOW, Range(MIB, 2 * GIB), Range(4 * GIB, 8 * GIB))),
        ("memmap=256M$1G,256M$1536M", (LOW, Range(MIB, GIB), Range(1280 * MIB, 1536 * MIB), Range(1792 * MIB, 2 * GIB))),
        ("memmap=256M$1G memmap=256M!1536M", (LOW, Range(MIB, GIB), Range(1280 * MIB, 1536 * MIB), Range(1792 * MIB, 2 * GIB))),
        ("memmap=exactmap memmap=640K@0 memmap=127M@1M", (Range(0, 640 << 10), Range(MIB, 128 * MIB))),
        ("memmap=exactmap,640K@0,127M@1M", (Range(0, 640 << 10), Range(MIB, 128 * MIB))),
        ("memmap=64M@16M memmap=exactmap", ()),
        ("memmap=02000000000$0", (Range(GIB // 4, 2 * GIB),)),
    ],
)  # fmt: skip
def test_what_a_command_line_leaves(line: str, expected: tuple[Range, ...]) -> None:
    """Each form that the kernel takes, with its numbers as the kernel reads them (parse_memmap_one)."""
    assert left(line) == expected


@pytest.mark.parametrize("line", ["memmap=1G&1G", "memmap=G$1G", "memmap=1G$", "memmap=1G$1Gx", "memmap=1G%1G-x", "memmap=1G%1G*1", "memmap=", "memmap=1G%1G-1+", "mem=1Gx", "mem=08G", "memmap=99999999999999999999G"])  # fmt: skip
def test_what_cannot_be_understood(tmp_path: Path, line: str) -> None:
    """The kernel makes something of it all the same, so which memory it booted with cannot be told: no guard, and a note."""
    with pytest.raises(ValueError, match="cannot be understood"):
        left(line)
    root = str(booted(tmp_path, line))
    assert memory.room(root).firmware == ()
    with pytest.raises(ground.CannotSay, match="cannot be understood"):
        ground.read_ground(root, ())


@given(st.text("0123456789xKMG@#$!%+-,exactmap", max_size=16))
def test_a_command_line_never_makes_memory_of_nothing(text: str) -> None:
    """Whatever stands there, it is refused, or what is left lies in the map or in what `@` or a new type names."""
    try:
        found = left(f"memmap={text}")
    except ValueError:
        return
    if "@" not in text and "+" not in text:
        assert total(common(found, usermap.usable(ENTRIES))) == total(found)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (((0, 4 * GIB, 1), (GIB, GIB, 2)), (Range(0, GIB), Range(2 * GIB, 4 * GIB))),
        (((GIB, GIB, 2), (0, 4 * GIB, 1)), (Range(0, GIB), Range(2 * GIB, 4 * GIB))),
        (((0, 2 * GIB, 1), (GIB, 2 * GIB, 1)), (Range(0, 3 * GIB),)),
        (((0, 4 * GIB, 1), (GIB, GIB, 0xEFFFFFFF)), (Range(0, GIB), Range(2 * GIB, 4 * GIB))),
        (((0, 4 * GIB, 1), (GIB, GIB, 7), (GIB, 0, 2)), (Range(0, GIB), Range(2 * GIB, 4 * GIB))),
        (((0, 4 * GIB, 1), (GIB, GIB, 0)), (Range(0, 4 * GIB),)),
        (((0, GIB, 1), (2 * GIB, 0, 1)), (Range(0, GIB),)),
    ],
)  # fmt: skip
def test_entries_that_overlap(
    tmp_path: Path, entries: tuple[tuple[int, int, int], ...], expected: tuple[Range, ...]
) -> None:
    """The highest type counts, in whichever order they come; an empty entry is none."""
    root = make_root(tmp_path)
    (root / paths.BOOT_PARAMS).write_bytes(zero_page(entries))

    assert memory.firmware_memory(str(root)) == expected


def test_an_entry_beyond_all_addresses(tmp_path: Path) -> None:
    """The kernel drops such a map whole, and makes one up."""
    root = make_root(tmp_path)
    (root / paths.BOOT_PARAMS).write_bytes(zero_page((*MAP, (1 << 63, (1 << 63) + 1, 1))))

    with pytest.raises(ValueError, match="beyond all addresses"):
        memory.firmware_memory(str(root))


# ---- what a driver puts back

DAX = Range(GIB, 1536 * MIB)


def booted(base: Path, line: str, name: str = "kmem", state: str = "online") -> Path:
    """Return a root with 2 GiB, of which a driver has added DAX."""
    options = {"online": "0-15", "offline": ""} if state == "online" else {"online": "0-7,12-15", "offline": "8-11"}
    root = make_root(base, cmdline=f"kho=on {line}", **options)  # type: ignore[arg-type]
    (root / paths.BOOT_PARAMS).write_bytes(zero_page(MAP))
    (root / paths.IOMEM).write_text(
        "00001000-0009fbff : System RAM\n00100000-3fffffff : System RAM\n  10000000-10ffffff : Kernel code\n"
        f"40000000-5fffffff : dax0.0\n  40000000-5fffffff : System RAM ({name})\n60000000-7fffffff : System RAM\n"
    )
    return root


CARVED = ["memmap=512M%1G-1+0xefffffff", "memmap=512M!1G", "quiet"]


@pytest.mark.parametrize("line", CARVED)
@pytest.mark.parametrize("name", ["kmem", "virtio_mem"])
def test_memory_that_a_driver_has_added_is_none_of_firmwares(tmp_path: Path, line: str, name: str) -> None:
    """Firmware calls it RAM, but the kernel booted without it: nothing there can be guarded."""
    root = str(booted(tmp_path, line, name))

    assert memory.firmware_memory(root) == (LOW, Range(MIB, GIB), Range(1536 * MIB, 2 * GIB))
    _, found = ground.read_ground(root, ())
    assert not common(found.ram, (DAX,))


@pytest.mark.parametrize("line", CARVED)
def test_memory_that_was_online_early_in_a_range_of_firmwares(tmp_path: Path, line: str) -> None:
    """The driver's blocks are hot-added, and onlined before safemem ran."""
    root = str(booted(tmp_path, line))
    notes = memory.onlined_early(root, probe.read_snapshot(root))

    assert [str(note) for note in notes] == [
        f"{DAX} (512 MiB) was hot-added and online before safemem ran: boot with memhp_default_state=offline"
    ]
    held = str(booted(tmp_path / "held", line, state="offline"))
    assert memory.onlined_early(held, probe.read_snapshot(held)) == ()


def test_a_dimm_in_a_range_that_was_taken_away(tmp_path: Path) -> None:
    """It has no driver's name; only the command line tells that the kernel did not boot with it."""
    root = booted(tmp_path, "memmap=512M$1G")
    (root / paths.IOMEM).write_text(
        "00001000-0009fbff : System RAM\n00100000-3fffffff : System RAM\n"
        "40000000-5fffffff : System RAM\n60000000-7fffffff : System RAM\n"
    )

    assert [note.code for note in memory.onlined_early(str(root), probe.read_snapshot(str(root)))] == ["onlined-early"]
    assert not common(ground.read_ground(str(root), ())[1].ram, (DAX,))


def test_a_driver_says_so_itself(tmp_path: Path) -> None:
    """Where firmware's map cannot be read, as on arm64, a driver's name is enough; of the rest it is said that it is unknown."""
    root = booted(tmp_path, "quiet")
    (root / paths.BOOT_PARAMS).unlink()
    (root / paths.AUTO_ONLINE).write_text("online\n")
    notes = memory.onlined_early(str(root), probe.read_snapshot(str(root)))
    assert [note.code for note in notes] == ["onlined-early-unknown", "onlined-early"]

    (root / paths.AUTO_ONLINE).write_text("offline\n")
    notes = memory.onlined_early(str(root), probe.read_snapshot(str(root)))
    assert [note.code for note in notes] == ["onlined-early"]


# ---- what may be part of a map


@pytest.mark.parametrize("kind", [0x80000000, 0x80000001])
def test_entries_that_are_elsewhere(tmp_path: Path, kind: int) -> None:
    """A node of the list that points elsewhere may hold more of the map."""
    root = booted(tmp_path, "quiet")
    pass_on(root, (kind, bytes(16)))

    with pytest.raises(ValueError, match="part of the memory map may be missing"):
        memory.firmware_memory(str(root))


def test_a_handover_that_is_elsewhere(tmp_path: Path) -> None:
    """It was offered, though no kernel of today follows it; what is not said to be anything may be one."""
    root = make_root(tmp_path)
    pass_on(root, (0x8000000A, bytes(16)))
    assert probe.read_snapshot(str(root)).facts["handover"].value == "rejected"

    pass_on(root, (0x80000000, bytes(16)))
    assert probe.read_snapshot(str(root)).facts["handover"].value == "unknown"


def test_several_nodes(tmp_path: Path) -> None:
    """Each of them counts."""
    root = make_root(tmp_path)
    (root / paths.BOOT_PARAMS).write_bytes(zero_page(MAP))
    more = [(4 * GIB, GIB, 1), (8 * GIB, GIB, 1)]
    data = [b"".join(number.to_bytes(size, "little") for number, size in zip(entry, (8, 8, 4), strict=True)) for entry in more]  # fmt: skip
    pass_on(root, (1, data[0]), (9, bytes(32)), (1, data[1]))

    assert memory.firmware_memory(str(root))[2:] == (Range(4 * GIB, 5 * GIB), Range(8 * GIB, 9 * GIB))


@pytest.mark.parametrize(
    "text",
    ["00000000-00000000 : System RAM\n", "00100000-3ff : System RAM\n", "00100000-3fffffff : System RAM\n  21000000-21ffffff : Ker", ""],
)  # fmt: skip
def test_an_iomem_that_is_not_whole(tmp_path: Path, text: str) -> None:
    """Nothing is taken from part of it: what is missing may be in use."""
    root = booted(tmp_path, "quiet")
    (root / paths.IOMEM).write_text(text)
    found = memory.room(str(root))

    assert (found.ram, found.kernel, found.taken) == ((), (), ())


@pytest.mark.parametrize("line", ["add_efi_memmap", "efi=nosoftreserve", "efi=debug,nosoftreserve"])
def test_where_efis_own_map_counts(tmp_path: Path, line: str) -> None:
    """What it makes RAM is not in the zero page: which memory came later cannot be told."""
    with pytest.raises(ValueError, match="EFI's own map counts"):
        left(line)
    assert memory.room(str(booted(tmp_path, line))).firmware == ()
