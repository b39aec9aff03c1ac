# SPDX-License-Identifier: MIT
"""kernel-install as Debian has it, with the package installed: what its entry names is what safemem looks into and makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from safemem.cli import main
from safemem.initramfs import bootplaces, check
from safemem.initramfs.target import APPENDED, ASKED
from tests.kit import archive
from tests.vm import distro
from tests.vm.kit import ALL

pytestmark = pytest.mark.vm
TOKEN = "5afe0000000000000000000000005afe"
FOREIGN = archive({"init": b"\x7fELF", "usr/lib/systemd/systemd": b"\x7fELF"})


@pytest.mark.parametrize("suite", ["bookworm", "trixie"] if ALL else ["trixie"])
def test_debian(tmp_path: Path, deb: Callable[[str], Path], suite: str) -> None:
    """The image that initramfs-tools made is copied for the entry; one without safemem is refused; the archive mends it."""
    tree = distro.Tree(tmp_path / "tree", suite, "initramfs-tools")
    tree.install(deb(suite))
    root, release = str(tree.path), tree.release
    tree.put(
        {
            "efi/loader/entries/old.conf": b"title old\nlinux /vmlinuz-1.0.0\n",
            f"efi/{TOKEN}/x": b"",
            "etc/kernel/cmdline": b"quiet\n",
            "etc/machine-id": f"{TOKEN}\n".encode(),
        }
    )
    tree.make_initrd()
    # Since systemd 255 the partition is looked for by its type, and here it is a folder.
    tree.run(f"BOOT_ROOT=/efi kernel-install add {release} /boot/vmlinuz-{release}")

    entry, image = (
        tree.path / f"efi/loader/entries/{TOKEN}-{release}.conf",
        tree.path / f"efi/{TOKEN}/{release}/initrd.img-{release}",
    )
    boots = bootplaces.find(root, release)
    assert (boots.files, boots.entry, boots.copies) == ((image,), entry, (tree.initrd,))
    found = check.inside(boots.read())
    assert found is not None and not found.fault

    # Another policy: both places have it, and nothing else has changed.
    (tree.path / "etc/safemem/policy.toml").write_text(
        (tree.path / "usr/share/safemem/policies/minimal.toml").read_text()
    )
    result = CliRunner().invoke(main, ["initramfs", "install", "--root", root])
    assert result.exit_code == 0, result.output
    assert image.read_bytes() == tree.initrd.read_bytes()
    assert CliRunner().invoke(main, ["initramfs", "check", "--root", root, "--kernel", release]).exit_code == 0

    # What another generator makes.
    before = entry.read_bytes(), image.read_bytes()
    tree.put({"foreign": FOREIGN})
    out = tree.run(f"BOOT_ROOT=/efi kernel-install add {release} /boot/vmlinuz-{release} /foreign", code=1)
    assert "safemem is not in it" in out and f"kernel {release} is not installed" in out
    assert (entry.read_bytes(), image.read_bytes()) == before

    tree.put({ASKED: b""})
    tree.run(f"BOOT_ROOT=/efi kernel-install add {release} /boot/vmlinuz-{release} /foreign")
    boots = bootplaces.find(root, release)
    assert [path.name for path in boots.files] == ["foreign", APPENDED]
    result = CliRunner().invoke(main, ["initramfs", "check", "--root", root, "--kernel", release])
    assert result.exit_code == 0 and "by systemd, before everything else" in result.output
