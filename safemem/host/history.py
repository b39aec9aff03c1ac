# SPDX-License-Identifier: MIT
"""What boots leave behind: one folder a boot in /var/lib/safemem/history, bounded in number and bytes."""

from __future__ import annotations

import calendar
import errno
import os
import re
import shutil
import time

from safemem.boot import record
from safemem.realroot import storage

FOLDER = "var/lib/safemem/history"
BOOT_ID = "proc/sys/kernel/random/boot_id"
#: Boots and bytes kept, and the most that one file may hold. This boot's folder is never dropped.
BOOTS, BYTES, FILE = 32, 32 << 20, 8 << 20
#: The boot's number, which is the order, for a clock can say anything; the UTC time of the first thing that was
#: written; and the kernel's boot ID, with which a folder is found again. Version 0.1.0 had no number.
_NAME = re.compile(r"(?:(\d{1,18})-)?(\d{8}T\d{6}Z)-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def boot_id(root: str) -> str:
    """Return the kernel's name for this boot. Raises OSError."""
    path = os.path.join(root, BOOT_ID)
    with open(path, encoding="ascii", errors="replace") as file:
        text = file.read().strip()
    if not _NAME.fullmatch(f"00000000T000000Z-{text}"):
        raise OSError(errno.EINVAL, "this is not a boot ID", path)
    return text


def boots(root: str) -> list[str]:
    """Return the paths of all folders, oldest first. Raises OSError, but not if there are none yet."""
    base = os.path.join(root, FOLDER)
    try:
        names = [name for name in os.listdir(base) if _NAME.fullmatch(name)]
    except FileNotFoundError:
        return []
    return [os.path.join(base, name) for name in sorted(names, key=lambda name: (_number(name), name))]


def _number(name: str) -> int:
    """Return a boot's number; 0 for those that have none, which came before."""
    found = _NAME.fullmatch(name)
    return int(found[1] or 0) if found else 0


def current(root: str) -> str | None:
    """Return the path of this boot's folder, or None if nothing was written yet. Raises OSError."""
    mine = boot_id(root)
    return next((path for path in boots(root) if path.endswith(mine)), None)


def previous(root: str) -> str | None:
    """Return the path of the newest folder of another boot, or None. Raises OSError."""
    mine = boot_id(root)
    return next((path for path in reversed(boots(root)) if not path.endswith(mine)), None)


def boot_of(folder: str) -> str:
    """Return the kernel's name for the boot that left this folder."""
    found = _NAME.fullmatch(os.path.basename(folder))
    return found[3] if found else ""


def started(folder: str) -> float:
    """Return when the first thing was written there, in seconds since 1970 and by the clock of then; 0 if that is no time."""
    found = _NAME.fullmatch(os.path.basename(folder))
    try:
        return float(calendar.timegm(time.strptime(found[2] if found else "", "%Y%m%dT%H%M%SZ")))
    except ValueError:
        return 0.0


def write(root: str, name: str, text: str) -> str:
    """Put the file `name` into this boot's folder, on the disk when this returns; return its path.

    Raises:
        OSError: it is not on the disk, or too large; what was there before still is.
    """
    data = text.encode("utf-8", "surrogateescape")
    base = os.path.join(root, FOLDER)
    if len(data) > FILE:
        raise OSError(errno.EFBIG, f"{len(data)} bytes are more than the history takes", os.path.join(base, name))
    mine = boot_id(root)
    new = not os.path.isdir(base)
    os.makedirs(base, 0o755, exist_ok=True)
    if new:
        storage.sync(os.path.dirname(base))
    # Two first writers would make two folders for one boot, and two boots must not have one number.
    with storage.locked(os.path.join(base, ".lock")):
        folder = current(root)
        if folder is None:
            number = 1 + max((_number(os.path.basename(path)) for path in boots(root)), default=0)
            folder = os.path.join(base, f"{number:08}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{mine}")
            os.mkdir(folder, 0o755)
            storage.sync(base)
        with storage.Folder(folder) as place:
            place.put(name, data, durable=True)
        _prune(root, folder)
    return os.path.join(folder, name)


def keep(root: str) -> None:
    """Carry this boot's record over as it is, also one that cannot be understood: it is evidence.

    Raises:
        OSError: it is not on the disk; FileNotFoundError if there is none.
    """
    with open(os.path.join(root, record.RECORD), encoding="utf-8", errors="surrogateescape", newline="") as file:
        write(root, os.path.basename(record.RECORD), file.read(FILE + 1))


def _prune(root: str, keep: str) -> None:
    """Drop the oldest folders of other boots until number and bytes are in bounds."""
    others = [path for path in boots(root) if path != keep]
    sizes = {path: sum(item.stat().st_size for item in os.scandir(path)) for path in (*others, keep)}
    while others and (len(others) >= BOOTS or sum(sizes.values()) > BYTES):
        oldest = others.pop(0)
        del sizes[oldest]
        shutil.rmtree(oldest, ignore_errors=True)
