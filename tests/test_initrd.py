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

from safemem.initramfs import packed, unpack
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
}
NOISE = bytes(range(256)) * 997
STOPS = ": the kernel stops here, and unpacks nothing of the rest"


@pytest.mark.parametrize(
    "packer", [pytest.param(name, marks=[pytest.mark.needs(tool) for tool in ("zstd", "lz4") if tool in name]) for name in PACKERS]
)  # fmt: skip
def test_every_packing(packer: str) -> None:
    """A plain archive, zeros, a packed one, then another plain one: all are read, and the last of one name counts."""
    pack = PACKERS[packer]
    data = archive(early=b"1", a__same=b"old") + bytes(8192) + pack(archive(a__same=b"new", a__big=NOISE, x=b"x"))
    data += bytes(4 + -len(data) % 4) + archive(a__late=b"3", x=b"y") + bytes(512)

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
        (archive(a=b"1")[:112], "byte 0: the archive is cut off"),
        (archive(a=b"1")[:200], "byte 116: the archive is cut off"),
        (archive(a=b"1")[:230], "byte 116: the archive is cut off"),
        (archive(a=b"1")[:90], "byte 0: the archive is cut off"),
        (b"070701" + b"z" * 104, "byte 0: the head of an archive entry is damaged"),
        (archive(a=b"1")[:116] + b"x" * 200, "byte 116: neither an archive nor a compression that the kernel knows"),
        (archive(a=b"1")[:116] + b"0" * 200, "byte 116: this is no entry of a newc archive"),
        (b"\x89LZO\0\r\n", f"byte 0: packed by lzop with other checksums than the kernel expects{STOPS}"),
        (gzip.compress(archive(a=b"1"), mtime=0)[:-9], "the compressed part that begins at byte 0 is cut off"),
        (b"\x1f\x8bgarbage", "byte 0: the compressed part is damaged"),
        (b"\x28\xb5\x2f\xfd", "the compressed part is cut off before byte 5"),
        pytest.param(
            b"\x28\xb5\x2f\xfd\x20\x06\x29\0\0hello",
            "byte 0: the part packed with zstd is damaged",
            marks=pytest.mark.needs("zstd"),
        ),
    ],
)
def test_damaged(data: bytes, says: str) -> None:
    """What cannot be read to its end is an error with its place, never an image without the file."""
    with pytest.raises(packed.Unreadable) as error:
        unpack.find(data, ["b"])
    assert says in str(error.value)


