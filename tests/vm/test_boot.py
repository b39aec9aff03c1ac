# SPDX-License-Identifier: MIT
"""From power-on to decision: every state of a handover on real kernels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from safemem.boot import account
from tests.vm.harness import boot, shell
from tests.vm.kit import (
    ALL_ONLINE,
    BLOCK,
    DIMM,
    HELD,
    decided,
    efi,
    guest,
    lost,
    policy_text,
    simulated,
    snapshot,
    span,
)

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("zone", ["", "movable", "kernel", "auto"])
def test_cold_boot(zone: str) -> None:
    """No handover: every block comes online, in the zone asked for; movable when none was."""
    text = policy_text("online-all-in-zone", extra=f'zone = "{zone}"' if zone else "")
    result = boot(guest(f"cold-{zone or 'default'}", text=text))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    assert result.report["dimm"].split() == [ALL_ONLINE]
    assert result.report["zones"] == {"": "Movable", "movable": "Movable", "kernel": "Normal", "auto": "Normal"}[zone]
    decision = simulated(result, text)
    assert decision["facts"]["handover"]["value"] == "none"
    assert decision["facts"]["auto_online"]["value"] == "offline"
    assert decision["plan"][-1]["range"] == span(32, 39)


def test_accepted() -> None:
    """A kexec between equal kernels: accepted, and the predecessor's particulars are right."""
    text = policy_text("panic")
    result = boot(guest("accepted", shell("hand-over"), text, next_kernel="current"))

    assert result.fate == "poweroff" and result.report["dimm"].split() == [ALL_ONLINE]
    facts = {name: fact["value"] for name, fact in simulated(result, text)["facts"].items()}
    assert facts["handover"] == "accepted"
    assert facts["previous_kernel"] == result.report["release"]
    assert facts["kexec_count"] == 1
    before = [pair.split(",") for pair in result.report["scratch"].split()]
    areas = sorted((int(start, 16), int(start, 16) + int(size, 16)) for start, size in before if int(size, 16))
    assert areas and areas == [tuple(area) for area in snapshot(result).scratch]


@pytest.mark.parametrize(
    ("action", "fate"), [("online-safe", "poweroff"), ("panic", "panic"), ("reboot", "reset"), ("halt", "halted")]
)
def test_rejected(action: str, fate: str) -> None:
    """A handover in another version of the format: the policy's action, and no block online."""
    text = policy_text(action)
    result = boot(lost(f"rejected-{action}", shell("hand-over"), text))

    assert result.fate == fate
    assert simulated(result, text)["facts"]["handover"]["value"] == "rejected"
    assert "safemem: " + action + ": handover lost, says the test" in result.serial
    if action == "online-safe":
        assert result.report["dimm"].split() == [HELD]
        assert result.report["auto_online"] == "offline"
        assert result.report["returned"] == "0"
    else:
        assert "returned" not in result.report


@pytest.mark.parametrize("action", ["panic", "online-safe"])
def test_a_quiet_console(action: str) -> None:
    """With `quiet` too: what was decided and why; for the panic, its reason next to the kernel's line, which names us."""
    text = policy_text(action, extra="" if action == "panic" else 'enter = "maintenance"')
    result = boot(lost(f"quiet-{action}", shell("hand-over", NEXT="quiet"), text))

    # A kernel that is quiet does not show its own first line: what ours said is what is left.
    said = result.serial.rpartition("kexec_core: Starting new kernel")[2].splitlines()
    words = [line.partition("safemem: ")[2] for line in said if "safemem: " in line]
    what = "panic" if action == "panic" else "online-safe + maintenance"
    assert words[0] == f"{what}: handover lost, says the test (rule `otherwise`, policy `vm`)"
    assert words[1].startswith("handover is rejected: ")
    if action == "online-safe":
        assert result.fate == "poweroff" and len(words) == 2
        return
    assert result.fate == "panic"
    end = next(
        number for number, line in enumerate(said) if "Kernel panic - not syncing: sysrq triggered crash" in line
    )
    assert [line.partition("safemem: ")[2] for line in said[end - 3 : end]] == [
        "end action=panic code=decided", "panic: handover lost, says the test", ""
    ]  # fmt: skip
    assert "sysrq: Trigger a crash" in said[end - 1] and "Comm: safemem " in said[end + 1]


