# SPDX-License-Identifier: MIT
"""Masks in the real root on fake roots; tests/vm/test_debian_hold.py mounts for real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from safemem.boot import main as boot
from safemem.boot import record
from safemem.boot.model import Rule
from safemem.host import doctor, standing
from safemem.realroot import hold as realroot
from safemem.realroot import udevrules
from tests.fakes import make_root
from tests.kit import install

RULE = 'SUBSYSTEM=="memory", ACTION=="add", ATTR{state}="online"\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a machine on which a lost handover was held, with a rule of its own under /usr."""
    found = make_root(tmp_path, offered=True)
    install(found, otherwise=Rule("otherwise", "online-safe", message="handover lost"))
    assert boot.main(["--root", str(found)]) == 0
    (found / "usr/lib/udev/rules.d").mkdir(parents=True, exist_ok=True)
    (found / "usr/lib/udev/rules.d/55-own.rules").write_text(RULE)
    return found


def test_masks_what_this_root_has_and_takes_it_back(root: Path) -> None:
    """A rule that the archive did not know is masked, twice is once, and a release leaves nothing."""
    for _ in range(2):
        assert realroot.main(["--root", str(root)]) == 0
    assert (root / "run/udev/rules.d/55-own.rules").readlink() == Path("/dev/null")
    assert (root / "run/systemd/system/daxdev-reconfigure@.service").readlink() == Path("/dev/null")
    assert udevrules.find(str(root)) == []
    lines = (root / realroot.MASKED).read_text().splitlines()
    assert len(lines) == len(set(lines)) and "run/udev/rules.d/55-own.rules" in lines

    assert realroot.release(str(root)) == []
    assert not (root / realroot.MASKED).exists()
    assert not list((root / "run/systemd/system").iterdir())
    assert [item.file for item in udevrules.find(str(root))] == ["usr/lib/udev/rules.d/55-own.rules"]


def test_what_cannot_be_masked_is_said(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """A file in /etc that cannot be covered: the kernel log, the record, `status` and `doctor` say so."""
    (root / "etc/udev/rules.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/udev/rules.d/55-own.rules").write_text(RULE)
    monkeypatch.setattr(realroot, "_MOUNT", "/nonexistent/mount")

    assert realroot.main(["--root", str(root)]) == 1
    why = "could not be masked, so it may online held memory: /nonexistent/mount: No such file or directory"
    assert why in (root / "dev/kmsg").read_text() or why in capsys.readouterr().err
    assert standing.read(str(root)).verdict == "partly"
    found = {(item.code, item.severity) for item in doctor.examine(str(root))}
    assert {("not-applied", "warning"), ("udev-rule", "severe")} <= found
    result = json.loads((root / "run/safemem/decision.json").read_text())["result"]
    problems = result["problems"]
    assert len(result["problem_codes"]) == len(problems) and "still-onlines" in result["problem_codes"]
    assert any("still onlines memory, although it was to be masked" in text for text in problems)


def test_nothing_is_masked_when_all_memory_may_be_used(root: Path) -> None:
    """After a release, and after online-all, vendors' rules are none of our business."""
    (root / record.ENV).write_text("SAFEMEM_ARRIVALS=online_movable\n")
    assert realroot.main(["--root", str(root)]) == 0
    assert not (root / realroot.MASKED).exists()


def test_a_dry_run_masks_nothing(root: Path) -> None:
    """A decision that was not carried out hides no rule."""
    path = root / record.ENV
    path.write_text(path.read_text().replace("SAFEMEM_DRY_RUN=no", "SAFEMEM_DRY_RUN=yes"))
    assert realroot.main(["--root", str(root)]) == 0
    assert not (root / realroot.MASKED).exists()


def test_without_arrivals_it_holds(root: Path) -> None:
    """A missing file is no permission."""
    (root / record.ENV).unlink()
    assert realroot.main(["--root", str(root)]) == 0
    assert udevrules.find(str(root)) == []


def test_doctor_misses_the_unit(root: Path) -> None:
    """A hold whose real root was never masked is a finding, and none afterwards."""
    assert "real-root-not-masked" in {item.code for item in doctor.examine(str(root))}
    realroot.main(["--root", str(root)])
    assert "real-root-not-masked" not in {item.code for item in doctor.examine(str(root))}


def test_runs_on_the_bare_interpreter(root: Path) -> None:
    """The unit's program needs no package beyond the standard library."""
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from safemem.realroot.hold import main; sys.exit(main(sys.argv[1:]))"
    package = str(Path(realroot.__file__).parent.parent.parent)
    subprocess.run([sys.executable, "-I", "-S", "-c", code, package, "--root", str(root)], check=True)
    assert udevrules.find(str(root)) == []
