# SPDX-License-Identifier: MIT
"""The wrapper under dash and busybox, with a program of our own making in place of Python.

A boot that ends is one that writes to sysrq-trigger and then never returns; on a fake root
the write does nothing, so the last line of `end` shows that it was reached.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from safemem.boot.model import Failure
from safemem.initramfs import on_failure

TEMPLATE = (Path(__file__).resolve().parent.parent / "safemem/initramfs/files/boot.sh").read_text()
STOPPED = "safemem: this boot stops here: reset the machine"
RESULT = "SAFEMEM_FINISHED=yes"


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.needs(name.split()[0])) for name in ("dash", "busybox sh")]
)
def shell(request: pytest.FixtureRequest) -> list[str]:
    """Return the command line of a POSIX shell that initramfs images use."""
    words: list[str] = request.param.split()
    return words


class Machine:
    """A fake root with the wrapper in it and `program` as its interpreter."""

    def __init__(self, base: Path, shell: list[str], program: str | None, failure: Failure) -> None:
        self.root, self.shell = base, shell
        for folder in ("proc", "dev", "run/safemem", "usr/lib/safemem/lib"):
            (base / folder).mkdir(parents=True)
        for file in ("proc/sysrq-trigger", "dev/kmsg"):
            (base / file).touch()
        if program is not None:
            loader = base / "usr/lib/safemem/lib/ld.so"
            loader.write_text(f"#!/bin/sh\nSTATE={base}/run/safemem\n{program}\n")
            loader.chmod(0o755)
        self.boot = base / "usr/lib/safemem/boot"
        self.boot.write_bytes(on_failure.wrapper(failure, str(base)))

    def run(self, *words: str, send: int = 0) -> tuple[int | None, list[str]]:
        """Return the exit status, None for a boot that was stopped, and what was said."""
        log = self.root / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*self.shell, str(self.boot), *words], stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )  # fmt: skip
        try:
            limit = time.monotonic() + 8
            while time.monotonic() < limit and process.poll() is None and STOPPED not in log.read_text():
                time.sleep(0.02)
                if send and "started" in log.read_text():
                    process.send_signal(send)
                    send = 0
            said = log.read_text().splitlines()
            if process.poll() is None:
                assert said[-1:] == [STOPPED], said
                return None, said
            return process.returncode, said
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def stopped(machine: Machine, reason: str, said: list[str], action: str = "panic") -> None:
    """Check that the boot ended in `action` for `reason`, and that nothing followed it."""
    keys = {"panic": "cb", "reboot": "bc", "halt": ""}[action]
    tries = [f"safemem: writing `{key}` to /proc/sysrq-trigger did not end this boot" for key in keys]
    assert said[-2 - len(tries) :] == [f"safemem: {action}: {reason}", *tries, STOPPED]
    # For programs, which find it in pstore.
    assert re.fullmatch(rf"safemem: end action={action} code=[a-z-]+", said[-3 - len(tries)])
    assert (machine.root / "proc/sysrq-trigger").read_text() == keys[-1:]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (None, "the interpreter cannot be started"),
        ("exit 1", "the program ended with status 1"),
        ("exit 2", "the program ended with status 2"),
        ("exit 127", "the interpreter cannot be started"),
        ("kill -9 $$", "the program ended with status 137"),
        ("kill -11 $$", "the program ended with status 139"),
        ("exit 0", "the program ended without a decision"),
        ("echo SAFEMEM_FINISHED=no >$STATE/decision.env", "the program ended without a decision"),
        ("echo '{\"result\":{\"complete\":true}}' >$STATE/decision.json", "the program ended without a decision"),
        ("echo 'SAFEMEM_WHY=SAFEMEM_FINISHED=yes' >$STATE/decision.env", "the program ended without a decision"),
        ("mkdir $STATE/decision.env", "the program ended without a decision"),
    ],
)  # fmt: skip
def test_failures_end_in_on_failure(tmp_path: Path, shell: list[str], program: str | None, reason: str) -> None:
    """However the program fails, the policy's `on_failure` is carried out and the wrapper does not return."""
    machine = Machine(tmp_path, shell, program, Failure("panic", "it's lost"))
    status, said = machine.run()

    assert status is None
    stopped(machine, f"it's lost ({reason})", said)


