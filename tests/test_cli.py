# SPDX-License-Identifier: MIT
"""The command line: exit codes, every message, nothing written on bad input."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from safemem.boot import main as boot
from safemem.boot import record
from safemem.boot.model import Refused, Rule
from safemem.cli import COMMANDS, main
from safemem.cli.common import InputError
from safemem.host import standing
from tests.fakes import make_root
from tests.kit import install

POLICIES = Path(__file__).resolve().parent.parent / "policies"
DEFAULT = str(POLICIES / "live-update-host.toml")


def run(*words: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, list(words))


@pytest.mark.parametrize(
    ("options", "action", "code"),
    [
        ({}, "online-all", 0),
        ({"offered": True, "kho_in": True}, "online-all", 0),
        ({"offered": True, "kho_in": True, "luo": False}, "online-safe", 4),
        ({"offered": True}, "panic", 5),
        ({"offered": True, "kho_out": False, "config": None}, "panic", 5),
    ],
)
def test_simulate_root(tmp_path: Path, options: dict[str, Any], action: str, code: int) -> None:
    """simulate on a root says what that machine would do, and its exit code says it too."""
    root = make_root(tmp_path, **options)
    result = run("simulate", DEFAULT, "--root", str(root), "--format", "json")

    assert code == result.exit_code
    assert (1, action, code) == (
        (document := json.loads(result.output))["schema"],
        document["decision"]["action"],
        document["exit_code"],
    )


def test_capture_simulates_like_the_machine(tmp_path: Path) -> None:
    """A capture carried elsewhere gives the same decision and the same plan."""
    root = make_root(tmp_path, offered=True, kho_in=True, luo=False)
    there = run("simulate", DEFAULT, "--root", str(root), "--format", "json")
    state = str(tmp_path / "state.json")

    assert run("capture", "--root", str(root), "-o", state).exit_code == 0
    here = run("simulate", DEFAULT, "--state", state, "--format", "json")
    assert json.loads(there.output) == json.loads(here.output)


def test_text(tmp_path: Path) -> None:
    """The text names the decision first, then why, then the plan, then what is not protected."""
    root = make_root(tmp_path, offered=True, kho_in=True, luo=False)
    lines = run("simulate", DEFAULT, "--root", str(root)).output.splitlines()

    assert lines[0].startswith("online-safe  ")
    headings = [line for line in lines if line in ("why", "plan", "not protected", "not known")]
    assert headings == ["why", "plan", "not protected", "not known"]
    assert any("[!!!!" in line for line in lines)


def test_imagined_state_fails_closed() -> None:
    """With nothing known the default policy panics."""
    assert run("simulate", DEFAULT).exit_code == 5


def test_set_changes_a_fact() -> None:
    """--set imagines one fact."""
    assert run("simulate", DEFAULT, "--set", "handover=none").exit_code == 0


def test_matrix_covers_every_handover_state() -> None:
    """The matrix has a row for each handover state and is honest about the default."""
    result = run("simulate", DEFAULT, "--matrix", "--format", "json")
    states = json.loads(result.output)["states"]

    assert result.exit_code == 0
    assert {"none", "lost", "accepted", "rejected", "orphaned", "unsupported", "unknown"} == {
        state["facts"]["handover"] for state in states
    }
    lost = [state for state in states if state["facts"]["handover"] not in ("none", "accepted")]
    assert {"panic"} == {state["action"] for state in lost if state["facts"]["preserved"] != "no"}
    # The predecessor's word is taken only where a handover was offered.
    assert {state["facts"]["handover"] for state in lost if state["action"] == "online-all"} == {
        "rejected", "orphaned", "unsupported"
    }  # fmt: skip
    assert all(s in run("simulate", DEFAULT, "--matrix").output for s in ("rejected", "online-safe", "panic"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--set", "hanover=none"], 2, "--set `hanover`: there is no such fact; did you mean `handover`?"),
        (["--set", "handover=rejectd"], 2, "`rejectd` is not one of none, lost, accepted, rejected"),
        (["--set", "handover"], 2, "--set `handover`: expected FACT=VALUE"),
        (["--set", "kexec_count=many"], 2, "--set kexec_count: `many` is not a whole number"),
        (
            ["--root", "/nowhere"],
            3,
            "safemem: /nowhere/sys/kernel: there is no such folder; is sysfs mounted below /nowhere?",
        ),
        (["--state", "/nowhere"], 3, "safemem: /nowhere: no such file or directory"),
        (["--live", "--root", "/"], 2, "--live, --state, --root and --machine exclude each other"),
    ],
)
def test_bad_input(words: list[str], code: int, message: str) -> None:
    """Bad input gives one clear message and its exit code, no traceback."""
    result = run("simulate", DEFAULT, *words)

    assert code == result.exit_code
    assert message in result.output
    assert "Traceback" not in result.output


def test_bad_policy_writes_nothing(tmp_path: Path) -> None:
    """compile leaves no file behind when the policy is wrong."""
    bad = tmp_path / "bad.toml"
    bad.write_text("format = 1\nnmae = 'x'\n")
    out = tmp_path / "out.json"
    result = run("compile", str(bad), "-o", str(out))

    assert result.exit_code == 3
    assert f"safemem: {bad}:2:1: unknown key `nmae`; did you mean `name`?" in result.output
    assert not out.exists()


def test_output_to_what_is_no_file(tmp_path: Path) -> None:
    """A device or a pipe is written to; only a file is replaced, or root would lose /dev/null to `-o /dev/null`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    result = run("capture", "--root", str(make_root(tmp_path)), "-o", str(pipe))

    assert result.exit_code == 0 and json.loads(os.read(reader, 1 << 16))["kind"] == "capture"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


