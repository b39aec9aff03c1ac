# SPDX-License-Identifier: MIT
"""Files put in place whole, and the one lock: all that the real root writes, on disks and in other users' folders.

Descriptors stand for names: who owns a folder on the way can rename what is in it at any moment, and must not be able
to lead a write, or a change of mode, elsewhere. Functions raise OSError.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

#: Whoever changes what stands in this boot has it: release, watch, hold.
LOCK = "run/safemem/lock"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DRAFT = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Links on the way to a folder; as many as the kernel follows.
_LINKS = 40


class Folder:
    """An open folder, reached without following a link that others could have made."""

    def __init__(self, path: str) -> None:
        """Open the folder at `path`. Raises OSError, ELOOP for such a link."""
        todo = path.split("/")[::-1]
        links = 0
        self.fd = os.open("/" if path.startswith("/") else ".", _FOLDER)
        #: Nobody but root and us can change what is on the way to it, or in it.
        self.ours = _is_ours(os.fstat(self.fd))
        try:
            while todo:
                name = todo.pop()
                if name in ("", "."):
                    continue
                try:
                    below = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self.fd)
                except OSError as error:
                    target = _link(self.fd, name)
                    if target is None:
                        raise OSError(error.errno, error.strerror, path) from None
                    links += 1
                    if links > _LINKS or not (self.ours and _is_mine(os.lstat(name, dir_fd=self.fd))):
                        why = "a link on the way, which others can change, is not followed"
                        raise OSError(errno.ELOOP, why, path) from None
                    todo += target.split("/")[::-1]
                    if not target.startswith("/"):
                        continue
                    below = os.open("/", _FOLDER)
                os.close(self.fd)
                self.fd = below
                self.ours = self.ours and _is_ours(os.fstat(below))
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Folder:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        os.close(self.fd)

    def put(self, name: str, data: bytes, mode: int = 0o644, *, durable: bool = False) -> None:
        """Put `data` at `name` with this mode in one step, or leave what was there; `durable`: on the disk, too.

        Raises:
            OSError: also if less has arrived than was written, or nothing more is taken.
        """
        draft = f".{name[:200]}.{os.urandom(8).hex()}"
        fd = os.open(draft, _DRAFT, 0o600, dir_fd=self.fd)
        try:
            try:
                os.fchmod(fd, mode)
                left = data
                while left:
                    written = os.write(fd, left)
                    if not written:
                        raise OSError(errno.EIO, "nothing more is taken", name)
                    left = left[written:]
                if os.fstat(fd).st_size != len(data):
                    raise OSError(errno.EIO, "what was written has not arrived", name)
                if durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(draft, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft, dir_fd=self.fd)
            raise
        if durable:
            os.fsync(self.fd)


def _is_mine(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def _is_ours(status: os.stat_result) -> bool:
    """Return whether nobody else can rename what is in a folder; in a sticky one, only what is somebody's own."""
    return _is_mine(status) and (not status.st_mode & 0o022 or bool(status.st_mode & stat.S_ISVTX))


def _link(fd: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError:
        return None


def put(root: str, name: str, text: str, *, durable: bool = False) -> None:
    """Put a text file below `root` in place whole, mode 0644, with the folders above it. Raises OSError."""
    above, file = os.path.split(os.path.join(root, name))
    os.makedirs(above, 0o755, exist_ok=True)
    with Folder(above) as folder:
        folder.put(file, text.encode("utf-8", "surrogateescape"), durable=durable)


@contextlib.contextmanager
def locked(path: str, *, wait: bool = True) -> Iterator[None]:
    """Keep out whoever else asks for the lock at `path`; the folder is there.

    Raises:
        BlockingIOError: somebody has it, and we are not to `wait`.
        OSError: it cannot be had.
    """
    # For root's eyes only: a lock on a file that others can open is a lock that they can take.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)


def sync(folder: str) -> None:
    """Bring a folder's names to the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
