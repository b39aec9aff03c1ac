# SPDX-License-Identifier: MIT
"""A real udevd with rules that online memory: coldplug, and memory that is plugged in later."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.vm import harness
from tests.vm.kit import ALL_ONLINE, HELD, PLUG, SHELL, VENDOR, decided, initrd, policy_text, span

pytestmark = pytest.mark.vm

UDEV = r"""
mkdir -p /run/udev /lib/systemd /etc
ln -sf /bin/udevadm /lib/systemd/systemd-udevd
coldplug() {
    /lib/systemd/systemd-udevd --daemon
    udevadm trigger --type=subsystems --action=add
    udevadm trigger --type=devices --action=add
    udevadm settle
}
# Plugged after the checkpoint; the boot DIMM has blocks 32 to 39.
plugged() {
    report checkpoint 1
    n=0
    until [ -e /sys/devices/system/memory/memory47 ] || [ $n = 100 ]; do sleep 0.1; n=$((n + 1)); done
    udevadm settle
    sleep 1
    grown=none
    until [ "$grown" = "$(blocks 64 87)" ]; do grown=$(blocks 64 87); sleep 2; done
    report later "$(blocks 40 47)"
    report grown "$grown"
}
"""
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
#: virtio-mem adds no more while 1 GiB of its memory is offline (VIRTIO_MEM_DEFAULT_OFFLINE_THRESHOLD).
STALLED, GROWN = "offline*8", "online*24"


def files() -> dict[str, bytes]:
    """Return udev and the vendors' rules for an initrd."""
    rules = {f"usr/lib/udev/rules.d/{name}": text.encode() for name, text in VENDOR.items()}
    return {**harness.closure("udevadm", "/bin/udevadm"), **rules}


def test_vendor_rules_online_everything_without_safemem() -> None:
    """The same guest without safemem: the test can fail."""
    image = harness.image(SHELL + UDEV + "coldplug; state; plugged", files=files())
    result = harness.run("udev-without", image, checkpoint=lambda _: PLUG)

    assert result.fate == "poweroff"
    assert result.report["dimm"].split() == [ALL_ONLINE]
    assert result.report["later"].split() == [ALL_ONLINE]


def test_held_memory_stays_held() -> None:
    """After online-safe neither coldplug nor a DIMM that is plugged in later brings memory online, and udev says why."""
    script = f"""{UDEV}
    [ "$stage" = 2 ] || handover '{harness.CMDLINE}'
    decide
    coldplug
    report coldplug "$(blocks 32 39)"
    plugged
    udevadm info /sys/devices/system/memory/memory33 >/tmp/info
    report_file info /tmp/info
    """
    text = policy_text("online-safe")
    result = harness.run(
        "udev-held", initrd(script, text, next_kernel="current", files=files()),
        kernel_name="old-kho", next_kernel="current", checkpoint=lambda _: GROW, devices=VIRTIO_MEM, timeout=240,
    )  # fmt: skip

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
    script = f"""{UDEV}
    coldplug
    report early "$(blocks 32 39)"
    udevadm info /sys/devices/system/memory/memory33 >/tmp/info
    report_file info /tmp/info
    plugged
    decide
    report after "$(blocks 40 47)"
    n=0
    until [ "$(blocks 64 87)" = "online*24 " ] || [ $n = 100 ]; do sleep 0.2; n=$((n + 1)); done
    report unstalled "$(blocks 64 87)"
    """
    result = harness.run(
        "udev-early",
        initrd(script, policy_text("panic"), files=early),
        checkpoint=lambda _: GROW,
        devices=VIRTIO_MEM,
        timeout=240,
    )

    assert result.fate == "poweroff"
    assert result.report["early"].split() == [HELD]
    assert "SAFEMEM_HELD=safemem has not decided" in result.report["info"]
    assert (result.report["later"].split(), result.report["grown"].split()) == ([HELD], [STALLED])
    assert result.report["after"].split() == [ALL_ONLINE]
    assert result.report["unstalled"].split() == [GROWN]
    assert result.report["dimm"].split() == [ALL_ONLINE]


def test_after_online_all_arrivals_come_online_in_the_zone() -> None:
    """A DIMM that is plugged in after online-all is onlined in the decision's zone."""
    script = f"{UDEV}decide; coldplug; plugged; report zone \"$(cut -d' ' -f1 /sys/devices/system/memory/memory45/valid_zones)\""
    clean = {path: data for path, data in files().items() if "rules.d" not in path}
    result = harness.run(
        "udev-online",
        initrd(script, policy_text("panic"), files=clean),
        checkpoint=lambda _: GROW,
        devices=VIRTIO_MEM,
        timeout=240,
    )

    assert result.fate == "poweroff"
    assert result.report["later"].split() == [ALL_ONLINE]
    assert result.report["zone"] == "Movable"
    assert result.report["grown"].split() == [GROWN]


def test_memory_that_the_kernel_onlined_before_us() -> None:
    """A DIMM that is there at boot and was onlined by default is told from boot memory, on the console and in the record."""
    result = harness.run("udev-late", initrd("decide", policy_text("panic")), cmdline="memhp_default_state=online")
    says = f"{span(32, 39)} (1 GiB) was hot-added and online before safemem ran"

    assert result.fate == "poweroff"
    assert [note for note in json.loads(result.report["record"])["snapshot"]["notes"] if says in note]
    assert f"safemem: {says}" in result.serial
