# SPDX-License-Identifier: MIT
"""Gigantic pages as a guard, in real guests: nothing takes one, and they are given back as they were asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from safemem.boot import asked
from safemem.boot.ranges import Range, parse_range
from tests.vm import pages
from tests.vm.harness import GIB, boot, shell
from tests.vm.kit import COMMAND, SHARE, argument, gigantic, guest, lost, policy_text, simulated

pytestmark = pytest.mark.vm

#: What a program that wants a gigantic page is told, and what ends it where it asked with MAP_NORESERVE.
NONE, TOO_LATE = "Cannot allocate memory", "Bus error"
QUARANTINE = policy_text("online-safe", extra='boot_memory = "offline"')
#: Nodes of a guest, most of which nothing touches: it costs little more than a small one.
TWO, FOUR = (4 * GIB,) * 2, (4 * GIB,) * 4


def numbers(text: str) -> dict[int, int]:
    """Return what the guest said of each node."""
    return {int(word.partition(":")[0]): int(word.partition(":")[2]) for word in text.split()}


def wanted(report: dict[str, str]) -> asked.Asked:
    """Return what `handover-args` printed as the guards, after checking it against the kernel's own arguments."""
    found = asked.parse(argument(report["arguments"], asked.ARGUMENT))
    assert found.page == 1 << 30 and found.pages
    assert f"hugepagesz=1G hugepages={asked.listed(found.pages)}" in report["arguments"]
    return found


@pytest.mark.parametrize("early", [False, True], ids=["after", "before-and-after"])
def test_no_program_takes_one(early: bool) -> None:
    """Reserved, a gigantic page is nobody's, whatever tries beside it; one that was mapped earlier is counted as lost."""
    # Quarantine must leave them alone: a block taken offline would dissolve the page that it is part of.
    text = policy_text("online-safe") if early else QUARANTINE
    script = shell("gigantic", EARLY="yes" if early else "", FILL=600 if early else sum(TWO))
    result = boot(
        lost(f"gigantic-{early}", script, text, files=gigantic(), boot_mib=sum(TWO), nodes=TWO, dimm_mib=0, timeout=300)
    )
    report = result.report

    assert result.fate == "poweroff" and report["returned"] == "0", result.serial[-2000:]
    pool, lost_one = numbers(report["nr"]), int(early)
    there = sum(pool.values())
    print(report["arguments"], report["gigantic"], f"{report['filled']} MiB taken beside")
    assert numbers(report["nr_first"]) == pool and there > lost_one
    assert all(pool[node] <= number for node, number in wanted(report).pages)
    assert sum(numbers(report["free"]).values()) == int(report["reserved"]) == there - lost_one
    fact = simulated(result, text)["facts"]["guard"]
    full = not early and all(pool[node] == number for node, number in wanted(report).pages)
    assert fact["value"] == ("full" if full else "part"), fact
    if early:
        assert report["early"] == "taken"
    for user in (0, 65534):
        assert (report[f"take_{user}_0"], report[f"take_{user}_1"]) == (NONE, TOO_LATE)
    assert (report["storm"], report["storm_after"]) == ("0", "0")
    # The pool was told to be empty, and is what it was; that it was told shows.
    assert (report["nr_last"], report["free_last"], report["reserved_last"]) == (
        report["nr"], report["free"], report["reserved"]
    )  # fmt: skip
    assert sum(numbers(report["surplus_last"]).values()) > sum(numbers(report["surplus"]).values()) == 0
    assert report["gigantic_last"] == report["gigantic"]
    counted = account(report)
    mine = [item for item in counted if item["kind"] == "guarded" and (item["why"] or "").startswith("gigantic pages")]
    assert sum(item["bytes"] for item in mine) == (there - lost_one) << 30


