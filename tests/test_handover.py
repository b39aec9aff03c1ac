# SPDX-License-Identifier: MIT
"""The guard's arithmetic, and what is said where there is none; tests/vm/test_handover.py boots with it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from safemem import handover, probe
from safemem.cli import main
from safemem.model import Range
from tests.fakes import make_root

MIB, GIB = 1 << 20, 1 << 30


def area(start: int, end: int) -> Range:
    """Return a range given in MiB."""
    return Range(start * MIB, end * MIB)


@pytest.mark.parametrize(
    ("ram", "scratch", "expected"),
    [
        # The 1 GiB guest: all below the lowest scratch area.
        ((area(1, 1024),), (area(548, 776), area(828, 920)), area(16, 544)),
        # Edges are rounded inwards to 16 MiB, and 16 MiB is the lowest start.
        ((area(1, 1024),), (area(599, 700),), area(16, 592)),
        # A hole below 4 GiB: the larger gap wins.
        ((area(1, 3072), area(4096, 9216)), (area(100, 200), area(9000, 9100)), area(4096, 8992)),
        # So much that a kernel could not run in the rest: the end is cut off.
        ((area(0, 1024),), (area(1008, 1024),), area(16, 832)),
    ],
)
def test_best_guard(ram: tuple[Range, ...], scratch: tuple[Range, ...], expected: Range) -> None:
    """The largest piece that touches nothing, and no more than leaves room."""
    assert handover.best_guard(ram, scratch) == expected


@given(
    st.lists(st.integers(0, 8192), min_size=2, max_size=12, unique=True),
    st.lists(st.integers(0, 8192), min_size=2, max_size=8, unique=True),
)
def test_a_guard_never_touches_what_it_must_not(edges: list[int], holes: list[int]) -> None:
    """Whatever memory looks like: aligned, inside one piece of memory, and in no scratch area."""
    ram = tuple(area(a, b) for a, b in zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False))
    scratch = tuple(area(a, b) for a, b in zip(sorted(holes)[::2], sorted(holes)[1::2], strict=False))
    try:
        guard = handover.best_guard(ram, scratch)
    except handover.CannotSay:
        return
    assert (
        guard.start % handover.ALIGN == 0
        and guard.end % handover.ALIGN == 0
        and guard.end > guard.start >= handover.ALIGN
    )
    assert any(piece.start <= guard.start and guard.end <= piece.end for piece in ram)
    assert not any(hole.start < guard.end and guard.start < hole.end for hole in scratch)
    assert sum(piece.end - piece.start for piece in ram) - (guard.end - guard.start) >= handover.ROOM


def machine(base: Path) -> Path:
    """Return a machine with 1 GiB from firmware, KHO on, and an e820 map."""
    root = make_root(base, scratch=((548 * MIB, 228 * MIB), (828 * MIB, 92 * MIB)))
    page = bytearray(4096)
    table = [(0, 0x9FC00, 1), (0x9FC00, 0x400, 2), (MIB, GIB - MIB, 1), (0xFFFC0000, 0x40000, 2)]
    page[0x1E8] = len(table)
    for index, entry in enumerate(table):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * index, *entry)
    (root / probe.BOOT_PARAMS).write_bytes(page)
    return root


def test_arguments(tmp_path: Path) -> None:
    """What is printed is what the next boot's probe reads back."""
    root = machine(tmp_path)
    result = CliRunner().invoke(main, ["handover-args", "--root", str(root)])
    words = result.stdout.split()

    assert result.exit_code == 0
    assert words[0] == f"crashkernel={528 * MIB}@0x1000000"
    assert words[1] == "safemem.guard=0x1000000-0x21ffffff"
    assert words[3] == "memhp_default_state=offline"
    (tmp_path / "next").mkdir()
    after = probe.read_snapshot(str(make_root(tmp_path / "next", cmdline=result.stdout.strip())))
    assert after.cmdline_safe == (Range(548 * MIB, 776 * MIB), Range(828 * MIB, 920 * MIB))
    assert after.facts["guard"].value == "void"  # asked for, and this fake did not reserve it
    document = json.loads(CliRunner().invoke(main, ["handover-args", "--format", "json", "--root", str(root)]).stdout)
    assert document["bytes"]["guarded"] == 528 * MIB
    explained = CliRunner().invoke(main, ["handover-args", "--explain", "--root", str(root)])
    assert "guarded" in explained.stderr and "52% of the memory" in explained.stderr


def test_kdump_is_named(tmp_path: Path) -> None:
    """Another crashkernel= would be the one that counts."""
    root = machine(tmp_path)
    (root / "proc/cmdline").write_text("kho=on crashkernel=256M\n")
    assert "leave it out" in CliRunner().invoke(main, ["handover-args", "--root", str(root)]).stderr


@pytest.mark.parametrize(
    ("path", "data", "says"),
    [
        ("sys/kernel/debug/kho/out/scratch_phys", b"", "no scratch areas can be read"),
        (probe.BOOT_PARAMS, None, "which memory firmware gave is not known"),
        (probe.BOOT_PARAMS, b"short", "holds no memory map"),
        (probe.BOOT_PARAMS, bytes(4096), "holds no memory map"),
    ],
)
def test_no_guard_is_said_and_not_guessed(tmp_path: Path, path: str, data: bytes | None, says: str) -> None:
    """Nothing is printed on standard output that a script could append."""
    root = machine(tmp_path)
    (root / path).unlink() if data is None else (root / path).write_bytes(data)
    result = CliRunner().invoke(main, ["handover-args", "--root", str(root)])

    assert (result.exit_code, result.stdout) == (1, "")
    assert says in result.stderr
