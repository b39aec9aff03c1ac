# SPDX-License-Identifier: MIT
"""The fast suite on every Python that safemem is for, but the one that runs this."""

from __future__ import annotations

import platform
from collections.abc import Callable

import pytest

from tests import pythons
from tests.needs import lacking

OTHERS = [version for version in pythons.VERSIONS if version != ".".join(platform.python_version_tuple()[:2])]


@pytest.mark.pythons
@pytest.mark.parametrize("version", OTHERS, ids="@{}".format)  # each goes to a worker of its own
def test_fast_suite(version: str, record_property: Callable[[str, object], None]) -> None:
    """Everything but guests, packages and linters passes; what ran, and where, is said at the end of the run."""
    try:
        python = pythons.get(version)
    except pythons.Unavailable as error:
        reason = f"Python {version} cannot be had: {error}"
        if pythons.VERSIONS[version]:
            lacking(reason)
        pytest.skip(reason)
    exact = pythons.run(python, "-c", "import platform; print(platform.python_version())")
    result = pythons.suite(python)

    assert result.returncode == 0, exact.stdout + result.stdout[-20000:] + result.stderr
    assert exact.stdout.startswith(f"{version}.")
    record_property("says", f"Python {exact.stdout.strip()}: {result.stdout.splitlines()[-1]}")
