# SPDX-License-Identifier: MIT
"""The wrapper under dash and busybox, with a program of our own making in place of Python.

A boot that ends is one that writes to sysrq-trigger and then never returns; on a fake root
the write does nothing, so the last line of `end` shows that it was reached.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from safemem.boot.model import Failure
from safemem.initramfs import on_failure

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = (ROOT / "safemem/initramfs/files/boot.sh").read_text()
STOPPED = "safemem: this boot stops here: reset the machine"
RESULT = "SAFEMEM_FINISHED=yes"


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.needs(name.split()[0])) for name in ("dash", "busybox sh", "bash")]
)
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command line of a POSIX shell that initramfs images use; bash is called sh there."""
    words: list[str] = request.param.split()
    if words == ["bash"]:
        place = tmp_path_factory.getbasetemp() / "sh"
        with contextlib.suppress(FileExistsError):
            place.symlink_to(shutil.which("bash") or "bash")
        return [str(place)]
    return [shutil.which(words[0]) or words[0], *words[1:]]


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

    def run(
        self, *words: str, send: int = 0, environment: Mapping[str, str] = os.environ
    ) -> tuple[int | None, list[str]]:
        """Return the exit status, None for a boot that was stopped, and what was said."""
        log = self.root / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*self.shell, str(self.boot), *words], stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, **environment},
            )  # fmt: skip
        try:
            limit = time.monotonic() + 60
            while time.monotonic() < limit and process.poll() is None and STOPPED not in log.read_text():
                time.sleep(0.02)
                if send and "started" in log.read_text():
                    process.send_signal(send)
                    send = 0
            said = log.read_text().splitlines()
            if process.poll() is None:
                assert STOPPED in said, said
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
    assert said[-3 - len(tries) :] == [f"safemem: {action}: {reason}", *tries, "safemem: end code=stopped", STOPPED]
    # For programs, which find it in pstore.
    assert re.fullmatch(rf"safemem: end action={action} code=[a-z-]+", said[-4 - len(tries)])
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
        ("mkfifo $STATE/decision.env", "the program ended without a decision"),
        ("ln -s nowhere $STATE/decision.env", "the program ended without a decision"),
        ("echo SAFEMEM_FINISHED=yes >$STATE/decision.env; mkdir $STATE/passed", "/run/safemem/passed cannot be written"),
        ("echo SAFEMEM_FINISHED=yes >$STATE/decision.env; exit 42", "the program ended with status 42"),
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
    assert machine.run() == (on_failure.GOES_ON, [])
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
    assert 1 <= time.monotonic() - start < 50  # not the sixty seconds that it would have slept
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
    work = f"for n in 1 2 3 4 5 6 7 8 9 10; do echo $n >$STATE/progress; sleep 0.5; done; echo '{RESULT}' >$STATE/decision.env"
    machine = Machine(tmp_path, shell, work, Failure("panic", deadline=3))

    assert machine.run() == (on_failure.GOES_ON, [])


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_stop(tmp_path: Path, shell: list[str], signal_number: int) -> None:
    """An init that loses patience does not get an unguarded boot."""
    machine = Machine(tmp_path, shell, "echo started; exec sleep 60", Failure("panic"))
    status, said = machine.run(send=signal_number)

    assert status is None
    stopped(machine, "safemem could not decide (the wrapper was told to stop)", said)


def test_arguments_do_nothing(tmp_path: Path, shell: list[str]) -> None:
    """Who thinks of `boot capture`, which was once to print the state, gets no panic and no boot that goes on."""
    machine = Machine(tmp_path, shell, "echo started", Failure("panic"))
    status, said = machine.run("capture")

    assert (status, len(said)) == (2, 1)
    assert said[0].endswith("/usr/lib/safemem/capture prints the state of this machine")
    assert (tmp_path / "proc/sysrq-trigger").read_text() == ""


@pytest.mark.parametrize("name", ["decision.env", "decision.json", "passed"])
@pytest.mark.parametrize("plant", ["mkdir", "ln -s /proc/version", "mkfifo", "cp /proc/version"])
def test_what_is_planted(tmp_path: Path, shell: list[str], name: str, plant: str) -> None:
    """A file that is not of this boot is removed, or ends the boot: a folder stays, and everything where rm is not."""
    machine = Machine(
        tmp_path, shell, f"[ -e $STATE/{name} ] || echo '{RESULT}' >$STATE/decision.env", Failure("panic")
    )
    subprocess.run([*plant.split(), str(tmp_path / "run/safemem" / name)], check=True)
    # busybox has an rm of its own.
    path = os.environ["PATH"] if plant == "mkdir" or "busybox" in shell[0] else "/nowhere"
    if plant != "mkdir" and path != "/nowhere":
        assert machine.run()[0] == on_failure.GOES_ON
        return
    status, said = machine.run(environment={"PATH": path})

    assert status is None
    stopped(machine, f"safemem could not decide (an old /run/safemem/{name} cannot be removed)", said)


