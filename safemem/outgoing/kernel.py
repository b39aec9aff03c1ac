# SPDX-License-Identifier: MIT
"""What a kernel image is, and what it speaks: the values that preflight compares."""

from __future__ import annotations

from typing import NamedTuple

from safemem.boot.model import Fact


class Feature(NamedTuple):
    """An entry of a section `.liveupdate_features`: bit masks of what a kernel supports, requires and uses."""

    name: str
    supported: int
    required: int
    active: int


class Speaks(NamedTuple):
    """The versions of a handover's formats that a kernel has in it: whole strings, such as `kho-v4`."""

    tree: frozenset[str] = frozenset()  #: of the device tree that KHO passes
    luo: frozenset[str] = frozenset()
    handlers: frozenset[str] = frozenset()  #: of files that LUO preserves, such as `memfd-v2`
    producers: frozenset[str] = frozenset()  #: of others that put data into the tree, such as `memblock-v1`
    features: tuple[Feature, ...] = ()
    luo_nodes: frozenset[str] = frozenset()  #: of the nodes of LUO's tree, before `luo-v2`: such as `luo-session-v2`


class Module(NamedTuple):
    """A loadable module that registers handlers of files with LUO."""

    path: str
    handlers: frozenset[str]


class Kernel(NamedTuple):
    """A kernel image, of a unified one that has several, one for each profile."""

    path: str
    form: str  #: `bzImage`, `EFI zboot`, `arm64 Image`, `ELF`
    packed: str = ""  #: `gzip`, `xz`, `zstd`, `lz4`, `lzma`, `bzip2`, `lzo`; "" is not packed
    container: str = ""  #: `unified kernel image` around it, or ""
    profile: str = ""  #: of that
    cmdline: str | None = None  #: that is in the image
    initrds: tuple[bytes, ...] = ()  #: that are in the image
    arch: str = ""  #: as /proc/sys/kernel/arch calls it; "" cannot be told
    release: str = ""
    build_ids: tuple[str, ...] = ()  #: hex digits; of an image without sections those of its vDSOs are among them
    page_size: int = 0  #: bytes; 0 cannot be told
    config: dict[str, str] | None = None  #: option (`CONFIG_…`) -> value; None is not to be found
    config_source: str = ""
    kho: Fact = Fact("unknown", "")  #: whether KHO is built in: `yes`, `no`, `unknown`
    luo: Fact = Fact("unknown", "")
    speaks: Speaks = Speaks()
    sections: tuple[str, ...] = ()  #: those of live update's own that it has
    modules: tuple[Module, ...] = ()
    modules_source: str = ""  #: the folder that was searched; "" if there is none
    untold: tuple[str, ...] = ()  #: what cannot be told from this image, a sentence each
    efi: bool = False  #: firmware can start it by itself: it is a PE file too

    @property
    def handlers(self) -> frozenset[str]:
        """All handlers of files that it may have: its own, and those of its modules."""
        return self.speaks.handlers.union(*(module.handlers for module in self.modules))

    @property
    def modules_untold(self) -> str:
        """Why the handlers of its modules are not all known; "" if they are (safemem.outgoing.modules)."""
        return next((text for text in self.untold if "its modules have" in text or "modules in " in text), "")
