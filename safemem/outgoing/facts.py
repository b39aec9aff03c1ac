# SPDX-License-Identifier: MIT
"""What a kernel that lies open says of itself: release, build ID, configuration, and what it speaks of a handover."""

from __future__ import annotations

import re
from typing import Protocol

from safemem.boot.model import Fact
from safemem.initramfs.store import NoKernel, Store
from safemem.outgoing import config, elf, modules, versions
from safemem.outgoing.config import Config
from safemem.outgoing.elf import Part
from safemem.outgoing.kernel import Kernel, Speaks

_BANNER = re.compile(rb"Linux version (\d+\.\d+[\w.+~:-]{0,100}) \(")
STRINGS = "the strings in the image"
#: Kernels that compare a version say so in these messages (kernel/liveupdate/).
_KHO_MARKS, _LUO_MARKS = (b"KHO: ", b"\0kho_scratch\0", b"\0kho_bootmem\0"), (b"luo: ", b"LUO: ")
#: Part of what makes a handover, and never to be seen in an image.
_BLOBS = (
    "versions that are numbers inside a blob cannot be told from an image: those of `pci`, `iommu-liveupdate` and"
    " `kexec-metadata`"
)
_USE = "which handlers will be in use, and whether what they preserve can be retrieved, cannot be told from an image"


class Opened(Protocol):
    """A kernel that lies open, see `image.Opened`."""

    @property
    def form(self) -> str: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...
    @property
    def packed(self) -> str: ...
    @property
    def arch(self) -> str: ...
    @property
    def page_size(self) -> int: ...
    @property
    def release(self) -> str: ...
    @property
    def efi(self) -> bool: ...


def kernel(found: Opened, store: Store, path: str, root: str, *, modules: bool) -> Kernel:
    """Return what is known of a kernel that lies open.

    Raises:
        NoKernel: it is no Linux kernel.
    """
    release = _release(found.parts)
    if not release:
        raise store.refused("no Linux kernel is in it: nowhere does it say `Linux version`")
    untold = []
    if found.release and found.release != release:
        untold.append(f"its header says that it is {found.release}, and the kernel in it {release}")
    options = Config(config.inside(found.parts), config.INSIDE)
    if options.options is None:
        options = config.beside(path, release, root, found.arch)
    if options.options is None:
        untold.append(f"how it was configured is not known: {options.fault or 'no configuration in it nor beside it'}")
    own = versions.sections(found.parts)
    try:
        said = versions.strings(found.parts, own)
    except NoKernel as error:
        raise store.refused(str(error)) from None
    kho = _fact("KEXEC_HANDOVER", options, said.tree, found.parts, _KHO_MARKS)
    luo = _fact("LIVEUPDATE", options, said.luo, found.parts, _LUO_MARKS)
    if kho.value == "no":
        luo = Fact("no", kho.source, "there is no LUO without KHO") if luo.value == "no" else luo
    if luo.value == "no":
        # Without LUO no field of 48 bytes is that of a handler.
        said = said._replace(handlers=frozenset())
    speaks, disagree = _together(said, own)
    kho, luo = _one(kho, speaks.tree, own, "tree"), _one(luo, speaks.luo | speaks.luo_nodes, own, "luo")
    ids = elf.build_ids(found.parts)
    result = Kernel(
        path, found.form, found.packed, arch=found.arch, release=release, build_ids=ids, page_size=found.page_size,
        config=options.options, config_source=options.source if options.options else "", kho=kho, luo=luo,
        speaks=speaks, sections=tuple(section.name for section in own), efi=found.efi,
    )  # fmt: skip
    untold += [*disagree, *_missing(result)]
    return _with_modules(result, found.parts, root, untold) if modules else result._replace(untold=tuple(untold))


def _release(parts: tuple[Part, ...]) -> str:
    for part in parts:
        at = part.data.find(b"Linux version ", part.start, part.end)
        for _ in range(64):
            if at < 0:
                break
            if match := _BANNER.match(part.data, at, part.end):
                return match[1].decode()
            at = part.data.find(b"Linux version ", at + 1, part.end)
    return ""


