# SPDX-License-Identifier: MIT
"""A real udevd with rules that online memory: coldplug, and memory that is plugged in later."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.vm import harness
from tests.vm.harness import boot, shell
from tests.vm.kit import ALL_ONLINE, HELD, PLUG, VENDOR, decided, guest, lost, policy_text, span

pytestmark = pytest.mark.vm

#: A virtio-mem device with blocks 64 to 87, empty until GROW.
VIRTIO_MEM = (
    "-object", "memory-backend-ram,id=plug,size=3G",
    "-device", "virtio-mem-pci,id=vm0,memdev=plug,requested-size=0,memaddr=0x200000000",
)  # fmt: skip
GROW: list[dict[str, Any]] = [
    *PLUG,
    {
        "execute": "qom-set",
        "arguments": {"path": "/machine/peripheral/vm0", "property": "requested-size", "value": 3 << 30},
    },
]
#: A guest with that device, and what happens to it at its checkpoint.
GROWING: dict[str, Any] = {"checkpoint": lambda _: GROW, "devices": VIRTIO_MEM, "timeout": 240}
#: virtio-mem adds no more while 1 GiB of its memory is offline (VIRTIO_MEM_DEFAULT_OFFLINE_THRESHOLD).
STALLED, GROWN = "offline*8", "online*24"


def files() -> dict[str, bytes]:
    """Return udev and the vendors' rules for an initrd."""
    rules = {f"usr/lib/udev/rules.d/{name}": text.encode() for name, text in VENDOR.items()}
    return {**harness.closure("udevadm", "/bin/udevadm"), **rules}


def test_vendor_rules_online_everything_without_safemem() -> None:
    """The same guest without safemem: the test can fail."""
    script = shell("udev") + "coldplug; state; plugged"
    result = boot(guest("udev-without", script, files=files(), checkpoint=lambda _: PLUG))

    assert result.fate == "poweroff"
    assert result.report["dimm"].split() == [ALL_ONLINE]
    assert result.report["later"].split() == [ALL_ONLINE]


def test_held_memory_stays_held() -> None:
    """After online-safe neither coldplug nor a DIMM that is plugged in later brings memory online, and udev says why."""
    script = shell("udev") + shell("udev-held")
    result = boot(lost("udev-held", script, policy_text("online-safe"), files=files(), **GROWING))

    assert result.fate == "poweroff"
    assert decided(result)["action"] == "online-safe"
    assert result.report["coldplug"].split() == [HELD]
    assert result.report["later"].split() == [HELD]
    assert result.report["grown"].split() == [STALLED]
    assert "SAFEMEM_HELD=online-safe by rule otherwise, policy vm" in result.report["info"]
    assert "safemem-held" in result.report["info"]


def test_before_the_decision_nothing_comes_online() -> None:
    """A udevd that runs too early leaves what is there and what is plugged in then; the decision onlines all of it."""
    early = {path: data for path, data in files().items() if "rules.d" not in path}
    script = shell("udev") + shell("udev-early")
    result = boot(guest("udev-early", script, policy_text("panic"), files=early, **GROWING))

    assert result.fate == "poweroff"
    assert result.report["early"].split() == [HELD]
    assert "SAFEMEM_HELD=safemem has not decided" in result.report["info"]
    assert (result.report["later"].split(), result.report["grown"].split()) == ([HELD], [STALLED])
    assert result.report["after"].split() == [ALL_ONLINE]
    assert result.report["unstalled"].split() == [GROWN]
    assert result.report["dimm"].split() == [ALL_ONLINE]


def test_after_online_all_arrivals_come_online_in_the_zone() -> None:
    """A DIMM that is plugged in after online-all is onlined in the decision's zone."""
    script = shell("udev") + "decide; coldplug; plugged; report zone \"$(cut -d' ' -f1 $MEMORY/memory45/valid_zones)\""
    clean = {path: data for path, data in files().items() if "rules.d" not in path}
    result = boot(guest("udev-online", script, policy_text("panic"), files=clean, **GROWING))

    assert result.fate == "poweroff"
    assert result.report["later"].split() == [ALL_ONLINE]
    assert result.report["zone"] == "Movable"
    assert result.report["grown"].split() == [GROWN]


def test_memory_that_the_kernel_onlined_before_us() -> None:
    """A DIMM that is there at boot and was onlined by default is told from boot memory, on the console and in the record."""
    result = boot(guest("udev-late", text=policy_text("panic"), cmdline="memhp_default_state=online"))
    says = f"{span(32, 39)} (1 GiB) was hot-added and online before safemem ran"

    assert result.fate == "poweroff"
    assert [note for note in json.loads(result.report["record"])["snapshot"]["notes"] if says in note]
    assert f"safemem: {says}" in result.serial
