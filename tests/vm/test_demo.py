# SPDX-License-Identifier: MIT
"""`make vm-demo` as somebody meets it who has just cloned the repository."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm import demo, harness
from tests.vm.demo import Outcome

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = [sys.executable, "-m", "tests.vm.demo"]


@pytest.mark.vm
def test_three_acts() -> None:
    """Counts before, after, and with safemem; no kernel's console; a verdict; all of it in 80 columns."""
    result = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True)
    lines = result.stdout.splitlines()

    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    heads = [line.partition(":")[0] for line in lines if line and not line.startswith(" ")]
    assert [head for head in heads if head[:3] in ("Act", "Ver", "Nex")] == [
        "Act 1",
        "Act 2",
        "Act 3",
        "Verdict",
        "Next",
    ]
    assert max(map(len, lines)) <= 80
    assert "Linux version" not in result.stdout and "\x1b" not in result.stdout and "\r" not in result.stdout
    assert re.search(r"it says, in line \d+ of its console: KHO: disabling KHO revival", result.stdout)
    assert "safemem: online-safe + maintenance: handover lost: held memory" in " ".join(result.stdout.split())
    found = re.findall(r"^  (.+?)  +([\d,]+) +[\d.]+ %", result.stdout, re.MULTILINE)
    counts = {label: int(count.replace(",", "")) for label, count in found}
    assert list(counts) == ["before the kexec", "rejected, without safemem", "rejected, with `maintenance`"]
    before, without, kept = counts.values()
    assert before == demo.PAGES and without < before // 10 and kept > before * 8 // 10


@pytest.mark.vm
def test_a_panic_is_told_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    """The default policy ends the boot, and every page outside of what the kernel itself took is there."""
    kept = demo.act("panic", demo.chosen("live-update-host").read_text(), demo.Told(verbose=False))

    assert (kept.before, kept.fate) == (demo.PAGES, "panic")
    assert kept.after > kept.before * 8 // 10
    assert "the kernel panicked before anything could use the memory" in " ".join(capsys.readouterr().out.split())


@pytest.mark.vm
def test_interrupted() -> None:
    """Ctrl-C ends it without a traceback, and no guest is left behind."""
    with subprocess.Popen(
        DEMO, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        while "the outgoing kernel starts" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (130, "\ndemo: stopped; no guest is left running\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("minimum", "there is no policy `minimum`; did you mean `minimal`?; give a file, or one of dax-guests, "),
        ("nowhere/x.toml", "there is no policy `nowhere/x.toml`; give a file, or one of dax-guests, "),
    ],
)  # fmt: skip
def test_no_such_policy(word: str, message: str) -> None:
    """A name that is none is told before anything boots, with those that there are."""
    result = subprocess.run([*DEMO, word], cwd=ROOT, capture_output=True, text=True)

    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith(f"demo: {message}")


def test_an_invalid_policy(tmp_path: Path) -> None:
    """A file that is no policy is told with its line."""
    (tmp_path / "p.toml").write_text("format = 1\n[otherwise]\n")
    result = subprocess.run([*DEMO, str(tmp_path / "p.toml")], cwd=ROOT, capture_output=True, text=True)

    assert (result.returncode, result.stdout) == (3, "")
    assert "p.toml:1:1: `name` is missing" in result.stderr


def test_no_kernel(tmp_path: Path) -> None:
    """Without kernels it says how to get them, and no traceback."""
    environment = {**os.environ, "SAFEMEM_KERNELS": "", "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True, env=environment)

    assert (result.returncode, result.stdout) == (3, "")
    assert "build it with `make kernels`" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["maintenance", "live-update-host"])
def test_a_policy_by_its_name_or_path(name: str) -> None:
    """Both ways to name one find the same file."""
    assert (
        demo.chosen(name)
        == demo.chosen(str(demo.POLICIES / f"{name}.toml"))
        == harness.REPOSITORY / f"policies/{name}.toml"
    )


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (Outcome(100, 95, 5 << 20, "poweroff"), "The guard kept 5 MiB out of the kernel's hands"),
        (Outcome(100, 3, 0, "poweroff"), "`x` lets such a boot use all memory: 97 pages of the guest are gone, on purpose."),
        (Outcome(100, 99, 0, "panic"), "but for 1 pages that the kernel itself booted in, the memory stayed untouched until the reset"),
        (Outcome(100, 99, 0, "reset"), "`x` does not let such a boot go on"),
        (Outcome(100, 99, 0, "halted"), "`x` does not let such a boot go on"),
    ],
)  # fmt: skip
def test_the_lesson(kept: Outcome, says: str) -> None:
    """Each end that a policy can have is told as what it is, and fits the table."""
    assert says in demo.lesson("x", kept)
    rows = demo.verdict("virtio-mem-guest", Outcome(65536, 693, 0, "poweroff"), kept)
    assert max(map(len, rows)) <= 80


def test_the_order_of_what_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """What the guest says of itself comes after the console that it wrote before, each piece of a line once."""
    told = demo.Told(verbose=False, act="Act 2")
    told("Linux version 7\nnoise\nLinux ver")
    told("sion 8\nKHO: disabling KHO revival\n")
    told.next = "a program asks"
    told("safemem: online-safe\n")
    told("noise\n")
    told.reached()

    assert [line.partition(" s  ")[2] or line for line in capsys.readouterr().out.splitlines()] == [
        "the outgoing kernel starts", "", "Act 2", "kexec: the next kernel starts",
        "it says, in line 2 of its console: KHO: disabling KHO revival", "safemem: online-safe", "a program asks",
    ]  # fmt: skip
