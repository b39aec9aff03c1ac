# SPDX-License-Identifier: MIT
"""What is written in other users' folders, and by whom at once: descriptors, drafts, the lock."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from safemem.boot.model import Refused
from safemem.cli import main
from safemem.cli.common import write_whole
from safemem.realroot import storage

ROOT = os.geteuid() == 0
NOBODY = 65534


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Return a folder that another user can write to, beside a secret that nobody else reads."""
    secret = tmp_path / "secret"
    secret.write_text("root:secret\n")
    secret.chmod(0o600)
    folder = tmp_path / "theirs"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def secret(theirs: Path) -> tuple[str, int]:
    """Return what the secret holds and its mode."""
    path = theirs.parent / "secret"
    return path.read_text(), stat.S_IMODE(path.stat().st_mode)


def test_whole_with_its_mode(tmp_path: Path) -> None:
    """The file has the mode asked for whatever the umask, and no draft is left."""
    old = os.umask(0o077)
    try:
        storage.put(str(tmp_path), "a/b/file", "text", durable=True)
        write_whole(str(tmp_path / "own"), b"mine")
    finally:
        os.umask(old)
    assert (tmp_path / "a/b/file").read_text() == "text"
    assert stat.S_IMODE((tmp_path / "a/b/file").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "a/b") == ["file"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs neither the old file nor a draft."""
    (tmp_path / "file").write_text("old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Refused, match=r"file: no space left on device$"):
        write_whole(str(tmp_path / "file"), b"new")
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("target", ["secret", "/dev/full", "nowhere"])
def test_a_link_of_theirs_is_refused(theirs: Path, target: str) -> None:
    """In a folder that others can write to, nothing is written through what they left there, be it a device, nor over it."""
    os.symlink("../secret" if target == "secret" else target, theirs / "safemem.prom")
    with pytest.raises(Refused, match=r"safemem.prom: this is a link that others can change: name a file$"):
        write_whole(str(theirs / "safemem.prom"), b"metrics", 0o644)

    assert (theirs / "safemem.prom").is_symlink() and os.listdir(theirs) == ["safemem.prom"]
    assert secret(theirs) == ("root:secret\n", 0o600)


def test_a_pipe_of_theirs_holds_nobody_up(theirs: Path) -> None:
    """A FIFO that nobody reads is refused as well."""
    os.mkfifo(theirs / "safemem.prom")
    with pytest.raises(Refused, match=r"safemem.prom: this is a pipe that others can change: name a file$"):
        write_whole(str(theirs / "safemem.prom"), b"metrics", 0o644)
    assert stat.S_ISFIFO((theirs / "safemem.prom").stat().st_mode)


def test_a_link_of_ours_is_followed(theirs: Path) -> None:
    """To a file, to one that is to be made, and over several; the link stays, and a circle is no file."""
    base = theirs.parent
    (base / "file").write_text("old")
    for name, target in (("one", "file"), ("two", "one"), ("new", "made"), ("null", "/dev/null"), ("circle", "circle")):
        os.symlink(target, base / name)
    for name in ("one", "two", "new", "null"):
        write_whole(str(base / name), name.encode())
        assert (base / name).is_symlink()
    assert ((base / "file").read_text(), (base / "made").read_text()) == ("two", "new")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(Refused, match="circle: too many levels of symbolic links"):
        write_whole(str(base / "circle"), b"x")


@pytest.mark.skipif(not ROOT, reason="only root can give a link away")
def test_a_link_of_somebody_elses_in_a_sticky_folder_is_refused(tmp_path: Path) -> None:
    """As in /tmp, where everybody may put one."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path / "secret", tmp_path / "tmp/out")
    os.lchown(tmp_path / "tmp/out", 1000, 1000)
    with pytest.raises(Refused, match="this is a link that others can change"):
        write_whole(str(tmp_path / "tmp/out"), b"x")
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.parametrize("absolute", [False, True])
def test_a_link_on_the_way_is_not_followed(theirs: Path, absolute: bool) -> None:
    """Who can write to a folder cannot lead a write out of it, however the link is made."""
    (theirs.parent / "etc").mkdir()
    os.symlink(theirs.parent / "etc" if absolute else "../etc", theirs / "node-exporter")
    with pytest.raises(Refused, match="a link on the way, which others can change, is not followed"):
        write_whole(str(theirs / "node-exporter/safemem.prom"), b"metrics", 0o644)
    assert os.listdir(theirs.parent / "etc") == []


def test_the_operators_own_links_are_followed(theirs: Path) -> None:
    """A link in a folder that is root's alone leads where root says, as deep as the kernel would go, and no further."""
    base = theirs.parent
    (base / "real").mkdir()
    os.symlink("real/../real", base / "link")
    os.symlink(base / "link", base / "again")
    write_whole(str(base / "again/file"), b"x")
    assert (base / "real/file").read_text() == "x"
    os.symlink("theirs/deeper", base / "into")
    os.symlink("../real", theirs / "deeper")
    os.symlink("loop", base / "loop")
    for name in ("into", "loop"):
        with pytest.raises(Refused, match="is not followed"):
            write_whole(str(base / name / "file"), b"x")


@pytest.mark.skipif(not ROOT, reason="only root can give a folder away")
def test_prometheus_keeps_its_folder(tmp_path: Path) -> None:
    """In a folder of another user, as Debian's node_exporter has it, the file is written, readable, and changes in one step."""
    folder = tmp_path / "prometheus/node-exporter"
    folder.mkdir(parents=True)
    for path in (folder.parent, folder):
        os.chown(path, NOBODY, NOBODY)
    result = CliRunner().invoke(main, ["metrics", "-o", str(folder / "safemem.prom"), "--root", str(tmp_path)])

    assert result.exit_code == 6
    assert "safemem_decision_recorded 0" in (folder / "safemem.prom").read_text()
    assert stat.S_IMODE((folder / "safemem.prom").stat().st_mode) == 0o644


#: What the folder's owner does: wherever a draft appears, a link to the secret takes its place.
RACE = """
import os, sys
os.chdir(sys.argv[1])
print(flush=True)
while not os.path.exists("stop"):
    for name in os.listdir("."):
        if name.startswith(".") and not os.path.islink(name):
            try:
                os.unlink(name)
                os.symlink("../secret", name)
            except OSError:
                pass
"""


def test_a_race_that_cannot_be_won(theirs: Path) -> None:
    """Whoever swaps drafts for links, as fast as it goes, neither reads the secret nor has it written to."""
    words = [sys.executable, "-c", RACE, str(theirs)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        ends = time.monotonic() + 2
        number = 0
        while time.monotonic() < ends:
            number += 1
            with contextlib.suppress(Refused):  # the draft was gone: no harm
                write_whole(str(theirs / "safemem.prom"), b"metrics", 0o644)
        (theirs / "stop").touch()
    assert number > 10 and secret(theirs) == ("root:secret\n", 0o600)


def test_devices_of_ours_are_written_to(tmp_path: Path) -> None:
    """/dev/null and a pipe stay what they are."""
    write_whole("/dev/null", b"x")
    assert not os.path.isfile("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    # Open before anybody writes: nobody waits for a pipe without a reader, and a thread that did would outlive the test.
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(str(tmp_path / "pipe"), b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)


@pytest.fixture
def umask() -> Iterator[None]:
    """Run under an init that masks nothing."""
    old = os.umask(0)
    yield
    os.umask(old)


def test_the_command_masks_what_others_could_write(tmp_path: Path, umask: None) -> None:
    """Started without a umask, the command lets nobody else write; a stricter one stays."""
    for mask in (0, 0o077):
        os.umask(mask)
        CliRunner().invoke(main, ["status", "--root", str(tmp_path)])
        assert os.umask(0) == mask | 0o022


def test_one_at_a_time(tmp_path: Path) -> None:
    """Who comes second waits, or is told; the lock is nobody else's to take."""
    path = str(tmp_path / "lock")
    order = []

    def second() -> None:
        with storage.locked(path):
            order.append(2)

    with storage.locked(path):
        thread = threading.Thread(target=second, daemon=True)
        thread.start()
        with pytest.raises(BlockingIOError), storage.locked(path, wait=False):
            order.append(3)
        time.sleep(0.1)
        order.append(1)
    thread.join()
    assert order == [1, 2] and stat.S_IMODE(os.stat(path).st_mode) == 0o600
