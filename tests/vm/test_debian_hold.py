# SPDX-License-Identifier: MIT
"""Debian userspace on the guests' kernels: what the initramfs held stays held through coldplug and vendors' rules."""

from __future__ import annotations

import pytest

from tests.vm import debian
from tests.vm.guests import ALL_ONLINE, HELD
from tests.vm.test_udev import VENDOR

pytestmark = pytest.mark.vm

VERSIONS = {"bookworm": "252", "trixie": "257"}


@pytest.mark.parametrize("suite", debian.SUITES)
def test_without_safemem_the_real_root_onlines_everything(suite: str) -> None:
    """Blocks that the initramfs left offline come online in the real root's coldplug: the other test can fail."""
    rules = {f"usr/lib/udev/rules.d/{name}": text.encode() for name, text in VENDOR.items()}
    image = debian.initrd(
        'report early "$(blocks 32 39)"', 'state\nreport version "$(udevadm --version | cut -d" " -f1)"', files=rules
    )
    result = debian.run(f"debian-{suite}-without", suite, image)

    assert result.fate == "poweroff", result.serial[-3000:]
    assert result.report["version"] == VERSIONS[suite]
    assert result.report["failed"] == ""
    assert result.report["early"].split() == [HELD]
    assert result.report["dimm"].split() == [ALL_ONLINE]
