# SPDX-License-Identifier: MIT
"""Some rows of docs/pages.md, booted: every page in the guards is intact, without exception."""

from __future__ import annotations

import pytest

from tests.vm import pages
from tests.vm.pages import BOTH, GUARD, MACHINES, NOTHING

pytestmark = pytest.mark.vm
#: Less than `make pages` preserves, but in the guests of one node more than fits above 4 GiB.
SMALL, WHOLE, LARGE = (
    machine._replace(memfd=size) for machine, size in zip((MACHINES[0], *MACHINES[2:4]), (256, 3584, 2560), strict=True)
)


@pytest.mark.parametrize(
    ("machine", "next_kernel", "protection"),
    [
        (SMALL, "rejects", BOTH),
        (SMALL, "has no KHO", GUARD),
        (WHOLE, "rejects", BOTH),
        (LARGE, "rejects", GUARD),
    ],
)
def test_every_guarded_page_is_intact(machine: pages.Machine, next_kernel: str, protection: str) -> None:
    """The guards are in force, as large as `safemem layout` promised, and hold through a program that takes all else."""
    found = pages.row(machine, next_kernel, protection)
    print(found)

    assert found.fate == "poweroff" and pages.sound(found)
    assert found.crash.before > 10_000
    promised = pages.advised(machine)
    assert (found.crash_share + found.gigantic_share) * (machine.boot << 20) >= promised.least
    assert found.filled > 0
    # On what the crash range does not reach, gigantic pages are all that holds.
    assert found.gigantic_share > 0 or machine == SMALL
    if machine.nodes:
        assert found.crash_share + found.gigantic_share >= 0.6 and found.gigantic.before > 10_000


def test_without_safemem_they_are_lost() -> None:
    """The same pages, counted the same way, do not survive where nothing holds them."""
    found = pages.row(SMALL, "rejects", NOTHING)

    assert found.fate == "poweroff" and not found.held
    assert found.crash.after < found.crash.before // 10


@pytest.mark.parametrize("machine", [SMALL, LARGE])
def test_accepted_with_the_layout(machine: pages.Machine) -> None:
    """The same arguments do no harm to a handover that is accepted: every page comes back, and every gigantic page goes."""
    found = pages.row(machine, "accepts", GUARD)

    assert pages.sound(found) and found.retrieved == machine.memfd * 256
