# SPDX-License-Identifier: MIT
"""What the shipped policies decide on each architecture after a cold boot, on fake roots; docs/machines.md says the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from safemem.boot import engine, guards, memory, paths, probe
from safemem.boot.model import UNKNOWN, Blocks, Decision
from safemem.boot.ranges import Range
from safemem.policy import load
from tests import fakes
from tests.fakes import SHIPPED, make_root

PAGE = Path(__file__).resolve().parent.parent / "docs/machines.md"
#: A machine -> its architecture, and whether it has a device tree; x86 has the zero page.
MACHINES = {
    "x86-64": ("x86_64", False),
    "arm64 with a device tree": ("aarch64", True),
    "arm64 with ACPI": ("aarch64", False),
    "ppc64le, riscv64 with a device tree": ("ppc64le", True),
    "riscv64 with ACPI": ("riscv64", False),
    "s390x": ("s390x", False),
}
POLICIES = {path.stem: load.read(path) for path in SHIPPED}


def cold(base: Path, arch: str, *, tree: bool) -> Path:
    """Return a machine after a cold boot, whose kernel has no KHO unless it is an x86 or arm64; its hot-added blocks are offline."""
    kho = arch in ("x86_64", "aarch64")
    config = None if kho else "CONFIG_64BIT=y\n# CONFIG_KEXEC_HANDOVER is not set\n"
    root = make_root(base, cmdline="quiet", kho_out=kho, **({"config": config} if config else {}))  # type: ignore[arg-type]
    (root / paths.ARCH).write_text(f"{arch}\n")
    if arch != "x86_64":
        shutil.rmtree(root / paths.BOOT_PARAMS_FOLDER)
        shutil.rmtree(root / "sys/class/dmi")
    if tree:
        (root / paths.CHOSEN).mkdir(parents=True)
        (root / paths.CHOSEN / "name").write_bytes(b"chosen\0")
    if arch == "s390x":  # standby memory: blocks that are there and offline, of no driver
        (root / paths.IOMEM).write_text("00000000-3fffffff : System RAM\n  00100000-00ffffff : Kernel code\n")
        (root / paths.SYSINFO).write_text("Manufacturer:         IBM\nLPAR Name:            A\n")
    return root


def said(decision: Decision) -> str:
    """Return a decision in the words of the page."""
    word = {"online-all": "all memory", "online-safe": "held"}.get(decision.action, decision.action)
    return f"{word}, `{decision.rule.enter}`" if decision.rule.enter else word


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, str]]:
    """Return the page's table: for each machine the value of `handover`, and what each policy does."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines() if line.startswith("| ")]  # fmt: skip
    head, found = rows[0], {}
    for row in rows[2:]:
        cells = {"handover": row[1].strip("`")}
        for names, what in zip(head[2:], row[2:], strict=True):
            cells |= {name.strip(" `"): what for name in names.split(",")}
        found[row[0]] = cells
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_a_cold_boot(tmp_path: Path, table: dict[str, dict[str, str]], machine: str) -> None:
    """What the page says of that machine is what the policies decide; every shipped policy is in it."""
    arch, tree = MACHINES[machine]
    snapshot = probe.read_snapshot(str(cold(tmp_path, arch, tree=tree)))
    decided = {name: said(engine.decide(policy, snapshot)) for name, policy in POLICIES.items()}

    assert {"handover": snapshot.facts["handover"].value, **decided} == table[machine]


def test_every_machine_is_in_the_table(table: dict[str, dict[str, str]]) -> None:
    """And no other."""
    assert set(table) == set(MACHINES)


def test_riscv_is_as_ppc64(tmp_path: Path) -> None:
    """They share a row."""
    roots = (cold(tmp_path / arch, arch, tree=True) for arch in ("ppc64le", "riscv64"))
    facts = [probe.read_snapshot(str(root)).facts["handover"] for root in roots]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("arch", ["s390x", "riscv64"])
def test_not_knowing_has_its_reason(tmp_path: Path, arch: str) -> None:
    """It names the architecture, and is not taken for a cold boot although the kernel has no KHO."""
    fact = probe.read_snapshot(str(cold(tmp_path, arch, tree=False))).facts["handover"]

    assert (fact.value, fact.source) == (UNKNOWN, paths.ARCH)
    assert fact.reason == f"Linux hands over on x86_64 and aarch64, and {arch} shows nothing of its predecessor"


