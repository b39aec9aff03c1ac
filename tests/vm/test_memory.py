# SPDX-License-Identifier: MIT
"""What becomes of guests' memory, counted page by page from outside the machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from safemem.boot import account
from tests.vm import harness
from tests.vm.kit import ALL_ONLINE, HELD, SHELL, START, initrd, kinds, policy_text, simulated

pytestmark = pytest.mark.vm

#: 4 KiB pages in one MiB.
PAGES = 256


@pytest.mark.parametrize("zone", ["", "kernel"])
def test_zone_decides_whether_the_next_live_update_survives(zone: str) -> None:
    """400 MiB preserved through LUO come back from a movable DIMM; from a kernel zone the next kernel never speaks."""
    text = policy_text("online-all-in-zone", extra=f'zone = "{zone}"' if zone else "")
    script = f"""{START}
    if [ "$stage" = 1 ]; then
        decide
        preserve 400
        handover "$CMDLINE"
    fi
    report next alive
    decide
    report retrieved "$(luo retrieve guest 400)"
    """
    result = harness.run(
        f"zone-{zone or 'default'}", initrd(script, text, next_kernel="current"),
        next_kernel="current", timeout=60
    )  # fmt: skip

    assert result.report["luo"] == "preserved"
    assert result.report["zones"] == ("Normal" if zone else "Movable")
    if zone:
        # 7.3.4 hangs, 7.2 resets, both before a word of the next kernel.
        assert result.fate in ("timeout", "reset")
        assert "next" not in result.report
    else:
        assert result.fate == "poweroff"
        assert result.report["retrieved"] == str(400 * PAGES)
        assert simulated(result, text)["facts"]["handover"]["value"] == "accepted"
        assert result.seconds < 45, "too close to the other guest's timeout to tell a hang from a slow boot"


#: Stage 1 fills the DIMM with the pattern and hands over to a kernel that rejects it.
FILL_DIMM = f"""{START}
if [ "$stage" = 1 ]; then
    for n in 32 33 34 35 36 37 38 39; do echo online_movable >/sys/devices/system/memory/memory$n/state; done
    luo hold 1500 >/tmp/held &
    until [ -s /tmp/held ]; do sleep 0.1; done
    report checkpoint 1
    sleep 1
    handover "$CMDLINE $NEXT"
