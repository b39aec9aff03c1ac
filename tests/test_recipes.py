# SPDX-License-Identifier: MIT
"""What docs/initramfs.md tells operators to write themselves, taken from there and run."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from safemem.initramfs import check
from tests.kit import POLICY, archive

PAGE = (Path(__file__).resolve().parent.parent / "docs/initramfs.md").read_text()


def recipe(section: str) -> str:
    """Return the script in a section of the page."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("    ") or not line]
    return textwrap.dedent("\n".join(lines)).strip() + "\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make an archive")
def test_a_post_hook_of_mkinitcpio(tmp_path: Path) -> None:
    """It appends the archive to an image of any length, and fails on one in which nothing would start it."""
    (tmp_path / "etc/safemem").mkdir(parents=True)
    shutil.copy(POLICY, tmp_path / "etc/safemem/policy.toml")
    text = recipe("mkosi-initrd and mkinitcpio")
    assert text.startswith("#!/bin/sh\n# KERNEL IMAGE [UKI]\n")
    hook = tmp_path / "hook"
    hook.write_text(text.replace("/etc/safemem", f"{tmp_path}/etc/safemem"))
    (tmp_path / "bin").mkdir()
    safemem = tmp_path / "bin/safemem"
    # The comparison is with the policy of a root, which is no machine's here.
    words = f'[ "$2" != check ] || set -- "$@" --root {tmp_path}'
    safemem.write_text(f'#!/bin/sh\n{words}\nexec {Path(sys.executable).parent / "safemem"} "$@"\n')
    safemem.chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    image = tmp_path / "initramfs-linux.img"

    made = gzip.compress(archive({"init": b"\x7fELF", "usr/lib/systemd/systemd": b"\x7fELF"}), mtime=0)
    image.write_bytes(made + bytes(-len(made) % 4) + b"\0")
    result = subprocess.run(["sh", hook, "/boot/vmlinuz-linux", image], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = check.inside(image.read_bytes())
    assert found is not None and (found.start, found.fault) == ("systemd", "")
    assert image.read_bytes().startswith(made) and not list(tmp_path.glob("*.safemem"))

    image.write_bytes(gzip.compress(archive({"init": b"#!/bin/sh\n"}), mtime=0))
    result = subprocess.run(["sh", hook, "/boot/vmlinuz-linux", image], env=env, capture_output=True, text=True)
    assert result.returncode == 1 and "nothing in it starts the boot program" in result.stdout, result.stdout
