# SPDX-License-Identifier: MIT
"""The one module of the boot half that opens files."""

from __future__ import annotations

import os
import posix
import stat
import time
from pathlib import Path

import pytest

from safemem.boot import files


def test_put_writes_as_a_shell_does(tmp_path: Path) -> None:
    """A plain file keeps nothing of what was longer, a log keeps everything, and nothing is made that was not there."""
    (tmp_path / "state").write_text("online_movable\n")
    files.put(str(tmp_path), "state", "offline")
    (tmp_path / "kmsg").write_text("before\n")
    files.put(str(tmp_path), "kmsg", "after\n", append=True)

    assert (tmp_path / "state").read_text() == "offline"
    assert (tmp_path / "kmsg").read_text() == "before\nafter\n"
    with pytest.raises(FileNotFoundError):
        files.put(str(tmp_path), "none", "x")
    assert files.attempt(str(tmp_path), "none", "x") == "no such file or directory"


def test_replace_puts_a_file_in_place_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the folders above it, for everybody to read, in as many writes as it takes; a failure leaves what was there."""
    real = posix.write
    monkeypatch.setattr(posix, "write", lambda fd, data: real(fd, data[:3]))
    before = os.umask(0o077)
    files.replace(str(tmp_path), "run/safemem/decision.json", "a record")
    os.umask(before)
    path = tmp_path / "run/safemem/decision.json"
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("a record", 0o644)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(posix, "write", full)
    with pytest.raises(OSError, match="No space left"):
        files.replace(str(tmp_path), "run/safemem/decision.json", "another")
    assert path.read_text() == "a record"


def test_reading_ends(tmp_path: Path) -> None:
    """A FIFO that nobody writes to does not hang, a large file is cut, and what is not there is told from what cannot be told."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"x" * 300_000)
    (tmp_path / "file").touch()
    started = time.monotonic()

    assert files.read(str(tmp_path), "fifo") == b""
    assert time.monotonic() - started < 30
    assert len(files.read(str(tmp_path), "large", 200_000)) == 200_000
    assert files.text(str(tmp_path), "none") is None and files.word(str(tmp_path), "none") == ""
    assert [files.exists(str(tmp_path), name) for name in ("file", "none", "file/below")] == [True, False, None]
    assert [files.is_folder(str(tmp_path), name) for name in (".", "file", "none")] == [True, False, False]


def test_a_link_is_made_once_and_never_over_something_else(tmp_path: Path) -> None:
    """One that is there already stays; one elsewhere, or a file in its place, is an error."""
    files.link(str(tmp_path), "run/udev/rules.d/40.rules", "/dev/null")
    files.link(str(tmp_path), "run/udev/rules.d/40.rules", "/dev/null")
    assert files.link_target(str(tmp_path), "run/udev/rules.d/40.rules") == "/dev/null"
    (tmp_path / "elsewhere").symlink_to("/etc/passwd")
    (tmp_path / "plain").touch()
    for name in ("elsewhere", "plain"):
        with pytest.raises(OSError):
            files.link(str(tmp_path), name, "/dev/null")


@pytest.mark.parametrize(("root", "name", "path"), [("/", "a/b", "/a/b"), ("/r", "a", "/r/a"), ("/r/", "a", "/r/a"),
                                                    ("", "a", "a"), ("", "/a", "/a")])  # fmt: skip
def test_paths_hang_off_the_root(root: str, name: str, path: str) -> None:
    """A name is looked up below the root; without a root it is as it stands."""
    assert files.path(root, name) == path
