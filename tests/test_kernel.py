# SPDX-License-Identifier: MIT
"""Kernel images: what each form is and speaks, what is not known of it, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from safemem.boot.model import Fact
from safemem.cli import main
from safemem.cli.codes import Code
from safemem.initramfs import packed, pe
from safemem.initramfs.store import NoKernel, Store, opened
from safemem.outgoing import config, elf, image, versions
from safemem.outgoing.elf import Part
from safemem.outgoing.kernel import Feature, Kernel, Module, Speaks
from safemem.outgoing.prediction import of_image, predict
from safemem.render import kernel as render
from tests import images
from tests.needs import lacking

SPEAKS = Speaks(
    frozenset({"kho-v4"}), frozenset({"luo-v5"}), frozenset({"memfd-v2"}), frozenset({"memblock-v1", "reserve-mem-v1"})
)
BLOBS, USE = (
    "versions that are numbers inside a blob cannot be told from an image: those of `pci`, `iommu-liveupdate` and"
    " `kexec-metadata`",
    "which handlers will be in use, and whether what they preserve can be retrieved, cannot be told from an image",
)
INSIDE = "the configuration in the image"
YES = (
    Fact("yes", INSIDE, "CONFIG_KEXEC_HANDOVER is y, and `kho-v4` is in the image"),
    Fact("yes", INSIDE, "CONFIG_LIVEUPDATE is y, and `luo-v5` is in the image"),
)
OPTIONS = {"CONFIG_KEXEC_HANDOVER": "y", "CONFIG_LIVEUPDATE": "y", "CONFIG_NUMA": "n"}
MADE = Kernel(
    "k", "ELF", arch="x86_64", release=images.RELEASE, build_ids=(images.BUILD_ID.hex(),), page_size=4096, config=OPTIONS,
    config_source=INSIDE, kho=YES[0], luo=YES[1], speaks=SPEAKS, untold=(BLOBS, USE),
)  # fmt: skip
ARM64_BODY = images.relocated(("memfd-v2",), ("operating-points-v2",)) + images.strings(
    "kho-v4", "luo-v5", "memblock-v1", "reserve-mem-v1"
)
ARM64_BODY += bytes(-len(ARM64_BODY) % 4) + images.note() + images.ikconfig()
ARM64 = MADE._replace(form="arm64 Image", arch="aarch64", efi=True)
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": lambda data: _packed_by(data, "zstd", "-q", "-c"),
    "lz4": lambda data: _packed_by(data, "lz4", "-l", "-q", "-c"),
    "lzo": lambda data: _packed_by(data, "lzop", "-c"),
}


def _packed_by(data: bytes, *words: str) -> bytes:
    if shutil.which(words[0]) is None:
        lacking(f"not installed: {words[0]}")
    return subprocess.run(words, input=data, stdout=subprocess.PIPE, check=True).stdout


def one(data: bytes) -> Kernel:
    """Return the only kernel in an image, without what lies beside it."""
    (found,) = image.read_bytes(data, "k", "/nowhere")
    return found


def refused(data: bytes, limit: int = image.LIMIT) -> str:
    """Return why an image is refused."""
    with pytest.raises(NoKernel) as caught:
        image.read_bytes(data, "k", "/nowhere", limit)
    return str(caught.value).removeprefix("k: ")


# ---- the forms


def test_elf() -> None:
    """A vmlinux is read by its sections."""
    assert one(images.vmlinux()) == MADE


@pytest.mark.parametrize("name", PACKINGS)
def test_bzimage(name: str) -> None:
    """Of a bzImage the payload is unpacked, whatever it is packed with; the size behind it is not taken for part of it."""
    kernel = images.vmlinux()
    whole = PACKINGS[name](kernel)
    data = images.bzimage(kernel, None if name == "gzip" else whole)

    assert one(data) == MADE._replace(form="bzImage", packed=name, efi=True)
    assert one(images.bzimage(kernel, efi=False)) == MADE._replace(form="bzImage", packed="gzip")


@pytest.mark.parametrize(("flags", "arch", "page"), [(2, "aarch64", 4096), (4, "aarch64", 16384), (6, "aarch64", 65536),
                                                     (0, "aarch64", 0), (3, "aarch64_be", 4096)])  # fmt: skip
def test_arm64(flags: int, arch: str, page: int) -> None:
    """The header of an arm64 Image has the page size; of fields of 48 bytes those with a pointer before them are handlers."""
    untold = () if page else ("which page size it has cannot be told: its header does not say",)
    expected = ARM64._replace(arch=arch, page_size=page, untold=(*untold, BLOBS, USE))

    assert one(images.arm64(ARM64_BODY, flags)) == expected
    assert one(images.arm64(ARM64_BODY, flags, efi=False)) == expected._replace(efi=False)


@pytest.mark.parametrize("name", PACKINGS)
def test_packed_image(name: str) -> None:
    """Image.gz and its like are unpacked first, and so is a vmlinux."""
    assert one(PACKINGS[name](images.arm64(ARM64_BODY))) == ARM64._replace(packed=name)
    assert one(PACKINGS[name](images.vmlinux())) == MADE._replace(packed=name)


@pytest.mark.parametrize("name", ["gzip", "zstd", "xz"])
def test_zboot(name: str) -> None:
    """The payload of an EFI zboot image is where its header says, and what it says."""
    called = {"zstd": "zstd22", "xz": "xzkern"}.get(name, name)
    data = images.zboot(PACKINGS[name](images.arm64(ARM64_BODY)), called)

    assert one(data) == ARM64._replace(form="EFI zboot", packed=name)


def test_unified() -> None:
    """A unified kernel image has a kernel, a command line and initrds; the kernel in it may be of any form."""
    parts = [(".text", b"stub"), (".uname", images.RELEASE.encode()), (".cmdline", b"kho=on quiet\0"), (".ucode", b"u" * 700),
             (".initrd", b"i" * 900)]  # fmt: skip
    for kernel, expected in (
        (images.bzimage(images.vmlinux()), MADE._replace(form="bzImage", packed="gzip")),
        (images.zboot(gzip.compress(images.arm64(ARM64_BODY))), ARM64._replace(form="EFI zboot", packed="gzip")),
    ):
        assert one(images.pe([*parts, (".linux", kernel)])) == expected._replace(
            container="unified kernel image", cmdline="kho=on quiet", initrds=(b"u" * 700, b"i" * 900), efi=True
        )


def test_profiles() -> None:
    """Each profile is told, with what it has itself in place of the base's; the kernel is read once."""
    data = images.pe([
        (".text", b"stub"), (".linux", images.bzimage(images.vmlinux())), (".initrd", b"base"), (".cmdline", b"kho=on"),
        (".profile", b"ID=main\nTITLE=Main\n"),
        (".profile", b"TITLE=No name\n"), (".cmdline", b"kho=off"),
        (".profile", b'ID="old"'), (".cmdline", b"kho=on old"), (".linux", images.bzimage(images.vmlinux("kho-v3", "luo-v5"))),
        (".initrd", b"own"),
    ])  # fmt: skip
    found = image.read_bytes(data, "k", "/nowhere")

    assert [(item.profile, item.cmdline, item.initrds, sorted(item.speaks.tree)) for item in found] == [
        ("main", "kho=on", (b"base",), ["kho-v4"]),
        ("1", "kho=off", (b"base",), ["kho-v4"]),
        ("old", "kho=on old", (b"own",), ["kho-v3"]),
    ]
    assert {item.container for item in found} == {"unified kernel image"}
    assert found[0].initrds[0] is found[1].initrds[0], "what profiles share is in memory once"


