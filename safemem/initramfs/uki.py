# SPDX-License-Identifier: MIT
"""The initrds of a unified kernel image, one for each of its profiles, as its stub puts them together (UAPI specification 5)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from safemem.boot.cmdline import argument, arguments
from safemem.boot.printable import printable
from safemem.initramfs import pe
from safemem.initramfs.on_failure import GUARDED, UNIT
from safemem.initramfs.packed import Unreadable
from safemem.initramfs.store import NoKernel, Store

#: Sections of an addon that change what boots.
_CHANGES = (".initrd", ".ucode", ".cmdline")
#: How often an image is to be tried, in its name (UAPI specification 1, boot counting).
_TRIES = re.compile(r"\+\d+(-\d+)?(?=\.[eE][fF][iI]$)")
#: Bytes of a command line that are looked at.
_TEXT = 64 << 10
#: Bytes of an addon that are read.
_LIMIT = 64 << 20


class NoInitrd(Unreadable):
    """A kernel, and no more."""

    help = "name the initrd that it is booted with instead, or have ukify make one image of both"


class Initrd(NamedTuple):
    """What one profile boots with, or an image that is no unified one."""

    profile: str  #: its ID, or its number where it has none; "" if there are no profiles
    title: str
    data: bytes
    cmdline: str = ""  #: that the image brings for it

    @property
    def called(self) -> str:
        """The profile as a message calls it."""
        return f"{self.profile} ({self.title})" if self.title else self.profile


def initrds(data: bytes) -> tuple[Initrd, ...]:
    """Return the initrds of an image: itself, if it is no PE file. Raises Unreadable."""
    if not data:
        raise Unreadable("the file is empty")
    if not data.startswith(b"MZ"):
        return (Initrd("", "", data),)
    store = Store("", data)
    try:
        sets = pe.sets(store)
    except NoKernel as error:
        raise Unreadable(f"{error}: this image is cut off or damaged") from None
    if not sets:
        raise Unreadable("this is a program for DOS, or a damaged image")
    if any(part.name == ".initrdh" for item in sets for part in (*item.own, *item.base)):
        # Lanzaboote: beside the path of the initrd its sum.
        path = "".join(_text(data, part) for part in sets[0].of(".initrd")[:1])
        raise Unreadable(f"this is a stub of Lanzaboote, and its initrd is the file {path} on the ESP: look into that")
    made: dict[tuple[pe.Section, ...], bytes] = {}
    for item in sets:
        # Each of several at a multiple of 4 bytes, where the kernel looks for an archive.
        parts = item.initrds()
        if not any(part.name == ".initrd" for part in parts):
            if not item.name:
                raise NoInitrd("this is a kernel image without an .initrd section")
            made[parts] = b""
        if parts not in made:
            cut = [data[part.at : part.at + part.size] for part in parts]
            made[parts] = cut[0] if len(cut) == 1 else b"".join(each + bytes(-len(each) % 4) for each in cut)
    lines = ["".join(_text(data, part) for part in item.of(".cmdline")[:1]) for item in sets]
    return tuple(
        Initrd(item.name, item.title, made[item.initrds()], line) for item, line in zip(sets, lines, strict=True)
    )


def _text(data: bytes, part: pe.Section) -> str:
    text = data[part.at : part.at + min(part.size, _TEXT)].rstrip(b"\0").decode("utf-8", "replace")
    return printable(text.strip())


class Addon(NamedTuple):
    """A PE file beside a unified image, whose sections its stub takes too."""

    path: Path
    sections: tuple[str, ...]  #: those that change what boots
    fault: str = ""  #: why it cannot be read
    cmdline: str = ""  #: that it adds


def addons(image: Path) -> tuple[Addon, ...]:
    """Return the addons of the image at `image` alone, in their order; those of all images lie in `loader/addons` of the ESP."""
    # The stub leaves out how often a boot is tried (systemd, get_extra_dir in src/boot/util.c, since 255); before, it did not.
    plain = image.with_name(_TRIES.sub("", image.name))
    own = dict.fromkeys((Path(f"{image}.extra.d"), Path(f"{plain}.extra.d")))
    folders = (*own, *(folder / "loader/addons" for folder in image.parents[:4]))
    found = []
    for folder in folders:
        for path in sorted(folder.glob("*.[eE][fF][iI]")) if folder.is_dir() else ():
            if not path.name.lower().endswith(".addon.efi"):
                continue
            try:
                with path.open("rb") as file:
                    data = file.read(_LIMIT)
                store = Store("", data)
                lines = [_text(data, part) for each in pe.sets(store) for part in each.of(".cmdline")[:1]]
                names = tuple(item.name for each in pe.sets(store) for item in each.base if item.name in _CHANGES)
            except (OSError, NoKernel) as error:
                found.append(Addon(path, (), str(error)))
            else:
                found += [Addon(path, names, cmdline=" ".join(lines))] if names else []
    return tuple(found)


def untold(beside: tuple[Addon, ...]) -> str:
    """Return why addons leave open what boots: they cannot be read, or bring an initrd, which wins over the image's; or ""."""
    for item in beside:
        if item.fault:
            return f"its addon {item.path} cannot be read: {item.fault}"
        if ".initrd" in item.sections:
            return f"its addon {item.path} brings an initrd, which is not looked into: what is started first cannot be told"
        if (init := argument(item.cmdline, "rdinit")) not in (None, "/init"):
            return f"its addon {item.path} brings rdinit={init}, which the kernel starts in place of /init"
        if word := unstarts(item.cmdline):
            return f"its addon {item.path} brings {word}, by which systemd may not start safemem"
    return ""


def unstarts(cmdline: str) -> str:
    """Return the word of a command line by which systemd in an initramfs leaves out a unit of safemem, or ""."""
    for name, value in arguments(cmdline):
        # systemd-debug-generator(8), kernel-command-line(7): in an initramfs only those with `rd.`.
        if name == "rd.systemd.mask" and value in (UNIT, UNIT.removesuffix(".service"), *GUARDED):
            return f"{name}={value}"
        if name == "rd.systemd.unit" and value not in ("initrd.target", "default.target"):
            return f"{name}={value}"
    return ""
