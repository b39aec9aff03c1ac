# SPDX-License-Identifier: MIT
"""Debian's own kernels, as packages that are unpacked and not installed: each is what its package says, and speaks of nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from safemem.outgoing import image
from safemem.outgoing.kernel import Kernel
from safemem.outgoing.prediction import of_image, predict
from tests import mirror
from tests.needs import lacking
from tests.vm import harness

pytestmark = pytest.mark.mirror

#: Minor versions of each architecture; the oldest two, and the newest.
VERSIONS = {"amd64": 7, "arm64": 6}
ARCHES = {"amd64": "x86_64", "arm64": "aarch64"}


def ours(arch: str) -> Kernel:
    """Return the project's kernel that hands over."""
    try:
        return image.read(str(harness.kernel("current" if arch == "amd64" else "arm64/current")))[0]
    except FileNotFoundError as error:
        lacking(str(error))


def image_in(folder: Path) -> Path:
    """Return the image in an unpacked package."""
    (found,) = folder.rglob("vmlinuz*")
    return found


def notes(path: Path, scratch: Path) -> str:
    """Return what readelf says of the notes of the kernel in a bzImage, which programs unpack as extract-vmlinux does."""
    data = path.read_bytes()
    for magic, program in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\x02\x21\x4c\x18", "lz4")):
        at = data.find(magic)
        while at >= 0:
            # They complain of the four bytes behind the stream.
            out = subprocess.run([program, "-dcq"], input=data[at:], capture_output=True, check=False).stdout
            if out.startswith(b"\x7fELF"):
                (scratch / "vmlinux").write_bytes(out)
                words = ["readelf", "-nW", str(scratch / "vmlinux")]
                return subprocess.run(words, capture_output=True, text=True, check=True).stdout
            at = data.find(magic, at + 1)
    raise AssertionError(f"{path}: packed in another way")


@pytest.mark.needs("apt-get", "dpkg-deb", "zstd", "lz4", "readelf")
@pytest.mark.parametrize("arch", [f"{arch}@debian-images" for arch in VERSIONS])
def test_debian(arch: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Release, architecture, page size, configuration, build ID and verdict are right for each of Debian's kernels."""
    arch = arch.partition("@")[0]
    started = time.monotonic()
    found = mirror.kernels(arch, VERSIONS[arch])
    said = [f"Debian's kernels for {arch}: to have them took {time.monotonic() - started:.0f} s"]
    handing = of_image(ours(arch))
    minors = set()
    for release, folder in found.items():
        path = image_in(folder)
        started = time.monotonic()
        (kernel,) = image.read(str(path), str(folder))
        said.append(f"  {release}: {kernel.form} {kernel.packed}, {path.stat().st_size >> 20} MiB, {time.monotonic() - started:.2f} s,"
                    f" {', '.join(json.loads((folder / 'packages').read_text()))}")  # fmt: skip
        assert (kernel.release, kernel.arch, kernel.page_size) == (release, ARCHES[arch], 4096)
        assert kernel.form == ("bzImage" if arch == "amd64" else "arm64 Image") and kernel.efi
        if arch == "amd64":
            assert f"Build ID: {kernel.build_ids[0]}" in notes(path, tmp_path) and len(kernel.build_ids) == 1
        configs = list(folder.rglob("config*"))
        assert len(configs) <= 1 and kernel.config_source == "".join(map(str, configs))
        for config in configs:
            text = config.read_text()
            on = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.MULTILINE))
            assert {name: value for name, value in (kernel.config or {}).items() if value != "n"} == on
            assert "CONFIG_KEXEC_HANDOVER" not in on
        assert (kernel.kho.value, kernel.luo.value, kernel.speaks.tree) == ("no", "no", frozenset())
        assert predict(handing, kernel).outcome == "unsupported"
        assert predict(of_image(kernel), ours(arch)).outcome == "none"
        minors.add(re.match(r"\d+\.\d+", release)[0])  # type: ignore[index]  # every release begins so
    record_property("says", "\n".join(said))
    numbers = sorted(tuple(map(int, minor.split("."))) for minor in minors)
    assert len(numbers) >= 6 and numbers[0] == (6, 1) and numbers[-1] >= (7, 3)
    packages = " ".join((folder / "packages").read_text() for folder in found.values())
    assert "unsigned" in packages and re.search(r'"linux-(?:binary|image)-[\d.]', packages)
    assert any("cloud" not in release for release in found)


@pytest.mark.needs("apt-get", "dpkg-deb", "zstd")
@pytest.mark.parametrize("arch", ["amd64@debian-images"])
def test_ukify(arch: str, tmp_path: Path) -> None:
    """Of a unified image by systemd's ukify each profile is read, and its kernel is the one that went in."""
    folder = list(mirror.kernels("amd64", VERSIONS["amd64"]).values())[-1]
    (alone,) = image.read(str(image_in(folder)), str(folder))
    initrd, output = tmp_path / "initrd", tmp_path / "uki.efi"
    initrd.write_bytes(os.urandom(100_000))
    mirror.unified(output, image_in(folder), initrd, alone.release)
    found = image.read(str(output), str(folder))

    assert [(item.profile, item.cmdline) for item in found] == [("main", "kho=on"), ("factory", "kho=off")]
    for item in found:
        assert item == alone._replace(
            path=str(output), container="unified kernel image", profile=item.profile, cmdline=item.cmdline,
            initrds=(initrd.read_bytes(),), config=item.config, config_source=item.config_source,
        )  # fmt: skip
        assert item.config == alone.config
