# SPDX-License-Identifier: MIT
"""Whether anything was at stake, and whether anything was offered at all: what is evidence for it on real kernels."""

from __future__ import annotations

import json

import pytest

from safemem.boot import engine
from safemem.host.reader import snapshot_from_text
from tests.fakes import SHIPPED
from tests.vm.harness import Result, boot, shell
from tests.vm.kit import ALL_ONLINE, DEADLINE, HELD, argument, guest, lost, policy_text, simulated

pytestmark = pytest.mark.vm


def shipped(name: str) -> str:
    """Return a policy that we ship, called as guests' policies are, with as much time as a loaded machine takes."""
    (path,) = [path for path in SHIPPED if path.stem == name]
    head, failure, tail = path.read_text().replace(f'name = "{name}"', 'name = "vm"').partition("[on_failure]\n")
    assert failure
    return f"{head}{failure}deadline = {DEADLINE}\n{tail}"


def handed(name: str, *, held: str = "", forge: str = "", text: str = "") -> Result:
    """Hand over to a kernel that rejects, with a session held if `held`, and the arguments as sed makes them by `forge`."""
    return boot(lost(f"stake-{name}", shell("stake", HELD=held, FORGE=forge), text))


def test_an_idle_host_goes_on() -> None:
    """Nothing is preserved and the next kernel rejects: all memory, the guard given back, and whose word that is said."""
    text = shipped("live-update-host")
    result = handed("idle", text=text)

    assert "luo_session" not in result.report["links"] and argument(
        result.report["arguments"], "safemem.preserved"
    ).startswith("no;")
    assert "preserved is `no`: nobody holds a session" in result.report["why"]
    assert result.fate == "poweroff" and result.report["returned"] == "0"
    decision = simulated(result, text)
    facts = {name: fact["value"] for name, fact in decision["facts"].items()}
    assert (facts["handover"], facts["preserved"], facts["guard"]) == ("rejected", "no", "full")
    assert (decision["rule"], decision["action"]) == ("nothing was at stake", "online-all")
    assert result.report["dimm"].split() == [ALL_ONLINE] and result.report["guard"] == "0"
    assert f"safemem: {engine.WORD}" in result.serial


@pytest.mark.parametrize(
    ("name", "held", "forge", "value", "why"),
    [
        ("held", "yes", "", "yes", "the predecessor's word"),
        ("forged", "yes", "s/preserved=yes/preserved=no/", "unknown", "does not match"),
        ("cut", "", "s/preserved=no;.*/preserved=no/", "unknown", "has no check sum"),
    ],
)
def test_a_host_that_may_lose_something_panics(name: str, held: str, forge: str, value: str, why: str) -> None:
    """With a session held, or a word that is forged or cut off, the shipped policy ends the boot."""
    text = shipped("live-update-host")
    result = handed(name, held=held, forge=forge, text=text)

    if held:
        assert result.report["luo"] == "preserved"
        assert "anon_inode:[luo_session] guest" in result.report["links"].splitlines()
        assert "holds session `guest`" in result.report["why"]
    assert result.fate == "panic" and "returned" not in result.report
    decision = simulated(result, text)
    assert (decision["facts"]["handover"]["value"], decision["rule"]) == ("rejected", "otherwise")
    fact = decision["facts"]["preserved"]
    assert (fact["value"], why in fact["reason"]) == (value, True), fact


def test_what_is_mounted_over_the_zero_page() -> None:
    """Empty, another folder's, a copy, or masked in part: no evidence that nothing was offered, before and after a handover."""
    text = policy_text("online-safe")
    result = boot(lost("stake-masked", shell("stake-masked"), text))
    print(result.report["params.1"], result.report["params.2"])

    for stage, plain in (("1", "none"), ("2", "rejected")):
        seen = {
            key.partition(".")[0]: json.loads(content)["snapshot"]["facts"]["handover"]
            for key, content in result.report.items()
            if key.endswith(f".{stage}") and not key.startswith("params")
        }
        assert seen.pop("plain")["value"] == plain
        if stage == "2":
            # What names the handover counts, though what stands beside it does not.
            assert [seen.pop(name)["value"] for name in ("masked", "version")] == ["rejected"] * 2
            assert "list" in seen and seen.pop("copy")["value"] == "rejected"
        assert {"empty", "another"} <= set(seen)
        assert {name: fact["value"] for name, fact in seen.items()} == dict.fromkeys(seen, "unknown")
        assert all(fact["source"].startswith("sys/kernel/boot_params") and fact["reason"] for fact in seen.values())
    decision = simulated(result, text)
    assert result.fate == "poweroff" and result.report["dimm"].split() == [HELD]
    assert decision["facts"]["handover"]["value"] == "unknown"


@pytest.mark.parametrize("entries", [129, 200])
def test_a_map_that_the_zero_page_has_no_room_for(entries: int) -> None:
    """What firmware gave is read whole, from the page and from the list behind it, and that list is none of a handover."""
    result = boot(
        guest(
            f"entries-{entries}",
            shell("many-entries", ENTRIES=entries),
            policy_text(),
            next_kernel="current",
            dimm_mib=0,
        )
    )
    report = result.report

    assert (result.fate, report["entries"], report["page"]) == ("poweroff", str(entries), "128"), report
    assert "0x1" in report["types"].split()
    found = snapshot_from_text(report["capture"], "capture")
    assert found.facts["handover"].value == "none"
    pieces = [area for area in found.room.firmware if area.start >= 0x20000000]
    assert str(pieces[-1]) == report["last"]
    inside = sum(1 for area in pieces[:-1] if area.size == 0x1F000)
    assert inside == len(pieces) - 1 >= (entries - 20) // 2
