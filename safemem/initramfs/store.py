# SPDX-License-Identifier: MIT
"""The bytes of an image, in a file or in memory: what lies outside is refused, and only so much is read of it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from safemem.boot.files import reason
from safemem.boot.model import Refused
from safemem.boot.printable import printable

#: Bytes that are read of one image. The largest in use, a unified one with its initrd, has about half of that.
READ = 192 << 20


class NoKernel(Refused):
    """An image cannot be read, or is none of a kernel; the message says where and why."""

    kind = "invalid"


class Store:
    """The bytes of one image; every read is checked against its size, and counted."""

    def __init__(self, name: str, data: bytes | None, fd: int = -1, size: int = 0) -> None:
        """Take `data`, or the file behind `fd` with `size` bytes."""
        self.name, self.data, self._fd = name, data, fd
        self.size = size if data is None else len(data)
        self._left = READ

    def refused(self, why: str) -> NoKernel:
        """Return the error that says `why` this image is not read."""
        return NoKernel(f"{printable(self.name)}: {why}" if self.name else why)

    def head(self, at: int, size: int) -> bytes:
        """Return up to `size` bytes at `at`: fewer, or none, where the image ends before."""
        return self._read(at, max(0, min(size, self.size - at)))

    def cut(self, at: int, size: int, what: str) -> bytes:
        """Return `size` bytes at `at`, which are `what`. Raises NoKernel if they are not all in the image."""
        if at + size > self.size:
            raise self.refused(f"{what} lies outside: {size} bytes at byte {at}, and the image has {self.size} bytes")
        return self._read(at, size)

    def number(self, at: int, size: int, what: str) -> int:
        """Return the little-endian number of `size` bytes at `at`, which is `what`. Raises NoKernel."""
        return int.from_bytes(self.cut(at, size, what), "little")

    def whole(self, limit: int) -> bytes:
        """Return all of it. Raises NoKernel if that is more than `limit` bytes."""
        if self.data is not None:
            return self.data
        if self.size > limit:
            raise self.refused(f"{self.size >> 20} MiB, and no more than {limit >> 20} MiB of a kernel are read")
        return self._read(0, self.size)

    def _read(self, at: int, size: int) -> bytes:
        if self.data is not None:
            return self.data[at : at + size]
        self._left -= size
        if self._left < 0:
            raise self.refused(f"more than {READ >> 20} MiB would have to be read of it")
        parts = []
        while size:
            part = os.pread(self._fd, size, at)
            if not part:
                raise self.refused("it has become shorter while it was read")
            parts.append(part)
            at, size = at + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


@contextlib.contextmanager
def opened(path: str) -> Iterator[Store]:
    """Give the file at `path`. Raises NoKernel if there is none, or if what is there is no file."""
    try:
        # Not blocking: what is no file is refused, not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NoKernel(f"{printable(path)}: {reason(error)}") from None
    except ValueError:
        raise NoKernel(f"{printable(path)}: no file can be called so") from None
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise NoKernel(f"{printable(path)}: this is no file")
        yield Store(path, None, fd, state.st_size)
    except OSError as error:
        raise NoKernel(f"{printable(path)}: {reason(error)}") from None
    finally:
        os.close(fd)
