# SPDX-License-Identifier: MIT
"""The probe, against fake roots shaped like what real kernels showed (tests/vm boots those)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot import cmdline as boot_cmdline
from safemem.boot import memory, paths, probe
from safemem.boot.model import UNKNOWN, Blocks, Fact
from safemem.boot.ranges import Range
from safemem.host import reader
from tests import kit
from tests.fakes import CONFIG_KHO, fdt, make_root

STATES: list[tuple[str, dict[str, Any], str]] = [
    ("cold boot", {}, "none"),
    ("accepted", {"offered": True, "kho_in": True}, "accepted"),
    ("rejected", {"offered": True}, "rejected"),
    ("KHO off", {"offered": True, "kho_out": False, "cmdline": "kho=off"}, "orphaned"),
    ("KHO not asked for", {"offered": True, "kho_out": False, "cmdline": ""}, "orphaned"),
    (
        "KHO on by default but not started",
        {
            "offered": True,
            "kho_out": False,
            "cmdline": "",
            "config": CONFIG_KHO + "CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT=y\n",
        },
        "rejected",
    ),
    ("KHO asked for but not started", {"offered": True, "kho_out": False}, "rejected"),
    ("the last kho= counts", {"offered": True, "kho_out": False, "cmdline": "kho=on kho=off"}, "orphaned"),
    ("no KHO", {"offered": True, "kho_out": False, "config": "CONFIG_64BIT=y\n"}, "unsupported"),
    (
        "no KHO and no debugfs",
        {"offered": True, "debugfs": False, "luo": False, "config": "CONFIG_64BIT=y\n"},
        "unsupported",
    ),
    ("no debugfs files", {"offered": True, "kho_out": False, "config": "CONFIG_KEXEC_HANDOVER=y\n"}, UNKNOWN),
    ("no configuration", {"offered": True, "kho_out": False, "config": None}, UNKNOWN),
    ("debugfs not mounted", {"offered": True, "debugfs": False}, UNKNOWN),
    ("a kernel without KHO on a cold boot", {"kho_out": False, "config": "CONFIG_64BIT=y\n", "luo": False}, "none"),
]


@pytest.mark.parametrize(("name", "options", "expected"), STATES, ids=[name for name, _, _ in STATES])
def test_handover(tmp_path: Path, name: str, options: dict[str, Any], expected: str) -> None:
    """Offered against accepted gives each state its name, with a source and a reason."""
    fact = probe.read_snapshot(str(make_root(tmp_path, **options))).facts["handover"]

    assert expected == fact.value
    assert fact.source and fact.reason


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kho_in": True}, id="nothing offered, and a tree"),
        pytest.param({"offered": True, "kho_in": True, "cmdline": "safemem.guard=0x1000000-0x24ffffff", "crash": "01000000-24ffffff"}, id="accepted, and a guard in force"),
        pytest.param({"offered": True, "kho_out": False, "luo": True, "config": "CONFIG_64BIT=y\n"}, id="a configuration without KHO, and LUO"),
        pytest.param({"offered": True, "kho_out": False, "luo": True, "cmdline": "kho=off"}, id="KHO off, and LUO"),
        pytest.param({"offered": True, "kho_in": True, "kho_out": False}, id="a tree without the outgoing side"),
    ],
)  # fmt: skip
def test_evidence_that_contradicts_itself(tmp_path: Path, options: dict[str, Any]) -> None:
    """Two things that no kernel shows together prove neither."""
    fact = probe.read_snapshot(str(make_root(tmp_path, **options))).facts["handover"]

    assert (fact.value, bool(fact.reason)) == (UNKNOWN, True)


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("safemem.guard=0x1000000-0x24ffffff", "lost"),
        ("safemem.attempts=0", "lost"),
        ("safemem.guard=nonsense", "lost"),
        ("safemem.safe=0-0xfff;crc32=00000000", "lost"),
        ("safemem.safe=0-0xfff", "none"),
        ("crashkernel=256M memhp_default_state=offline", "none"),
        ("-- safemem.guard=0x1000000-0x24ffffff", "lost"),
        ('"safemem.guard=0x1000000-0x24ffffff"', "lost"),
        ("-- crashkernel=256M", "none"),
    ],
)
def test_a_kexec_that_handed_nothing_over(tmp_path: Path, cmdline: str, expected: str) -> None:
    """What only handover-args writes announces a handover; one that did not come was lost."""
    fact = probe.read_snapshot(str(make_root(tmp_path, cmdline=cmdline))).facts["handover"]

    assert fact.value == expected


@pytest.mark.parametrize("damaged", [paths.IOMEM, paths.CMDLINE, paths.CRASH_SIZE])
def test_an_accepted_handover_beside_a_guard_that_nobody_can_see(tmp_path: Path, damaged: str) -> None:
    """What contradicts itself goes on doing so when half of it cannot be read."""
    root = make_root(tmp_path, offered=True, kho_in=True, **kit.GUARD)
    (root / damaged).write_text("")

    assert probe.read_snapshot(str(root)).facts["handover"].value == UNKNOWN


def test_a_device_tree_beside_a_sysfs_that_is_not_there(tmp_path: Path) -> None:
    """An x86 may have one as well, in which no handover is ever shown."""
    root = make_root(tmp_path)
    (root / paths.CHOSEN).mkdir(parents=True)
    (root / paths.CHOSEN / "name").touch()
    (root / "sys").rename(root / "gone")

    assert probe.read_snapshot(str(root)).facts["handover"].value == UNKNOWN


def test_a_device_that_no_driver_shows(tmp_path: Path) -> None:
    """A file in /dev that the image has brought is no sign of sessions that arrived."""
    root = make_root(tmp_path, offered=True, kho_in=True, luo=False)
    (root / paths.LUO_DEVICE).touch()

    assert probe.read_snapshot(str(root), open_luo=True).facts["luo"].value == UNKNOWN


@pytest.mark.parametrize(
    ("vendor", "processor", "expected"),
    [
        ("Dell Inc.", "flags\t: fpu", "none"),
        ("Red Hat", "flags\t: fpu hypervisor", "vm-other"),
        ("Red Hat", None, UNKNOWN),
        ("", "flags\t: fpu", UNKNOWN),
        (None, "flags\t: fpu", "none"),
    ],
)
def test_no_hypervisor_is_what_both_say(
    tmp_path: Path, vendor: str | None, processor: str | None, expected: str
) -> None:
    """Neither firmware nor the processor is taken for both where one of them cannot be read."""
    root = make_root(tmp_path)
    (root / paths.DMI_VENDOR).unlink()
    if vendor is not None:
        (root / paths.DMI_VENDOR).write_text(f"{vendor}\n" if vendor else "")
    if processor is not None:
        (root / paths.CPUINFO).write_text(f"processor\t: 0\n{processor}\nbugs\t:\n")

    assert probe.read_snapshot(str(root)).facts["virt"].value == expected


@pytest.mark.parametrize("damage", ["", "kho=on liveupdate=on safemem.gua"])
def test_a_command_line_that_is_cut_off(tmp_path: Path, damage: str) -> None:
    """The kernel ends it with the end of a line; without that nobody knows what was asked for, or announced."""
    root = make_root(tmp_path)
    (root / paths.CMDLINE).write_text(damage)
    snapshot = probe.read_snapshot(str(root))

    assert "cmdline-unreadable" in [note.code for note in snapshot.notes]
    assert {snapshot.facts[name].value for name in ("handover", "guard")} == {UNKNOWN}


def test_a_configuration_that_is_cut_off_says_nothing(tmp_path: Path) -> None:
    """An option that is missing may have stood in what is lost."""
    root = make_root(tmp_path, offered=True, kho_out=False, config=None)
    config = root / "boot/config-7.3.4"
    config.parent.mkdir()
    config.write_text("CONFIG_64BIT=y\n")
    assert probe.read_snapshot(str(root)).facts["handover"].value == UNKNOWN

    config.write_text("CONFIG_64BIT=y\n# end of Kernel hacking\n")
    assert probe.read_snapshot(str(root)).facts["handover"].value == "unsupported"


def test_a_guard_that_iomem_does_not_show(tmp_path: Path) -> None:
    """Memory that is reserved and stands nowhere is no guard that is void."""
    root = make_root(tmp_path, cmdline="safemem.guard=0x1000000-0x24ffffff", crash=GUARD)
    (root / paths.IOMEM).write_text("00001000-0009fbff : System RAM\n")
    snapshot = probe.read_snapshot(str(root))

    assert (snapshot.facts["guard"].value, "guard-unknown" in [note.code for note in snapshot.notes]) == (UNKNOWN, True)


def test_accepted_details(tmp_path: Path) -> None:
    """An accepted handover tells its producers, its predecessor, the kexec count and the scratch areas."""
    snapshot = probe.read_snapshot(str(make_root(tmp_path, offered=True, kho_in=True)))

    assert snapshot.facts["nodes"].value == ("LUO", "kexec-metadata", "memblock")
    assert snapshot.facts["previous_kernel"].value == "7.3.4"
    assert snapshot.facts["kexec_count"].value == 3
    assert (Range(0x2E000000, 0x2F000000), Range(0x3FC00000, 0x40000000)) == snapshot.scratch


def test_rejected_has_no_scratch(tmp_path: Path) -> None:
    """After a rejection the scratch files list fresh areas, which may be preserved memory."""
    assert probe.read_snapshot(str(make_root(tmp_path, offered=True))).scratch == ()


@pytest.mark.parametrize("blob", [b"", b"\xd0\x0d\xfe\xed", fdt(("LUO",))[:-30], b"\0" * 200])
def test_bad_tree(tmp_path: Path, blob: bytes) -> None:
    """A tree that cannot be parsed leaves its producers unknown, and nothing raises."""
    root = make_root(tmp_path, offered=True, kho_in=True)
    (root / "sys/kernel/debug/kho/in/fdt").write_bytes(blob)
    facts = probe.read_snapshot(str(root)).facts

    assert facts["handover"].value == "accepted"
    assert facts["nodes"].value == UNKNOWN
    assert facts["nodes"].reason


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "ready"),
        ({"luo": False}, "missing"),
        ({"luo": False, "cmdline": "kho=on"}, "off"),
        ({"luo": False, "cmdline": "liveupdate=on liveupdate=0"}, "off"),
    ],
)
def test_luo(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    """LUO is ready where its device is, missing where it was asked for, else off."""
    assert expected == probe.read_snapshot(str(make_root(tmp_path, **options))).facts["luo"].value


GUARD = "01000000-24ffffff"


@pytest.mark.parametrize(
    ("cmdline", "crash", "expected", "area"),
    [
        ("crashkernel=576M@16M", GUARD, "none", None),
        ("safemem.guard=0x1000000-0x24ffffff", GUARD, "full", Range(0x1000000, 0x25000000)),
        ("safemem.guard=0x1000000-0x24ffffff", "01000000-10ffffff", "part", Range(0x1000000, 0x11000000)),
        ("safemem.guard=0x1000000-0x24ffffff", None, "void", None),
        ("safemem.guard=0x1000000-0x24ffffff", "02000000-10ffffff", "void", None),
        ("safemem.guard=0x1000000-0x24ffffff", "00000000-00000000", UNKNOWN, None),
        ("safemem.guard=nonsense", GUARD, "void", None),
    ],
)
def test_guard(tmp_path: Path, cmdline: str, crash: str | None, expected: str, area: Range | None) -> None:
    """Only a reservation that the command line calls ours is a guard."""
    snapshot = probe.read_snapshot(str(make_root(tmp_path, cmdline=cmdline, crash=crash)))

    assert expected == snapshot.facts["guard"].value
    assert area == snapshot.guard


@pytest.mark.parametrize(
    ("text", "expected", "note"),
    [
        ("0x100000000-0x107ffffff", (Range(0x100000000, 0x108000000),), ""),
        ("0-0xfff,0x2000-0x2fff", (Range(0, 0x1000), Range(0x2000, 0x3000)), ""),
        ("0-0xfff;crc32=b5ebb0d7", (), "does not match"),
        ("0x2000-0x1000", (), "is backwards"),
        ("0-0xfff,", (), "is not a range"),
    ],
)
def test_cmdline_safe(tmp_path: Path, text: str, expected: tuple[Range, ...], note: str) -> None:
    """Ranges on the command line count only if all of them are right."""
    snapshot = probe.read_snapshot(str(make_root(tmp_path, cmdline=f"safemem.safe={text}")))

    assert expected == snapshot.cmdline_safe
    assert note in " ".join(snapshot.notes)


def test_blocks(tmp_path: Path) -> None:
    """Blocks are runs of equal state, numbering holes included."""
    snapshot = probe.read_snapshot(str(make_root(tmp_path, online="0-3,5", offline="6,32-39")))

    assert (
        Blocks(0, 0, "online", 0),
        Blocks(1, 3, "online", 0, "dimm"),
        Blocks(5, 5, "online", 0, "dimm"),
        Blocks(6, 6, "offline", 0, "dimm"),
        Blocks(32, 39, "offline", 0),
    ) == snapshot.blocks


def test_unreadable_block_state(tmp_path: Path) -> None:
    """A block with an unreadable state stays in the snapshot as unknown, with a note."""
    root = make_root(tmp_path)
    state = root / "sys/devices/system/memory/memory33/state"
    state.unlink()
    state.mkdir()
    snapshot = probe.read_snapshot(str(root))

    assert Blocks(33, 33, UNKNOWN, 0) in snapshot.blocks
    assert any("block 33" in note for note in snapshot.notes)


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    """A FIFO in place of a file must not stall the boot."""
    root = make_root(tmp_path)
    (root / "proc/cmdline").unlink()
    os.mkfifo(root / "proc/cmdline")

    assert probe.read_snapshot(str(root)).facts["arch"].value != UNKNOWN


def test_an_empty_root_is_all_unknown(tmp_path: Path) -> None:
    """Where nothing can be read nothing is known, and nothing raises."""
    snapshot = probe.read_snapshot(str(tmp_path))

    assert {UNKNOWN} == {fact.value for fact in snapshot.facts.values()}
    assert all(fact.reason for fact in snapshot.facts.values())
    assert (snapshot.block_size, snapshot.blocks) == (0, ())


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("a b=1 b=2", [("a", ""), ("b", "1"), ("b", "2")]),
        ('x="one two" y', [("x", "one two"), ("y", "")]),
        ("a -- b=1", [("a", "")]),
        ('a "b', [("a", ""), ("b", "")]),
        ('"kho=on" "a b"=c x="y"', [("kho", "on"), ('a b"', "c"), ("x", "y")]),
        ('kho=o"n" "kho"=on', [("kho", 'o"n"'), ('kho"', "on")]),
        ("a\x1fb\u2003c\td", [("a\x1fb\u2003c", ""), ("d", "")]),
    ],
)
def test_arguments(cmdline: str, expected: list[tuple[str, str]]) -> None:
    """Arguments split as the kernel splits them."""
    assert expected == boot_cmdline.arguments(cmdline)


@pytest.mark.parametrize(
    ("cmdline", "value"),
    [
        ("kho=off kho=bogus", "off"),
        ("kho=off kho", "off"),
        ("kho=off kho=on", "on"),
        ("kho=bogus", "bogus"),
        ("kho=bogus kho=off", "off"),
        ('kho=off kho=o"n"', "off"),
        ("panic=1 panic=bogus", None),
    ],
)
def test_a_switch_keeps_what_the_kernel_understands(cmdline: str, value: str | None) -> None:
    """Of a switch the last value that is one counts, of anything else the last."""
    assert boot_cmdline.argument(cmdline, "kho") == value
    assert boot_cmdline.argument(cmdline, "panic") == (None if value else "bogus")


@given(st.text())
def test_arguments_are_total(cmdline: str) -> None:
    """No command line makes the reader raise."""
    boot_cmdline.arguments(cmdline)


def test_drivers_come_from_the_names_in_iomem(tmp_path: Path) -> None:
    """Whole blocks of one resource belong to its driver; a block that no resource fills is nobody's."""
    root = make_root(tmp_path, online="", offline="32-40")
    (root / "proc/iomem").write_text(
        "100000000-10fffffff : System RAM\n"
        "110000000-11fffffff : System RAM (virtio_mem)\n"
        "120000000-14000ffff : dax0.0\n"
        "  120000000-137ffffff : System RAM (kmem)\n"
    )
    blocks = probe.read_snapshot(str(root)).blocks
    assert [(run.first, run.last, run.driver) for run in blocks] == [
        (32, 33, "dimm"), (34, 35, "virtio-mem"), (36, 38, "kmem"), (39, 40, "unknown"),
    ]  # fmt: skip


