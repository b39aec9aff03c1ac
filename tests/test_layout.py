# SPDX-License-Identifier: MIT
"""The layout that is advised; tests/vm/test_pages.py boots with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from safemem.boot import guard, paths
from safemem.boot.ground import CannotSay, Ground
from safemem.boot.ranges import Range
from safemem.cli import main
from safemem.outgoing import layout
from tests.fakes import machine

MIB = 1 << 20
LOW = (Range(MIB, 3071 * MIB),)


def above(last: int) -> tuple[Range, ...]:
    """Return the memory of a machine with 3 GiB below 4 GiB and the rest from there to `last`, in MiB."""
    return (*LOW, Range(4096 * MIB, last * MIB))


@pytest.mark.parametrize(
    ("ram", "nodes", "low", "least"),
    [
        ((Range(MIB, 1024 * MIB),), (), 224, 0.6),
        # More below 4 GiB than above: most of scratch goes above, so that the guard can lie below.
        (above(5120), (), 128, 0.65),
        # The second node whole, because no scratch area is in it.
        (above(9216), (Range(0, 5120 * MIB), Range(5120 * MIB, 9216 * MIB)), None, 0.49),
        (above(17408), (), None, 0.8),
        # The map of 1 TiB does not fit below 4 GiB.
        (above(1 << 20), (), 128, 0.94),
    ],
)
def test_one_guard_covers_most(ram: tuple[Range, ...], nodes: tuple[Range, ...], low: int | None, least: float) -> None:
    """The guard that would be printed after a boot with the layout is as large as promised, wherever scratch lies."""
    ground = Ground(ram, (), tuple((node,) for node in nodes) or (ram,), 15 * MIB, 30 * MIB)
    found, rest, guarded, smallest = layout.best(ground)
    after = guarded.size
    memory = sum(area.end - area.start for area in ram)

    assert low is None or found == low * MIB
    assert found % (16 * MIB) == rest % (16 * MIB) == 0
    # An accepting kernel has to find room for image, initrd and the map of all memory.
    assert found + rest >= memory // 64 + 45 * MIB
    assert after >= least * memory
    # Where the kernel really puts the areas: at the top, below what it took early, which is anything up to the slack;
    # or below its image, if that leaves too little above it.
    for early in (0, 16 * MIB, 60 * MIB):
        for image, promised in ((0, after), (15 * MIB, smallest)):
            scratch = []
            for size, end in ((found, ram[0].end), (rest, ram[-1].end)):
                top = end - early - (size + image - 1 if image else 0)
                scratch += [Range(top - size, top)] if size else []
            best = guard.best_guards(ground._replace(scratch=tuple(sorted(scratch))))
            assert best.size >= promised > 0


def test_too_little_memory() -> None:
    """Where no layout leaves anything, that is said."""
    ram = (Range(MIB, 256 * MIB),)
    with pytest.raises(CannotSay, match=r"no layout of \d+ MiB of scratch leaves anything to guard"):
        layout.best(Ground(ram, (), (ram,), 15 * MIB, 30 * MIB))


@pytest.mark.parametrize(
    ("release", "name"),
    [("7.3.4", "kho_scratch"), ("7.4.0-rc1", "kho_bootmem"), ("8.0", "kho_bootmem"), ("6.18", "kho_scratch")],
)
def test_command(tmp_path: Path, release: str, name: str) -> None:
    """The argument alone is printed to be appended, under the name that the kernel knows; how much is said beside it."""
    root = machine(tmp_path)
    (root / "proc/sys/kernel/osrelease").write_text(f"{release}\n")
    result = CliRunner().invoke(main, ["layout", "--root", str(root)])
    document = json.loads(CliRunner().invoke(main, ["layout", "--format", "json", "--root", str(root)]).stdout)

    assert result.exit_code == 0
    assert result.stdout == f"{document['argument']}\n"
    argument, _, value = document["argument"].partition("=")
    low, rest, node = (int(part.removesuffix("M")) for part in value.split(","))
    assert (argument, node) == (name, 0) and (low, rest) == (192, 0)
    assert document["now"] == 532 * MIB < document["after"]
    assert "guarded now    532 MiB, 52% of 1023.5 MiB" in result.stderr
    assert f"with it        {document['after'] // MIB} MiB, 69." in result.stderr
    assert (
        "only one range can be guarded, without gigantic pages: this processor or kernel shows no pages"
        in result.stderr
    )


def test_without_kho(tmp_path: Path) -> None:
    """A machine that does not use KHO yet is told the layout as well, and that KHO has to be on."""
    root = machine(tmp_path)
    for file in (root / "sys/kernel/debug/kho/out").iterdir():
        file.unlink()
    (root / "sys/kernel/debug/kho/out").rmdir()
    (root / "sys/class/misc/liveupdate/dev").unlink()
    (root / "sys/class/misc/liveupdate").rmdir()
    result = CliRunner().invoke(main, ["layout", "--root", str(root)])

    assert result.exit_code == 0 and result.stdout.startswith("kho_scratch=")
    assert "the boot loader's line needs kho=on as well" in result.stderr
    assert "guarded now    none: KHO is off (" in result.stderr
    (root / paths.IOMEM).unlink()
    assert "proc/iomem" in CliRunner().invoke(main, ["layout", "--root", str(root)]).stderr
