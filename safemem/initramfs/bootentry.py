# SPDX-License-Identifier: MIT
"""Boot loader entries as a boot loader reads them: what is in one, in which order they stand, and which is taken.

Formats: UAPI.1 (entries, boot counting, order) and UAPI.10 (versions) of the UAPI group, loader.conf(5) of systemd-boot,
GRUB's environment block. All of it is decided from text and names; nothing is opened here.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

#: Bytes of an entry or a loader's configuration that are read; none has a hundredth of it.
LIMIT = 1 << 20
#: Letters of a version or a name that are compared; a file's name has 255.
_LONGEST = 1024
_TRIES = re.compile(r"^(?P<stem>.+)\+(?P<left>[0-9]{1,9})(?:-(?P<done>[0-9]{1,9}))?$", re.DOTALL)
#: Keys that name a kernel; the newer ones are from systemd 258.
_KERNELS = ("linux", "efi", "uki", "uki-url")
#: EFI's names of machines, by what uname(2) calls them.
ARCHITECTURES = {
    "x86_64": "x64", "i686": "ia32", "aarch64": "aa64", "armv7l": "arm", "riscv64": "riscv64", "loongarch64": "loongarch64",
}  # fmt: skip


class Entry(NamedTuple):
    """One entry: the keys of type 1, or what a unified kernel image (type 2) says of itself."""

    name: str  #: of its file, with counters
    id: str  #: without them, and without what the name ends in
    left: int = -1  #: boots that are left to try; -1 if boots are not counted
    done: int = 0  #: boots that were tried
    title: str = ""
    version: str = ""
    sort_key: str = ""
    machine_id: str = ""
    architecture: str = ""
    kernel: str = ""  #: path of it, from the root of the partition
    how: str = "linux"  #: the key that names the kernel
    initrds: tuple[str, ...] = ()  #: read one behind the other
    options: str = ""

    @property
    def bad(self) -> bool:
        """Whether no boot is left to try."""
        return self.left == 0

    @property
    def file(self) -> str:
        """The name of its file without counters, by which boot loaders sort and choose."""
        return self.id + (".efi" if self.name.lower().endswith(".efi") else ".conf")

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of the initrds; where no line names one, the kernel's own EFI stub takes those of its command line."""
        words = (word.partition("=") for word in self.options.split())
        return self.initrds or tuple(value for key, _, value in words if key == "initrd" and value)


class Loader(NamedTuple):
    """What a boot loader is told of which entry to take; patterns as in fnmatch(3), "" for none."""

    oneshot: str = ""
    preferred: tuple[str, ...] = ()  #: first those from firmware; only entries that are not bad
    default: tuple[str, ...] = ()
    saved: str = ""  #: what `@saved` stands for
    grub: bool = False  #: whether GRUB reads them


def lines(data: bytes, limit: int = LIMIT) -> list[str]:
    """Return the lines of a text of which paths are made: what no path may hold is not in them."""
    return data[:limit].decode("utf-8", "replace").replace("\0", "\ufffd").splitlines()


def named(name: str) -> tuple[str, int, int]:
    """Return the id in the name of an entry's file, the boots left to try (-1: not counted), and those tried."""
    stem = re.sub(r"\.(conf|efi)$", "", name, flags=re.IGNORECASE)
    found = _TRIES.match(stem)
    if not found:
        return stem, -1, 0
    return found["stem"], int(found["left"]), int(found["done"] or 0)


def parse(data: bytes, name: str) -> Entry:
    """Return the type 1 entry in a file of this name; what is no key of the specification counts for nothing.

    As systemd-boot reads it, the last line of a key counts, and of `initrd` and `options` all. GRUB takes several paths of
    one `initrd` line, which is why the words of such a line are taken apart.
    """
    words: dict[str, str] = {}
    initrds: list[str] = []
    options: list[str] = []
    for line in lines(data):
        key, _, value = line.strip(" \t\r").replace("\t", " ").partition(" ")
        value = value.strip()
        if not key or key.startswith("#"):
            continue
        if key == "initrd":
            initrds += value.split()
        elif key == "options":
            options.append(value)
        else:
            words[key] = value
    how = next((key for key in _KERNELS if words.get(key)), "linux")
    identity, left, done = named(name)
    return Entry(
        name, identity, left, done, words.get("title", ""), words.get("version", ""), words.get("sort-key", ""),
        words.get("machine-id", ""), words.get("architecture", ""), words.get(how, ""), how, tuple(initrds),
        " ".join(options),
    )  # fmt: skip


def unified(name: str, os_release: bytes) -> Entry:
    """Return the type 2 entry of a unified kernel image of this name, which holds this os-release(5)."""
    words: dict[str, str] = {}
    for line in lines(os_release):
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            words[key] = value.strip("\"'")
    version = next((words[key] for key in ("IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID") if words.get(key)), "")
    identity, left, done = named(name)
    return Entry(
        name, identity, left, done, words.get("PRETTY_NAME", ""), version, words.get("IMAGE_ID") or words.get("ID", ""),
        kernel=f"/EFI/Linux/{name}", how="uki",
    )  # fmt: skip