@pytest.mark.parametrize("action", ["panic", "reboot", "halt"])
def test_every_action(tmp_path: Path, shell: list[str], action: str) -> None:
    """Each action tries its own means first, and then every other."""
    machine = Machine(tmp_path, shell, "exit 1", Failure(action))
    status, said = machine.run()

    assert status is None
    stopped(machine, "safemem could not decide (the program ended with status 1)", said, action)


def test_halt_decided_by_the_policy(tmp_path: Path, shell: list[str]) -> None:
    """Status 5 is a decision, not a failure: `on_failure` is not asked."""
    machine = Machine(tmp_path, shell, "exit 5", Failure("reboot"))
    status, said = machine.run()

    assert status is None
    stopped(machine, "as the policy decided", said, "halt")


def test_success(tmp_path: Path, shell: list[str]) -> None:
    """Only a decision that was carried out lets the boot go on; a stale one from before does not count."""
    machine = Machine(tmp_path, shell, f"echo '{RESULT}' >$STATE/decision.env", Failure("panic"))
    assert machine.run() == (0, [])
    assert (machine.root / "proc/sysrq-trigger").read_text() == ""

    (machine.root / "usr/lib/safemem/lib/ld.so").write_text("#!/bin/sh\nexit 0\n")
    status, said = machine.run()
    assert status is None
    stopped(machine, "safemem could not decide (the program ended without a decision)", said)


def test_hang(tmp_path: Path, shell: list[str]) -> None:
    """A program that hangs is killed at the deadline."""
    machine = Machine(tmp_path, shell, "exec sleep 60", Failure("panic", deadline=1))
    start = time.monotonic()
    status, said = machine.run()

    assert status is None
    assert 1 <= time.monotonic() - start < 10
    assert "safemem: no progress for 1 s" in said
    stopped(machine, "safemem could not decide (the program ended with status 137)", said)


def test_hang_after_progress(tmp_path: Path, shell: list[str]) -> None:
    """Progress once is not progress for ever."""
    machine = Machine(tmp_path, shell, "echo 1 >$STATE/progress; exec sleep 60", Failure("panic", deadline=1))
    status, said = machine.run()

    assert status is None
    assert "safemem: no progress for 1 s" in said
    stopped(machine, "safemem could not decide (the program ended with status 137)", said)


def test_slow_work_is_not_a_hang(tmp_path: Path, shell: list[str]) -> None:
    """Onlining terabytes takes longer than the deadline; a program that counts is left alone."""
    work = f"for n in 1 2 3 4 5 6 7; do echo $n >$STATE/progress; sleep 0.5; done; echo '{RESULT}' >$STATE/decision.env"
    machine = Machine(tmp_path, shell, work, Failure("panic", deadline=1))

    assert machine.run() == (0, [])


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_stop(tmp_path: Path, shell: list[str], signal_number: int) -> None:
    """An init that loses patience does not get an unguarded boot."""
    machine = Machine(tmp_path, shell, "echo started; exec sleep 60", Failure("panic"))
    status, said = machine.run(send=signal_number)

    assert status is None
    stopped(machine, "safemem could not decide (the wrapper was told to stop)", said)


def test_capture_does_nothing_else(tmp_path: Path, shell: list[str]) -> None:
    """`boot capture` prints and returns the program's status, whatever that is."""
    machine = Machine(tmp_path, shell, 'shift 7; echo "$*"; exit 3', Failure("panic"))
    status, said = machine.run("capture")

    assert status == 3
    assert said[-1].endswith(f"--root {tmp_path} capture")


@pytest.mark.needs("shellcheck")
def test_shellcheck() -> None:
    """The wrapper is POSIX sh, as far as shellcheck can tell."""
    subprocess.run(["shellcheck", "--shell=sh", "-"], input=TEMPLATE, text=True, check=True)
