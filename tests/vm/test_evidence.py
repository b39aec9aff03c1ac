# SPDX-License-Identifier: MIT
"""What is left of a boot that safemem ended, read in the next one: ramoops in memory that outlives the reset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vm import harness
from tests.vm.kit import COMMAND, RAMOOPS, SHARE, initrd, policy_text

pytestmark = pytest.mark.vm


def test_a_panic_is_found_in_the_next_boot(tmp_path: Path) -> None:
    """The reason of a panic after a lost handover outlives the reset, and `status --previous` shows it."""
    script = f"""
    mount -t debugfs d /sys/kernel/debug
    if [ "$stage" = 1 ]; then handover '{harness.CMDLINE} {RAMOOPS}'; fi
    if [ "$stage" = 2 ]; then decide; poweroff -f; fi
    {COMMAND}
    mount -t pstore pstore /host/sys/fs/pstore
    report files "$(ls /host/sys/fs/pstore | tr '\\n' ' ')"
    rm -rf /run/safemem
    safemem status; report now $code
    safemem status --previous; report previous $code; report_file text /tmp/out
    safemem status --previous --format json; report_file json /tmp/out
    """
    archive = initrd(script, policy_text("panic"), next_kernel="current")
    first = harness.run(
        "evidence-1", archive, cmdline=RAMOOPS, kernel_name="old-kho", next_kernel="current",
        memory=tmp_path, timeout=240, devices=SHARE, dimm_mib=0,
    )  # fmt: skip
    assert first.fate == "panic", first.serial[-2000:]

    second = harness.run(
        "evidence-2", archive, cmdline=f"{RAMOOPS} stage=3", next_kernel="current",
        memory=tmp_path, timeout=240, devices=SHARE, dimm_mib=0,
    )  # fmt: skip
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
