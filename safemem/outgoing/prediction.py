# SPDX-License-Identifier: MIT
"""What the next kernel will make of a handover: decided from what one kernel hands over and what another one speaks."""

from __future__ import annotations

from typing import NamedTuple

from safemem.boot.model import Fact
from safemem.outgoing.kernel import Kernel, Speaks

#: What comes of a kexec: the states of `handover` in the next boot, `panic` of the next kernel by itself, and not knowing.
OUTCOMES = ("accepted", "none", "rejected", "unsupported", "panic", "unknown")


class Outgoing(NamedTuple):
    """What a kernel hands over, as the one that runs tells it, or as its image does."""

    what: str  #: the running kernel, or the path of an image
    arch: str = ""
    page_size: int = 0
    release: str = ""
    kho: Fact = Fact("unknown", "")  #: `yes`: it offers a handover at each `kexec -s`
    luo: Fact = Fact("unknown", "")
    speaks: Speaks = Speaks()  #: what it writes; of handlers, those that it has
    sure: bool = False  #: the kernel itself was asked, or the file is known to be the one that runs


class Prediction(NamedTuple):
    """What the next kernel will make of it."""

    outcome: str  #: one of OUTCOMES
    why: str
    lost: tuple[
        str, ...
    ] = ()  #: handlers and producers that the next kernel does not have: what they preserved is lost
    untold: tuple[str, ...] = ()  #: what could still go wrong and cannot be told


def of_image(kernel: Kernel) -> Outgoing:
    """Return what the kernel in an image would hand over if it ran with KHO and LUO on."""
    return Outgoing(
        kernel.path,
        kernel.arch,
        kernel.page_size,
        kernel.release,
        kernel.kho,
        kernel.luo,
        kernel.speaks,
    )


def predict(outgoing: Outgoing, following: Kernel) -> Prediction:
    """Return what becomes of a handover from `outgoing` to the kernel `following`, both with KHO and LUO on.

    INVARIANT: `accepted` takes versions on both sides that are known and meet. Never by default.
    """
    a, b = outgoing, following
    if a.arch and b.arch and a.arch != b.arch:
        return Prediction("unsupported", f"{b.path} is a kernel for {b.arch}, and {a.what} runs on {a.arch}")
    if a.kho.value == "no":
        return Prediction("none", f"{a.what} has no KHO: it hands nothing over")
    if b.kho.value == "no":
        return Prediction("unsupported", f"{b.path} has no KHO: {b.kho.source}: {b.kho.reason}".rstrip(": "))
    unknown = [
        f"{name}: {fact.source}: {fact.reason}".rstrip(": ")
        for name, fact in (("KHO of " + a.what, a.kho), ("KHO of " + b.path, b.kho))
        if fact.value != "yes"
    ]
    if not (a.arch and b.arch):
        unknown.append("the architecture cannot be told")
    if a.page_size and b.page_size and a.page_size != b.page_size:
        return Prediction(
            "rejected",
            f"pages of {a.page_size >> 10} KiB here and {b.page_size >> 10} KiB there: KHO takes no handover across",
        )
    if not (a.page_size and b.page_size):
        unknown.append("the page size cannot be told")
    if a.speaks.tree and b.speaks.tree and not a.speaks.tree & b.speaks.tree:
        return Prediction("rejected", f"it is handed {_names(a.speaks.tree)}, and reads {_names(b.speaks.tree)}")
    if len(a.speaks.tree) != 1:
        unknown.append(
            f"which version of the tree {a.what} writes cannot be told: {_names(a.speaks.tree) or 'none found'}"
        )
    if not b.speaks.tree:
        unknown.append(f"which version of the tree {b.path} reads cannot be told")
    if unknown:
        return Prediction("unknown", unknown[0], untold=tuple(unknown[1:]))
    return _luo(a, b)


def _luo(a: Outgoing, b: Kernel) -> Prediction:
    """Return what becomes of LUO's part of a tree that is accepted."""
    agreed = f"both speak {_names(a.speaks.tree & b.speaks.tree)}"
    if a.luo.value == "no":
        return Prediction("accepted", f"{agreed}; {a.what} has no LUO, which adds nothing", _lost(a, b))
    if b.luo.value == "no":
        return Prediction("accepted", f"{agreed}; {b.path} has no LUO: every session is lost", ("LUO", *_lost(a, b)))
    if a.speaks.luo and b.speaks.luo and not a.speaks.luo & b.speaks.luo:
        why = f"LUO is handed {_names(a.speaks.luo)}, and reads {_names(b.speaks.luo)}: it panics"
        return Prediction("panic", why)
    if a.luo.value != "yes" or b.luo.value != "yes" or len(a.speaks.luo) != 1 or not b.speaks.luo:
        return Prediction("unknown", f"{agreed}; which versions of LUO they speak cannot be told")
    for feature in a.speaks.features:
        have = next((other for other in b.speaks.features if other.name == feature.name), None)
        if b.speaks.features and feature.required & ~(have.supported if have else 0):
            return Prediction("rejected", f"{feature.name} needs features that {b.path} does not support")
    return Prediction("accepted", f"{agreed} and {_names(a.speaks.luo & b.speaks.luo)}", _lost(a, b))


def _lost(a: Outgoing, b: Kernel) -> tuple[str, ...]:
    there = b.speaks.handlers.union(b.speaks.producers, *(module.handlers for module in b.modules))
    return tuple(sorted((a.speaks.handlers | a.speaks.producers) - there))


def _names(found: frozenset[str]) -> str:
    return " or ".join(sorted(found))
