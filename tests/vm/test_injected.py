# SPDX-License-Identifier: MIT
"""Real system calls of the boot program fail, on real kernels: what is decided is the same or stricter.

`tests/test_faults.py` lets every call fail on fake roots; here strace lets those fail that matter most.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from safemem.policy import compiler, load
from tests.vm.harness import HERE, Guest, Result, boot, closure, shell
from tests.vm.kit import ALL_ONLINE, HELD, guest, lost, policy_text

pytestmark = [pytest.mark.vm, pytest.mark.needs("strace")]

_MEMORY = "/sys/devices/system/memory"
_PARAMS = "/sys/kernel/boot_params"
_TYPES = " ".join(f"-P {_PARAMS}/setup_data/{number}/type" for number in range(4))
_RECORD = "/run/safemem/decision.json.new"


class Fault(NamedTuple):
    """System calls that fail: which, how, and on which file."""

    name: str
    words: str  #: for strace

    @property
    def line(self) -> str:
        return f"{self.name} {self.words}"


#: Nothing fails: what the machine would do otherwise.
NONE = Fault("none", "")
LISTING = Fault("listing", f"-P {_PARAMS} -e inject=getdents64:error=EIO")
TYPE = Fault("type", f"{_TYPES} -e inject=openat:error=ENOENT")
CMDLINE = Fault("cmdline", "-P /proc/cmdline -e inject=read:error=EIO")
TREE = Fault("tree", "-P /sys/kernel/debug/kho/in/fdt -e inject=newfstatat:error=EACCES")
IOMEM = Fault("iomem", "-P /proc/iomem -e inject=read:error=EIO")
BLOCK_SIZE = Fault("block-size", f"-P {_MEMORY}/block_size_bytes -e inject=openat:error=EACCES")
#: The first read is the probe's, the second the look after the plan.
STATE = Fault("state", f"-P {_MEMORY}/memory33/state -e inject=read:error=EIO:when=2+")
AUTO_ONLINE = Fault("auto-online", f"-P {_MEMORY}/auto_online_blocks -e inject=write:error=EIO")
ONLINE = Fault("online", f"-P {_MEMORY}/memory33/state -e inject=write:error=EIO")
POLICY = Fault("policy", "-P /usr/lib/safemem/policy.json -e inject=read:error=EIO")
RECORD = Fault("record", f"-P {_RECORD} -e inject=write:error=ENOSPC")
OUTCOME = Fault("outcome", f"-P {_RECORD} -e inject=write:error=ENOSPC:when=2+")


def injected(
    made: Any, name: str, faults: list[Fault], text: str, *, guarded: str = "", before: str = "offline", **more: Any
) -> Guest:
    """Return a guest of `made`, which is `guest` or `lost`, that runs the boot program once with each of the faults.

    `guarded` has it ask for a guard; `before` is the value of auto_online_blocks that the program finds.
    """
    files = {
        **closure("strace", "bin/strace"),
        "traced.sh": (HERE / "guest/traced.sh").read_bytes(),
        **more.pop("files", {}),
    }
    script = shell("injected", FAULTS="\n".join(fault.line for fault in faults), GUARDED=guarded, BEFORE=before)
    made_guest: Guest = made(f"injected-{name}", script, text, files=files, **more)
    return made_guest._replace(cmdline=f"{made_guest.cmdline} printk.devkmsg=on")


def hit(result: Result, fault: Fault) -> int:
    """Return how many calls failed in the run of `fault`."""
    shown = result.serial.partition(f"fault {fault.name}\n")[2]
    return shown.partition("fault ")[0].count("(INJECTED)")


def seen(result: Result, fault: Fault) -> tuple[str, dict[str, Any]]:
    """Return the DIMM's states after a run that let the boot go on, and the record that it left."""
    assert result.report[f"{fault.name}.returned"] == "42"
    document: dict[str, Any] = json.loads(result.report[f"{fault.name}.record"])
    assert document["result"] is not None
    return result.report[f"{fault.name}.dimm"].strip(), document


#: For each state the guest that sees it, and the faults. Without a kexec, QEMU passes no setup_data.
_EVIDENCE: dict[str, tuple[Any, list[Fault]]] = {
    "none": (guest, [LISTING, CMDLINE]),
    "accepted": (functools.partial(guest, next_kernel="current"), [LISTING, TYPE, TREE]),
    "rejected": (lost, [LISTING, TYPE]),
}


@pytest.mark.parametrize("state", _EVIDENCE)
def test_evidence_that_cannot_be_read_is_no_clean_boot(state: str) -> None:
    """While what was handed over, or whether, cannot be read, nothing comes online, whatever would undisturbed."""
    made, faults = _EVIDENCE[state]
    result = boot(injected(made, state, [*faults, NONE], policy_text("online-safe")))

    assert result.fate == "poweroff"
    for fault in faults:
        dimm, document = seen(result, fault)
        assert hit(result, fault) > 0, fault
        assert document["decision"]["facts"]["handover"]["value"] == "unknown", fault
        assert (dimm, result.report[f"{fault.name}.auto_online"]) == (HELD, "offline"), fault
    dimm, document = seen(result, NONE)
    assert document["decision"]["facts"]["handover"]["value"] == state
    assert (dimm, document["result"]["complete"]) == (HELD if state == "rejected" else ALL_ONLINE, True)


