# SPDX-License-Identifier: MIT
"""What becomes of guests' memory, counted page by page from outside the machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from safemem.boot import account
from tests.vm import harness
from tests.vm.harness import boot, shell
from tests.vm.kit import ALL_ONLINE, HELD, guest, kinds, lost, policy_text, simulated

pytestmark = pytest.mark.vm

#: 4 KiB pages in one MiB.
PAGES = 256


def test_zone_decides_whether_the_next_live_update_survives() -> None:
    """400 MiB preserved through LUO come back from a movable DIMM; from a kernel zone the next kernel never speaks."""
    text = policy_text("online-all-in-zone")
    good = boot(guest("zone-default", shell("zone"), text, next_kernel="current"))
    assert (good.report["luo"], good.report["zones"]) == ("preserved", "Movable")
    assert good.fate == "poweroff"
    assert good.report["retrieved"] == str(400 * PAGES)
    assert simulated(good, text)["facts"]["handover"]["value"] == "accepted"

    # A hang is told from a slow boot by the time that the whole of the other guest took.
    text = policy_text("online-all-in-zone", extra='zone = "kernel"')
    bad = boot(guest("zone-kernel", shell("zone"), text, next_kernel="current", timeout=10 + good.seconds, patience=2))
    assert (bad.report["luo"], bad.report["zones"]) == ("preserved", "Normal")
    # 7.3.4 hangs, 7.2 resets, both before a word of the next kernel.
    assert bad.fate in ("timeout", "reset")
    assert "next" not in bad.report


@pytest.mark.parametrize("protected", [True, False], ids=["online-safe", "without-safemem"])
def test_pattern_in_hot_added_memory(tmp_path: Path, protected: bool) -> None:
    """After a rejected handover every page in the DIMM is intact if safemem held it, and lost if nobody did."""
    text = policy_text("online-safe")
    before: list[int] = []
    options: dict[str, Any] = {
        "memory": tmp_path, "checkpoint": lambda _: before.append(harness.count_pattern(tmp_path / "dimm", 1500))
    }  # fmt: skip
    if protected:
        result = boot(lost("pattern-held", shell("fill-dimm", NEXT="", THEN="decide", MIB=500), text, **options))
    else:
        script = shell("fill-dimm", NEXT="memhp_default_state=online", THEN="state", MIB=1400)
        result = boot(lost("pattern-lost", script, **options))
    after = harness.count_pattern(tmp_path / "dimm", 1500)
    print(f"pattern pages in the DIMM: {before[0]} before, {after} after; {result.report['filled']} MiB used")

    assert result.fate == "poweroff"
    assert before[0] > 200_000
    if protected:
        assert result.report["dimm"].split() == [HELD]
        assert after == before[0]
        assert simulated(result, text)["facts"]["handover"]["value"] == "rejected"
    else:
        assert result.report["dimm"].split() == [ALL_ONLINE]
        assert after < before[0] // 10


def guarded_bytes(result: harness.Result) -> int:
    """Return the size of the guard that the guest asked for."""
    first, last = map(int, result.report["guarded"].split("-"))
    return last + 1 - first


@pytest.mark.parametrize("guarded", [True, False], ids=["guard", "no-guard"])
def test_guard_keeps_boot_memory(tmp_path: Path, guarded: bool) -> None:
    """A guard that online-safe keeps holds every page of boot memory inside it; without one, nearly all is lost."""
    text = policy_text("online-safe")
    before: list[int] = []

    def count(report: dict[str, str]) -> None:
        first, last = map(int, report["guarded"].split("-"))
        before.append(harness.count_pattern(tmp_path / "boot", 256, first, last + 1))

    name, script = ("guard-kept", shell("guard-kept", GUARDED="yes")) if guarded else ("guard-none", shell("guard-kept", GUARDED=""))  # fmt: skip
    result = boot(lost(name, script, text, memory=tmp_path, checkpoint=count))
    count(result.report)
    print(f"pattern pages in the guard: {before[0]} before, {before[1]} after; {result.report['filled']} MiB used")

    assert result.fate == "poweroff" and result.report["dimm"].split() == [HELD]
    decision = simulated(result, text)
    assert before[0] > 30_000
    if guarded:
        assert decision["facts"]["guard"]["value"] == "full"
        assert result.report["guard"] == str(guarded_bytes(result))
        assert before[1] == before[0]
    else:
        assert decision["facts"]["guard"]["value"] == "none"
        assert before[1] < before[0] // 10


def test_guard_given_back() -> None:
    """`online-all` gives a guard back to the last byte: the machine has the memory it would have without one."""
    text = policy_text("online-all", extra="accept_data_exposure = true")
    totals = []
    for name, script in (("guard-given-back", shell("guarded", LESS=0)), ("guard-never", shell("hand-over"))):
        result = boot(lost(name, script, text))
        assert result.fate == "poweroff" and result.report["returned"] == "0"
        assert result.report["guard"] == "0" and result.report["dimm"].split() == [ALL_ONLINE]
        totals.append(int(result.report["memtotal"]))
        if "before" in result.report:
            assert int(result.report["before"]) < totals[0] - guarded_bytes(result) // 1024 + 1024
            steps = [step["op"] for step in simulated(result, text)["plan"]]
            assert "release-guard" in steps
    assert totals[0] == pytest.approx(totals[1], abs=1024)


def test_kdump_keeps_its_part_of_a_guard() -> None:
    """online-all leaves kdump what the policy keeps for it, and a crash kernel loads there; beside a kept guard none loads."""
    for action, kept in (("online-all", 128 << 20), ("online-safe", 0)):
        extra = "accept_data_exposure = true" if action == "online-all" else ""
        text = policy_text(action, extra=extra).replace("format = 1", 'format = 1\nkeep_crashkernel = "128MiB"')
        result = boot(lost(f"kdump-{action}", shell("kdump"), text))

        assert result.fate == "poweroff" and result.report["returned"] == "0"
        assert result.report["guard"] == str(kept or guarded_bytes(result))
        assert result.report["loaded"] == ("1" if kept else "0"), result.report["load"]
        simulated(result, text)


def test_boot_memory_is_taken_offline() -> None:
    """After a rejected handover boot memory goes offline where the kernel can; the record says what sysfs says."""
    text = policy_text("online-safe", extra='boot_memory = "offline"')
    result = boot(lost("boot-memory", shell("lost", MIB=0, FILL=64), text))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    simulated(result, text)
    document = json.loads(result.report["record"])
    outcome = document["result"]
    offline = sum(int(run.split("*")[1]) for run in result.report["boot"].split() if run.startswith("offline"))
    assert offline >= 1
    assert outcome["bytes_quarantined"] == offline << 27
    assert any("could not be taken offline" in text for text in outcome["problems"])
    assert result.report["dimm"].split() == [HELD]
    assert int(result.report["filled"]) == 64
    # Range by range, the account says what sysfs says.
    states = [run.split("*") for run in result.report["boot"].split()]
    shown = [state for state, count in states for _ in range(int(count))]
    assert kinds(document["account"], range(8)) == [
        {"quarantined"} if state == "offline" else {"exposed"} for state in shown
    ]
    assert kinds(document["account"], range(32, 40)) == [{"held"}] * 8
    for item in document["account"]:
        if item["kind"] == "exposed":
            assert re.match("unmovable|hole|zone none|kernel text or data|timeout|below the floor", item["why"])
        if item["kind"] == "quarantined":
            assert 0 < item["seconds_in_use"] < 120
    assert document["totals"]["quarantined"] == offline << 27
    assert f"safemem: {account.totals_text(document['totals'])}" in result.serial
    print(f"{offline} of 8 boot blocks taken offline: {outcome['problems']}")


def test_a_foreign_crash_kernel_is_left_alone() -> None:
    """Without `safemem.guard=` a crash kernel reservation is kdump's, and stays whatever is decided."""
    text = policy_text("online-all", extra="accept_data_exposure = true")
    result = boot(lost("guard-foreign", shell("guarded", LESS=""), text))

    assert result.fate == "poweroff"
    assert simulated(result, text)["facts"]["guard"]["value"] == "none"
    assert result.report["guard"] == str(guarded_bytes(result))
