# SPDX-License-Identifier: MIT
"""How the tests are spread over workers, and what is said at the end of what guests took."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

pytest_plugins = ["tests.needs"]

# A machine that boots guests beside the tests stalls any of them; what time a thing may take is the benchmark's business.
settings.register_profile("safemem", deadline=None, max_examples=int(os.environ.get("SAFEMEM_EXAMPLES", "100")))
settings.load_profile("safemem")

# In the background of a shell, or after nohup, these are ignored, and what a test starts could not be told to stop.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


#: Seconds. No test takes a third of it on two idle cores.
LONGEST = 1500


class Hangs(BaseException):
    """A test came to no end; what it tests cannot mistake this for an error of its own."""


def _hangs(*_: object) -> None:
    raise Hangs(f"no end after {LONGEST} s")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Fail a test that hangs where it stands, so that the run ends and names it."""
    signal.signal(signal.SIGALRM, _hangs)
    signal.setitimer(signal.ITIMER_REAL, LONGEST, 10)  # and again, for what tries the same once more
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def scope(nodeid: str) -> str:
    """Return what the test with this id shares a worker with: what they have in common is made once.

    Tests of guests go wherever there is time, those of any other file stay together. In any file, parameters whose id ends
    in `@NAME` go to the worker of that name. A mark would say the same, but what xdist 3.8 makes of `xdist_group` does not
    arrive under pytest 9, and workers and their scheduler share nothing but ids.
    """
    named = re.search(r"@([\w.-]+)\]$", nodeid)
    if named:
        return named[1]
    return nodeid if "/vm/" in nodeid else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give xdist our scopes."""
    from xdist.scheduler import LoadScopeScheduling

    class Shared(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

    return Shared(config, log)


@pytest.fixture(scope="session")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what builds the package for a release of Debian: once a run, whichever worker is first."""
    from tests.kit import build_deb
    from tests.vm.debian import building

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "deb"

    def built(release: str) -> Path:
        with building(folder / release) as draft:
            if draft:
                draft.mkdir()
                build_deb(release, draft)
        return next((folder / release).glob("*.deb"))

    return built


class Cost(NamedTuple):
    """What a guest took, and in which test."""

    name: str
    seconds: float
    processor: float
    kernels: int
    test: str


def costs(reports: list[pytest.TestReport]) -> list[Cost]:
    """Return what each guest of these reports took, the longest first."""
    found = [
        Cost(guest, seconds, processor, kernels, report.nodeid.rpartition("/")[2])
        for report in reports
        for name, guests in report.user_properties
        if name == "guests" and isinstance(guests, list)
        for guest, seconds, processor, kernels in guests
    ]
    return sorted(found, key=lambda cost: -cost.seconds)


def lines(found: list[Cost]) -> list[str]:
    """Return a line for all and one a guest: seconds, seconds of the processor, kernels that were booted, names."""
    seconds, processor, kernels = (sum(column) for column in list(zip(*found, strict=True))[1:4])
    whole = Cost(f"{len(found)} guests", seconds, processor, kernels, "")
    return [
        f"{cost.seconds:7.1f} s {cost.processor:7.1f} s of processor {cost.kernels:4} kernels  {cost.name:24} {cost.test}"
        for cost in (whole, *found)
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests that passed have to say (`record_property("says", …)`), and what guests took."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "says":
                terminalreporter.write_line(str(value))
    reports = [report for group in terminalreporter.stats.values() for report in group]
    found = costs([report for report in reports if isinstance(report, pytest.TestReport)])
    if found:
        terminalreporter.section("what guests took")
        for line in lines(found):
            terminalreporter.write_line(line.rstrip())
