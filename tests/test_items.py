# SPDX-License-Identifier: MIT
"""Files of an initramfs on their way into a tree or into place: never through a link, never half of one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from safemem.initramfs import items
from safemem.initramfs.items import Item


def test_put_replaces_links(tmp_path: Path) -> None:
    """A link where a file is to be is no way to what it leads to, and one on the way may not lead out."""
    (tmp_path / "secret").write_text("s")
    tree = tmp_path / "tree"
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "usr/lib/f").symlink_to(tmp_path / "secret")
    (tree / "lib").symlink_to("usr/lib")
    (tree / "out").symlink_to(tmp_path)
    items.put({"usr/lib/f": Item(b"1", 0o755), "lib/g": Item(b"2", 0o644)}, tree)

    assert (tmp_path / "secret").read_text() == "s"
    assert (tree / "usr/lib/f").read_bytes() == b"1" and not (tree / "usr/lib/f").is_symlink()
    assert stat.S_IMODE((tree / "usr/lib/f").stat().st_mode) == 0o755
    assert (tree / "usr/lib/g").read_bytes() == b"2"
    with pytest.raises(OSError, match="a link on the way leads out of"):
        items.put({"out/secret": Item(b"3", 0o644)}, tree)
    assert (tmp_path / "secret").read_text() == "s"


def test_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode is set before the first byte is written, a link is replaced, and what fails leaves all as it was."""
    place = tmp_path / "f"
    (tmp_path / "secret").write_text("s")
    place.symlink_to("secret")
    fchmod = os.fchmod

    def early(fd: int, mode: int) -> None:
        assert os.fstat(fd).st_size == 0 and stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
        fchmod(fd, mode)

    monkeypatch.setattr(os, "fchmod", early)
    items.replace(place, b"1", 0o640)
    assert (place.read_bytes(), (tmp_path / "secret").read_text()) == (b"1", "s")
    assert stat.S_IMODE(place.stat().st_mode) == 0o640

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        items.replace(place, b"2", 0o640)
    assert place.read_bytes() == b"1" and sorted(path.name for path in tmp_path.iterdir()) == ["f", "secret"]
