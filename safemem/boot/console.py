# SPDX-License-Identifier: MIT
"""What is said while it happens: lines in the kernel log, signs of progress, and the end of a boot."""

from __future__ import annotations

import time

from safemem.boot import files, paths, record
from safemem.boot.model import UNKNOWN, Decision, Fact
from safemem.boot.printable import printable
from safemem.boot.ranges import Range, size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    #: Gets the bytes that work has been done on since it was called last.
    Progress = Callable[[int], None]

#: Priorities of syslog(2). Below 4 a console shows them also under `quiet`.
EMERGENCY, ALERT, ERROR, WARNING, NOTICE = 0, 1, 3, 4, 5
#: What ends a boot: the keys of sysrq in the order in which they are tried. Halt needs a program, which the wrapper has.
KEYS = {"panic": "cb", "reboot": "bc", "halt": ""}
#: Bytes of text in one line: the kernel refuses records above 1,024 (PRINTKRB_RECORD_MAX), priority and name included.
LONGEST = 960
#: Seconds after which a long run says how far it is, again and again.
SAY_EVERY = 5.0


def say(root: str, priority: int, text: str) -> None:
    """Write text to the kernel log, in as many lines as it takes; if that fails, there is nobody left to tell."""
    for line in lines(text):
        try:
            files.put(root, paths.KMSG, f"<{priority}>safemem: {line}\n", append=True)
        except OSError:
            pass


def lines(text: str) -> list[str]:
    """Return `text` in lines that a terminal cannot take for anything else and the kernel takes whole, cut at blanks."""
    rest, found = printable(text), []
    width = LONGEST if rest.isascii() else LONGEST // 4  # a character has at most four bytes
    while len(rest) > width:
        cut = rest.rfind(" ", width // 2, width)
        found.append(rest[: cut if cut > 0 else width])
        rest = rest[len(found[-1]) :].lstrip(" ")
    return [*found, rest]


def end(root: str, action: str, code: str, reason: str) -> None:
    """Say why, then panic or reboot. Returns only if every means failed, or for `halt`, which the wrapper does.

    The first line is for programs (`safemem.host.previous` finds it in pstore), the second for people. sysrq-trigger
    takes root's word whatever kernel.sysrq says (Documentation/admin-guide/sysrq.rst). The kernel names the panic
    `sysrq triggered crash` and after it the process that asked, by which crash collectors tell panics apart.
    """
    files.attempt(root, paths.COMM, "safemem")
    say(root, EMERGENCY, f"end action={action} code={code}")
    say(root, EMERGENCY, f"{action}: {reason}")
    for key in KEYS[action]:
        files.attempt(root, paths.SYSRQ, key)
        say(root, EMERGENCY, f"writing `{key}` to {paths.SYSRQ} did not end this boot")


def outcome(decision: Decision, *, observing: bool) -> tuple[int, list[str]]:
    """Return what was decided and why in a few lines, and their priority: `quiet` silences what changes nothing only."""
    what = f"{decision.action} + {decision.rule.enter}" if decision.rule.enter else decision.action
    handover = decision.facts.get("handover", Fact(UNKNOWN, ""))
    lines = [
        f"{what}: {decision.message} (rule `{decision.rule.name}`, policy `{decision.policy.name}`)",
        f"handover is {handover.value}: {handover.reason or handover.source}",
    ]
    if observing:
        lines.append("observe: nothing of this is done")
    return NOTICE if what == "online-all" else ERROR, lines


def summary(decision: Decision) -> list[str]:
    """Return the plan and the warnings in a few lines for the console, one line a range."""
    lines = []
    for step in decision.steps:
        if step.op == "keep":
            continue
        zone = f" in zone {step.zone}" if step.zone else ""
        why = f": {step.why}" if step.why else ""
        lines.append(f"{step.op} {Range(step.start, step.end)} ({size_text(step.size)}){zone}{why}")
    return lines + [note for note in decision.warnings if note.code != "observes"]


class Counter:
    """Counts in a file, so that the wrapper's watchdog can tell slow work from a hang."""

    def __init__(self, root: str) -> None:
        """Begin at 0; nothing is written yet."""
        self._root, self._count = root, 0

    def step(self, _size: int) -> None:
        """Count one more, however much it was. Raises OSError."""
        self._count += 1
        files.create(self._root, record.PROGRESS, b"%d\n" % self._count)


class Meter:
    """Counts bytes of work for the watchdog, and says on the console every few seconds how far it is."""

    def __init__(self, root: str, what: str, whole: int, progress: Progress) -> None:
        """Begin at 0 of `whole` bytes; `what` is what is being done."""
        self._root, self._what, self._whole, self._progress = root, what, whole, progress
        self._done, self._next = 0, time.monotonic() + SAY_EVERY

    def step(self, size: int, more: str = "") -> None:
        """Count `size` bytes more; `more` is said after the figures."""
        self._progress(size)
        self._done += size
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + SAY_EVERY
            say(self._root, NOTICE, f"{self._what}: {size_text(self._done)} of {size_text(self._whole)}{more}")
