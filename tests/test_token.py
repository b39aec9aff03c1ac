# SPDX-License-Identifier: MIT
"""The token through LUO, both sides, on a LUO of files; tests/vm/test_token.py has the kernel's."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from packages import tree
from safemem.boot import cmdline as boot_cmdline
from safemem.boot import engine, files, handover_args, paths, probe, stake, token
from safemem.boot.ground import CannotSay
from safemem.boot.model import Fact, Snapshot
from safemem.cli import main
from safemem.host import doctor
from safemem.policy import load
from safemem.realroot import token as holder
from tests.fakes import machine, make_root
from tests.kit import handover_args as invoke

ROOT = Path(__file__).resolve().parent.parent
PAGE = bytes(range(256)) * 16
RIGHT = token.sha256_of(PAGE)
WORD = f"safemem.token={boot_cmdline.sealed(RIGHT)}"
CAME, NONE = "the predecessor's token came through LUO", "LUO has no session of safemem's: none came over"


class Luo:
    """What answers to ioctl as include/uapi/linux/liveupdate.h says; of what came over and of what was made here."""

    def __init__(self, root: Path) -> None:
        self.device = root / paths.LUO_DEVICE
        self.device.parent.mkdir(parents=True, exist_ok=True)
        self.device.touch()
        #: By name, what each session holds by number: bytes, or an error.
        self.incoming: dict[str, dict[int, bytes | int]] = {}
        self.made: dict[str, dict[int, bytes]] = {}
        self.refuses: dict[int, int] = {}  #: request -> error
        self.calls: list[tuple[int, str]] = []
        self._open: dict[int, str] = {}

    def ioctl(self, fd: int, request: int, data: bytes) -> bytes:
        """Stand in for fcntl.ioctl."""
        assert len(data) == int.from_bytes(data[:4], "little")
        if request in self.refuses:
            raise OSError(self.refuses[request], os.strerror(self.refuses[request]))
        if request in (token.CREATE, token.RETRIEVE):
            assert os.readlink(f"/proc/self/fd/{fd}") == str(self.device) and len(data) == 72
            name = data[8:].rstrip(b"\0").decode()
            sessions: dict[str, Any] = self.incoming if request == token.RETRIEVE else self.made
            if request == token.CREATE and name in sessions:
                raise OSError(errno.EEXIST, "File exists")
            if request == token.CREATE:
                sessions[name] = {}
            elif name not in sessions:
                raise OSError(errno.ENOENT, "No such file or directory")
            made = os.memfd_create(name)
            self._open[made] = name
            self.calls.append((request, name))
            return data[:4] + made.to_bytes(4, "little") + data[8:]
        name = self._open[fd]
        self.calls.append((request, name))
        if request == token.FINISH:
            self.incoming.pop(name)
            return data
        number, passed = int.from_bytes(data[8:], "little"), int.from_bytes(data[4:8], "little")
        if request == token.PRESERVE_FD:
            self.made[name][number] = os.pread(passed, 1 << 20, 0)
            return data
        content = self.incoming[name].get(number, errno.ENOENT)
        if isinstance(content, int):
            raise OSError(content, os.strerror(content))
        page = os.memfd_create("page")
        os.write(page, content)
        return data[:4] + page.to_bytes(4, "little") + data[8:]


@pytest.fixture
def luo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Luo]:
    """Return LUO for the root that `make_root` makes."""
    there = len(os.listdir("/proc/self/fd"))
    found = Luo(tmp_path / "root")
    monkeypatch.setattr(fcntl, "ioctl", found.ioctl)
    yield found
    assert len(os.listdir("/proc/self/fd")) == there, "descriptors are left open"


def read(root: Path, *, asks: bool = True) -> Snapshot:
    """Return what the boot program sees, which `asks` for the token."""
    return probe.read_snapshot(str(root), token=asks)


#: Kernels that cannot say whether they accepted: without the files, and without anything.
BLIND: dict[str, Any] = {"offered": True, "kho_out": False, "luo": True}


@pytest.mark.parametrize(
    ("options", "sessions", "expected", "why"),
    [
        (BLIND, {"safemem": {1: PAGE}}, "accepted", CAME),
        (BLIND, {}, "rejected", NONE),
        (BLIND, {"guest": {1: PAGE}}, "rejected", NONE),
        (BLIND, {"safemem": {1: bytes(4096)}}, "rejected", "the token in LUO is another than the command line names"),
        (BLIND, {"safemem": {1: PAGE + PAGE}}, "rejected", "that holds no token"),
        (BLIND, {"safemem": {1: PAGE[:-1]}}, "rejected", "that holds no token"),
        (BLIND, {"safemem": {2: PAGE}}, "rejected", "that holds no token"),
        (BLIND, {"safemem": {1: errno.EIO}}, "unknown", "the token says nothing: dev/liveupdate: input/output error"),
        # Files of the kernel's beside it.
        ({"offered": True, "kho_in": True}, {"safemem": {1: PAGE}}, "accepted", f"shows the incoming tree; {CAME}"),
        ({"offered": True, "kho_in": True}, {}, "unknown", f"{NONE}; sys/kernel/debug/kho/in/fdt says accepted"),
        ({"offered": True}, {}, "rejected", f"no incoming tree is shown; {NONE}"),
        ({"offered": True}, {"safemem": {1: PAGE}}, "unknown", f"{CAME}; sys/kernel/debug/kho/out says rejected"),
        ({"offered": True, "kho_in": True, "kho_out": False}, {"safemem": {1: PAGE}}, "unknown", CAME),
        # Nothing was offered.
        ({}, {}, "lost", "safemem.token= is for a kexec with a handover"),
        ({}, {"safemem": {1: PAGE}}, "unknown", f" has no handover, and {CAME}"),
        # Not to be told.
        ({**BLIND, "debugfs": False}, {"safemem": {1: PAGE}}, "accepted", CAME),
        ({**BLIND, "kho_out": False, "luo": False, "config": "CONFIG_KEXEC=y\n# end of Kernel hacking\n"}, {"safemem": {1: PAGE}}, "unknown", "says unsupported"),
        ({**BLIND, "kho_out": False, "luo": False, "config": "CONFIG_KEXEC=y\n# end of Kernel hacking\n"}, {}, "unsupported", NONE),
    ],
)  # fmt: skip
def test_what_it_says(
    tmp_path: Path, luo: Luo, options: dict[str, Any], sessions: dict[str, Any], expected: str, why: str
) -> None:
    """The right page proves an acceptance, none or another is a rejection, and what contradicts other evidence is unknown."""
    luo.incoming = {**sessions, "vm": {7: b"another's"}}
    root = make_root(tmp_path, cmdline=f"kho=on liveupdate=on {WORD}", **options)
    fact = read(root).facts["handover"]

    assert fact.value == expected and why in fact.reason, fact
    # No other session was touched, and none was left half way.
    assert {name for _, name in luo.calls} <= {"safemem"} and "vm" in luo.incoming
    if ("safemem" in sessions) != ("safemem" in luo.incoming):
        assert luo.calls[-1] == (token.FINISH, "safemem")
    # A second look, with nothing left to find, says the same, or nothing where the first one failed.
    luo.incoming = {}
    again = read(root).facts["handover"]
    assert again == fact or (expected == "unknown" and again.value == "unknown" and "an earlier look" in again.reason)


def test_an_offer_that_cannot_be_told(tmp_path: Path, luo: Luo) -> None:
    """Whoever has the token was handed it, whatever hides the zero page; without it nothing follows."""
    root = make_root(tmp_path, cmdline=WORD, kho_out=False, luo=True)
    for file in (root / "sys/kernel/boot_params").iterdir():
        file.unlink()
    (root / "sys/kernel/boot_params").rename(root / "sys/kernel/elsewhere")
    (root / "sys/kernel/boot_params").mkdir()
    luo.incoming = {"safemem": {1: PAGE}}

    assert read(root).facts["handover"] == Fact("accepted", paths.LUO_DEVICE, CAME)
    (root / paths.TOKEN_TAKEN).unlink()
    fact = read(root).facts["handover"]
    assert (fact.value, fact.source) == ("unknown", paths.LUO_DEVICE) and fact.reason.endswith(NONE)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (f"safemem.token={RIGHT}", "it is not 64 hexadecimal digits with a check sum"),
        (WORD[:-1], "does not match: the command line may have been cut off"),
        (WORD[:40], "it is not 64 hexadecimal digits with a check sum"),
        (f"safemem.token={boot_cmdline.sealed(RIGHT[:-1] + 'x')}", "it is not 64 hexadecimal digits with a check sum"),
        ("safemem.token", "it is not 64 hexadecimal digits with a check sum"),
        (f"safemem.token={boot_cmdline.sealed('0' * 64)} {WORD}", "two of them say different things: leave that of an earlier kexec out"),
    ],
)  # fmt: skip
def test_words_that_name_none(tmp_path: Path, luo: Luo, words: str, expected: str) -> None:
    """What is damaged, cut off or there twice is no token: nothing is opened, and it is said."""
    luo.incoming = {"safemem": {1: PAGE}}
    found = read(make_root(tmp_path, cmdline=f"kho=on {words}", **BLIND))

    assert found.facts["handover"].value == "unknown" and luo.calls == []
    assert [note.code for note in found.notes] == ["token-ignored"]
    assert found.notes[0].startswith("safemem.token= on the command line is ignored: ") and expected in found.notes[0]


def test_one_that_is_said_twice(tmp_path: Path, luo: Luo) -> None:
    """The same word on the line again says nothing else."""
    luo.incoming = {"safemem": {1: PAGE}}
    assert read(make_root(tmp_path, cmdline=f"{WORD} {WORD}", **BLIND)).facts["handover"].value == "accepted"


@pytest.mark.parametrize(("asks", "line"), [(False, WORD), (True, "kho=on")], ids=["policy", "command-line"])
def test_nobody_asks(tmp_path: Path, luo: Luo, asks: bool, line: str) -> None:
    """Without the policy's word, or the predecessor's, nothing is opened, and everything is as it was."""
    luo.incoming = {"safemem": {1: PAGE}}
    root = make_root(tmp_path, cmdline=line, **BLIND)

    assert read(root, asks=asks).facts["handover"].value == "unknown"
    assert luo.calls == [] and not (root / paths.TOKEN_TAKEN).exists() and luo.incoming


@pytest.mark.parametrize(
    ("error", "why"), [(errno.EBUSY, "device or resource busy"), (errno.EIO, "input/output error"), (errno.EINVAL, "invalid argument")]
)  # fmt: skip
def test_what_is_refused_says_nothing(tmp_path: Path, luo: Luo, error: int, why: str) -> None:
    """Neither acceptance nor rejection follows from a device that somebody else owns or that fails."""
    luo.incoming, luo.refuses = {"safemem": {1: PAGE}}, {token.RETRIEVE: error}
    root = make_root(tmp_path, cmdline=WORD, **BLIND)
    fact = read(root).facts["handover"]

    assert fact.value == "unknown" and fact.reason.endswith(f"; the token says nothing: dev/liveupdate: {why}")
    luo.refuses = {}  # it was not taken, so the next look may
    assert read(root).facts["handover"].value == "accepted"


def test_no_device(tmp_path: Path, luo: Luo) -> None:
    """A kernel without LUO cannot have a token, whatever it was offered."""
    luo.device.unlink()
    fact = read(make_root(tmp_path, cmdline=WORD, **BLIND)).facts["handover"]
    assert (
        fact.value == "unknown" and "the token says nothing: dev/liveupdate: no such file or directory" in fact.reason
    )


def test_a_session_that_cannot_be_finished(tmp_path: Path, luo: Luo) -> None:
    """Closing it does the same, so what it said stands."""
    luo.incoming, luo.refuses = {"safemem": {1: PAGE}}, {token.FINISH: errno.EINVAL}
    assert read(make_root(tmp_path, cmdline=WORD, **BLIND)).facts["handover"].value == "accepted"


def test_a_guard_beside_it(tmp_path: Path, luo: Luo) -> None:
    """A crash range in force is left by a rejection alone: beside the right token nobody knows."""
    luo.incoming = {"safemem": {1: PAGE}}
    line = f"kho=on crashkernel=576M@16M safemem.guard=0x1000000-0x24ffffff {WORD}"
    fact = read(make_root(tmp_path, cmdline=line, crash="01000000-24ffffff", **BLIND)).facts["handover"]

    assert fact.value == "unknown"
    assert fact.reason == "dev/liveupdate shows the token, and the guard that only a rejection leaves is in force"


def test_only_the_token_tells(tmp_path: Path, luo: Luo) -> None:
    """What else an accepted handover tells stands in files that such a kernel has not."""
    luo.incoming = {"safemem": {1: PAGE}}
    facts = read(make_root(tmp_path, cmdline=WORD, **BLIND)).facts
    assert {facts[name].reason for name in ("nodes", "previous_kernel", "kexec_count")} == {
        "this kernel has no files that show the incoming tree"
    }


def test_witnesses_that_contradict_each_other(tmp_path: Path, luo: Luo) -> None:
    """Beside a token and a tree that say different things, a guard that is not in force is no third witness."""
    line = f"kho=on crashkernel=576M@16M safemem.guard=0x1000000-0x24ffffff {WORD}"
    root = make_root(tmp_path, cmdline=line, offered=True, kho_in=True)
    assert read(root, asks=False).witness and not read(root).witness


@pytest.mark.parametrize("sessions", [{}, {"safemem": {1: bytes(4096)}}], ids=["none", "another"])
def test_a_wrong_token_beside_what_cannot_be_told(tmp_path: Path, luo: Luo, sessions: dict[str, Any]) -> None:
    """It speaks against an acceptance, so that a guard which is not in force is no evidence of one, in later looks neither."""
    line = f"kho=on crashkernel=576M@16M safemem.guard=0x1000000-0x24ffffff {WORD}"
    root = make_root(tmp_path, cmdline=line, offered=True, kho_in=True, kho_out=False, luo=True)
    luo.incoming = sessions
    assert read(root, asks=False).witness
    found = read(root)
    assert (found.facts["handover"].value, found.facts["handover"].source) == ("unknown", paths.LUO_DEVICE)
    assert not found.witness and not read(root, asks=False).witness


@pytest.mark.parametrize(("error", "state"), [(errno.EIO, "failed"), (errno.EBUSY, "busy"), (0, "ready")])
def test_what_the_device_answers(
    tmp_path: Path, luo: Luo, monkeypatch: pytest.MonkeyPatch, error: int, state: str
) -> None:
    """Whoever opened it for the token knows what LUO is worth, whether or not the policy has it opened besides."""
    real = os.open

    def answers(path: Any, *words: Any, **options: Any) -> int:
        if error and str(path) == str(luo.device):
            raise OSError(error, os.strerror(error))
        return real(path, *words, **options)

    luo.incoming = {"safemem": {1: PAGE}}
    root = make_root(tmp_path, cmdline=WORD, offered=True, kho_in=True, luo=True)
    monkeypatch.setattr("posix.open", answers)
    for _ in range(2):
        fact = read(root).facts["luo"]
        assert (fact.value, fact.source) == (state, paths.LUO_DEVICE), fact
    assert read(root, asks=False).facts["luo"].reason == "the device is there; not opened"


# ---- a second look


def test_what_cannot_be_written_down(tmp_path: Path, luo: Luo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is not asked for: the next look would find none, and call an accepted handover rejected."""
    luo.incoming = {"safemem": {1: PAGE}}
    root = make_root(tmp_path, cmdline=WORD, **BLIND)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", full)
        fact = read(root).facts["handover"]
    assert fact.value == "unknown" and luo.calls == [] and luo.incoming
    assert fact.reason.endswith("/run/safemem/token-taken: no space left on device")
    assert read(root).facts["handover"].value == "accepted"


