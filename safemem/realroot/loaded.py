# SPDX-License-Identifier: MIT
"""What the wrapper of kexec has loaded in this boot, as it was judged; and words by which that was overridden.

The kernel tells that one is loaded and not which one, so that a kernel that somebody loaded past the wrapper cannot be
judged afterwards. A file that another one has replaced since is known by its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from safemem.boot import paths
from safemem.boot.files import reason
from safemem.realroot import storage

#: For root's eyes alone: a command line may hold what others are not to read.
LOADED, PERMISSION = "run/safemem/loaded.json", "run/safemem/override.json"
LOCK = "run/safemem/kexec.lock"
#: One file for each boot that was ended against a verdict; the newest of them stay.
OVERRIDES, MOST = "var/lib/safemem/overrides", 32
#: Bytes of one of these files; there is a command line in it.
_LIMIT = 1 << 16
_CHUNK = 1 << 20


class Damaged(Exception):
    """A file of ours is not what we write; the message says which one."""


class File(NamedTuple):
    """A file that was loaded."""

    path: str
    sha256: str


class Loaded(NamedTuple):
    """What is loaded for the next kexec, and what was said of it."""

    boot_id: str
    time: int  #: seconds since 1970
    kernel: File
    initrds: tuple[File, ...]
    cmdline: str  #: of the next kernel
    loader: str  #: `kexec_file` or `kexec_load`
    verdict: str  #: `compatible`, `incompatible`, `cannot tell`
    why: str
    build_ids: tuple[str, ...]  #: of the image that was judged; of some images those of its vDSOs are among them
    override: str = ""  #: why it is loaded against the verdict


class Override(NamedTuple):
    """A kexec against the verdict, as it is kept for the next boot."""

    boot_id: str  #: of the boot that it ended
    time: int
    reason: str
    verdict: str
    why: str
    kernel: str  #: the path of the image, "" if that is not known
    started: bool = (
        False  #: a kexec was asked for; otherwise it is loaded, and the next command line tells whether it came
    )


def digest(path: str) -> File:
    """Return the file with its digest. Raises OSError."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(_CHUNK):
            found.update(data)
    return File(path, found.hexdigest())


def boot_id(root: str) -> str:
    """Return the kernel's name for this boot. Raises OSError."""
    with open(os.path.join(root, paths.BOOT_ID), encoding="ascii", errors="replace") as file:
        return file.read(64).strip()


def is_loaded(root: str) -> bool | None:
    """Return whether a kernel is loaded for a kexec; None if the kernel does not say."""
    try:
        with open(os.path.join(root, paths.KEXEC_LOADED), encoding="ascii", errors="replace") as file:
            return {"0": False, "1": True}.get(file.read(8).strip())
    except OSError:
        return None


def locked(root: str) -> AbstractContextManager[None]:
    """Keep out other calls of kexec from what is loaded and the words of it, which change together. Raises OSError."""
    path = os.path.join(root, LOCK)
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    return storage.locked(path)


# ---- what is loaded


def write(root: str, found: Loaded) -> None:
    """Put the record in place whole. Raises OSError."""
    _put(root, LOADED, found, durable=False)


def read(root: str) -> Loaded | None:
    """Return the record of this boot, or None if there is none. Raises Damaged, OSError."""
    values = _get(root, LOADED)
    if values is None:
        return None
    try:
        files = [File(**item) for item in (values.pop("kernel"), *values.pop("initrds"))]
        found = Loaded(**values, kernel=files[0], initrds=tuple(files[1:]))
        found = found._replace(build_ids=tuple(found.build_ids))
    except (TypeError, KeyError, AttributeError):
        raise Damaged(f"/{LOADED} is damaged") from None
    texts = (found.boot_id, found.cmdline, found.loader, found.verdict, found.why, found.override, *found.build_ids)
    _check(LOADED, (*texts, *(text for file in files for text in file)), found.time)
    return found if found.boot_id == boot_id(root) else None


def forget(root: str) -> None:
    """Remove the record. Raises OSError, but not if there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(root, LOADED))


# ---- against the verdict


def permit(root: str, why: str) -> None:
    """Let the next kexec of this boot go against the verdict. Raises OSError."""
    _put(root, PERMISSION, Override(boot_id(root), int(time.time()), why, "", "", ""), durable=False)


def permission(root: str) -> str:
    """Return why the next kexec may go against the verdict, or "". Raises Damaged, OSError."""
    found = _override(root, PERMISSION)
    return found.reason if found and found.boot_id == boot_id(root) else ""


def use_up(root: str) -> None:
    """Take the permission back. Raises OSError, but not if there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(root, PERMISSION))


def keep(root: str, entry: Override) -> None:
    """Keep an override for the next boot, on the disk when this returns, and drop the oldest ones. Raises OSError."""
    folder = os.path.join(root, OVERRIDES)
    new = not os.path.isdir(folder)
    _put(root, f"{OVERRIDES}/{entry.boot_id}.json", entry, durable=True, mode=0o644)
    if new:
        storage.sync(os.path.dirname(folder))
    names = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".json")]
    for path in sorted(names, key=os.path.getmtime)[:-MOST]:
        os.unlink(path)


def dismiss(root: str) -> None:
    """Drop this boot's override: what was loaded with it is not loaded any more. Raises OSError, but not if there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(root, OVERRIDES, f"{boot_id(root)}.json"))


def kept(root: str, boot: str) -> Override | None:
    """Return how the boot of that name was ended against a verdict, or None. Raises Damaged, OSError."""
    return _override(root, f"{OVERRIDES}/{boot}.json")


def newest(root: str) -> Override | None:
    """Return the override that was kept last, or None. Raises Damaged, OSError."""
    folder = os.path.join(root, OVERRIDES)
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".json") and not name.startswith(".")]
    except FileNotFoundError:
        return None
    names.sort(key=lambda name: os.path.getmtime(os.path.join(folder, name)))
    return _override(root, f"{OVERRIDES}/{names[-1]}") if names else None


def _override(root: str, name: str) -> Override | None:
    values = _get(root, name)
    if values is None:
        return None
    try:
        found = Override(**values)
    except TypeError:
        raise Damaged(f"/{name} is damaged") from None
    _check(name, (*found[:1], *found[2:6]), found.time)
    if type(found.started) is not bool:
        raise Damaged(f"/{name} is damaged")
    return found


def _check(name: str, texts: tuple[Any, ...], number: Any) -> None:
    if not all(isinstance(text, str) and _usable(text) for text in texts) or type(number) is not int:
        raise Damaged(f"/{name} is damaged")


def _usable(text: str) -> bool:
    """Return whether a text can be a file's name, or an argument."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _put(root: str, name: str, value: Loaded | Override, *, durable: bool, mode: int = 0o600) -> None:
    document = value._asdict()
    if isinstance(value, Loaded):
        document |= {"kernel": value.kernel._asdict(), "initrds": [file._asdict() for file in value.initrds]}
    above, file = os.path.split(os.path.join(root, name))
    os.makedirs(above, 0o755, exist_ok=True)
    with storage.Folder(above) as folder:
        folder.put(file, json.dumps(document, indent=1).encode() + b"\n", mode, durable=durable)


def _get(root: str, name: str) -> dict[str, Any] | None:
    try:
        fd = os.open(os.path.join(root, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        data = file.read(_LIMIT + 1)
    try:
        values = json.loads(data) if len(data) <= _LIMIT else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise Damaged(f"/{name} is damaged")
    return values


def why_not(error: Exception) -> str:
    """Return why a file could not be used, as part of a sentence."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename}: {reason(error)}" if error.filename else reason(error)
