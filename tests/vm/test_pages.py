# SPDX-License-Identifier: MIT
"""Some rows of docs/pages.md, booted: every page in the guard is intact, without exception."""

from __future__ import annotations

import pytest

from tests.vm import pages
from tests.vm.pages import BOTH, GUARD, MACHINES, NOTHING

pytestmark = pytest.mark.vm
#: Less than `make pages` preserves, but in the guest of 4 GiB more than fits above 4 GiB: its guard lies below.
SMALL, MIDDLE, LARGE, BOUND = (
    machine._replace(memfd=size) for machine, size in zip(MACHINES, (256, 1536, 256, 256), strict=True)
)


@pytest.mark.parametrize(
    ("machine", "next_kernel", "protection"),
    [
        (SMALL, "rejects", BOTH),
        (SMALL, "has no KHO", GUARD),
        (MIDDLE, "rejects", GUARD),
        (LARGE, "rejects", GUARD),
        (BOUND, "rejects", GUARD),
    ],
)
def test_every_guarded_page_is_intact(machine: pages.Machine, next_kernel: str, protection: str) -> None:
    """The guard is in force, as large as `safemem layout` promised, and holds through a program that takes all else."""
    found = pages.row(machine, next_kernel, protection)
    print(found)

    assert found.fate == "poweroff" and pages.sound(found)
    assert found.guard[0] > 10_000 and found.guard[0] == found.guard[1]
    promised = pages.advised(machine)
    assert found.guarded_share * (machine.boot << 20) >= promised.least
    assert promised.now is None or promised.after > promised.now.guarded
    assert found.filled > 0
    if machine.bound:
        assert found.rest[0] < found.guard[0] // 100


def test_without_safemem_they_are_lost() -> None:
    """The same pages, counted the same way, do not survive where nothing holds them."""
    found = pages.row(SMALL, "rejects", NOTHING)

    assert found.fate == "poweroff" and not found.held
    assert found.guard[1] < found.guard[0] // 10


@pytest.mark.parametrize("machine", [SMALL, LARGE])
def test_accepted_with_the_layout(machine: pages.Machine) -> None:
    """The same arguments do no harm to a handover that is accepted: every page comes back."""
    found = pages.row(machine, "accepts", GUARD)

    assert pages.sound(found) and found.retrieved == machine.memfd * 256
