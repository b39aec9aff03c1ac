# SPDX-License-Identifier: MIT
"""The project as a whole: linters, types, and what the wheel carries."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "words", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy", "safemem", "tests"]], ids=" ".join
)
def test_checked(words: list[str]) -> None:
    """What `make lint` says."""
    result = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr


def tracked() -> list[Path]:
    """Return every file of the repository, drafts that git does not ignore included."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.needs("git")
def test_spelling() -> None:
    """No word in any file is one that is known to be misspelt."""
    result = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *tracked()], cwd=ROOT, capture_output=True, text=True
    )

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.needs("git")
def test_every_file_is_as_editors_are_told() -> None:
    """Files are UTF-8 with line feeds, without blanks at the end of a line, and a tab indents only where it has to."""
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "strict")
        assert "\r" not in text, path
        assert text == "" or text.endswith("\n"), path
        assert not re.search(r"[ \t]$", text, re.MULTILINE), path
        assert path.name == "Makefile" or path.suffix in {".c", ".h"} or not re.search(r"^\t", text, re.MULTILINE), path


@pytest.mark.needs("make")
def test_make_alone_helps() -> None:
    """`make` prints a line for each target, fit for a narrow terminal, and does nothing else."""
    phony = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()

    assert phony and [line.split()[1] for line in lines] == phony[1].split()
    assert all(len(line) <= 80 and line.startswith("make ") and len(line.split()) > 3 for line in lines)


def test_wheel_is_complete(tmp_path: Path) -> None:
    """An installed safemem has what it reads at run time: the wrapper and the shipped policies."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT],
        check=True,
    )  # fmt: skip
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())

    assert {"safemem/initramfs/files/boot.sh", "safemem/udev/60-safemem.rules", "safemem/boot/main.py", "safemem/py.typed",
            "safemem/initramfs/files/safemem-decide.service", "safemem/initramfs/files/gate.sh"} <= names  # fmt: skip
    assert {f"safemem/policies/{path.name}" for path in (ROOT / "policies").glob("*.toml")} <= names
