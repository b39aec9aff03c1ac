# SPDX-License-Identifier: MIT
"""The guard that `handover-args` prints: it holds after a rejection, and does no harm after an acceptance."""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from safemem.boot import asked, engine
from tests.vm import harness, pages
from tests.vm.harness import boot, shell
from tests.vm.kit import ALL_ONLINE, HELD, argument, gigantic, guest, lost, policy_text, simulated, snapshot

pytestmark = pytest.mark.vm


class Place(NamedTuple):
    """A guest whose scratch areas are where no other's are."""

    name: str
    memfd: int = 256  #: MiB
    nodes: tuple[int, ...] = ()  #: MiB of each; without any the guest is small, and has a DIMM
    scratch: str = ""  #: the boot loader's argument

    def options(self) -> dict[str, Any]:
        """Return the fields of the guest."""
        more = {
            "boot_mib": sum(self.nodes),
            "nodes": self.nodes,
            "cmdline": self.scratch,
            "dimm_mib": 0,
            "timeout": 300,
        }
        return {"files": gigantic(), **(more if self.nodes else {})}


def large(time: int) -> Place:
    """Return a guest of two nodes, with room for gigantic pages, and scratch as nobody advises."""
    areas = [f"{size}M" for size in (64 + 48 * (time % 5), 160 + 96 * (time % 7), 96 * (time % 3))]
    nodes = (3 * harness.GIB, 5 * harness.GIB)
    return Place(f"pages-{time}", 1024, nodes, f"kho_scratch={','.join(areas)}")


#: Scratch moves at each cold boot, so once is not enough; nightly runs ask for 50 more, with gigantic
#: pages on the line.
PLACES = [
    *(Place(f"small-{time}") for time in range(2)),
    *(large(time) for time in range(int(os.environ.get("SAFEMEM_BOOTS", "0")))),
]
EACH = pytest.mark.parametrize("place", PLACES, ids=[place.name for place in PLACES])


def asking(text: str, action: str, when: str) -> str:
    """Return a policy with one more rule, `sure`, before the others."""
    return text.replace("[[rule]]", f'[[rule]]\nname = "sure"\nwhen = {{ {when} }}\naction = "{action}"\n[[rule]]', 1)


@EACH
def test_it_holds_after_a_rejection(tmp_path: Path, place: Place) -> None:
    """The guards are in force, and every preserved page inside them survives a program that fills what is free."""
    text = asking(
        policy_text("panic"), "online-safe",
        'handover = "rejected", handover_confidence = "evidence", guard_confidence = "proven", safe_region_confidence = "word"',
    )  # fmt: skip
    before: array[int] = array("I")
    nodes = len(place.nodes) or 1

    def look(_: dict[str, str]) -> None:
        before[:] = harness.boot_places(tmp_path, place.memfd, nodes)

    script = shell("advice", MEMFD=place.memfd, FILL=600)
    result = boot(
        lost(f"guard-computed-{place.name}", script, text, memory=tmp_path, checkpoint=look, **place.options())
    )
    report = result.report

    assert result.fate == "poweroff" and (nodes > 1 or report["dimm"].split() == [HELD])
    decision = simulated(result, text)
    assert (decision["facts"]["handover"]["value"], decision["facts"]["guard"]["value"]) == ("rejected", "full")
    assert (decision["rule"], decision["safe_region"]["source"]) == ("sure", "cmdline")
    wanted = asked.parse(argument(report["arguments"], asked.ARGUMENT))
    assert report["guard"] == str(wanted.range.size)
    assert bool(wanted.pages) == (nodes > 1), report["arguments"]
    after = harness.boot_places(tmp_path, place.memfd, nodes)
    inside = pages.part_of(before, after, [wanted.range, *pages.gigantic_areas(report)])
    print(f"{inside.after} of {inside.before} pages in {report['arguments']}")
    assert inside.before > 10_000 and inside.after == inside.before


@pytest.mark.parametrize(
    ("outgoing", "trust"), [("current", True), ("current", False), ("old-kho", True)],
    ids=["accepted-trusted", "accepted-untrusted", "rejected-trusted"],
)  # fmt: skip
def test_the_guard_as_a_witness(outgoing: str, trust: bool) -> None:
    """A kernel without debugfs files cannot say whether it accepted; a guard that it could not reserve can, if trusted."""
    text = policy_text("online-safe").replace("format = 1", f"format = 1\ntrust_guard = {str(trust).lower()}")
    text = asking(text, "online-all", 'handover = "accepted", handover_confidence = "evidence"')
    script = shell("advice", MEMFD=256, FILL="")
    result = boot(
        guest(f"witness-{outgoing}-{trust}", script, text, kernel=outgoing, next_kernel="no-debugfs", files=gigantic())
    )

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
        assert simulated(result, text)["rule"] == "sure"
        assert handover["source"] == "guard" and "it is no proof" in handover["reason"]
        assert f"safemem: {engine.TRUSTED}" in result.serial
    if not accepted:
        assert handover["reason"].endswith("it was not accepted: the guard is in force")


@EACH
def test_it_does_no_harm_after_an_acceptance(place: Place) -> None:
    """Accepted with the same arguments: no guard, all memory, and every page back through LUO."""
    text = policy_text("panic")
    script = shell("advice", MEMFD=place.memfd, FILL="")
    result = boot(guest(f"guard-harmless-{place.name}", script, text, next_kernel="current", **place.options()))
    report = result.report

    assert result.fate == "poweroff" and report["returned"] == "0"
    facts = simulated(result, text)["facts"]
    assert facts["handover"]["value"] == "accepted" and report["guard"] == "0"
    # Since 7.3 a kernel that accepts finds some gigantic pages where nothing is preserved, and gives them back.
    assert facts["guard"]["value"] in (("void",) if not place.nodes else ("void", "part"))
    assert not report["gigantic"] and all(word.endswith(":0") for word in report["nr"].split())
    assert report["retrieved"] == str(place.memfd * 256)
