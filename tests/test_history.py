# SPDX-License-Identifier: MIT
"""The history of boots: found again by the boot's ID, bounded, and whole or not there."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path

import pytest

from safemem.host import history
from tests.fakes import make_root


def boot(root: Path, number: int) -> str:
    """Let `root` be in another boot, and return its ID."""
    name = f"{number:08x}-1111-4222-8333-444455556666"
    (root / history.BOOT_ID).write_text(f"{name}\n")
    return name


def old(root: Path, number: int, size: int = 1) -> Path:
    """Leave the folder of an earlier boot behind."""
    folder = root / history.FOLDER / f"20200101T{number:06}Z-{number:08x}-aaaa-4aaa-8aaa-aaaaaaaaaaaa"
    folder.mkdir(parents=True)
    (folder / "decision.json").write_bytes(bytes(size))
    return folder


def test_one_folder_a_boot(tmp_path: Path) -> None:
    """What a boot writes lands in its own folder, whatever was written first, and the next boot finds it."""
    root = make_root(tmp_path)
    assert (history.current(str(root)), history.previous(str(root))) == (None, None)
    first = history.write(str(root), "decision.json", "{}\n")
    second = history.write(str(root), "releases.json", "[]\n")
    history.write(str(root), "decision.json", "{1}\n")

    assert os.path.dirname(first) == os.path.dirname(second) == history.current(str(root))
    assert Path(first).read_text() == "{1}\n"
    assert stat.S_IMODE(Path(first).stat().st_mode) == 0o644
    assert sorted(os.listdir(os.path.dirname(first))) == ["decision.json", "releases.json"]
    assert history.previous(str(root)) is None
    boot(root, 2)
    assert (history.current(str(root)), history.previous(str(root))) == (None, os.path.dirname(first))


def test_the_newest_other_boot_is_the_previous_one(tmp_path: Path) -> None:
    """Names that are no boot's are left alone, and this boot's own folder is not the previous one."""
    root = make_root(tmp_path)
    old(root, 1)
    newest = old(root, 2)
    (root / history.FOLDER / "zzz").mkdir()
    history.write(str(root), "decision.json", "{}")

    assert history.previous(str(root)) == str(newest)


def test_bounded_in_number(tmp_path: Path) -> None:
    """The oldest go first; this boot's folder stays."""
    root = make_root(tmp_path)
    folders = [old(root, number) for number in range(history.BOOTS + 3)]
    path = Path(history.write(str(root), "decision.json", "{}"))

    left = history.boots(str(root))
    assert len(left) == history.BOOTS
    assert left == [*map(str, folders[4:]), str(path.parent)]


def test_bounded_in_bytes(tmp_path: Path) -> None:
    """Old boots make room for this one."""
    root = make_root(tmp_path)
    folders = [old(root, number, history.BYTES // 3) for number in range(3)]
    history.write(str(root), "decision.json", "x" * 1000)

    assert [folder.exists() for folder in folders] == [False, True, True]


def test_one_file_is_bounded(tmp_path: Path) -> None:
    """A file that would push out every other boot is refused, and nothing is left of it."""
    root = make_root(tmp_path)
    with pytest.raises(OSError, match="bytes are more than the history takes"):
        history.write(str(root), "decision.json", "x" * (history.FILE + 1))

    assert not (root / history.FOLDER).exists()


@pytest.mark.parametrize("text", ["", "../../../etc", "0"])
def test_a_boot_without_a_name(tmp_path: Path, text: str) -> None:
    """Without the kernel's boot ID nothing is written where it could be taken for another boot's."""
    root = make_root(tmp_path)
    (root / history.BOOT_ID).write_text(text)
    for call in (history.current, history.previous, lambda root: history.write(root, "decision.json", "{}")):
        with pytest.raises(OSError, match="this is not a boot ID"):
            call(str(root))
    (root / history.BOOT_ID).unlink()
    with pytest.raises(FileNotFoundError):
        history.write(str(root), "decision.json", "{}")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot reach the disk does not replace what is there."""
    root = make_root(tmp_path)
    path = Path(history.write(str(root), "releases.json", "[1]"))

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        history.write(str(root), "releases.json", "[1, 2]")
    assert path.read_text() == "[1]"


@pytest.mark.parametrize("year", ["2099", "1970"])
def test_a_clock_does_not_order_boots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: str) -> None:
    """A boot whose clock was wrong is the one before for one boot, and is dropped in its turn."""
    root = make_root(tmp_path)
    paths = []
    for number in range(history.BOOTS + 3):
        name = boot(root, number)
        then = time.strptime(f"{year}0101", "%Y%m%d")
        with monkeypatch.context() as patch:
            if number == 1:
                patch.setattr("time.gmtime", lambda then=then: then)
            paths.append(os.path.dirname(history.write(str(root), "decision.json", "{}")))
        assert paths[-1].endswith(name)
        assert history.previous(str(root)) == (paths[-2] if number else None)
    assert history.boots(str(root)) == paths[3:]


def test_folders_without_a_number_came_first(tmp_path: Path) -> None:
    """What version 0.1.0 wrote is read, in its order, and before everything else, whatever its clock said."""
    root = make_root(tmp_path)
    early = [old(root, 1), old(root, 2)]
    future = root / history.FOLDER / "20990101T000000Z-00000003-aaaa-4aaa-8aaa-aaaaaaaaaaaa"
    future.mkdir()
    boot(root, 9)
    mine = os.path.dirname(history.write(str(root), "decision.json", "{}"))
    boot(root, 10)
    assert history.boots(str(root)) == [*map(str, [*early, future]), mine]
    assert history.previous(str(root)) == mine
    assert os.path.basename(mine).startswith("00000001-")


def test_a_name_that_is_no_time(tmp_path: Path) -> None:
    """Its folder is a boot's all the same."""
    assert history.started("/x/00000001-20201399T999999Z-00000003-aaaa-4aaa-8aaa-aaaaaaaaaaaa") == 0
    assert history.started("/x/00000001-20200101T000000Z-00000003-aaaa-4aaa-8aaa-aaaaaaaaaaaa") == 1577836800


def test_nobody_else_can_hold_it_up(tmp_path: Path) -> None:
    """The lock is a file that only root can open: a folder that everybody reads could be locked by anybody."""
    root = make_root(tmp_path)
    history.write(str(root), "decision.json", "{}")
    fd = os.open(root / history.FOLDER, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    history.write(str(root), "decision.json", "{}")
    os.close(fd)
    assert stat.S_IMODE((root / history.FOLDER / ".lock").stat().st_mode) == 0o600
