# SPDX-License-Identifier: MIT
"""The kernel's own selftests of memory hotplug and live update, from the source that the guests' kernels are built from."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.vm.debian import building
from tests.vm.harness import CACHE

FOLDER = CACHE / "selftests"
_TESTS = "tools/testing/selftests"
_HEADER = "include/uapi/linux/liveupdate.h"
#: What of the kernel's source they are built from.
SOURCES = (f"{_TESTS}/memory-hotplug", f"{_TESTS}/liveupdate", f"{_TESTS}/kselftest.h", f"{_TESTS}/kselftest_harness.h", _HEADER)  # fmt: skip
HOTPLUG = "mem-on-off-test.sh"
#: Tests one kernel.
SINGLE = "liveupdate"
#: Test both sides of a kexec: `--stage 1` before and `--stage 2` after. Older sources have fewer.
KEXEC = ("luo_kexec_simple", "luo_multi_session", "luo_stress_sessions", "luo_stress_files")


def build(source: Callable[[], Path]) -> dict[str, bytes]:
    """Return the selftests by name; built into the cache once, from the tree of the kernel that `source` returns."""
    with building(FOLDER) as draft:
        if draft:
            _build(source(), draft)
    return {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir())}


def _build(tree: Path, folder: Path) -> None:
    tests = tree / _TESTS
    folder.mkdir()
    # As `make headers` would install it; the other headers are the system's.
    headers = folder.parent / "include/linux"
    headers.mkdir(parents=True)
    shutil.copyfile(tree / _HEADER, headers / "liveupdate.h")
    shutil.copyfile(tests / "memory-hotplug" / HOTPLUG, folder / HOTPLUG)
    for name in (SINGLE, *KEXEC):
        program = tests / f"liveupdate/{name}.c"
        if program.exists():
            subprocess.run(
                ["gcc", "-O2", "-static", "-D_GNU_SOURCE=", "-I", headers.parent, "-I", tests,
                 "-o", folder / name, program, *sorted((tests / "liveupdate").glob("*utils.c"))],
                check=True,
            )  # fmt: skip
