# SPDX-License-Identifier: MIT
"""Maintenance mode on fake roots; tests/vm/test_distro.py boots into it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from safemem.boot import main as boot
from safemem.boot import record
from safemem.boot.model import Rule
from safemem.cli import main
from safemem.initramfs.on_failure import UNIT_LINES
from safemem.realroot import maintenance
from tests.fakes import make_root
from tests.kit import install

HERE = Path(__file__).resolve().parent.parent
PACKAGE = str(Path(maintenance.__file__).parent.parent.parent)
MESSAGE = r"lost: \\d is no escape"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a machine that is in maintenance, with two consoles."""
    found = make_root(tmp_path, offered=True)
    install(found, otherwise=Rule("otherwise", "online-safe", message=MESSAGE, enter="maintenance"))
    assert boot.main(["--root", str(found)]) == 0
    (found / "sys/class/tty/console").mkdir(parents=True)
    (found / maintenance.CONSOLES).write_text("tty0 ttyS0\n")
    for name in ("tty0", "ttyS0"):
        (found / "dev" / name).touch()
    return found


def test_says_why_everywhere(root: Path) -> None:
    """On every console, before and after each login; what getty would take for an escape is none."""
    assert maintenance.main(["--root", str(root)]) == 0

    line = f"  online-safe: {MESSAGE}"
    shown = (root / maintenance.MOTD).read_text().splitlines()
    assert line in shown
    assert "  handover rejected: offered, KHO is on, and no incoming tree is shown" in shown
    assert (
        "  memory when this was decided: 1 GiB held (50.0 %), 1 GiB exposed (50.0 %): only guarded and held memory was"
        " never in use in this boot"
    ) in shown
    assert line.replace("\\", "\\\\") in (root / maintenance.ISSUE).read_text().splitlines()
    for name in ("tty0", "ttyS0"):
        assert line in (root / "dev" / name).read_text().splitlines()
    assert "  systemctl isolate multi-user.target  go on" in (root / maintenance.MOTD).read_text()
    assert (root / maintenance.ISSUE).stat().st_mode & 0o777 == 0o644


def test_what_cannot_be_written_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One console less does not silence the other; without a record the ways forward are still shown."""
    (root / "dev/tty0").unlink()
    (root / record.RECORD).write_text("{")

    assert maintenance.main(["--root", str(root)]) == 1
    assert "safemem: /dev/tty0: no such file or directory" in capsys.readouterr().err
    text = (root / "dev/ttyS0").read_text()
    assert "the record of the decision cannot be read" in text and "safemem release --reason TEXT" in text


def test_a_record_that_was_not_completed_has_no_numbers(root: Path) -> None:
    """What is known is said all the same."""
    document = json.loads((root / record.RECORD).read_text())
    del document["totals"], document["account"]
    (root / record.RECORD).write_text(json.dumps(document))
    shown = maintenance.text(str(root))
    assert f"  online-safe: {MESSAGE}" in shown
    assert "  memory when this was decided: not known, the record was not completed" in shown


def test_status_shows_the_ways(root: Path) -> None:
    """The same lines as at the login."""
    lines = CliRunner().invoke(main, ["status", "--root", str(root)]).output.splitlines()
    assert f"next    {maintenance.ways()[1]}" in lines


@pytest.mark.parametrize(
    ("enter", "dry", "there"), [("maintenance", False, True), ("", False, False), ("maintenance", True, False)]
)
def test_generator(tmp_path: Path, enter: str, dry: bool, there: bool) -> None:
    """The default target changes if the decision says so; words of a policy are no decision, nor is a dry run."""
    machine = make_root(tmp_path / "machine", offered=True)
    install(machine, otherwise=Rule("otherwise", "online-safe", message='"enter":"maintenance"', enter=enter))
    assert boot.main(["--root", str(machine)]) == 0
    path = machine / record.ENV
    if dry:
        path.write_text(path.read_text().replace("SAFEMEM_DRY_RUN=no", "SAFEMEM_DRY_RUN=yes"))
    units = tmp_path / "units"
    (units / "multi-user.target.wants").mkdir(parents=True)
    for name in ("ssh.service", "guests.service"):
        (units / "multi-user.target.wants" / name).touch()
    script = (HERE / "systemd/safemem-generator").read_text().replace("/run/safemem", str(path.parent))
    (tmp_path / "generator").write_text(script.replace("units=/usr/lib/systemd/system", f"units={units}"))
    folders = [tmp_path / name for name in ("normal", "early", "late")]
    for folder in folders:
        folder.mkdir()

    subprocess.run(["sh", tmp_path / "generator", *folders], check=True)

    assert (folders[1] / "default.target").is_symlink() == there
    wants = folders[0] / "safemem-maintenance.target.wants"
    assert ([item.name for item in wants.iterdir()] if wants.exists() else []) == (["ssh.service"] if there else [])


@pytest.mark.parametrize("left", ["cut off", "only the record", "a folder"])
def test_generator_with_a_decision_that_cannot_be_read(tmp_path: Path, left: str) -> None:
    """There was a decision, and what it said is lost: the boot goes to maintenance, where somebody can look."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "decision.json").write_text("{}")
    if left == "cut off":
        (state / "decision.env").write_text("SAFEMEM_ARRIVALS=online\nSAFEMEM_ENTER=\nSAFEMEM_DRY_RUN=no\n")
    elif left == "a folder":
        (state / "decision.env").mkdir()
    script = (HERE / "systemd/safemem-generator").read_text().replace("/run/safemem", str(state))
    (tmp_path / "generator").write_text(script)
    folders = [tmp_path / name for name in ("normal", "early", "late")]
    for folder in folders:
        folder.mkdir()
    subprocess.run(["sh", tmp_path / "generator", *folders], check=True)

    assert (folders[1] / "default.target").is_symlink()