def settings(data: bytes) -> dict[str, str]:
    """Return the settings of loader.conf, by name; the last line of a name counts."""
    found = {}
    for line in lines(data):
        key, _, value = line.strip().replace("\t", " ").partition(" ")
        if key and not key.startswith("#"):
            found[key] = value.strip()
    return found


def variable(data: bytes) -> str:
    """Return the text in a file of efivarfs: four bytes of attributes, then UTF-16 up to a NUL."""
    return data[4:LIMIT].decode("utf-16-le", "replace").partition("\0")[0]


def environment(data: bytes) -> dict[str, str]:
    """Return the variables of GRUB's environment block, by name."""
    return {
        key: value for key, equals, value in (line.partition("=") for line in lines(data)) if equals and key[:1] != "#"
    }


_SKIPPED, _DIGITS, _LETTERS = (
    re.compile(pattern, re.ASCII) for pattern in ("[^-0-9A-Za-z.~^]*", "[0-9]*", "[A-Za-z]*")
)


def compare(one: str, other: str) -> int:
    """Compare two versions as systemd-boot does: negative if the first is older, 0 if they are the same.

    It differs from the text of UAPI.10: `~` is looked for before an end, so that 1~rc is older than 1, and `^` is older than
    anything but an end.
    """
    one, other = one[:_LONGEST], other[:_LONGEST]
    while True:
        one, other = (_SKIPPED.sub("", text, count=1) for text in (one, other))
        for mark in ("~", "", "-", "^", "."):
            if not mark:
                if not one or not other:
                    return bool(one) - bool(other)
            elif one.startswith(mark) or other.startswith(mark):
                if one[:1] != other[:1]:
                    return -1 if one.startswith(mark) else 1
                one, other = one[1:], other[1:]
        pattern = _DIGITS if one[:1].isdigit() or other[:1].isdigit() else _LETTERS
        a, b = (str(pattern.match(text)[0]) for text in (one, other))  # type: ignore[index]  # what may be empty matches
        one, other = one[len(a) :], other[len(b) :]
        if pattern is _DIGITS:
            # A number is newer than a word; of two the longer one is, without leading zeros.
            if bool(a) != bool(b):
                return bool(a) - bool(b)
            a, b = a.lstrip("0"), b.lstrip("0")
            if len(a) != len(b):
                return 1 if len(a) > len(b) else -1
        if a != b:
            return 1 if a > b else -1


def _order(one: Entry, other: Entry) -> int:
    """Compare two entries as systemd-boot does (UAPI.1, Sorting)."""
    if one.bad != other.bad:
        return 1 if one.bad else -1
    if bool(one.sort_key) != bool(other.sort_key):
        return -1 if one.sort_key else 1
    if one.sort_key:
        for a, b in ((one.sort_key, other.sort_key), (one.machine_id, other.machine_id)):
            if a != b:
                return 1 if a > b else -1
        newest = compare(other.version, one.version)
        if newest:
            return newest
    by_name = compare(other.file.lower(), one.file.lower())
    if by_name or one.left < 0 or other.left < 0:
        return by_name
    return (other.left - one.left) or (one.done - other.done)


def ordered(entries: Iterable[Entry]) -> list[Entry]:
    """Return entries in the order in which systemd-boot shows them; the first is taken if nothing else is said."""
    return sorted(entries, key=functools.cmp_to_key(_order))


def by_name(entries: Iterable[Entry]) -> list[Entry]:
    """Return entries in the order of GRUB, which looks at the names of the files alone, newest first."""

    def newest(one: Entry, other: Entry) -> int:
        return compare(other.id, one.id)

    return sorted(entries, key=functools.cmp_to_key(newest))


def taken(entries: list[Entry], loader: Loader) -> Entry | None:
    """Return the entry, of those in order, that boots next if nobody chooses another; None if there is none."""
    for pattern, good in (
        (loader.oneshot, False), *((each, True) for each in loader.preferred), *((each, False) for each in loader.default),
    ):  # fmt: skip
        wanted = loader.saved if pattern == "@saved" else pattern
        for entry in entries:
            if wanted and not (good and entry.bad) and _is(entry, wanted, grub=loader.grub):
                return entry
    return entries[0] if entries else None


def _is(entry: Entry, pattern: str, *, grub: bool) -> bool:
    """Return whether a pattern is of this entry.

    GRUB writes its id or its title; systemd-boot knows it by the name of its file alone, of which an id without `.conf` is
    none (systemd issues 15068 and 15144), and a profile of a unified image by that name with `@` and the profile.
    """
    names = (entry.name, entry.file)
    if grub:
        return pattern in (entry.id, entry.title, *names)
    patterns = [pattern]
    if entry.file.endswith(".efi") and "@" in pattern:
        patterns.append(pattern.rpartition("@")[0])
    return any(fnmatch.fnmatchcase(name.lower(), each.lower()) for name in names for each in patterns)
