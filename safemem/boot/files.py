# SPDX-License-Identifier: MIT
"""Opening files: the only module of the boot half that does, so that faults can be injected in one place.

Every path is relative to a `root`, so that a test is a folder and nothing is patched. Functions raise
OSError unless they say otherwise; none tries again.

`posix` is what `os` is made of, and built into the interpreter: importing `os` itself takes a seventh of the
boot program's time, most of it for collections that nothing here needs.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Bytes; no file read here is larger. A longer one is cut, which its parser then refuses.
LIMIT = 1 << 20
# O_NONBLOCK: a FIFO in place of a file must not hang the boot.
_READ = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK
# O_TRUNC is what a shell's `>` does: the kernel's own files ignore it, a plain file keeps no old end.
_WRITE = posix.O_WRONLY | posix.O_TRUNC | posix.O_CLOEXEC
#: A draft that nobody else has made, and no link.
_DRAFT = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
_TYPE, _FOLDER, _PLAIN = 0o170000, 0o040000, 0o100000
_EIO, _EEXIST = 5, 17
#: Of a file that somebody else may hold immutable: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL (include/uapi/linux/fs.h).
_GETFLAGS, _SETFLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10


def reason(error: OSError, otherwise: str = "cannot be read") -> str:
    """Return why a call failed, as part of a sentence."""
    text = error.strerror or otherwise
    return text[:1].lower() + text[1:]  # whatever path stands further on keeps its letters


def path(root: str, name: str) -> str:
    """Return where `name` is below `root`."""
    return name if name.startswith("/") or not root else f"{root.rstrip('/')}/{name}"


# ---- reading


def read(root: str, name: str, limit: int = LIMIT) -> bytes:
    """Return the file's first `limit` bytes."""
    fd = posix.open(path(root, name), _READ)
    try:
        parts = []
        while limit and (part := posix.read(fd, min(limit, LIMIT))):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        posix.close(fd)


def text(root: str, name: str) -> str | None:
    """Return the file's text without the end of its last line; None if it cannot be read."""
    try:
        return read(root, name).decode("utf-8", "replace").rstrip("\n\0")
    except OSError:
        return None


def line(root: str, name: str) -> str:
    """Return the lines of a file of the kernel's, without blanks around them.

    Raises:
        OSError: also for a file that does not end with the end of a line, as every such file does: it is cut off.
    """
    data = read(root, name)
    if not data.endswith(b"\n"):
        raise OSError(_EIO, "it is cut off" if data else "it is empty", name)
    return data.decode("utf-8", "replace").strip()


def word(root: str, name: str) -> str:
    """Return the file's text without blanks around it; "" if it cannot be read."""
    return (text(root, name) or "").strip()


def numbers(root: str, name: str, places: Iterable[int]) -> list[int]:
    """Return the numbers of 64 bits that stand at these byte offsets; 0 for one beyond the file's end."""
    fd = posix.open(path(root, name), _READ)
    try:
        return [int.from_bytes(posix.pread(fd, 8, place), "little") for place in places]
    finally:
        posix.close(fd)


def part(root: str, name: str, place: int, size: int) -> bytes:
    """Return so many bytes from a place on; fewer at the file's end."""
    fd = posix.open(path(root, name), _READ)
    try:
        return posix.pread(fd, size, place)
    finally:
        posix.close(fd)


def size(root: str, name: str) -> int:
    """Return the file's bytes."""
    return posix.stat(path(root, name)).st_size


def filesystem(root: str, name: str) -> int:
    """Return the number of the file system that a file or folder is on: another one than its folder's is mounted there."""
    return posix.stat(path(root, name)).st_dev


def names(root: str, name: str) -> list[str]:
    """Return what is in a folder, in no order."""
    return posix.listdir(path(root, name))


def exists(root: str, name: str) -> bool | None:
    """Return whether there is such a file, folder or link; None if that cannot be told."""
    try:
        posix.lstat(path(root, name))
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None


def is_folder(root: str, name: str) -> bool | None:
    """Return whether there is such a folder; None if that cannot be told."""
    try:
        return posix.stat(path(root, name)).st_mode & _TYPE == _FOLDER
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None


