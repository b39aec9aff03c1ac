# SPDX-License-Identifier: MIT
"""Gigantic pages that guard, looked at while the system runs: what others change of their pools, and kept anew.

The kernel tells nobody when a pool changes: who wants to know has to look. A reservation that is made anew loosens
nothing.
"""

from __future__ import annotations

import os

from safemem.boot import files, gigantic, paths
from safemem.boot.files import reason
from safemem.boot.ranges import Range, size_text
from safemem.host.standing import Standing
from safemem.realroot import hold as realroot

#: What anybody changes who takes a page, adds or removes one, or ends a reservation.
_COUNTS = ("nr_hugepages", "free_hugepages", "resv_hugepages", "surplus_hugepages")
_MOUNTS = "proc/mounts"


def signs(root: str, found: Standing) -> tuple[str, ...]:
    """Return what looks different once somebody has changed the pool; nothing where the guard had no such pages."""
    if not found.then.gigantic:
        return ()
    folder = paths.HUGE.format(found.then.gigantic[0].size >> 10)
    return tuple(files.word(root, f"{folder}/{name}") for name in _COUNTS)


def keep(root: str, found: Standing) -> list[str]:
    """Keep the pages that nobody released from programs again; return what was otherwise, one sentence each.

    What was cut off in the middle is the release's own to end. After `online-all` nothing is kept: what could not be
    given back then may be the operator's own.
    """
    if found.decision.action == "online-all":
        return []
    released = {node for item in found.releases for node in item.nodes}
    mine = tuple(item for item in found.gigantic if item.node not in released)
    if found.mode != "enforce" or Range(0, 1 << 64) in found.released or not mine:
        return []
    problems: list[str] = []
    for item in mine:
        folder = gigantic.folder_of(root, item.node, item.size)
        surplus = files.word(root, f"{folder}/surplus_hugepages")
        if surplus not in ("", "0"):
            # As long as they are more than the pool is to have, they go with their reservation.
            why = files.attempt(root, f"{folder}/nr_hugepages", str(item.number))
            done = f"and cannot be set: {why}" if why else f"it is {item.number} again"
            problems.append(
                f"{folder}/nr_hugepages: somebody has set it lower than the pages that are reserved; {done}"
            )
    if found.kept or not any(item.free for item in mine):
        return problems
    problems += _mounted(root, mine[0].size)
    # Those of nodes that were released before, too: a reservation is a number.
    failed = gigantic.reserve(root, found.now.gigantic)
    size = size_text(sum(item.free * item.size for item in mine))
    said = f"gigantic pages that guard {size} were not reserved, so any program could map them: they are reserved again"
    return [*problems, *failed] if failed else [*problems, said]


def _mounted(root: str, size: int) -> list[str]:
    """Mount what the reservations are made on, if somebody has unmounted it; return that, and why it failed."""
    try:
        mounts = files.read(root, _MOUNTS).decode("utf-8", "replace").splitlines()
    except OSError as error:
        return [f"whether /{paths.PAGES} is mounted cannot be told: {_MOUNTS}: {reason(error)}"]
    where = files.path(root, paths.PAGES)
    if any(words[1:3] == [os.path.realpath(where), "hugetlbfs"] for words in (line.split() for line in mounts)):
        return []
    os.makedirs(where, 0o700, exist_ok=True)
    why = realroot.run(realroot.MOUNT, "-t", "hugetlbfs", "-o", f"pagesize={size >> 10}K,mode=0700", "hugetlbfs", where)
    return [f"{paths.PAGES} was not mounted any more" + (f", and cannot be: {why}" if why else "")]
