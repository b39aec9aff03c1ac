# SPDX-License-Identifier: MIT
"""The commands themselves in a guest: this machine's folders are shared with it, read-only."""

from __future__ import annotations

import json

import pytest

from tests.vm.harness import Guest, boot, shell
from tests.vm.kit import BLOCK, COMMAND, HELD, PLUG, SHARE, lost, policy_text, span

pytestmark = pytest.mark.vm


def watched(name: str, script: str, text: str, timeout: float) -> Guest:
    """Return a guest with a lost handover, in which `watch` runs and then the script of that name."""
    return lost(
        name, shell("hand-over") + COMMAND + shell("watch") + shell(script), text, files={"policy.toml": text.encode()},
        devices=SHARE, timeout=timeout, checkpoint=lambda _: PLUG,
    )  # fmt: skip


@pytest.mark.parametrize("if_onlined", ["report", "offline"])
def test_watch(if_onlined: str) -> None:
    """Memory that arrives gets what the decision says; a held block that somebody onlines is noticed, and left or reverted."""
    text = policy_text("online-safe", extra=f'if_onlined = "{if_onlined}"', sources='"0x140000000-0x15fffffff"')
    result = boot(watched(f"watch-{if_onlined}", "watch-arrivals", text, 180))
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
    result = boot(watched("watch-lost", "watch-lost", text, 240))
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
    script = shell("guarded", LESS=0) + COMMAND + shell("release-parts")
    result = boot(lost("release", script, policy_text("online-safe"), devices=SHARE, timeout=300))
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
