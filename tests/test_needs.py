# SPDX-License-Identifier: MIT
"""A test whose programs are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEST = """
import pytest

@pytest.fixture(scope="module")
def started():
    raise FileNotFoundError("no-such-program")

@pytest.mark.needs("sh", "no-such-program", "nor-this")
def test_absent(started):
    pass

@pytest.mark.needs("sh")
def test_there():
    pass
"""


@pytest.mark.parametrize(("where", "code", "outcome"), [("", 0, "1 passed, 1 skipped"), ("true", 1, "1 passed, 1 error")])  # fmt: skip
def test_missing_programs(tmp_path: Path, where: str, code: int, outcome: str) -> None:
    """It is skipped before its fixtures are made, with every name; in CI it fails, and without a traceback."""
    (tmp_path / "test_x.py").write_text(TEST)
    words = [sys.executable, "-m", "pytest", "-p", "tests.needs", "--strict-markers", "-ra", "--rootdir=."]
    env = {**os.environ, "CI": where, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert result.returncode == code, result.stdout + result.stderr
    assert outcome in result.stdout
    assert "not installed: no-such-program, nor-this; `make test` installs all that tests need" in result.stdout
    assert "Error" not in result.stdout
