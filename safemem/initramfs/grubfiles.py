# SPDX-License-Identifier: MIT
"""GRUB's files on this machine: where its paths lead, and what it keeps from boot to boot."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safemem.initramfs import bootentry

#: Environment blocks; of what several hold the last counts.
_ENVIRONMENTS = ("boot/efi/EFI/*/grubenv", "efi/EFI/*/grubenv", "boot/grub/grubenv", "boot/grub2/grubenv")
_DEVICE = re.compile(r"^\([^)]*\)")


def bare(path: str) -> str:
    """Return a path of GRUB's without the device that it may begin with."""
    return _DEVICE.sub("", path)


def locate(root: str, path: str) -> Path:
    """Return where a path of GRUB's is: /boot may be a partition, and a file system may have it in a subvolume or data set."""
    parts = [part for part in bare(path).replace("\\", "/").split("/") if part not in ("", ".")]
    own = os.path.ismount(Path(root, "boot"))
    found = Path(root, *parts) if parts[:1] == ["boot"] and not own else Path(root, "boot", *parts)
    if ".." in parts or "\0" in path:
        return found
    for first in range(len(parts)):
        if any("snapshot" in part for part in parts[:first]):
            break
        if first and parts[first] != "boot" and not parts[first - 1].endswith("@"):
            continue
        both = (Path(root, *parts[first:]), Path(root, "boot", *parts[first:]))
        for file in reversed(both) if own else both:
            for there in (file, final(root, file)):
                if os.path.isfile(there):
                    return there
    return found


def final(root: str, path: Path) -> Path:
    """Return what a link leads to, below the root; of what is no link, itself."""
    for _ in range(8):
        if not path.is_symlink():
            break
        goal = os.readlink(path)
        path = Path(root, goal.lstrip("/")) if goal.startswith("/") else Path(os.path.normpath(path.parent / goal))
    return path


def environment(root: str) -> dict[str, str]:
    """Return the variables of GRUB's environment blocks."""
    found: dict[str, str] = {}
    for path in globbed(root, _ENVIRONMENTS):
        try:
            found |= bootentry.environment(read(path))
        except OSError:
            continue
    return found


def globbed(root: str, places: tuple[str, ...]) -> list[Path]:
    """Return the files of patterns below the root, in their order."""
    return [path for place in places for path in sorted(Path(root).glob(place))]


def read(path: Path) -> bytes:
    """Return the bytes of a menu or a block. Raises OSError."""
    with path.open("rb") as file:
        return file.read(bootentry.LIMIT * 4)
