# SPDX-License-Identifier: MIT
"""Carry out a plan. It never decides.

Every write is read back and compared. Problems are collected, one sentence a range, and never
stop the blocks after them.
"""

from __future__ import annotations

from safemem.boot import files, paths
from safemem.boot.console import Meter
from safemem.boot.crashkernel import give_back
from safemem.boot.files import reason
from safemem.boot.hold import ONLINE_WORD, let_arrive
from safemem.boot.memory import states
from safemem.boot.model import UNKNOWN, Blocks, Note, Plan, Step
from safemem.boot.ranges import Range, size_text, spans
from safemem.boot.tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from safemem.boot.console import Progress

#: Blocks between two signs of progress: 2 GiB blocks of a slow machine still count often enough.
PROGRESS_EVERY = 8
#: What `valid_zones` of an online block shows for each zone asked for.
_ZONES = {"movable": ("Movable",), "kernel": ("Normal", "DMA32", "DMA"), "auto": ("Normal", "Movable", "DMA32", "DMA")}


class Result(NamedTuple):
    """What came of the plan. Sizes in bytes."""

    onlined: int
    wanted: int
    quarantined: int  #: was online before the decision and no longer is
    problems: tuple[Note, ...]  #: what did not work, one sentence a range
    missed: bool  #: memory that should be in use is not
    exposed: bool  #: memory that should be held is online
    refused: dict[int, Note] = {}  # noqa: RUF012  (block -> why it is still online; nobody changes it)
    taken: dict[int, int] = {}  # noqa: RUF012  (block -> seconds it had been in use when it went offline)
    after: tuple[Blocks, ...] = ()  #: the blocks as they are now, if the plan made it necessary to look

    @property
    def complete(self) -> bool:
        return not self.problems


def carry_out(plan: Plan, root: str = "/", progress: Progress = lambda _: None, patience: float = 5) -> Result:
    """Do what the plan says, then read back and compare. Panic, reboot and halt are `end`'s.

    `progress` gets bytes as the work goes on: every write to the kernel may take its time, but
    no few of them together take long enough to be mistaken for a hang. `patience` is what one
    block may take to go offline, in seconds.
    """
    # Before everything: what programs may map meanwhile is lost.
    loose: list[Note] = []
    if plan.keep or plan.give_back:
        from safemem.boot import gigantic  # most boots have none
    if plan.keep:
        loose += gigantic.reserve(root, plan.keep)
    problems: list[Note] = []
    onlined = 0
    online = [step for step in plan.steps if step.op == "online"]
    wanted = sum(step.size for step in online)
    meter = Meter(root, "onlining memory", wanted, progress)
    # The guard before everything: what it gives back may be needed to online the rest.
    for step in plan.steps:
        if step.op == "release-guard" and step.node < 0:
            problems += give_back(root, step, Meter(root, "giving back the guard", step.size, progress).step)
    if plan.give_back:
        size = sum(max(0, item.number - item.own) * item.size for item in plan.give_back)
        problems += gigantic.give_back(
            root, plan.give_back, Meter(root, "giving back gigantic pages", size, progress).step
        )
    # Safe memory first: what quarantine moves out of the way can go there, and more of the rest can be given up.
    for step in online:
        done, failed = _online(root, step, meter)
        onlined += done
        problems += failed
    taken: dict[int, int] = {}
    refused: dict[int, Note] = {}
    off: list[Note] = []
    block = 0
    if any(step.op == "offline" for step in plan.steps):
        from safemem.boot.quarantine import Quarantine  # most boots take nothing off

        quarantine = Quarantine(root, plan, progress, patience)
        quarantine.attempt()
        quarantine.attempt()  # what refused once more: some of it was only busy
        taken, refused, off, block = quarantine.taken, quarantine.refused, quarantine.problems(), quarantine.block
    missed = bool(problems)
    after, unseen = _look(root) if any(step.op in ("hold", "offline") for step in plan.steps) else ((), [])
    loose += unseen or _still_held(plan, after, taken)
    if plan.arrivals and not problems:
        # What is plugged in later is to come online as well, in the same zone, by the kernel itself.
        problems += let_arrive(root, plan.arrivals)
    return Result(
        onlined,
        wanted,
        len(taken) * block,
        (*off, *problems, *loose),
        missed,
        bool(loose or refused),
        refused,
        taken,
        after,
    )


