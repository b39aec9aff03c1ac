# SPDX-License-Identifier: MIT
"""Boot memory taken offline on real kernels: what refuses, how much goes, and that the account says what sysfs says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from safemem.boot.ranges import Range, parse_range
from safemem.host import reader
from safemem.host.verdict import faults, held_then, verdict
from tests.vm import harness
from tests.vm.harness import boot, shell
from tests.vm.kit import BLOCK, DEADLINE, HELD, foretold, guest, kinds, lost, policy_text, simulated

pytestmark = pytest.mark.vm

#: No state is whole, so that every boot decides what `[otherwise]` says.
OFFLINE = policy_text("online-safe", extra='boot_memory = "offline"').replace('["none", "accepted"]', '"orphaned"')
#: Why a block is still in use.
WHY = "unmovable|hole|zone none|kernel text or data|timeout|below the floor"

#: Nodes of a guest of 2 GiB.
TWO = (harness.GIB, harness.GIB)


def states(result: harness.Result) -> dict[int, str]:
    """Return what sysfs said of each block."""
    return {int(word.partition(":")[0]): word.partition(":")[2] for word in result.report["all"].split()}


def checked(result: harness.Result, text: str) -> dict[str, Any]:
    """Return the record, after checking its account block by block against sysfs, and against what `simulate` says."""
    foretold(result, text)
    document: dict[str, Any] = json.loads(result.report["record"])
    shown, then = states(result), document["snapshot"]["blocks"]
    online = {number for run in then if run["state"] == "online" for number in range(run["first"], run["last"] + 1)}
    for number, state in shown.items():
        found = kinds(document["account"], range(number, number + 1))[0]
        if state == "offline":
            assert found == ({"quarantined"} if number in online else {"held"}), number
        else:
            assert state == "online" and found <= {"exposed", "safe", "guarded"}, number
    whole = sum(document["totals"].values())
    assert whole == len(shown) * BLOCK
    assert all(re.match(WHY, item["why"]) for item in document["account"] if item["kind"] == "exposed")
    return document


def share(document: dict[str, Any], kind: str) -> int:
    """Return how many per cent of all memory are of one kind."""
    return int(document["totals"][kind] * 100 // sum(document["totals"].values()))


def test_a_pinned_page_ends_in_a_timeout() -> None:
    """The kernel tries for ever to move a page that a driver pinned: a signal ends that, twice, and the rest goes on."""
    # 2 GiB, so that some of the pinned blocks would go if they were not.
    text = OFFLINE.replace(f"deadline = {DEADLINE}", "deadline = 12")
    files = {"bin/pin": harness.program("pin").read_bytes()}
    result = boot(guest("pinned", shell("pinned"), text, files=files, boot_mib=2 * harness.GIB))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    document = checked(result, text)
    whys = {parse_range(item["range"]).start // BLOCK: item["why"] for item in document["account"] if item["why"]}
    pinned = [int(word) for word in result.report["pinned"].split()]
    print(f"pinned {pinned}: {document['result']['problems']}")
    late = [number for number in pinned if whys.get(number) == "timeout: the kernel was still trying after 6 s"]
    assert late
    assert not [number for number in pinned if states(result)[number] == "offline"]
    assert "safemem: taking memory offline: " in result.serial
    assert "going-offline" not in states(result).values()


def test_four_gibibytes_without_a_guard() -> None:
    """After a rejection most of 4 GiB goes offline; what does not has a reason; the guest runs a program in the rest."""
    script = shell("lost", MIB=256, FILL=100)
    result = boot(lost("quarantine-4g", script, text := OFFLINE, boot_mib=4 * harness.GIB, dimm_mib=0, timeout=240))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    document = checked(result, text)
    left = f"{result.report['available']} KiB available"
    print(f"{share(document, 'quarantined')} % quarantined, {document['result']['problems']}, {left}")
    assert share(document, "quarantined") >= 50
    # What refused the policy tolerates: no problem of the decision, which is in force.
    found = reader.record_from_text(result.report["record"], "record")
    assert found.done and found.done.problems and faults(found) == ()
    assert verdict(found, held=held_then(found)) == "held"
    assert result.report["filled"] == "100"


def test_two_nodes_with_scratch_on_each() -> None:
    """Scratch of either node stays in use and is called safe; a node's exception holds its memory whatever is decided."""
    text = OFFLINE + "[[memory]]\nnode = 0\nhold = true\n"
    result = boot(lost("quarantine-nodes", shell("nodes"), text, boot_mib=2 * harness.GIB, nodes=TWO, timeout=240))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    document = checked(result, text)
    assert document["decision"]["safe_region"]["source"] == "cmdline"
    region = [parse_range(text) for text in document["decision"]["safe_region"]["ranges"]]
    nodes = {area.start // harness.GIB // (1 << 20) for area in region}
    assert nodes == {0, 1}, "one node has no scratch"
    safe = [parse_range(item["range"]) for item in document["account"] if item["kind"] == "safe" or item["why"] == "safe, but out of use with its block"]  # fmt: skip
    assert sum(area.end - area.start for area in safe) == sum(area.end - area.start for area in region)
    # A block wholly inside is left alone; one that the region cuts is not.
    for area in region:
        for number in range(-(-area.start // BLOCK), area.end // BLOCK):
            assert states(result)[number] == "online"
    assert any(area.start % BLOCK or area.end % BLOCK for area in region)


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        ("node = 0\nhold = true", HELD),
        ("node = 1\nhold = true", "online*8"),
        # One byte of block 33 is enough to hold it.
        ('range = "0x10fffffff-0x10fffffff"\nhold = true', "online*1 offline*1 online*6"),
    ],
    ids=["node-0", "node-1", "range"],
)
def test_an_exception_for_a_node_or_range(exception: str, expected: str) -> None:
    """The DIMM is in node 0: an exception for that node holds it under online-all, one for node 1 does not."""
    text = policy_text("panic") + f"[[memory]]\n{exception}\n"
    name = re.sub("[^0-9a-z]+", "-", exception[:12])
    result = boot(guest(f"exception-{name}", text=text, boot_mib=2 * harness.GIB, nodes=TWO))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    assert result.report["dimm"].split() == expected.split()
    simulated(result, text)


def test_the_floor_is_kept() -> None:
    """With a floor in the policy that much stays available, and what could have gone says so."""
    text = OFFLINE.replace('boot_memory = "offline"', 'boot_memory = "offline"\nfloor = "1200MiB"')
    script = 'decide; report left "$(meminfo MemAvailable)"; report all "$(all_blocks)"'
    result = boot(guest("floor", script, text, boot_mib=2 * harness.GIB, dimm_mib=0))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    document = checked(result, text)
    assert document["totals"]["quarantined"] > 0
    assert int(result.report["left"]) > (1200 - 40) << 10  # the test's own programs run since
    why = "below the floor: 1.2 GiB of memory have to stay available"
    assert why in {item["why"] for item in document["account"]}


@pytest.mark.parametrize(("limit", "fate"), [("1%", "panic"), ("99%", "poweroff")])
def test_a_shortfall_beyond_the_limit_ends_the_boot(limit: str, fate: str) -> None:
    """Some boot memory never goes offline; whether that ends the boot is a question of how much."""
    extra = f'boot_memory = "offline"\non_shortfall = "panic"\nexposed_max = "{limit}"'
    text = OFFLINE.replace('boot_memory = "offline"', extra)
    result = boot(guest(f"exposed-{fate}", text=text))

    assert result.fate == fate
    # What cannot be met is read at the desk.
    outcome = foretold(result, text)
    assert (outcome["ends"], outcome["sure"]) == (("panic", True) if fate == "panic" else (None, False))
    said = re.search(
        r"safemem: panic: [0-9.]+ [GM]iB of 2 GiB are exposed, and the policy allows 1%, 20.5 MiB", result.serial
    )
    assert bool(said) == (fate == "panic")


def test_a_second_run_of_online_all_changes_nothing() -> None:
    """Everything is online already: nothing is written, nothing fails, and the state is the same."""
    result = boot(guest("twice", shell("twice"), policy_text("panic")))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    document = json.loads(result.report["record"])
    assert result.report["before"] == result.report["all"] and set(states(result).values()) == {"online"}
    assert (document["result"]["complete"], document["result"]["bytes_wanted"]) == (True, 0)
    assert result.report["auto_online"] == "online_movable"


@pytest.mark.parametrize("mib", [1000, 1100])
def test_odd_sizes(mib: int) -> None:
    """Memory that ends inside a block: the block with the hole never goes, the others do, and a second run changes nothing."""
    # Where the kernel lies in the block with the hole, that is what keeps it: one boot of eight, if it may choose.
    result = boot(guest(f"odd-{mib}", shell("twice"), OFFLINE, boot_mib=mib, dimm_mib=256, cmdline="nokaslr"))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    last = mib * (1 << 20) // BLOCK
    assert states(result)[last] == "online"
    document, one = json.loads(result.report["record"]), json.loads(result.report["one"])
    whys = {Range(**parse_range(item["range"])._asdict()): item["why"] for item in document["account"]}
    assert any(area.start <= last * BLOCK < area.end and why.startswith("hole") for area, why in whys.items())
    assert result.report["before"] == result.report["all"]
    assert (document["account"], document["totals"]) == (one["account"], one["totals"])
    assert document["totals"]["quarantined"] > 0


def test_a_guard_that_is_not_the_one_that_was_asked_for() -> None:
    """Another range is reserved than `safemem.guard=` says: reported, treated as void, and left alone."""
    text = policy_text("online-all", extra="accept_data_exposure = true")
    result = boot(lost("guard-mismatch", shell("guarded", LESS=1 << 20), text))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    fact = simulated(result, text)["facts"]["guard"]
    first, last = map(int, result.report["guarded"].split("-"))
    asked, found = Range(first, last + 1 - (1 << 20)), Range(first, last + 1)
    assert (fact["value"], fact["reason"]) == (
        "void", f"{asked} was asked for, but {found} is reserved and is not ours"
    )  # fmt: skip
    assert result.report["guard"] == str(last + 1 - first)