def test_two_names_of_one_kernel() -> None:
    """What around a kernel says another release than the kernel is told."""
    kernel = images.bzimage(images.vmlinux(), release="7.2.0")
    data = images.pe([(".linux", kernel), (".uname", b"7.1.0")])

    assert one(data).untold[0] == f"its header says that it is 7.2.0, and the kernel in it {images.RELEASE}"
    assert one(data).untold[-1] == f"its section `.uname` says 7.1.0, and the kernel in it {images.RELEASE}"


# ---- what it speaks


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("kho-v4", "luo-v5"), ({"kho-v4"}, {"luo-v5"}, set())),
        (("kho-v3", "kho-v12", "luo-v5"), ({"kho-v3", "kho-v12"}, {"luo-v5"}, set())),
        (("kho-v4x", "xkho-v4", "kho-v", "a kho-v5"), (set(), set(), set())),
        (("luo-v1", "luo-session-v2", "luo-flb-v1"), (set(), {"luo-v1"}, {"luo-session-v2", "luo-flb-v1"})),
        (("incompatible with kho-v4",), (set(), set(), set())),
    ],
)
def test_whole_strings(names: tuple[str, ...], expected: tuple[set[str], set[str], set[str]]) -> None:
    """Versions are sets of whole strings: none is taken first, and no part of another string is one."""
    said = one(images.vmlinux(*names, config=None)).speaks

    assert (set(said.tree), set(said.luo), set(said.luo_nodes)) == expected


def test_what_a_kernel_carries_it_does_not_speak() -> None:
    """Versions in an initrd that is built in are not the kernel's, nor are handlers there."""
    carried = images.strings("kho-v3", "luo-v4", "memblock-v7") + b"\0"
    carried += bytes(-len(carried) % 8) + images.field("memfd-v1") + bytes(16)
    for name in (".init.data", ".init.ramfs", ".brk"):
        assert one(images.vmlinux(more={name: carried})) == MADE
        assert one(images.vmlinux(config=None, more={name: images.ikconfig()})).config is None


TWO = " are in the image, and no section lists which it reads"


@pytest.mark.parametrize(
    ("names", "section", "kho", "luo"),
    [
        (("kho-v3", "kho-v4", "luo-v5"), (), "`kho-v3` and `kho-v4`", ""),
        (("kho-v4", "luo-v4", "luo-v5"), (), "", "`luo-v4` and `luo-v5`"),
        (("kho-v4", "luo-v1", "luo-session-v1", "luo-session-v2"), (), "", "`luo-session-v1` and `luo-session-v2`"),
        (("kho-v4", "luo-v1", "luo-session-v2"), (), "", ""),
        (("kho-v3", "kho-v4", "luo-v4", "luo-v5"), ("luo-v4", "luo-v5"), "`kho-v3` and `kho-v4`", ""),
        (("kho-v3", "kho-v4", "luo-v4", "luo-v5"), ("kho-v3", "kho-v4", "luo-v4", "luo-v5"), "", ""),
        (("kho-v3", "kho-v4", "luo-v4", "luo-v5"), ("kho-v4", "luo-v5"), "", ""),
    ],
)
def test_two_versions(names: tuple[str, ...], section: tuple[str, ...], kho: str, luo: str) -> None:
    """Two versions of one thing are shown, and never taken to be read both, unless a section lists them."""
    more = {".liveupdate_versions": images.versions(*section)} if section else {}
    for data in (images.vmlinux(*names, more=more), images.vmlinux(*names, more=more, config=None)):
        found = one(data)
        senders = [images.vmlinux(tree, luo) for tree in found.speaks.tree for luo in found.speaks.luo]
        outcomes = {predict(of_image(one(sender)), found).outcome for sender in senders}

        assert found.speaks.tree <= set(names) and found.speaks.luo <= set(names)
        assert (found.kho.value, found.luo.value) == ("unknown" if kho else "yes", "unknown" if luo else "yes")
        assert found.kho.reason == kho + TWO if kho else TWO not in found.kho.reason
        assert found.luo.reason == luo + TWO if luo else TWO not in found.luo.reason
        assert outcomes == {"unknown" if kho or luo else "accepted"}
    other = one(images.vmlinux("kho-v9", "luo-v5"))
    assert predict(of_image(other), found).outcome == "rejected", "what neither is remains refused"