def test_a_long_message(tmp_path: Path, shell: list[str]) -> None:
    """No line is longer than the console takes, whatever the operator writes; of a character there is all or nothing."""
    machine = Machine(tmp_path, shell, "exit 1", Failure("panic", "\N{SNOWMAN}" * 4000))
    status, said = machine.run()

    assert status is None
    stopped(machine, f"{chr(0x2603) * 232}\N{HORIZONTAL ELLIPSIS} (the program ended with status 1)", said)
    assert max(len(line.encode()) for line in said) < 900


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount: run this as root")
@pytest.mark.parametrize("program", ["exit 1", "exec sleep 60"])
@pytest.mark.parametrize("options", ["rw", "ro"])
def test_without_dev_null(tmp_path: Path, shell: list[str], options: str, program: str) -> None:
    """The keys are written on a machine whose /dev is bare as well."""
    machine = Machine(tmp_path, shell, program, Failure("panic", deadline=1))
    machine.shell = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs -o {options} tmpfs /dev && exec "$@"',
        "sh",
        *shell,
    ]
    status, _ = machine.run()

    assert status is None
    assert (tmp_path / "proc/sysrq-trigger").read_text() == "b"


# ---- success is what only the end can say


def cuts(text: bytes) -> list[int]:
    """Return where a file of this content is cut off in the tests: empty, each line end, of the rest a sample, its last bytes."""
    lines = [at + 1 for at, byte in enumerate(text) if byte == 10]
    sample = range(0, len(text), 37)
    return sorted(
        {0, *lines, *(at - 1 for at in lines), *sample, *range(max(len(text) - 120, 0), len(text))} - {len(text)}
    )


def test_a_wrapper_that_is_cut_off(tmp_path: Path, shell: list[str]) -> None:
    """Wherever it ends, with a program that decides: only all of it ends with the status that lets a boot go on."""
    machine = Machine(tmp_path, shell, f"echo '{RESULT}' >$STATE/decision.env", Failure("panic", deadline=1))
    whole = machine.boot.read_bytes()
    # Its own newline and the end of the case are all that may be missing: they come after the last command.
    needed = whole.rindex(b"exit 42") + len(b"exit 42")
    passed = {}
    for at in cuts(whole):
        machine.boot.write_bytes(whole[:at])
        passed[at] = goes_on(shell, machine, tmp_path)
    assert len(passed) > 300
    assert [at for at, on in passed.items() if on and at < needed] == []
    machine.boot.write_bytes(whole)
    assert goes_on(shell, machine, tmp_path)


