# SPDX-License-Identifier: MIT
"""A device that nobody owns and that writes to preserved memory after the kexec, with and without `quiesce`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from safemem.boot.model import Device
from safemem.boot.ranges import parse_range
from tests.vm import harness
from tests.vm.harness import boot, shell
from tests.vm.kit import argument, lost, policy_text, simulated, snapshot

pytestmark = pytest.mark.vm

PAGE = 4096
#: Pages that the device is told to write to, and bytes that it writes to each (guest/edu.c).
COUNT, SIZE = 6, 2048
#: What lies on a disk behind a bridge.
BEHIND = b"behind the bridge" * 4096
#: Of a command register: whether the function may write to memory.
BIT = 0x4


def devices(folder: Path) -> tuple[str, ...]:
    """Return the arguments of a guest with `edu`, and with a disk behind a bridge that no driver owns."""
    disk = folder / "behind"
    disk.write_bytes(BEHIND)
    bridge = ("-device", "pci-bridge,id=bridge,chassis_nr=1")
    drive, device = harness.disk("behind", disk)[1::2]
    return ("-device", "edu,dma_mask=4294967295", *bridge, "-drive", drive, "-device", f"{device},bus=bridge,addr=1")


def edu() -> dict[str, bytes]:
    """Return the program that drives `edu`, as files of an image."""
    return {"bin/edu": harness.program("edu").read_bytes()}


def commands(text: str) -> dict[str, tuple[int, bool]]:
    """Return the command register of each function, and whether a driver owns it."""
    words = (word.split("=") for word in text.split())
    return {address: (int(command.rstrip("+"), 16), command.endswith("+")) for address, command in words}


@pytest.mark.parametrize("quiesce", [False, True], ids=["left", "quiesced"])
def test_a_device_that_nobody_owns(tmp_path: Path, quiesce: bool) -> None:
    """Left alone it damages the pages that it was told to write to; stopped, not one byte of all the guard's."""
    text = policy_text("online-safe", extra='quiesce = "pci"' if quiesce else "")
    seen: list[tuple[list[bytes], str]] = []

    def look(report: dict[str, str]) -> None:
        area = parse_range(argument(report["arguments"], "safemem.guard"))
        with harness.boot_files(tmp_path)[0].open("rb") as file:
            found = []
            for address in report["pages"].split():
                file.seek(int(address, 16))
                found.append(file.read(PAGE))
            file.seek(area.start)
            seen.append((found, hashlib.sha256(file.read(area.size)).hexdigest()))

    result = boot(
        lost(
            f"devices-{'quiesced' if quiesce else 'left'}", shell("devices", COUNT=COUNT, LOCK="yes" if quiesce else ""), text,
            memory=tmp_path, files=edu(), devices=devices(tmp_path), checkpoint=look,
        )
    )  # fmt: skip
    report = result.report

    assert result.fate == "poweroff" and report["returned"] == "0"
    decision, found = simulated(result, text), snapshot(result)
    device = Device(report["edu"], 0x1234, 0x11E8)
    assert found.masters == (device,)
    assert (decision["facts"]["bus_masters"]["value"], decision["facts"]["iommu"]["value"]) == ("some", "off")
    # It works: it has written to the first page before the decision, in both guests, and was told to write to the others.
    assert (report["wrote_before"], report["wrote_after"]) == ("1", str(COUNT - 1))
    (before, whole), (after, whole_after) = seen
    intact = before[1]
    assert all(page[:8] == intact[:8] and page != intact for page in before[2:])
    assert before[0][:SIZE] == bytes(SIZE) and before[0][SIZE:] == intact[SIZE:].replace(intact[8:16], before[0][-8:])
    damaged = [sum(a != b for a, b in zip(one, two, strict=True)) for one, two in zip(before, after, strict=True)]
    if quiesce:
        assert damaged == [0] * COUNT and whole == whole_after
    else:
        assert damaged[0] == 0 and all(number > SIZE // 2 for number in damaged[1:]), damaged
        assert all(page[:SIZE] == bytes(SIZE) for page in after)

    # Of all functions, one bit of one register has changed; the bridge without a driver, and what is behind it, work on.
    first, last = commands(report["commands_before"]), commands(report["commands_after"])
    command, owned = first[device.address]
    assert command & BIT and not owned
    assert last == {**first, device.address: (command & ~BIT if quiesce else command, False)}
    assert any(command & BIT and not owned for address, (command, owned) in last.items() if address != device.address)
    assert report["behind"] == hashlib.sha256(BEHIND[: 64 << 10]).hexdigest()

    done = json.loads(report["record"])["result"]
    assert (done["problems"], done["shortfall"]) == ([], None)
    assert done.get("quiesced") == ([device.address] if quiesce else None)
    codes = {"devices-stopped", "no-iommu"} if quiesce else {"devices-write", "no-iommu"}
    assert codes <= set(decision["warning_codes"])

    if quiesce:  # what the kernel refuses in lockdown is not taken for done
        locked = json.loads(report["locked_record"])["result"]
        why = f"PCI function {device} may still write to memory: operation not permitted"
        assert (report["locked_returned"], locked["problems"], locked["shortfall"]) == ("42", [why], why)
        assert commands(report["commands_locked"]) == first
