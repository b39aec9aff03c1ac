# SPDX-License-Identifier: MIT
"""A machine on which one system call fails: a fake root whose files answer as the kernel's do, and every call on it counted.

The calls are those of `posix`, `os`, `open` and `flock`, on paths below the root, by name or by descriptor, and programs
that mount; everything else is left alone. What is written to a file of the kernel's shows as the kernel would show it.
Between two runs the root is put back as it was.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import posix
import random
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from safemem.boot import paths

#: Error numbers that every call may end with.
ERRORS = ("EIO", "ENOENT", "EACCES", "EBUSY", "ENOSPC", "EINTR", "EMFILE")
#: What may become of data: of what is read nothing or half, of a folder nothing; of what is written half is taken,
#: half is taken and said to be all, or nothing is and all is said to be.
READ, WRITE, LIST = ("empty", "cut"), ("short", "torn", "lost"), ("empty",)
#: Of a program: it fails, does not end, or does nothing and says that all is well.
RUN = ("refused", "hangs", "idle")
#: For one call; for every call on its path from then on; for every call from then on.
REACH = ("once", "path", "all")
_CALLS = ("open", "read", "write", "pwrite", "stat", "lstat", "listdir", "scandir", "readlink", "mkdir", "rename", "replace", "symlink",
          "unlink", "remove", "rmdir", "link", "fstat", "fchmod", "chmod", "fsync", "truncate", "ftruncate")  # fmt: skip
_CHANGES = ("mkdir", "rename", "replace", "symlink", "unlink", "remove", "rmdir", "link")


class Call(NamedTuple):
    """One system call on the machine."""

    name: str
    path: str  #: relative to the root

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can go wrong with it."""
        data = {"read": READ, "write": WRITE, "pwrite": WRITE, "listdir": LIST, "run": RUN}.get(self.name, ())
        if self.name == "listdir" and self.path.startswith(("usr/", "etc/")):
            data = ()  # nothing is mounted over what the archive brings, and a system's own are mounted before
        return (*ERRORS, *data)


class Fault(NamedTuple):
    """Call number `at`, from 0, goes wrong in this way, and others with it as `reach` says."""

    at: int
    kind: str
    reach: str = "once"


