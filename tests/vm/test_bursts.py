# SPDX-License-Identifier: MIT
"""Much memory at once, and `watch` killed in the middle of it."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vm import harness
from tests.vm.harness import boot, shell
from tests.vm.kit import ALL, BLOCK, COMMAND, HELD, SHARE, lost, policy_text

pytestmark = pytest.mark.vm

GUEST = Path(__file__).parent / "guest/bursts.py"
#: Blocks of the DIMM that is there at boot, and of three of 8 GiB that come later.
SIZE = 8 << 30


def plug(number: int, size: int = SIZE) -> list[dict[str, Any]]:
    """Return what plugs another 8 GiB, or `size` bytes, right behind what is there; the host need not have them."""
    name = f"burst{number}"
    memory = {"qom-type": "memory-backend-ram", "id": f"m{name}", "size": size, "reserve": False}
    return [
        {"execute": "object-add", "arguments": memory},
        {"execute": "device_add", "arguments": {"driver": "pc-dimm", "id": name, "memdev": f"m{name}"}},
    ]


def burst(name: str, safe: str, words: str, timeout: float, size: int = SIZE, **more: Any) -> harness.Result:
    """Run guest/bursts.py in a guest where everything but `safe` is held."""
    text = policy_text("online-safe", sources=f'"{safe}"')
    script = shell("bursts", PYTHON=sys.executable, MODULES=str(harness.REPOSITORY), WORDS=words)
    files = {"bursts.py": GUEST.read_bytes()}
    options = {"devices": SHARE, "checkpoint": lambda report: plug(int(report["checkpoint"]), size), **more}
    result = boot(lost(name, shell("hand-over") + COMMAND + script, text, files=files, timeout=timeout, **options))
    assert result.fate == "poweroff", result.serial[-2000:]
    assert result.report["returned"] == "0", result.report["out"]
    return result


def test_eight_gib_at_once() -> None:
    """64 blocks in one plug are one decision and one line, and not much slower than who decides nothing."""
    report = burst("burst-race", "0x140000000-0x73fffffff", "race", 200).report
    kernel, loop, watch = (float(report[key]) for key in ("kernel", "loop", "watch"))
    print(f"64 blocks from the first to the last online: watch {watch:.2f} s, "
          f"{watch / loop:.2f} of a shell loop, {watch / kernel:.2f} of the kernel's own")  # fmt: skip

    assert report["lines"] == "1", report["log"]
    assert '"onlined": "8 GiB"' in report["line"]
    assert report["first"].split() == [HELD]
    assert watch < 8 * loop + 8  # coarse: what else this machine does is in one of them and not in the other


def test_many_blocks_in_one_plug() -> None:
    """Very much memory at once, 128 GiB nightly, is one decision and one line in the log."""
    number = 1024 if ALL else 256
    first, size = 0x140000000, number * BLOCK
    report = burst(
        "burst-many", f"{first:#x}-{first + size - 1:#x}", f"many {number}", 300, size,
        boot_mib=3 * harness.GIB, devices=(*SHARE, "-m", "maxmem=256G"),
    ).report  # fmt: skip
    print(f"{number} blocks from the first to the last online: {float(report['watch']):.2f} s")

    assert report["lines"] == "1", report["log"]
    assert f'"onlined": "{size >> 30} GiB"' in report["line"]
    assert report["first"].split() == [HELD]


def test_killed_many_times() -> None:
    """SIGKILL at random points of bursts: no block is ever in a state that the decision forbids, and the next one finishes."""
    seed, turns = random.randrange(1 << 32), 50 if ALL else 10
    print(f"seed {seed}")
    report = burst("burst-kill", "0x140000000-0x23fffffff", f"kill {seed} {turns}", 400).report
    print(f"{report['early']} times before the first block, {report['cut']} times between two")

    assert report["killed"] == str(turns)
    assert int(report["cut"]) > 0, "never killed in the middle: this shows nothing"
    assert report["bad"] == ""
    assert int(report["seen"]) == 8 + 32 + 64 + 64
    assert (report["end"], report["held"]) == ("online", "offline"), report["log"]