def test_handlers() -> None:
    """A handler is a field of 48 bytes between a pointer and a list; a string, or a field of anything else, is none."""
    rows = {
        "memfd-v2": images.field("memfd-v2"), "vfio-pci-v10": images.field("vfio-pci-v10"), "table-v2": images.field("table-v2", b"\x01" * 8),
        "short-v1": images.POINTER + b"short-v1".ljust(40, b"\0") + b"x" * 40,
        "long-v1": images.POINTER + b"long-v1".ljust(48, b"\0") + b"y" * 32,
    }  # fmt: skip
    data = images.vmlinux("kho-v4", "luo-v5", "string-v1", handlers=(), more={".data": b"".join(rows.values())})

    assert one(data).speaks.handlers == {"memfd-v2", "vfio-pci-v10"}
    off = images.vmlinux("kho-v4", config="CONFIG_KEXEC_HANDOVER=y\n")
    assert one(off).speaks == Speaks(frozenset({"kho-v4"})), "without LUO there are no handlers"


@pytest.mark.parametrize(
    ("names", "text", "kho", "luo"),
    [
        (("kho-v4", "luo-v5"), images.CONFIG, "yes", "yes"),
        (("kho-v4", "luo-v5"), "", "yes", "yes"),
        (("kho-v4",), "CONFIG_KEXEC_HANDOVER=y\n", "yes", "no"),
        (("kho-v4",), "", "yes", "no"),
        (("nothing",), "CONFIG_64BIT=y\n", "no", "no"),
        (("nothing",), "", "no", "no"),
        (("nothing",), images.CONFIG, "unknown", "unknown"),
        (("kho-v4", "luo-v5"), "CONFIG_64BIT=y\n", "unknown", "unknown"),
        (("\x014KHO: disabling KHO revival", "\x014luo: no"), "", "unknown", "unknown"),
        (("kho-v4", "kho_scratch", "\x014luo: no"), "", "yes", "unknown"),
    ],
)
def test_built_in(names: tuple[str, ...], text: str, kho: str, luo: str) -> None:
    """Configuration and strings are crossed: where they disagree, or a message has no version, nobody knows."""
    found = one(images.vmlinux(*names, config=text or None))

    assert (found.kho.value, found.luo.value) == (kho, luo)
    assert found.kho.reason and found.luo.reason


FEATURES = (("memfd", 3, 1, 1), ("vfio", 0xFF, 0, 0x80))


@pytest.mark.parametrize(
    ("section", "data", "expected", "said"),
    [
        (".liveupdate_versions", images.versions("luo-v5", "memfd-v2"), SPEAKS, ()),
        (".liveupdate_versions", images.versions("luo-v5", "memfd-v2", "vfio-v1"), SPEAKS._replace(handlers=frozenset({"memfd-v2", "vfio-v1"})),
         ("its sections have the handlers `memfd-v2` and `vfio-v1`, and its strings `memfd-v2`: of one name that of the strings is taken",)),
        (".liveupdate_versions", images.versions("luo-v6", "memfd-v2"), SPEAKS._replace(luo=frozenset()),
         ("its section `.liveupdate_versions` has `luo-v6`, and its strings `luo-v5`: only what both have is taken",)),
        (".liveupdate_versions", images.versions("kho-v4", "luo-v5", "memfd-v3"), SPEAKS,
         ("its sections have the handlers `memfd-v3`, and its strings `memfd-v2`: of one name that of the strings is taken",)),
        (".liveupdate_versions", images.versions("luo-v5", magic=1), SPEAKS,
         ("its section `.liveupdate_versions` is damaged, and not taken: it does not begin with its magic and version 1",)),
        (".liveupdate_versions", images.versions("luo-v6") + b"\xff" * 48, SPEAKS,
         ("its section `.liveupdate_versions` is damaged, and not taken: entry 2 is no name of 48 bytes",)),
        (".liveupdate_features", images.features(*FEATURES),
         SPEAKS._replace(handlers=frozenset({"memfd-v2", "vfio"}), features=(Feature("memfd", 3, 1, 1), Feature("vfio", 0xFF, 0, 0x80))), ()),
        (".liveupdate_features", images.features(("memfd", 1, 2, 0)), SPEAKS,
         ("its section `.liveupdate_features` is damaged, and not taken: entry 1 is no name with its masks",)),
    ],
)  # fmt: skip
def test_sections(section: str, data: bytes, expected: Speaks, said: tuple[str, ...]) -> None:
    """Sections and strings are crossed as sets: of KHO and LUO only what both have is taken, and a disagreement is told."""
    found = one(images.vmlinux(more={section: data}))

    assert (found.speaks, found.sections, found.untold) == (expected, (section,), (*said, BLOBS, USE))


@pytest.mark.parametrize(
    ("data", "name", "handlers"),
    [(images.versions("luo-v5", "vfio-v1"), ".liveupdate_versions", {"memfd-v2", "vfio-v1"}),
     (images.features(("memfd", 3, 1, 1)), ".liveupdate_features", {"memfd-v2"})],
)  # fmt: skip
def test_sections_by_magic(data: bytes, name: str, handlers: set[str]) -> None:
    """An Image has no sections: they are found by their magic, at 8 bytes, and end where no entry makes sense."""
    body = ARM64_BODY + bytes(-len(ARM64_BODY) % 8)
    found = one(images.arm64(body + data + b"\xff" * 100))
    astray = one(images.arm64(body + b"\0" + data + b"\xff" * 100))

    assert (found.sections, set(found.speaks.handlers)) == ((name,), handlers)
    assert (astray.sections, set(astray.speaks.handlers)) == ((), {"memfd-v2"})


def test_build_ids() -> None:
    """Where there are sections the note is the kernel's own; in an Image those of its vDSOs are found too."""
    other = bytes(20)
    found = one(
        images.arm64(ARM64_BODY + bytes(-len(ARM64_BODY) % 4) + images.note(other) + images.note(other, b"XYZ\0"))
    )

    assert found.build_ids == (images.BUILD_ID.hex(), other.hex())
    assert found.untold[0] == "which of 2 build IDs is its own cannot be told: those of its vDSOs are among them"
    assert one(images.vmlinux(more={".notes": b"\0" * 8})).untold[0] == (
        "it has no build ID: whether it is the kernel that runs cannot be told"
    )


# ---- beside it


