# SPDX-License-Identifier: MIT
"""The reader of initrds against the kernel itself: of every image both have the same files, and both stop or neither does."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from safemem.initramfs import unpack
from tests.vm import unpacked
from tests.vm.kit import ALL

pytestmark = [pytest.mark.vm, pytest.mark.needs("lz4", "lzop", "zstd")]

#: Images in one guest, and seeds of `make test`, each of them a guest.
IMAGES = 8
SEEDS = range(400 if ALL else 18)
CHUNKS = 6


def agree(name: str, initrd: bytes) -> None:
    """Check that a kernel and the reader make the same of an initrd."""
    seen = unpacked.boot(initrd, name)
    tree, made = unpacked.read(initrd)
    # What our own decompressor takes for damaged, the kernel's does.
    damaged = "damaged" in str(made.fault) or str(made.fault).startswith("the compressed part ")
    stops = isinstance(made.fault, unpack.Stops) or damaged
    # A head in two pieces that is skipped: whatever the kernel does then, the reader claims nothing.
    untold = "cannot be told" in str(made.fault)
    assert made.fault is None or stops or untold or isinstance(made.fault, unpack.CutOff), made.fault
    if "init" not in tree:
        assert seen.tree is None and "Kernel panic" in seen.serial, name
        return
    assert seen.tree is not None, f"{name}: {made.fault}: {seen.serial[-300:]}"
    assert untold or bool(seen.stopped) == stops, f"{name}: the kernel says `{seen.stopped}`, the reader `{made.fault}`"
    if made.fault is None or tree == seen.tree:
        assert seen.tree == tree, f"{name}: {sorted(set(seen.tree.items()) ^ set(tree.items()))[:6]}"
    else:
        # What a decompressor hands over before it fails is its own affair.
        assert {path: value for path, value in seen.tree.items() if path in tree} == tree, name


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_by_chance(chunk: int, record_property: Callable[[str, object], None]) -> None:
    """Images by chance: entries of all kinds in archives packed in all ways, with what the kernel skips, drops or stops at."""
    seeds = [seed for seed in SEEDS if seed % CHUNKS == chunk]
    wrong = []
    for seed in seeds:
        try:
            agree(f"unpack-{seed}", unpacked.chance(seed, IMAGES))
        except AssertionError as error:
            wrong.append(f"{seed}: {str(error)[:600]}")
    record_property(
        "says",
        f"unpacked: {len(seeds) * IMAGES} images in {len(seeds)} guests, {len(wrong)} read otherwise than by the kernel",
    )
    assert not wrong, "\n".join(wrong)


F = unpacked.entry(b"first\0", data=b"1")
L = unpacked.entry(b"last\0", data=b"3")
END = unpacked.TRAILER
LONG = unpacked.entry(b"n" * 4097, data=b"2")
GZIP = unpacked.PACKERS["gzip"]
CONFIG = b"key = value\n"


def bootconfig(data: bytes = CONFIG, *, size: int | None = None, wrong: int = 0, behind: int = 0) -> bytes:
    """Return a boot configuration as it stands at the end of an initrd."""
    size = len(data) if size is None else size
    head = size.to_bytes(4, "little") + (sum(data) + wrong).to_bytes(4, "little")
    return data + head + b"#BOOTCONFIG\n" + bytes(behind)


def padded(data: bytes) -> bytes:
    """Return `data` with zeros up to a multiple of 4."""
    return data + bytes(-len(data) % 4)


@functools.cache
def table() -> dict[str, bytes]:
    """Return what lies behind an archive with the init, by name; made when it is asked for, by programs that pack."""
    return {
        "no trailer": F + L,
        "no trailer, then packed": F + GZIP(L),
        "two trailers": F + END + END + L,
        "a packed one without a trailer, then another": padded(GZIP(F)) + GZIP(L),
        "a plain one at 1": F + END + bytes(1) + L,
        "a packed one at 1 behind a plain one": F + END + bytes(1) + GZIP(L),
        "a packed one at any place behind a packed one": GZIP(F + END) + bytes(1) + GZIP(L + END),
        "zeros only": bytes(5000),
        "an empty packed part": GZIP(b"") + padded(GZIP(L)),
        "zeros only, packed": GZIP(bytes(4096)) + GZIP(L),
        "zeros before a packed archive": GZIP(bytes(512) + L),
        "cut off in a head": F + L[:50],
        "cut off in a name": F + L[:112],
        "cut off in the padding": F + L[:-2],
        "cut off in a file": F + unpacked.entry(b"last\0", data=b"3" * 100)[:-10],
        "cut off in a skipped entry": F + LONG[:-100],
        "a packed one cut off in the padding": GZIP(F + L[:-2]) + GZIP(L),
        "a name too long": F + LONG + L + END,
        "a name too long in a packed part": GZIP(F + LONG + L + END),
        **{
            f"a skipped head across 4096, {name}": padded(unpacked.PACKERS[name](unpacked.entry(b"big\0", data=bytes(4096 - 170)) + LONG + L)) + bytes(4)
            for name in ("gzip", "zstd", "lzo", "lz4")
        },
        "a folder with content": F + unpacked.entry(b"dir\0", 0o040755, b"2") + L,
        "a name that ends early": F + unpacked.entry(b"a\0bc\0", data=b"2") + L,
        "a file over a folder that is full": unpacked.entry(b"d\0", 0o040755) + unpacked.entry(b"d/x\0") + unpacked.entry(b"d\0", data=b"2") + L,
        "a link over a folder that is empty": unpacked.entry(b"d\0", 0o040755) + unpacked.entry(b"d\0", 0o120777, b"dev") + unpacked.entry(b"d/x\0") + L,
        "a folder over a link": unpacked.entry(b"d\0", 0o120777, b"root") + unpacked.entry(b"d\0", 0o040755) + unpacked.entry(b"d/x\0"),
        "a folder with a slash over a link": unpacked.entry(b"d\0", 0o120777, b"root") + unpacked.entry(b"d/\0", 0o040755) + unpacked.entry(b"d/x\0"),
        "links in a circle": unpacked.entry(b"a\0", 0o120777, b"b") + unpacked.entry(b"b\0", 0o120777, b"a") + unpacked.entry(b"a/x\0") + L,
        "a chain of 40 links": b"".join(unpacked.entry(b"l%d\0" % n, 0o120777, b"l%d" % (n + 1)) for n in range(40))
        + unpacked.entry(b"l40\0", 0o040755) + unpacked.entry(b"l0/x\0", data=b"1") + unpacked.entry(b"l1/y\0", data=b"2"),
        "a link to nothing": unpacked.entry(b"a\0", 0o120777, b"") + unpacked.entry(b"a/x\0") + L,
        "a target of 4096 bytes": unpacked.entry(b"a\0", data=b"1") + unpacked.entry(b"a\0", 0o120777, b"t" * 4096) + L,
        "a name with parts of 255 and 256": unpacked.entry(b"n" * 255 + b"\0") + unpacked.entry(b"n" * 256 + b"\0") + L,
        "a file of two names that is written later": unpacked.entry(b"a\0", links=2, data=b"1") + unpacked.entry(b"b\0", links=2)
        + END + unpacked.entry(b"b\0", data=b"22"),
        "one name twice as a hard link": unpacked.entry(b"a\0", links=2, data=b"1") + unpacked.entry(b"a\0", links=2, data=b"22") + L,
        "two names in two archives": unpacked.entry(b"a\0", links=2, data=b"1") + unpacked.entry(b"b\0", links=2) + END + unpacked.entry(b"c\0", links=2),
        "a hard link through a link": unpacked.entry(b"a\0", links=2, data=b"1") + unpacked.entry(b"a\0", 0o120777, b"t")
        + unpacked.entry(b"b\0", links=2, data=b"22") + L,
        "the content with the last name": unpacked.entry(b"a\0", links=2) + unpacked.entry(b"b\0", links=2, data=b"22"),
        "sums of a file without content": unpacked.entry(b"a\0", magic=b"070702", check=1) + L,
        "sums of a file that is dropped": unpacked.entry(b"no/a\0", magic=b"070702", data=b"a", check=1) + L,
        "a boot configuration": F + L + bootconfig(),
        "a boot configuration, padded": F + L + bootconfig(CONFIG + b"12", behind=3),
        "a boot configuration behind a packed part": GZIP(F + L) + bootconfig(),
        "a boot configuration of another sum": F + L + bootconfig(wrong=1),
        "a boot configuration larger than the image": F + L + bootconfig(size=1 << 24),
        "a boot configuration with 4 bytes behind": F + L + bootconfig(behind=4),
        "junk at the end": F + L + b"\n",
        "lz4, 4 zeros, plain": padded(unpacked.PACKERS["lz4"](F) + bytes(4)) + L,
        "lz4, fewer zeros": unpacked.PACKERS["lz4"](F) + bytes(3) + GZIP(L),
        "lz4, at the end": F + unpacked.PACKERS["lz4"](L),
        "lz4, 3 zeros at the end": F + unpacked.PACKERS["lz4"](L) + bytes(3),
        "lz4 in two frames": unpacked.PACKERS["lz4"](F) + unpacked.PACKERS["lz4"](L) + bytes(4) + GZIP(L),
        "zstd in two frames": unpacked.PACKERS["zstd"](F) + unpacked.PACKERS["zstd"](L),
        "zstd in two frames, cut in an entry": unpacked.PACKERS["zstd"](F[:100]) + unpacked.PACKERS["zstd"](F[100:] + L),
        "gzip in two members, cut in an entry": GZIP(F[:100]) + GZIP(F[100:] + L),
        "bzip2 in two streams": unpacked.PACKERS["bzip2"](F) + unpacked.PACKERS["bzip2"](L),
        "xz in two streams, with padding": unpacked.PACKERS["xz"](F) + bytes(8) + unpacked.PACKERS["xz"](L),
        **{
            f"a large file, {name}": padded(pack(unpacked.entry(b"big\0", data=bytes(range(256)) * 2000) + F + LONG + L + END) + bytes(4)) + F
            for name, pack in unpacked.PACKERS.items()
        },
        **{
            f"a name across {size}, {name}": pack(unpacked.entry(b"big\0", data=bytes(size - 230 - more)) + unpacked.entry(b"n" * 99 + b"\0", data=b"2") + L)
            for size in (4096, 32768) for name, pack in unpacked.PACKERS.items() if name in ("gzip", "xz", "bzip2", "lzma")
            for more in (0, 60)
        },
        **{f"refused, {name}": F + pack(L + END) for name, pack in unpacked.REFUSED.items()},
    }  # fmt: skip


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_by_name(chunk: int, record_property: Callable[[str, object], None]) -> None:
    """Images of every kind that is known to have been read otherwise, or might be; several in a guest, the kernel's end in the last.

    Of those that stop nothing, four are one behind the other, each in the root as it is by then.
    """
    parts = list(table().items())
    alone = {name: data for name, data in parts if unpacked.read(unpacked.init() + data)[1].fault}
    calm = [
        item for item in parts if item[0] not in alone and "bootconfig" not in item[0] and "boot conf" not in item[0]
    ]
    runs = {name: data for name, data in parts if name not in dict(calm)}
    for at in range(0, len(calm), 4):
        some = calm[at : at + 4]
        runs[" | ".join(name for name, _ in some)] = b"".join(padded(data) + bytes(4) for _, data in some)
    wrong = []
    mine = [item for number, item in enumerate(sorted(runs.items())) if number % CHUNKS == chunk]
    for number, (name, data) in enumerate(mine):
        try:
            agree(f"unpack-named-{chunk}-{number}", unpacked.init() + data)
        except AssertionError as error:
            wrong.append(f"{name}: {str(error)[:600]}")
    images = sum(name.count(" | ") + 1 for name, _ in mine)
    record_property(
        "says",
        f"unpacked: {images} named images in {len(mine)} guests, {len(wrong)} read otherwise than by the kernel",
    )
    assert not wrong, "\n".join(wrong)