def test_overrides_on_the_command_line(tmp_path: Path) -> None:
    """The switches are read; whether they count is the policy's business."""
    named = make_root(tmp_path / "named", cmdline="safemem.policy=x safemem.policy=strict")
    assert probe.read_snapshot(str(named)).overrides == ("policy=strict",)
    assert probe.read_snapshot(str(make_root(tmp_path, cmdline="safemem=off safemem.dry_run"))).overrides == (
        "off",
        "dry-run",
    )


GUARDED = "kho=on crashkernel=576M@16M safemem.guard=0x1000000-0x24ffffff"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"cmdline": GUARDED.replace("576M@16M", "603979776@0x1000000")}, True),
        ({"offered": False}, False),
        ({"cmdline": "kho=on safemem.guard=0x1000000-0x24ffffff"}, False),  # nobody asked the kernel
        ({"cmdline": GUARDED.replace("576M@16M", "512M@16M")}, False),
        ({"cmdline": GUARDED.replace("576M@16M", "576M")}, False),
        ({"cmdline": GUARDED.replace("576M@16M", "x@16M")}, False),
        ({"cmdline": GUARDED.replace("0x1000000-", "")}, False),
        ({"crash": "01000000-24ffffff"}, False),
        ({"crash": "30000000-30ffffff"}, False),
        ({"luo": False}, False),  # whether KHO is on cannot be told
    ],
)
def test_a_guard_that_is_not_in_force_is_a_witness(tmp_path: Path, options: dict[str, Any], expected: bool) -> None:
    """Only if a handover was offered, KHO is on, and the kernel was asked for that very range and reserved nothing."""
    root = make_root(tmp_path, **{"offered": True, "debugfs": False, "config": None, "cmdline": GUARDED, **options})
    found = probe.read_snapshot(str(root))

    assert (found.witness != "") == expected
    assert found.facts["handover"].value == ("unknown" if options.get("offered", True) else "lost")
    in_force = options.get("crash") == "01000000-24ffffff"
    assert found.facts["handover"].reason.endswith("it was not accepted: the guard is in force") == in_force
    again = reader.snapshot_from_text(reader.capture_text(found), "x")
    assert again.witness == found.witness


