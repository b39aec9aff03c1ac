# SPDX-License-Identifier: MIT
"""What a kernel image is and speaks, as text and as JSON, with how sure each line is."""

from __future__ import annotations

from collections.abc import Iterator

from safemem.boot import record
from safemem.boot.model import Fact
from safemem.boot.ranges import size_text
from safemem.outgoing import config, facts
from safemem.outgoing.kernel import Kernel, Speaks
from safemem.render.text import clean, plural

#: Options that preflight looks at.
OPTIONS = (
    "CONFIG_KEXEC_HANDOVER", "CONFIG_KEXEC_HANDOVER_DEBUGFS", "CONFIG_LIVEUPDATE", "CONFIG_LIVEUPDATE_MEMFD",
    "CONFIG_KEXEC_FILE", "CONFIG_MEMORY_HOTPLUG", "CONFIG_MHP_DEFAULT_ONLINE_TYPE_OFFLINE", "CONFIG_HUGETLBFS", "CONFIG_NUMA",
)  # fmt: skip


def document(kernels: tuple[Kernel, ...], code: int) -> dict[str, object]:
    """Return what `safemem kernel --format json` prints; initrds by their sizes, of the configuration what matters."""
    return {
        "schema": record.SCHEMA,
        "kind": "kernel",
        "exit_code": code,
        "kernels": [_kernel(item) for item in kernels],
    }


def _kernel(found: Kernel) -> dict[str, object]:
    speaks = found.speaks
    return {
        "path": found.path, "form": found.form, "packed": found.packed or None, "efi": found.efi,
        "container": found.container or None, "profile": found.profile or None, "cmdline": found.cmdline,
        "initrds": [len(data) for data in found.initrds], "arch": found.arch or None, "release": found.release,
        "build_ids": list(found.build_ids), "page_size": found.page_size or None,
        "config": None if found.config is None else {
            "source": found.config_source, "options": {name: found.config.get(name, "n") for name in OPTIONS},
        },
        "kho": found.kho._asdict(), "luo": found.luo._asdict(),
        "speaks": {
            "tree": sorted(speaks.tree), "luo": sorted(speaks.luo), "luo_nodes": sorted(speaks.luo_nodes),
            "handlers": sorted(speaks.handlers), "producers": sorted(speaks.producers),
            "features": [item._asdict() for item in speaks.features],
        },
        "sections": list(found.sections),
        "modules": [{"path": item.path, "handlers": sorted(item.handlers)} for item in found.modules],
        "modules_source": found.modules_source or None, "untold": list(found.untold),
    }  # fmt: skip


def lines(kernels: tuple[Kernel, ...]) -> Iterator[str]:
    """Yield what `safemem kernel` prints."""
    for number, kernel in enumerate(clean(kernels)):
        if number:
            yield ""
        yield kernel.path + (f", profile {kernel.profile}" if kernel.profile else "")
        for name, value in _rows(kernel):
            yield f"  {name:<16}{value}"
        if kernel.untold:
            yield "  not known"
            yield from (f"    {sentence}" for sentence in kernel.untold)


def _rows(found: Kernel) -> Iterator[tuple[str, str]]:
    form = found.form + (f", packed with {found.packed}" if found.packed else "")
    inside = f", in a {found.container}" if found.container else ", starts under EFI too" if found.efi else ""
    yield "form", form + inside
    yield "architecture", found.arch or "unknown"
    yield "pages", size_text(found.page_size) if found.page_size else "unknown"
    yield "release", f"{found.release}, as the kernel says of itself"
    for number, name in enumerate(found.build_ids):
        yield "" if number else "build ID", name + _whose(found)
    own = found.config_source == config.INSIDE
    yield "configuration", "in the image (IKCONFIG)" if own else found.config_source or "not found"
    yield "KHO", _built_in(found.kho, found.speaks.tree)
    yield "LUO", _built_in(found.luo, found.speaks.luo)
    if found.kho.value != "no":
        yield from _speaks(found.speaks, found.sections)
    for module in found.modules:
        yield "module", f"{module.path}: {_names(module.handlers)}"
    if found.cmdline is not None:
        yield "command line", found.cmdline or "empty"
    if found.initrds:
        sizes = ", ".join(size_text(len(data)) for data in found.initrds)
        yield "initrds", f"{plural(len(found.initrds), 'initrd')} in the image: {sizes}"


def _whose(found: Kernel) -> str:
    """Return how sure a build ID is."""
    return ", in the kernel's notes" if len(found.build_ids) == 1 else ", the kernel's or that of a vDSO"


def _built_in(fact: Fact, versions: frozenset[str]) -> str:
    """Return whether it is built in and in which versions, and by what that is known; where it is not, why."""
    by = "strings" if fact.source == facts.STRINGS else "the configuration"
    if fact.value == "yes":
        both = by if by == "strings" else f"{by} and strings"
        return f"yes, {_names(versions) if versions else 'no version of it found'} (by {both})"
    return f"no (by {by})" if fact.value == "no" else f"unknown: {fact.reason}"


def _speaks(speaks: Speaks, sections: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    by = (
        f", by {' and '.join(f'`{name}`' for name in sections)} and strings"
        if sections
        else ", by strings in the image"
    )
    yield "tree", _names(speaks.tree) + by
    yield "LUO's data", _names(speaks.luo | speaks.luo_nodes) + by
    yield "handlers", _names(speaks.handlers) + by
    yield "producers", _names(speaks.producers) + ", by strings in the image"
    for item in speaks.features:
        yield (
            "feature",
            f"{item.name}: supports {item.supported:#x}, requires {item.required:#x}, uses {item.active:#x}",
        )


def _names(found: frozenset[str]) -> str:
    return ", ".join(sorted(found)) or "none found"
