# SPDX-License-Identifier: MIT
"""The project as a whole: linters, types, and what the wheel carries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
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
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "safemem").rglob("*") if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    assert files <= names
    # All else lies where it is installed.
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(settings["force-include"]) == {"policies", "udev/60-safemem.rules"}


#: Folders of the project that have scripts.
SCRIPTS = ("safemem", "systemd", "packages", "tests", ".ci")


def scripts() -> list[Path]:
    """Return every shell script of the project: told by its first line, whatever it is called."""
    found = []
    for path in sorted(path for folder in SCRIPTS for path in (ROOT / folder).rglob("*")):
        if path.is_file() and path.suffix not in (".py", ".pyc") and "logs" not in path.parts:
            with path.open("rb") as file:
                line = file.readline(200)
            if re.match(rb"#!.*\b(sh|bash|dash)\b|# shellcheck shell=", line):
                found.append(path)
    return found


def test_shellcheck() -> None:
    """Every shell script is what it says it is; a mark that a build fills in stands for words."""
    if shutil.which("shellcheck") is None and not os.environ.get("CI"):
        pytest.skip("shellcheck is not installed")
    found = {path.relative_to(ROOT).as_posix(): re.sub(r"@[A-Z]+@", "one two", path.read_text()) for path in scripts()}

    assert {
        "packages/debian/postinst", "packages/debian/postrm", "packages/debian/prerm", "safemem/initramfs/files/boot.sh",
        "safemem/initramfs/files/dracut/module-setup.sh", "safemem/initramfs/files/gate.sh", "safemem/initramfs/files/handover-args.sh",
        "safemem/initramfs/files/initramfs-tools/safemem", "systemd/safemem-generator",
    } <= set(found)  # fmt: skip
    for name, text in found.items():
        result = subprocess.run(["shellcheck", "-"], input=text, capture_output=True, text=True)
        assert result.returncode == 0, f"{name}: {result.stdout}"