@pytest.mark.parametrize(
    ("cmdline", "efi", "value", "says"),
    [
        ("quiet", None, UNKNOWN, "nothing keeps count: there are no EFI variables, and no safemem.attempts= from handover-args"),
        ("safemem.attempts=3", None, 3, "the predecessor's count"),
        ("safemem.attempts=x", None, UNKNOWN, "safemem.attempts=: `x` is not a number"),
        ("quiet", {}, UNKNOWN, f"nothing keeps count: {paths.EFIVARS} is empty: it is not mounted, and no safemem.attempts= from handover-args"),
        ("safemem.attempts=3", {"Timeout-x": b"x"}, 0, "it does not exist"),
        ("safemem.attempts=3", {"ours": b"\7\0\0\0\2\0\0\0"}, 2, ""),
        ("quiet", {"ours": b"\7\0\0\0\2"}, UNKNOWN, "it has 5 bytes, not 8"),
    ],
)  # fmt: skip
def test_boot_attempts(tmp_path: Path, cmdline: str, efi: dict[str, bytes] | None, value: object, says: str) -> None:
    """Firmware's count is asked first; where nothing keeps one, it is unknown, not 0."""
    root = make_root(tmp_path, cmdline=cmdline)
    if efi is not None:
        (root / paths.EFIVARS).mkdir(parents=True)
        for name, data in efi.items():
            (root / (paths.ATTEMPTS if name == "ours" else f"{paths.EFIVARS}/{name}")).write_bytes(data)
    fact = probe.read_snapshot(str(root)).facts["boot_attempts"]
    assert (fact.value, fact.reason) == (value, says)


