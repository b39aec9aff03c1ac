# SPDX-License-Identifier: MIT
"""Keeps the serial logs of guests whose test failed, and only those; notes what each guest took."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from tests.vm import harness


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what the guests took. Drop the logs of a test that passed; of one that failed, say where they are."""
    report: Any = yield
    # What a fixture booted is told by the test that asked for it first.
    if report.when in ("setup", "call") and harness.LOGGED:
        # A worker of xdist can send lists; tests/conftest.py sums them up.
        report.user_properties.append(("guests", [list(cost) for _, cost in harness.LOGGED]))
        for log, _ in harness.LOGGED:
            if report.passed:
                log.unlink(missing_ok=True)
            else:
                report.sections.append(("serial log", str(log)))
        harness.LOGGED.clear()
    return report  # type: ignore[no-any-return]
