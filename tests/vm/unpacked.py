# SPDX-License-Identifier: MIT
"""Initrds made by chance, and what a kernel makes of them: a guest's init says which files there are, and with what content."""

from __future__ import annotations

import bz2
import functools
import gzip
import hashlib
import lzma
import random
import resource
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from safemem.initramfs import unpack
from safemem.initramfs.rootfs import FILE, LINK
from tests.vm import harness

#: What a guest has on its console where the kernel stops.
FAILED = "Initramfs unpacking failed"
_APPEND = "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable"
#: path -> type, and of a file its size and the sum of its content, of a link its target
Tree = dict[str, tuple[int, str]]


class Seen(NamedTuple):
    """What became of a guest."""

    tree: Tree | None  #: None if it had no init to say so
    stopped: str  #: the kernel's word for it, or ""
    serial: str


@functools.cache
def kernel() -> Path:
    """Return the kernel as the ELF file that is packed in it, which QEMU enters at once: half the time of a boot."""
    image = harness.kernel("current").read_bytes()
    path = harness.CACHE / "vm" / f"vmlinux-{hashlib.sha256(image).hexdigest()[:16]}"
    if not path.exists():
        start, length = struct.unpack_from("<II", image, 0x248)
        start += ((image[0x1F1] or 4) + 1) * 512
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
            draft.write(lzma.LZMADecompressor().decompress(image[start : start + length]))
        Path(draft.name).rename(path)
    return path


def boot(initrd: bytes, name: str) -> Seen:
    """Boot a guest with this initrd, whose init is guest/unpacked.c."""
    started, before = time.monotonic(), _used()
    with tempfile.TemporaryDirectory(prefix="safemem-unpacked-") as folder:
        base = Path(folder)
        (base / "initrd").write_bytes(initrd)
        for file in ("serial", "report"):
            (base / file).touch()
        command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", harness.CPU, "-machine", "pc", "-m", "128M", "-nodefaults",
                   "-display", "none", "-no-reboot", "-kernel", str(kernel()), "-initrd", str(base / "initrd"), "-append", _APPEND,
                   "-serial", f"file:{base / 'serial'}", "-serial", f"file:{base / 'report'}"]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
            try:
                process.wait(300)
            finally:
                process.kill()
        serial = (base / "serial").read_text("utf-8", "replace")
        lines = (base / "report").read_text("ascii", "replace").replace("\r", "").splitlines()
    harness.LOGS.mkdir(exist_ok=True)
    log = harness.LOGS / f"{name}.log"
    log.write_text(serial)
    harness.LOGGED.append((log, harness.Cost(name, time.monotonic() - started, _used() - before, 1)))
    stopped = next((line.partition(f"{FAILED}: ")[2] for line in serial.splitlines() if FAILED in line), "")
    return Seen(_tree(lines[:-1]) if lines[-1:] == ["end"] else None, stopped, serial)


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tree(lines: Iterable[str]) -> Tree:
    found = {}
    for line in lines:
        path, kind, size, rest = line.split(" ")
        mode = int(kind, 8)
        text = (
            f"{size} {rest}"
            if mode == FILE
            else bytes.fromhex(rest).decode("utf-8", "surrogateescape")
            if mode == LINK
            else ""
        )
        found[bytes.fromhex(path).decode("utf-8", "surrogateescape")] = (mode, text)
    return found


def read(initrd: bytes) -> tuple[Tree, unpack.Unpacked]:
    """Return what the reader makes of an initrd, in a guest's terms."""
    made = unpack.unpack(initrd, lambda path, head: True)
    found = {}
    for path, node in made.rootfs.walk():
        text = node.target if node.kind == LINK else ""
        if node.kind == FILE:
            assert node.content is not None
            text = f"{len(node.content)} {_sum(node.content)}"
        found[path] = (node.kind, text)
    return found, made


@functools.cache
def _sum(data: bytes) -> str:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


# ---- images by chance