def test_a_guard_is_kept_and_a_crash_kernel_forbidden() -> None:
    """With a guard of which nobody can tell, or whose memory cannot be looked at, all is held as it would be, and the record owns up."""
    faults = [IOMEM, CMDLINE, TYPE, BLOCK_SIZE, STATE]
    result = boot(injected(lost, "guard", [*faults, NONE], policy_text("online-safe"), guarded="yes"))

    assert result.fate == "poweroff"
    assert result.report["limit"] != "0"
    first, last = map(int, result.report["guarded"].split("-"))
    for fault in (*faults, NONE):
        dimm, document = seen(result, fault)
        assert (hit(result, fault) > 0) == (fault is not NONE), fault
        assert (dimm, result.report[f"{fault.name}.auto_online"]) == (HELD, "offline"), fault
        # After the first run, nothing can raise the limit again: it stands for itself.
        assert (result.report[f"{fault.name}.guard"], result.report[f"{fault.name}.limit"]) == (str(last + 1 - first), "0"), fault  # fmt: skip
        assert document["decision"]["action"] == "online-safe"
        found = document["result"]
        owned = {IOMEM: "guard-unknown", CMDLINE: "cmdline-unreadable", BLOCK_SIZE: "blocks-unreadable", STATE: "not-looked-at"}  # fmt: skip
        assert owned.get(fault, "") in ("", *found["problem_codes"]), fault
        assert found["complete"] == (fault in (NONE, TYPE)), fault
    values = {fault: seen(result, fault)[1]["decision"]["facts"]["handover"]["value"] for fault in (TYPE, NONE)}
    assert values == {TYPE: "unknown", NONE: "rejected"}


#: Of a boot without a handover: hold, and end it over any shortfall.
_HOLDS = policy_text("online-safe", extra='on_shortfall = "panic"').replace('["none", "accepted"]', '"orphaned"')
_PANIC = policy_text("panic").replace('["none", "accepted"]', '"orphaned"')
#: All memory, or the boot ends.
_WHOLE = policy_text("online-all-in-zone", extra='on_shortfall = "panic"')


@pytest.mark.parametrize(
    ("fault", "text", "why"),
    [
        (BLOCK_SIZE, _HOLDS, "memory blocks cannot be read"),
        (STATE, _HOLDS, "whether it is offline cannot be read"),
        (AUTO_ONLINE, _HOLDS, "auto_online_blocks could not be set to offline"),
        (ONLINE, _WHOLE, "memory that should be in use is not"),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_a_shortfall_ends_the_boot(fault: Fault, text: str, why: str) -> None:
    """What could not be read, written or looked at ends the boot where the policy says that a shortfall does."""
    # A write that fails is no shortfall where the value is there already.
    before = "online" if fault is AUTO_ONLINE else "offline"
    result = boot(injected(guest, f"shortfall-{fault.name}", [fault], text, before=before))

    assert result.fate == "panic"
    assert f"{fault.name}.returned" not in result.report
    assert hit(result, fault) > 0
    assert any("safemem: panic: " in line and why in line for line in result.serial.splitlines()), why


def test_a_stricter_policy_counts_though_nobody_can_read_that_it_was_named() -> None:
    """With /proc/cmdline unreadable, the policy that the command line names ends the boot as it would have."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "strict.toml").write_text(_PANIC)
        files = {"usr/lib/safemem/policies/strict.json": compiler.dump(load.read(Path(folder) / "strict.toml"))}
    result = boot(injected(guest, "named", [CMDLINE], policy_text(), files=files, cmdline="safemem.policy=strict"))

    assert result.fate == "panic" and hit(result, CMDLINE) > 0
    assert "cmdline.returned" not in result.report and "cmdline.left" not in result.report


@pytest.mark.parametrize("fault", [POLICY, RECORD, OUTCOME], ids=lambda fault: fault.name)
def test_without_policy_or_record_the_boot_ends(fault: Fault) -> None:
    """The program cannot read its policy, or say what it has decided or done: `on_failure`, here a reboot."""
    result = boot(injected(guest, f"ends-{fault.name}", [fault], policy_text()))

    assert result.fate == "reset" and hit(result, fault) > 0
    assert f"{fault.name}.returned" not in result.report
    # Nothing is onlined before the decision is on record.
    assert result.report[f"{fault.name}.left"].strip() == (ALL_ONLINE if fault is OUTCOME else HELD)
    assert "safemem: reboot: no decision, says the test" in result.serial
