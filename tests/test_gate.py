# SPDX-License-Identifier: MIT
"""The gate before a kexec: on fake roots, with programs that stand in for kexec, systemctl and preflight; tests/vm/test_gate.py has real ones."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.realroot import gate, gatesetup, journal, judge, kexecline, loaded, loading
from safemem.realroot.kexecline import Call
from safemem.realroot.loaded import Override
from tests.fakes import make_root

ROOT = Path(__file__).resolve().parent.parent
BOOT = "6f2c61c1-09d4-4b3c-a4a1-1b0d0f0a7c55"
IDS = ("0123456789abcdef", "fedcba9876543210")
WORD = f"safemem.preflight={'+'.join(IDS)}"
SAID = {
    0: "/boot/next: 7.3.4, after 7.3.4\nwarning: no guard [no-guard]\n    seen: nothing\ncompatible\n",
    5: "/boot/next: 7.3.4, after 7.3.4\nerror: nothing arrives [kho-differs]\n    seen: it reads kho-v3\n    help: -\nincompatible\n",
    6: "/boot/next: 7.3.4, after 7.3.4\nunknown: no initrd was looked at [no-initrd]\ncannot tell\n",
}
WHY = {
    0: "/boot/next: 7.3.4, after 7.3.4",
    5: "nothing arrives (it reads kho-v3)",
    6: "no initrd was looked at",
}

# ---- the command line of kexec

K = "/boot/vmlinuz"
CALLS = {
    "-l /boot/vmlinuz": Call("load", kernel=K, rest=("-l",)),
    "-s -l /boot/vmlinuz --initrd=/i --append=a": Call("load", kernel=K, initrd="/i", append="a", loader="kexec_file", rest=("-s", "-l", "--initrd=/i")),
    "-sl /boot/vmlinuz --init /i --command-line a": Call("load", kernel=K, initrd="/i", append="a", loader="kexec_file", rest=("-sl", "--init", "/i")),
    "--ramdisk=/i --ramdisk /j -l -c /boot/vmlinuz": Call("load", kernel=K, initrd="/j", loader="kexec_load", rest=("--ramdisk=/i", "--ramdisk", "/j", "-l", "-c")),
    "/boot/vmlinuz --load --reuse-cmd --append=a --append=b": Call("load", kernel=K, append="b", reuse=True, rest=("--load",)),
    "-l -- /boot/vmlinuz": Call("load", kernel=K, rest=("-l",)),
    "-l --initrd -- /boot/vmlinuz": Call("load", kernel=K, initrd="--", rest=("-l", "--initrd", "--")),
    "-l /boot/vmlinuz /boot/other": Call("load", kernel=K, rest=("-l",)),
    "-a -l -t bzImage64 /boot/vmlinuz": Call("load", kernel=K, loader="auto", rest=("-a", "-l", "-t", "bzImage64")),
    "-ltbzImage64 /boot/vmlinuz": Call("load", kernel=K, rest=("-ltbzImage64",)),
    "/boot/vmlinuz": Call("shutdown", kernel=K),
    "-f /boot/vmlinuz -x": Call("now", kernel=K, less=("--no-ifdown",), rest=("-f", "-x")),
    "-l -e": Call("exec", rest=("-l", "-e")),
    "-e -l /boot/vmlinuz": Call("load", kernel=K, rest=("-e", "-l")),
    "-e": Call("exec", rest=("-e",)),
    "--exec --no-sync": Call("exec", less=("--no-sync",), rest=("--exec", "--no-sync")),
    "-u": Call("unload", rest=("-u",)),
    "-p -u": Call("unload", crash=True, rest=("-p", "-u")),
    "-u -e": Call("unload", rest=("-u", "-e")),
    "-p -u -e": Call("exec", crash=True, rest=("-p", "-u", "-e")),
    "-u -l /boot/vmlinuz": Call("load", kernel=K, unclear=("`--unload` with a kernel to load does one thing or the other, by the system call",), rest=("-u", "-l")),
    "-p -f /boot/vmlinuz": Call("now", crash=True, kernel=K, rest=("-p", "-f")),
    "-p -l /boot/vmlinuz": Call("load", crash=True, kernel=K, rest=("-p", "-l")),
    **{
        f"-p --load-{name} /boot/vmlinuz": Call("load", kernel=K, unclear=(f"`--load-{name}` adds what preflight does not see",), rest=("-p", f"--load-{name}"))
        for name in ("preserve-context", "live-update", "jump-back-helper")
    },
    "-p /boot/vmlinuz": Call("load", crash=True, kernel=K, rest=("-p",)),
    "--load-pan /boot/vmlinuz": Call("load", crash=True, kernel=K, rest=("--load-pan",)),
    "-S": Call("other"),
    "-l --help /boot/vmlinuz": Call("other"),
    "-v": Call("other"),
    "": Call("shutdown"),
    "-l --reuseinitrd /boot/vmlinuz": Call("load", kernel=K, unclear=("`--reuseinitrd` adds what preflight does not see",), rest=("-l", "--reuseinitrd")),
    "-l --new-thing /boot/vmlinuz": Call("load", kernel=K, unclear=("the option `--new-thing` is not known here",), rest=("-l", "--new-thing")),
    "--loa /boot/vmlinuz": Call("shutdown", kernel=K, unclear=("the option `--loa` is not known here",), rest=("--loa",)),
    "-lZ /boot/vmlinuz": Call("load", kernel=K, unclear=("the option `-Z` is not known here",), rest=("-lZ",)),
    "-l --load=1 /boot/vmlinuz": Call("load", kernel=K, unclear=("the option `--load` is not known here",), rest=("-l", "--load=1")),
    "-l /boot/vmlinuz --append": Call("load", kernel=K, unclear=("the option `--append without its argument` is not known here",), rest=("-l", "--append")),
}  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), CALLS.items(), ids=CALLS)
def test_reads_the_line_as_kexec_does(line: str, expected: Call) -> None:
    """Each form that kexec-tools takes is one call, and what it would not take is not known."""
    assert expected == kexecline.parse(line.split())


@pytest.mark.needs("kexec")
def test_knows_every_option_that_kexec_names() -> None:
    """The long options in the help of this machine's kexec are in the table, each with its argument or without."""
    program = shutil.which("kexec", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or ""
    text = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    named = re.findall(r"--([a-z][a-z0-9-]+)(=?)", text)

    assert len(named) > 40
    known = kexecline._options("x86_64")
    assert {name: bool(takes) for name, takes in named} == {name: known[name] for name, _ in named}


class _Option(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("has_arg", ctypes.c_int), ("flag", ctypes.c_void_p), ("val", ctypes.c_int))


def getopt(words: list[str], machine: str) -> list[tuple[str, str]]:
    """Return what the C library makes of the words: options with their arguments, `?`, and other words behind them."""
    libc, options = ctypes.CDLL(None), kexecline._options(machine)
    names = sorted({kexecline._SAME.get(name, name) for name in options})
    short = {letter: name for letter, name in kexecline._SHORT.items() if letter != "?"}
    value = {name: 256 + number for number, name in enumerate(names)}
    back = {number: name for name, number in value.items()} | {ord(letter): name for letter, name in short.items()}
    value |= {name: ord(letter) for letter, name in short.items()}
    rows = [
        (name.encode(), int(takes), None, value[kexecline._SAME.get(name, name)]) for name, takes in options.items()
    ]
    table = (_Option * (len(rows) + 1))(*[_Option(*row) for row in rows], _Option(None, 0, None, 0))
    argv = (ctypes.c_char_p * (len(words) + 2))(b"kexec", *(word.encode() for word in words), None)
    optarg, optind, opterr = (kind.in_dll(libc, name) for kind, name in (
        (ctypes.c_char_p, "optarg"), (ctypes.c_int, "optind"), (ctypes.c_int, "opterr"),
    ))  # fmt: skip
    optind.value, opterr.value, found = 0, 0, []
    while (code := libc.getopt_long(len(words) + 1, argv, b"hvdfixyluet:pscaS", table, None)) != -1:
        name = back.get(code, "?")
        found.append((name, bytes(optarg.value or b"").decode() if options.get(name) else ""))
    return [*found, *(("", bytes(argv[place] or b"").decode()) for place in range(optind.value, len(words) + 1))]


WORDS = st.lists(
    st.one_of(
        st.sampled_from(["-l", "-s", "-e", "-fs", "-t", "-tx", "-lt", "--", "-", "--append", "--append=x=y", "--initrd", "k", ""]),
        st.sampled_from(sorted(kexecline._options("x86_64"))).flatmap(
            lambda name: st.integers(1, len(name)).map(lambda cut: f"--{name[:cut]}")
        ),
        st.sampled_from(sorted(kexecline._options("x86_64"))).map(lambda name: f"--{name}=v"),
        st.text("-=aelts", max_size=6),
    ),
    max_size=7,
)  # fmt: skip


@given(WORDS, st.sampled_from(["x86_64", "aarch64"]))
def test_reads_words_as_the_c_library_does(words: list[str], machine: str) -> None:
    """Options, abbreviations, arguments and what is no option: as getopt_long, whose rules kexec-tools has them by."""
    mine = [
        ("?" if not word.known else word.option, "" if not word.known else word.value)
        for word in kexecline._words(words, kexecline._options(machine))
        if word.option != "--" or not word.known
    ]
    options = [item for item in mine if item[0]]
    others = [item for item in mine if not item[0]]

    assert getopt(words, machine) == [*options, *others]


@pytest.mark.parametrize(
    ("line", "now", "expected"),
    [
        ("-l k", "BOOT_IMAGE=/boot/x root=/dev/sda quiet\n", ""),
        ("-l k --reuse-cmdline", "BOOT_IMAGE=/boot/x root=/dev/sda quiet\n", "root=/dev/sda quiet"),
        ("-l k --reuse-cmdline --append=more", "a XBOOT_IMAGE=1 BOOT_IMAGE=2 b\n", "a XBOOT_IMAGE=1 b more"),
        ("-l k --reuse-cmdline", "a safemem.preflight=0123,overridden b safemem.safe=1\n", "a b safemem.safe=1"),
        ("-l k --append=safemem.preflight=x", "", ""),
    ],
)
def test_the_next_command_line(line: str, now: str, expected: str) -> None:
    """As kexec-tools puts it together (get_command_line, concat_cmdline), without the word of an earlier kexec."""
    assert kexecline.cmdline(kexecline.parse(line.split()), now) == expected


@given(st.lists(st.sampled_from(["-l", "-f", "-e", "-u", "-s", "-c", "-a", "--append=x", "--reuse-cmdline", "--initrd=/i", "-x", "k", "--"])))  # fmt: skip
def test_what_is_run_only_loads(words: list[str]) -> None:
    """Whatever was asked for, the call that is run loads that kernel with the line that was judged, and does nothing more."""
    call = kexecline.parse(words)
    made = kexecline.parse(kexecline.again(call, "judged line"))

    assert (made.does, made.kernel, made.initrd) == ("load", call.kernel, call.initrd)
    assert (made.append, made.reuse) == ("judged line", False)
    assert made.loader == ("kexec_load" if call.loader == "kexec_load" else "kexec_file")


# ---- loading


class Machine:
    """A fake root with programs that do what they are told and write down how they were called."""

    def __init__(self, base: Path) -> None:
        self.root = make_root(base)
        self.path = str(self.root)
        (self.root / "sys/class/tty/console").mkdir(parents=True)
        (self.root / "sys/class/tty/console/active").write_text("ttyS0\n")
        (self.root / "dev/ttyS0").touch()
        self.loaded = self.root / "sys/kernel/kexec_loaded"
        self.loaded.write_text("0\n")
        self.kernel, self.initrd = self.root / "boot/next", self.root / "boot/initrd"
        self.kernel.parent.mkdir(exist_ok=True)
        self.kernel.write_bytes(b"kernel")
        self.initrd.write_bytes(b"initrd")
        self.tell(0)
        self.program("usr/bin/safemem", f"""
            case $1 in
                kernel) echo '{json.dumps({"kernels": [{"build_ids": [f"{text}aaaa" for text in IDS]}]})}' ;;
                preflight) printf '%s\\n' "$@" >{base}/asked; cat {base}/said; cat {base}/error >&2; exit "$(cat {base}/code)" ;;
            esac""")  # fmt: skip
        self.program(
            "usr/sbin/kexec.distrib",
            f"""
            printf '%s|' "$@" >>{base}/kexec; echo >>{base}/kexec
            [ ! -e {base}/fails ] || exit 255
            [ ! -e {base}/swap ] || cp {base}/swap {self.kernel}
            case " $* " in
                *' --unload '*|*' -u '*) echo 0 >{self.loaded} ;;
                *' --load '*) echo 1 >{self.loaded} ;;
            esac""",
        )
        for name in ("usr/bin/systemctl", "sbin/shutdown"):
            self.program(name, f"""printf '%s|' {name.split("/")[-1]} "$@" >>{base}/kexec; echo >>{base}/kexec""")
        self.base = base
        self.journal: list[str] = []

    def program(self, name: str, text: str) -> None:
        """Put a shell program below the root."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.root / name).chmod(0o755)

    def tell(self, code: int, text: str | None = None, error: str = "") -> None:
        """Have preflight say this from now on."""
        base = self.root.parent
        (base / "code").write_text(str(code))
        (base / "said").write_text(SAID.get(code, "") if text is None else text)
        (base / "error").write_text(error)

    def calls(self) -> list[str]:
        """Return how kexec, systemctl and shutdown were called, and forget it."""
        file = self.base / "kexec"
        lines = [line.rstrip("|") for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    def console(self) -> str:
        """Return what the console shows."""
        return (self.root / "dev/ttyS0").read_text().replace("\r", "")

    def load(self, *more: str) -> int:
        """Load the kernel with its initrd as an operator would."""
        return loading.main(["-s", "-l", str(self.kernel), f"--initrd={self.initrd}", *more], self.path)

    def override(self, boot: str = BOOT) -> Override | None:
        """Return the override that is kept for the next boot."""
        return loaded.kept(self.path, boot)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine that runs a kernel with KHO, with the gate in place and nothing loaded."""
    return Machine(tmp_path)


def test_a_compatible_kernel_is_loaded(machine: Machine) -> None:
    """With the name of the image that was judged on its command line, and a record of what was loaded that only root can read."""
    assert machine.load("--reuse-cmdline", "--append=quiet") == 0

    now = "console=ttyS0 kho=on liveupdate=on memhp_default_state=offline"
    line = f"{now} quiet {WORD}"
    assert machine.calls() == [f"-s|-l|--initrd={machine.initrd}|--load|--kexec-file-syscall|--append={line}|--|{machine.kernel}"]  # fmt: skip
    asked = (machine.base / "asked").read_text().splitlines()
    assert asked == [
        "preflight", "--kernel", str(machine.kernel), "--initrd", str(machine.initrd), f"--cmdline={line}",
        "--loader", "kexec_file", "--format", "text",
    ]  # fmt: skip
    found = loaded.read(machine.path)
    assert found and found._replace(time=0) == loaded.Loaded(
        BOOT, 0, loaded.digest(str(machine.kernel)), (loaded.digest(str(machine.initrd)),), line, "kexec_file",
        "compatible", WHY[0], IDS,
    )  # fmt: skip
    assert (machine.root / loaded.LOADED).stat().st_mode & 0o777 == 0o600
    assert machine.console() == ""


def test_an_incompatible_kernel_is_not(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever calls kexec, the console and the journal are told why, and how to do it all the same."""
    (machine.root / journal.SOCKET).parent.mkdir(parents=True)
    machine.tell(5)
    where = os.getcwd()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        os.chdir(machine.root)  # a socket's path may have 108 bytes
        try:
            listener.bind(journal.SOCKET)
            os.chdir(where)
            link = machine.root / "j"
            link.symlink_to(machine.root)
            assert machine.load() == 5
            entry = dict(line.split("=", 1) for line in listener.recv(1 << 16).decode().splitlines())
        finally:
            os.chdir(where)

    said = f"kexec refused: incompatible: {WHY[5]}"
    way = "nothing was loaded; `/usr/lib/safemem/gate override --reason TEXT` lets the next kexec go against it"
    assert machine.calls() == [] and machine.loaded.read_text() == "0\n"
    assert capsys.readouterr().err == f"{SAID[5]}safemem: {said}\nsafemem: {way}\n"
    assert machine.console() == f"safemem: {said}\nsafemem: {way}\n"
    assert entry == {
        "MESSAGE": f"{said}; {way}", "PRIORITY": "3", "SYSLOG_IDENTIFIER": "safemem", "SAFEMEM_PREFLIGHT": "incompatible",
        "SAFEMEM_OVERRIDE": "",
    }  # fmt: skip
    assert loaded.read(machine.path) is None


@pytest.mark.parametrize(("setting", "code"), [("", 0), ("allow", 0), ("refuse", 6)])
def test_what_cannot_be_told_is_the_operators_to_allow(machine: Machine, setting: str, code: int) -> None:
    """`cannot_tell` in /etc/safemem/preflight.toml says it, `allow` without one; the next boot is told that nobody knew."""
    if setting:
        (machine.root / judge.SETTINGS).parent.mkdir(parents=True, exist_ok=True)
        (machine.root / judge.SETTINGS).write_text(f'cannot_tell = "{setting}"\n')
    machine.tell(6)

    assert machine.load() == code
    calls = machine.calls()
    if code:
        assert calls == []
    else:
        assert f"--append={WORD},cannot-tell" in calls[0].split("|")
        said = f"safemem: kexec goes on, though it cannot be told whether it would come up: {WHY[6]}.\n"
        assert machine.console() == said


@pytest.mark.parametrize(
    ("code", "text", "error", "why"),
    [
        (0, SAID[5], "", "preflight failed with code 0: it did not end with a verdict"),
        (0, "", "", "preflight failed with code 0: it did not end with a verdict"),
        (0, "compatible\nand then it died\n", "", "preflight failed with code 0: it did not end with a verdict"),
        (5, SAID[0], "", "preflight failed with code 5: it did not end with a verdict"),
        (1, "", "Traceback\nsafemem: no memory\n", "preflight failed with code 1: no memory"),
        (3, "", "safemem: /boot/next: this is no kernel\n", "preflight failed with code 3: /boot/next: this is no kernel"),
    ],
)  # fmt: skip
def test_what_is_no_verdict_is_none(machine: Machine, code: int, text: str, error: str, why: str) -> None:
    """A code without the line that goes with it, a failure, an input that is refused: nothing can be told."""
    machine.tell(code, text, error)

    assert judge.judge(machine.path, "k", (), "", "kexec_file")[:2] == ("cannot tell", why)
    # Whatever it is that makes preflight fail, it is no way past it.
    assert machine.load() == 6 and machine.calls() == []
    loaded.permit(machine.path, "now")
    assert machine.load() == 0


OFF = "error: this kernel hands nothing over: KHO is off [kho-off]\n    seen: kho=off\n"
NO_INITRD = "unknown: no initrd was looked at [no-initrd]\n"


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        (OFF, 0, "kexec goes on without a handover: this kernel hands nothing over: KHO is off (kho=off)\n"),
        (f"{OFF}{NO_INITRD}", 0, "kexec goes on, though it cannot be told whether it would come up: no initrd was looked at.\n"),
        (f"{OFF}error: nothing decides there [initrd-without-safemem]\n", 5, "kexec refused: incompatible: this kernel hands nothing over: KHO is off (kho=off)\n"),
    ],
)  # fmt: skip
def test_a_kernel_that_hands_nothing_over_loses_nothing(machine: Machine, found: str, code: int, said: str) -> None:
    """With KHO off here every plain kexec would be refused: where that is all, it goes on, and says so."""
    machine.tell(5, f"/boot/next: 7.3.4, after 7.3.4\n{found}incompatible\n")
    assert machine.load() == code
    assert machine.console().startswith(f"safemem: {said}")
    assert len(machine.calls()) == (code == 0)


def test_a_preflight_that_is_not_there(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or that hangs: nothing can be told, and no build ID."""
    (machine.root / judge.PROGRAM).unlink()
    found = judge.judge(machine.path, "k", (), "", "kexec_file")
    assert found.name == "cannot tell" and found.why == "preflight cannot be run: /usr/bin/safemem: no such file or directory"  # fmt: skip
    assert judge.build_ids(machine.path, "k") == ()

    machine.program(judge.PROGRAM, "exec sleep 60")
    monkeypatch.setattr(judge, "PATIENCE", 0.1)
    assert judge.judge(machine.path, "k", (), "", "kexec_file").why == "preflight gave no answer in 0.1 s"


SETTINGS = {
    'cannot_tell = "maybe"\n': '/etc/safemem/preflight.toml:1: `cannot_tell` is "refuse" or "allow"',
    "# mine\ncannot_tel = 1\n": "/etc/safemem/preflight.toml:2: unknown key `cannot_tel`; the one there is is `cannot_tell`",
    "cannot_tell = \n": "/etc/safemem/preflight.toml:1:15: invalid value",
    b"\xff": "/etc/safemem/preflight.toml: this is not text in UTF-8",
    "x = " + "1" * 5000: "/etc/safemem/preflight.toml: this cannot be read",
    "x = " + "[" * 50000: "/etc/safemem/preflight.toml: this cannot be read",
    'cannot_tell = "allow"\n'
    + "#" * 65536
    + '\ncannot_tel = "refuse"\n': "/etc/safemem/preflight.toml: it is larger than 64 KiB",
    "cannot_tell = true\n": '/etc/safemem/preflight.toml:1: `cannot_tell` is "refuse" or "allow"',
}


@pytest.mark.parametrize(("text", "why"), SETTINGS.items(), ids=range(len(SETTINGS)))
def test_settings_that_cannot_be_used_refuse(
    machine: Machine, text: str | bytes, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the place of what is wrong; a kernel that is compatible needs no setting."""
    (machine.root / judge.SETTINGS).parent.mkdir(parents=True, exist_ok=True)
    (machine.root / judge.SETTINGS).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(judge.BadSettings, match=re.escape(why)):
        judge.on_cannot_tell(machine.path)
    assert machine.load() == 0
    machine.tell(6)
    assert machine.load() == 6
    error = capsys.readouterr().err
    assert f"safemem: kexec refused: cannot tell: {why}" in error  # first, with what to write
    assert f': write `cannot_tell = "refuse"` or `cannot_tell = "allow"` there, and nothing else; {WHY[6]}\n' in error


def test_an_override_is_for_one_kexec(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """It is kept on the disk before the kernel is loaded, is told to the next boot, and is used up."""
    assert gate.main(["--root", machine.path, "override", "--reason", "the  host\nburns"]) == 0
    assert capsys.readouterr().out == "this boot's next kexec may go against the verdict: the host burns\n"
    assert machine.load() == 0  # it is not needed, and was for this one
    machine.tell(5)
    assert machine.load() == 5
    loaded.permit(machine.path, "the host burns")
    machine.calls()
    assert machine.load() == 0

    assert f"--append={WORD},overridden" in machine.calls()[0].split("|")
    kept = machine.override()
    assert kept and kept._replace(time=0) == Override(BOOT, 0, "the host burns", "incompatible", WHY[5], str(machine.kernel))  # fmt: skip
    found = loaded.read(machine.path)
    assert found and (found.verdict, found.override) == ("incompatible", "the host burns")
    assert f"kexec forced: the host burns (incompatible: {WHY[5]})" in machine.console()
    assert machine.load() == 5
    # What is loaded is what was loaded with the override, and so it may be started.
    assert gate.main(["--root", machine.path, "kexec"]) == 0
    kept = machine.override()
    assert kept and kept.started
    # Another one is loaded in its place.
    machine.tell(0)
    assert machine.load() == 0
    assert machine.override() is None


def test_an_override_that_cannot_be_recorded_is_none(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor one of an earlier boot, nor a damaged one."""
    machine.tell(5)
    (machine.root / "var/lib/safemem").mkdir(parents=True)
    (machine.root / loaded.OVERRIDES).touch()
    loaded.permit(machine.path, "now")
    assert machine.load() == 5 and machine.calls() == []
    assert "the override cannot be recorded: " in capsys.readouterr().err

    (machine.root / loaded.OVERRIDES).unlink()
    permission = machine.root / loaded.PERMISSION
    permission.write_text(permission.read_text().replace(BOOT, BOOT[::-1]))
    assert machine.load() == 5
    permission.write_text("{")
    assert machine.load() == 5
    assert "the override cannot be read: /run/safemem/override.json is damaged" in capsys.readouterr().err
    assert machine.calls() == []


def test_an_override_of_one_call(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment; a kernel that cannot be loaded leaves none behind."""
    machine.tell(5)
    monkeypatch.setenv(gate.ENVIRONMENT, "I know")
    (machine.base / "fails").touch()
    assert machine.load() == 255
    assert (machine.override(), loaded.read(machine.path)) == (None, None)
    (machine.base / "fails").unlink()
    assert machine.load() == 0
    kept = machine.override()
    assert kept and kept.reason == "I know"


def test_a_file_that_changes_meanwhile_is_unloaded(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """What was loaded is not what was judged."""
    (machine.base / "swap").write_bytes(b"another")
    assert machine.load() == 6
    assert machine.calls()[-1] == "--unload" and machine.loaded.read_text() == "0\n"
    assert "kexec refused: cannot tell: a file changed while it was loaded\n" in capsys.readouterr().err
    assert loaded.read(machine.path) is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-f", "-x", "K"], ["--exec|--no-ifdown"]),
        (["K"], ["shutdown|-r|now"]),
    ],
)
def test_calls_that_do_more_than_load(machine: Machine, words: list[str], expected: list[str]) -> None:
    """They load first, as others do, and then go on; a refused one does neither."""
    words = [str(machine.kernel) if word == "K" else word for word in words]
    assert loading.main(words, machine.path) == 0
    assert machine.calls()[1:] == expected
    machine.tell(5)
    assert loading.main(words, machine.path) == 5
    assert machine.calls() == []


@pytest.mark.parametrize("words", [["-p", "/k"], ["--help"], ["-S"], ["-p", "-u"]])
def test_what_is_no_live_update_is_kexecs_own(machine: Machine, words: list[str]) -> None:
    """A crash kernel, help, state: called as it was, and no record changes."""
    assert machine.load() == 0
    machine.calls()
    before = (machine.root / loaded.LOADED).read_bytes()
    machine.tell(5)
    assert loading.main(words, machine.path) == 0
    assert machine.calls() == ["|".join(words)]
    assert (machine.root / loaded.LOADED).read_bytes() == before


@pytest.mark.parametrize("words", [["-p", "-e"], ["-p", "-f", "/k"]])
def test_a_jump_is_judged_whatever_else_is_loaded(machine: Machine, words: list[str]) -> None:
    """With -p in front of it kexec jumps into the kernel that is no crash kernel."""
    assert machine.load() == 0
    machine.calls()
    machine.tell(5)
    assert loading.main(words, machine.path) == 5 and machine.calls() == []
    machine.tell(0)
    assert loading.main(words, machine.path) == 0 and machine.calls() == ["|".join(words)]


def test_two_loads_at_once(machine: Machine) -> None:
    """Each leaves its own record beside its own kernel, and unloading waits for them as well."""
    other = machine.root / "boot/other"
    other.write_bytes(b"other")
    # kexec takes long, and tells what is in the kernel's memory when it ends.
    last = machine.base / "last"
    machine.program(
        "usr/sbin/kexec.distrib",
        f"""
        case " $* " in *' -u '*) rm -f {last}; exit ;; esac
        for name; do :; done
        case $name in *next) echo "$name" >{last}; sleep 1 ;; *) echo "$name" >{last} ;; esac
        echo 1 >{machine.loaded}""",
    )
    command = [
        sys.executable,
        "-c",
        "import sys; from safemem.realroot import loading; sys.exit(loading.main(sys.argv[2:], sys.argv[1]))",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in (["-l", str(other)], ["-u"]):
        last.unlink(missing_ok=True)
        with subprocess.Popen([*command, machine.path, "-l", str(machine.kernel)], env=environment) as first:
            while not last.exists() and first.poll() is None:
                time.sleep(0.01)
            assert subprocess.run([*command, machine.path, *words], env=environment).returncode == 0
            assert first.wait() == 0
        found = loaded.read(machine.path)
        assert (found.kernel.path if found else None) == (last.read_text().strip() if last.exists() else None)


def test_unload_forgets(machine: Machine) -> None:
    """The record goes with the kernel, and so does what was forced."""
    machine.load()
    loaded.keep(machine.path, Override(BOOT, 0, "r", "incompatible", "w", ""))
    assert loading.main(["-u"], machine.path) == 0
    assert (loaded.read(machine.path), machine.override()) == (None, None)


def test_what_the_line_does_not_tell(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """An option that is not known is passed on if the setting allows it, and what is loaded then has no record."""
    machine.load()
    machine.calls()
    words = ["-l", "--new", str(machine.kernel)]
    assert loading.main(words, machine.path) == 0
    assert machine.calls() == ["|".join(words)]
    assert loaded.read(machine.path) is None
    (machine.root / judge.SETTINGS).parent.mkdir(parents=True, exist_ok=True)
    (machine.root / judge.SETTINGS).write_text('cannot_tell = "refuse"\n')
    capsys.readouterr()
    assert loading.main(words, machine.path) == 6
    assert capsys.readouterr().err.startswith(
        f"{SAID[0]}safemem: kexec refused: cannot tell: what is to be loaded cannot be told: the option `--new` is not known here"
        ' (refused by `cannot_tell = "refuse"` in /etc/safemem/preflight.toml)\n'
    )
    assert machine.calls() == []


@pytest.mark.parametrize("option", ["--new", "--reuseinitrd", "--load-live-update", "-u"])
def test_an_unclear_option_hides_nothing(machine: Machine, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What preflight says of the kernel, the initrd and the command line that do stand there is not lost."""
    words = [option, "-l", str(machine.kernel), f"--initrd={machine.initrd}", "--append=quiet"]
    machine.tell(5)
    assert loading.main(words, machine.path) == 5 and machine.calls() == []
    assert f"safemem: kexec refused: incompatible: {WHY[5]}\n" in capsys.readouterr().err
    asked = (machine.base / "asked").read_text().splitlines()
    assert asked[2:6] == [str(machine.kernel), "--initrd", str(machine.initrd), "--cmdline=quiet"]
    machine.tell(3)
    assert loading.main(words, machine.path) == 6 and machine.calls() == []
    machine.tell(0)
    assert loading.main(words, machine.path) == 0 and machine.calls() == ["|".join(words)]
    assert loaded.read(machine.path) is None


def test_what_loads_without_a_kernel_is_no_mistake(machine: Machine) -> None:
    """The helper for a jump back is loaded over what was judged; a load without its kernel is kexec's to complain of."""
    machine.load()
    machine.calls()
    assert loading.main(["-l"], machine.path) == 0
    assert loaded.read(machine.path) is not None
    assert loading.main(["--load-jump-back-helper"], machine.path) == 0
    assert loaded.read(machine.path) is None


def test_a_file_that_is_not_there(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """It says which one; preflight is not asked."""
    machine.initrd.unlink()
    assert machine.load() == 1
    assert capsys.readouterr().err == f"safemem: {machine.initrd}: no such file or directory\n"
    assert machine.calls() == [] and not (machine.base / "asked").exists()


def test_without_kexec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so, as a shell would."""
    assert loading.main(["-l", "k"], str(tmp_path)) == 127
    assert capsys.readouterr().err == "safemem: kexec is not installed: there is no /usr/sbin/kexec.distrib\n"


# ---- starting it

START = "systemctl|start|--no-block|--job-mode=replace-irreversibly|safemem-kexec.target"


def test_starts_what_is_still_compatible(machine: Machine) -> None:
    """It is judged anew with what was loaded; kexec -e as well."""
    machine.load()
    machine.calls()
    (machine.base / "asked").unlink()

    assert gate.main(["--root", machine.path, "kexec"]) == 0
    assert machine.calls() == [START]
    assert f"--cmdline={WORD}" in (machine.base / "asked").read_text().splitlines()
    assert loading.main(["-e"], machine.path) == 0
    assert machine.calls() == ["-e"]


def test_refuses_what_no_longer_is(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """The machine has changed since it was loaded; an override of then is recorded, and is not needed for another one."""
    machine.load()
    machine.calls()
    machine.tell(5)
    assert gate.main(["--root", machine.path, "kexec"]) == 5
    assert loading.main(["-e"], machine.path) == 5
    assert machine.calls() == []
    error = capsys.readouterr().err
    assert "nothing was stopped, and this system goes on; `/usr/lib/safemem/gate override" in error
    loaded.permit(machine.path, "now")
    assert gate.main(["--root", machine.path, "kexec"]) == 0
    assert machine.calls() == [START]
    kept = machine.override()
    assert kept and (kept.reason, kept.verdict, kept.started) == ("now", "incompatible", True)
    assert gate.main(["--root", machine.path, "kexec"]) == 5


@pytest.mark.parametrize(
    ("breaks", "why"),
    [
        ("record", "what is loaded was not loaded by `kexec`, so that nobody knows which kernel it is: load it anew"),
        ("boot", "what is loaded was not loaded by `kexec`, so that nobody knows which kernel it is: load it anew"),
        ("damage", "/run/safemem/loaded.json is damaged"),
        ("types", "/run/safemem/loaded.json is damaged"),
        ("nul", "/run/safemem/loaded.json is damaged"),
        ("surrogate", "/run/safemem/loaded.json is damaged"),
        ("kernel", "{kernel} has changed since it was loaded: load it anew"),
        ("initrd", "{initrd}: no such file or directory, which was loaded: load it anew"),
    ],
)
@pytest.mark.parametrize("setting", ["allow", "refuse"])
def test_what_is_loaded_is_not_known(
    machine: Machine, breaks: str, why: str, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loaded past the wrapper, in another boot, damaged, changed on the disk: nothing can be told, and preflight is not asked."""
    machine.load()
    machine.calls()
    (machine.base / "asked").unlink()
    (machine.root / judge.SETTINGS).parent.mkdir(parents=True, exist_ok=True)
    (machine.root / judge.SETTINGS).write_text(f'cannot_tell = "{setting}"\n')
    record = machine.root / loaded.LOADED
    document = json.loads(record.read_text())
    if breaks == "record":
        record.unlink()
    elif breaks == "boot":
        record.write_text(json.dumps(document | {"boot_id": "another"}))
    elif breaks == "damage":
        record.write_text(record.read_text()[:-20])
    elif breaks == "types":
        record.write_text(json.dumps(document | {"verdict": 1}))
    elif breaks in ("nul", "surrogate"):
        path = "/\0" if breaks == "nul" else "/\ud800"
        record.write_text(json.dumps(document | {"kernel": {"path": path, "sha256": ""}}))
    elif breaks == "kernel":
        machine.kernel.write_bytes(b"another")
    else:
        machine.initrd.unlink()

    assert gate.main(["--root", machine.path, "kexec"]) == (6 if setting == "refuse" else 0)
    assert machine.calls() == ([] if setting == "refuse" else [START])
    said = why.format(kernel=machine.kernel, initrd=machine.initrd)
    error = capsys.readouterr().err
    if setting == "refuse":
        assert f'cannot tell: {said} (refused by `cannot_tell = "refuse"` in /etc/safemem/preflight.toml)\n' in error
    else:
        cause, anew, _ = said.partition(": load it anew")
        more = " Next time load it by `kexec -s -l`." if anew else ""
        assert f"kexec goes on, though it cannot be told whether it would come up: {cause}.{more}\n" in error
    assert not (machine.base / "asked").exists()


def test_nothing_is_loaded(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """systemd would reboot, and all that was preserved would be lost: refused whatever the setting, and no override helps."""
    loaded.permit(machine.path, "now")
    assert gate.main(["--root", machine.path, "kexec"]) == 6
    assert machine.calls() == []
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "safemem: kexec refused: cannot tell: no kernel is loaded, and systemd would reboot without a handover: load one with"
        " `kexec -s -l` first",
        "safemem: nothing was stopped, and this system goes on",
    ]


@pytest.mark.parametrize(
    ("how", "problem"), [("missing", "{0}: no such file or directory"), ("fails", "systemctl failed with code 4")]
)
@pytest.mark.parametrize("forced", ["", "loading", "starting"])
def test_systemd_does_not_start_it(
    machine: Machine, how: str, problem: str, forced: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so, and whether an override is spent; the next boot is not told of a kexec that never was."""
    systemctl = machine.root / "usr/bin/systemctl"
    if how == "missing":
        systemctl.unlink()
    else:
        machine.program("usr/bin/systemctl", "exit 4")
    if forced == "loading":
        machine.tell(5)
        loaded.permit(machine.path, "now")
    machine.load()
    if forced == "starting":
        machine.tell(5)
        loaded.permit(machine.path, "now")
    capsys.readouterr()
    assert gate.main(["--root", machine.path, "kexec"]) == 1
    spent = {
        "": "",
        "loading": "; the override stays with what is loaded",
        "starting": "; the override is spent: give it anew",
    }
    said = f"safemem: kexec failed: {problem.format(systemctl)}: nothing was started, and this system goes on{spent[forced]}\n"
    assert capsys.readouterr().err.endswith(said) and machine.console().endswith(said)
    kept = machine.override()
    assert (kept and kept.started) == (False if forced == "loading" else None)


def test_help_has_a_line_for_each_word(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where nothing works: no root is looked at."""
    assert gate.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(gate.USAGE)
    words = [*gatesetup.VERBS, "override --reason TEXT", "override --cancel", "kexec"]
    assert [line[2:26].strip() for line in text.splitlines() if line.startswith("  ")] == words


def test_status_tells_of_the_setting_and_the_override(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done where nothing can be told, and what waits and how it is taken back."""

    def status() -> list[str]:
        capsys.readouterr()
        assert gate.main(["--root", machine.path, "status"]) == 1
        return capsys.readouterr().out.splitlines()[2:]

    assert status() == [
        'cannot tell      goes on, with a warning: `cannot_tell = "allow"`, for there is no /etc/safemem/preflight.toml',
        "override         none waits",
    ]
    settings = machine.root / judge.SETTINGS
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text('cannot_tell = "refuse"\n')
    loaded.permit(machine.path, "the host burns")
    assert status() == [
        'cannot tell      is refused: `cannot_tell = "refuse"` in /etc/safemem/preflight.toml',
        "override         waits for the next kexec: the host burns; `gate override --cancel` takes it back",
    ]
    for _ in range(2):
        assert gate.main(["--root", machine.path, "override", "--cancel"]) == 0
    assert status()[1] == "override         none waits"
    machine.tell(5)
    assert machine.load() == 5
    settings.write_text("cannot = 1\n")
    (machine.root / loaded.PERMISSION).write_text("{")
    assert status() == [
        "cannot tell      is refused: /etc/safemem/preflight.toml:1: unknown key `cannot`; the one there is is `cannot_tell`:"
        f" {judge.WRITE}",
        "override         none: it cannot be read: /run/safemem/override.json is damaged",
    ]


@pytest.mark.parametrize(
    "words", [[], ["start"], ["override"], ["override", "--reason"], ["override", "--reason", " "]]
)
def test_a_wrong_call(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It says how to call it."""
    assert gate.main(words) == 2
    assert capsys.readouterr().err == f"{gate.USAGE}\n"


def test_the_newest_overrides_are_kept(machine: Machine) -> None:
    """A number of them, by the boots that they ended."""
    for number in range(loaded.MOST + 3):
        name = f"{number:08}-0000"
        loaded.keep(machine.path, Override(name, number, "r", "incompatible", "w", ""))
        os.utime(machine.root / loaded.OVERRIDES / f"{name}.json", (number, number))
    names = sorted(os.listdir(machine.root / loaded.OVERRIDES))
    assert (len(names), names[0]) == (loaded.MOST, "00000003-0000.json")
    newest = loaded.newest(machine.path)
    assert newest and newest.time == loaded.MOST + 2


# ---- killed at any point

DRIVER = """
import os, signal, sys
kill = int(sys.argv[1])
from safemem.realroot import gate, loading
calls = 0
def count(event, _values):
    global calls
    if event in ("open", "subprocess.Popen") or event.startswith("os."):
        calls += 1
        if calls == kill:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
code = loading.main(sys.argv[3:], sys.argv[2])
print(calls)
sys.exit(code)
"""


def test_killed_at_any_point(machine: Machine) -> None:
    """A record never stands beside another kernel, nothing is half written, and what was forced is on the disk."""
    machine.load()
    machine.tell(5)
    words = ["-l", str(machine.kernel), "--append=forced"]
    environment = {**os.environ, gate.ENVIRONMENT: "test", "PYTHONPATH": str(ROOT)}

    def run(kill: int) -> subprocess.CompletedProcess[str]:
        machine.calls()
        return subprocess.run(
            [sys.executable, "-c", DRIVER, str(kill), machine.path, *words], capture_output=True, text=True, env=environment
        )  # fmt: skip

    whole = run(-1)
    assert whole.returncode == 0, whole.stderr
    number = int(whole.stdout.splitlines()[-1])
    assert number > 20
    killed = 0
    for kill in range(1, number + 1, max(1, number // 16)):
        shutil.rmtree(machine.root / loaded.OVERRIDES, ignore_errors=True)
        killed += run(kill).returncode == -9
        done = any("--load|" in call for call in machine.calls())
        found = loaded.read(machine.path)
        assert not done or (machine.override() and (not found or found.override == "test"))
        assert not found or found.kernel == loaded.digest(str(machine.kernel))
    assert killed > 10


# ---- putting it in place


def systemctl(machine: Machine) -> Path:
    """Give the machine a systemctl that enables and disables the gate; return the alias that it makes."""
    alias = machine.root / gatesetup.ALIAS
    alias.parent.mkdir(parents=True)
    machine.program(
        "usr/bin/systemctl",
        f"""
        case $2 in enable) ln -sf /usr/lib/systemd/system/{gatesetup.UNIT} {alias} ;; disable) rm -f {alias} ;; esac""",
    )
    return alias


def test_enable_and_disable(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Without dpkg, in /usr/local/sbin; as often as one likes, and what is not ours stays."""
    alias = systemctl(machine)
    local = machine.root / gatesetup.LOCAL
    assert gatesetup.run(machine.path, "enable") == 1
    assert capsys.readouterr().err == "safemem: the gate cannot be enabled: /usr/lib/safemem/kexec is missing: install the package\n"  # fmt: skip
    machine.program("usr/lib/safemem/kexec", "")
    for _ in range(2):
        assert gatesetup.run(machine.path, "enable") == 0
        assert os.readlink(local) == "/usr/lib/safemem/kexec"
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "systemctl kexec  goes through the gate",
        "kexec            goes through the gate: /usr/local/sbin/kexec",
    ]
    assert gatesetup.run(machine.path, "status") == 0
    for _ in range(2):
        assert gatesetup.run(machine.path, "disable") == 0
        assert not os.path.lexists(local)
    assert gatesetup.run(machine.path, "status") == 1
    local.write_text("mine")
    capsys.readouterr()
    assert gatesetup.run(machine.path, "enable") == 1
    assert "/usr/local/sbin/kexec is there already, and is not ours: move it away" in capsys.readouterr().err
    assert gatesetup.run(machine.path, "disable") == 0 and local.read_text() == "mine"
    assert not os.path.lexists(alias)  # what was done on the way is undone
    machine.program("usr/bin/systemctl", "echo nope >&2; exit 1")
    local.unlink()
    assert gatesetup.run(machine.path, "enable") == 1
    assert "the gate cannot be enabled: systemctl failed: nope" in capsys.readouterr().err
    assert not os.path.lexists(local)


DIVERT = """
    [ ! -e {base}/stuck ] || {{ echo stuck >&2; exit 2; }}
    for word; do name=$word; done
    from=/usr/sbin/kexec to=/usr/sbin/kexec.distrib
    [ "$name" = $from ] || exit 0
    case " $* " in
        *' --add --rename '*) [ ! -e {root}$from ] || mv {root}$from {root}$to ;;
        *' --remove --rename '*)
            [ ! -L {root}$from ] || {{ echo "rename would overwrite" >&2; exit 2; }}
            [ ! -e {root}$to ] || mv {root}$to {root}$from ;;
    esac"""


@pytest.fixture
def debian(machine: Machine) -> Machine:
    """Return a machine with dpkg, its kexec in its place, and the package."""
    (machine.root / "var/lib/dpkg").mkdir(parents=True)
    (machine.root / "var/lib/dpkg/status").touch()
    machine.program("usr/bin/dpkg-divert", DIVERT.format(base=machine.base, root=machine.path))
    machine.program("usr/bin/dpkg-query", "echo kexec-tools: /usr/sbin/kexec")
    machine.program("usr/lib/safemem/kexec", "")
    (machine.root / "usr/sbin/kexec.distrib").rename(machine.root / "usr/sbin/kexec")
    systemctl(machine)
    return machine


@pytest.mark.parametrize("how", ["missing", "fails"])
def test_disabled_whatever_systemctl_does(debian: Machine, how: str) -> None:
    """A system is never left without kexec, nor with a kexec.target that leads nowhere; an alias of other people stays."""
    assert gatesetup.run(debian.path, "enable") == 0
    kexec, alias = debian.root / "usr/sbin/kexec", debian.root / gatesetup.ALIAS
    assert os.readlink(kexec) == "/usr/lib/safemem/kexec"
    systemctl = debian.root / "usr/bin/systemctl"
    if how == "missing":
        systemctl.unlink()
    else:
        debian.program("usr/bin/systemctl", "exit 1")
    for _ in range(2):
        assert gatesetup.run(debian.path, "disable") == 0
        assert not kexec.is_symlink() and os.access(kexec, os.X_OK)
        assert not (debian.root / "usr/sbin/kexec.distrib").exists() and not os.path.lexists(alias)
    assert gatesetup.run(debian.path, "enable") == 1
    assert not kexec.is_symlink() and not (debian.root / "usr/sbin/kexec.distrib").exists()
    alias.symlink_to("/dev/null")
    assert gatesetup.run(debian.path, "disable") == 0 and os.readlink(alias) == "/dev/null"


def test_what_cannot_be_taken_out_is_still_kexec(debian: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Where dpkg-divert fails, the wrapper stays in its place and the rest is done; enabling changes nothing then."""
    assert gatesetup.run(debian.path, "enable") == 0
    (debian.base / "stuck").touch()
    assert gatesetup.run(debian.path, "disable") == 1
    assert capsys.readouterr().err == "safemem: the gate cannot be disabled: dpkg-divert failed: stuck\n"
    assert gatesetup.stands(debian.path) == (False, "usr/sbin/kexec")
    (debian.base / "stuck").unlink()
    assert gatesetup.run(debian.path, "disable") == 0
    (debian.base / "stuck").touch()
    assert gatesetup.run(debian.path, "enable") == 1
    assert gatesetup.stands(debian.path) == (False, "")


@pytest.mark.parametrize(
    ("verb", "fails", "diverted", "code"),
    [("remove", False, False, 0), ("remove", True, True, 1), ("remove", True, False, 0), ("upgrade", True, True, 0)],
)
def test_the_package_stays_where_kexec_would_go_with_it(
    tmp_path: Path, verb: str, fails: bool, diverted: bool, code: int
) -> None:
    """A diversion that could not be taken back leads to nothing once the wrapper is gone; without one nothing is lost."""
    listed = "local diversion of /usr/sbin/kexec to /usr/sbin/kexec.distrib"
    programs = {
        "gate": f"exit {int(fails)}", "dpkg-divert": f"echo {listed}" if diverted else "", "py3clean": "", "systemctl": "",
    }  # fmt: skip
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = (ROOT / "packages/debian/prerm").read_text()
    assert "/usr/lib/safemem/gate" in script
    script = script.replace("/usr/lib/safemem/gate", f"{tmp_path}/gate").replace("@VENDOR@", "")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(["sh", "-c", script, "prerm", verb], capture_output=True, text=True, env=environment)
    said = "safemem: not removed, for the system would be without kexec: see above\n"
    assert (result.returncode, result.stderr) == (code, said if code else "")


def units() -> dict[str, dict[str, Any]]:
    """Return the gate's units, by name, section and key."""
    found: dict[str, dict[str, Any]] = {}
    for path in (ROOT / "systemd").glob("safemem-*e*.*"):
        found[path.name] = dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))
    return found


def test_the_units_are_in_each_others_way_nowhere() -> None:
    """No unit of the gate is stopped by the kexec that it starts, and the alias is what the setup looks for."""
    found = units()
    target, service, real = (found[name] for name in (gatesetup.UNIT, "safemem-preflight.service", gate.TARGET))
    assert [unit["DefaultDependencies"] for unit in (target, service, real)] == ["no"] * 3
    assert "Conflicts" not in {*target, *service, *real}
    assert (target["Alias"], target["Requires"], target["After"]) == ("kexec.target", "safemem-preflight.service", "safemem-preflight.service")  # fmt: skip
    assert (real["Requires"], real["After"]) == ("systemd-kexec.service", "systemd-kexec.service")
    assert service["RefuseManualStart"] == "yes" and "Restart" not in service
    assert float(service["TimeoutStartSec"]) > judge.PATIENCE


@pytest.mark.parametrize(
    ("parent", "name", "real", "called"),
    [
        ("1", "systemd-shutdow", True, "real"),
        ("1", "shutdown", True, "real"),  # dracut's, in its initramfs
        ("1", None, True, "real"),  # /proc is gone already
        ("1", "systemd", True, "ours"),  # a service that was started by it, or lost its parent
        ("7", "systemd-shutdow", True, "ours"),
        ("1", "systemd-shutdow", False, "ours"),  # which says that there is none
    ],
)
def test_at_the_end_of_a_shutdown_nothing_is_judged(
    tmp_path: Path, parent: str, name: str | None, real: bool, called: str
) -> None:
    """What process 1 calls once systemd has handed over to the shutdown is the distribution's kexec; all else is judged."""
    for program, needed in (("real", real), ("ours", True)):
        if needed:
            (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@"\n')
            (tmp_path / program).chmod(0o755)
    if name is not None:
        (tmp_path / "comm").write_text(f"{name}\n")
    text = (ROOT / "packages/kexec.sh").read_text()
    for old, new in (
        ("$PPID", parent), ("/proc/1/comm", f"{tmp_path}/comm"), (f"/{gatesetup.PLACES['usr/sbin/kexec']}", f"{tmp_path}/real"),
        (f"/{gatesetup.PLACES['sbin/kexec']}", f"{tmp_path}/other"), ("/usr/lib/safemem/loading", f"{tmp_path}/ours"),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    result = subprocess.run(["sh", "-c", text, "kexec", "-e"], capture_output=True, text=True)

    assert (result.returncode, result.stdout, result.stderr) == (0, f"{called} -e\n", "")