def link_target(root: str, name: str) -> str | None:
    """Return what a symbolic link holds; None if there is no link."""
    try:
        return posix.readlink(path(root, name))
    except OSError:
        return None


class Folder:
    """An open folder: of tens of thousands of files in it, each costs one open and no walk from the root."""

    def __init__(self, root: str, name: str) -> None:
        """Open it. Raises OSError."""
        self._fd = posix.open(path(root, name), posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)

    def __enter__(self) -> Folder:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        posix.close(self._fd)

    def names(self) -> list[str]:
        """Return what is in it, in no order."""
        return posix.listdir(self._fd)

    def has(self, name: str) -> bool | None:
        """Return whether there is such a file or folder in it; None if that cannot be told."""
        try:
            posix.stat(name, dir_fd=self._fd)
            return True
        except FileNotFoundError:
            return False
        except OSError:
            return None

    def read(self, name: str, size: int) -> bytes:
        """Return what one read of at most `size` bytes gives: a file of the kernel's, with one value."""
        fd = posix.open(name, _READ, dir_fd=self._fd)
        try:
            return posix.read(fd, size)
        finally:
            posix.close(fd)

    def target(self, name: str) -> str:
        """Return what a symbolic link in it holds."""
        return posix.readlink(name, dir_fd=self._fd)

    def word(self, name: str) -> str:
        """Return the text of a short file without blanks around it; "" if it cannot be read."""
        try:
            return self.read(name, 4096).decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def put(self, name: str, data: bytes) -> None:
        """Write to a file that is there."""
        fd = posix.open(name, _WRITE | posix.O_NONBLOCK, dir_fd=self._fd)
        try:
            _write(fd, data)
        finally:
            posix.close(fd)


# ---- writing


def umask() -> None:
    """Have what this process makes writable for its owner only, whatever it was started with."""
    posix.umask(0o022)


def _write(fd: int, data: bytes) -> None:
    """Write `data` by one call. Raises OSError, also if not all of it was taken: the rest would be a value of its own."""
    _written(posix.write(fd, data), data)


def _written(number: int, data: bytes) -> None:
    if number != len(data):
        raise OSError(_EIO, f"{number} of {len(data)} bytes were written")


def put(root: str, name: str, data: str, *, append: bool = False, wait: bool = False) -> None:
    """Write `data` to a file that is there, such as one of the kernel's.

    `append` is for logs, which keep what they have. `wait` lets the call take its time; only a signal ends it then.
    """
    flags = (_WRITE & ~posix.O_TRUNC) | posix.O_APPEND if append else _WRITE
    fd = posix.open(path(root, name), flags | (0 if wait else posix.O_NONBLOCK))
    try:
        _write(fd, data.encode())
    finally:
        posix.close(fd)


