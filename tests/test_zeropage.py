# SPDX-License-Identifier: MIT
"""That nothing was offered, on fake roots: what is evidence for it, and what only looks like it."""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safemem.boot import files, memory, paths, probe, zeropage
from safemem.boot.model import UNKNOWN
from safemem.boot.ranges import Range
from tests.fakes import GIB, make_root, pass_on, zero_page

PAGE, VERSION, FOLDER = paths.BOOT_PARAMS, paths.BOOT_VERSION, paths.BOOT_PARAMS_FOLDER
SEED, KHO, E820 = 9, 10, 1


def offered(root: Path) -> tuple[str, str]:
    """Return whether anything was offered, and why nobody can tell or how it is known."""
    fact = zeropage.offered(str(root))
    assert fact.source
    return str(fact.value), f"{fact.source}: {fact.reason}"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [((), "no"), ((SEED,), "no"), ((SEED, E820), "no"), ((KHO,), "yes"), ((SEED, KHO), "yes"), ((SEED,) * 12, "no")],
)
def test_what_a_boot_loader_passes(tmp_path: Path, entries: tuple[int, ...], expected: str) -> None:
    """A pointer that is 0, or a list that was read whole without KHO's entry, says that nothing was offered."""
    root = make_root(tmp_path)
    pass_on(root, *((kind, bytes(32)) for kind in entries))

    assert offered(root)[0] == expected


def write(path: str, data: bytes) -> Callable[[Path], object]:
    """Return what puts `data` into a file of the root."""
    return lambda root: (root / path).write_bytes(data)


def emptied(root: Path) -> None:
    """Leave an empty folder where the zero page was."""
    shutil.rmtree(root / FOLDER)
    (root / FOLDER).mkdir()


@pytest.mark.parametrize(
    ("entries", "damage", "why"),
    [
        ((), emptied, f"{FOLDER}: it is empty"),
        ((), lambda root: shutil.rmtree(root / FOLDER), f"{FOLDER}: it is not there"),
        ((), lambda root: (root / PAGE).unlink(), f"{PAGE}: no such file"),
        ((), lambda root: (root / VERSION).unlink(), f"{VERSION}: no such file"),
        ((), write(PAGE, b""), f"{PAGE}: it has 0 bytes"),
        ((), write(PAGE, zero_page()[:-1]), f"{PAGE}: it has 4095 bytes"),
        ((), write(PAGE, zero_page() + b"\0"), f"{PAGE}: it has 4097 bytes"),
        ((), write(PAGE, bytes(4096)), f"{PAGE}: it is of another version"),
        ((), write(VERSION, b"0x020e\n"), f"{PAGE}: it is of another version"),
        ((), write(VERSION, b""), f"{VERSION}: it is empty"),
        ((), write(VERSION, b"0x020"), f"{VERSION}: it is cut off"),
        ((), write(VERSION, b"two\n"), f"{VERSION}: the version is not a number"),
        ((), write(PAGE, zero_page().replace(b"HdrS", b"HdrT")), f"{PAGE}: it is not the page"),
        ((), write(PAGE, zero_page(pointer=1 << 40)), f"{PAGE}: it points to a list that is not shown"),
        ((SEED,), write(PAGE, zero_page()), f"{PAGE}: it points to no list, and"),
        ((SEED,), lambda root: shutil.rmtree(root / paths.SETUP_DATA / "0"), "entries are missing"),
        ((SEED, SEED), lambda root: shutil.rmtree(root / paths.SETUP_DATA / "0"), "entries are missing"),
        ((SEED,), lambda root: (root / paths.SETUP_DATA / "0/type").unlink(), "0/type: no such file"),
        ((SEED,), write(f"{paths.SETUP_DATA}/0/type", b""), "0/type: it is empty"),
        ((KHO,), write(f"{paths.SETUP_DATA}/0/type", b"0x"), "0/type: it is cut off"),
        ((KHO,), write(f"{paths.SETUP_DATA}/0/type", b"KHO\n"), "0/type: the type is not a number"),
        ((KHO,), lambda root: shutil.rmtree(root / paths.SETUP_DATA), f"{PAGE}: it points to a list that is not shown"),
        ((KHO,), write(PAGE, zero_page()), f"{PAGE}: it points to no list, and"),
    ],
)  # fmt: skip
def test_what_was_not_read_whole_is_no_evidence(
    tmp_path: Path, entries: tuple[int, ...], damage: Callable[[Path], object], why: str
) -> None:
    """Whatever is empty, masked, cut off or of two minds leaves it unknown, and says where and why."""
    root = make_root(tmp_path)
    pass_on(root, *((kind, bytes(32)) for kind in entries))
    damage(root)
    value, reason = offered(root)

    assert (value, why in reason) == (UNKNOWN, True), reason
    handover = probe.read_snapshot(str(root)).facts["handover"]
    assert (handover.value, f"{handover.source}: {handover.reason}") == (UNKNOWN, reason)