@pytest.mark.parametrize(
    ("state", "next_kernel", "arguments"),
    [("orphaned", "current", "kho=off"), ("unsupported", "no-kho", ""), ("unknown", "no-debugfs", "")],
)
def test_not_accepted(state: str, next_kernel: str, arguments: str) -> None:
    """The other ways to lose a handover, and not knowing: nothing is onlined."""
    text = policy_text("online-safe")
    result = boot(guest(state, shell("hand-over", NEXT=arguments), text, next_kernel=next_kernel))

    assert result.fate == "poweroff" and result.report["dimm"].split() == [HELD]
    decision = simulated(result, text)
    assert decision["facts"]["handover"]["value"] == state
    assert decision["facts"]["handover"]["reason"]


@pytest.mark.parametrize(
    ("state", "kernel", "arguments"),
    [("ready", "current", ""), ("off", "current", "liveupdate=off"), ("missing", "no-kho", "")],
)
def test_luo(state: str, kernel: str, arguments: str) -> None:
    """LUO on, off, and asked for in vain."""
    text = policy_text("panic")
    result = boot(guest(f"luo-{state}", text=text, kernel=kernel, cmdline=arguments))

    assert result.fate == "poweroff"
    assert simulated(result, text)["facts"]["luo"]["value"] == state


#: Holds twice, then gives up.
BOUNDED = policy_text("online-safe").replace(
    "[otherwise]", '[[rule]]\nname = "enough"\nwhen = { boot_attempts = ">=2" }\naction = "halt"\n[otherwise]'
).replace('["none", "accepted"]', '"orphaned"')  # fmt: skip


def test_kexecs_are_counted_on_the_command_line() -> None:
    """Without firmware to keep it, handover-args carries the count of boots in a row that did not online all memory."""
    result = boot(guest("attempts-cmdline", shell("attempts"), BOUNDED, next_kernel="current"))

    assert result.fate == "halted"
    assert result.report["arguments"].endswith("safemem.attempts=1")
    assert result.report["arguments1"].endswith("safemem.attempts=2")
    assert "safemem: halt: handover accepted (rule `enough`, policy `vm`)" in result.serial


@pytest.mark.parametrize(("state", "kernel"), [("accepted", "current"), ("rejected", "old-kho")])
def test_under_efi(tmp_path: Path, state: str, kernel: str) -> None:
    """Where firmware starts the kernel by its EFI stub, a kexec tells the same."""
    text = policy_text("online-safe")
    devices = efi(tmp_path)
    result = boot(
        guest(f"efi-{state}", shell("hand-over"), text, kernel=kernel, next_kernel="current", devices=devices)
    )

    assert result.fate == "poweroff" and simulated(result, text)["facts"]["handover"]["value"] == state
    assert result.report["dimm"].split() == [ALL_ONLINE if state == "accepted" else HELD]


def test_boots_are_counted_in_efi_variables(tmp_path: Path) -> None:
    """Over resets, real firmware keeps the count: one reboot, then the policy's bound; a boot with all memory clears it."""
    flash = efi(tmp_path)
    rule = '[[rule]]\nname = "again"\nwhen = { boot_attempts = "<1" }\naction = "reboot"\n'
    text = (
        policy_text("online-safe")
        .replace("[otherwise]", f"{rule}[otherwise]")
        .replace('["none", "accepted"]', '"orphaned"')
    )
    well = text.replace('"orphaned"', '"none"')
    fates = []
    for number, policy in enumerate((text, text, well, text)):
        result = boot(guest(f"attempts-efi-{number}", text=policy, devices=flash))
        fates.append(result.fate)
        if result.fate == "poweroff":
            assert snapshot(result).facts["handover"].value == "none", result.serial[-2000:]
        if number == 1:
            fact = simulated(result, policy)["facts"]["boot_attempts"]
            assert (fact["value"], "efivars" in fact["source"]) == (1, True)
    assert fates == ["reset", "poweroff", "poweroff", "reset"]