def entry(
    name: bytes = b"f\0", mode: int = 0o100644, data: bytes = b"", *, links: int = 1, inode: int = 1, check: int = 0,
    magic: bytes = b"070701", length: int | None = None, size: int | None = None,
) -> bytes:  # fmt: skip
    """Return one entry of an archive as given, whatever is wrong with it."""
    size = len(data) if size is None else size
    length = len(name) if length is None else length
    fields = (inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, length, check)
    head = magic + b"".join(b"%08x" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


TRAILER = entry(b"TRAILER!!!\0", 0)


def by(*command: str) -> Callable[[bytes], bytes]:
    """Return a function that packs with a program."""
    return lambda data: subprocess.run(command, input=data, capture_output=True, check=True).stdout


def _xz(check: int = lzma.CHECK_CRC32, *filters: dict[str, int]) -> Callable[[bytes], bytes]:
    chain = [*filters, {"id": lzma.FILTER_LZMA2, "preset": 1}]
    return lambda data: lzma.compress(data, lzma.FORMAT_XZ, check, filters=chain)


def _alone(size: int = 1 << 16) -> Callable[[bytes], bytes]:
    return lambda data: lzma.compress(data, lzma.FORMAT_ALONE, filters=[{"id": lzma.FILTER_LZMA1, "dict_size": size}])


def named(data: bytes, flags: int = 8, more: bytes = b"initrd\0") -> bytes:
    """Return a gzip member with more in its head."""
    made = gzip.compress(data, 1, mtime=0)
    return made[:3] + bytes([flags]) + made[4:10] + more + made[10:]


#: What kernels unpack.
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0), "gzip-named": named, "gzip-text": lambda data: named(data, 1, b""),
    "bzip2": lambda data: bz2.compress(data, 1), "xz": _xz(), "xz-none": _xz(lzma.CHECK_NONE),
    "xz-x86": _xz(lzma.CHECK_CRC32, {"id": lzma.FILTER_X86}), "xz-arm": _xz(lzma.CHECK_CRC32, {"id": lzma.FILTER_ARM}),
    "lzma": _alone(), "lzma-small": _alone(1 << 12 | 1 << 8), "lz4": by("lz4", "-l", "-q", "-c"), "lzo": by("lzop", "-c"),
    "lzo-crc": by("lzop", "-c", "--crc32"), "zstd": by("zstd", "-q", "-c", "-1"), "zstd-bare": by("zstd", "-q", "-c", "--no-check"),
    "zstd-stream": by("zstd", "-q", "-c", "-19", "--stream-size=0"),
}  # fmt: skip
#: What they do not.
REFUSED: dict[str, Callable[[bytes], bytes]] = {
    "xz-crc64": _xz(lzma.CHECK_CRC64), "xz-sha256": _xz(lzma.CHECK_SHA256),
    "xz-delta": _xz(lzma.CHECK_CRC32, {"id": lzma.FILTER_DELTA, "dist": 4}),
    "xz-two": _xz(lzma.CHECK_CRC32, {"id": lzma.FILTER_X86}, {"id": lzma.FILTER_ARM}),
    "xz-offset": _xz(lzma.CHECK_CRC32, {"id": lzma.FILTER_X86, "start_offset": 4096}),
    "lz4-frame": by("lz4", "-q", "-c"), "gzip-comment": lambda data: named(data, 16, b"text\0"),
    "gzip-extra": lambda data: named(data, 4, b"\2\0ab"), "gzip-old": lambda data: b"\x1f\x9e" + gzip.compress(data)[2:],
    "junk": lambda data: b"junk" + data, "lzo-none": by("lzop", "-c", "-F"), "twice": lambda data: gzip.compress(gzip.compress(data)),
    "skippable": lambda data: b"\x50\x2a\x4d\x18\4\0\0\0abcd" + by("zstd", "-q", "-c")(data),
}  # fmt: skip