@pytest.mark.parametrize(
    ("where", "name"),
    [("boot/config-{}", "boot/vmlinuz-{}"), ("efi/id/config", "efi/id/vmlinuz"), ("usr/lib/modules/{}/config", "boot/linux"),
     ("usr/lib/modules/{}/config", "usr/lib/modules/{}/vmlinuz.unsigned")],
)  # fmt: skip
def test_configuration_beside(tmp_path: Path, where: str, name: str) -> None:
    """A configuration is taken from where distributions put it, unless it is of another version."""
    place, path = (tmp_path / item.format(images.RELEASE) for item in (where, name))
    for item in (place, path):
        item.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.vmlinux("kho-v4", config=None))
    (before,) = image.read(str(path), str(tmp_path))
    place.write_text(f"# Linux/x86 7.3.4 Kernel Configuration\n{images.CONFIG}")
    (found,) = image.read(str(path), str(tmp_path))
    place.write_text(f"# Linux/x86 7.31.4 Kernel Configuration\n{images.CONFIG}")
    (other,) = image.read(str(path), str(tmp_path))

    assert (before.config, before.untold[0]) == (
        None, "how it was configured is not known: no configuration in it nor beside it"
    )  # fmt: skip
    assert (found.config, found.config_source, found.kho.source) == (OPTIONS, str(place), str(place))
    assert (other.config, other.untold[0]) == (
        None, f"how it was configured is not known: {place} is of Linux 7.31.4, and the kernel is {images.RELEASE}"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("header", "local", "release", "why"),
    [
        ("x86 7.3.4", "", "7.3.4-made", ""),
        ("x86_64 7.3.4", "-made", "7.3.4-made", ""),
        ("x86 6.1.76", "", "6.1.0-18-amd64", ""),
        ("x86 6.12.0", "", "6.12-amd64", ""),
        ("x86 6.12.0-rc6", "", "6.12-rc6-amd64", ""),
        ("x86 6.12.0-rc6", "", "6.12.0-rc6", ""),
        ("arm64 7.3.4", "", "7.3.4-made", "is for arm64, and the kernel for x86_64"),
        ("i386 7.3.4", "", "7.3.4-made", "is for i386, and the kernel for x86_64"),
        ("x86 7.3.0-rc1", "", "7.3.4-made", "is of Linux 7.3.0-rc1, and the kernel is 7.3.4-made"),
        ("x86 7.3.0-rc1", "", "7.3.0", "is of Linux 7.3.0-rc1, and the kernel is 7.3.0"),
        ("x86 7.3.0", "", "7.3.0-rc1", "is of Linux 7.3.0, and the kernel is 7.3.0-rc1"),
        ("x86 7.3.0-rc1", "", "7.3.0-rc12", "is of Linux 7.3.0-rc1, and the kernel is 7.3.0-rc12"),
        ("x86 7.3.4", "", "7.3.41", "is of Linux 7.3.4, and the kernel is 7.3.41"),
        ("x86 7.3.5", "", "7.3.4-made", "is of Linux 7.3.5, and the kernel is 7.3.4-made"),
        ("x86 7.3.0", "", "7.3.4-made", "is of Linux 7.3.0, and the kernel is 7.3.4-made"),
        (
            "x86 7.3.4",
            "-other",
            "7.3.4-made",
            "is of a kernel with `-other` in its release, and the kernel is 7.3.4-made",
        ),
        ("", "", "7.3.4-made", "does not say of which kernel it is"),
    ],
)
def test_a_configuration_of_another_kernel(tmp_path: Path, header: str, local: str, release: str, why: str) -> None:
    """What lies beside a kernel is of another one unless version, architecture and local version are this one's."""
    path, place = tmp_path / "vmlinuz", tmp_path / "config"
    path.write_bytes(images.elf({".rodata": images.strings("kho-v4", release=release), ".notes": images.note()}))
    place.write_text(
        (f"# Linux/{header} Kernel Configuration\n" if header else "")
        + f'CONFIG_LOCALVERSION="{local}"\n{images.CONFIG}'
    )
    (found,) = image.read(str(path), str(tmp_path))

    assert (found.config is None, found.untold[:1] == (f"how it was configured is not known: {place} {why}",)) == (
        bool(why), bool(why),
    )  # fmt: skip


