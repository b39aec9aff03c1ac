# SPDX-License-Identifier: MIT
"""safemem itself fails on a real machine: every way ends in the compiled `on_failure`, here a reboot."""

from __future__ import annotations

import pytest

from tests.vm.harness import boot
from tests.vm.kit import DEADLINE, guest, policy_text

pytestmark = pytest.mark.vm

#: Something else has the interpreter's place and waits for ever; nothing of the program itself does.
HANG = r"printf '#!/bin/sh\necho $$ >/tmp/pid\nexec sleep 1000\n' >/usr/lib/safemem/lib/ld.so"
FAILURES = {
    "no-interpreter": ("rm /usr/lib/safemem/bin/python3", "the interpreter cannot be started"),
    "no-loader": ("rm /usr/lib/safemem/lib/ld.so", "the interpreter cannot be started"),
    "flipped-byte": (
        "printf X | dd of=/usr/lib/safemem/policy.json bs=1 seek=100 conv=notrunc 2>/dev/null",
        "the program ended with status 1",
    ),
    "no-policy": ("rm /usr/lib/safemem/policy.json", "the program ended with status 1"),
    "module-missing": ("rm /usr/lib/safemem/app/safemem/boot/engine.pyc", "the program ended with status 1"),
    "killed": (
        f"{HANG}; (sleep 2; kill -9 $(cat /tmp/pid)) &",
        "the program ended with status 137",
    ),
    "hung": (HANG, "the program ended with status 137"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_ends_in_on_failure(name: str) -> None:
    """The boot does not go on: no line of the init after safemem runs, and the machine resets."""
    damage, reason = FAILURES[name]
    script = f"{damage}\n/usr/lib/safemem/boot\nreport returned $?\n"
    result = boot(guest(f"failure-{name}", script, policy_text("panic")))

    assert result.fate == "reset"
    assert "returned" not in result.report
    assert f"safemem: reboot: no decision, says the test ({reason})" in result.serial
    assert (f"no progress for {DEADLINE} s" in result.serial) == (name == "hung")
