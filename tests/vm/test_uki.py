# SPDX-License-Identifier: MIT
"""A unified kernel image made by systemd's ukify, started by firmware and its stub: safemem decides as in any other boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from safemem.initramfs import check
from tests import mirror
from tests.vm import harness
from tests.vm.harness import CMDLINE, Guest, boot, shell
from tests.vm.kit import ALL_ONLINE, HELD, archive, efi, policy_text, simulated

pytestmark = [pytest.mark.vm, pytest.mark.mirror, pytest.mark.needs("apt-get", "dpkg-deb")]


@pytest.mark.parametrize(
    ("state", "kernel", "script"),
    [("none", "current", "decide"), ("accepted", "current", shell("hand-over")), ("rejected", "old-kho", shell("hand-over"))],
    ids=["cold@uki", "accepted@uki", "rejected@uki"],
)  # fmt: skip
def test_by_ukify(tmp_path: Path, state: str, kernel: str, script: str) -> None:
    """Cold from firmware, and after a kexec of its parts: what `check` finds in the image is what decides."""
    text = policy_text("online-safe")
    initrd = harness.image(script, archive=archive(text))
    (tmp_path / "initrd").write_bytes(initrd)
    loader = tmp_path / "esp/EFI/BOOT"
    loader.mkdir(parents=True)
    mirror.unified(loader / "BOOTX64.EFI", harness.kernel(kernel), tmp_path / "initrd", "7.3.4", CMDLINE)
    judged = check.judged((loader / "BOOTX64.EFI").read_bytes())
    assert judged.inside is not None and judged.inside.policy == "vm"
    disk = ("-drive", f"if=none,id=esp,format=raw,readonly=on,file=fat:{tmp_path / 'esp'}",
            "-device", "virtio-blk-pci,drive=esp,bootindex=1")  # fmt: skip
    next_kernel = "" if state == "none" else "current"
    result = boot(
        Guest(f"uki-{state}", initrd, kernel="", next_kernel=next_kernel, devices=(*efi(tmp_path), *disk), timeout=200)
    )

    assert result.fate == "poweroff", result.serial[-2000:]
    assert simulated(result, text)["facts"]["handover"]["value"] == state
    assert result.report["dimm"].split() == [HELD if state == "rejected" else ALL_ONLINE]