def test_a_release_is_no_path(tmp_path: Path) -> None:
    """What a kernel calls itself opens no file elsewhere."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/x").write_text(f"# Linux/x86 7.3.0 Kernel Configuration\n{images.CONFIG}")
    data = images.elf({".rodata": images.strings(release="7.3/../../etc/x")})

    assert config.beside("", "7.3/../../etc/x", str(tmp_path)).options is None
    assert refused(data) == "no Linux kernel is in it: nowhere does it say `Linux version`"


REGISTER = "liveupdate_register_file_handler"


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zst"])
def test_modules(tmp_path: Path, ending: str) -> None:
    """Modules that need what registers handlers are searched, if the kernel lets modules have that."""
    pack = {"": bytes, ".gz": PACKINGS["gzip"], ".xz": PACKINGS["xz"], ".zst": PACKINGS["zstd"]}[ending]
    folder = tmp_path / "usr/lib/modules" / images.RELEASE
    (folder / "kernel").mkdir(parents=True)
    handler = {".data": images.field("vfio-v1", bytes(8)), ".rodata": images.field("table-v1", bytes(8))}
    for name, data in (
        ("vfio", images.elf(handler, kind=1, symbols=("printk", REGISTER))),
        ("other", images.elf({**handler, ".rodata": REGISTER.encode() + b"\0"}, kind=1, symbols=("printk",))),
    ):
        (folder / f"kernel/{name}.ko{ending}").write_bytes(pack(data))
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(images.vmlinux("kho-v4", "luo-v5", REGISTER))
    (found,) = image.read(str(kernel), str(tmp_path))
    expected = Module(f"{folder}/kernel/vfio.ko{ending}", frozenset({"vfio-v1"}))
    assert (found.modules, found.modules_source, found.untold) == ((expected,), str(folder), (BLOBS, USE))

    (folder / f"kernel/bad.ko{ending}").write_bytes(b"\x1f\x8bno")
    (found,) = image.read(str(kernel), str(tmp_path))
    assert found.untold[-1] == f"1 modules in {folder} cannot be read: which handlers they have is not known"
    assert image.read(str(kernel), str(tmp_path), modules=False)[0].modules == ()
    kernel.write_bytes(images.vmlinux("kho-v4", "luo-v5"))
    assert image.read(str(kernel), str(tmp_path))[0].modules == ()
    kernel.write_bytes(images.vmlinux("kho-v4", "luo-v5", REGISTER))
    assert image.read(str(kernel), "/nowhere")[0].untold[-1] == (
        f"which handlers its modules have is not known: there is no folder /nowhere/usr/lib/modules/{images.RELEASE}"
    )


# ---- the project's own


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
@pytest.mark.parametrize("name", ["current", "old-kho", "old-luo", "no-debugfs", "no-kho"])
def test_real_kernels(name: str, arch: str) -> None:
    """The kernels of the guests differ in exactly what they were built to differ in."""
    from tests.vm import harness

    try:
        path = harness.kernel(name if arch == "x86_64" else f"arm64/{name}")
    except FileNotFoundError as error:
        lacking(str(error))
    (found,) = image.read(str(path))
    expected = {
        "old-kho": SPEAKS._replace(tree=frozenset({"kho-v3"})),
        "old-luo": SPEAKS._replace(luo=frozenset({"luo-v4"})),
        "no-kho": Speaks(),
    }.get(name, SPEAKS)
    form = ("bzImage", "xz", 1) if arch == "x86_64" else ("arm64 Image", "", 2)

    assert found.speaks == expected
    assert (found.form, found.packed, len(found.build_ids), found.efi) == (*form, True)
    assert (found.arch, found.release, found.page_size) == (arch, "7.3.4", 4096)
    assert (found.kho.value, found.luo.value) == (("no", "no") if name == "no-kho" else ("yes", "yes"))
    assert found.config is not None and found.config_source == INSIDE
    assert found.config.get("CONFIG_KEXEC_HANDOVER_DEBUGFS", "n") == (
        "y" if name in ("current", "old-kho", "old-luo") else "n"
    )


def real(name: str) -> bytes:
    """Return one of the guests' kernels."""
    from tests.vm import harness

    try:
        return harness.kernel(name).read_bytes()
    except FileNotFoundError as error:
        lacking(str(error))


def test_real_forms() -> None:
    """A real Image says the same of itself in whatever it is packed."""
    data = real("arm64/current")
    plain = one(data)
    for name in ("gzip", "zstd", "lz4"):
        assert one(PACKINGS[name](data)) == plain._replace(packed=name)
    assert one(images.zboot(gzip.compress(data, 1))) == plain._replace(form="EFI zboot", packed="gzip")


