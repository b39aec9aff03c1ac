# SPDX-License-Identifier: MIT
"""Guests' memory in a dax device, for the policy that promises it: held, released, onlined in a zone, over a kexec that is lost.

The kernel makes /dev/dax0.0 of a range that firmware calls RAM and the command line marks as soft reserved, as firmware
itself does with CXL and high-bandwidth memory, and its own kmem takes it at once: with `memhp_default_state=offline` the
blocks are there and offline before any program runs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from safemem.boot.ranges import Range
from tests.fakes import SHIPPED
from tests.needs import lacking
from tests.vm import harness
from tests.vm.harness import Guest, boot, shell
from tests.vm.kit import COMMAND, SHARE, decided, guest, policy_text, snapshot, span

pytestmark = pytest.mark.vm

#: 256 MiB from 512 MiB on, of 1 GiB: blocks 4 and 5; and the pages of 64 MiB of it, which the guests have.
DAX, PAGES = Range(0x20000000, 0x30000000), 16384
SOFT_RESERVED = "memmap=256M%512M-1+0xefffffff"
HELD, ONLINE = ["offline*2"], ["online*2"]
POLICY = next(path for path in SHIPPED if path.stem == "dax-guests").read_text()


def dax(name: str, script: str, text: str = "", *, cmdline: str = "", **more: Any) -> Guest:
    """Return a guest with such a device."""
    program = {"bin/dax": harness.program("dax").read_bytes()}
    return guest(
        name, shell("dax-functions", START=DAX.start) + script, text, files=program, dimm_mib=0,
        cmdline=f"{SOFT_RESERVED} {cmdline}", **more,
    )  # fmt: skip


@pytest.mark.parametrize("held", [True, False], ids=["dax-guests", "without-safemem"])
def test_guests_pages_after_a_rejected_handover(tmp_path: Path, held: bool) -> None:
    """Every page is where it was if the policy held it; onlined by the kernel's default, they are lost."""
    counted: list[int] = []

    def count(_: dict[str, str] | None = None) -> None:
        counted.append(harness.count_at(tmp_path, 64, [(DAX.start, DAX.end)]))

    # The dax device is made anew by each kernel, and only the command line says of what.
    more = SOFT_RESERVED if held else f"{SOFT_RESERVED} memhp_default_state=online"
    script = shell("dax", NEXT=more, THEN="decide" if held else "state", MIB=500 if held else 900)
    result = boot(
        dax(f"dax-{'held' if held else 'lost'}", script, POLICY if held else "", kernel="old-kho", next_kernel="current", memory=tmp_path, checkpoint=count)
    )  # fmt: skip
    count()
    report = result.report
    print(f"pattern pages in dax memory: {counted[0]} before, {counted[1]} after; {report['filled']} MiB used")

    assert result.fate == "poweroff", result.serial[-2000:]
    assert (report["first"].split(), report["given"]) == (["kmem", *HELD], "")
    assert report["before"] == str(PAGES) == str(counted[0])
    assert report["again"] == "kmem"
    if held:
        decision = decided(result)
        assert (decision["action"], decision["enter"]) == ("online-safe", "maintenance")
        assert decision["facts"]["handover"]["value"] == "rejected"
        assert report["dax"].split() == HELD
        assert counted[1] == PAGES
    else:
        assert report["dax"].split() == ONLINE
        assert counted[1] < PAGES // 10


def test_guests_go_on_after_an_accepted_handover() -> None:
    """Held all the same; the VMM maps its memory again, kmem onlines nothing of it, and a release does."""
    script = shell("dax", NEXT=SOFT_RESERVED, THEN="decide", MIB=100) + COMMAND + shell("dax-later")
    result = boot(dax("dax-accepted", script, POLICY, next_kernel="current", devices=SHARE, timeout=200))
    report = result.report

    assert result.fate == "poweroff", result.serial[-2000:]
    decision = decided(result)
    assert (decision["action"], decision["facts"]["handover"]["value"]) == ("online-safe", "accepted")
    assert not decision["enter"]
    assert report["dax"].split() == HELD
    assert report["count"] == str(PAGES)
    assert (report["bound"], report["rebound"].split()) == ("kmem", HELD)
    assert (report["released"], report["after"].split()) == ("0", ONLINE), report["said"]
    # With KHO on, what is preserved must not lie in memory that the next kernel does not boot with.
    assert report["after_zones"].split() == ["Movable"]