def test_output_to_our_own_output(tmp_path: Path) -> None:
    """Of /dev/stdout a shell may have made a file, to which others write as well: nothing of theirs is lost."""
    words = f"{sys.executable} -c 'from safemem.cli import main; main()' schema -o /dev/stdout"
    subprocess.run(["sh", "-c", f"{{ echo before; {words}; echo after; }} >{tmp_path}/out"], check=True)
    text = (tmp_path / "out").read_text()
    assert text.startswith("before\n{") and text.endswith("}\nafter\n")
    piped = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=True).stdout
    assert text == f"before\n{piped}after\n"


@pytest.mark.parametrize("words", ["schema", "--help", "schema --help", "check minimal", "--version"])
def test_output_that_nothing_takes(words: str) -> None:
    """A full disk is told in one line, and is a failure."""
    command = f"{sys.executable} -c 'from safemem.cli import main; main()' {words} >/dev/full"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "safemem: no space left on device\n")


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "0"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)])  # fmt: skip
@pytest.mark.parametrize("words", [["check", "minimal"], ["simulate", "minimal"], ["diff", "minimal", "maintenance"]])
def test_colours_on_a_terminal(variables: dict[str, str], coloured: bool, words: list[str]) -> None:
    """There are some, unless the environment asks for none."""
    if words == ["check", "minimal"]:
        words = ["check", str(POLICIES.parent / "tests/bad/reboot-loop.toml")]
    ours, theirs = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"} | variables
    process = subprocess.Popen([sys.executable, "-c", "from safemem.cli import main; main()", *words], stdout=theirs, stderr=theirs, env=env)  # fmt: skip
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # EIO is the end of a terminal
        while data := os.read(ours, 1 << 16):
            seen += data
    process.wait()
    os.close(ours)
    assert (b"\x1b[" in seen) == coloured and seen


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}], ids=["colours", "none"])
def test_colours_of_the_daemon(tmp_path: Path, variables: dict[str, str]) -> None:
    """Its log on a terminal asks the environment too."""
    ours, theirs = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"} | variables
    words = [sys.executable, "-c", "from safemem.cli import main; main()", "watch", "--root", str(held(tmp_path))]
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    seen = b""
    while b"watching" not in seen:
        seen += os.read(ours, 1 << 16)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    os.close(ours)
    assert (b"\x1b[" in seen) == (not variables)


#: Where a signal finds it: before the group is there, and while a command is imported.
STARTS = ("click", "safemem.cli.group", "safemem.policy.load", "safemem.render.findings")


@pytest.mark.parametrize("module", STARTS)
def test_ctrl_c_during_the_start(module: str) -> None:
    """No traceback, and the code of what was interrupted."""
    code = f"""
import sys
class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Signal())
from safemem.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "check", "minimal"], capture_output=True, text=True)
    early = module in ("click", "safemem.cli.group")
    assert (done.returncode, done.stderr) == (130, "" if early else "safemem: interrupted\n")


def test_ctrl_c_in_a_command(tmp_path: Path) -> None:
    """As during the start."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = [sys.executable, "-c", "from safemem.cli import main; main()", "check", str(pipe)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    writer = os.open(pipe, os.O_WRONLY)  # comes back when the command reads
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    os.close(writer)
    assert (process.returncode, out, err) == (130, "", "safemem: interrupted\n")


def test_unwritable_output(tmp_path: Path) -> None:
    """A folder that does not exist is named, status 1."""
    result = run("capture", "--root", str(make_root(tmp_path)), "-o", str(tmp_path / "no/file"))

    assert result.exit_code == 1
    assert f"{tmp_path}/no/file: no such file or directory" in result.output


