# SPDX-License-Identifier: MIT
"""Loadable modules of a kernel that register handlers of files with LUO: their versions are not in the image."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from safemem.boot.printable import printable
from safemem.initramfs import packed
from safemem.initramfs.store import NoKernel, Store, opened
from safemem.outgoing import elf, versions
from safemem.outgoing.elf import Part
from safemem.outgoing.kernel import Module

REGISTER = "liveupdate_register_file_handler"
_FOLDER = "usr/lib/modules/{}"
_NAME = re.compile(r"[\w.+~:-]+")
_MODULE = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
#: Modules, and bytes of one unpacked; distributions have five thousand, and the largest has 30 MiB.
_MOST, _LARGEST = 20_000, 64 << 20


class Searched(NamedTuple):
    """What was found in a folder of modules."""

    modules: tuple[Module, ...] = ()
    folder: str = ""  #: "" if there is none
    fault: str = ""  #: what was not searched


def can_register(parts: tuple[Part, ...]) -> bool:
    """Return whether a kernel exports to modules what registers a handler: no other module of it can be loaded."""
    name = b"\0" + REGISTER.encode() + b"\0"
    return any(part.data.find(name, part.start, part.end) >= 0 for part in parts)


def find(root: str, release: str) -> Searched:
    """Return the modules of a release below `root` that register handlers."""
    folder = os.path.join(root, _FOLDER.format(release))
    if not _NAME.fullmatch(release) or not os.path.isdir(folder):
        return Searched(fault=f"which handlers its modules have is not known: there is no folder {printable(folder)}")
    found: list[Module] = []
    unread = count = 0
    for above, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if not name.endswith(_MODULE):
                continue
            count += 1
            if count > _MOST:
                return Searched(tuple(found), folder, f"only {_MOST} modules in {printable(folder)} were searched")
            try:
                handlers = _handlers(os.path.join(above, name))
            except (NoKernel, packed.Unreadable):
                unread += 1
                continue
            if handlers is not None:
                found.append(Module(os.path.join(above, name), handlers))
    fault = f"{unread} modules in {printable(folder)} cannot be read: which handlers they have is not known"
    return Searched(tuple(found), folder, fault if unread else "")


def _handlers(path: str) -> frozenset[str] | None:
    """Return the handlers of the module at `path`; None if it registers none. Raises NoKernel, Unreadable."""
    with opened(path) as store:
        data = store.whole(_LARGEST)
    if packed.compression(data[:8]):
        data, _ = packed.whole(data, 0, _LARGEST)
    if REGISTER.encode() + b"\0" not in data:
        return None
    found = elf.read(Store(path, data), symbols=True)
    if not elf.undefined(found, REGISTER):
        return None
    return versions.strings(found.parts).handlers
