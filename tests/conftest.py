# SPDX-License-Identifier: MIT
"""How the tests are spread over workers."""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest
from hypothesis import settings

pytest_plugins = ["tests.needs"]

# A machine that boots guests beside the tests stalls any of them; what time a thing may take is the benchmark's business.
settings.register_profile("safemem", deadline=None)
settings.load_profile("safemem")

# In the background of a shell, or after nohup, these are ignored, and what a test starts could not be told to stop.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests that passed have to say (`record_property("says", …)`)."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "says":
                terminalreporter.write_line(str(value))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Leave all tests of one Debian tree, and of one file without guests, to one worker: what they share is made once.

    All other guests, and each other Python, go wherever there is time.

    Marks (`xdist_group`) would say the same, but xdist 3.8 no longer sees them under pytest 9.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Shared(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            found = re.search(r"test_distro\.py::.*\[(bookworm|trixie)-(dracut|initramfs-tools)", nodeid)
            if found:
                return found.expand(r"\1-\2")
            return nodeid if "/vm/" in nodeid or "test_pythons.py" in nodeid else nodeid.partition("::")[0]

    return Shared(config, log)