def test_a_list_that_has_the_handover_is_enough(tmp_path: Path) -> None:
    """What was offered is offered, though the page or another entry cannot be read."""
    root = make_root(tmp_path, offered=True)
    (root / paths.SETUP_DATA / "0/type").unlink()
    (root / PAGE).unlink()

    assert offered(root) == ("yes", f"{paths.SETUP_DATA}/1/type: ")


@pytest.mark.parametrize(
    ("magic", "version", "loader", "answer"),
    [
        (bytes(4), 0x20C, 0xB0, "no"),  # PVH
        (bytes(4), 0, 0x21, "no"),  # the EFI stub, as in every boot by UEFI
        (bytes(4), 0, 0, UNKNOWN),  # nobody has filled it in
        (b"HdrS", 0x209, 0, "no"),
        (b"HdrS", 0x208, 0xB0, UNKNOWN),  # there was no such pointer yet, so what stands there says nothing
        (b"HdrT", 0x20F, 0xB0, UNKNOWN),
    ],
)
def test_who_has_filled_in_the_page(tmp_path: Path, magic: bytes, version: int, loader: int, answer: str) -> None:
    """A page that the kernel itself made has no magic, and maybe no version, but a loader."""
    root = make_root(tmp_path)
    page = bytearray(zero_page())
    struct.pack_into("<4sH", page, 0x202, magic, version)
    page[0x210] = loader
    (root / PAGE).write_bytes(page)
    (root / VERSION).write_text(f"{version:#06x}\n")

    assert offered(root)[0] == answer


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on another file system."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder)
        assert path.stat().st_dev != tmp_path.stat().st_dev
        yield path


@pytest.mark.parametrize("place", [FOLDER, PAGE, VERSION, paths.SETUP_DATA, f"{paths.SETUP_DATA}/0/type"])
def test_what_is_on_another_file_system_is_no_evidence(tmp_path: Path, elsewhere: Path, place: str) -> None:
    """A copy that is mounted over a place of sysfs says nothing of this machine, however well it reads."""
    root = make_root(tmp_path)
    pass_on(root, (SEED, bytes(32)))
    assert offered(root)[0] == "no"
    shutil.move(root / place, elsewhere / "copy")
    (root / place).symlink_to(elsewhere / "copy")

    assert offered(root) == (UNKNOWN, f"{place}: something else is mounted there")


# ---- device tree


def tree(root: Path, **properties: bytes) -> Path:
    """Make the root one of a machine with a device tree, whose chosen node has these properties; return that node."""
    shutil.rmtree(root / FOLDER)
    (root / paths.ARCH).write_text("aarch64\n")
    node = root / paths.CHOSEN
    node.mkdir(parents=True)
    for name, data in properties.items():
        (node / name).write_bytes(data)
    return node


@pytest.mark.parametrize(
    ("properties", "expected", "reason"),
    [
        ({"name": b"chosen\0", "bootargs": b"quiet\0"}, "no", f"{paths.CHOSEN}: "),
        ({"name": b"chosen\0", "linux,kho-fdt": bytes(16)}, "yes", f"{paths.CHOSEN}/linux,kho-fdt"),
        ({"name": b"chosen\0", "linux,kho-scratch": bytes(16)}, "yes", f"{paths.CHOSEN}/linux,kho-scratch"),
        ({"bootargs": b"quiet\0"}, UNKNOWN, f"{paths.CHOSEN}: it is empty, or entries are missing"),
        ({"name": b"memory\0"}, UNKNOWN, f"{paths.CHOSEN}/name: it is of another node"),
        ({}, UNKNOWN, f"{paths.CHOSEN}: it is empty, or entries are missing"),
    ],
)
def test_a_device_tree(tmp_path: Path, properties: dict[str, bytes], expected: str, reason: str) -> None:
    """A node that was read, and has neither of the properties, says that nothing was offered."""
    root = make_root(tmp_path)
    tree(root, **properties)
    value, why = offered(root)

    assert (value, why[: len(reason)]) == (expected, reason)


def test_a_device_tree_that_is_listed_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a listing leaves out is not shown to be missing, though the node's name can be read."""
    root, real = make_root(tmp_path), files.names
    tree(root, name=b"chosen\0")
    assert offered(root)[0] == "no"
    monkeypatch.setattr(files, "names", lambda root, name: [] if name == paths.CHOSEN else real(root, name))
    assert offered(root)[0] == UNKNOWN


def test_a_device_tree_without_the_node(tmp_path: Path) -> None:
    """A tree that has no such node is none that was read."""
    root = make_root(tmp_path)
    tree(root).rmdir()

    assert offered(root)[0] == UNKNOWN


