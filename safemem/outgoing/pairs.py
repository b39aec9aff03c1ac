# SPDX-License-Identifier: MIT
"""Which of several kernels can hand over to which."""

from __future__ import annotations

import os
from typing import NamedTuple

from safemem.outgoing.kernel import Kernel
from safemem.outgoing.prediction import Prediction, of_image, predict


class Pair(NamedTuple):
    """What the kernel `to` makes of a handover from the kernel `of`; names as in `Pairs`."""

    of: str
    to: str
    prediction: Prediction

    @property
    def verdict(self) -> str:
        """`compatible` takes that all of it arrives; `incompatible`, or `cannot tell`."""
        if self.prediction.outcome == "unknown":
            return "cannot tell"
        whole = self.prediction.outcome == "accepted" and not self.prediction.lost
        return "compatible" if whole else "incompatible"


class Pairs(NamedTuple):
    """Every ordered pair of some kernels, a kernel and itself included."""

    kernels: dict[str, Kernel]  #: by a name that tells it from the others: the end of its path
    pairs: tuple[Pair, ...]  #: row by row


def pairs(kernels: tuple[Kernel, ...]) -> Pairs:
    """Return what is foretold of each ordered pair, with KHO and LUO on in both."""
    named = dict(zip(_names([_path(kernel) for kernel in kernels]), kernels, strict=True))
    # Reasons speak of them by the same names.
    short = {name: kernel._replace(path=name) for name, kernel in named.items()}
    return Pairs(named, tuple(Pair(a, b, predict(of_image(short[a]), short[b])) for a in short for b in short))


def _path(kernel: Kernel) -> str:
    return f"{kernel.path}@{kernel.profile}" if kernel.profile else kernel.path


def _names(paths: list[str]) -> list[str]:
    """Return for each path the shortest end of it, in whole parts, that no other has; of equal paths the later ones are numbered."""
    parts = [os.path.normpath(path).split(os.sep) for path in paths]
    names: list[str] = []
    for number, own in enumerate(parts):
        others = [other for other in parts if other != own]
        size = next((size for size in range(1, len(own)) if all(own[-size:] != other[-size:] for other in others)), 0)
        name = os.sep.join(own[-size:])
        same = parts[:number].count(own)
        names.append(f"{name} ({same + 1})" if same else name)
    return names
