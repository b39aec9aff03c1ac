# SPDX-License-Identifier: MIT
"""The project as a whole: linters, types, and what the wheel carries."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "words",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy", "safemem", "tests", "packages"]],
    ids=" ".join,
)
def test_checked(words: list[str]) -> None:
    """What `make lint` says."""
    result = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr


def test_wheel_is_complete(tmp_path: Path) -> None:
    """An installed safemem has what it reads at run time: the wrapper and the shipped policies."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT],
        check=True,
    )  # fmt: skip
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())

    assert {"safemem/initramfs/files/boot.sh", "safemem/udev/60-safemem.rules", "safemem/boot/main.py",
            "safemem/initramfs/files/safemem-decide.service", "safemem/initramfs/files/gate.sh"} <= names  # fmt: skip
    assert {f"safemem/policies/{path.name}" for path in (ROOT / "policies").glob("*.toml")} <= names
