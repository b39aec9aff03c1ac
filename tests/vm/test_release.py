# SPDX-License-Identifier: MIT
"""A release that is cut short: by a power cut, which the next boot tells, or by a signal, after which it goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.vm import debian, harness
from tests.vm.harness import boot, shell
from tests.vm.kit import COMMAND, SHARE, guest, lost, policy_text, span

pytestmark = pytest.mark.vm

#: Blocks of a DIMM of 4 GiB: enough of them to be stopped among.
FIRST, LAST = 32, 63
#: The command, with a disk that outlives the guest over /var/lib of the share.
DISK = COMMAND + harness.shell("var")
#: Where a release is stopped: among the blocks, or while the guard is given back.
AMONG_BLOCKS, IN_THE_GUARD = "blocks", "guard"
EVERYTHING = "0x0-0xffffffffffffffff"


def releasing(name: str, var: Path, where: str, script: str, **values: str) -> harness.Guest:
    """Return a guest with a lost handover, a hold and a guard, in which the script of that name stops a release."""
    middle = shell("release", WHERE=where) + shell(script, FIRST=FIRST, LAST=LAST, **values)
    return lost(
        name, shell("guarded", LESS=0) + DISK + middle, policy_text("online-safe"),
        devices=disk(var), dimm_mib=4 * harness.GIB, timeout=150,
    )  # fmt: skip


def disk(path: Path) -> tuple[str, ...]:
    """Return QEMU's arguments for the share and the disk that outlives guests."""
    return (*SHARE, *harness.disk("var", path, writable=True))


def next_boot(name: str, var: Path) -> dict[str, str]:
    """Boot again from cold, and return what `status` says of the boot before."""
    script = f"decide\n{DISK}{shell('release-next')}"
    result = boot(guest(name, script, policy_text("online-safe"), devices=disk(var), dimm_mib=0))
    assert result.fate == "poweroff", result.serial[-2000:]
    return result.report


@pytest.mark.parametrize(
    ("name", "ranges", "where"),
    [("part", span(FIRST, 55), AMONG_BLOCKS), ("guard", "", IN_THE_GUARD), ("whole", "", AMONG_BLOCKS)],
)
def test_power_cut(tmp_path: Path, name: str, ranges: str, where: str) -> None:
    """The machine dies in the middle of a release; the next boot says what was being given back, why, and that it is not known how far."""
    var = debian.blank(tmp_path / "var", 64)
    guest = releasing(f"release-{name}", var, where, "release-cut", RANGES=ranges)
    cut = boot(guest._replace(checkpoint=lambda _: harness.CUT))
    report = cut.report
    states = {run.split("*")[0] for run in report["blocks"].split()}
    print(f"cut with {report['guard']} of {report['whole']} bytes of guard and {report['blocks']}")

    assert cut.fate == "killed", cut.serial[-2000:]
    assert report["kept"] == "4"
    # In the middle, or this shows nothing.
    if where == IN_THE_GUARD:
        assert 0 < int(report["guard"]) < int(report["whole"]) and states == {"offline"}
    else:
        assert states == {"online", "offline"}
        assert report["guard"] == (report["whole"] if ranges else "0")

    after = next_boot(f"release-{name}-next", var)
    said = ranges or EVERYTHING
    assert after["now"] == "0"
    assert (
        f"before    in the boot before, a release of {said} was begun and not finished: guests moved away"
        in after["text"].splitlines()
    )
    assert after["previous"] == "4"
    lines = after["previous_text"].splitlines()
    assert lines[0] == "online-safe  handover lost, says the test"
    assert [line for line in lines if line.startswith(f"released  {said} (begun, not finished) at ")]


@pytest.mark.parametrize("where", [IN_THE_GUARD, AMONG_BLOCKS], ids=["guard", "blocks"])
def test_interrupted_and_resumed(tmp_path: Path, where: str) -> None:
    """SIGINT ends a release in between, and it says so; the same command finishes, and the next boot has nothing to tell."""
    var = debian.blank(tmp_path / "var", 64)
    result = boot(releasing("release-interrupted", var, where, "release-interrupted"))
    report = result.report
    print(f"interrupted with {report['guard']} of {report['whole']} bytes of guard and {report['blocks']}")

    assert result.fate == "poweroff", result.serial[-2000:]
    assert report["interrupted"] == "64"
    assert "interrupted: released in part; the same command goes on from there" in report["said"]
    assert "offline" in report["blocks"]
    if where == IN_THE_GUARD:
        assert 0 < int(report["guard"]) < int(report["whole"])
    else:
        assert "online" in report["blocks"].replace("offline", "")
    assert report["between"] == "4"
    assert f"released  {EVERYTHING} (in part) at " in report["between_text"]
    assert (report["resumed"], report["guard_after"]) == ("0", "0"), report["resumed_text"]
    assert report["blocks_after"].split() == [f"online*{LAST + 1 - FIRST}"]
    assert report["after"] == "0", report["after_text"]
    # What was held, guarded and exposed is anybody's now.
    assert re.search(r"^memory    \S+ GiB in use \(100 %\)$", report["after_text"], re.MULTILINE), report["after_text"]
    after = next_boot("release-interrupted-next", var)
    assert "before    " not in after["text"]
