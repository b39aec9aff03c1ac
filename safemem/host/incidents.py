# SPDX-License-Identifier: MIT
"""What `watch` has counted in this boot: kept in /run, so that a restart neither forgets nor counts twice.

`safemem.host.reader` reads it back.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from safemem.boot.ranges import Range, merge_ranges, total, without
from safemem.host.suspects import Suspect
from safemem.realroot import storage

COUNTS = "run/safemem/watch.json"
SCHEMA = 1
#: Incidents of which the particulars are kept.
LAST = 32


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
    onlined_by_others: tuple[Range, ...] = ()  #: held and online when this was written: counted already
    touched: tuple[Range, ...] = ()  #: ever found online, whatever became of it
    last: tuple[Incident, ...] = ()

    def uncounted(self, onlined_by_others: tuple[Range, ...]) -> tuple[Range, ...]:
        """Return the memory among `onlined_by_others` that has not been counted yet."""
        return without(onlined_by_others, self.onlined_by_others)

    def one_more(self, areas: tuple[Range, ...], time: int, suspects: tuple[Suspect, ...]) -> Counts:
        """Return the counts with one more incident."""
        return self._replace(
            incidents=self.incidents + 1,
            onlined=self.onlined + total(areas),
            touched=merge_ranges((*self.touched, *areas)),
            last=(*self.last, Incident(time, areas, 0, suspects))[-LAST:],
        )


#: Fields that are numbers, and what the file calls fields that it calls otherwise.
NUMBERS = Counts._fields[:6]
KEYS = {"onlined_by_others": "loose"}


def write(root: str, counts: Counts) -> None:
    """Put the counts where `reader.counts` finds them, whole or not at all. Raises OSError."""
    storage.put(root, COUNTS, json.dumps({"schema": SCHEMA, "kind": "watch", **to_json(counts)}) + "\n")


def to_json(counts: Counts) -> dict[str, object]:
    """Return the counts as plain JSON values."""
    ranges = {name: [str(area) for area in getattr(counts, name)] for name in ("onlined_by_others", "touched")}
    last = [
        {
            **item._asdict(),
            "ranges": [str(area) for area in item.ranges],
            "suspects": [one._asdict() for one in item.suspects],
        }
        for item in counts.last
    ]
    return {KEYS.get(name, name): value for name, value in {**counts._asdict(), **ranges, "last": last}.items()}
