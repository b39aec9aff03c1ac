# SPDX-License-Identifier: MIT
"""What is left of a boot that safemem ended, read in the next one: ramoops in memory that outlives the reset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vm.harness import boot, shell
from tests.vm.kit import COMMAND, RAMOOPS, SHARE, lost, policy_text

pytestmark = pytest.mark.vm


def test_a_panic_is_found_in_the_next_boot(tmp_path: Path) -> None:
    """The reason of a panic after a lost handover outlives the reset, and `status --previous` shows it."""
    script = shell("evidence", RAMOOPS=RAMOOPS) + COMMAND + shell("evidence-next")
    crashing = lost(
        "evidence-1", script, policy_text("panic"),
        cmdline=RAMOOPS, memory=tmp_path, timeout=240, devices=SHARE, dimm_mib=0,
    )  # fmt: skip
    first = boot(crashing)
    assert first.fate == "panic", first.serial[-2000:]

    second = boot(crashing._replace(name="evidence-2", kernel="current", cmdline=f"{RAMOOPS} stage=3"))
    report = second.report
    assert second.fate == "poweroff", second.serial[-2000:]
    assert "dmesg-ramoops-0" in report["files"] and "console-ramoops-0" in report["files"]
    assert (report["now"], report["previous"]) == ("6", "5"), report
    lines = report["text"].splitlines()
    assert lines[0] == "panic  handover lost, says the test"
    assert "said      panic: handover lost, says the test (rule `otherwise`, policy `vm`)" in lines
    assert any(line.startswith("said      handover is rejected: ") for line in lines)
    ending = json.loads(report["json"])["ending"]
    assert ending["file"] == "/sys/fs/pstore/dmesg-ramoops-0"
