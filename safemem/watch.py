# SPDX-License-Identifier: MIT
"""Apply the standing decision to memory blocks that arrive after it.

The kernel's own events say only that something changed: each batch reads all blocks anew and
lets the same engine decide over them with the facts of this boot, so a lost event, a restart or a
full netlink buffer cost nothing but time.
"""

import contextlib
import errno
import os
import signal
import socket
import time
from typing import Any, NamedTuple

import pyudev
import structlog

from safemem import apply, engine, probe, standing
from safemem.model import Decision, Policy, Range, Snapshot, Step, size_text

#: Seconds without an event after which a burst counts as over, and the longest that one may last.
QUIET, LONGEST = 0.25, 2.0
#: Bytes of netlink buffer: 1,024 blocks in one plug are some 300 KiB of events.
BUFFER = 8 << 20


class Batch(NamedTuple):
    """What one look at the machine led to."""

    onlined: int  #: bytes
    quarantined: int  #: bytes
    loose: "tuple[Range, ...]"  #: held by the decision, not released, and found online
    left: "tuple[Range, ...]"  #: of those, what is online still
    problems: "tuple[str, ...]"


def look(root: str, policy: Policy) -> "tuple[Decision, Batch]":
    """Decide over the blocks as they are now, carry it out, and return both. Raises NoDecision, OSError."""
    found = standing.read(root)
    decision = engine.decide(policy, _with_blocks(found.then, found.now))
    loose = _loose(decision, found, found.now)
    steps = [step for step in decision.steps if step.op == "online"]
    # Boot memory was tried once, at boot; what somebody onlined since is taken off again where the policy says so.
    size = found.now.block_size
    for area in loose:
        if any(step.op == "offline" and step.start < area.end and area.start < step.end for step in decision.steps):
            steps.append(Step("offline", area.start, area.end, area.start // size, area.end // size - 1))
    result = apply.carry_out(decision._replace(steps=tuple(steps)), root)
    left = _loose(decision, found, probe.read_snapshot(root)) if loose else loose
    return decision, Batch(result.onlined, result.quarantined, tuple(loose), tuple(left), result.problems)


def _with_blocks(then: Snapshot, now: Snapshot) -> Snapshot:
    """Return the boot's facts with the blocks of now: what was decided does not change because memory was added."""
    return then._replace(blocks=now.blocks, block_size=now.block_size, guard=now.guard)


def _loose(decision: Decision, found: standing.Standing, now: Snapshot) -> "list[Range]":
    """Return what is online though the decision holds it back: it was offline when it was made, or arrived since."""
    loose: list[Range] = []
    if decision.action == "online-all":
        return loose
    for run in now.blocks:
        for number in range(run.first, run.last + 1) if run.state == "online" else ():
            area = Range(number * now.block_size, (number + 1) * now.block_size)
            was_online = any(b.first <= number <= b.last and b.state == "online" for b in found.then.blocks)
            free = any(r.start <= area.start and area.end <= r.end for r in (*decision.region, *found.released))
            if not was_online and not free:
                if loose and loose[-1].end == area.start:
                    loose[-1] = Range(loose[-1].start, area.end)
                else:
                    loose.append(area)
    return loose


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
    seen: tuple[Range, ...] = ()
    events = 0
    notify("READY=1")
    log.info("watching", policy=policy.name, digest=policy.digest[:12], action=found.decision["action"])
    while True:
        decision, batch = look(root, policy)
        _tell(log, decision, batch, events, seen)
        seen = batch.left
        events = 0
        while not events:
            if stop:
                notify("STOPPING=1")
                log.info("stopped", signal=signal.Signals(stop[0]).name)
                return
            events = _burst(monitor, log)


def _burst(monitor: "pyudev.Monitor", log: Any) -> int:
    """Return how many events came in one burst; a full buffer counts as one."""
    events, started = 0, time.monotonic()
    try:
        while monitor.poll(QUIET if events else 1.0) is not None:
            events += 1
            if time.monotonic() - started > LONGEST:
                break
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        log.warning("events were lost", advice="nothing to do: all blocks are read anew")
        events += 1
    return events


def _tell(log: Any, decision: Decision, batch: Batch, events: int, seen: "tuple[Range, ...]") -> None:
    if batch.onlined or batch.quarantined:
        log.info(
            "applied",
            events=events,
            rule=decision.rule,
            onlined=size_text(batch.onlined),
            taken_offline=size_text(batch.quarantined),
        )
    for text in batch.problems:
        log.warning("problem", text=text)
    for area in batch.loose:
        if area not in seen:  # once for each time that it happens
            log.error(
                "held memory was onlined", range=str(area), size=size_text(area.end - area.start),
                advice="somebody outside safemem did that: `safemem doctor` names who could; what was in it may be lost",
            )  # fmt: skip
