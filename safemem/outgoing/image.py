# SPDX-License-Identifier: MIT
"""Reading the image of a kernel."""

from __future__ import annotations

from safemem.boot.model import Refused
from safemem.outgoing.kernel import Kernel


def read(path: str) -> tuple[Kernel, ...]:
    """Return what the image at `path` is, of a unified one each profile. Raises Refused."""
    raise Refused(f"{path}: reading images is not there yet")