# ---- the group


def test_commands_are_known_without_importing_them() -> None:
    """What the list says of a command is the command's own short help, and its place in the help is its name."""
    for name, entry in COMMANDS.items():
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        assert (command.name, command.get_short_help_str(limit=1000)) == (name, entry.help)
    listed = re.findall(r"^  (\S+)  +(\S.*)$", run("--help").output.partition("Commands:\n")[2], re.MULTILINE)
    assert listed == sorted((name, entry.help) for name, entry in COMMANDS.items())


LOADED = """
import json, sys
from click.testing import CliRunner
from safemem.cli import main
result = CliRunner().invoke(main, sys.argv[1:])
print(json.dumps([result.exit_code, sorted(sys.modules)]))
"""


def loaded(*words: str) -> tuple[int, set[str]]:
    """Run the command in a fresh interpreter; return its exit code and every module that it has loaded."""
    done = subprocess.run([sys.executable, "-c", LOADED, *words], check=True, capture_output=True, text=True)
    code, names = json.loads(done.stdout)
    return code, set(names)


def test_help_loads_no_command() -> None:
    """`safemem --help` is click, the table, and no more of us than that needs."""
    code, names = loaded("--help")
    assert code == 0
    assert {name for name in names if name.startswith("safemem.") and name.count(".") > 1} == {
        "safemem.cli.group", "safemem.cli.codes", "safemem.boot.files", "safemem.boot.model", "safemem.boot.ranges",
        "safemem.boot.tuples",
    }  # fmt: skip