class _Entries:
    """What `scandir` gives; what is asked of an entry is a call of its own."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = [_Entry(entry) for entry in entries]

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)

    def close(self) -> None:
        """Close nothing."""


class _Entry:
    """One of them."""

    def __init__(self, entry: Any) -> None:
        self._entry = entry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._entry, name)

    def stat(self, **options: Any) -> os.stat_result:
        """Return its status, by a call that is counted."""
        return os.stat(self._entry.path, **options)


def drawn(faults: list[Fault], number: str) -> list[Fault]:
    """Return so many of the faults, or `all` of them."""
    return faults if number == "all" else random.sample(faults, min(int(number), len(faults)))


def judged(
    name: str,
    calls: list[Call],
    faults: list[Fault],
    judge: Callable[[Fault], tuple[list[str], list[str]]],
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    """Return the faults that end looser, in words, and print how many there were.

    `judge` runs the machine once with a fault; it returns in which ways that ended looser, and what of it was owned up to.
    """
    bad, owned = [], Counter[str]()
    for fault in faults:
        found, said = judge(fault)
        owned.update(said)
        if found:
            call = calls[fault.at]
            where = f"call {fault.at}, {call.name} of {call.path}"
            bad.append(f"{fault.kind} ({fault.reach}) at {where}: {'; '.join(found)}")
    counts = f"{len(calls)} calls, {len(faults)} runs, {len(bad)} looser, {sum(owned.values())} looser and said"
    capsys.readouterr()
    with capsys.disabled():
        print(f"\n{name}: {counts}", end="")
    return bad


class Machine:
    """A fake root that remembers what it was, and lets a call fail."""

    def __init__(self, root: Path, mounts: Iterable[str] = ()) -> None:
        """Take `root` as it is now, with /dev/null mounted over `mounts`."""
        self.root = root
        self._prefix = f"{root}/"
        self._before = {path: self._content(path) for path in sorted(root.rglob("*"))}
        self._touched: set[Path] = set()
        self._open: dict[int, str] = {}  #: absolute paths
        self._mounts = frozenset(mounts)
        #: Where /dev/null is mounted now.
        self.mounts = set(mounts)
        #: Is called with each block that comes online, with -1 for a guard that shrinks, before the program goes on.
        self.onlined: Callable[[int], None] = lambda _: None
        self.calls: list[Call] = []
        self._fault: Fault | None = None
        self._hit = ""
        self.real_open, self.real_read, self.real_close = os.open, os.read, os.close
        self._real_write, self._real_truncate = os.write, os.ftruncate

    @staticmethod
    def _content(path: Path) -> tuple[str, bytes]:
        if path.is_symlink():
            return "link", os.readlink(path).encode()
        return ("folder", b"") if path.is_dir() else ("file", path.read_bytes())

    def restore(self) -> None:
        """Put back what the last run has changed."""
        self.mounts = set(self._mounts)
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
                if not path.is_symlink():
                    path.symlink_to(data.decode())
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
        for holder, name, stand_in in (
            (fcntl, "flock", self._wrapped("flock", fcntl.flock)),
            (subprocess, "run", self._run),
        ):
            saved.append((holder, name, getattr(holder, name)))
            setattr(holder, name, stand_in)
        real_open = builtins.open
        opener = self._opener(real_open)
        for holder, name in ((builtins, "open"), (io, "open")):
            saved.append((holder, name, real_open))
            setattr(holder, name, opener)
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
            place = self._place(words, options)
            if place is not None and (place + "/").startswith(self._prefix):
                return self._call(name, place[len(self._prefix) :] or ".", real, words, options)
            found = real(*words, **options)
            if name == "open":
                self._open.pop(found, None)
                if place is not None:
                    self._open[found] = place  # a folder on the way to the root
            return found

        return call

    def _place(self, words: tuple[Any, ...], options: dict[str, Any]) -> str | None:
        """Return the absolute path that a call is on; None if that is not known."""
        first = words[0] if words else options.get("path", "")
        if isinstance(first, int):
            return self._open.get(first)
        text = os.fsdecode(first)
        folder = options.get("dir_fd", options.get("src_dir_fd"))
        if folder is not None and not text.startswith("/"):
            base = self._open.get(folder)
            return None if base is None else f"{base.rstrip('/')}/{text}"
        second = words[1] if len(words) > 1 else None
        if isinstance(second, str) and second.startswith(self._prefix) and not text.startswith(self._prefix):
            text = second  # symlink: the first is its target
        return text if text.startswith("/") else None

    def _call(
        self, name: str, path: str, real: Callable[..., Any], words: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        kind = self._goes_wrong(Call(name, path))
        if kind == "signal":
            raise KeyboardInterrupt
        if path in self.mounts and name in ("open", "stat", "lstat"):
            words, options = ("/dev/null", *words[1:]), {key: options[key] for key in options if key != "dir_fd"}
        if name in _CHANGES or name == "open":
            self._note(name, path, words, options)
        if kind in ERRORS:
            raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)), str(self.root / path))
        if name == "open" and len(words) > 1 and isinstance(words[1], int) and self._is_value(path):
            words = (words[0], words[1] & ~os.O_TRUNC, *words[2:])
        if name == "write":
            data = bytes(words[1])
            if path == paths.CRASH_SIZE and kind in ("short", "torn"):
                # Half of a number is a number; kernfs hands a driver all of one write or none of it (fs/kernfs/file.c).
                return len(data) // 2 if kind == "short" else len(data)
            if self._is_value(path) and kind != "lost":
                self._real_truncate(words[0], 0)
            if kind in ("short", "torn"):
                real(words[0], self._shown(path, data[: len(data) // 2]))
                return len(data) // 2 if kind == "short" else len(data)
            if kind != "lost":
                shown = self._shown(path, data)
                while shown:  # as one call
                    shown = shown[real(words[0], shown) :]
                self._follow(path, data)
            return len(data)
        if name == "pwrite" and kind in WRITE:
            data = bytes(words[1])
            part = b"" if kind == "lost" else data[: len(data) // 2]
            real(words[0], part, words[2])
            return len(part) if kind == "short" else len(data)
        found = real(*words, **options)
        if name == "open" and isinstance(found, int):
            self._open[found] = self._prefix + path
        if name == "scandir":
            return _Entries([] if kind == "empty" else list(found))
        if kind == "empty" and isinstance(found, (bytes, str, list)):  # what is empty may be asked for its state, too
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
        for changed in (self.root / path, *(self.root / path).parents):
            if str(changed).startswith(self._prefix):
                self._touched.add(changed)
        if name in ("rename", "replace", "link"):
            target = self._place((words[1],), {"dir_fd": options["dst_dir_fd"]} if "dst_dir_fd" in options else {})
            if target is not None and target.startswith(self._prefix):
                self._touched.add(Path(target))

    # ---- the kernel

    @staticmethod
    def _is_value(path: str) -> bool:
        """Return whether a file is a value of the kernel's: opening it changes nothing, and a write replaces all of it."""
        state = path.startswith(paths.MEMORY) and path.endswith("/state")
        return state or path in (paths.AUTO_ONLINE, paths.CRASH_SIZE, paths.LOAD_LIMIT)

    @staticmethod
    def _shown(path: str, data: bytes) -> bytes:
        """Return what the kernel shows of what is written to one of its files."""
        if path.startswith(paths.MEMORY) and path.endswith("/state"):
            return b"online\n" if data.startswith(b"online") else data + b"\n"
        return data + b"\n" if path in (paths.AUTO_ONLINE, paths.CRASH_SIZE, paths.LOAD_LIMIT) else data

    def _follow(self, path: str, data: bytes) -> None:
        """Do what else the kernel does."""
        if path == paths.CRASH_SIZE:
            self.onlined(-1)
        if path.startswith(paths.MEMORY) and path.endswith("/state") and data.startswith(b"online"):
            zones = self.root / path.replace("/state", "/valid_zones")
            self._touched.add(zones)
            fd = self.real_open(zones, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            self._real_write(fd, b"Movable\n" if data == b"online_movable" else b"Normal\n")
            self.real_close(fd)
            self.onlined(int(zones.parent.name[6:]))

    def _run(self, words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """Do what mount and umount would do, and leave out what other programs do."""
        program, place = os.path.basename(words[0]), words[-1]
        path = place[len(self._prefix) :] if place.startswith(self._prefix) else program
        kind = self._goes_wrong(Call("run", path))
        if kind == "signal":
            raise KeyboardInterrupt
        if kind in ERRORS:
            raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)), words[0])
        if kind == "hangs":
            raise subprocess.TimeoutExpired(words, 30)
        if kind == "" and program in ("mount", "umount"):
            (self.mounts.add if program == "mount" else self.mounts.discard)(path)
        return subprocess.CompletedProcess(words, 32 if kind == "refused" else 0, "", "")

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
