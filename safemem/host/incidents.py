# SPDX-License-Identifier: MIT
"""What `watch` has counted in this boot: kept in /run, so that a restart neither forgets nor counts twice."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from safemem.boot import files
from safemem.boot.ranges import Range, merge_ranges, parse_range, without
from safemem.host.suspects import Suspect

COUNTS = "run/safemem/watch.json"
SCHEMA = 1
#: Incidents of which the particulars are kept.
LAST = 32


class Unreadable(Exception):
    """What was counted cannot be read; the message says which file."""


class Incident(NamedTuple):
    """Held memory that was found online."""

    time: int  #: when it was found, in seconds since 1970
    ranges: tuple[Range, ...]
    taken_offline: int  #: bytes of it that `watch` took offline again
    suspects: tuple[Suspect, ...]


class Counts(NamedTuple):
    """Everything since this boot; sizes in bytes."""

    incidents: int = 0  #: how often held memory was found online
    onlined: int = 0
    reverted: int = 0  #: taken offline again
    lost: int = 0  #: how often the kernel had to drop events
    bursts: int = 0  #: how often memory that arrived was onlined, as the decision says
    applied: int = 0
    loose: tuple[Range, ...] = ()  #: held and online when this was written: counted already
    touched: tuple[Range, ...] = ()  #: ever found online, whatever became of it
    last: tuple[Incident, ...] = ()

    def fresh(self, loose: tuple[Range, ...]) -> tuple[Range, ...]:
        """Return what of `loose` has not been counted yet."""
        return without(loose, self.loose)

    def found(self, fresh: tuple[Range, ...], time: int, suspects: tuple[Suspect, ...]) -> Counts:
        """Return the counts with one more incident."""
        return self._replace(
            incidents=self.incidents + 1,
            onlined=self.onlined + sum(area.size for area in fresh),
            touched=merge_ranges((*self.touched, *fresh)),
            last=(*self.last, Incident(time, fresh, 0, suspects))[-LAST:],
        )


def read(root: str) -> Counts | None:
    """Return what was counted on the machine below `root`, or None if nothing has counted. Raises Unreadable."""
    path = os.path.join(root, COUNTS)
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        if document["schema"] != SCHEMA:
            raise Unreadable(f"{path}: schema {document['schema']} is not {SCHEMA}, which this version reads")
        counts: dict[str, Any] = {name: int(document[name]) for name in Counts._fields[:6]}
        last = tuple(
            Incident(
                int(item["time"]), _ranges(item["ranges"]), int(item["taken_offline"]),
                tuple(Suspect(str(one["who"]), str(one["evidence"])) for one in item["suspects"]),
            )
            for item in document["last"]
        )  # fmt: skip
        return Counts(**counts, loose=_ranges(document["loose"]), touched=_ranges(document["touched"]), last=last)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Unreadable(f"{path}: what watch has counted cannot be read") from None


def write(root: str, counts: Counts) -> None:
    """Put the counts where `read` finds them, whole or not at all. Raises OSError."""
    files.replace(root, COUNTS, json.dumps({"schema": SCHEMA, "kind": "watch", **to_json(counts)}) + "\n")


def to_json(counts: Counts) -> dict[str, object]:
    """Return the counts as plain JSON values."""
    last = [
        {**item._asdict(), "ranges": [str(area) for area in item.ranges], "suspects": [one._asdict() for one in item.suspects]}
        for item in counts.last
    ]  # fmt: skip
    ranges = {name: [str(area) for area in getattr(counts, name)] for name in ("loose", "touched")}
    return {**counts._asdict(), **ranges, "last": last}


def _ranges(texts: list[str]) -> tuple[Range, ...]:
    return tuple(parse_range(text) for text in texts)