def test_a_device_tree_says_nothing_for_an_x86(tmp_path: Path) -> None:
    """A handover does not come by the tree there, and the zero page is there always."""
    root = make_root(tmp_path)
    tree(root, name=b"chosen\0")
    (root / paths.ARCH).write_text("x86_64\n")

    assert offered(root) == (UNKNOWN, f"{FOLDER}: it is not there, and every x86 kernel shows it")


@pytest.mark.parametrize("place", [paths.CHOSEN, f"{paths.CHOSEN}/name"])
def test_a_device_tree_on_another_file_system_is_no_evidence(tmp_path: Path, elsewhere: Path, place: str) -> None:
    """The tree is sysfs's own; a node that only looks like one may be mounted over it."""
    root = make_root(tmp_path)
    tree(root, name=b"chosen\0")
    assert offered(root)[0] == "no"
    shutil.move(root / place, elsewhere / "copy")
    (root / place).symlink_to(elsewhere / "copy")

    assert offered(root) == (UNKNOWN, f"{place}: something else is mounted there")


@pytest.mark.parametrize(
    ("arch", "why"), [(None, "no such file or directory"), ("x86", "it is cut off"), ("", "it is empty")]
)
def test_a_device_tree_of_nobody_knows_what(tmp_path: Path, arch: str | None, why: str) -> None:
    """What may be an x86 says nothing by a tree; a handover that the tree shows is one all the same."""
    root = make_root(tmp_path)
    node = tree(root, name=b"chosen\0")
    (root / paths.ARCH).unlink()
    if arch is not None:
        (root / paths.ARCH).write_text(arch)
    assert offered(root) == (UNKNOWN, f"{paths.ARCH}: {why}: an x86 would show {FOLDER}, which is not there")

    (node / paths.CHOSEN_KHO[0]).write_bytes(bytes(16))
    assert offered(root)[0] == "yes"


def test_a_machine_that_shows_neither(tmp_path: Path) -> None:
    """Without a zero page and a device tree, anything may have been offered."""
    root = make_root(tmp_path)
    shutil.rmtree(root / FOLDER)
    (root / paths.ARCH).write_text("aarch64\n")

    assert offered(root) == (UNKNOWN, f"{paths.SETUP_DATA}: neither {FOLDER} nor {paths.CHOSEN} exists")


# ---- firmware's map


def entries(number: int) -> list[tuple[int, int, int]]:
    """Return a map of so many entries: memory, 1 MiB in every 2, but the last one, which is all from 64 GiB on."""
    return [*((index << 21, 1 << 20, 1) for index in range(number - 1)), (64 * GIB, 64 * GIB, 1)]


def passed(root: Path, table: list[tuple[int, int, int]], *before: tuple[int, bytes]) -> None:
    """Give the root a map as boot loaders do: what the page has no room for is passed in the list."""
    (root / PAGE).write_bytes(zero_page(tuple(table[:128])))
    more = b"".join(struct.pack("<QQI", *entry) for entry in table[128:])
    pass_on(root, *before, *(((E820, more),) if more else ()))


@pytest.mark.parametrize("number", [1, 127, 128, 129, 200, 3000])
def test_a_map_is_read_whole(tmp_path: Path, number: int) -> None:
    """Every entry counts, and those beyond 128 are in the list."""
    root = make_root(tmp_path)
    passed(root, entries(number), (SEED, bytes(32)))
    found = memory.firmware_memory(str(root))

    assert found == tuple(Range(start, start + size) for start, size, _ in entries(number))
    assert offered(root)[0] == "no"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda root: shutil.rmtree(root / paths.SETUP_DATA), "whether there are more cannot be told"),
        (write(f"{paths.SETUP_DATA}/1/type", b""), "whether there are more cannot be told"),
        (write(f"{paths.SETUP_DATA}/1/data", b""), "data is cut off"),
        (write(f"{paths.SETUP_DATA}/1/data", bytes(39)), "data is cut off"),
        (lambda root: write(PAGE, (root / PAGE).read_bytes()[:0x1E8] + b"\xff" + (root / PAGE).read_bytes()[0x1E9:])(root),
         "a memory map of 255 entries, and has room for 128"),
    ],
)  # fmt: skip
def test_part_of_a_map_is_none(tmp_path: Path, damage: Callable[[Path], object], why: str) -> None:
    """A map of which part may be missing is not taken for all that firmware gave."""
    root = make_root(tmp_path)
    passed(root, entries(200), (SEED, bytes(32)))
    damage(root)

    with pytest.raises(ValueError, match=why):
        memory.firmware_memory(str(root))
    assert memory.room(str(root)).firmware == ()


def test_a_map_that_has_room_needs_no_list(tmp_path: Path) -> None:
    """A capture of the page alone is enough where the page is not full."""
    root = make_root(tmp_path)
    passed(root, entries(127), (SEED, bytes(32)))
    shutil.rmtree(root / paths.SETUP_DATA)

    assert len(memory.firmware_memory(str(root))) == 127