@pytest.mark.parametrize("action", ["panic", "reboot", "halt", "continue"])
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.needs("systemd-analyze")
def test_generator_lets_udev_wait_for_the_hold(tmp_path: Path, action: str, held: bool) -> None:
    """Where the rule ends a boot that falls short, udev needs the hold, whose failure ends the boot as on_failure's would."""
    machine = make_root(tmp_path / "machine", offered=True)
    install(machine, otherwise=Rule("otherwise", "online-safe" if held else "online-all", on_shortfall=action))
    boot.main(["--root", str(machine)])
    # What refuses on a fake root ends it; the one that goes on is what is looked at.
    text = (machine / record.ENV).read_text().replace("FINISHED=no", "FINISHED=yes")
    (machine / record.ENV).write_text(text)
    script = (HERE / "systemd/safemem-generator").read_text().replace("/run/safemem", str(machine / "run/safemem"))
    (tmp_path / "generator").write_text(script)
    folders = [tmp_path / name for name in ("normal", "early", "late")]
    for folder in folders:
        folder.mkdir()
    subprocess.run(["sh", tmp_path / "generator", *folders], check=True)

    made = {path.parent.name: path.read_text() for path in folders[0].glob("*/50-safemem.conf")}
    if action == "continue" or not held:
        assert made == {}
        return
    lines = UNIT_LINES[action].replace("safemem-panic.service", "safemem-shortfall.service")
    needs = "[Unit]\nRequires=safemem-hold.service\nAfter=safemem-hold.service\n"
    assert made == {
        "safemem-hold.service.d": f"[Unit]\nConditionPathExists=\n{lines}\n",
        "systemd-udevd.service.d": needs,
        "systemd-udev-trigger.service.d": needs,
    }
    for unit in ("hold", "mask"):
        (folders[0] / f"safemem-{unit}.service").write_text(
            (HERE / f"systemd/safemem-{unit}.service").read_text().replace("/usr/lib/safemem/hold", "/bin/true")
        )
    units = [str(folders[0] / f"safemem-{unit}.service") for unit in ("hold", "shortfall", "mask")]
    words = ["systemd-analyze", "verify", "--man=no", *units]
    result = subprocess.run(words, capture_output=True, text=True)
    assert not [line for line in result.stderr.splitlines() if "safemem" in line and "halt-immediate" not in line]


def test_generator_without_a_decision(tmp_path: Path) -> None:
    """Nothing happens."""
    script = (HERE / "systemd/safemem-generator").read_text().replace("/run/safemem", str(tmp_path / "none"))
    (tmp_path / "generator").write_text(script)
    result = subprocess.run(["sh", tmp_path / "generator", "a", "b", "c"], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_standard_library_only() -> None:
    """The unit's own interpreter has nothing else."""
    code = f"import sys; sys.path.insert(0, {PACKAGE!r}); import safemem.realroot.maintenance"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
