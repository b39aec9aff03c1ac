# SPDX-License-Identifier: MIT
"""Apply the standing decision to memory blocks that arrive after it.

The kernel's own events say only that something changed: each batch reads all blocks anew and
makes the plan of the decision for them, as the boot program did, so a lost event, a restart or a
full netlink buffer cost nothing but time. The record says all that counts of the policy, and what was
derived from the blocks of then: nothing that is plugged, unplugged or edited since loosens a decision.
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

from safemem.boot import apply, files, paths, plan, record
from safemem.boot.files import reason
from safemem.boot.hold import ONLINE_WORD, UDEV_RUN
from safemem.boot.model import Decision, Plan, Refused, Step
from safemem.boot.ranges import Range, common, merge_ranges, size_text, total, without
from safemem.host import incidents, pages, reader, standing, suspects
from safemem.host.incidents import Counts
from safemem.host.standing import Standing
from safemem.realroot import hold as realroot
from safemem.realroot import storage, udevrules

#: Seconds without an event after which a burst counts as over, and the longest that one may last.
QUIET, LONGEST = 0.25, 2.0
#: Seconds that udev may take for what it had begun when a rule was masked.
_AT_WORK = 10
#: Who watches has its lock.
WATCHED = "run/safemem/watch.lock"
#: Bytes of netlink buffer: 1,024 blocks in one plug are some 300 KiB of events.
BUFFER = 8 << 20


class Stopped(Refused):
    """The daemon cannot go on; the message says why. It may be started again."""


class Batch(NamedTuple):
    """What one look at the machine led to."""

    decision: Decision
    counts: Counts
    onlined: int  #: bytes
    reverted: int  #: bytes
    incident: tuple[
        Range, ...
    ]  #: held or guarded by the decision, not released, and found otherwise for the first time
    problems: tuple[str, ...]
    unseen: bool = False  #: not all of the machine could be read: the next look cannot wait for an event
    pages: bool = False  #: the incident is about gigantic pages, or about them too


def look(root: str, seen: Counts, since: float = 0) -> Batch:
    """Carry the decision out for the blocks as they are now, and count.

    `since` is when watching began, in seconds since 1970: what was masked before that was masked before udev ran.

    Raises:
        NoDecision: there is none that can be understood.
        BlockingIOError: a release is under way; the next look sees what it has left.
        OSError: nothing can be locked.
    """
    with storage.locked(os.path.join(root, storage.LOCK), wait=False):
        return _look(root, seen, since)


def _look(root: str, seen: Counts, since: float) -> Batch:
    found = standing.read(root)
    decision, others, pages_gone = found.decision, found.onlined_by_others, found.let_go
    if found.mode != "enforce":
        return Batch(decision, seen, 0, 0, (), ())
    problems: list[str] = [*found.unseen]
    loose = merge_ranges((*others, *pages_gone))
    incident = seen.uncounted(loose)
    of_pages = common(incident, pages_gone)
    after = seen._replace(onlined_by_others=loose)
    if incident:
        # Before anything is done about it: what cuts us off here is not to hide that it happened.
        who = _who(root, seen, since) if without(incident, of_pages) else ()
        who += suspects.find_for_pages(root, found.then.gigantic[0].size) if of_pages else ()
        after = after.one_more(incident, int(time.time()), who)
        problems += _keep(root, after)
    problems += [*_hold(root, found), *pages.keep(root, found)]
    steps = _arrivals(found)
    if decision.rule.if_onlined == "offline":
        size = found.now.block_size
        steps += [Step("offline", *area, area.start // size, area.end // size - 1) for area in others]
    result = apply.carry_out(Plan(tuple(steps), decision.arrivals, decision.rule.floor), root)
    if result.quarantined or pages_gone:
        # Of what was counted: what has come online since is for the next look.
        now = standing.read(root)
        left = without(loose, without(loose, merge_ranges((*now.onlined_by_others, *now.let_go))))
        after = after._replace(onlined_by_others=left)
    if result.quarantined:
        after = after._replace(reverted=after.reverted + result.quarantined)
        for last in after.last[-1:]:
            more = last._replace(taken_offline=last.taken_offline + result.quarantined)
            after = after._replace(last=(*after.last[:-1], more))
    if result.onlined:
        after = after._replace(bursts=after.bursts + 1, applied=after.applied + result.onlined)
    if after != seen:
        problems += _keep(root, after)
    return Batch(
        decision,
        after,
        result.onlined,
        result.quarantined,
        incident,
        (*problems, *result.problems),
        bool(found.unseen),
        bool(of_pages),
    )


def _who(root: str, seen: Counts, since: float) -> tuple[suspects.Suspect, ...]:
    """Return who could have onlined memory; a rule that was masked a moment ago may still have been at work in udev."""
    after, masked = max(since, time.time() - _AT_WORK), set()
    with contextlib.suppress(OSError), os.scandir(os.path.join(root, UDEV_RUN)) as links:
        masked = {link.name for link in links if link.stat(follow_symlinks=False).st_mtime >= after}
    found = suspects.find(root, frozenset(masked))
    last = seen.last[-1] if seen.last else None
    return found or (last.suspects if last and 0 <= time.time() - last.time < _AT_WORK else ())


def _hold(root: str, found: Standing) -> list[str]:
    """Set right what would online the next block in spite of the decision; return what was wrong, one sentence each.

    The record decides. What the kernel, udev and its rules go by follows from it, whoever has changed them; only a
    release of everything lets them go.
    """
    decision = found.decision
    if not decision.holds or Range(0, 1 << 64) in found.released:
        return []
    problems: list[str] = []
    if "SAFEMEM_ARRIVALS=hold" not in (files.text(root, record.ENV) or "").splitlines():
        why = record.why_text(decision.action, decision.rule.name, decision.policy.name)
        rule = decision.rule
        env = record.env_text("hold", why, enter=rule.enter, on_shortfall=rule.on_shortfall, finished=True)
        said = f"{record.ENV} did not say that memory is held, as the decision does"
        try:
            storage.put(root, record.ENV, env)
            problems.append(f"{said}: it was written anew")
        except OSError as error:  # what can be held is held all the same
            problems.append(f"{said}, and cannot be written: {reason(error)}")
    value = files.word(root, paths.AUTO_ONLINE)
    rules = udevrules.find(root)
    if value in ONLINE_WORD.values():
        problems.append(f"{paths.AUTO_ONLINE} read `{value}`: somebody else has set it")
    for item in rules:
        verb = "onlines" if item.sure else "may online"
        problems.append(f"{item.file}:{item.line} {verb} memory, and was not there before: {item.what}")
    return [*problems, *realroot.hold(root, again=True)] if rules or value != "offline" else problems


def _arrivals(found: Standing) -> list[Step]:
    """Return what the decision onlines of the blocks that are offline now.

    Boot memory is the boot program's to take off, once; what is held now was never in use until somebody onlined it.
    """
    decision = found.decision
    todo = plan.steps(
        decision.rule,
        found.now,
        decision.region,
        decision.zone,
        decision.policy.memory,
        decision.policy.keep_crashkernel,
    )
    return [step for step in todo if step.op == "online"]


def _keep(root: str, seen: Counts) -> list[str]:
    """Write the counts; return why they could not be: that is no reason to stop."""
    try:
        incidents.write(root, seen)
    except OSError as error:
        why = reason(error, "cannot be written")
        return [f"{incidents.COUNTS}: what was counted is lost at a restart: {why}"]
    return []


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); without it there is nobody to tell."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    with out, contextlib.suppress(OSError):  # systemd may have gone away: the work goes on
        out.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def run(root: str, found: Standing) -> None:
    """Watch until told to stop.

    Raises:
        Stopped: it runs already, the kernel's events cannot be had, or the decision is gone.
    """
    try:
        # Two of them would count twice, and each forget what the other has counted.
        with storage.locked(os.path.join(root, WATCHED), wait=False):
            _run(root, found)
    except BlockingIOError:
        raise Stopped(f"{WATCHED}: another `safemem watch` runs already") from None
    except OSError as error:
        raise Stopped(f"{error.filename or 'the events of the kernel'}: {error.strerror or error}") from None
    except standing.NoDecision as error:
        raise Stopped(str(error)) from None


def _run(root: str, found: Standing) -> None:
    log: Any = structlog.get_logger()
    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
    monitor.filter_by("memory")
    monitor.set_receive_buffer_size(BUFFER)
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stop.append(got))
    # Listen first, look second: nothing can arrive unseen in between.
    monitor.start()
    began, seen = time.time(), _counted(root, log)
    _keep(root, seen)  # a counter that starts at 0 shows the first time that it moves
    events = 0
    notify("READY=1")
    decision = found.decision
    log.info("watching", policy=decision.policy.name, digest=decision.policy.digest[:12], action=decision.action)
    due = True
    pool: tuple[str, ...] = ()
    while not stop:
        # Of a pool of huge pages no event tells: it is looked at as often as nothing happens, once a second.
        before, pool = pool, pages.signs(root, found)
        if due or pool != before:
            try:
                batch = look(root, seen, began)
                _tell(log, batch, events)
                seen, events, due = batch.counts, 0, batch.unseen
            except BlockingIOError:
                due = True  # a release is under way: the next look sees what it has left
        more, lost = _burst(monitor)
        events += more
        due = due or events > 0
        if lost:
            log.warning("events were lost", advice="nothing to do: all blocks are read anew")
            seen = seen._replace(lost=seen.lost + 1)
            _keep(root, seen)
    notify("STOPPING=1")
    log.info("stopped", signal=signal.Signals(stop[0]).name)


def _counted(root: str, log: Any) -> Counts:
    """Return what was counted before a restart."""
    try:
        return reader.counts(os.path.join(root, incidents.COUNTS))
    except FileNotFoundError:
        pass
    except reader.Invalid as error:
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
    if batch.incident:  # once for each time that it happens
        log.error(
            "guarded memory was in reach of programs" if batch.pages else "held memory was onlined",
            ranges=[str(area) for area in batch.incident],
            size=size_text(total(batch.incident)),
            taken_offline=size_text(batch.reverted),
            if_onlined=batch.decision.rule.if_onlined,
            who=suspects.text(batch.counts.last[-1].suspects),
            advice="what was in it may be lost; if somebody is to be stopped, `safemem doctor` has remedies",
        )
