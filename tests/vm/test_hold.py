# SPDX-License-Identifier: MIT
"""The commands themselves in a guest: this machine's folders are shared with it, read-only."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.vm import harness
from tests.vm.guests import HELD, initrd, policy_text
from tests.vm.test_udev import PLUG

pytestmark = pytest.mark.vm

SHARE = ("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap")
#: The kernel's file systems over those of the share, then the command as an operator would call it.
COMMAND = f"""
mkdir -p /host
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose host /host
for folder in proc sys run dev; do mount --bind /$folder /host/$folder; done
safemem() {{ PYTHONDONTWRITEBYTECODE=1 chroot /host {Path(sys.executable).parent}/safemem "$@" >/tmp/out 2>&1; code=$?; }}
"""


def test_watch() -> None:
    """Memory that arrives after the decision gets what `[[memory]]` says; what somebody onlines is taken off again."""
    text = policy_text("online-safe", extra='boot_memory = "offline"', sources='"0x140000000-0x15fffffff"')
    script = f"""
    mount -t debugfs d /sys/kernel/debug
    [ "$stage" = 2 ] || handover '{harness.CMDLINE}'
    decide
    {COMMAND}
    mkdir -p /run/etc; cp /policy.toml /run/etc/vm.toml
    PYTHONDONTWRITEBYTECODE=1 chroot /host {Path(sys.executable).parent}/safemem watch --policy /run/etc/vm.toml >/tmp/watch 2>&1 &
    until grep -q watching /tmp/watch; do sleep 0.2; done
    report checkpoint 1
    until [ -e /sys/devices/system/memory/memory47/state ]; do sleep 0.1; done
    until grep -q '"onlined": "512 MiB"' /tmp/watch; do sleep 0.2; done
    report later "$(blocks 40 47)"
    echo online_movable >/sys/devices/system/memory/memory35/state
    report byhand "$(blocks 35 35)"
    until grep -q '"taken_offline": "128 MiB"' /tmp/watch; do sleep 0.2; done
    kill %1 2>/dev/null; kill $(pidof safemem python3) 2>/dev/null; sleep 1
    state
    report_file log /tmp/watch
    """
    result = harness.run(
        "watch",
        initrd(script, text, next_kernel="current", files={"policy.toml": text.encode()}),
        kernel_name="old-kho", next_kernel="current", devices=SHARE, timeout=120, checkpoint=lambda _: PLUG,
    )  # fmt: skip
    report = result.report

    assert result.fate == "poweroff", result.serial[-2000:]
    # The safe region of this policy covers the first half of what was plugged.
    assert report["later"].split() == ["online*4", "offline*4"]
    assert report["byhand"].split() == ["online*1"]
    assert report["dimm"].split() == [HELD]
    assert '"event": "held memory was onlined"' in report["log"]


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
