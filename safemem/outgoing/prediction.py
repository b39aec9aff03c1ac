# SPDX-License-Identifier: MIT
"""What the next kernel will make of a handover: decided from what one kernel hands over and what another one speaks."""

from __future__ import annotations

from collections.abc import Iterator
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
    untold: str = ""  #: why it is not known which version of the tree it writes, where it is not
    preserves: frozenset[str] = frozenset()  #: of its producers, those that have data in the tree now


class Prediction(NamedTuple):
    """What the next kernel will make of it."""

    outcome: str  #: one of OUTCOMES
    why: str
    #: Handlers and producers that the next kernel does not have, and `LUO` if it has none: what they preserved is lost.
    lost: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()  #: what could still go wrong and cannot be told
    code: str = ""  #: of the finding that it is (`safemem.outgoing.findings`)


def of_image(kernel: Kernel) -> Outgoing:
    """Return what the kernel in an image would hand over if it ran with KHO and LUO on."""
    return Outgoing(
        kernel.path,
        kernel.arch,
        kernel.page_size,
        kernel.release,
        kernel.kho,
        kernel.luo,
        kernel.speaks._replace(handlers=kernel.handlers),
    )


def predict(outgoing: Outgoing, following: Kernel) -> Prediction:
    """Return what becomes of a handover from `outgoing` to the kernel `following`, both with KHO and LUO on.

    INVARIANT: `accepted` takes versions on both sides that are known and meet. Never by default.
    """
    a, b = outgoing, following
    if a.arch and b.arch and a.arch != b.arch:
        why = f"{b.path} is a kernel for {b.arch}, and {a.what} runs on {a.arch}"
        return Prediction("unsupported", why, code="other-arch")
    if a.kho.value == "no":
        return Prediction("none", f"{a.what} hands nothing over: {said(a.kho)}".rstrip(": "), code="kho-off")
    if b.kho.value == "no":
        return Prediction("unsupported", f"{b.path} has no KHO: {said(b.kho)}".rstrip(": "), code="no-kho")
    if a.page_size and b.page_size and a.page_size != b.page_size:
        # The version is the same and nothing compares the sizes: the next kernel would misread what it takes over.
        why = f"pages of {a.page_size >> 10} KiB here and {b.page_size >> 10} KiB there: KHO takes no handover across"
        return Prediction("rejected", why, code="page-size")
    met = _meet(a.speaks.tree, b.speaks.tree)
    if met is False:
        why = f"it is handed {_names(a.speaks.tree)}, and reads {_names(b.speaks.tree)}"
        return Prediction("rejected", why, code="kho-differs")
    unknown = list(_unknown(a, b))
    if met is None:
        unknown += _versions(a, b)
    if unknown:
        return Prediction("unknown", unknown[0], untold=tuple(unknown[1:]), code="pairing-untold")
    return _luo(a, b)


def _unknown(a: Outgoing, b: Kernel) -> Iterator[str]:
    """Yield what of two kernels has to be known and is not, but for their versions."""
    for name, fact in ((f"KHO of {a.what}", a.kho), (f"KHO of {b.path}", b.kho)):
        if fact.value != "yes":
            yield f"{name}: {said(fact)}".rstrip(": ")
    if not (a.arch and b.arch):
        yield "the architecture cannot be told"
    if not (a.page_size and b.page_size):
        yield "the page size cannot be told"


def _versions(a: Outgoing, b: Kernel) -> Iterator[str]:
    """Yield why it cannot be told whether the version of the tree that is written will be read."""
    if not a.speaks.tree:
        yield a.untold or f"which version of the tree {a.what} writes cannot be told"
    if not b.speaks.tree:
        yield f"which version of the tree {b.path} reads cannot be told"
    if a.speaks.tree and b.speaks.tree:
        written, read = _names(a.speaks.tree), _names(b.speaks.tree)
        yield f"which version of the tree passes cannot be told: {a.what} writes {written}, {b.path} reads {read}"


def _luo(a: Outgoing, b: Kernel) -> Prediction:
    """Return what becomes of LUO's part of a tree that is accepted."""
    agreed = f"both speak {_names(a.speaks.tree)}"
    if a.luo.value == "no":
        return _accepted(a, b, f"{agreed}; {a.what} has no LUO, which adds nothing")
    if b.luo.value == "no":
        return _accepted(a, b, f"{agreed}; {b.path} has no LUO: every session is lost", "LUO")
    met = _meet(a.speaks.luo, b.speaks.luo)
    if met is False:
        why = f"LUO is handed {_names(a.speaks.luo)}, and reads {_names(b.speaks.luo)}: it panics"
        return Prediction("panic", why, code="luo-differs")
    if met is None or a.luo.value != "yes" or b.luo.value != "yes":
        why = f"{agreed}; which versions of LUO they speak cannot be told"
        return Prediction("unknown", why, code="pairing-untold")
    if a.speaks.luo_nodes - b.speaks.luo_nodes:
        why = f"{agreed}; of LUO's tree {b.path} does not know {_names(a.speaks.luo_nodes - b.speaks.luo_nodes)}"
        return Prediction("unknown", why, code="pairing-untold")
    supported = {feature.name: feature.supported for feature in b.speaks.features}
    required = [feature for feature in a.speaks.features if feature.required]
    if required and not supported:
        why = f"{agreed}; {a.what} requires features, and {b.path} does not say which it supports"
        return Prediction("unknown", why, code="pairing-untold")
    for feature in required:
        if feature.required & ~supported.get(feature.name, 0):
            why = f"{feature.name} needs features that {b.path} does not support"
            return Prediction("rejected", why, code="features-differ")
    return _accepted(a, b, f"{agreed} and {_names(a.speaks.luo)}")


def _accepted(a: Outgoing, b: Kernel, why: str, *lost: str) -> Prediction:
    there = b.handlers | b.speaks.producers
    gone = sorted((a.speaks.handlers | a.speaks.producers | a.preserves) - there)
    return Prediction("accepted", why, (*lost, *gone), code="agreed")


def _meet(written: frozenset[str], read: frozenset[str]) -> bool | None:
    """Return whether the next kernel reads whatever may be written; None where that depends, or is not known."""
    if not written or not read:
        return None
    return False if not written & read else True if written <= read else None


def said(fact: Fact) -> str:
    """Return where a fact was read and why it is what it is; a path that the reason begins with stands there once."""
    if fact.reason.lstrip("/").startswith(fact.source.lstrip("/")):
        return fact.reason
    return f"{fact.source}: {fact.reason}".strip(": ")


def _names(found: frozenset[str]) -> str:
    return " or ".join(sorted(found)) or "none that is known"