def test_a_damaged_real_kernel() -> None:
    """Wherever a real kernel is cut or changed it is refused, or it is the kernel that it was: never another one."""
    data = real("current")
    whole = one(data)
    source = random.Random(16)
    start = 1024
    while not data[start:].startswith(b"\xfd7zXZ"):
        start = data.index(b"\xfd7zXZ", start + 1)
    size = struct.unpack_from("<I", data, 0x24C)[0]
    for place in (0, 60, 0x210, 0x250, start, start + 9, start + size // 2, start + size - 1):
        started = time.process_time()
        assert refused(data[:place])
        assert time.process_time() - started < 2
    for _ in range(12):
        place = source.randrange(start, start + size)
        assert refused(images.lying(data, place, data[place] ^ 1 << source.randrange(8), 1))
    for _ in range(12):
        place = source.randrange(0x300, start)
        found = one(images.lying(data, place, data[place] ^ 1 << source.randrange(8), 1))
        assert found._replace(untold=()) == whole._replace(untold=())


# ---- what is refused

KERNEL = images.bzimage(images.vmlinux())
UNIFIED = images.pe([(".linux", KERNEL), (".cmdline", b"kho=on")])
#: Where the first section of UNIFIED is described: its sizes and its place are at 8, 16 and 20.
ROW = 64 + 24
SECTIONS = struct.unpack_from("<Q", images.vmlinux(), 40)[0]


def overlapping() -> bytes:
    """Return an ELF file in which each of two sections has the bytes of both."""
    data = images.vmlinux()
    first = struct.unpack_from("<Q", data, SECTIONS + 64 + 24)[0]
    return images.lying(data, SECTIONS + 2 * 64 + 24, first, 8)


def profiles(kernels: list[bytes]) -> bytes:
    """Return a unified image with a profile for each of these kernels."""
    return images.pe([part for kernel in kernels for part in ((".profile", b""), (".linux", kernel))])


HOSTILE = {
    "empty": (b"", "the file is empty"),
    "text": (b"#!/bin/sh\n" * 200, "this is no kernel image: neither bzImage, EFI zboot, arm64 Image, ELF, nor a unified one"),
    "initrd": (b"070701" + bytes(600), "this is an initrd; did you swap --kernel and --initrd?"),
    **{f"initrd, {name}": (PACKINGS[name](b"070702" + bytes(600)) + more, "this is an initrd; did you swap --kernel and --initrd?")
       for name, more in (("gzip", b""), ("xz", b""), ("zstd", bytes(4)), ("lz4", b""), ("bzip2", b"070701"))},
    "large initrd": (gzip.compress(b"070701" + bytes(100 << 20), 1), "this is an initrd; did you swap --kernel and --initrd?"),
    "packed twice": (gzip.compress(gzip.compress(images.vmlinux())),
                     "this is no kernel image: neither bzImage, EFI zboot, arm64 Image, ELF, nor a unified one"),
    "cut": (KERNEL[:1100], f"the packed kernel that its header names lies outside: {len(KERNEL) - 1056} bytes at byte 1056, and the image has 1100 bytes"),
    "4 GiB": (images.lying(KERNEL, 0x24C, 0xFFFFFFFF),
              f"the packed kernel that its header names lies outside: 4294967295 bytes at byte 1056, and the image has {len(KERNEL)} bytes"),
    "outside": (images.lying(KERNEL, 0x248, 0xFFFFFFF0),
                f"the packed kernel that its header names lies outside: {len(KERNEL) - 1056} bytes at byte 4294968304, and the image has {len(KERNEL)} bytes"),
    "old protocol": (images.lying(KERNEL, 0x206, 0x206, 2), "its boot protocol 2.06 does not say where its kernel is"),
    "no packing": (images.lying(KERNEL, 1056, 0), "byte 1056: the packed kernel that its header names begins like none"),
    "damaged": (images.lying(KERNEL, 1100, 0x5A5A5A5A), "its packed kernel: byte 0: the compressed part is damaged: Error -3 while decompressing data"),
    "another size": (KERNEL[:-4] + struct.pack("<I", 90 << 20), "its packed kernel: byte 0: the compressed part is damaged: Error -3 while decompressing data: incorrect length check"),
    "large": (KERNEL[:-4] + struct.pack("<I", 0xFFFFFFFF), "its kernel unpacks to 4095 MiB, and no more than 96 MiB are read"),
    "no ELF": (images.bzimage(images.strings("kho-v4")), "what is packed in it is no ELF file"),
    "zboot outside": (images.zboot(gzip.compress(images.arm64(ARM64_BODY)), size=1 << 31),
                      "the packed kernel that its header names lies outside: 2147483648 bytes at byte 128, and the image has "),
    "zboot lies": (images.zboot(gzip.compress(images.arm64(ARM64_BODY)), "xz"), "its header says that it is packed with `xz`, and it is with gzip"),
    "zboot no kernel": (images.zboot(gzip.compress(b"nothing")), "no Linux kernel is in it: nowhere does it say `Linux version`"),
    "overlapping": (overlapping(), "its sections overlap at byte 64"),
    "section outside": (images.lying(images.vmlinux(), SECTIONS + 64 + 32, 1 << 40, 8), "its sections overlap at byte "),
    "last section outside": (images.lying(images.vmlinux(), SECTIONS + 4 * 64 + 32, 1 << 62, 8), "a section ends at byte 4611686018427"),
    "table outside": (images.lying(images.vmlinux(), 40, 1 << 63, 8), "its table of sections lies outside: 384 bytes at byte 9223372036854775808, and the image has "),
    "table of nothing": (images.lying(images.vmlinux(), 58, 1, 2), "its table of sections is damaged: 6 of 1 bytes"),
    "many sections": (images.lying(images.vmlinux(), 60, 0xFFFF, 2), "its table of sections is damaged: 65535 of 64 bytes"),
    "short ELF": (images.vmlinux()[:60], "the header of an ELF file lies outside: 64 bytes at byte 0, and the image has 60 bytes"),
    "big-endian": (images.lying(images.vmlinux(), 5, 2, 1), "this is no little-endian ELF file"),
    "object": (images.elf({".rodata": images.strings("kho-v4")}, kind=1), "this is an object file, and no kernel"),
    "program": (images.elf({".rodata": b"hello"}), "no Linux kernel is in it: nowhere does it say `Linux version`"),
    "versions": (images.elf({".rodata": images.strings("a-v1" + "\0a-v1" * 300_000)}), "more than 200000 versions stand in it: this is no kernel"),
    "addon": (images.pe([(".cmdline", b"kho=on")]), "this is an addon of a unified kernel image: there is no kernel in it"),
    "two kernels": (images.pe([(".linux", KERNEL), (".linux", KERNEL)]), "2 sections `.linux` for one boot: one is needed"),
    "unified outside": (images.lying(UNIFIED, ROW + 20, 0xFFFFFE00), "its section `.linux` ends at byte "),
    "unified overlapping": (images.lying(UNIFIED, ROW + 40 + 20, 512), "its sections overlap at byte 512"),
    "slow": (bz2.compress(b"") + bytes(11 << 20), "its kernel is 11 MiB packed with bzip2, and no more than 10 MiB of that are unpacked"),
    "two forms": (images.lying(KERNEL, 56, 0x644D5241), "this is bzImage and arm64 Image at once: what a loader takes it for cannot be told"),
    "bzImage and unified": (images.lying(images.lying(UNIFIED, 0x202, 0x53726448), 0x1FE, 0xAA55, 2),
                            "this is a unified kernel image and bzImage at once: what a loader takes it for cannot be told"),
    "many kernels": (profiles([KERNEL] * 5), "5 different kernels in its profiles, and no more than 4 are read"),
    "kernels that are large together": (profiles([KERNEL, images.bzimage(b"", images.bomb(95 << 20))[:-4] + struct.pack("<I", 96 << 20)]),
                                        "its kernel unpacks to 96 MiB, and no more than 95 MiB are read"),
    "slow together": (profiles([lzma.compress(images.vmlinux() + bytes(1 << 20)), bz2.compress(b"") + bytes((10 << 20) - 20)]),
                      "its kernel is 9 MiB packed with bzip2, and no more than 9 MiB of that are unpacked"),
    "long text": (images.pe([(".linux", KERNEL), (".cmdline", b"x" * (1 << 17))]), "its section `.cmdline` has 131072 bytes, and is text"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(name: str) -> None:
    """Whatever is damaged, or made to be, is refused with what is wrong and where."""
    data, why = HOSTILE[name]
    assert refused(data).startswith(why)


def test_files(tmp_path: Path) -> None:
    """A file that is not there, is none, or is larger than what is read, is refused before it is read."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.write(images.arm64(ARM64_BODY))
        file.truncate(1 << 42)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, why in (
        (tmp_path / "nothing", "no such file or directory"), (tmp_path, "this is no file"), (pipe, "this is no file"),
        (large, "4194304 MiB, and no more than 96 MiB of a kernel are read"),
    ):  # fmt: skip
        with pytest.raises(NoKernel) as caught:
            image.read(str(path))
        assert str(caught.value) == f"{path}: {why}"
    with pytest.raises(NoKernel, match=r"^a\\x00b: no file can be called so$"):
        image.read("a\0b")


def test_a_file_by_its_sections(tmp_path: Path) -> None:
    """Of a vmlinux with what debuggers need no more is read than is loaded, and of any file no more than there is a limit."""
    path = tmp_path / "vmlinux"
    path.write_bytes(images.vmlinux())
    assert image.read(str(path), "/nowhere") == (MADE._replace(path=str(path)),)
    with opened(str(path)) as store:
        store._left = 100
        with pytest.raises(NoKernel, match=r"more than 192 MiB would have to be read of it$"):
            elf.read(store)
    with opened(str(path)) as store:
        path.write_bytes(b"")
        with pytest.raises(NoKernel, match=r"it has become shorter while it was read$"):
            store.whole(1 << 20)


_MEASURED = """
import resource, sys
from safemem.boot.model import Refused
from safemem.outgoing import image
try:
    image.read(sys.argv[1])
except Refused as error:
    print(error)
who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
print(sum(resource.getrusage(one).ru_utime + resource.getrusage(one).ru_stime for one in who))
# What getrusage says of memory is at least what the process had that has started this one.
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
"""


def bombs() -> dict[str, bytes]:
    """Return images that want to be more than they are."""
    near = 95 << 20
    zeros = images.bomb(near)
    lzma_filter = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 128 << 20}]
    empty = b"\x28\xb5\x2f\xfd\x00\x58" + b"\0\0\0" * (4 << 20)
    return {
        "gzip": images.bomb(200 << 20),
        "bzImage": images.bzimage(b"", zeros)[:-4] + struct.pack("<I", near),
        "says less": images.bzimage(b"", images.bomb(200 << 20))[:-4] + struct.pack("<I", 1 << 20),
        "xz": lzma.compress(bytes(110 << 20), filters=lzma_filter),
        "bits": lzma.compress(random.Random(1).randbytes(15 << 20), lzma.FORMAT_ALONE, preset=0),
        "bzip2": bz2.compress(bytes(110 << 20)),
        "zstd": _packed_by(bytes(200 << 20), "zstd", "-q", "-c"),
        "zstd of nothing": empty,
        "lz4": _packed_by(bytes(200 << 20), "lz4", "-l", "-q", "-c"),
        "lz4 of nothing": b"\x02\x21\x4c\x18" + b"\x01\0\0\0\0" * (3 << 20),
        "versions": images.bzimage(images.elf({".rodata": b"a-v1\0" * (19 << 20)})),
        "pointers": images.arm64(images.strings("luo-v1") + images.field("a-v1", bytes(8)) + b"\x03\x04\0\0\0\0\0\0" * (10 << 20)),
        "magic": images.arm64(images.strings("luo-v1", "kho-v1") + struct.pack("<II", 0x4C565550, 1) * (10 << 20)),
        "banner": images.arm64(b"Linux version " * (6 << 20)),
        "notes": images.arm64(images.strings("kho-v1") + b"GNU\0" * (20 << 20)),
        "profiles of their own": profiles([images.bzimage(images.vmlinux()), *[images.bzimage(b"", zeros)[:-4] + struct.pack("<I", near)] * 29]),
        "kernels": profiles([gzip.compress(images.vmlinux() + bytes(31 << 20), 1)] * 4),
        "slow kernels": profiles([lzma.compress(images.vmlinux() + random.Random(1).randbytes(15 << 20), lzma.FORMAT_ALONE, preset=0)] * 3),
        "profiles": images.pe([(".linux", KERNEL), *((".profile", b"ID=a") for _ in range(900))]),
    }  # fmt: skip


def test_bombs(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Whatever an image holds, it takes two seconds and 256 MiB at most, programs that unpack included."""
    said = []
    for name, data in bombs().items():
        path = tmp_path / "image"
        path.write_bytes(data)
        ends = subprocess.run([sys.executable, "-c", _MEASURED, str(path)], capture_output=True, text=True, check=True)
        *_, seconds, mib = ends.stdout.split()
        said.append(f"{name} {float(seconds):.1f} s, {mib} MiB")
        assert float(seconds) < 2 and int(mib) < 256, (name, ends.stdout)
    record_property("says", f"hostile images: {'; '.join(said)}")


@given(st.binary(max_size=300), st.integers(0, 4000), st.sampled_from(["bzimage", "arm64", "elf", "unified", "zboot"]))
@settings(max_examples=300)
def test_changed(noise: bytes, at: int, form: str) -> None:
    """Bytes that change anywhere in an image give a kernel or a refusal, and never a version that nobody wrote."""
    whole = {"bzimage": KERNEL, "arm64": images.arm64(ARM64_BODY), "elf": images.vmlinux(), "unified": UNIFIED,
             "zboot": images.zboot(gzip.compress(images.arm64(ARM64_BODY)))}[form]  # fmt: skip
    data = whole[:at] + noise + whole[at + len(noise) :]
    try:
        found = image.read_bytes(data, "k", "/nowhere")
    except NoKernel:
        return
    for item in found:
        assert (item.speaks.tree <= {"kho-v4"} and item.speaks.luo <= {"luo-v5"}) or b"-v" in noise


@settings(max_examples=50)
@given(st.lists(st.from_regex(r"\A[a-z][a-z-]{0,20}-v[0-9]{1,3}\Z"), max_size=8, unique=True))
def test_every_version_is_read(names: list[str]) -> None:
    """What a section of versions holds is read whole, in either way of finding it."""
    expected = frozenset(names)
    data = images.versions(*names)
    for parts in (
        (Part(".liveupdate_versions", data, 0, len(data)),),
        (Part("", data + b"\xff" * 48, 0, len(data) + 48),),
    ):
        found = versions.sections(parts)
        said = frozenset[str]().union(*(item.speaks.tree | item.speaks.luo | item.speaks.handlers for item in found))
        assert said == expected and not any(item.fault for item in found)


@given(
    st.lists(
        st.tuples(st.from_regex(r"\A[a-z]{1,40}\Z"), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=6
    )
)
def test_every_feature_is_read(rows: list[tuple[str, int, int]]) -> None:
    """What a section of features holds is read whole, in either way of finding it."""
    entries = [(name, supported, supported & some, supported & ~some) for name, supported, some in rows]
    data = images.features(*entries)
    for parts in (
        (Part(".liveupdate_features", data, 0, len(data)),),
        (Part("", data + b"\xff" * 80, 0, len(data) + 80),),
    ):
        found = [item for section in versions.sections(parts) for item in section.speaks.features]
        assert found == [Feature(*entry) for entry in entries]


# ---- packing


@pytest.mark.needs("lzop")
@pytest.mark.parametrize("words", [(), ("--crc32",), ("-9",)])
def test_lzo_ends(words: tuple[str, ...]) -> None:
    """A stream of lzo ends behind a block of no size, whatever follows; cut off before that, it is said to be."""
    data = subprocess.run(["lzop", "-c", *words], input=b"kernel" * 99_999, capture_output=True, check=True).stdout
    assert packed.whole(data + b"more", 0, 1 << 20) == (b"kernel" * 99_999, len(data))
    with pytest.raises(packed.Unreadable, match=r"the compressed part (that begins at byte \d+ )?is cut off"):
        packed.whole(data[:-1], 0, 1 << 20)


def test_names_of_packings() -> None:
    """A compression is known by its first bytes."""
    assert {name: packed.compression(pack(b"x" * 100)) for name, pack in PACKINGS.items()} == {
        name: name for name in PACKINGS
    }
    assert packed.compression(b"\x7fELF") == ""


def test_no_pe() -> None:
    """What is no PE file has no profiles and no architecture."""
    for data in (b"", b"MZ", b"MZ".ljust(64, b"\xff"), images.arm64(ARM64_BODY)):
        assert (pe.profiles(Store("k", data)), pe.arch(Store("k", data))) == ((), "")


# ---- the command


def run(*words: str) -> tuple[int, str]:
    """Return the exit code and the output of a command."""
    result = CliRunner().invoke(main, ["kernel", *words])
    return result.exit_code, result.output


TEXT = """\
{path}, profile main
  form            bzImage, packed with gzip, in a unified kernel image
  architecture    x86_64
  pages           4 KiB
  release         7.3.4-made, as the kernel says of itself
  build ID        000102030405060708090a0b0c0d0e0f10111213, in the kernel's notes
  configuration   in the image (IKCONFIG)
  KHO             yes, kho-v4 (by the configuration and strings)
  LUO             yes, luo-v5 (by the configuration and strings)
  tree            kho-v4, by `.liveupdate_features` and strings
  LUO's data      luo-v5, by `.liveupdate_features` and strings
  handlers        memfd-v2, by `.liveupdate_features` and strings
  producers       memblock-v1, reserve-mem-v1, by strings in the image
  feature         memfd: supports 0x3, requires 0x1, uses 0x1
  command line    kho=on \\x1b[2J
  initrds         1 initrd in the image: 2 KiB
  not known
    versions that are numbers inside a blob cannot be told from an image: those of `pci`, `iommu-liveupdate` and `kexec-metadata`
    which handlers will be in use, and whether what they preserve can be retrieved, cannot be told from an image
"""


def test_text(tmp_path: Path) -> None:
    """Each line says how sure it is; what others wrote cannot reach the terminal."""
    path = tmp_path / "uki"
    kernel = images.bzimage(images.vmlinux(more={".liveupdate_features": images.features(("memfd", 3, 1, 1))}))
    path.write_bytes(
        images.pe(
            [(".linux", kernel), (".initrd", bytes(2048)), (".profile", b"ID=main"), (".cmdline", b"kho=on \x1b[2J")]
        )
    )

    assert run(str(path), "--root", str(tmp_path)) == (Code.DONE, TEXT.format(path=path))


@pytest.mark.parametrize(
    ("names", "text", "kho", "luo"),
    [
        (("kho-v4", "luo-v5"), None, "yes, kho-v4 (by strings)", "yes, luo-v5 (by strings)"),
        (("kho-v4",), "CONFIG_KEXEC_HANDOVER=y\n", "yes, kho-v4 (by the configuration and strings)", "no (by the configuration)"),
        (("nothing",), None, "no (by strings)", "no (by strings)"),
        (("nothing",), "CONFIG_KEXEC_HANDOVER=y\n", "unknown: CONFIG_KEXEC_HANDOVER is y, and no version of it is in the image",
         "no (by the configuration)"),
    ],
)  # fmt: skip
def test_what_is_built_in_is_a_line(
    tmp_path: Path, names: tuple[str, ...], text: str | None, kho: str, luo: str
) -> None:
    """It says what is there and by what that is known; of what is not known, why."""
    path = tmp_path / "k"
    path.write_bytes(images.vmlinux(*names, config=text))
    (found,) = image.read(str(path), str(tmp_path))
    rows = "\n".join(render.lines((found,)))

    assert f"  KHO             {kho}\n  LUO             {luo}\n" in rows


def test_an_example() -> None:
    """The help shows one call."""
    assert "Example: safemem kernel /boot/vmlinuz" in run("--help")[1]


def test_json(tmp_path: Path) -> None:
    """Programs get everything, with the code that the command ends with."""
    path = tmp_path / "k"
    path.write_bytes(images.vmlinux(config=images.CONFIG.replace("LIVEUPDATE=y", "LIVEUPDATE=n")))
    code, output = run(str(path), "--root", str(tmp_path), "--format", "json")
    document = json.loads(output)
    (found,) = document["kernels"]

    assert code == document["exit_code"] == Code.UNKNOWN
    assert (document["schema"], document["kind"]) == (1, "kernel")
    assert found["kho"] == YES[0]._asdict()
    assert found["luo"]["value"] == "unknown"
    assert found["config"]["options"]["CONFIG_KEXEC_HANDOVER"] == "y"
    assert (found["speaks"]["tree"], found["speaks"]["luo"]) == (["kho-v4"], ["luo-v5"])
    assert (found["form"], found["packed"], found["page_size"], found["initrds"]) == ("ELF", None, 4096, [])


def test_bad_input(tmp_path: Path) -> None:
    """What is no kernel is an invalid input, in the format that was asked for."""
    path = tmp_path / "k"
    path.write_bytes(b"nothing")
    why = f"{path}: this is no kernel image: neither bzImage, EFI zboot, arm64 Image, ELF, nor a unified one"

    assert run(str(path)) == (Code.INVALID, f"safemem: {why}\n")
    code, output = run(str(path), "--format", "json")
    assert (code, json.loads(output.partition("\nsafemem:")[0])["errors"]) == (Code.INVALID, [why])
    assert run()[0] == Code.USAGE
