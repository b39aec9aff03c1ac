# SPDX-License-Identifier: MIT
"""The commands themselves in a guest: this machine's folders are shared with it, read-only."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.vm import harness
from tests.vm.guests import HELD, initrd, policy_text

pytestmark = pytest.mark.vm

SHARE = ("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap")
#: The kernel's file systems over those of the share, then the command as an operator would call it.
COMMAND = f"""
mkdir -p /host
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose host /host
for folder in proc sys run dev; do mount --bind /$folder /host/$folder; done
safemem() {{ PYTHONDONTWRITEBYTECODE=1 chroot /host {Path(sys.executable).parent}/safemem "$@" >/tmp/out 2>&1; code=$?; }}
"""


def test_release_in_part_then_whole() -> None:
    """A hold and a guard after a lost handover: status, one half released, then the rest and the guard."""
    script = f"""
    mount -t debugfs d /sys/kernel/debug
    CMDLINE='{harness.CMDLINE}'
    [ "$stage" = 2 ] || guard
    [ "$stage" = 2 ] || handover "$CMDLINE $crashkernel safemem.guard=$first-$last"
    decide
    {COMMAND}
    safemem status --format json; report status $code; report_file before /tmp/out
    safemem release 0x100000000-0x11fffffff --reason "first half"; report half $code; report halves "$(blocks 32 39)"
    safemem status; report between $code; report_file between_text /tmp/out
    safemem release --reason "the rest"; report rest $code; report_file said /tmp/out
    safemem status; report after $code; report_file after_text /tmp/out
    state
    """
    result = harness.run(
        "release", initrd(script, policy_text("online-safe"), next_kernel="current"),
        kernel_name="old-kho", next_kernel="current", devices=SHARE, timeout=300,
    )  # fmt: skip
    report = result.report

    assert result.fate == "poweroff"
    before = json.loads(report["before"])
    assert report["status"] == "4" and before["held"][0]["bytes"] == 1 << 30 and before["guard"]
    assert report["half"] == "0" and report["halves"].split() == ["online*4", "offline*4"]
    assert report["between"] == "4" and "first half" in report["between_text"]
    assert report["rest"] == "0", report["said"]
    assert report["dimm"].split() == ["online*8"] != [HELD]
    # With so little memory left KHO does not start, so no zone is better than another for the next live update.
    assert report["zones"] == "Normal"
    assert report["guard"] == "0"
    assert report["after"] == "0", report["after_text"]
