# SPDX-License-Identifier: MIT
"""Files are read out of an initrd as the kernel would unpack it, whatever it is packed with."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safemem.initramfs import unpack
from safemem.initramfs.cpio import Archive


def archive(**files: bytes) -> bytes:
    """Return an archive; `__` in a name stands for a slash."""
    out = io.BytesIO()
    cpio = Archive(out)
    for name, data in files.items():
        cpio.file(name.replace("__", "/"), data)
    cpio.close()
    return out.getvalue()


def program(*command: str) -> Callable[[bytes], bytes]:
    """Return a function that packs with a program."""

    def pack(data: bytes) -> bytes:
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout

    return pack


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": program("zstd", "-q", "-c"),
    "zstd-bare": program("zstd", "-q", "-c", "--no-check", "-1"),
    "lz4-legacy": program("lz4", "-l", "-q", "-c"),
    "lz4": program("lz4", "-q", "-c", "-BX", "--content-size"),
}
NOISE = bytes(range(256)) * 997


@pytest.mark.parametrize(
    "packer", [pytest.param(name, marks=[pytest.mark.needs(tool) for tool in ("zstd", "lz4") if tool in name]) for name in PACKERS]
)  # fmt: skip
def test_every_packing(packer: str) -> None:
    """A plain archive, zeros, a packed one, then another plain one: all are read, and the last of one name counts."""
    pack = PACKERS[packer]
    data = archive(early=b"1", a__same=b"old") + bytes(8192) + pack(archive(a__same=b"new", a__big=NOISE, x=b"x"))
    data += bytes(-len(data) % 4) + archive(a__late=b"3", x=b"y") + bytes(512)

    assert unpack.find(data, ["early", "a/", "x", "absent"]) == {
        "early": b"1", "a/same": b"new", "a/big": NOISE, "a/late": b"3", "x": b"y",
    }  # fmt: skip


def test_links_folders_and_spelling() -> None:
    """A symbolic link gives its target, a folder nothing, and `./` before a name is no other name."""
    out = io.BytesIO()
    cpio = Archive(out)
    cpio.directory("d")
    cpio.symlink("l", "usr/lib")
    cpio.close()

    assert unpack.find(out.getvalue(), ["l", "d"]) == {"l": b"usr/lib"}


@pytest.mark.needs("cpio")
def test_what_cpio_writes(tmp_path: Path) -> None:
    """GNU cpio, whose names begin with `./` when find(1) gives them so."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t/f").write_text("hi")
    made = program("sh", "-c", f"cd {tmp_path} && find . | cpio -o -H newc --quiet")(b"")

    assert unpack.find(made, ["t/f"]) == {"t/f": b"hi"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"hello", "byte 0: neither an archive nor a compression that the kernel knows"),
        (archive(a=b"1")[:115], "byte 115: the archive is cut off"),
        (b"070701" + b"z" * 104, "byte 0: the head of an archive entry is damaged"),
        (archive(a=b"1")[:116] + b"x" * 200, "byte 116: this is no entry of a newc archive"),
        (b"\x89LZO\0\r\n", "byte 0: packed with lzo, which cannot be unpacked here"),
        (gzip.compress(archive(a=b"1"), mtime=0)[:-9], "byte 0: the compressed part is cut off"),
        (b"\x1f\x8bgarbage", "byte 0: the compressed part is damaged"),
        (b"\x28\xb5\x2f\xfd", "byte 4: the compressed part is cut off"),
        pytest.param(
            b"\x28\xb5\x2f\xfd\x20\x06\x29\0\0hello",
            "byte 0: the part packed with zstd is damaged",
            marks=pytest.mark.needs("zstd"),
        ),
    ],
)
def test_damaged(data: bytes, says: str) -> None:
    """What cannot be read to its end is an error with its place, never an image without the file."""
    with pytest.raises(unpack.Unreadable) as error:
        unpack.find(data, ["b"])
    assert says in str(error.value)


@pytest.mark.needs("zstd")
def test_a_missing_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without zstd the image is unreadable, and the message says what to install."""
    data = PACKERS["zstd"](archive(a=b"1"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(unpack.Unreadable, match="packed with zstd, and the program zstd is not installed"):
        unpack.find(data, ["a"])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 5))
def test_any_bytes(tail: bytes, kind: int) -> None:
    """Whatever the image holds, there is an answer or `Unreadable`."""
    head = (b"", b"070701", b"\x1f\x8b\x08\0\0\0\0\0\0\xff", b"\xfd7zXZ\0", archive(a=b"1"), b"BZh9")[kind]
    with contextlib.suppress(unpack.Unreadable):
        unpack.find(head + tail, ["a"])
