# SPDX-License-Identifier: MIT
"""Services that run guests, with the drop-ins of docs/guests.md, in Debian: after a rejection none of them starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import mirror
from tests.kit import REPOSITORY, contents
from tests.vm import debian
from tests.vm.harness import Result, boot, shell
from tests.vm.kit import ALL, policy_text

pytestmark = pytest.mark.vm

_AGENT = b"""[Unit]
Requires=safemem-decided.target
After=safemem-decided.target
[Service]
ExecStart=/usr/bin/sleep infinity
"""
#: Debian has no unit for it; its projects' documents have such a template.
_CLOUD_HYPERVISOR = b"""[Service]
ExecStart=/usr/bin/sleep infinity
"""
#: In the daemon's place: what its real unit starts, and how that unit knows that it is up.
_DAEMON = b"#!/bin/sh\nsystemd-notify --ready\nexec sleep infinity\n"
_STARTED = ("libvirtd.service", "cloud-hypervisor@one.service", "agent.service")


def drop_ins() -> dict[str, bytes]:
    """Return the drop-ins that docs/guests.md shows, by path."""
    text = (REPOSITORY / "docs/guests.md").read_text()
    found = re.findall(r"^    # /(\S+)\n((?:    .*\n)+)", text, re.MULTILINE)
    assert len(found) == 2
    return {path: re.sub("^    ", "", body, flags=re.MULTILINE).encode() for path, body in found}


def booted(deb: Callable[[str], Path], folder: Path, kernel: str) -> Result:
    """Return what became of a boot that `kernel` has handed over to."""
    system = "etc/systemd/system"
    files = {**contents(deb("trixie"), folder), **drop_ins(), **mirror.units("libvirt-daemon", "libvirt-daemon-log")}
    files |= {f"{system}/agent.service": _AGENT, f"{system}/cloud-hypervisor@.service": _CLOUD_HYPERVISOR}
    files["usr/sbin/libvirtd"] = _DAEMON
    wants = "".join(f"Wants={unit}\n" for unit in _STARTED)
    files[f"{system}/multi-user.target.d/guests.conf"] = f"[Unit]\n{wants}".encode()
    files[f"{system}/sysinit.target.d/safemem.conf"] = b"[Unit]\nWants=safemem-hold.service\n"
    early = shell("hand-over", NEXT=f"systemd.firstboot=off {debian.NO_UDEV}")
    return boot(debian.guest(
        f"guests-{kernel}", "trixie", early, shell("guests"), policy=policy_text(), files=files, kernel=kernel,
        next_kernel="current", timeout=600,
    ))  # fmt: skip


def test_after_a_rejection_none_starts(deb: Callable[[str], Path], tmp_path: Path) -> None:
    """Each says why; what only comes after the decision is there; a release lets the VMM start, and no handover is made up."""
    result = booted(deb, tmp_path, "old-kho")
    report = result.report

    assert result.fate == "poweroff", result.serial[-3000:]
    assert report["before"].split() == ["inactive", "inactive", "active"], report["journal"][-3000:]
    assert report["targets"].split() == ["safemem-decided.target"]
    for said in (
        "safemem: required `all`: 1 GiB of memory is held back: online-safe by rule `otherwise`, handover rejected",
        "safemem: required `accepted`: no handover was accepted: handover is rejected",
        "Dependency failed for libvirtd.service", "Dependency failed for cloud-hypervisor@one.service",
    ):  # fmt: skip
        assert said in report["journal"], report["journal"][-3000:]
    assert report["again"].startswith("A dependency job for libvirtd.service failed"), report["again"]
    assert report["release"].startswith("released 1 GiB"), report["release"]
    assert "libvirtd" not in report["start"] and "cloud-hypervisor@one" in report["start"], report["start"]
    assert report["after"].split() == ["active", "inactive", "active"], report["start"]


@pytest.mark.skipif(not ALL, reason="`make nightly` boots it")
def test_after_an_acceptance_all_start(deb: Callable[[str], Path], tmp_path: Path) -> None:
    """All three forms are reached, after the decision has been carried over to udev, and before what requires them."""
    result = booted(deb, tmp_path, "current")
    report = result.report

    assert result.fate == "poweroff", result.serial[-3000:]
    assert report["before"].split() == ["active"] * 3, report["journal"][-3000:]
    assert len(report["targets"].split()) == 3
    order = [
        re.search(pattern, report["journal"])
        for pattern in (r"Finished safemem-hold\.service", r"Finished safemem-decided@all\.service",
                        r"Reached target safemem-decided-all\.target", r"Started libvirtd\.service")
    ]  # fmt: skip
    places = [found.start() for found in order if found]
    assert len(places) == len(order) and places == sorted(places), report["journal"][-3000:]