class Chance:
    """One image by chance; what it makes lies in the folder `at`."""

    def __init__(self, seed: int, at: str) -> None:
        self.random, self.at = random.Random(f"{seed} {at}"), at

    def image(self, *, stops: bool) -> bytes:
        """Return some parts, each at a multiple of 4, and the last one with something wrong if it is to stop the kernel."""
        chance = self.random
        folders = ["", "/d", "/d/e", "/m", "/n", "/n/o"][: chance.choice([1, 2, 3, 6])]
        parts = [b"".join(entry(f"{self.at}{folder}\0".encode(), 0o040755) for folder in folders)]
        for _ in range(chance.randint(1, 3)):
            parts.append(self._part(chance.choice(["plain", "plain", *PACKERS])))
        if stops:
            parts.append(chance.choice([self._broken, self._refused])())
        return b"".join(part + bytes(-len(part) % 4) + bytes(chance.choice([0, 0, 4, 508])) for part in parts)

    def _part(self, packer: str) -> bytes:
        data = b"".join(self._entry() for _ in range(self.random.randint(1, 16)))
        data += self.random.choice([TRAILER, TRAILER + bytes(-len(data + TRAILER) % 512), b"", bytes(8)])
        return data if packer == "plain" else PACKERS[packer](data) + (bytes(4) if packer == "lz4" else b"")

    def _refused(self) -> bytes:
        return REFUSED[self.random.choice([*REFUSED])](self._entry() + TRAILER)

    def _broken(self) -> bytes:
        name = f"{self.at}/late\0".encode()
        good = entry(name, data=b"late")
        return self.random.choice([
            entry(name, magic=b"070702", data=b"ab", check=1), entry(name[:-1], length=len(name) - 1), b"070707" + good[6:],
            good[:8] + b"x" + good[9:], bytes(2) + good, good + bytes(1) + good, gzip.compress(bytes(4) + b"x" + good),
            gzip.compress(good[:-1] if len(good) % 4 == 0 else good)[:-12], gzip.compress(good + b"junk"),
            PACKERS["lz4"](good) + good,
        ]) + entry(f"{self.at}/never\0".encode(), data=b"never")  # fmt: skip

    def _name(self) -> str:
        chance = self.random
        name = chance.choice(
            ["a", "b", "c", "d", "d/x", "d/e", "d/e/f", "l", "l/x", "l/e/g", "m/x", "d/../a", "k", "n/o/p"]
        )
        return chance.choice([f"{self.at}/{name}"] * 6 + [f"./{self.at}//{name}", f"/{self.at}/./{name}", f"{self.at}/{name}/",
                              f"{self.at}/{'n' * 255}", f"{self.at}/{'n' * 256}", f"{self.at}/."])  # fmt: skip

    def _target(self) -> str:
        return self.random.choice(
            ["d", "a", "l", "../" + self.at, f"/{self.at}/d", "d/e", "nowhere", "b/", "..", "n" * 4095, "k"]
        )

    def _entry(self) -> bytes:
        """Return one entry, of any kind that does not stop the kernel."""
        chance = self.random
        name = self._name().encode() + b"\0" + bytes(chance.choice([0, 0, 0, 1, 3, 17]))
        content = chance.choice(
            [
                b"",
                b"x",
                b"abc",
                b"TRAILER!!!",
                bytes(chance.randrange(256) for _ in range(chance.choice([5, 100, 5000]))),
            ]
        )
        makers: list[Callable[[], bytes]] = [
            lambda: entry(name, 0o100644, content, inode=chance.randrange(1000)),
            lambda: entry(name, 0o100644, content, inode=chance.randrange(1000)),
            lambda: entry(name, 0o100600, content, links=2, inode=chance.randint(1, 3)),
            lambda: entry(name, 0o100600, content, links=3, inode=chance.randint(1, 3)),
            lambda: entry(name, 0o040755, links=chance.randint(1, 3)),
            lambda: entry(name, 0o040755),
            lambda: entry(name, 0o120777, self._target().encode() + bytes(chance.randint(0, 1))),
            lambda: entry(name, 0o120777, self._target().encode()),
            lambda: entry(name, chance.choice([0o010644, 0o020644, 0o140644]), links=chance.randint(1, 2), inode=chance.randint(1, 3)),
            lambda: entry(name, chance.choice([0, 0o030000])),
            lambda: entry(name, chance.choice([0o040755, 0, 0o020644]), b"content"),
            lambda: entry(name + b"n" * 4100 + b"\0"), lambda: entry(b"", length=0, data=b"x"),
            lambda: entry(name, 0o120777, b"t" * 4097), lambda: entry(b"\0"),
            lambda: entry(name, magic=b"070702", data=content, check=sum(content)),
            lambda: TRAILER, lambda: entry(b"TRAILER!!!\0", 0o120777, b"target"),
            lambda: entry(name, 0o100644, content).upper() if content.isascii() and name.islower() else entry(name),
        ]  # fmt: skip
        return chance.choice(makers)()


def init(packer: str = "") -> bytes:
    """Return the part that has the init which reports, plain or packed; a generated one goes behind it."""
    data = entry(b"init\0", 0o100755, harness.program("unpacked").read_bytes(), inode=9999) + TRAILER
    made = PACKERS[packer](data) + (bytes(4) if packer == "lz4" else b"") if packer else data
    return made + bytes(-len(made) % 4)


def chance(seed: int, images: int) -> bytes:
    """Return so many images by chance one behind the other; in every other one the last stops the kernel."""
    first = ["", *PACKERS][seed % (len(PACKERS) + 1)]
    return init(first) + b"".join(
        Chance(seed, f"i{number}").image(stops=seed % 2 == 1 and number == images - 1) for number in range(images)
    )