@pytest.mark.parametrize("words", [["status"], ["previous"], ["keep"], ["metrics", "-o", "x"], ["release", "--reason", "x"]])  # fmt: skip
def test_what_is_not_needed_is_not_loaded(tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's modules are the daemon's, the language is for whoever reads a policy."""
    monkeypatch.chdir(tmp_path)
    _, names = loaded(*words, "--root", str(held(tmp_path)))
    assert not {name.partition(".")[0] for name in names} & {
        "pydantic",
        "pydantic_core",
        "pyudev",
        "structlog",
        "tomllib",
    }


BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pydantic", "pydantic_core"):
            raise ImportError(f"{name} is broken")
sys.meta_path.insert(0, Broken())
from safemem.cli import main
main()
"""


def held(base: Path) -> Path:
    """Return a machine on which a lost handover was held, with its policy where the operator has it."""
    root = make_root(base, offered=True)
    install(root, otherwise=Rule("otherwise", "online-safe", message="handover lost", enter="maintenance"))
    assert boot.main(["--root", str(root)]) == 0
    (root / "etc/safemem").mkdir(parents=True)
    shutil.copy(DEFAULT, root / "etc/safemem/policy.toml")
    return root


def broken(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command where pydantic cannot be imported."""
    whole = [sys.executable, "-c", BROKEN, *words, "--root", str(root)]
    return subprocess.run(whole, capture_output=True, text=True, timeout=60, cwd=root)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["status"], 4, "online-safe  handover lost"),
        (["status", "--format", "json"], 4, '"exit_code": 4'),
        (["previous"], 6, "nothing is known of an earlier boot"),
        (["keep"], 4, ""),
        (["metrics", "-o", "safemem.prom"], 4, ""),
        (["status", "--keep", "--prometheus", "safemem.prom"], 4, ""),
        (["release", "--reason", "x"], 64, "released 0 B of 1 GiB"),
        (["doctor"], 0, "findings, 0 severe"),
        (["doctor", "--format", "json"], 0, '"code": "no-initrd"'),
    ],
)
def test_a_machine_in_maintenance_needs_no_pydantic(tmp_path: Path, words: list[str], code: int, says: str) -> None:
    """Where a dependency is broken, whoever looks after the machine still sees what was decided, and can end it."""
    result = broken(held(tmp_path), *words)
    assert (result.returncode, says in result.stdout + result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("unit", sorted((POLICIES.parent / "systemd").glob("*.service")), ids=lambda path: path.stem)
def test_no_unit_needs_pydantic(tmp_path: Path, unit: Path) -> None:
    """What each unit of the real root starts does its work where pydantic cannot be imported."""
    root = held(tmp_path)
    (command,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    program, *words = (
        command.replace("/var/lib/prometheus/node-exporter", str(tmp_path)).replace("%i", "decided").split()
    )
    if program != "/usr/bin/safemem":
        name = program.rpartition("/")[2]
        code = BROKEN.replace("safemem.cli", f"safemem.realroot.{name}").replace(
            "main()", "sys.exit(main(sys.argv[1:]))"
        )
        done = subprocess.run([sys.executable, "-c", code, "--root", str(root), *words], capture_output=True, text=True)
        # The fake root has no console to say anything on, and no LUO.
        assert done.returncode == (0 if name == "hold" else 1) and "Traceback" not in done.stderr, done.stderr
        return
    if words == ["watch"]:
        daemon = subprocess.Popen([sys.executable, "-c", BROKEN, "watch", "--root", str(root)], stderr=subprocess.PIPE, text=True)  # fmt: skip
        assert daemon.stderr
        said = [daemon.stderr.readline(), daemon.stderr.readline()]
        daemon.send_signal(signal.SIGTERM)
        daemon.communicate(timeout=60)
        assert daemon.returncode == 0 and '"event": "watching"' in said[1], said
        assert (
            said[0]
            == "safemem: etc/safemem/policy.toml: whether this is the policy that decided cannot be told: pydantic is broken\n"
        )
        return
    result = broken(root, *words)
    assert (result.returncode, result.stderr) == (0 if words[0] == "require" else 4, "")


def test_watch_cannot_compare_a_given_policy_without_pydantic(tmp_path: Path) -> None:
    """Who asks for the comparison is told that there is none, and nothing is applied."""
    result = broken(held(tmp_path), "watch", "--policy", DEFAULT)
    assert (result.returncode, result.stderr) == (
        1, f"safemem: {DEFAULT}: whether this is the policy that decided cannot be told: pydantic is broken\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["status", "--previous"], ["previous"]),
        (["status", "--previous", "--format", "json"], ["previous", "--format", "json"]),
        (["status", "--keep"], ["keep"]),
        (["status", "--prometheus", "FILE"], ["metrics", "-o", "FILE"]),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_old_spellings(tmp_path: Path, old: list[str], new: list[str], there: bool) -> None:
    """An option of `status` is the command that it became: same output, same files, same end."""
    seen = []
    for number, words in enumerate((old, new)):
        root = held(tmp_path / str(number))
        os.utime(root / record.RECORD, (0, 1_700_000_000))  # the metrics have it
        if not there:
            (root / record.RECORD).unlink()
        file = tmp_path / f"{number}.prom"
        result = run(*(str(file) if word == "FILE" else word for word in words), "--root", str(root))
        kept = [path.read_text() for path in sorted((root / "var").rglob("*.json"))] if (root / "var").exists() else []
        text = [result.stdout.replace(str(root), "ROOT"), result.stderr.replace(str(root), "ROOT")]
        seen.append([result.exit_code, *text, kept, file.read_text() if file.exists() else ""])
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (Refused("a: b\nc: d"), 1, "safemem: a: b\nsafemem: c: d\n"),
        (standing.NoDecision("nothing"), 6, "safemem: nothing\n"),
        (InputError("file:1:1: wrong"), 3, "safemem: file:1:1: wrong\n"),
        (PermissionError(13, "Permission denied", "/a/file"), 1, "safemem: /a/file: permission denied\n"),
        (OSError(5, "Input/output error"), 1, "safemem: input/output error\n"),
        (OSError("no number"), 1, "safemem: no number\n"),
        (click.UsageError("no such thing"), 2, "safemem: no such thing\n"),
        (KeyboardInterrupt(), 130, "safemem: interrupted\n"),
    ],
)
def test_what_ends_a_command_is_told_in_one_place(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, says: str
) -> None:
    """Each line with our name, the code of its kind, and never a traceback."""

    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr(standing, "read", fail)
    result = run("status")
    assert (result.exit_code, result.stderr.endswith(says)) == (code, True), result.stderr
    assert isinstance(result.exception, SystemExit)


def test_nobody_reads_the_output(tmp_path: Path) -> None:
    """A pipe that was closed is no error to tell."""
    words = f"{sys.executable} -c 'from safemem.cli import main; main()' status --format json --root {held(tmp_path)}"
    done = subprocess.run(["sh", "-c", f"{words} | true"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_command() -> None:
    """It is a mistake in usage."""
    result = run("stauts")
    assert (result.exit_code, "No such command 'stauts'" in result.stderr) == (2, True)


def test_what_may_be_chosen_is_told_in_one_line() -> None:
    """click lists it in lines of its own, which are ours to tell."""
    result = run("require")
    assert result.exit_code == 2
    assert result.stderr.endswith("safemem: Missing argument 'FORM'. Choose from: decided, all, accepted\n")
    assert "require [OPTIONS] FORM\n" in result.stderr


@pytest.mark.parametrize("name", ["compile", "capture", "schema"])
def test_what_writes_says_how_it_ends(name: str) -> None:
    """In its help."""
    assert "Exit code: 0 written; 1 nothing was written" in run(name, "--help").output
