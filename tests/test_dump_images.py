# SPDX-License-Identifier: MIT
"""Images of dump kernels are left alone: our hooks put nothing into them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

FILES = Path(__file__).resolve().parent.parent / "safemem/initramfs/files"
#: What dracut has around a module, as far as `check` asks for it.
AROUND = 'dinfo() { :; }; require_binaries() { return 0; }; . "$0"; check; echo "$?"'


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ({}, "0"),
        ({"add_dracutmodules": " earlykdump "}, "0"),
        ({"dracutmodules": "all", "add_dracutmodules": " lvm kdumped "}, "0"),
        ({"IN_KDUMP": ""}, "0"),
        ({"IN_KDUMP": "1"}, "255"),  # kdump-utils: Fedora, Red Hat
        ({"add_dracutmodules": " kdumpbase "}, "255"),
        ({"add_dracutmodules": "kdump"}, "255"),  # SUSE
        ({"force_add_dracutmodules": " drm kdump "}, "255"),
        ({"dracutmodules": "base kdump"}, "255"),
    ],
)
def test_dracut(words: dict[str, str], status: str) -> None:
    """255 takes a module in only if another one, or somebody, asks for it."""
    module = FILES / "dracut/module-setup.sh"
    result = subprocess.run(
        ["bash", "-c", AROUND, module], env={"PATH": os.environ["PATH"], **words}, capture_output=True, text=True
    )
    assert (result.stdout.strip(), result.stderr) == (status, "")


@pytest.mark.parametrize(
    ("folder", "made"), [("/var/lib/kdump/initramfs-tools", False), ("/etc/initramfs-tools", True), (None, True)]
)
def test_initramfs_tools(tmp_path: Path, folder: str | None, made: bool) -> None:
    """kdump-tools calls mkinitramfs with a folder of settings of its own."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/safemem").write_text(f'#!/bin/sh\necho "$*" >{tmp_path}/called\nmkdir -p "$3/usr/lib/safemem"\necho gate >"$3/usr/lib/safemem/gate.sh"\n')  # fmt: skip
    (tmp_path / "bin/safemem").chmod(0o755)
    init = "#!/bin/sh\nrun_scripts /scripts/init-top\n"
    (tmp_path / "image").mkdir()
    (tmp_path / "image/init").write_text(init)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "DESTDIR": str(tmp_path / "image")}
    result = subprocess.run(
        [FILES / "initramfs-tools/safemem"] if os.access(FILES / "initramfs-tools/safemem", os.X_OK) else ["sh", FILES / "initramfs-tools/safemem"],
        env=env | ({"CONFDIR": folder} if folder else {}), capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "called").exists() == made
    assert ((tmp_path / "image/init").read_text() != init) == made