@pytest.mark.parametrize("zone", ["movable", "kernel"])
def test_online_in_the_zone_that_is_asked_for(zone: str) -> None:
    """A policy that gives dax memory to the host, in either zone."""
    text = policy_text("online-all-in-zone", extra=f'zone = "{zone}"')
    result = boot(dax(f"dax-{zone}", "mount -t debugfs d /sys/kernel/debug\ndecide\ndax_blocks dax\n", text))

    assert result.fate == "poweroff", result.serial[-2000:]
    assert decided(result)["action"] == "online-all"
    assert result.report["dax"].split() == ONLINE
    # Below 4 GiB the zone of the kernel is DMA32.
    assert result.report["dax_zones"].split() == [{"movable": "Movable", "kernel": "DMA32"}[zone]]


def test_the_hosts_share() -> None:
    """What `safemem.safe=` names is the host's, in whole blocks; the rest stays the guests'."""
    script = "mount -t debugfs d /sys/kernel/debug\ndecide\ndax_blocks dax\n"
    result = boot(dax("dax-share", script, POLICY, cmdline=f"safemem.safe={span(4, 4)}"))

    assert result.fate == "poweroff", result.serial[-2000:]
    assert result.report["dax"].split() == ["online*1", "offline*1"]


# ---- CXL


def cxl(name: str, script: str, memory: Path, **more: Any) -> Guest:
    """Return a guest with a CXL type 3 device of 256 MiB, which is kept in `memory`, and of which nobody has made a region yet."""
    found = [program for program in ("qemu-system-x86_64", "qemu-cxl") if shutil.which(program)]
    versions = {
        program: subprocess.run([program, "--version"], capture_output=True, text=True).stdout for program in found
    }
    numbers = {name: re.search(r"version (\d+)\.(\d+)", text) for name, text in versions.items()}
    able = [name for name, number in numbers.items() if number and tuple(map(int, number.groups())) >= (8, 1)]
    if not able:
        lacking("CXL memory needs QEMU 8.1, which tests/vm/newer-qemu fetches where Debian has it in its backports")
    devices = (
        *SHARE,
        # A host bridge that only passes on has no decoder that outlives the kexec, and the next kernel makes no region of it.
        # A processor with a hypervisor beneath it cannot clear its caches of what was there before, and gets no region.
        "-cpu", f"{harness.CPU},hypervisor=off",
        "-machine", "q35,cxl=on", "-machine", "cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=4G",
        "-object", f"memory-backend-file,id=cxlmem,share=on,size=256M,mem-path={memory / 'cxl'}",
        "-device", "pxb-cxl,bus_nr=12,bus=pcie.0,id=cxl.1,hdm_for_passthrough=true", "-device", "cxl-rp,port=0,bus=cxl.1,id=rp0,chassis=0,slot=2",
        "-device", "cxl-type3,bus=rp0,volatile-memdev=cxlmem,id=cxl0",
    )  # fmt: skip
    files = {"bin/dax": harness.program("dax").read_bytes()}
    script = shell("dax-functions", START=0) + shell("cxl-functions") + script
    return guest(
        name, script, POLICY, files=files, dimm_mib=0, qemu=able[0], next_kernel="current", devices=devices, **more
    )


@pytest.mark.parametrize(("handover", "kernel"), [("rejected", "old-kho"), ("accepted", "current")])
def test_guests_pages_in_cxl_memory(tmp_path: Path, handover: str, kernel: str) -> None:
    """The region outlives the kexec, and the next kernel finds it by itself: its blocks are held, and every page is where it was."""
    counted: list[int] = []

    def count(_: dict[str, str] | None = None) -> None:
        counted.append(harness.count_pattern(tmp_path / "cxl", 8))

    script = shell("cxl", MIB=300)
    if handover == "accepted":
        script += COMMAND + shell("cxl-later")
    result = boot(cxl(f"cxl-{handover}", script, tmp_path, kernel=kernel, checkpoint=count, timeout=200))
    report = result.report
    print(f"pattern pages in CXL memory: {counted}; {report.get('filled')} MiB used")

    assert result.fate == "poweroff", result.serial[-2000:]
    assert (report["first"].split(), report["before"]) == (["kmem", *HELD], "2048")
    decision = decided(result)
    assert (decision["action"], decision["facts"]["handover"]["value"]) == ("online-safe", handover)
    assert report["again"] == "kmem"
    assert {run.driver for run in snapshot(result).blocks if run.state == "offline"} == {"kmem"}
    assert report["dax"].split() == HELD
    assert counted == [2048, 2048]
    if handover == "accepted":
        assert (report["released"], report["after"].split()) == ("0", ONLINE), report["said"]
        assert report["after_zones"] == "Movable"