def test_safe_region_from_the_command_line() -> None:
    """Of a region that cuts through two blocks, exactly the blocks that lie wholly inside come online."""
    text = policy_text("online-safe")
    region = f"safemem.safe={DIMM + BLOCK // 2:#x}-{DIMM + 4 * BLOCK - 2:#x}"
    result = boot(lost("safe-region", shell("hand-over", NEXT=region), text))

    assert result.fate == "poweroff"
    assert result.report["dimm"].split() == ["offline*1", "online*2", "offline*5"]
    decision = simulated(result, text)
    assert decision["safe_region"]["source"] == "cmdline"
    assert [step["range"] for step in decision["plan"] if step["op"] == "online"] == [span(33, 34)]


def test_memory_by_driver() -> None:
    """`[[memory]]` holds what virtio-mem plugged and lets the DIMM beside it come online."""
    text = policy_text("panic") + '[[memory]]\ndriver = "virtio-mem"\nhold = true\n'
    devices = (
        "-object", "memory-backend-ram,id=plug,size=1G",
        "-device", "virtio-mem-pci,id=vm0,memdev=plug,requested-size=512M,memaddr=0x140000000",
    )  # fmt: skip
    result = boot(guest("virtio-mem", 'decide; report plugged "$(blocks 40 200)"', text, devices=devices))

    assert result.fate == "poweroff"
    assert result.report["dimm"].split() == [ALL_ONLINE]
    assert result.report["plugged"].split() == ["offline*4"]
    drivers = {block.driver: block.last - block.first + 1 for block in snapshot(result).blocks if block.first >= 32}
    assert drivers == {"dimm": 8, "virtio-mem": 4}
    simulated(result, text)


def test_decided_record_is_complete() -> None:
    """The record says what was onlined, in bytes, and the log does too."""
    result = boot(guest("record", text=policy_text("panic")))

    assert decided(result)["rule"] == "whole"
    assert '"bytes_onlined":1073741824,"bytes_wanted":1073741824' in result.report["record"]
    assert "safemem: done: 1 GiB of 1 GiB onlined" in result.serial
    # All of it is in ordinary use, and nothing more is to be said of a clean boot.
    totals = json.loads(result.report["record"])["totals"]
    assert totals == {**dict.fromkeys(account.KINDS, 0), "in_use": 2 << 30}
    assert re.search(r"safemem: 2 GiB in use \(100 %\)\s*$", result.serial, re.MULTILINE)


def test_the_old_system_call_hands_nothing_over() -> None:
    """kexec_load(2) leaves no mark: the next boot is a cold one to everybody, so `doctor` finds who would use it."""
    result = boot(guest("old-syscall", shell("old-syscall"), policy_text(), next_kernel="current"))

    assert result.fate == "poweroff" and result.report["luo"] == "preserved"
    assert decided(result)["facts"]["handover"]["value"] == "none"
    assert result.report["retrieved"] != str(16 * 256)


@pytest.mark.parametrize(("action", "fate"), [("online-safe", "poweroff"), ("panic", "panic")])
def test_a_guard_without_a_handover_is_a_lost_one(action: str, fate: str) -> None:
    """The same, with a guard on the command line: a handover was to come. The guard is kept, and nothing onlined.

    kexec-tools lists hot-added memory as the machine's own: in the next kernel it is boot memory, in use from the start.
    """
    script = shell("old-syscall", GUARDED="yes")
    result = boot(guest(f"lost-{action}", script, policy_text(action), next_kernel="current"))

    assert result.fate == fate
    assert "handover is lost: safemem.guard= is for a kexec with a handover" in result.serial
    if action == "online-safe":
        decision = decided(result)
        assert (decision["facts"]["handover"]["value"], decision["facts"]["guard"]["value"]) == ("lost", "full")
        assert {step["op"] for step in decision["plan"]} == {"keep-guard", "keep"}
        first, last = map(int, result.report["guarded"].split("-"))
        assert int(result.report["guard"]) == last + 1 - first
        (late,) = [text for text in decision["warnings"] if "were online before the decision" in text]
        assert result.report["dimm"].split() == [ALL_ONLINE] and "0x100000000-0x13fffffff" in late
