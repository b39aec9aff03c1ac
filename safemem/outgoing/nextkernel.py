# SPDX-License-Identifier: MIT
"""How the next kernel is built, as far as guards depend on it."""

from __future__ import annotations

import re

from safemem.boot.ground import UNTOLD, Build
from safemem.initramfs.store import NoKernel
from safemem.outgoing import image
from safemem.outgoing.kernel import Kernel


def build(path: str) -> Build:
    """Return what can be known of how the kernel in `path` is built, from its image or the configuration beside it."""
    try:
        found = {of(kernel) for kernel in image.read(path, modules=False)}
    except NoKernel:
        return UNTOLD
    # Which profile of a unified image will be booted is not known.
    return found.pop() if len(found) == 1 else UNTOLD


def of(kernel: Kernel) -> Build:
    """Return the same of a kernel whose image was read."""
    kho = bool(kernel.speaks.tree)
    return Build(kho, _has(kernel, "HUGETLBFS"), _has(kernel, "NUMA"), not kho or _version(kernel.release) >= (7, 3))


def _version(release: str) -> tuple[int, int]:
    """Return the first two numbers of a release; zeros if it has none."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _has(kernel: Kernel, option: str) -> bool | None:
    return kernel.config.get(f"CONFIG_{option}") == "y" if kernel.config is not None else None