def entry(
    name: bytes = b"init\0", mode: int = 0o100755, data: bytes = b"", *, links: int = 1, inode: int = 1, check: int = 0,
    magic: bytes = b"070701", length: int | None = None, size: int | None = None,
) -> bytes:  # fmt: skip
    """Return one entry of an archive as given, whatever is wrong with it."""
    size = len(data) if size is None else size
    fields = (inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(name) if length is None else length, check)
    head = magic + b"".join(b"%08x" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


END = entry(b"TRAILER!!!\0", 0)
PLAIN, PACKED = archive(a=b"1"), gzip.compress(archive(b=b"2"), mtime=0)


@pytest.mark.parametrize("length", range(4))
def test_where_the_kernel_looks_for_an_archive(length: int) -> None:
    """A compressed part begins anywhere behind another one, a plain archive only at a multiple of 4."""
    image = next(
        made for n in range(64) if len(made := gzip.compress(archive(a=bytes(range(n))), mtime=0)) % 4 == length
    )
    after = len(image)

    assert set(unpack.find(image + PACKED, ["a", "b"])) == {"a", "b"}
    assert set(unpack.find(image + bytes(3) + PACKED, ["a", "b"])) == {"a", "b"}
    assert set(unpack.find(image + bytes(-after % 4) + PLAIN, ["a"])) == {"a"}
    if length:
        with pytest.raises(packed.Unreadable) as error:
            unpack.find(image + PLAIN, ["a"])
        assert str(error.value) == f"byte {after}: a plain archive begins at no multiple of 4{STOPS}"
        # Behind a plain one, padded to a number that is none, nothing at all is unpacked.
        with pytest.raises(packed.Unreadable) as error:
            unpack.find(PLAIN + bytes(length) + PACKED, ["a"])
        assert (
            str(error.value)
            == f"byte {len(PLAIN) + length}: the part after a plain archive begins at no multiple of 4{STOPS}"
        )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip.compress(PACKED, mtime=0), "byte 0, unpacked byte 0: no archive is here in the compressed part" + STOPS),
        (gzip.compress(PLAIN + PACKED, mtime=0), f"byte 0, unpacked byte {len(PLAIN)}: no archive is here in the compressed part" + STOPS),
        (gzip.compress(PLAIN + bytes(2) + PLAIN, mtime=0), f"byte 0, unpacked byte {len(PLAIN) + 2}: no archive is here in the compressed part" + STOPS),
        (gzip.compress(bytes(512) + PLAIN, mtime=0), "byte 0, unpacked byte 0: no archive is here in the compressed part" + STOPS),
        (gzip.compress(b"", mtime=0), "byte 0, unpacked byte 0: no archive is here in the compressed part" + STOPS),
        (gzip.compress((entry(data=b"x") + END)[:-3], mtime=0), "byte 0, unpacked byte 120: the archive is cut off"),
        (PACKED[:3] + b"\x04" + PACKED[4:], "byte 0: the head of the gzip member has fields that the kernel does not know" + STOPS),
        (lzma.compress(PLAIN), "byte 0: packed by xz without `--check=crc32`" + STOPS),
        (entry(b"init", length=4) + END, "byte 0: the name of an archive entry has no end" + STOPS),
        (entry().replace(b"0000000", b"0x00000", 1) + END, "byte 0: the head of an archive entry is damaged"),
        (entry(magic=b"070707") + END, "byte 0: this is no entry of a newc archive"),
        (entry(magic=b"070702", data=b"ab", check=1) + END, "byte 0: the content of an archive entry does not match its sum" + STOPS),
        (entry() + bytes(2) + END, f"byte {len(entry()) + 2}: a plain archive begins at no multiple of 4" + STOPS),
        (entry(data=bytes(17 << 20)), "init is larger than 16 MiB, which is not read"),
        (b"\x04\x22\x4d\x18" + bytes(20), "byte 0: packed with lz4's newer frame, which the kernel does not unpack (`lz4 -l` makes the other)" + STOPS),
        (b"\x50\x2a\x4d\x18" + bytes(20), "byte 0: neither an archive nor a compression that the kernel knows"),
    ],
)  # fmt: skip
def test_where_the_kernel_stops(data: bytes, says: str) -> None:
    """Nothing is read that the kernel would not unpack, and nothing behind that."""
    with pytest.raises(packed.Unreadable) as error:
        unpack.find(data, ["init", "a"])
    assert str(error.value) == says


@pytest.mark.needs("zstd", "lz4")
def test_frames() -> None:
    """Each frame of zstd is a part of its own, and behind one of lz4 the kernel wants zeros."""
    zstd, lz4 = PACKERS["zstd"], PACKERS["lz4-legacy"]
    assert set(unpack.find(zstd(PLAIN) + zstd(archive(b=b"2")), ["a", "b"])) == {"a", "b"}
    with pytest.raises(packed.Unreadable, match="the archive is cut off"):
        unpack.find(zstd(PLAIN[:113]) + zstd(PLAIN[113:]), ["a"])
    assert set(unpack.find(zstd(PLAIN[:116]) + zstd(PLAIN[116:]), ["a"])) == {"a"}
    made = lz4(PLAIN)
    assert set(unpack.find(made + bytes(4) + PACKED, ["a", "b"])) == {"a", "b"}
    made += bytes(-len(made) % 4)
    for more in (made[:-1] + PACKED, lz4(PLAIN) + PLAIN):
        with pytest.raises(packed.Unreadable, match=r"damaged|cut off|no multiple of 4|less than four zeros"):
            unpack.find(more, ["a"])


