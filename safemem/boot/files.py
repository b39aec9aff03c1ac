# SPDX-License-Identifier: MIT
"""Opening files: the only module of the boot half that does, so that faults can be injected in one place.

Every path is relative to a `root`, so that a test is a folder and nothing is patched. Functions raise
OSError unless they say otherwise; none tries again and none writes more than once.
"""

from __future__ import annotations

import os

#: Bytes; no file read here is larger. A longer one is cut, which its parser then refuses.
LIMIT = 1 << 20
# O_NONBLOCK: a FIFO in place of a file must not hang the boot.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
# O_TRUNC is what a shell's `>` does: the kernel's own files ignore it, a plain file keeps no old end.
_WRITE = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
#: Of a file that somebody else may hold immutable: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL (include/uapi/linux/fs.h).
_GETFLAGS, _SETFLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10


def reason(error: OSError, otherwise: str = "cannot be read") -> str:
    """Return why a call failed, as part of a sentence."""
    return (error.strerror or otherwise).lower()


def path(root: str, name: str) -> str:
    """Return where `name` is below `root`."""
    return os.path.join(root, name)


# ---- reading


def read(root: str, name: str, limit: int = LIMIT) -> bytes:
    """Return the file's first `limit` bytes."""
    fd = os.open(path(root, name), _READ)
    try:
        parts = []
        while limit and (part := os.read(fd, limit)):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def text(root: str, name: str) -> str | None:
    """Return the file's text without the end of its last line; None if it cannot be read."""
    try:
        return read(root, name).decode("utf-8", "replace").rstrip("\n\0")
    except OSError:
        return None


def word(root: str, name: str) -> str:
    """Return the file's text without blanks around it; "" if it cannot be read."""
    return (text(root, name) or "").strip()


def size(root: str, name: str) -> int:
    """Return the file's bytes."""
    return os.stat(path(root, name)).st_size


def names(root: str, name: str) -> list[str]:
    """Return what is in a folder, in no order."""
    return os.listdir(path(root, name))


def exists(root: str, name: str) -> bool | None:
    """Return whether there is such a file, folder or link; None if that cannot be told."""
    try:
        os.lstat(path(root, name))
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None


def is_folder(root: str, name: str) -> bool:
    """Return whether there is such a folder; what cannot be told is none."""
    return os.path.isdir(path(root, name))


def link_target(root: str, name: str) -> str | None:
    """Return what a symbolic link holds; None if there is no link."""
    try:
        return os.readlink(path(root, name))
    except OSError:
        return None


class Folder:
    """An open folder: of tens of thousands of files in it, each costs one open and no walk from the root."""

    def __init__(self, root: str, name: str) -> None:
        """Open it. Raises OSError."""
        self._fd = os.open(path(root, name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Folder:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        os.close(self._fd)

    def names(self) -> list[str]:
        """Return what is in it, in no order."""
        return os.listdir(self._fd)

    def read(self, name: str, size: int) -> bytes:
        """Return what one read of at most `size` bytes gives: a file of the kernel's, with one value."""
        fd = os.open(name, _READ, dir_fd=self._fd)
        try:
            return os.read(fd, size)
        finally:
            os.close(fd)

    def word(self, name: str) -> str:
        """Return the text of a short file without blanks around it; "" if it cannot be read."""
        try:
            return self.read(name, 4096).decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def put(self, name: str, data: bytes) -> None:
        """Write to a file that is there."""
        fd = os.open(name, _WRITE | os.O_NONBLOCK, dir_fd=self._fd)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)


# ---- writing


def put(root: str, name: str, data: str, *, append: bool = False, wait: bool = False) -> None:
    """Write `data` to a file that is there, such as one of the kernel's.

    `append` is for logs, which keep what they have. `wait` lets the call take its time; only a signal ends it then.
    """
    flags = (_WRITE & ~os.O_TRUNC) | os.O_APPEND if append else _WRITE
    fd = os.open(path(root, name), flags | (0 if wait else os.O_NONBLOCK))
    try:
        os.write(fd, data.encode())
    finally:
        os.close(fd)


def attempt(root: str, name: str, data: str) -> str | None:
    """Write as `put` does; return why that failed, or None."""
    try:
        put(root, name, data)
    except OSError as error:
        return reason(error, "cannot be written")
    return None


def create(root: str, name: str, data: bytes, *, mode: int = 0o644, truncate: bool = True) -> None:
    """Write `data` to a file, which is made with `mode` if it is not there, in place."""
    fd = os.open(path(root, name), (_WRITE if truncate else _WRITE & ~os.O_TRUNC) | os.O_CREAT, mode)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def replace(root: str, name: str, data: str) -> None:
    """Put a file in place whole, mode 0644, with the folders above it."""
    place = path(root, name)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    draft = f"{place}.new"
    fd = os.open(draft, _WRITE | os.O_CREAT, 0o644)
    with open(fd, "w", encoding="utf-8") as out:
        os.fchmod(fd, 0o644)  # whatever the umask of the initramfs
        out.write(data)
    os.rename(draft, place)


def link(root: str, name: str, target: str) -> None:
    """Make `name` a symbolic link to `target`, with the folders above it; one that is there already stays.

    Raises:
        OSError: also if something else is there.
    """
    place = path(root, name)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    try:
        os.symlink(target, place)
    except FileExistsError:
        if os.readlink(place) != target:  # a plain file is OSError here
            raise


def remove(root: str, name: str) -> None:
    """Remove a file or link."""
    os.unlink(path(root, name))


def make_mutable(root: str, name: str) -> None:
    """Take the immutable flag off a file, as efivarfs sets it on every variable that it does not know (efivarfs.rst)."""
    import fcntl  # only where there are EFI variables

    fd = os.open(path(root, name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, bytes(8))[:4], "little")
        fcntl.ioctl(fd, _SETFLAGS, (flags & ~_IMMUTABLE).to_bytes(8, "little"))
    finally:
        os.close(fd)


def open_and_close(root: str, name: str) -> None:
    """Open a device for reading and writing, and close it at once."""
    os.close(os.open(path(root, name), os.O_RDWR | os.O_CLOEXEC))