def test_a_look_that_was_killed(tmp_path: Path, luo: Luo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it ends, the next one says nothing rather than that none came over."""
    luo.incoming = {"safemem": {1: PAGE}}
    root = make_root(tmp_path, cmdline=WORD, **BLIND)

    def killed(fd: int, request: int, data: bytes) -> bytes:
        os.close(int.from_bytes(luo.ioctl(fd, request, data)[4:8], "little"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", killed)
        with pytest.raises(KeyboardInterrupt):
            read(root)
    assert luo.calls == [(token.RETRIEVE, "safemem")]
    luo.incoming = {}
    fact = read(root).facts["handover"]
    assert fact.value == "unknown" and fact.reason.endswith("an earlier look in this boot may have taken it")


@pytest.mark.parametrize(
    ("sessions", "preserved", "safe"),
    [({}, "no", 1), ({"safemem": {1: bytes(4096)}}, "unknown", 0), ({"safemem": {2: PAGE}}, "unknown", 0)],
)
def test_what_else_the_line_says(luo: Luo, tmp_path: Path, sessions: dict[str, Any], preserved: str, safe: int) -> None:
    """Where another session came over than the line names, the line is of another kexec, with all that it says of memory."""
    area = boot_cmdline.sealed("0x1000-0x1fff")
    words = (WORD, f"{stake.SAFE}={area}", stake.argument("no", area, WORD.partition("=")[2]))
    root = make_root(tmp_path, **BLIND, cmdline=f"kho=on liveupdate=on {' '.join(words)}")
    luo.incoming = sessions

    for asks in (True, False):  # once looked at, and as the boot program wrote it down
        found = read(root, asks=asks)
        assert (found.facts["handover"].value, found.facts["preserved"].value) == ("rejected", preserved)
        assert len(found.cmdline_safe) == safe
        assert ("safe-ignored" in [note.code for note in found.notes]) == (not safe)


@pytest.mark.parametrize("place", [paths.TOKEN_TAKEN, "run/safemem"])
def test_what_was_found_cannot_be_read(tmp_path: Path, luo: Luo, place: str) -> None:
    """A file that is there, or may be, is none that is missing."""
    luo.incoming = {"safemem": {1: PAGE}}
    root = make_root(tmp_path, cmdline=WORD, **BLIND)
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    if place == paths.TOKEN_TAKEN:
        (root / place).mkdir()
    else:
        (root / place).write_text("")
    fact = read(root).facts["handover"]
    assert fact.value == "unknown" and "/run/safemem/token-taken cannot be read" in fact.reason and luo.calls == []


@pytest.mark.parametrize(("sessions", "said"), [({"safemem": {1: PAGE}}, "accepted"), ({}, "rejected")])
def test_what_the_boot_said_is_repeated(tmp_path: Path, luo: Luo, sessions: dict[str, Any], said: str) -> None:
    """Who does not ask says what the boot said, opens nothing, and believes it of this command line alone."""
    luo.incoming = sessions
    root = make_root(tmp_path, cmdline=WORD, **BLIND)
    booted = read(root)
    first = booted.facts["handover"]
    assert first.value == said
    luo.device.unlink()
    calls = list(luo.calls)
    assert read(root, asks=False).facts["handover"] == first and luo.calls == calls
    # Whoever is asked afterwards goes by that too.
    assert "cannot-tell" not in [item.code for item in doctor.examine(str(root))]
    policy = load.read(ROOT / "policies/live-update-host.toml")
    action = engine.decide(policy, booted).action
    line = ["simulate", str(ROOT / "policies/live-update-host.toml"), "--root", str(root), "--format", "json"]
    document = json.loads(CliRunner().invoke(main, line).stdout)
    assert document["decision"]["facts"]["handover"]["value"] == said
    assert document["decision"]["action"] == action
    (root / paths.CMDLINE).write_text(f"safemem.token={boot_cmdline.sealed('0' * 64)}\n")
    assert read(root, asks=False).facts["handover"].value == "unknown"


# ---- the outgoing side


def session(root: Path, pid: int, link: str) -> None:
    """Have a process hold a session, as its link shows it."""
    folder = root / f"proc/{pid}/fd"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "7").symlink_to(link)
    (folder / "0").symlink_to("/dev/null")


def test_what_is_held_is_what_is_asked_for(tmp_path: Path, luo: Luo) -> None:
    """The page that is preserved is the one whose digest the next command line gets; a session left from before is finished."""
    root = machine(tmp_path)
    luo.incoming = {"safemem": {1: bytes(4096)}, "vm": {1: b"x"}}
    with holder.hold(str(root)):
        digest, pid = (root / paths.TOKEN_HELD).read_text().split()

        assert luo.made["safemem"].keys() == {1} and len(luo.made["safemem"][1]) == 4096
        assert digest == token.sha256_of(luo.made["safemem"][1]) and pid == str(os.getpid())
        assert list(luo.incoming) == ["vm"] and os.stat(root / paths.TOKEN_HELD).st_mode & 0o022 == 0
    session(root, os.getpid(), "anon_inode:[luo_session] safemem")
    assert handover_args.token(str(root)) == f"safemem.token={boot_cmdline.sealed(digest)}"
    # The next kernel.
    incoming = make_root(tmp_path / "next", cmdline=handover_args.token(str(root)), **BLIND)
    luo.device = incoming / paths.LUO_DEVICE
    luo.device.parent.mkdir(exist_ok=True)
    luo.device.touch()
    luo.incoming = dict(luo.made)  # type: ignore[arg-type]
    assert read(incoming).facts["handover"].value == "accepted"


@pytest.mark.parametrize(
    ("refuses", "why"),
    [
        ({token.CREATE: errno.ENOSPC}, "LUO makes no session: no space left on device"),
        ({token.PRESERVE_FD: errno.EOPNOTSUPP}, "the token cannot be preserved: operation not supported"),
    ],
)
def test_what_cannot_be_held(tmp_path: Path, luo: Luo, refuses: dict[int, int], why: str) -> None:
    """It is said, nothing stays open, and no digest is left that nobody holds."""
    root = machine(tmp_path)
    luo.refuses = refuses
    with pytest.raises(holder.CannotHold) as error:
        holder.hold(str(root))
    assert str(error.value) == why and not (root / paths.TOKEN_HELD).exists()


def test_a_second_one(tmp_path: Path, luo: Luo) -> None:
    """Who holds one is named, and its digest stays."""
    root = machine(tmp_path)
    with holder.hold(str(root)):
        before = (root / paths.TOKEN_HELD).read_text()
        with pytest.raises(holder.CannotHold) as error:
            holder.hold(str(root))
        # Left over by a process that has ended, whose number another one may have by now.
        anybody = str(error.value)
        assert anybody.startswith("a session `safemem` is held already, by another program, whose /proc/PID/fd has")
        assert "stop that program, or safemem-token.service" in anybody
        session(root, os.getpid(), "anon_inode:[luo_session] guest")
        with pytest.raises(holder.CannotHold) as error:
            holder.hold(str(root))
        assert str(error.value) == anybody
        (root / f"proc/{os.getpid()}/fd/8").symlink_to("anon_inode:[luo_session] safemem")
        with pytest.raises(holder.CannotHold, match=f"by process {os.getpid()}: stop safemem-token.service, or that"):
            holder.hold(str(root))
        assert (root / paths.TOKEN_HELD).read_text() == before
        (root / paths.TOKEN_HELD).unlink()
        with pytest.raises(holder.CannotHold) as error:
            holder.hold(str(root))
        assert str(error.value) == anybody


def test_the_device_is_busy(tmp_path: Path, luo: Luo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who owns it is waited for, and then the ways to do without are named; a kernel without LUO is called so at once."""
    root, real, left = machine(tmp_path), os.open, [2]

    def busy(path: Any, *words: Any, **options: Any) -> int:
        if str(path) == str(luo.device) and left[0]:
            left[0] -= 1
            raise OSError(errno.EBUSY, "Device or resource busy")
        return real(path, *words, **options)

    monkeypatch.setattr("posix.open", busy)
    with holder.hold(str(root)):
        assert left == [0] and "safemem" in luo.made
    left[0] = 1 << 30
    with pytest.raises(holder.CannotHold) as error:
        holder.hold(str(root), patience=0.3)
    for words in ("another program owns it", "in 0.3 s", "FileDescriptorStorePreserve=yes", "LUOSession="):
        assert words in str(error.value)
    monkeypatch.undo()
    luo.device.unlink()
    with pytest.raises(holder.CannotHold, match="there is no /dev/liveupdate: boot a kernel that has LUO with kho=on"):
        holder.hold(str(root))


def test_the_program(tmp_path: Path) -> None:
    """It finds its module, says what is missing, and refuses what it does not know."""
    program = tmp_path / "token"
    tree.put(program, tree.programs(str(ROOT)[1:], "")["usr/lib/safemem/token"].encode(), 0o755)
    root = machine(tmp_path)
    for words, status, said in (
        (["--root", str(root)], 1, "safemem: there is no /dev/liveupdate: "),
        (["--now"], 2, "usage: token [--root DIR]\n"),
    ):
        # As its first line says; a root for tests may lack that very interpreter.
        result = subprocess.run([sys.executable, "-IS", program, *words], capture_output=True, text=True)
        assert result.returncode == status and result.stderr.startswith(said), result.stderr


_NAMED = """
import sys
sys.path.insert(0, {!r})
from safemem.realroot import token
token._rename()
import os, json
print(open("/proc/self/cmdline").read().split("\\0")[0], os.getpid(), json.__name__)
"""


def test_the_name_that_survives(tmp_path: Path) -> None:
    """systemd's final kill goes by the first letter of a process's name; the process stays the one that was started."""
    script = tmp_path / "program"
    script.write_text(_NAMED.format(str(ROOT)))
    process = subprocess.Popen([sys.executable, "-IS", script], stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate()
    assert out.split() == ["@safemem-token", str(process.pid), "json"]


def held(root: Path, content: str) -> None:
    """Write what the holder leaves."""
    (root / paths.TOKEN_HELD).parent.mkdir(parents=True, exist_ok=True)
    (root / paths.TOKEN_HELD).write_text(content)


def sealed(line: str) -> None:
    """Hold that the next kernel believes what this line says of preserved memory, and only with this very token on it."""
    words = list(boot_cmdline.arguments(line))
    assert stake.told(words).reason == "the predecessor's word"
    others = [(name, text) for name, text in words if name != stake.TOKEN]
    for beside in ([], [(stake.TOKEN, boot_cmdline.sealed("0" * 64))]):
        assert stake.told([*others, *beside]).reason != "the predecessor's word"


@pytest.mark.parametrize(
    ("content", "link", "expected"),
    [
        (f"{RIGHT} 42\n", "anon_inode:[luo_session] safemem", ""),
        (f"{RIGHT} 42\n", "anon_inode:[luo_session]", ""),
        (f"{RIGHT} 42\n", "anon_inode:[luo_session] guest", "process 42, which /run/safemem/token names, holds no LUO session of safemem's"),
        (f"{RIGHT} 43\n", "anon_inode:[luo_session] safemem", "process 43, which /run/safemem/token names, holds no LUO session of safemem's"),
        (f"{RIGHT[:-1]} 42\n", "anon_inode:[luo_session] safemem", "/run/safemem/token is damaged"),
        (f"{RIGHT} ../42\n", "anon_inode:[luo_session] safemem", "/run/safemem/token is damaged"),
        ("", "anon_inode:[luo_session] safemem", "/run/safemem/token is damaged"),
        (None, "anon_inode:[luo_session] safemem", "nobody holds a token"),
    ],
)  # fmt: skip
def test_what_is_named(tmp_path: Path, content: str | None, link: str, expected: str) -> None:
    """Only a token that the process in the file really holds: a digest of none would tell of a rejection that was none."""
    root = machine(tmp_path)
    session(root, 42, link)
    if content is not None:
        held(root, content)
    code, out, err = invoke(root, "--token")
    if expected:
        assert (code, out) == (1, "") and f"no token to name: {expected}" in err
        assert "start safemem-token.service" in err
        with pytest.raises(CannotSay):
            handover_args.token(str(root))
    else:
        assert code == 0 and WORD in out.split()
        # Beside it the same as without it, but for the check sum that covers the token too.
        seal = f"{stake.ARGUMENT}="
        beside, without = (
            [word for word in line.split() if word != WORD and not word.startswith(seal)]
            for line in (out, invoke(root)[1])
        )
        assert beside == without
        sealed(out)


def test_in_a_whole_command(tmp_path: Path) -> None:
    """The token takes the place of this boot's; whoever appends it by hand is told to take that out."""
    root = machine(tmp_path, cmdline=f"kho=on safemem.token={boot_cmdline.sealed('0' * 64)}")
    session(root, 42, "anon_inode:[luo_session] safemem")
    held(root, f"{RIGHT} 42\n")
    code, out, err = invoke(root, "--token", "--systemctl-command")
    assert code == 0 and out.count("safemem.token=") == 1 and WORD in out and "two tokens" not in err
    sealed(out.partition("--kernel-cmdline=")[2].rstrip("'\n"))
    code, out, err = invoke(root, "--token")
    assert (
        code == 0
        and "take `safemem.token=00" in err
        and "out of the next command line: two tokens prove nothing" in err
    )


@pytest.fixture
def blind(tmp_path: Path) -> Path:
    """Return a machine without debugfs files, on which a token is held."""
    root = make_root(tmp_path, kho_out=False, luo=True)
    session(root, 42, "anon_inode:[luo_session] safemem")
    held(root, f"{RIGHT} 42\n")
    return root


def both(root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[tuple[int, str, str]]:
    """Return what the command says, and what the boot archive's program does."""
    code = handover_args.main(["--root", str(root), *words])
    return [invoke(root, *words), (code, *capsys.readouterr())]


def test_without_scratch(blind: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel without debugfs files can name a token and hold what is hot-added, and has no guard."""
    for code, out, err in both(blind, capsys, "--token"):
        words = out.split()
        assert code == 0 and len(words) == 3 and {WORD, "memhp_default_state=offline"} < set(words)
        sealed(out)
        assert err.startswith("safemem: the token alone, no guard and no safe region: no scratch areas can be read")
        assert "safemem: preserved is `" in err and "explain" not in err
    for code, out, err in both(blind, capsys, "--token", "--explain"):
        assert (code, out.split()) == (0, words) and "safemem: there is nothing to explain" in err
    for code, out, err in both(blind, capsys):
        assert (code, out) == (1, "") and "no scratch areas can be read" in err


def test_no_whole_command_without_scratch(blind: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would look like one with guards; what is left of it is named."""
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bytes(4096))
    for words in (["--systemctl-command"], ["--kexec-command", "--kernel", str(kernel)]):
        for code, out, err in both(blind, capsys, "--token", *words):
            assert (code, out) == (1, "") and "no scratch areas can be read" in err
            assert "`--token` without --kexec-command and --systemctl-command prints the token alone" in err


def test_the_token_alone_as_a_document(blind: Path, tmp_path: Path) -> None:
    """It has the keys of one with guards, and none of what is not there."""
    code, out, err = invoke(blind, "--token", "--format", "json")
    document = json.loads(out)
    assert code == 0 == document["exit_code"] and document["arguments"] == invoke(blind, "--token")[1].split()
    assert document["guard"] is None and document["pages"] == [] == document["open"]
    assert [f"safemem: {note}" for note in document["notes"]] == err.splitlines()
    whole = json.loads(invoke(machine(tmp_path / "other"), "--format", "json")[1])
    assert list(document) == list(whole) and list(document["bytes"]) == list(whole["bytes"])


@pytest.mark.parametrize("option", ["--kernel", "--initrd"])
@pytest.mark.parametrize("scratch", [True, False])
def test_any_other_error_is_one(
    blind: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, scratch: bool
) -> None:
    """A name that is mistyped is no reason to leave the guards out."""
    root = blind
    if scratch:
        root = machine(tmp_path / "other")
        session(root, 42, "anon_inode:[luo_session] safemem")
        held(root, f"{RIGHT} 42\n")
    for code, out, err in both(root, capsys, "--token", option, "/nowhere/linux"):
        assert (code, out) == (1, "") and "/nowhere/linux: no such file or directory" in err