def test_standby_memory_stays_held(tmp_path: Path) -> None:
    """Where a policy goes on without knowing, no block of s390 standby memory is onlined but by `development`."""
    snapshot = probe.read_snapshot(str(cold(tmp_path, "s390x", tree=False)))
    goes_on = {name for name, policy in POLICIES.items() if engine.decide(policy, snapshot).action == "online-all"}

    assert goes_on == {"development"}
    held = engine.decide(POLICIES["maintenance"], snapshot).steps
    assert [step.op for step in held if step.first >= 32] == ["hold"]


def test_a_handover_by_a_device_tree_is_seen_anywhere(tmp_path: Path) -> None:
    """The properties are no architecture's own (drivers/of/fdt.c): what is offered to a kernel without KHO is lost."""
    root = cold(tmp_path, "riscv64", tree=True)
    (root / paths.CHOSEN / "linux,kho-fdt").write_bytes(bytes(16))
    snapshot = probe.read_snapshot(str(root))

    assert snapshot.facts["handover"].value == "unsupported"
    assert engine.decide(POLICIES["live-update-host"], snapshot).action == "panic"


# ---- machines of others


def test_a_kernel_without_files_of_kho(tmp_path: Path) -> None:
    """KHO on by default and no debugfs files asked for: what was offered may have been accepted."""
    config = (
        "CONFIG_KEXEC_HANDOVER=y\nCONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT=y\n# CONFIG_KEXEC_HANDOVER_DEBUGFS is not set\n"
    )
    root = make_root(tmp_path, cmdline="quiet", offered=True, kho_out=False, config=config)
    fact = probe.read_snapshot(str(root)).facts["handover"]

    assert (fact.value, fact.source) == (UNKNOWN, "proc/config.gz")


def test_a_device_tree_with_half_of_a_handover(tmp_path: Path) -> None:
    """A kernel with KHO on that shows no incoming tree has ignored it, and what is ignored is lost."""
    root = cold(tmp_path, "aarch64", tree=True)
    (root / paths.CHOSEN / "linux,kho-fdt").write_bytes(bytes(16))

    assert probe.read_snapshot(str(root)).facts["handover"].value == "rejected"


def test_memory_deep_below_a_window_of_cxl(tmp_path: Path) -> None:
    """Whole blocks of what kmem has added are its own, however deep they stand."""
    root = make_root(tmp_path, offline="80-95")
    (root / paths.IOMEM).write_text(
        "00001000-0009fbff : System RAM\n00100000-3ffdefff : System RAM\n"
        "280000000-37fffffff : CXL Window 0\n  280000000-2ffffffff : region0\n"
        "    280000000-2ffffffff : dax0.0\n      284000000-2ffffffff : System RAM (kmem)\n"
    )
    offline = [run for run in probe.read_snapshot(str(root)).blocks if run.state == "offline"]

    # Of block 80 the first half is not kmem's.
    assert offline == [Blocks(80, 80, "offline", 0, UNKNOWN), Blocks(81, 95, "offline", 0, "kmem")]


def test_blocks_that_do_not_begin_at_0(tmp_path: Path) -> None:
    """Numbers have holes, and may all be large."""
    root = make_root(tmp_path, online="8192-8316,8319", offline="8400-8403")
    size, found, notes = memory.blocks(str(root))

    assert [(run.first, run.last, run.state) for run in found] == [
        (8192, 8316, "online"), (8319, 8319, "online"), (8400, 8403, "offline"),
    ]  # fmt: skip
    assert (size, notes) == (fakes.BLOCK, ())


def test_two_crash_ranges(tmp_path: Path) -> None:
    """Beside the guard kdump's low range is reserved; each has its line, and the size is that of the guard."""
    root = make_root(tmp_path, crash="01000000-24ffffff", cmdline="kho=on safemem.guard=0x1000000-0x24ffffff")
    text = (root / paths.IOMEM).read_text()
    (root / paths.IOMEM).write_text(f"{text}  30000000-347fffff : Crash kernel\n")
    found = guards.read(str(root), {"safemem.guard": "0x1000000-0x24ffffff"}, fakes.BLOCK, ())

    assert (found.fact.value, found.range) == ("full", Range(0x1000000, 0x25000000))
