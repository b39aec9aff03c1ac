# SPDX-License-Identifier: MIT
"""The guard that `handover-args` prints: it holds after a rejection, and does no harm after an acceptance."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safemem.boot import engine
from tests.vm import harness
from tests.vm.harness import boot, shell
from tests.vm.kit import ALL_ONLINE, HELD, guest, lost, policy_text, simulated, snapshot

pytestmark = pytest.mark.vm

#: Scratch moves at each cold boot, so once is not enough; nightly runs ask for 50.
TIMES = range(int(os.environ.get("SAFEMEM_BOOTS", "5")))


@pytest.mark.parametrize("time", TIMES)
def test_it_holds_after_a_rejection(tmp_path: Path, time: int) -> None:
    """The guard is in force, and every preserved page inside it survives a program that fills what is free."""
    text = policy_text("online-safe")
    before: list[int] = []
    place: list[int] = []

    def count(report: dict[str, str]) -> None:
        place[:] = [int(word, 16) for word in report["arguments"].split()[1].partition("=")[2].split("-")]
        before.append(harness.count_pattern(tmp_path / "boot", 256, place[0], place[1] + 1))

    script = shell("advice", FILL=600)
    result = boot(lost(f"guard-computed-{time}", script, text, memory=tmp_path, checkpoint=count))

    assert result.fate == "poweroff" and result.report["dimm"].split() == [HELD]
    decision = simulated(result, text)
    assert (decision["facts"]["handover"]["value"], decision["facts"]["guard"]["value"]) == ("rejected", "held")
    assert decision["safe_region"]["source"] == "cmdline"
    assert result.report["guard"] == str(place[1] + 1 - place[0])
    after = harness.count_pattern(tmp_path / "boot", 256, place[0], place[1] + 1)
    print(f"{after} of {before[0]} pages in {result.report['arguments']}")
    assert before[0] > 10_000 and after == before[0]


@pytest.mark.parametrize(
    ("outgoing", "trust"), [("current", True), ("current", False), ("old-kho", True)],
    ids=["accepted-trusted", "accepted-untrusted", "rejected-trusted"],
)  # fmt: skip
def test_the_guard_as_a_witness(outgoing: str, trust: bool) -> None:
    """A kernel without debugfs files cannot say whether it accepted; a guard that it could not reserve can, if trusted."""
    text = policy_text("online-safe").replace("format = 1", f"format = 1\ntrust_guard = {str(trust).lower()}")
    script = shell("advice", FILL="")
    result = boot(guest(f"witness-{outgoing}-{trust}", script, text, kernel=outgoing, next_kernel="no-debugfs"))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    accepted = outgoing == "current"
    handover = simulated(result, text)["facts"]["handover"]
    assert handover["value"] == ("accepted" if accepted and trust else "unknown")
    assert snapshot(result).facts["handover"].value == "unknown"
    assert (snapshot(result).witness != "") == accepted
    assert (result.report["guard"] == "0") == accepted
    assert result.report["dimm"].split() == [ALL_ONLINE if accepted and trust else HELD]
    if accepted:
        assert result.report["retrieved"] == str(256 * 256)
    if accepted and trust:
        assert handover["source"] == "guard" and "it is no proof" in handover["reason"]
        assert f"safemem: {engine.TRUSTED}" in result.serial
    if not accepted:
        assert handover["reason"].endswith("it was not accepted: the guard is in force")


@pytest.mark.parametrize("time", TIMES)
def test_it_does_no_harm_after_an_acceptance(time: int) -> None:
    """Accepted with the same arguments: no guard, all memory, and every page back through LUO."""
    text = policy_text("panic")
    result = boot(guest(f"guard-harmless-{time}", shell("advice", FILL=""), text, next_kernel="current"))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    decision = simulated(result, text)
    assert (decision["facts"]["handover"]["value"], decision["facts"]["guard"]["value"]) == ("accepted", "void")
    assert result.report["retrieved"] == str(256 * 256)
