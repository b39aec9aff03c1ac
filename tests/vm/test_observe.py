# SPDX-License-Identifier: MIT
"""A policy that only observes on a real kernel: the machine is what Linux alone makes of it, and the record says what would be."""

from __future__ import annotations

import json

import pytest

from tests.vm.harness import boot, shell
from tests.vm.kit import ALL_ONLINE, decided, guest, lost, policy_text

pytestmark = pytest.mark.vm

OBSERVE = policy_text("panic").replace('name = "vm"', 'name = "vm"\nobserve = true')


def test_a_lost_handover_is_only_recorded() -> None:
    """A rejected handover under a policy that panics: no panic, no hold, the DIMM online, and the record has the panic."""
    result = boot(lost("observe", shell("hand-over"), OBSERVE))

    assert result.fate == "poweroff" and result.report["returned"] == "0"
    assert result.report["dimm"].split() == [ALL_ONLINE] and result.report["auto_online"] == "online"
    document = json.loads(result.report["record"])
    assert (document["result"]["observed"], document["result"]["problems"]) == (True, [])
    decision = decided(result)
    assert (decision["action"], decision["facts"]["handover"]["value"]) == ("panic", "rejected")
    assert "safemem: observe: nothing of this is done" in result.serial
    assert "sysrq: Trigger" not in result.serial


def test_a_failure_of_safemem_is_none_of_the_hosts() -> None:
    """With a policy that is damaged, a cold boot goes on with all of its memory and no decision."""
    damage = "printf X | dd of=/usr/lib/safemem/policy.json bs=1 seek=100 conv=notrunc 2>/dev/null"
    script = f'{damage}\n/usr/lib/safemem/boot\nreport returned $?\nreport left "$(ls /run/safemem)"\nstate\n'
    result = boot(guest("observe-failure", script, OBSERVE))

    assert result.fate == "poweroff" and result.report["returned"] == "42"
    assert result.report["dimm"].split() == [ALL_ONLINE] and result.report["auto_online"] == "online"
    assert result.report["left"] == "passed"
    assert "the policy only observes, so this boot goes on without a decision" in result.serial
