# SPDX-License-Identifier: MIT
"""The project as a whole: linters, types, and what the wheel carries."""

from __future__ import annotations

import os
import re
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
    # Not as a part of the `make` that has started this.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    result = subprocess.run(["make"], cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    lines = result.stdout.splitlines()

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
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "safemem").rglob("*") if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    assert files <= names
    # All else lies where it is installed.
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(settings["force-include"]) == {"policies", "udev/60-safemem.rules"}


#: Folders of the project that have scripts.
SCRIPTS = ("safemem", "systemd", "packages", "tests", ".ci")


def scripts() -> list[Path]:
    """Return every shell script of the project: told by its first line, or by its name if another one reads it."""
    found = []
    for path in sorted(path for folder in SCRIPTS for path in (ROOT / folder).rglob("*")):
        if path.is_file() and path.suffix not in (".py", ".pyc") and "logs" not in path.parts:
            with path.open("rb") as file:
                line = file.readline(200)
            if path.suffix == ".sh" or re.match(rb"#!.*\b(sh|bash|dash)\b|# shellcheck shell=", line):
                found.append(path)
    return found


@pytest.mark.needs("shellcheck")
def test_shellcheck() -> None:
    """Every shell script is what it says it is; a mark that a build fills in stands for words."""
    found = {path.relative_to(ROOT).as_posix(): re.sub(r"@[A-Z]+@", "one two", path.read_text()) for path in scripts()}

    assert {
        "packages/next-boot.sh", "packages/debian/postinst", "packages/debian/postrm", "packages/debian/prerm", "safemem/initramfs/files/boot.sh",
        "safemem/initramfs/files/dracut/module-setup.sh", "safemem/initramfs/files/gate.sh", "safemem/initramfs/files/handover-args.sh",
        "safemem/initramfs/files/initramfs-tools/safemem", "systemd/safemem-generator",
        "tests/vm/guest/functions.sh", "tests/vm/guest/init.sh",
    } <= set(found)  # fmt: skip
    for name, text in found.items():
        result = subprocess.run(["shellcheck", "-x", "-P", ROOT, "-"], input=text, capture_output=True, text=True)
        assert result.returncode == 0, f"{name}: {result.stdout}"
