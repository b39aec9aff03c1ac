# SPDX-License-Identifier: MIT
"""Carry out a decision: the only module that writes to the kernel. It never decides.

Every write is read back and compared. Errors are collected, one message a range, and never
stop the blocks after them.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` would bring `enum`
import os
import time

from safemem.boot import probe
from safemem.boot.model import Blocks, Decision, Range, Step, parse_size, size_text
from safemem.boot.probe import AUTO_ONLINE, CRASH_SIZE, LOAD_LIMIT, MEMORY
from safemem.boot.tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Progress = Callable[[], None]

SYSRQ = "proc/sysrq-trigger"
KMSG = "dev/kmsg"
UDEV_RUN = "run/udev/rules.d"
UNITS_RUN = "run/systemd/system"
#: What loads a crash kernel at boot: Fedora, RHEL and SUSE; SUSE's early one; Debian and Ubuntu.
KDUMP = ("kdump.service", "kdump-early.service", "kdump-tools.service")
#: Bytes of guard given back by one write, and by the time of one sign of progress. The kernel frees a range page by page: in one write, a guard
#: of terabytes would look like a hang.
GUARD_PIECE = 256 << 20
#: Blocks between two signs of progress: 2 GiB blocks of a slow machine still count often enough.
PROGRESS_EVERY = 8
#: Seconds after which a long run says how far it is, again and again.
SAY_EVERY = 5.0
#: Bytes that stay available for the first programs of a real root; what grows with the machine comes on top (`_Quarantine`).
_FLOOR = 128 << 20
#: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL (include/uapi/linux/fs.h); non-volatile, for boot and run time.
_GETFLAGS, _SETFLAGS, _IMMUTABLE, _ATTRIBUTES = 0x80086601, 0x40086602, 0x10, 7
_ENOENT, _EBUSY, _EINVAL = 2, 16, 22
ONLINE_WORD = {"movable": "online_movable", "kernel": "online_kernel", "auto": "online"}
#: What `valid_zones` of an online block shows for each zone asked for.
_ZONES = {"movable": ("Movable",), "kernel": ("Normal", "DMA32", "DMA"), "auto": ("Normal", "Movable", "DMA32", "DMA")}


class Result(NamedTuple):
    """What came of the plan. Sizes in bytes."""

    onlined: int
    wanted: int
    quarantined: int  #: was online before the decision and no longer is
    problems: tuple[str, ...]  #: what did not work, one sentence a range
    shortfall: bool  #: memory that should be off is on, or the other way round
    refused: dict[int, str] = {}  # noqa: RUF012  (block -> why it is still online; nobody changes it)
    taken: dict[int, int] = {}  # noqa: RUF012  (block -> seconds it had been in use when it went offline)
    after: tuple[Blocks, ...] = ()  #: the blocks as they are now, if the plan made it necessary to look

    @property
    def complete(self) -> bool:
        return not self.problems


def hold(root: str) -> list[str]:
    """Stop the kernel from onlining what arrives.

    Returns what could not be held, one sentence each; a kernel without the file cannot hot-add memory.
    """
    problems = []
    trouble = _write(root, AUTO_ONLINE, "offline")
    if trouble and os.path.isdir(os.path.join(root, MEMORY)):
        problems.append(f"{AUTO_ONLINE} could not be set to offline: {trouble}")
    return problems


def mask(root: str, names: list[str]) -> list[str]:
    """Hide udev rules files that online memory and units (`.service`), here and in the real root: /run outlives switch-root.

    Returns what could not be hidden, one sentence each.
    """
    problems = []
    for name in names:
        link = _mask(root, name)
        try:
            os.makedirs(os.path.dirname(link), exist_ok=True)
            try:
                os.symlink("/dev/null", link)
            except FileExistsError:
                if os.readlink(link) != "/dev/null":  # a link elsewhere hides nothing; a plain file is OSError
                    raise
        except OSError as error:
            why = (error.strerror or "cannot be made").lower()
            what, may = (
                ("unit", "load a crash kernel into the guard")
                if link.endswith(".service")
                else ("udev rules file", "online held memory")
            )
            problems.append(f"{what} {name} could not be masked, so it may {may}: {why}")
    return problems


def _mask(root: str, name: str) -> str:
    return os.path.join(root, UNITS_RUN if name.endswith(".service") else UDEV_RUN, name)


def unmask(root: str, names: list[str]) -> None:
    """Take back what `mask` did; a file that is not our link stays. `realroot.release` has more to take back."""
    for name in names:
        link = _mask(root, name)
        try:
            if os.readlink(link) == "/dev/null":
                os.unlink(link)
        except OSError:
            pass  # gone already


def unhold(root: str, value: str) -> None:
    """Give `auto_online_blocks` the value back that it had before `hold`."""
    if value in ("online", "online_movable", "online_kernel"):
        _write(root, AUTO_ONLINE, value)


def count_boot(root: str, number: int) -> str | None:
    """Keep `number` in the EFI variable that counts boots, or remove it for 0; return what went wrong, or None."""
    import fcntl  # only where there are EFI variables

    path = os.path.join(root, probe.ATTEMPTS)
    try:
        if os.path.exists(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                # efivarfs makes every variable immutable that it does not know (efivarfs.rst).
                flags = int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, bytes(8))[:4], "little")
                fcntl.ioctl(fd, _SETFLAGS, (flags & ~_IMMUTABLE).to_bytes(8, "little"))
            except OSError:
                pass  # then the write says so
            finally:
                os.close(fd)
        if number:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, _ATTRIBUTES.to_bytes(4, "little") + number.to_bytes(4, "little"))
            finally:
                os.close(fd)
        elif os.path.exists(path):
            os.unlink(path)
    except OSError as error:
        return f"{probe.ATTEMPTS} could not be written, so boots are not counted: {_reason(error)}"
    return None


def forbid_crash_kernel(root: str) -> tuple[list[str], list[str]]:
    """Forbid loading a crash kernel, which would be written into the guard, until the next boot.

    `kernel.kexec_load_limit_panic` (Linux 6.3) can only be lowered, and a kernel refuses even the 0 that it has
    already (kernel/kexec_core.c). An older kernel leaves kdump's units to be masked.

    Returns what could not be done, and the names that are to be masked instead.
    """
    trouble = _write(root, LOAD_LIMIT, "0")
    if not trouble or probe.crash_kernel_forbidden(root):
        return [], []
    if not os.path.lexists(os.path.join(root, LOAD_LIMIT)):
        return [], list(KDUMP)
    return [f"{LOAD_LIMIT} could not be set to 0, so a crash kernel could be loaded into the guard: {trouble}"], list(
        KDUMP
    )


def carry_out(decision: Decision, root: str = "/", progress: Progress = lambda: None, patience: float = 5) -> Result:
    """Do what the plan says, then read back and compare. Panic, reboot and halt are `end`'s.

    `progress` is called as the work goes on: every write to the kernel may take its time, but
    no few of them together take long enough to be mistaken for a hang. `patience` is what one
    block may take to go offline, in seconds.
    """
    problems: list[str] = []
    onlined = 0
    online = [step for step in decision.steps if step.op == "online"]
    wanted = sum(step.size for step in online)
    told = _Told(root, "onlining memory", wanted, progress)
    # The guard before everything: what it gives back may be needed to online the rest.
    for step in decision.steps:
        if step.op == "release-guard":
            problems += _release_guard(root, step, _Told(root, "giving back the guard", step.size, progress))
    # Safe memory first: what quarantine moves out of the way can go there, and more of the rest can be given up.
    for step in online:
        done, trouble = _online(root, step, told)
        onlined += done
        problems += trouble
    quarantine = _Quarantine(root, decision, progress, patience)
    quarantine.attempt()
    quarantine.attempt()  # what refused once more: some of it was only busy
    short = bool(problems) and decision.action == "online-all"
    after = probe.states(root) if any(step.op in ("hold", "offline") for step in decision.steps) else ()
    held_problems = _still_held(decision, after)
    if decision.arrivals and not problems:
        # What is plugged in later is to come online as well, in the same zone, by the kernel itself.
        word = ONLINE_WORD[decision.arrivals]
        trouble_text = _write(root, AUTO_ONLINE, word)
        if trouble_text and os.path.isdir(os.path.join(root, MEMORY)):
            problems.append(f"{AUTO_ONLINE} could not be set to {word}: {trouble_text}")
    return Result(
        onlined,
        wanted,
        len(quarantine.taken) * quarantine.block,
        (*quarantine.problems(), *problems, *held_problems),
        bool(held_problems or quarantine.refused or short),
        quarantine.refused,
        quarantine.taken,
        after,
    )


def say(root: str, priority: int, text: str) -> None:
    """Write one line to the kernel log (priorities as in syslog(2)); if that fails, there is nobody left to tell."""
    _write(root, KMSG, f"<{priority}>safemem: {text}\n")


def end(action: str, reason: str, root: str = "/") -> None:
    """Say why, then panic or reboot. Returns only if every means failed, or for `halt`, which the wrapper does.

    sysrq-trigger takes root's word whatever kernel.sysrq says (Documentation/admin-guide/sysrq.rst).
    """
    say(root, 0, f"{action}: {reason}")
    for key in {"panic": "cb", "reboot": "bc", "halt": ""}[action]:
        _write(root, SYSRQ, key)
        say(root, 0, f"writing `{key}` to {SYSRQ} did not end this boot")


class _Told:
    """Counts work for the watchdog, and says on the console every few seconds how far it is."""

    def __init__(self, root: str, what: str, whole: int, progress: Progress) -> None:
        self._root, self._what, self._whole, self._progress = root, what, whole, progress
        self._done, self._next = 0, time.monotonic() + SAY_EVERY

    def step(self, size: int, more: str = "") -> None:
        """Count `size` bytes more; `more` is said after the figures."""
        self._progress()
        self._done += size
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + SAY_EVERY
            say(self._root, 5, f"{self._what}: {size_text(self._done)} of {size_text(self._whole)}{more}")


def _online(root: str, step: Step, told: _Told) -> tuple[int, list[str]]:
    """Online the step's blocks; return the bytes that are online afterwards, and the problems as ranges."""
    word = ONLINE_WORD[step.zone].encode()
    block = step.size // (step.last - step.first + 1)
    failed: dict[int, str] = {}
    try:
        folder = os.open(os.path.join(root, MEMORY), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        why = (error.strerror or "cannot be read").lower()
        return 0, [f"{Range(step.start, step.end)} ({size_text(step.size)}) could not be onlined: {MEMORY}: {why}"]
    try:
        for number in range(step.first, step.last + 1):
            try:
                fd = os.open(f"memory{number}/state", os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
                try:
                    os.write(fd, word)
                finally:
                    os.close(fd)
            except OSError as error:
                failed[number] = (error.strerror or "cannot be written").lower()
            if number % PROGRESS_EVERY == 0:
                told.step(min(PROGRESS_EVERY, number + 1 - step.first) * block)
        for number in range(step.first, step.last + 1):
            state = _line(folder, f"memory{number}/state")
            if state != "online":
                failed.setdefault(number, f"reads `{state or 'nothing'}` after it was written")
            elif number in failed or number in (step.first, step.last):
                # EBUSY because another agent was faster is no failure; its zone may be. Where our own
                # write succeeded the zone is the one written, so the edges stand for the rest.
                failed.pop(number, None)
                zones = _line(folder, f"memory{number}/valid_zones").split()
                if zones and zones[0] not in _ZONES[step.zone]:
                    failed[number] = f"is online in zone {zones[0]} instead of {step.zone}"
    finally:
        os.close(folder)
    good = (step.last - step.first + 1 - len(failed)) * block
    return good, [f"{span} could not be onlined in zone {step.zone}: {why}" for span, why in _spans(failed, block)]


class _Quarantine:
    """Takes blocks offline: the movable zone first, which nothing keeps, then from the top down, away from the kernel.

    Offlining moves what is in use elsewhere, and what boots needs memory: below a floor the rest stays. By default that
    is room for the first programs, for four times the packed initrd (the real root brings no less than the initramfs,
    which is in use already) and for the memory map of as much memory as there is, should it be plugged in later.
    """

    def __init__(self, root: str, decision: Decision, progress: Progress, patience: float) -> None:
        self._root, self._progress, self._patience = root, progress, patience
        steps = [step for step in decision.steps if step.op == "offline"]
        self.block = steps[0].size // (steps[0].last - steps[0].first + 1) if steps else 0
        numbers = [number for step in steps for number in range(step.first, step.last + 1)]
        movable = {number for number in numbers if _read(root, f"{MEMORY}/memory{number}/valid_zones") == "Movable"}
        self._left = sorted(numbers, key=lambda number: (number not in movable, -number))
        blocks = sum(step.size for step in decision.steps if step.first >= 0)
        # Nothing is read where nothing is to be taken: `watch` comes by here at each look.
        self.floor = parse_size(decision.floor) if decision.floor else 0
        if steps and not decision.floor:
            self.floor = _FLOOR + 4 * probe.initrd_size(root) + blocks // 64
        known = probe.resources(root) if steps else []
        self._kernel = [area for area, name in known if name.startswith("Kernel ")]
        self._ram = [area for area, name in known if name.startswith("System RAM")]
        self._gone: list[int] = []
        self.refused: dict[int, str] = {}
        self.taken: dict[int, int] = {}

    def attempt(self) -> None:
        """Try every block that is left once."""
        tried, before, self.refused = self._left, self.refused, {}
        told = _Told(self._root, "taking memory offline", len(tried) * self.block, self._progress)
        for number in tried:
            why = self._try(number)
            if why is not None:
                # That memory ran out since is not why a block refused.
                self.refused[number] = before.get(number, why) if why.startswith("below the floor") else why
            told.step(self.block, f" tried, {size_text(len(self.taken) * self.block)} are offline")
        self._left = list(self.refused)

    def problems(self) -> list[str]:
        """Return what is still online, as ranges."""
        return [
            *(f"{span} could not be taken offline: {why}" for span, why in _spans(self.refused, self.block)),
            *(
                f"{span} {why}"
                for span, why in _spans(dict.fromkeys(self._gone, "disappeared before its turn"), self.block)
            ),
        ]

    def _try(self, number: int) -> str | None:
        """Return why a block is still online, or None if it is not."""
        span = Range(number * self.block, (number + 1) * self.block)
        if any(_overlap(span, area) for area in self._kernel):
            return "kernel text or data"  # never goes: not even tried
        if _available(self._root) - self.block < self.floor:
            return f"below the floor: {size_text(self.floor)} of memory have to stay available"
        errno, trouble = _take_off(self._root, number, self._patience)
        state = _read(self._root, f"{MEMORY}/memory{number}/state")
        if state == "offline":
            self.taken[number] = probe.uptime(self._root)
            return None
        if errno == _ENOENT and not os.path.isdir(os.path.join(self._root, f"{MEMORY}/memory{number}")):
            self._gone.append(number)
            return None
        if errno == _EBUSY:
            return f"unmovable: {trouble}"
        if errno == _EINVAL:
            if self._ram and sum(_overlap(span, area) for area in self._ram) < self.block:
                return f"hole: {trouble}"
            if _read(self._root, f"{MEMORY}/memory{number}/valid_zones") == "none":
                return f"zone none: {trouble}"
        return trouble or f"reads `{state or 'nothing'}` after it was written"


def _overlap(one: Range, other: Range) -> int:
    return max(0, min(one.end, other.end) - max(one.start, other.start))


def _take_off(root: str, number: int, patience: float) -> tuple[int, str]:
    """Write `offline` to one block; return the kernel's error number, 0 for none, and what it means.

    The kernel may try again for ever (memory-hotplug.rst); only a signal ends that.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(0, f"timeout: the kernel was still trying after {patience:g} s")

    previous = _signal.signal(_signal.SIGALRM, stop)
    _signal.setitimer(_signal.ITIMER_REAL, patience)
    try:
        _put(root, f"{MEMORY}/memory{number}/state", "offline", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno or 0, _reason(error)
    finally:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGALRM, previous)
    return 0, ""


def _available(root: str) -> int:
    """Return MemAvailable in bytes; 0 if it cannot be read, which takes nothing off."""
    for line in _read(root, "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemAvailable" and words and words[0].isdecimal():
            return int(words[0]) << 10
    return 0


def _spans(failed: dict[int, str], block: int) -> list[tuple[str, str]]:
    runs: list[tuple[int, int, str]] = []
    for number, why in sorted(failed.items()):
        if runs and runs[-1][1] == number - 1 and runs[-1][2] == why:
            runs[-1] = (runs[-1][0], number, why)
        else:
            runs.append((number, number, why))
    return [
        (
            f"blocks {first}-{last} ({Range(first * block, (last + 1) * block)}, {size_text((last - first + 1) * block)})",
            why,
        )
        for first, last, why in runs
    ]


def _still_held(decision: Decision, after: tuple[Blocks, ...]) -> list[str]:
    """Return what the plan holds and is online, and what is stuck half way, as ranges."""
    loose: dict[int, str] = {}
    stuck = []
    block = next((step.size // (step.last - step.first + 1) for step in decision.steps if step.first >= 0), 0)
    held = [step for step in decision.steps if step.op == "hold"]
    place = 0
    for run in after:
        if run.state == "going-offline":
            stuck.append(f"blocks {run.first}-{run.last} are going offline and not there yet")
        while place < len(held) and held[place].last < run.first:
            place += 1
        for step in held[place:] if run.state == "online" else ():
            if step.first > run.last:
                break
            loose.update(dict.fromkeys(range(max(run.first, step.first), min(run.last, step.last) + 1), "is online"))
    return stuck + [f"{span} should be held, but somebody else has onlined it" for span, _ in _spans(loose, block)]


def _release_guard(root: str, step: Step, told: _Told) -> list[str]:
    """Give the step's range, which is the guard or its tail, back from its end.

    `kexec_crash_size` holds bytes and can only shrink.
    """
    trouble = None
    text = _read(root, CRASH_SIZE)
    size = int(text) if text.isdecimal() else step.size
    target = max(0, size - step.size)
    while size > target and not trouble:
        piece = min(GUARD_PIECE, size - target)
        size -= piece
        trouble = _write(root, CRASH_SIZE, str(size))
        told.step(piece)
    left = _read(root, CRASH_SIZE)
    if left != str(target):
        why = trouble or f"{CRASH_SIZE} reads `{left}`"
        return [f"the guard {Range(step.start, step.end)} could not be given back: {why}"]
    return []


def _write(root: str, path: str, text: str) -> str | None:
    """Write `text` in one write; return what went wrong, or None."""
    try:
        _put(root, path, text)
    except OSError as error:
        return _reason(error)
    return None


def _put(root: str, path: str, text: str, flags: int = os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK) -> None:
    """Write `text` in one write. Raises OSError.

    As a shell's `>` does, and `>>` for the kernel log: sysfs and /dev/kmsg ignore both, on a fake root files show what was written.
    """
    fd = os.open(os.path.join(root, path), flags | (os.O_APPEND if path == KMSG else os.O_TRUNC))
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _reason(error: OSError) -> str:
    return (error.strerror or "cannot be written").lower()


def _read(root: str, path: str) -> str:
    return _line(None, os.path.join(root, path))


def _line(folder: int | None, path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        try:
            return os.read(fd, 4096).decode("utf-8", "replace").strip()
        finally:
            os.close(fd)
    except OSError:
        return ""
