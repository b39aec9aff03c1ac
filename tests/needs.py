# SPDX-License-Identifier: MIT
"""What a test needs of this machine: where that is missing, the test is skipped, and in CI it fails.

A plugin of pytest: `@pytest.mark.needs("zstd", "cpio")` names the programs that a test starts.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest


def lacking(reason: str) -> NoReturn:
    """Skip the test that runs; fail it in CI, where everything is to be there."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


#: What `make test` fetches without installing it is in the environment's own folder.
os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{Path(sys.executable).parent}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Look for the programs before any fixture starts one."""
    names = [str(name) for mark in item.iter_markers("needs") for name in mark.args]
    absent = [name for name in dict.fromkeys(names) if shutil.which(name) is None]
    if absent:
        lacking(f"not installed: {', '.join(absent)}; `make test` installs all that tests need")


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest know the mark."""
    config.addinivalue_line("markers", "needs(program, ...): starts these programs")
