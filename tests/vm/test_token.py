# SPDX-License-Identifier: MIT
"""A token through LUO: it says whether a kernel accepted where no debugfs file does, and nothing else passes for one."""

from __future__ import annotations

import json

import pytest

from packages import tree
from packages.deb import PACKAGES
from safemem.host import reader
from tests.vm import debian
from tests.vm.harness import CMDLINE, REPOSITORY, Guest, Result, boot, shell
from tests.vm.kit import ALL, ALL_ONLINE, COMMAND, HELD, SHARE, guest, policy_text

pytestmark = pytest.mark.vm

TEXT = policy_text("online-safe").replace("format = 1", "format = 1\nretrieve_token = true")


def holder(name: str, script: str, **more: object) -> Guest:
    """Return a guest in which safemem can hold a token, as in the real root."""
    launcher = tree.programs(str(REPOSITORY)[1:], "")["usr/lib/safemem/token"].encode()
    return guest(
        name, COMMAND + shell("token") + script, TEXT, files={"token": launcher}, devices=SHARE,
        next_kernel="no-debugfs", **more,
    )  # fmt: skip


def came_of(result: Result, number: int | str) -> tuple[str, str, str]:
    """Return the handover of a round, its source and reason."""
    fact = reader.snapshot_from_text(result.report[f"record{number}"], "record").facts["handover"]
    return str(fact.value), fact.source, fact.reason


def test_without_debugfs() -> None:
    """The right token is an acceptance, and other sessions stay for their owners; nothing else is ever taken for one."""
    result = boot(holder("token-rounds", shell("token-rounds"), kernel="no-debugfs", timeout=300))
    report = result.report

    assert result.fate == "poweroff", report
    # The outgoing side, on a kernel that cannot compute a guard.
    assert report["held0"].startswith("a token is held")
    assert "safemem.token=" in report["token0"] and "the token alone" in report["why0"]
    assert report["again"].startswith("1 safemem: a session `safemem` is held already, by process ")
    # What came of each round.
    assert [report[f"status{number}"] for number in range(1, 7)] == ["42"] * 6
    assert came_of(result, 1) == ("accepted", "dev/liveupdate", "the predecessor's token came through LUO")
    assert report["dimm1"].split() == [ALL_ONLINE] and report["retrieved"] == str(64 * 256)
    assert came_of(result, "-again") == came_of(result, 1)
    expected = {
        2: ("unknown", ""),
        3: ("rejected", "the token in LUO is another than the command line names"),
        4: ("rejected", "LUO has a session of safemem's name that holds no token"),
        5: ("rejected", "LUO has no session of safemem's: none came over"),
        6: ("unknown", ""),
    }
    for number, (value, why) in expected.items():
        found = came_of(result, number)
        assert found[0] == value and found[2].startswith(why), (number, found)
        assert report[f"dimm{number}"].split() == [HELD]
    notes = json.loads(report["record2"])["snapshot"]["notes"]
    assert any("two of them say different things" in note for note in notes), notes
    assert report["held2"].startswith("a token is held") and report["held5"].startswith("a token is held")


def test_a_rejection() -> None:
    """A kernel that rejects has no session: the token says so where no file does, and memory is held."""
    script = '[ "$ROUND" != 0 ] || { mount -t debugfs d /sys/kernel/debug; hold_token; next "$TOKEN"; }'
    result = boot(holder("token-rejected", script, kernel="old-kho"))
    report = result.report

    assert result.fate == "poweroff", report
    assert "safemem.guard=" in report["token0"] and "safemem.token=" in report["token0"]
    assert came_of(result, 1) == ("rejected", "dev/liveupdate", "LUO has no session of safemem's: none came over")
    assert report["dimm1"].split() == [HELD]


ARGS = f"""
import sys
sys.path.insert(0, "/{PACKAGES}")
from safemem.boot.handover_args import main
sys.exit(main(sys.argv[1:]))
"""


#: Debian testing has a systemd that uses LUO itself, which shows the most; the others are for the night.
SUITES = (*debian.SUITES, "testing") if ALL else ("testing",)


@pytest.mark.parametrize("suite", SUITES)
def test_the_unit(suite: str) -> None:
    """Neither `systemctl isolate` nor `systemctl kexec` ends the token's holder: systemd 252 goes by its name, 257 by the unit as well.

    Systemd 261 and later hands over what its services store, beside the token: safemem decides first, and it comes back.
    """
    sources = {f"{PACKAGES}/{path.relative_to(REPOSITORY)}": path.read_bytes() for path in (REPOSITORY / "safemem").rglob("*.py")}  # fmt: skip
    unit = "usr/lib/systemd/system/safemem-token.service"
    files = {**sources, unit: (REPOSITORY / "systemd/safemem-token.service").read_bytes()}
    files |= debian.STORE
    files["usr/lib/safemem/token"] = tree.programs(PACKAGES, "")["usr/lib/safemem/token"].encode()
    result = boot(
        debian.guest(
            f"token-{suite}", suite, shell("token-early", GOES_ON="yes" if suite == "testing" else ""), shell("token-unit", ARGS=ARGS, CMDLINE=f"{CMDLINE} {debian.NO_UDEV}"), policy=TEXT, cmdline=debian.NO_UDEV,
            files=files, kernel="no-debugfs", next_kernel="no-debugfs", dimm_mib=0,
        )
    )  # fmt: skip
    report = result.report

    assert result.fate == "poweroff", result.serial[-3000:]
    assert [report["unit"], report["still"]] == ["active"] * 2 and report["name"].startswith("@safemem-token ")
    assert "safemem.token=" in report["token"], report["why"]
    assert report["status"] == "42" and json.loads(report["record1"])["decision"]["action"] == "online-all"
    assert came_of(result, 1) == ("accepted", "dev/liveupdate", "the predecessor's token came through LUO")
    if suite == "testing":
        assert (report["stored1"], report["stored2"]) == ("nothing", "guest:whole"), report