def test_nested_deeply() -> None:
    """One level is what the kernel knows: of 1,500 only the first is looked at."""
    data = PLAIN
    for _ in range(1500):
        data = gzip.compress(data, 0, mtime=0)
    with pytest.raises(packed.Unreadable, match="byte 0, unpacked byte 0: no archive is here"):
        unpack.find(data, ["a"])


def test_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros by the gigabyte are not unpacked to the end, and are never in memory as a whole."""
    large = gzip.compress(PLAIN + bytes(64 << 20), 1, mtime=0)
    assert set(unpack.find(large, ["a"])) == {"a"}
    monkeypatch.setattr(unpack, "LIMIT", 32 << 20)
    for data in (large, PACKED + gzip.compress(archive(b=bytes(16 << 20)), 1, mtime=0) * 3):
        with pytest.raises(
            packed.Unreadable, match=r"byte \d+: the image unpacks to more than 32 MiB, which is not read"
        ):
            unpack.find(data, ["a"])
    with pytest.raises(
        packed.Unreadable, match="byte 0: the compressed part unpacks to more than 8 MiB, which is not read"
    ):
        packed.whole(large, 0, 8 << 20)


def test_names_as_the_kernel_takes_them() -> None:
    """One file has one path, however it is spelled, and a name ends at its first NUL."""
    data = (
        entry(b"usr\0", 0o040755)
        + entry(b"usr/lib\0", 0o040755)
        + entry(b".//usr/./lib//x\0", data=b"1")
        + entry(b"/usr/lib/x\0\0\0\0", data=b"2")
        + entry(mode=0o120777, data=b"y\0z")
    )
    assert unpack.find(data + END, ["usr/lib/x", "init"]) == {"usr/lib/x": b"2", "init": b"y"}


@pytest.mark.needs("cpio")
def test_files_with_several_names(tmp_path: Path) -> None:
    """The content comes with one of the names, the last in what cpio writes, and counts for each."""
    (tmp_path / "t/d").mkdir(parents=True)
    (tmp_path / "t/a").write_text("hi")
    for name in ("b", "d/c"):
        (tmp_path / "t" / name).hardlink_to(tmp_path / "t/a")
    made = program("sh", "-c", f"cd {tmp_path}/t && find . | cpio -o -H newc --quiet")(b"")
    assert unpack.find(made, ["a", "b", "d/"]) == dict.fromkeys(("a", "b", "d/c"), b"hi")

    first = entry(b"a\0", data=b"1", links=2) + entry(b"b\0", links=2) + END + entry(b"c\0", links=2) + END
    assert unpack.find(first, ["a", "b", "c"]) == {"a": b"1", "b": b"1", "c": b""}


@pytest.mark.needs("zstd")
def test_a_missing_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without zstd the image is unreadable, and the message says what to install."""
    data = PACKERS["zstd"](archive(a=b"1"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(packed, "_zstd", None)  # Python 3.14 needs no program
    with pytest.raises(packed.Unreadable, match="packed with zstd, and the program zstd is not installed"):
        unpack.find(data, ["a"])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 5))
def test_any_bytes(tail: bytes, kind: int) -> None:
    """Whatever the image holds, there is an answer or `Unreadable`."""
    head = (b"", b"070701", b"\x1f\x8b\x08\0\0\0\0\0\0\xff", b"\xfd7zXZ\0", archive(a=b"1"), b"BZh9")[kind]
    with contextlib.suppress(packed.Unreadable):
        unpack.find(head + tail, ["a"])


def folder(*names: str) -> bytes:
    """Return entries of folders."""
    return b"".join(entry(name.encode() + b"\0", 0o040755) for name in names)