fi
"""


@pytest.mark.parametrize("protected", [True, False], ids=["online-safe", "without-safemem"])
def test_pattern_in_hot_added_memory(tmp_path: Path, protected: bool) -> None:
    """After a rejected handover every page in the DIMM is intact if safemem held it, and lost if nobody did."""
    text = policy_text("online-safe")
    script = FILL_DIMM + ("decide\nfill 500 >/tmp/filled" if protected else "state\nfill 1400 >/tmp/filled")
    script = f"NEXT='{'' if protected else 'memhp_default_state=online'}'\n{script}\nreport filled $(cat /tmp/filled)\n"
    image = (
        initrd(script, text, next_kernel="current")
        if protected
        else harness.image(SHELL + script, next_kernel="current")
    )
    before: list[int] = []
    result = harness.run(
        "pattern-dimm-held" if protected else "pattern-dimm-lost", image,
        kernel_name="old-kho", next_kernel="current", memory=tmp_path,
        checkpoint=lambda _: before.append(harness.count_pattern(tmp_path / "dimm", 1500)),
    )  # fmt: skip
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
    script = f"""{START}
    if [ "$stage" = 1 ]; then
        preserve 256
        guard
        report checkpoint 1
        handover "$CMDLINE {"$crashkernel safemem.guard=$first-$last" if guarded else ""}"
    fi
    decide
    report filled "$(fill 500)"
    """
    before: list[int] = []

    def count(report: dict[str, str]) -> None:
        first, last = map(int, report["guarded"].split("-"))
        before.append(harness.count_pattern(tmp_path / "boot", 256, first, last + 1))

    result = harness.run(
        "guard-kept" if guarded else "guard-none", initrd(script, text, next_kernel="current"),
        kernel_name="old-kho", next_kernel="current", memory=tmp_path, checkpoint=count,
    )  # fmt: skip
    count(result.report)
    print(f"pattern pages in the guard: {before[0]} before, {before[1]} after; {result.report['filled']} MiB used")

    assert result.fate == "poweroff" and result.report["dimm"].split() == [HELD]
    decision = simulated(result, text)
    assert before[0] > 30_000
    if guarded:
        assert decision["facts"]["guard"]["value"] == "held"
        assert result.report["guard"] == str(guarded_bytes(result))
        assert before[1] == before[0]
    else:
        assert decision["facts"]["guard"]["value"] == "none"
        assert before[1] < before[0] // 10


def test_guard_given_back() -> None:
    """`online-all` gives a guard back to the last byte: the machine has the memory it would have without one."""
    text = policy_text("online-all", extra="accept_data_exposure = true")
    totals = []
    for arguments in ("$crashkernel safemem.guard=$first-$last", ""):
        script = f"""{START}
        [ "$stage" = 2 ] || guard
        [ "$stage" = 2 ] || handover "$CMDLINE {arguments}"
        report before "$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)"
        decide
        """
        result = harness.run(
            "guard-given-back" if arguments else "guard-never", initrd(script, text, next_kernel="current"),
            kernel_name="old-kho", next_kernel="current",
        )  # fmt: skip
        assert result.fate == "poweroff" and result.report["returned"] == "0"
        assert result.report["guard"] == "0" and result.report["dimm"].split() == [ALL_ONLINE]
        totals.append(int(result.report["memtotal"]))
        if arguments:
            assert int(result.report["before"]) < totals[0] - guarded_bytes(result) // 1024 + 1024
            steps = [step["op"] for step in simulated(result, text)["plan"]]
            assert "release-guard" in steps
    assert totals[0] == pytest.approx(totals[1], abs=1024)


def test_kdump_keeps_its_part_of_a_guard() -> None:
    """online-all leaves kdump what the policy keeps for it, and a crash kernel loads there; beside a kept guard none loads."""
    for action, kept in (("online-all", 128 << 20), ("online-safe", 0)):
        extra = "accept_data_exposure = true" if action == "online-all" else ""
        text = policy_text(action, extra=extra).replace("format = 1", 'format = 1\nkeep_crashkernel = "128MiB"')
        script = f"""{START}
        [ "$stage" = 2 ] || guard
        [ "$stage" = 2 ] || handover "$CMDLINE $crashkernel safemem.guard=$first-$last"
        decide
        head -c "$(cat /next_size)" "$(disk kernel)" >/next
        report load "$(kexec -s -p /next --command-line=x 2>&1 && echo done)"
        report loaded "$(cat /sys/kernel/kexec_crash_loaded)"
        """
        result = harness.run(
            f"kdump-{action}", initrd(script, text, next_kernel="current"), kernel_name="old-kho", next_kernel="current"
        )

        assert result.fate == "poweroff" and result.report["returned"] == "0"
        assert result.report["guard"] == str(kept or guarded_bytes(result))
        assert result.report["loaded"] == ("1" if kept else "0"), result.report["load"]
        simulated(result, text)


def test_boot_memory_is_taken_offline() -> None:
    """After a rejected handover boot memory goes offline where the kernel can; the record says what sysfs says."""
    text = policy_text("online-safe", extra='boot_memory = "offline"')
    script = f"""{START}
    [ "$stage" = 2 ] || handover "$CMDLINE"
    decide
    report boot "$(blocks 0 7)"
    report filled "$(fill 64)"
    """
    result = harness.run(
        "boot-memory", initrd(script, text, next_kernel="current"), kernel_name="old-kho", next_kernel="current"
    )

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
    script = f"""{START}
    [ "$stage" = 2 ] || guard
    [ "$stage" = 2 ] || handover "$CMDLINE $crashkernel"
    decide
    """
    result = harness.run(
        "guard-foreign", initrd(script, text, next_kernel="current"), kernel_name="old-kho", next_kernel="current"
    )

    assert result.fate == "poweroff"
    assert simulated(result, text)["facts"]["guard"]["value"] == "none"
    assert result.report["guard"] == str(guarded_bytes(result))
