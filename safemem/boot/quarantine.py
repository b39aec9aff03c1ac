# SPDX-License-Identifier: MIT
"""Take memory offline that is in use: which blocks, in which order, and why one stays."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` would bring `enum`

from safemem.boot import files, paths
from safemem.boot.console import Meter
from safemem.boot.files import reason
from safemem.boot.memory import available, room
from safemem.boot.model import Note, Plan
from safemem.boot.plan import BELOW, KEPT, fixed, floor
from safemem.boot.ranges import Range, size_text, spans

TYPE_CHECKING = False
if TYPE_CHECKING:
    from safemem.boot.console import Progress

_ENOENT, _EBUSY, _EINVAL = 2, 16, 22


class Quarantine:
    """Takes blocks offline: the movable zone first, which nothing keeps, then from the top down, away from the kernel.

    Offlining moves what is in use elsewhere, and what boots needs memory: below a floor the rest stays. By default that
    is room for the first programs, for four times the packed initrd (the real root brings no less than the initramfs,
    which is in use already) and for the memory map of as much memory as there is, should it be plugged in later.
    The plan takes something offline.
    """

    def __init__(self, root: str, plan: Plan, progress: Progress, patience: float) -> None:
        self._root, self._progress, self._patience = root, progress, patience
        steps = [step for step in plan.steps if step.op == "offline"]
        self.block = steps[0].size // (steps[0].last - steps[0].first + 1)
        numbers = [number for step in steps for number in range(step.first, step.last + 1)]
        movable = {number for number in numbers if files.word(root, _file(number, "valid_zones")) == "Movable"}
        self._left = sorted(numbers, key=lambda number: (number not in movable, -number))
        now = room(root)
        self.floor = floor(plan, now)
        guarded = tuple(Range(step.start, step.end) for step in plan.steps if step.op == "keep-guard")
        self._fixed = {number: why for step in steps for number, why in fixed(step, now, guarded).items()}
        self._gone: list[int] = []
        self.refused: dict[int, Note] = {}
        self.taken: dict[int, int] = {}

    def attempt(self) -> None:
        """Try every block that is left once."""
        tried, before, self.refused = self._left, self.refused, {}
        meter = Meter(self._root, "taking memory offline", len(tried) * self.block, self._progress)
        for number in tried:
            why = self._try(number)
            if why is not None:
                # That memory ran out since is not why a block refused.
                self.refused[number] = before.get(number, why) if why.code == "floor" else why
            meter.step(self.block, f" tried, {size_text(len(self.taken) * self.block)} are offline")
        self._left = list(self.refused)

    def problems(self) -> list[Note]:
        """Return what is still online, as ranges."""
        gone = dict.fromkeys(self._gone, "disappeared before its turn")
        return [
            *(
                Note("not-offline", f"{span} could not be taken offline: {why}")
                for span, why in spans(self.refused, self.block)
            ),
            *(Note("block-gone", f"{span} {why}") for span, why in spans(gone, self.block)),
        ]

    def _try(self, number: int) -> Note | None:
        """Return why a block is still online, or None if it is not."""
        stuck = self._fixed.get(number)
        if stuck in ("kernel", "guard"):
            return Note(stuck, KEPT[stuck])  # never goes: not even tried
        if available(self._root) - self.block < self.floor:
            return Note("floor", f"{BELOW}: {size_text(self.floor)} of memory have to stay available")
        errno, why = _take_off(self._root, number, self._patience)
        state = files.word(self._root, _file(number, "state"))
        if state == "offline":
            self.taken[number] = _uptime(self._root)
            return None
        if errno == _ENOENT and files.is_folder(self._root, f"{paths.MEMORY}/memory{number}") is False:
            self._gone.append(number)
            return None
        if errno == _EBUSY:
            return Note("unmovable", f"unmovable: {why}")
        if errno == _EINVAL:
            if stuck == "hole":
                return Note("hole", "hole: not all of it is memory, and the kernel takes no part of a block offline")
            if files.word(self._root, _file(number, "valid_zones")) == "none":
                return Note("zone-none", f"zone none: {why}")
        return Note("failed", why or f"reads `{state or 'nothing'}` after it was written")


def _file(number: int, name: str) -> str:
    return f"{paths.MEMORY}/memory{number}/{name}"


def _take_off(root: str, number: int, patience: float) -> tuple[int, str]:
    """Write `offline` to one block; return the kernel's error number, 0 for none, and what it means.

    The kernel may try again for ever (memory-hotplug.rst); only a signal ends that.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(0, f"timeout: the kernel was still trying after {patience:g} s")

    previous = _signal.signal(_signal.SIGALRM, stop)
    _signal.setitimer(_signal.ITIMER_REAL, patience)
    try:
        files.put(root, _file(number, "state"), "offline", wait=True)
    except OSError as error:
        return error.errno or 0, reason(error, "cannot be written")
    finally:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGALRM, previous)
    return 0, ""


def _uptime(root: str) -> int:
    """Return the seconds since this kernel started, rounded up; -1 if that cannot be read."""
    words = files.word(root, paths.UPTIME).split()
    whole, _, part = words[0].partition(".") if words else ("", "", "")
    return int(whole) + (int(part or 0) > 0) if whole.isdecimal() and (part or "0").isdecimal() else -1