def goes_on(shell: list[str], machine: Machine, folder: Path) -> bool:
    """Return whether a boot with this wrapper goes on: what it leaves is looked for as the unit does, too."""
    process = subprocess.Popen(
        [*shell, str(machine.boot)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    status = process.wait(20)
    # Of a wrapper that is cut off the program and its watchdog may be left.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert (status == on_failure.GOES_ON) == (folder / "run/safemem/passed").is_file()
    return status == on_failure.GOES_ON


#: Of the environment, for bash: `SHELLOPTS`, and functions in place of commands.
ENVIRONMENTS = [
    *({"SHELLOPTS": option} for option in (
        "allexport", "errexit", "keyword", "monitor", "noclobber", "noexec", "noglob", "nounset", "onecmd", "physical",
        "pipefail", "posix", "verbose", "xtrace", "braceexpand:hashall:history:histexpand",
    )),
    *({f"BASH_FUNC_{name}%%": "() { return 0; }"} for name in ("[", "read", "kill", "wait", "printf", "sleep", "finished")),
    {"LD_TRACE_LOADED_OBJECTS": "1"}, {"LD_DEBUG": "help"}, {"PATH": "/nowhere"}, {"IFS": "S"}, {"ENV": "/nowhere"},
    {"STATE": "/", "PREFIX": "/", "status": "0", "ROOT": "/"}, {"PS4": "$(exit 42)", "SHELLOPTS": "xtrace"},
]  # fmt: skip


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda value: "-".join(f"{key}={text}" for key, text in value.items()))  # fmt: skip
def test_environments(tmp_path: Path, shell: list[str], environment: dict[str, str]) -> None:
    """Whatever the shell makes of its environment, a program that has not decided lets no boot go on."""
    machine = Machine(tmp_path, shell, "exit 0", Failure("panic", deadline=1))
    status, _ = machine.run(environment=environment)

    assert status != on_failure.GOES_ON
    assert not (tmp_path / "run/safemem/passed").exists()


@pytest.mark.parametrize("limit", ["n 3", "n 0", "f 0", "v 20000", "s 64", "t 1", "d 64", "u 1"])
def test_limits(tmp_path: Path, shell: list[str], limit: str) -> None:
    """Under any limit of resources as well."""
    machine = Machine(tmp_path, shell, "exit 0", Failure("panic", deadline=1))
    inner = f'ulimit -{limit} 2>/dev/null; exec "$@"'
    machine.shell = ["sh", "-c", inner, "sh", *shell]
    with contextlib.suppress(AssertionError):  # a boot that is stopped may have no words left
        status, _ = machine.run()
        assert status != on_failure.GOES_ON
    assert not (tmp_path / "run/safemem/passed").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount: run this as root")
@pytest.mark.parametrize("options", ["size=4k", "nr_inodes=3"])
def test_a_full_run(tmp_path: Path, shell: list[str], options: str) -> None:
    """Without room for the proof the boot ends, also where there was room for the decision."""
    machine = Machine(tmp_path, shell, f"echo '{RESULT}' >$STATE/decision.env", Failure("panic", deadline=1))
    mount = f'mount -t tmpfs -o {options} tmpfs {tmp_path}/run/safemem && exec "$@"'
    machine.shell = ["unshare", "--mount", "sh", "-c", mount, "sh", *shell]
    if "inodes" in options:
        machine.shell[4] = mount.replace(" && ", f" && : >{tmp_path}/run/safemem/progress && ")
        (tmp_path / "usr/lib/safemem/lib/ld.so").write_text(
            f"#!/bin/sh\ncd {tmp_path}/run/safemem\n: >progress\necho {RESULT} >decision.env\n"
        )
    status, said = machine.run()

    assert status is None
    stopped(machine, "safemem could not decide (/run/safemem/passed cannot be written)", said)


@pytest.mark.needs("shellcheck")
def test_shellcheck() -> None:
    """The wrapper is POSIX sh, as far as shellcheck can tell."""
    subprocess.run(["shellcheck", "-x", "-P", ROOT, "--shell=sh", "-"], input=TEMPLATE, text=True, check=True)


@pytest.mark.parametrize(
    ("before", "line", "number", "mounts"),
    [
        ("nothing", "safemem.guard=x", "2", True),
        ("nothing", "kho=on\tsafemem.guard=x", "2", True),
        ("folder", "safemem.guard=x", "2", True),  # where mounting failed before, or somebody else has made one
        ("link", "safemem.guard=x", "2", True),
        ("mounted", "safemem.guard=x", "2", False),
        ("nothing", "kho=on", "2", False),
        ("nothing", "safemem.guard=x", "0", False),
    ],
)
def test_where_gigantic_pages_are_reserved(
    tmp_path: Path, shell: list[str], before: str, line: str, number: str, mounts: bool
) -> None:
    """Only what is mounted counts: in any other folder a file reserves nothing."""
    place, pool = tmp_path / "run/pages", tmp_path / "pool/hugepages-1048576kB"
    pool.mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (pool / "nr_hugepages").write_text(f"{number}\n")
    (tmp_path / "cmdline").write_text(f"{line}\n")
    (tmp_path / "mounts").write_text(
        f"none {place} hugetlbfs rw 0 0\n" if before == "mounted" else "proc /proc proc rw\n"
    )
    if before == "link":
        place.symlink_to(tmp_path)
    elif before != "nothing":
        place.mkdir()
    functions = TEMPLATE[TEMPLATE.index("mounted() {") : TEMPLATE.index("program() {")]
    for theirs, ours in (
        ("/proc/cmdline", "cmdline"),
        ("/proc/mounts", "mounts"),
        ("/sys/kernel/mm/hugepages", "pool"),
    ):
        assert theirs in functions
        functions = functions.replace(theirs, str(tmp_path / ours))
    script = f'set -u\nSTATE={tmp_path}/run\nmount() {{ echo "mount $*"; }}\n{functions}\npages\necho "$-"\n'
    done = subprocess.run([*shell, "-c", script], capture_output=True, text=True, check=True)
    said = f"mount -t hugetlbfs -o pagesize=1048576K,mode=0700 hugetlbfs {place}"
    assert (said in done.stdout.splitlines()) == mounts and not place.is_symlink(), done
    assert "f" not in done.stdout.splitlines()[-1]  # file names are matched further on
