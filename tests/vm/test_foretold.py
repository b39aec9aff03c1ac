# SPDX-License-Identifier: MIT
"""A policy as an operator wrote it, on two nodes: what the desk says of each boot is what the guest does.

Every other guest that reports a capture is compared in the same way (`kit.foretold`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safemem.cli import main
from tests.vm.harness import GIB, boot
from tests.vm.kit import foretold, guest, lost

pytestmark = pytest.mark.vm

TEXT = (Path(__file__).parent.parent / "policies/two-node.toml").read_text()
#: The same with a limit that can be met.
MILD = TEXT.replace('exposed_max = "1%"', 'exposed_max = "60%"')
#: 1 GiB on node 1, beside the 512 MiB on node 0.
DIMM = ("-object", "memory-backend-ram,id=second,size=1G", "-device", "pc-dimm,id=dimm1,memdev=second,node=1")
TWO: dict[str, Any] = {"boot_mib": 2 * GIB, "nodes": (GIB, GIB), "dimm_mib": 512, "devices": DIMM}
#: Hands over with what `handover-args` prints, guard included; `decide` is the next kernel's.
HANDS_OVER = """
mount -t debugfs d /sys/kernel/debug
if [ "$STAGE" = 1 ]; then arguments; handover "$CMDLINE $ARGUMENTS"; fi
decide
report all "$(all_blocks)"
"""
WITHOUT = HANDS_OVER.replace(" $ARGUMENTS", "")


def test_the_policy_is_proved() -> None:
    """Before anything boots."""
    from click.testing import CliRunner

    result = CliRunner().invoke(
        main, ["check", "--strict", str(Path(__file__).parent.parent / "policies/two-node.toml")]
    )
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("name", "script"), [("without-guard", WITHOUT), ("with-guard", HANDS_OVER)])
def test_rejected_beyond_the_limit(name: str, script: str) -> None:
    """One percent cannot be met beside what the kernel runs in: read at the desk, seen on the console."""
    result = boot(lost(f"two-node-{name}", script, TEXT, **TWO))
    outcome = foretold(result, TEXT)

    assert result.fate == "panic"
    assert (outcome["ends"], outcome["sure"]) == ("panic", True)
    assert "and the policy allows 1%, 35.8 MiB" in outcome["shortfall"]
    assert (
        "safemem: online-safe + maintenance: handover lost: node 1 is held (rule `rejected`, policy `two-node`)"
        in result.serial
    )


def test_rejected_within_the_limit() -> None:
    """Node 1 is held, its boot memory as far as it goes and its DIMM; the record says it as the desk did."""
    result = boot(lost("two-node-mild", HANDS_OVER, MILD, **TWO))
    outcome = foretold(result, MILD)

    assert (result.fate, result.report["returned"]) == ("poweroff", "0")
    assert outcome["ends"] is None
    record = json.loads(result.report["record"])
    assert record["decision"]["enter"] == "maintenance"
    node1 = [run for run in record["snapshot"]["blocks"] if run["node"] == 1 and run["state"] == "offline"]
    states = dict(word.split(":") for word in result.report["all"].split())
    numbers = [number for run in node1 for number in range(run["first"], run["last"] + 1)]
    assert len(numbers) == 8 and {states[str(number)] for number in numbers} == {"offline"}


def test_accepted() -> None:
    """From a release that is not 7.1: all memory."""
    result = boot(guest("two-node-accepted", HANDS_OVER, TEXT, next_kernel="current", **TWO))

    assert (result.fate, result.report["returned"]) == ("poweroff", "0")
    assert foretold(result, TEXT)["ends"] is None
    record = json.loads(result.report["record"])
    assert (record["decision"]["rule"], record["decision"]["facts"]["numa_nodes"]["value"]) == ("accepted", 2)
    assert {word.split(":")[1] for word in result.report["all"].split()} == {"online"}


def test_orphaned_without_a_count() -> None:
    """Nothing keeps count in this guest, so a reset could be one of many: the desk says panic, and so it is."""
    script = WITHOUT.replace('"$CMDLINE"', '"$CMDLINE kho=off"')
    result = boot(guest("two-node-orphaned", script, TEXT, next_kernel="current", **TWO))

    assert (result.fate, foretold(result, TEXT)["ends"]) == ("panic", "panic")
