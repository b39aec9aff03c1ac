# SPDX-License-Identifier: MIT
"""Apply the standing decision to memory blocks that arrive after it.

The kernel's own events say only that something changed: each batch reads all blocks anew and
lets the same engine decide over them with the facts of this boot, so a lost event, a restart or a
full netlink buffer cost nothing but time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import time
from typing import Any, NamedTuple

import pyudev
import structlog

from safemem.boot import apply, engine
from safemem.boot.model import Decision, Policy, Snapshot, Step
from safemem.boot.ranges import Range, size_text, without
from safemem.host import incidents, standing, suspects
from safemem.host.incidents import Counts

#: Seconds without an event after which a burst counts as over, and the longest that one may last.
QUIET, LONGEST = 0.25, 2.0
#: Bytes of netlink buffer: 1,024 blocks in one plug are some 300 KiB of events.
BUFFER = 8 << 20


class Batch(NamedTuple):
    """What one look at the machine led to."""

    decision: Decision
    counts: Counts
    onlined: int  #: bytes
    reverted: int  #: bytes
    fresh: tuple[Range, ...]  #: held by the decision, not released, and found online for the first time
    problems: tuple[str, ...]


def look(root: str, policy: Policy, seen: Counts) -> Batch:
    """Decide over the blocks as they are now, carry it out, and count. Raises NoDecision, OSError."""
    found = standing.read(root)
    decision = engine.decide(policy, _with_blocks(found.then, found.now))
    loose, problems = found.loose, []
    fresh = seen.fresh(loose)
    after = seen._replace(loose=loose)
    if fresh:
        # Before anything is done about it: what cuts us off here is not to hide that it happened.
        after = after.found(fresh, int(time.time()), suspects.find(root))
        problems += _keep(root, after)
    # Boot memory is the boot program's to take off, once; what is held now was never in use until somebody onlined it.
    size = found.now.block_size
    steps = [step for step in decision.steps if step.op == "online"]
    if decision.rule.if_onlined == "offline":
        steps += [Step("offline", *area, area.start // size, area.end // size - 1) for area in loose]
    result = apply.carry_out(decision.plan._replace(steps=tuple(steps)), root)
    if result.quarantined:
        *before, last = after.last
        after = after._replace(
            # Of what was counted: what has come online since is for the next look.
            loose=without(loose, without(loose, standing.read(root).loose)),
            reverted=after.reverted + result.quarantined,
            last=(*before, last._replace(taken_offline=last.taken_offline + result.quarantined)),
        )
    if result.onlined:
        after = after._replace(bursts=after.bursts + 1, applied=after.applied + result.onlined)
    if after != seen:
        problems += _keep(root, after)
    return Batch(decision, after, result.onlined, result.quarantined, fresh, (*problems, *result.problems))


def _keep(root: str, seen: Counts) -> list[str]:
    """Write the counts; return why they could not be: that is no reason to stop."""
    try:
        incidents.write(root, seen)
    except OSError as error:
        return [
            f"{incidents.COUNTS}: what was counted is lost at a restart: {(error.strerror or 'cannot be written').lower()}"
        ]
    return []


def _with_blocks(then: Snapshot, now: Snapshot) -> Snapshot:
    """Return the boot's facts with the blocks of now: what was decided does not change because memory was added."""
    return then._replace(blocks=now.blocks, block_size=now.block_size, guard=now.guard)


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); without it there is nobody to tell."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    with out, contextlib.suppress(OSError):  # systemd may have gone away: the work goes on
        out.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def run(root: str, policy: Policy, found: standing.Standing) -> None:
    """Watch until told to stop. Raises OSError if the kernel's events cannot be had."""
    log: Any = structlog.get_logger()
    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
    monitor.filter_by("memory")
    monitor.set_receive_buffer_size(BUFFER)
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stop.append(got))
    # Listen first, look second: nothing can arrive unseen in between.
    monitor.start()
    seen = _counted(root, log)
    _keep(root, seen)  # a counter that starts at 0 shows the first time that it moves
    events = 0
    notify("READY=1")
    log.info("watching", policy=policy.name, digest=policy.digest[:12], action=found.decision["action"])
    while True:
        batch = look(root, policy, seen)
        _tell(log, batch, events)
        seen, events = batch.counts, 0
        while not events:
            if stop:
                notify("STOPPING=1")
                log.info("stopped", signal=signal.Signals(stop[0]).name)
                return
            events, lost = _burst(monitor)
            if lost:
                log.warning("events were lost", advice="nothing to do: all blocks are read anew")
                seen = seen._replace(lost=seen.lost + 1)
                _keep(root, seen)


def _counted(root: str, log: Any) -> Counts:
    """Return what was counted before a restart."""
    try:
        return incidents.read(root) or Counts()
    except incidents.Unreadable as error:
        log.warning("counting begins anew", reason=str(error))
        return Counts()


def _burst(monitor: pyudev.Monitor) -> tuple[int, bool]:
    """Return how many events came in one burst, and whether the kernel had to drop some; that counts as one."""
    events, started = 0, time.monotonic()
    try:
        while monitor.poll(QUIET if events else 1.0) is not None:
            events += 1
            if time.monotonic() - started > LONGEST:
                break
    except OSError as error:
        # Where poll(2) finds it first, pyudev says no more than that there is an error.
        if errno.ENOBUFS not in (error.errno, _pending(monitor)):
            raise
        return events + 1, True
    return events, False


def _pending(monitor: pyudev.Monitor) -> int:
    """Return the error that waits on the monitor's socket, and clear it."""
    with socket.socket(fileno=os.dup(monitor.fileno())) as same:
        return same.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _tell(log: Any, batch: Batch, events: int) -> None:
    if batch.onlined or batch.reverted:
        log.info(
            "applied",
            events=events,
            rule=batch.decision.rule.name,
            onlined=size_text(batch.onlined),
            taken_offline=size_text(batch.reverted),
        )
    for text in batch.problems:
        log.warning("problem", text=text)
    if batch.fresh:  # once for each time that it happens
        log.error(
            "held memory was onlined", ranges=[str(area) for area in batch.fresh],
            size=size_text(sum(area.size for area in batch.fresh)), taken_offline=size_text(batch.reverted),
            if_onlined=batch.decision.rule.if_onlined, who=suspects.text(batch.counts.last[-1].suspects),
            advice="what was in it may be lost; if somebody is to be stopped, `safemem doctor` has remedies",
        )  # fmt: skip
