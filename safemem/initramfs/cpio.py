# SPDX-License-Identifier: MIT
"""Write newc cpio archives, the format of an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).

No I/O beyond the file object it is given, no root needed for device nodes, and nothing in the
output depends on the clock or the machine.
"""

from __future__ import annotations

from typing import BinaryIO

_DIRECTORY, _FILE, _SYMLINK = 0o040000, 0o100000, 0o120000


class Archive:
    """An archive under way. Call `close` to finish it; missing parent folders are made."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._count = 0
        self._folders: set[str] = set()

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a folder, once."""
        path = path.strip("/")
        if path and path not in self._folders:
            self._parents(path)
            self._folders.add(path)
            self._entry(path, _DIRECTORY | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._parents(path.strip("/"))
        self._entry(path.strip("/"), _FILE | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link to `target`."""
        self._parents(path.strip("/"))
        self._entry(path.strip("/"), _SYMLINK | 0o777, target.encode())

    def device(self, path: str, mode: int, major: int, minor: int) -> None:
        """Add a device node; `mode` includes its type, such as 0o020600 for a character device."""
        self._parents(path.strip("/"))
        self._entry(path.strip("/"), mode, b"", major, minor)

    def close(self) -> None:
        """Write the trailer and pad to 512 bytes, so that another archive can follow."""
        self._count = -1
        self._entry("TRAILER!!!", 0, b"")
        self._out.write(bytes(-self._out.tell() % 512))

    def _parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent:
            self.directory(parent)

    def _entry(self, path: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> None:
        self._count += 1
        name = path.encode() + b"\0"
        links = 2 if mode & 0o170000 == _DIRECTORY else 1
        fields = (self._count, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
        self._out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))
