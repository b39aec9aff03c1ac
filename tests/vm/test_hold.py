# SPDX-License-Identifier: MIT
"""The commands themselves in a guest: this machine's folders are shared with it, read-only."""

from __future__ import annotations

import json

import pytest

from tests.vm import harness
from tests.vm.kit import BLOCK, COMMAND, HELD, PLUG, SAFEMEM, SHARE, initrd, policy_text, span

pytestmark = pytest.mark.vm


def daemon(text: str, script: str) -> str:
    """Return a guest's script: a lost handover, then `watch` as process `$watch`, then `script`."""
    return f"""
    mount -t debugfs d /sys/kernel/debug
    [ "$stage" = 2 ] || handover '{harness.CMDLINE}'
    decide
    {COMMAND}
    mkdir -p /run/etc; cp /policy.toml /run/etc/vm.toml
    watch() {{
        PYTHONDONTWRITEBYTECODE=1 chroot /host {SAFEMEM} watch --policy /run/etc/vm.toml >"$1" 2>&1 &
        watch=$!
        until grep -q watching "$1"; do sleep 0.2; done
    }}
    plug() {{
        report checkpoint 1
        until [ -e /sys/devices/system/memory/memory47/state ]; do sleep 0.1; done
    }}
    watch /tmp/watch
    {script}
    """


@pytest.mark.parametrize("if_onlined", ["report", "offline"])
def test_watch(if_onlined: str) -> None:
    """Memory that arrives gets what the decision says; a held block that somebody onlines is noticed, and left or reverted."""
    text = policy_text("online-safe", extra=f'if_onlined = "{if_onlined}"', sources='"0x140000000-0x15fffffff"')
    script = """
    plug
    until grep -q '"onlined": "512 MiB"' /tmp/watch; do sleep 0.2; done
    report later "$(blocks 40 47)"
    echo online_movable >/sys/devices/system/memory/memory35/state
    report byhand "$(blocks 35 35)"
    until grep -q 'held memory was onlined' /tmp/watch; do sleep 0.2; done
    sleep 2
    report afterwards "$(blocks 35 35)"
    safemem status --format json; report_file status /tmp/out
    kill $watch; wait $watch; report ended $?
    state
    report_file log /tmp/watch
    """
    result = harness.run(
        f"watch-{if_onlined}",
        initrd(daemon(text, script), text, next_kernel="current", files={"policy.toml": text.encode()}),
        kernel_name="old-kho", next_kernel="current", devices=SHARE, timeout=180, checkpoint=lambda _: PLUG,
    )  # fmt: skip
    report = result.report

    assert result.fate == "poweroff", result.serial[-2000:]
    # The safe region of this policy covers the first half of what was plugged.
    assert report["later"].split() == ["online*4", "offline*4"]
    assert report["byhand"].split() == ["online*1"]
    left = if_onlined == "report"
    assert report["afterwards"].split() == ["online*1" if left else "offline*1"]
    assert report["dimm"].split() == (["offline*3", "online*1", "offline*4"] if left else [HELD])
    assert report["ended"] == "0"
    status = json.loads(report["status"])
    assert status["onlined_by_others"] == ([span(35, 35)] if left else [])
    # What was reverted is offline, and not untouched.
    assert [item["range"] for item in status["taken_offline"]] == ([] if left else [span(35, 35)])
    seen = status["watch"]
    assert (seen["incidents"], seen["onlined"], seen["reverted"]) == (1, BLOCK, 0 if left else BLOCK)
    assert (seen["bursts"], seen["applied"]) == (1, 4 * BLOCK)
    (line,) = [line for line in report["log"].splitlines() if '"event": "held memory was onlined"' in line]
    said = json.loads(line)
    assert (said["ranges"], said["if_onlined"]) == ([span(35, 35)], if_onlined)
    # Nobody here is known to do it: not the kernel, which the decision stopped, and no rule of udev.
    assert said["who"].startswith("who did it cannot be known"), said


def test_events_that_are_lost_and_a_restart() -> None:
    """A netlink buffer that overflows while the daemon stands still costs nothing, and a restart counts nothing twice."""
    text = policy_text("online-safe", sources='"0x140000000-0x15fffffff"')
    script = """
    kill -STOP $watch
    n=0
    while [ $n -lt 60000 ]; do echo add; n=$((n + 1)); done >/sys/devices/system/memory/memory32/uevent
    plug
    echo online_movable >/sys/devices/system/memory/memory35/state
    report drops "$(awk 'NR > 1 { sum += $9 } END { print sum }' /proc/net/netlink)"
    report stopped "$(blocks 32 47)"
    kill -CONT $watch
    until grep -q '"onlined": "512 MiB"' /tmp/watch && grep -q 'held memory was onlined' /tmp/watch; do sleep 0.2; done
    report after "$(blocks 32 47)"
    sleep 5
    kill -KILL $watch
    report_file before /run/safemem/watch.json
    watch /tmp/again
    sleep 2
    echo online_movable >/sys/devices/system/memory/memory36/state
    until grep -q 'held memory was onlined' /tmp/again; do sleep 0.2; done
    report_file counts /run/safemem/watch.json
    report_file log /tmp/watch
    report_file again /tmp/again
    """
    result = harness.run(
        "watch-lost", initrd(daemon(text, script), text, next_kernel="current", files={"policy.toml": text.encode()}),
        kernel_name="old-kho", next_kernel="current", devices=SHARE, timeout=240, checkpoint=lambda _: PLUG,
    )  # fmt: skip
    report = result.report

    assert result.fate == "poweroff", result.serial[-2000:]
    assert int(report["drops"]) > 0
    assert report["stopped"].split() == ["offline*3", "online*1", "offline*12"]
    assert "events were lost" in report["log"]
    assert report["after"].split() == ["offline*3", "online*1", "offline*4", "online*4", "offline*4"]
    before, after = (json.loads(report[key]) for key in ("before", "counts"))
    print(f"{report['drops']} events dropped, noticed {before['lost']} times")
    assert before["lost"] >= 1
    assert (before["incidents"], before["onlined"], before["bursts"]) == (1, BLOCK, 1)
    assert (after["incidents"], after["onlined"], after["bursts"]) == (2, 2 * BLOCK, 1)
    assert after["loose"] == [span(35, 36)]


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