def test_given_back_node_by_node() -> None:
    """A release gives back one node, is interrupted in the rest, and goes on; what the operator asked for is there at the end."""
    # Behind the hole below 4 GiB; the node of the page that the operator wants.
    second = Range(5 << 30, 9 << 30)
    text = policy_text("online-safe")
    script = shell("gigantic-lost") + COMMAND + shell("gigantic-release", RANGE=str(second))
    # Of the default size and of the other, both on the boot loader's line.
    result = boot(
        lost("gigantic-release", script, text, files=gigantic(), boot_mib=sum(FOUR), nodes=FOUR, dimm_mib=0,
             devices=SHARE, cmdline="hugepages=4 hugepagesz=1G hugepages=1:1", timeout=300),
    )  # fmt: skip
    report = result.report
    print(report["arguments"], report.get("nr_between"))

    assert result.fate == "poweroff" and report["returned"] == "0", result.serial[-2000:]
    asked_for = wanted(report)
    assert asked_for.own == ((1, 1),)
    held = numbers(report["nr_held"])
    assert held == {0: 0, **held, **dict(asked_for.pages)} and held[3] > 0 and held[1] > 1
    assert int(report["reserved_held"]) == sum(held.values())
    assert report["by_node"] == "0", report["by_node_text"]
    assert numbers(report["nr_node"]) == {**held, 1: 1}
    # The page that is the operator's again is no excuse to take one of a node that is still guarded.
    assert report["stolen"] == NONE
    assert int(report["reserved_node"]) == sum(numbers(report["free_node"]).values())

    assert report["interrupted"] == "64", report["said"]
    between = sum(numbers(report["nr_between"]).values())
    assert between < sum(numbers(report["nr_node"]).values())
    # Of what is still guarded no program gets a page; once all has gone, the operator's is anybody's.
    if between > 1:
        assert int(report["reserved_between"]) == sum(numbers(report["free_between"]).values())
    assert (report["resumed"], report["after"]) == ("0", "0"), report["resumed_text"]
    assert numbers(report["nr_after"]) == {**dict.fromkeys(held, 0), 1: 1}
    assert (report["reserved_after"], report["small"], report["take"]) == ("0", "4", "taken")


#: 7.2 too, where `make kernels` has built it: `make test` does without.
ACCEPTS = [pages.NEXT["accepts"], *([pages.OLDER["accepts"]] if pages.older_kernels() else [])]


@pytest.mark.parametrize(("first", "second"), ACCEPTS, ids=[second for _, second in ACCEPTS])
def test_scratch_that_holds_a_whole_page(first: str, second: str) -> None:
    """A kernel from before 7.3 that accepts would take pages out of scratch, which is all it has: none is asked for there."""
    text = policy_text("panic")
    script = shell("advice", MEMFD=512, FILL="")
    result = boot(
        guest(f"gigantic-scratch-{second}", script, text, files=gigantic(), kernel=first, next_kernel=second, boot_mib=12 * GIB,
              dimm_mib=0, cmdline="kho_scratch=512M,3300M,0M", timeout=300),
    )  # fmt: skip
    report = result.report
    print(report["arguments"])

    assert result.fate == "poweroff" and report["returned"] == "0", result.serial[-2000:]
    assert simulated(result, text)["facts"]["handover"]["value"] == "accepted"
    assert report["retrieved"] == str(512 * 256)
    assert not report["gigantic"] and report["nr"].split() == ["0:0"]
    scratch = [parse_range(word) for word in argument(report["arguments"], "safemem.safe").partition(";")[0].split(",")]
    whole = sum(area.end // (1 << 30) - -(-area.start // (1 << 30)) for area in scratch if area.size >= 1 << 30)
    assert whole > 0, "scratch holds no whole page, and this shows nothing"
    assert "registered 1.00 GiB page size, pre-allocated 0 pages" in result.serial.rpartition("Linux version")[2]


def test_the_operators_own_is_there_after_an_acceptance() -> None:
    """Merged into ours on the next command line; the rest is given back, and every preserved page comes back."""
    text = policy_text("online-safe")
    script = shell("pages", MEMFD=512, PROTECTION=pages.GUARD, MORE="", THEN="decide", RETRIEVE="yes", BOOT=sum(TWO))
    result = boot(
        guest("gigantic-own", script, text, files=gigantic(), kernel="current", next_kernel="current", boot_mib=sum(TWO),
              nodes=TWO, dimm_mib=0, cmdline="kho_scratch=128M,288M,0M hugepagesz=1G hugepages=1:1", timeout=300),
    )  # fmt: skip
    report = result.report

    assert result.fate == "poweroff" and report["returned"] == "0", result.serial[-2000:]
    asked_for = wanted(report)
    assert asked_for.own == ((1, 1),) and dict(asked_for.pages)[1] > 1
    assert simulated(result, text)["action"] == "online-all"
    assert numbers(report["nr"]) == {0: 0, 1: 1} and report["reserved"] == "0"
    assert report["retrieved"] == str(512 * 256)


def account(report: dict[str, str]) -> list[dict[str, Any]]:
    """Return the account in the record that the guest reported."""
    found: list[dict[str, Any]] = json.loads(report["record"])["account"]
    return found