def write_at(root: str, name: str, place: int, data: bytes) -> None:
    """Write `data` by one call at a byte offset of a file that is there, and leave the rest of it."""
    fd = posix.open(path(root, name), posix.O_WRONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    try:
        _written(posix.pwrite(fd, data, place), data)
    finally:
        posix.close(fd)


def attempt(root: str, name: str, data: str) -> str | None:
    """Write as `put` does; return why that failed, or None."""
    try:
        put(root, name, data)
    except OSError as error:
        return reason(error, "cannot be written")
    return None


def create(root: str, name: str, data: bytes, *, mode: int = 0o644, truncate: bool = True) -> None:
    """Write `data` by one call to a file, which is made with `mode` if it is not there, in place."""
    flags = (_WRITE if truncate else _WRITE & ~posix.O_TRUNC) | posix.O_CREAT | posix.O_NOFOLLOW
    fd = posix.open(path(root, name), flags, mode)
    try:
        _write(fd, data)
    finally:
        posix.close(fd)


def replace(root: str, name: str, data: str) -> None:
    """Put a file in place whole, mode 0644, with the folders above it, and look that it has arrived.

    The draft is ours: whatever lies where it is made, such as one that a crash has left or a link, is removed, never written.
    """
    place, content = path(root, name), data.encode()
    _folders(place)
    draft = f"{place}.new"
    try:
        posix.unlink(draft)
    except FileNotFoundError:
        pass  # as it should be
    fd = posix.open(draft, _DRAFT, 0o600)
    try:
        posix.fchmod(fd, 0o644)  # whatever the umask of the initramfs
        left = content
        while left:
            written = posix.write(fd, left)
            if not written:
                raise OSError(_EIO, "nothing more is taken", draft)
            left = left[written:]
    finally:
        posix.close(fd)
    posix.rename(draft, place)
    if size(root, name) != len(content):
        raise OSError(_EIO, "what was written has not arrived", place)


def set_aside(root: str, name: str, size: int) -> None:
    """Make a file of `size` bytes, which only its owner may open, and map it once: hugetlbfs reserves its pages for it.

    They are not touched, and stay with the file when the mapping has gone. A file that is there is shortened or grows; where
    the pages cannot be had it is as large as it was.
    """
    import mmap  # only where a guard has gigantic pages

    fd = posix.open(path(root, name), posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600)
    try:
        before = posix.fstat(fd).st_size
        posix.ftruncate(fd, size)
        try:
            if size:
                mmap.mmap(fd, size, mmap.MAP_SHARED).close()
        except (OSError, ValueError):
            posix.ftruncate(fd, before)
            raise
    finally:
        posix.close(fd)


def shorten(root: str, name: str, size: int) -> None:
    """Cut a file that is there to `size` bytes, or fill it up to them."""
    posix.truncate(path(root, name), size)


def _folders(place: str) -> None:
    """Make the folders above `place` that are not there, for root alone to write."""
    above = place.rpartition("/")[0]
    if not above or exists("", above):
        return
    _folders(above)
    try:
        posix.mkdir(above, 0o755)
    except FileExistsError:
        pass  # somebody else was faster


def link(root: str, name: str, target: str) -> None:
    """Make `name` a symbolic link to `target`, with the folders above it; one that is there already stays.

    Raises:
        OSError: also if something else is there.
    """
    place = path(root, name)
    _folders(place)
    try:
        posix.symlink(target, place)
    except FileExistsError:
        pass
    if posix.readlink(place) != target:  # a plain file is OSError here
        raise FileExistsError(_EEXIST, "another link is there", place)


def remove(root: str, name: str) -> None:
    """Remove a file or link."""
    posix.unlink(path(root, name))


def make_mutable(root: str, name: str) -> None:
    """Take the immutable flag off a file, as efivarfs sets it on every variable that it does not know (efivarfs.rst)."""
    import fcntl  # only where there are EFI variables

    fd = posix.open(path(root, name), posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        flags = int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, bytes(8))[:4], "little")
        fcntl.ioctl(fd, _SETFLAGS, (flags & ~_IMMUTABLE).to_bytes(8, "little"))
    finally:
        posix.close(fd)


def open_and_close(root: str, name: str) -> None:
    """Open a device for reading and writing, and close it at once."""
    posix.close(posix.open(path(root, name), posix.O_RDWR | posix.O_CLOEXEC))


class Device:
    """An open descriptor that answers to ioctl. Every method raises OSError."""

    def __init__(self, fd: int) -> None:
        """Take over the descriptor `fd`."""
        self._fd = fd

    def __enter__(self) -> Device:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        posix.close(self._fd)

    def ask(self, request: int, data: bytes) -> bytes:
        """Call ioctl; return the argument as the kernel leaves it."""
        import fcntl  # only where a policy has the token retrieved

        return fcntl.ioctl(self._fd, request, data)

    def made(self, request: int, data: bytes) -> Device:
        """Call an ioctl that makes a descriptor, and leaves it behind the first four bytes of its argument."""
        return Device(int.from_bytes(self.ask(request, data)[4:8], "little"))

    def content(self, size: int) -> bytes | None:
        """Return what a plain file of `size` bytes holds; None if it is another kind of file, or not of that size."""
        state = posix.fstat(self._fd)
        if state.st_mode & _TYPE != _PLAIN or state.st_size != size:
            return None
        return posix.pread(self._fd, size, 0)


def device(root: str, name: str) -> Device:
    """Open a device for reading and writing."""
    return Device(posix.open(path(root, name), posix.O_RDWR | posix.O_CLOEXEC))
