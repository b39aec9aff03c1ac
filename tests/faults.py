# SPDX-License-Identifier: MIT
"""A machine on which one system call fails: a fake root whose files answer as the kernel's do, and every call on it counted.

The calls are those of `posix`, `os` and `open`, on paths below the root; everything else is left alone. What is written
to a file of the kernel's shows as the kernel would show it. Between two runs the root is put back as it was.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import posix
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safemem.boot import paths

#: Error numbers that every call may end with.
ERRORS = ("EIO", "ENOENT", "EACCES", "EBUSY", "ENOSPC", "EINTR", "EMFILE")
#: What may become of data: of what is read nothing or half, of a folder nothing; of what is written half is taken,
#: half is taken and said to be all, or nothing is and all is said to be.
READ, WRITE, LIST = ("empty", "cut"), ("short", "torn", "lost"), ("empty",)
#: For one call; for every call on its path from then on; for every call from then on.
REACH = ("once", "path", "all")
_CALLS = ("open", "read", "write", "stat", "lstat", "listdir", "scandir", "readlink", "mkdir", "rename", "replace", "symlink",
          "unlink", "remove", "rmdir", "link", "fchmod", "chmod", "fsync", "truncate", "ftruncate")  # fmt: skip
_CHANGES = ("mkdir", "rename", "replace", "symlink", "unlink", "remove", "rmdir", "link")


class Call(NamedTuple):
    """One system call on the machine."""

    name: str
    path: str  #: relative to the root

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can go wrong with it."""
        data = {"read": READ, "write": WRITE, "listdir": LIST}.get(self.name, ())
        if self.name == "listdir" and self.path.startswith("usr/"):
            data = ()  # nothing is mounted over what the archive brings
        return (*ERRORS, *data)


class Fault(NamedTuple):
    """Call number `at`, from 0, goes wrong in this way, and others with it as `reach` says."""

    at: int
    kind: str
    reach: str = "once"