@pytest.mark.parametrize(
    ("line", "words", "init", "open_quote"),
    [
        ('a="b c" d -- e', ['a="b c"', "d"], ["--", "e"], False),
        ('a "--" b', ["a"], ['"--"', "b"], False),
        ('a "b c', ["a", '"b c'], [], True),
        ("", [], [], False),
    ],
)
def test_words_of_the_command_line(line: str, words: list[str], init: list[str], open_quote: bool) -> None:
    """Words are kept as they are written, for the next kernel to read; what init gets is told apart."""
    assert boot_cmdline.split(line) == (words, init, open_quote)


@pytest.mark.parametrize(
    ("text", "fault", "names"),
    [
        ("00001000-0009ffff : System RAM\n  00002000-00002fff : Kernel code\n", "", ["System RAM", "Kernel code"]),
        ("00001000-0009ffff : System RAM\nnonsense\n", "line `nonsense` cannot be understood", ["System RAM"]),
        ("00000000-00000000 : System RAM\n", "it shows addresses to root only", []),
        ("", "it is empty", []),
        ("00001000-0009ffff : System RAM\n00100000-001fffff : System RAM (virtio_m", "it is cut off", ["System RAM"]),
        (None, "no such file or directory", []),
    ],
)
def test_iomem_says_what_it_lacks(tmp_path: Path, text: str | None, fault: str, names: list[str]) -> None:
    """Whoever reads it can tell a machine without such a range from a file that could not be read to its end."""
    (tmp_path / "proc").mkdir()
    if text is not None:
        (tmp_path / "proc/iomem").write_text(text)
    found = memory.iomem(str(tmp_path))

    assert (found.fault, [item.name for item in found.resources]) == (fault, names)
    assert [item.depth for item in found.resources] == [0, 1][: len(names)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0\n", 1),
        ("0-1\n", 2),
        ("0,2-3\n", 3),
        ("0-1", UNKNOWN),
        ("\n", UNKNOWN),
        ("1-0\n", UNKNOWN),
        ("x\n", UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_numa_nodes(tmp_path: Path, text: str | None, value: object) -> None:
    """As many as the kernel lists; a list that is cut off or makes no sense is no number."""
    at = tmp_path / "sys/devices/system/node/online"
    at.parent.mkdir(parents=True)
    if text is not None:
        at.write_text(text)

    assert memory.node_count(str(tmp_path)).value == value


def test_a_kernel_that_knows_no_nodes_has_one(tmp_path: Path) -> None:
    """Only where the folder beside it was listed."""
    assert memory.node_count(str(tmp_path)).value == UNKNOWN
    (tmp_path / "sys/devices/system/cpu").mkdir(parents=True)
    assert memory.node_count(str(tmp_path)).value == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("compute\n", "compute"),
        ("compute", UNKNOWN),
        ("", UNKNOWN),
        ("a\nb\n", UNKNOWN),
        ("a\x1b[2J\n", UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_machine_class(tmp_path: Path, text: str | None, value: str) -> None:
    """One whole line of a file that the image carries."""
    root = make_root(tmp_path)
    if text is not None:
        (root / "etc/safemem").mkdir(parents=True)
        (root / "etc/safemem/machine-class").write_text(text)

    assert probe.read_snapshot(str(root)).facts["machine_class"].value == value


def test_product(tmp_path: Path) -> None:
    """What firmware calls the machine: by DMI, or by the device tree where there is no DMI."""
    root = make_root(tmp_path)
    (root / "proc/device-tree").mkdir()
    (root / "proc/device-tree/model").write_bytes(b"linux,dummy-virt\0")

    assert probe.read_snapshot(str(root)).facts["product"].value == "Standard PC (Q35 + ICH9, 2009)"
    (root / "sys/class/dmi/id/product_name").unlink()
    assert probe.read_snapshot(str(root)).facts["product"] == Fact("linux,dummy-virt", "proc/device-tree/model")


def test_a_block_of_two_nodes_is_no_nodes(tmp_path: Path) -> None:
    """Neither an exception for one of them nor a guard on one of them may count on it."""
    for node, numbers in ((0, (0, 1, 2)), (1, (2, 3))):
        for number in numbers:
            (tmp_path / f"sys/devices/system/node/node{node}/memory{number}").mkdir(parents=True)

    assert memory.nodes(str(tmp_path)) == {0: {0, 1}, 1: {3}}