def link(name: str, target: str) -> bytes:
    """Return the entry of a symbolic link."""
    return entry(name.encode() + b"\0", 0o120777, target.encode())


def file(name: str, data: bytes = b"1", *, links: int = 1, inode: int = 1) -> bytes:
    """Return the entry of a file."""
    return entry(name.encode() + b"\0", data=data, links=links, inode=inode)


#: What tests/vm/test_unpack.py shows in a guest, in short: entries -> what is there of everything.
MADE: dict[str, tuple[bytes, dict[str, bytes]]] = {
    "no folder": (file("d/x") + file("y"), {"y": b"1"}),
    "a folder that comes late": (file("d/x") + folder("d") + file("d/y"), {"d/y": b"1"}),
    "through a link": (folder("usr", "usr/lib") + link("lib", "usr/lib") + file("lib/x"), {"usr/lib/x": b"1", "lib": b"usr/lib"}),
    "through an absolute link": (folder("usr") + link("u", "/usr") + file("u/x"), {"usr/x": b"1", "u": b"/usr"}),
    "through a link to nothing": (link("lib", "usr/lib") + file("lib/x"), {"lib": b"usr/lib"}),
    "a link in the place of an empty folder": (folder("d") + link("d", "root") + file("d/x"), {"d": b"root", "root/x": b"1"}),
    "a link in the place of a full folder": (folder("d") + file("d/x") + link("d", "root") + file("d/y"), {"d/x": b"1", "d/y": b"1"}),
    "a folder in the place of a link": (link("d", "root") + folder("d") + file("d/x"), {"d/x": b"1"}),
    "a folder with a slash, where a link is": (link("d", "root") + folder("d/") + file("d/x"), {"d": b"root", "root/x": b"1"}),
    "a file in the place of a link": (link("x", "y") + file("x"), {"x": b"1"}),
    "a file in the place of a full folder": (folder("d") + file("d/x") + file("d"), {"d/x": b"1"}),
    "a file with a slash": (file("x/"), {}),
    "`..`": (folder("usr") + file("usr/../x") + file("../y"), {"x": b"1", "y": b"1"}),
    "links in a circle": (link("a", "b") + link("b", "a") + file("a/x"), {"a": b"b", "b": b"a"}),
    "one inode for two names": (file("a", links=2) + file("b", b"", links=2) + END + file("b", b"22"), {"a": b"22", "b": b"22"}),
    "one name twice": (file("a", links=2) + file("a", b"22", links=2), {}),
    "inodes of two archives": (file("a", links=2) + END + file("b", b"", links=2), {"a": b"1", "b": b""}),
    "inodes without a trailer between": (file("a", links=2) + bytes(512) + file("b", b"", links=2), {"a": b"1", "b": b"1"}),
    "another kind takes away": (file("a") + entry(b"a\0", 0o010644) + file("b") + entry(b"b\0", 0), {}),
    "a name too long": (file("a") + file("n" * 4096, b"2") + file("b"), {"a": b"1", "b": b"1"}),
    "a part of a name too long": (file("n" * 256) + file("n" * 255), {"n" * 255: b"1"}),
    "a target too long": (link("a", "t" * 4096) + link("b", "t" * 4097) + link("c", "t" * 4095), {"c": b"t" * 4095}),
    "no name": (entry(b"", length=0, data=b"x") + entry(b"\0", data=b"x") + file("a"), {"a": b"1"}),
    "a folder with content": (entry(b"d\0", 0o040755, b"x") + file("a"), {"a": b"1"}),
    "no trailer": (file("a"), {"a": b"1"}),
    "no trailer, more packed": (file("a") + gzip.compress(file("b")), {"a": b"1", "b": b"1"}),
    "packed without a trailer": (gzip.compress(file("a")) + gzip.compress(file("b")), {"a": b"1", "b": b"1"}),
    "no padding at the end": (file("a")[:-3], {"a": b"1"}),
    "a boot configuration": (file("a") + b"k = v\n" + (6).to_bytes(4, "little") + sum(b"k = v\n").to_bytes(4, "little") + b"#BOOTCONFIG\n\0", {"a": b"1"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_what_becomes_of_entries(name: str) -> None:
    """Files are where the kernel makes them: through links, over others, and nowhere without a folder."""
    data, made = MADE[name]
    assert {path: node.target.encode() if node.kind == 0o120000 else node.content for path, node in
            unpack.unpack(data, lambda path, head: True).rootfs.walk() if node.kind in (0o120000, 0o100000)} == made  # fmt: skip
    assert unpack.find(data, made) == made


def test_found_by_another_name() -> None:
    """A wanted file counts by whatever names its folders have: it is looked for once more where its entry had another."""
    data = folder("other") + link("etc", "other") + file("other/a", b"2") + file("x", b"3", links=2) + link("l", "etc")
    data += entry(b"etc/hard\0", data=b"", links=2)
    assert unpack.find(data, ["etc/a", "etc/hard", "l/"]) == {
        "etc/a": b"2",
        "etc/hard": b"3",
        "l/a": b"2",
        "l/hard": b"3",
    }
    # By two names that are one, it is found once.
    assert unpack.find(data, ["etc/a", "other/a"]) == {"other/a": b"2"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lzma.compress(PLAIN, check=lzma.CHECK_CRC32, filters=[{"id": lzma.FILTER_DELTA}, {"id": lzma.FILTER_LZMA2}]), "packed by xz with a filter that the kernel does not have" + STOPS),
        (lzma.compress(PLAIN, check=lzma.CHECK_CRC32, filters=[{"id": lzma.FILTER_X86, "start_offset": 4096}, {"id": lzma.FILTER_LZMA2}]), "packed by xz with an offset for its filter, which the kernel does not take" + STOPS),
        (lzma.compress(PLAIN, check=lzma.CHECK_CRC32, filters=[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_ARM}, {"id": lzma.FILTER_LZMA2}]), "packed by xz with more filters than the kernel takes" + STOPS),
        (lzma.compress(PLAIN, lzma.FORMAT_ALONE)[:5] + len(PLAIN).to_bytes(8, "little") + lzma.compress(PLAIN, lzma.FORMAT_ALONE)[13:], "packed with lzma, with its size in the head: where the kernel goes on cannot be told"),
        (b"\x1f\x9e" + PACKED[2:], "neither an archive nor a compression that the kernel knows"),
        (b"\x28\xb5\x2f\xfd\x21\x07\x01\0\0", "packed by zstd with a dictionary, which the kernel does not have" + STOPS),
        (gzip.compress(file("a") + entry(b"big\0", data=bytes(32768 - 300)) + file("n" * 4096)), "unpacked byte 32700: the kernel skips an archive entry here, and where it goes on cannot be told"),
    ],
)  # fmt: skip
def test_variants_of_compressions(data: bytes, says: str) -> None:
    """The kernel's programs know less than those that pack, and what is not known of them is said."""
    with pytest.raises(packed.Unreadable) as error:
        unpack.find(PLAIN + data, ["a"])
    assert str(error.value).endswith(says)


@pytest.mark.needs("lzop")
@pytest.mark.parametrize("length", range(4))
def test_lzo(length: int) -> None:
    """What lzop writes is read, and what follows it."""
    made = program("lzop", "-c")(archive(a=b"1" * length + bytes(99)))
    assert set(unpack.find(made + PACKED, ["a", "b"])) == {"a", "b"}
    assert set(unpack.find(made + bytes(-len(made) % 4) + PLAIN, ["a"])) == {"a"}
    with pytest.raises(packed.Unreadable, match="other checksums than the kernel expects"):
        unpack.find(program("lzop", "-c", "-F")(PLAIN), ["a"])
