# SPDX-License-Identifier: MIT
"""The archive behind images of every length and packing, put there as the README says: where `check` finds it, it runs."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from safemem.cli import main
from safemem.initramfs import check, packed
from tests.vm import harness
from tests.vm.harness import Guest, Result, boot
from tests.vm.kit import archive, policy_text

pytestmark = pytest.mark.vm
SCRIPT = """
report there "$(ls /usr/lib/safemem/boot 2>&1)"
[ ! -x /usr/lib/safemem/boot ] || decide
"""


def member(data: bytes, remainder: int) -> bytes:
    """Return a gzip member whose length leaves `remainder` when it is divided by 4: the file's name in its head may be any."""
    made = gzip.compress(data, 1, mtime=0)
    name = b"n" * ((remainder - len(made) - 1) % 4) + b"\0"
    return made[:3] + b"\x08" + made[4:10] + name + made[10:]


def by(*command: str) -> Callable[[bytes], bytes]:
    """Return a function that packs with a program."""
    return lambda data: subprocess.run(command, input=data, capture_output=True, check=True).stdout


IMAGES: dict[str, Callable[[bytes], bytes]] = {
    **{f"gzip-{n}": lambda data, n=n: member(data, n) for n in range(4)},  # type: ignore[misc]
    "plain": bytes,
    "lz4": by("lz4", "-l", "-q", "-c"),
    "zstd": by("zstd", "-1", "-q", "-c"),
}


@pytest.fixture(scope="module")
def appendable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file that `safemem initramfs cpio` writes."""
    folder = tmp_path_factory.mktemp("appendable")
    (folder / "vm.toml").write_text(policy_text("panic"))
    made = folder / "safemem.img"
    words = ["initramfs", "cpio", "--policy", str(folder / "vm.toml"), "-o", str(made)]
    assert CliRunner().invoke(main, words).exit_code == 0
    return made


def run(name: str, initrd: bytes) -> Result:
    """Boot an image."""
    return boot(Guest(f"appended-{name}", initrd, dimm_mib=0))


@pytest.mark.parametrize("name", IMAGES)
def test_what_check_accepts_runs(name: str, appendable: Path, tmp_path: Path) -> None:
    """Of every length, and packed in every way."""
    image, whole = tmp_path / "initrd.img", tmp_path / "initrd-with-safemem.img"
    image.write_bytes(IMAGES[name](harness.image(SCRIPT)))
    if name.startswith("gzip"):
        assert image.stat().st_size % 4 == int(name[-1])
    subprocess.run(["sh", "-c", f"cat {image} {appendable} > {whole}"], check=True)
    found = check.inside(whole.read_bytes())
    assert found is not None and found.policy == "vm"

    result = run(name, whole.read_bytes())
    assert result.fate == "poweroff" and result.report["returned"] == "0", result.serial[-3000:]
    assert "nitramfs unpacking failed" not in result.serial


#: Images in which the kernel stops before it comes to safemem, or in the middle of it, and what `check` says.
REFUSED: dict[str, tuple[Callable[[bytes, bytes, bytes], bytes], str]] = {
    "plain-behind-odd": (lambda image, plain, made: member(image, 1) + plain, "a plain archive begins at no multiple of 4"),
    "behind-odd-zeros": (lambda image, plain, made: image + bytes(1) + made[512:], "the part after a plain archive begins"),
    "packed-twice": (lambda image, plain, made: member(image, 0) + member(made, 0), "no archive is here"),
    "lz4-without-zeros": (lambda image, plain, made: by("lz4", "-l", "-q", "-c")(image) + made[512:], "damaged"),
    "xz": (lambda image, plain, made: image + by("xz", "-0", "-c")(plain), "packed by xz without"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_check_refuses_does_not_run(name: str, appendable: Path) -> None:
    """The kernel says one line and boots the rest: what `check` calls unreadable has no safemem."""
    mix, says = REFUSED[name]
    whole = mix(harness.image(SCRIPT), archive(policy_text("panic")), appendable.read_bytes())
    with pytest.raises(packed.Unreadable, match=says):
        check.inside(whole)

    result = run(name, whole)
    assert result.fate == "poweroff" and "returned" not in result.report, result.serial[-3000:]
    assert "unpacking failed" in result.serial and "No such file" in result.report["there"]