def _online(root: str, step: Step, meter: Meter) -> tuple[int, list[Note]]:
    """Online the step's blocks; return the bytes that are online afterwards, and the problems as ranges."""
    word = ONLINE_WORD[step.zone].encode()
    block = step.size // (step.last - step.first + 1)
    failed: dict[int, str] = {}
    told = step.first  # the first block that `meter` does not know of
    try:
        opened = files.Folder(root, paths.MEMORY)
    except OSError as error:
        span = f"{Range(step.start, step.end)} ({size_text(step.size)})"
        return 0, [Note("not-onlined", f"{span} could not be onlined: {paths.MEMORY}: {reason(error)}")]
    with opened as folder:
        for number in range(step.first, step.last + 1):
            try:
                folder.put(f"memory{number}/state", word)
            except OSError as error:
                failed[number] = reason(error, "cannot be written")
            if number % PROGRESS_EVERY == 0 or number == step.last:
                meter.step((number + 1 - told) * block)
                told = number + 1
        for number in range(step.first, step.last + 1):
            state = folder.word(f"memory{number}/state")
            if state != "online":
                failed.setdefault(number, f"reads `{state or 'nothing'}` after it was written")
            elif number in failed or number in (step.first, step.last):
                # EBUSY because another agent was faster is no failure; its zone may be. Where our own
                # write succeeded the zone is the one written, so the edges stand for the rest.
                failed.pop(number, None)
                zones = folder.word(f"memory{number}/valid_zones").split()
                if zones and zones[0] not in _ZONES[step.zone]:
                    failed[number] = f"is online in zone {zones[0]} instead of {step.zone}"
    good = (step.last - step.first + 1 - len(failed)) * block
    return good, [
        Note("not-onlined", f"{span} could not be onlined in zone {step.zone}: {why}")
        for span, why in spans(failed, block)
    ]


def _look(root: str) -> tuple[tuple[Blocks, ...], list[Note]]:
    """Return the blocks as they are now, and why that cannot be told."""
    try:
        return states(root), []
    except OSError as error:
        text = f"whether held memory stayed offline cannot be told: {paths.MEMORY}: {reason(error)}"
        return (), [Note("not-looked-at", text)]


def _still_held(plan: Plan, after: tuple[Blocks, ...], taken: dict[int, int]) -> list[Note]:
    """Return what the plan holds, or has `taken` offline, and is not offline, as ranges."""
    states_of: dict[str, dict[int, str]] = {"online": {}, UNKNOWN: {}}
    stuck = []
    block = next((step.size // (step.last - step.first + 1) for step in plan.steps if step.first >= 0), 0)
    held = [step for step in plan.steps if step.op == "hold"]
    place = 0
    for run in after:
        if run.state == "going-offline":
            stuck.append(Note("going-offline", f"blocks {run.first}-{run.last} are going offline and not there yet"))
        while place < len(held) and held[place].last < run.first:
            place += 1
        for step in held[place:] if run.state in states_of else ():
            if step.first > run.last:
                break
            both = range(max(run.first, step.first), min(run.last, step.last) + 1)
            states_of[run.state].update(dict.fromkeys(both, ""))
        for number in taken if run.state in states_of else ():
            if run.first <= number <= run.last:
                states_of[run.state][number] = ""
    return [
        *stuck,
        *(
            Note("onlined-by-others", f"{span} should be held, but somebody else has onlined it")
            for span, _ in spans(states_of["online"], block)
        ),
        *(
            Note("not-looked-at", f"{span} should be held, and whether it is offline cannot be read")
            for span, _ in spans(states_of[UNKNOWN], block)
        ),
    ]
