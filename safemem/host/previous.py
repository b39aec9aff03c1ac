# SPDX-License-Identifier: MIT
"""What the boot before this one decided and how it ended: from the history, and from the platform's crash memory.

A boot that safemem ends never reaches a disk. Its last lines stay in pstore where the platform has
it, and systemd moves them to /var/lib/systemd/pstore early in the next boot.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

from safemem.boot import files
from safemem.boot.model import FINAL
from safemem.boot.record import RECORD
from safemem.host import history, reader
from safemem.host.reader import Record, Release
from safemem.host.standing import RELEASES
from safemem.host.verdict import Verdict, held_then, verdict

PSTORE, ARCHIVE = "sys/fs/pstore", "var/lib/systemd/pstore"
#: Kernel log and console; EFI cuts a log into files of 1 KiB, written within a second of each other.
_FILE = re.compile(r"(?:dmesg|console)-(?!.*\.enc\.z$)|dmesg\.txt$")
_TOGETHER = 10.0
_MOST = 1 << 20
#: What a boot found of the endings of others, in its folder of the history, by digest; and how many of them.
_SEEN, _MOST_SEEN = "endings.json", 4096
#: 2020 began: a clock that says less was never set.
_EPOCH = 1_577_836_800
#: A kernel without CONFIG_PRINTK_TIME gives no time, a console no priority.
_LINE = re.compile(r"^(?:<\d+>)?(?:\[ *\d+\.\d+\](?:\[[^]]*\])? )?safemem: (.*)$", re.MULTILINE)
#: Part 1 is the end of the log (Documentation/ABI/testing/pstore).
_PART = re.compile(r"\A\S+#\d+ Part(\d{1,9})\n")
#: What ends a boot says so in this form (`safemem.boot.console.end`, boot.sh), and in the next line why.
_END = re.compile(rf"end action=({'|'.join(FINAL)}) code=(\S+)")


class Ending(NamedTuple):
    """The last words of a boot that safemem ended."""

    action: str
    code: str  #: `decided`, `shortfall`, or what failed
    reason: str  #: as it was said; "" if that is lost
    lines: tuple[str, ...]  #: everything that safemem said there
    file: str
    time: float  #: seconds since 1970; of the crash, or of the archiving soon after it


class Kept(NamedTuple):
    """What an earlier boot left in the history."""

    folder: str
    record: Record | None  #: None if it cannot be understood
    releases: tuple[Release, ...]
    problem: str  #: why something of it cannot be read, or nothing

    @property
    def verdict(self) -> Verdict:
        """How that boot stood when its record was completed, as `status` would have said then."""
        return verdict(self.record, held=self.record is not None and held_then(self.record))


class Previous(NamedTuple):
    """The boot before this one; `ending` is set if it ended in a decision of safemem and left word of it."""

    ending: Ending | None
    kept: Kept | None  #: the newest recorded boot: the same one, or one before it

    @property
    def verdict(self) -> Verdict:
        """How the newest of the two stood."""
        if self.ending:
            return "ended"
        return self.kept.verdict if self.kept else "unknown"


def read(root: str) -> Previous:
    """Return what can be learned about the boot before this one. Raises OSError if the history cannot be read."""
    folder = history.previous(root)
    if folder is None:
        return Previous(last_words(root), None)
    return Previous(last_words(root, _after(folder), _seen(folder)), kept(folder))


def note_seen(root: str) -> None:
    """Keep which endings were there in this boot: none of them is its own. Raises OSError."""
    digests = sorted({_digest(text) for _, _, text in _logs(root)})[:_MOST_SEEN]
    history.write(root, _SEEN, json.dumps(digests) + "\n")


def _seen(folder: str) -> frozenset[str]:
    """Return the digests of the endings that the boot of that folder found; none if it did not say."""
    try:
        return reader.digests(os.path.join(folder, _SEEN))
    except (FileNotFoundError, reader.Invalid):
        return frozenset()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _after(folder: str) -> float:
    """Return the time before which no ending is younger than that folder: 0 if a clock was wrong.

    An ending is archived at the latest before the record of the boot that follows it is kept.
    """
    started = history.started(folder)
    return started if started <= time.time() else 0


def last_words(root: str, after: float = 0, seen: frozenset[str] = frozenset()) -> Ending | None:
    """Return the newest ending in pstore or in systemd's archive of it, if it is not older than `after` nor `seen` before.

    One from a time when no clock was set may be of any age.
    """
    # A console's file has no time of its own and looks newer than the crash: what tells the time comes first.
    logs = [item for item in _logs(root) if not _EPOCH <= item[0] < after and _digest(item[2]) not in seen]
    logs.sort(key=lambda item: (not os.path.basename(item[1]).startswith("console-"), item), reverse=True)
    for newest, path, _ in logs:
        group = [text for when, _, text in logs if newest - _TOGETHER <= when <= newest]
        group.sort(key=lambda text: -int(found[1]) if (found := _PART.match(text)) else 0)
        said = tuple(dict.fromkeys(line for text in group for line in _LINE.findall(text)))
        for place in reversed(range(len(said))):
            end = _END.fullmatch(said[place])
            if end:
                sentence = "".join(said[place + 1 : place + 2])
                reason = sentence.removeprefix(f"{end[1]}: ") if sentence.startswith(f"{end[1]}: ") else ""
                return Ending(end[1], end[2], reason, said, path, newest)
    return None


def _logs(root: str) -> Iterator[tuple[float, str, str]]:
    """Yield time, path and text of what pstore holds; what cannot be read says nothing."""
    for base in (PSTORE, ARCHIVE):
        for folder, _, names in os.walk(os.path.join(root, base)):
            for name in names:
                path = os.path.join(folder, name)
                if not _FILE.match(name):
                    continue
                try:
                    with open(path, "rb") as file:
                        yield os.fstat(file.fileno()).st_mtime, path, file.read(_MOST).decode("utf-8", "replace")
                except OSError:
                    continue


def kept(folder: str) -> Kept:
    """Return what an earlier boot left in its folder."""
    found, problem = None, ""
    releases: tuple[Release, ...] = ()
    path = os.path.join(folder, os.path.basename(RECORD))
    try:
        found = reader.record(path)
    except reader.Invalid as error:
        problem = str(error)
    except FileNotFoundError as error:
        problem = f"{path}: {files.reason(error)}"
    try:
        releases = reader.releases(os.path.join(folder, os.path.basename(RELEASES)))
    except FileNotFoundError:
        pass
    except reader.Invalid as error:
        problem = problem or str(error)
    return Kept(folder, found, releases, problem)


def unfinished_before(root: str) -> tuple[Release, ...]:
    """Return what the boot before began to release and did not finish; a history that cannot be read says nothing."""
    try:
        folder = history.previous(root)
    except OSError:
        return ()
    return unfinished(kept(folder).releases) if folder else ()


def unfinished(releases: tuple[Release, ...]) -> tuple[Release, ...]:
    """Return the releases that were not carried out whole, neither by themselves nor by a later one."""
    found = []
    for index, item in enumerate(releases):
        later = [area for more in releases[index + 1 :] if more.state == "done" for area in more.ranges]
        done = all(any(r.start <= area.start and area.end <= r.end for r in later) for area in item.ranges)
        if item.state != "done" and not done:
            found.append(item)
    return tuple(found)