def _fact(
    option: str, options: Config, said: frozenset[str], parts: tuple[Part, ...], marks: tuple[bytes, ...]
) -> Fact:
    """Return whether an option is built in, by the configuration and by the versions that the kernel has of it."""
    names = " and ".join(f"`{name}`" for name in sorted(said))
    if options.options is not None:
        on = options.options.get(f"CONFIG_{option}", "n") == "y"
        told = f"CONFIG_{option} is {'y' if on else 'not set'}"
        if on and said:
            return Fact("yes", options.source, f"{told}, and {names} is in the image")
        if on:
            return Fact("unknown", options.source, f"{told}, and no version of it is in the image")
        if said:
            return Fact("unknown", options.source, f"{told}, and yet {names} is in the image")
        return Fact("no", options.source, told)
    if said:
        return Fact("yes", STRINGS, f"{names} is in the image")
    # Messages are read-only data, and names of arguments that of the start.
    told_in = [part for part in parts if not part.name or part.name.startswith((".rodata", ".init"))]
    if any(part.data.find(mark, part.start, part.end) >= 0 for part in told_in for mark in marks):
        return Fact("unknown", STRINGS, "messages of it are in the image, and no version of it")
    return Fact("no", STRINGS, "no version and no message of it is in the image")


def _together(said: Speaks, own: tuple[versions.Section, ...]) -> tuple[Speaks, list[str]]:
    """Return what a kernel speaks by its strings and its sections, and where the two disagree.

    INVARIANT: of KHO and LUO no version is taken that either denies: what is compared must not meet by mistake. What a
    handler is called is in its structure, which the kernel compares; a section adds those that were not found so.
    """
    disagree = [f"its section `{item.name}` is damaged, and not taken: {item.fault}" for item in own if item.fault]
    sound = [item for item in own if not item.fault]
    result = said
    for item in sound:
        for field in ("tree", "luo"):
            strings, theirs = getattr(result, field), getattr(item.speaks, field)
            if theirs and theirs != strings:
                disagree.append(
                    f"its section `{item.name}` has {_names(theirs)}, and its strings {_names(strings)}: only what both have is taken"
                )
                result = result._replace(**{field: strings & theirs})
        result = result._replace(features=result.features + item.speaks.features)
    theirs = frozenset[str]().union(*(item.speaks.handlers for item in sound))
    have = {name.partition("-v")[0] for name in said.handlers}
    result = result._replace(handlers=said.handlers | {name for name in theirs if name.partition("-v")[0] not in have})
    versioned = {name for name in theirs if "-v" in name}
    if versioned and versioned != said.handlers:
        disagree.append(
            f"its sections have the handlers {_names(theirs)}, and its strings {_names(said.handlers)}: of one name that of"
            " the strings is taken"
        )
    return result, disagree


def _one(fact: Fact, found: frozenset[str], own: tuple[versions.Section, ...], field: str) -> Fact:
    """Return the fact, unknown where a kernel has two versions of one thing and no section that lists them.

    A string may be of something that the kernel carries, or of a message about another version: that there are two does not
    mean that it reads both.
    """
    listed = frozenset[str]().union(*(getattr(item.speaks, field) for item in own if not item.fault))
    several = sorted(name for name in found - listed if sum(_of(name) == _of(other) for other in found) > 1)
    if fact.value != "yes" or not several:
        return fact
    return Fact(
        "unknown", STRINGS, f"{_names(frozenset(several))} are in the image, and no section lists which it reads"
    )


def _of(name: str) -> str:
    """Return what a version is one of: `kho` of `kho-v4`."""
    return name.rpartition("-v")[0]


def _names(found: frozenset[str]) -> str:
    return " and ".join(f"`{name}`" for name in sorted(found)) or "none"


def _missing(found: Kernel) -> list[str]:
    """Return what cannot be told of a kernel."""
    missing = []
    if not found.arch:
        missing.append("which architecture it is for cannot be told")
    if not found.page_size:
        missing.append("which page size it has cannot be told: its header does not say")
    if not found.build_ids:
        missing.append("it has no build ID: whether it is the kernel that runs cannot be told")
    elif len(found.build_ids) > 1:
        missing.append(
            f"which of {len(found.build_ids)} build IDs is its own cannot be told: those of its vDSOs are among them"
        )
    if found.kho.value != "no":
        missing.append(_BLOBS)
        if found.luo.value != "no":
            missing.append(_USE)
    return missing


def _with_modules(found: Kernel, parts: tuple[Part, ...], root: str, untold: list[str]) -> Kernel:
    if found.luo.value == "no" or not modules.can_register(parts):
        return found._replace(untold=tuple(untold))
    searched = modules.find(root, found.release)
    if searched.fault:
        untold.append(searched.fault)
    return found._replace(modules=searched.modules, modules_source=searched.folder, untold=tuple(untold))
