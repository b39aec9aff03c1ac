# SPDX-License-Identifier: MIT
"""Debian userspace on the guests' kernels: what the initramfs held stays held through coldplug and vendors' rules."""

from __future__ import annotations

import pytest

from packages import tree
from packages.deb import PACKAGES
from tests.vm import debian, harness
from tests.vm.harness import boot, shell
from tests.vm.kit import ALL_ONLINE, HELD, SITE, VENDOR, decided, policy_text

pytestmark = pytest.mark.vm

VERSIONS = {"bookworm": "252", "trixie": "257"}


@pytest.mark.parametrize("suite", debian.SUITES)
def test_without_safemem_the_real_root_onlines_everything(suite: str) -> None:
    """Blocks that the initramfs left offline come online in the real root's coldplug: the other test can fail."""
    rules = {f"usr/lib/udev/rules.d/{name}": text.encode() for name, text in VENDOR.items()}
    early = 'report early "$(blocks 32 39)"'
    script = """state; report version "$(udevadm --version | cut -d' ' -f1)\""""
    result = boot(debian.guest(f"debian-{suite}-without", suite, early, script, files=rules))

    assert result.fate == "poweroff", result.serial[-3000:]
    assert result.report["version"] == VERSIONS[suite]
    assert result.report["failed"] == ""
    assert result.report["early"].split() == [HELD]
    assert result.report["dimm"].split() == [ALL_ONLINE]


RELEASE = """
import sys
sys.path.insert(0, "/usr/lib/python3/dist-packages")
from safemem.realroot import hold
hold.release("/")
"""


def installed() -> dict[str, bytes]:
    """Return safemem's files in a real root, and rules that online memory in every folder."""
    base = harness.REPOSITORY
    package = {f"{PACKAGES}/{path.relative_to(base)}": path.read_bytes() for path in (base / "safemem").rglob("*.py")}
    return {
        **package,
        **{path: text.encode() for path, text in tree.programs(PACKAGES, PACKAGES).items()},
        "usr/lib/udev/rules.d/60-safemem.rules": (base / "udev/60-safemem.rules").read_bytes(),
        "usr/lib/systemd/system/safemem-hold.service": (base / "systemd/safemem-hold.service").read_bytes(),
        "usr/lib/systemd/system/safemem-mask.path": (base / "systemd/safemem-mask.path").read_bytes(),
        "usr/lib/systemd/system/safemem-mask.service": (base / "systemd/safemem-mask.service").read_bytes(),
        "usr/lib/systemd/system-generators/safemem-generator": (base / "systemd/safemem-generator").read_bytes(),
        "etc/systemd/system/sysinit.target.d/safemem.conf": b"[Unit]\nWants=safemem-hold.service safemem-mask.path\n",
        **{f"usr/lib/udev/rules.d/{name}": text.encode() for name, text in VENDOR.items()},
        "usr/lib/udev/rules.d/55-site.rules": SITE.encode(),
        "etc/udev/rules.d/41-site.rules": SITE.encode(),
    }


@pytest.mark.parametrize("suite", debian.SUITES)
def test_held_through_the_real_root(suite: str) -> None:
    """Switch-root, coldplug, a restart of udevd: held and tagged with why, in spite of every rule; then it is released."""
    guest = debian.guest(
        f"debian-{suite}-held", suite, shell("hand-over") + 'report early "$(blocks 32 39)"',
        shell("hold-verdict", RELEASE=RELEASE), policy=policy_text("online-safe"), files=installed(),
        kernel="old-kho", next_kernel="current",
    )  # fmt: skip
    result = boot(guest)
    report = result.report

    assert result.fate == "poweroff", result.serial[-3000:]
    assert report["version"] == VERSIONS[suite]
    assert decided(result)["action"] == "online-safe"
    assert (report["unit"], report["failed"]) == ("active", "")
    assert [report[key].split() for key in ("early", "dimm", "again", "tested_state")] == [[HELD]] * 4
    assert report["auto_online"] == "offline"
    # Firmware's names, the processor's flags and the clock sources are enough to say what systemd asks the processor.
    assert report["virt"] == decided(result)["facts"]["virt"]["value"] == "qemu"
    assert "SAFEMEM_HELD=online-safe by rule otherwise, policy vm" in report["info"]
    assert "safemem-held" in report["info"]
    assert "mount etc/udev/rules.d/41-site.rules" in report["masked"].splitlines()
    assert {"run/udev/rules.d/55-site.rules", *(f"run/udev/rules.d/{name}" for name in VENDOR)} <= set(report["masked"].splitlines())  # fmt: skip
    assert report["tested"] == "0"
    assert not [line for line in report["test"].splitlines() if "safemem" in line and ("nvalid" in line or "ailed" in line)]  # fmt: skip
    if suite != "bookworm":  # `verify` came with 254
        assert (report["verified"], report["verify"]) == ("0", "")
    # The mask was all that held it: without, the same coldplug onlines everything.
    assert (report["mounts"], report["left"]) == ("0", "0")
    assert report["released"].split() == [ALL_ONLINE]


#: Ways in which the hold of the real root fails: it cannot be started, or cannot mount over a file in /etc.
FAULTS = {
    "no-program": ({"usr/lib/safemem/hold": b"#!/nowhere/python3\n"}, "safemem-hold.service failed"),
    "no-mount": ({"usr/bin/mount": b"#!/bin/sh\nexit 32\n"}, "41-site.rules could not be masked"),
}


@pytest.mark.parametrize(
    ("suite", "fault", "action"),
    [
        ("bookworm", "no-program", "panic"),
        ("trixie", "no-program", "reboot"),
        ("bookworm", "no-mount", "panic"),
    ],
)
def test_a_hold_that_fails_ends_as_the_rule_says(suite: str, fault: str, action: str) -> None:
    """on_shortfall holds in the real root as well, and no rule of udev is read before it does."""
    broken, says = FAULTS[fault]
    files = {**installed(), **broken}
    guest = debian.guest(
        f"debian-{suite}-{fault}", suite, shell("hand-over") + 'report early "$(blocks 32 39)"', "report reached yes",
        policy=policy_text("online-safe", extra=f'on_shortfall = "{action}"'), files=files, kernel="old-kho",
        next_kernel="current",
    )  # fmt: skip
    result = boot(guest)

    assert result.fate == ("panic" if action == "panic" else "reset"), result.serial[-3000:]
    assert "reached" not in result.report
    assert result.report["early"].split() == [HELD]
    if action == "panic":
        assert says in result.serial
        assert "safemem: end action=panic code=shortfall" in result.serial


def test_a_rule_that_a_package_brings_is_masked() -> None:
    """While memory is held, a rule that is installed is masked before the next block of memory arrives."""
    guest = debian.guest(
        "debian-trixie-late", "trixie", shell("hand-over"), shell("late-rule"), policy=policy_text("online-safe"),
        files={**installed(), "late": SITE.encode()}, kernel="old-kho", next_kernel="current",
    )  # fmt: skip
    result = boot(guest)

    assert result.fate == "poweroff", result.serial[-3000:]
    assert result.report["dimm"].split() == [HELD]
    assert {"run/udev/rules.d/85-new-agent.rules", "mount etc/udev/rules.d/86-site.rules"} <= set(
        result.report["masked"].splitlines()
    )
    assert result.report["unit"].split() == ["success", "active", "success", "inactive"], result.report["unit"]