class Machine:
    """A fake root that remembers what it was, and lets a call fail."""

    def __init__(self, root: Path) -> None:
        """Take `root` as it is now."""
        self.root = root
        self._prefix = f"{root}/"
        self._before = {path: self._content(path) for path in sorted(root.rglob("*"))}
        self._touched: set[Path] = set()
        self._open: dict[int, str] = {}
        self.calls: list[Call] = []
        self._fault: Fault | None = None
        self._hit = ""

    @staticmethod
    def _content(path: Path) -> tuple[str, bytes]:
        if path.is_symlink():
            return "link", os.readlink(path).encode()
        return ("folder", b"") if path.is_dir() else ("file", path.read_bytes())

    def restore(self) -> None:
        """Put back what the last run has changed."""
        for path in sorted(self._touched, reverse=True):
            if path not in self._before and os.path.lexists(path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in sorted(self._touched & self._before.keys()):
            kind, data = self._before[path]
            if os.path.lexists(path) and self._content(path) != (kind, data) and kind != "folder":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            if kind == "folder":
                path.mkdir(exist_ok=True)
            elif kind == "link":
                path.is_symlink() or path.symlink_to(data.decode())
            else:
                path.write_bytes(data)
        self._touched.clear()

    @contextmanager
    def failing(self, fault: Fault | None = None) -> Iterator[None]:
        """Count the calls on the root, and let those fail that `fault` says."""
        self._fault, self._hit, self.calls = fault, "", []
        self._open.clear()
        saved: list[tuple[Any, str, Any]] = []
        for module in (posix, os):
            for name in (*_CALLS, "close"):
                real = getattr(module, name, None)
                if real is not None:
                    saved.append((module, name, real))
                    setattr(module, name, self._wrapped(name, real))
        real_open = builtins.open
        for holder in (builtins, io):
            saved.append((holder, "open", real_open))
            holder.open = self._opener(real_open)
        try:
            yield
        finally:
            for holder, name, real in saved:
                setattr(holder, name, real)

    # ---- the calls

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        if name == "close":

            def close(fd: int) -> None:
                self._open.pop(fd, None)
                real(fd)

            return close

        def call(*words: Any, **options: Any) -> Any:
            path = self._path(words, options)
            if path is None:
                return real(*words, **options)
            return self._call(name, path, real, words, options)

        return call

    def _path(self, words: tuple[Any, ...], options: dict[str, Any]) -> str | None:
        """Return the path that a call is on, relative to the root; None if it is elsewhere."""
        first = words[0] if words else options.get("path", "")
        if isinstance(first, int):
            return self._open.get(first)
        text = os.fsdecode(first)
        folder = options.get("dir_fd", options.get("src_dir_fd"))
        if folder is not None and not text.startswith("/"):
            base = self._open.get(folder)
            return None if base is None else f"{base}/{text}"
        if words and len(words) > 1 and isinstance(words[1], str) and words[1].startswith(self._prefix):
            text = words[1] if not text.startswith(self._prefix) else text  # symlink: the first is its target
        return text[len(self._prefix) :] if text.startswith(self._prefix) else None

    def _call(
        self, name: str, path: str, real: Callable[..., Any], words: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        kind = self._goes_wrong(Call(name, path))
        if name in _CHANGES or name == "open":
            self._note(name, path, words, options)
        if kind in ERRORS:
            raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)), str(self.root / path))
        if name == "write":
            data = bytes(words[1])
            if kind in ("short", "torn"):
                real(words[0], self._shown(path, data[: len(data) // 2]))
                return len(data) // 2 if kind == "short" else len(data)
            if kind != "lost":
                shown = self._shown(path, data)
                while shown:  # as one call
                    shown = shown[real(words[0], shown) :]
                self._follow(path, data)
            return len(data)
        found = real(*words, **options)
        if name == "open" and isinstance(found, int):
            self._open[found] = path
        if kind == "empty":
            return type(found)()
        if kind == "cut":
            return found[: len(found) // 2]
        return found

    def _goes_wrong(self, call: Call) -> str:
        number, fault = len(self.calls), self._fault
        self.calls.append(call)
        if fault is None or number < fault.at:
            return ""
        if number == fault.at:
            self._hit = call.path
            return fault.kind
        again = fault.reach == "all" or (fault.reach == "path" and call.path == self._hit)
        return fault.kind if again and fault.kind in call.kinds else ""

    def _note(self, name: str, path: str, words: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._touched.add(self.root / path)
        for parent in (self.root / path).parents:
            if parent != self.root and str(parent).startswith(self._prefix):
                self._touched.add(parent)
        if name in ("rename", "replace", "link"):
            target = self._path((words[1],), {"dir_fd": options["dst_dir_fd"]} if "dst_dir_fd" in options else {})
            if target is not None:
                self._touched.add(self.root / target)

    # ---- the kernel

    @staticmethod
    def _shown(path: str, data: bytes) -> bytes:
        """Return what the kernel shows of what is written to one of its files."""
        if path.startswith(paths.MEMORY) and path.endswith("/state"):
            return b"online\n" if data.startswith(b"online") else data + b"\n"
        return data + b"\n" if path in (paths.AUTO_ONLINE, paths.CRASH_SIZE, paths.LOAD_LIMIT) else data

    def _follow(self, path: str, data: bytes) -> None:
        """Do what else the kernel does."""
        if path.startswith(paths.MEMORY) and path.endswith("/state") and data.startswith(b"online"):
            zones = self.root / path.replace("/state", "/valid_zones")
            self._touched.add(zones)
            zones.write_bytes(b"Movable\n" if data == b"online_movable" else b"Normal\n")

    # ---- open()

    def _opener(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *words: Any, **options: Any) -> Any:
            if isinstance(file, int) or not os.fsdecode(file).startswith(self._prefix):
                return real(file, mode, *words, **options)
            if mode.strip("bt") != "r":
                path = os.fsdecode(file)[len(self._prefix) :]
                return self._call("open", path, lambda *_, **__: real(file, mode, *words, **options), (file,), {})
            fd = os.open(file, os.O_RDONLY)
            try:
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
                parts = []
                while part := os.read(fd, 1 << 16):
                    parts.append(part)
            finally:
                os.close(fd)
            raw = io.BytesIO(b"".join(parts))
            encoding, errors = options.get("encoding"), options.get("errors")
            return raw if "b" in mode else io.TextIOWrapper(raw, encoding=encoding, errors=errors)

        return opened
