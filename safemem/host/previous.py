# SPDX-License-Identifier: MIT
"""What the boot before this one decided and how it ended: from the history, and from the platform's crash memory.

A boot that safemem ends never reaches a disk. Its last lines stay in pstore where the platform has
it, and systemd moves them to /var/lib/systemd/pstore early in the next boot.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from safemem.host import history
from safemem.host.standing import NoDecision, parse_record, parse_releases

PSTORE, ARCHIVE = "sys/fs/pstore", "var/lib/systemd/pstore"
#: Kernel log and console; EFI cuts a log into files of 1 KiB, written within a second of each other.
_FILE = re.compile(r"(?:dmesg|console)-(?!.*\.enc\.z$)|dmesg\.txt$")
_TOGETHER = 10.0
_MOST = 1 << 20
#: A kernel without CONFIG_PRINTK_TIME gives no time, a console no priority.
_LINE = re.compile(r"^(?:<\d+>)?(?:\[ *\d+\.\d+\](?:\[[^]]*\])? )?safemem: (.*)$", re.MULTILINE)
#: Part 1 is the end of the log (Documentation/ABI/testing/pstore).
_PART = re.compile(r"\A\S+#\d+ Part(\d+)\n")
#: What ends a boot says so in this form (`safemem.boot.console.end`, boot.sh), and in the next line why.
_END = re.compile(r"end action=(panic|reboot|halt) code=(\S+)")


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
    decision: dict[str, Any] | None  #: None if the record cannot be understood
    result: dict[str, Any] | None
    releases: list[dict[str, Any]]
    problem: str  #: why something of it cannot be read, or nothing

    @property
    def exit_code(self) -> int:
        """As `status` would have said when the record was completed."""
        if self.decision is None:
            return 6
        if self.decision["action"] in ("panic", "reboot", "halt"):
            return 5
        if self.result is None or not self.result.get("complete"):
            return 64
        return 0 if self.decision["action"] == "online-all" else 4


class Previous(NamedTuple):
    """The boot before this one; `ending` is set if it ended in a decision of safemem and left word of it."""

    ending: Ending | None
    kept: Kept | None  #: the newest recorded boot: the same one, or one before it

    @property
    def exit_code(self) -> int:
        """The design's, for the newest of the two; 6 if there is neither."""
        if self.ending:
            return 5
        return self.kept.exit_code if self.kept else 6


def previous(root: str) -> Previous:
    """Return what can be learned about the boot before this one. Raises OSError if the history cannot be read."""
    folder = history.previous(root)
    # An ending is archived at the latest before the record of the boot that follows it is kept.
    ending = last_words(root, history.started(folder) if folder else 0)
    return Previous(ending, kept(folder) if folder else None)


def last_words(root: str, after: float = 0) -> Ending | None:
    """Return the newest ending in pstore or in systemd's archive of it, if it is not older than `after`."""
    # A console's file has no time of its own and looks newer than the crash: what tells the time comes first.
    files = [item for item in _files(root) if item[0] >= after]
    files.sort(key=lambda item: (not os.path.basename(item[1]).startswith("console-"), item), reverse=True)
    for newest, path, _ in files:
        group = [text for time, _, text in files if newest - _TOGETHER <= time <= newest]
        group.sort(key=lambda text: -int(found[1]) if (found := _PART.match(text)) else 0)
        said = tuple(dict.fromkeys(line for text in group for line in _LINE.findall(text)))
        for place in reversed(range(len(said))):
            end = _END.fullmatch(said[place])
            if end:
                sentence = "".join(said[place + 1 : place + 2])
                reason = sentence.removeprefix(f"{end[1]}: ") if sentence.startswith(f"{end[1]}: ") else ""
                return Ending(end[1], end[2], reason, said, path, newest)
    return None


def _files(root: str) -> Iterator[tuple[float, str, str]]:
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
    decision = result = None
    releases: list[dict[str, Any]] = []
    problem = ""
    try:
        path = os.path.join(folder, "decision.json")
        with open(path, encoding="utf-8") as file:
            document = parse_record(file.read(), path)
        decision, result = document["decision"], document["result"]
    except NoDecision as error:
        problem = str(error)
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{path}: {getattr(error, 'strerror', None) or 'not text'}".lower()
    path = os.path.join(folder, "releases.json")
    try:
        with open(path, encoding="utf-8") as file:
            releases = parse_releases(json.load(file))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        problem = problem or f"{path}: what was released by hand cannot be read"
    return Kept(folder, decision, result, releases, problem)
