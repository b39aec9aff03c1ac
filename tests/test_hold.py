# SPDX-License-Identifier: MIT
"""`status` and `release` on fake roots: what is said and recorded; tests/vm/test_hold.py onlines for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from safemem import apply, boot, standing, watch
from safemem.cli import main
from safemem.model import Failure, Policy, Range, Rule
from tests.fakes import make_root
from tests.test_boot import install


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a machine on which a lost handover was held."""
    found = make_root(tmp_path, offered=True)
    install(found, otherwise=Rule("otherwise", "online-safe", message="handover lost"))
    assert boot.main(["--root", str(found)]) == 0
    return found


def run(root: Path, *words: str) -> Result:
    """Run a command on the machine."""
    return CliRunner().invoke(main, [*words, "--root", str(root)])


def settle(root: Path) -> None:
    """Let the fake blocks show what the kernel would after a write."""
    for state in (root / "sys/devices/system/memory").glob("memory*/state"):
        if state.read_text().startswith("online"):
            state.write_text("online\n")


def test_status_of_a_hold(root: Path) -> None:
    """The outcome first, then why, then what is held; the exit code says it too."""
    result = run(root, "status")

    assert result.exit_code == 4
    lines = result.stdout.splitlines()
    assert lines[0] == "online-safe  handover lost"
    assert "held      0x100000000-0x13fffffff  1 GiB  blocks 32-39: never used in this boot" in lines
    document = json.loads(run(root, "status", "--format", "json").stdout)
    assert (document["exit_code"], document["held"][0]["bytes"]) == (4, 1 << 30)


def test_status_of_a_dry_run(root: Path) -> None:
    """A decision that was not carried out is not in force, and the exit code does not say that it is."""
    path = root / "run/safemem/decision.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "result": {"dry_run": True}}))
    result = run(root, "status")

    assert (result.exit_code, "nothing: this was a dry run" in result.stdout) == (64, True)


def test_status_notices_somebody_else(root: Path) -> None:
    """A held block that is online without a release is a change, and the decision is only partly in force."""
    (root / "sys/devices/system/memory/memory35/state").write_text("online\n")
    result = run(root, "status")

    assert result.exit_code == 64
    assert "changed   0x118000000-0x11fffffff was held and is online now: somebody else did that" in result.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no decision was recorded in this boot: safemem did not run in the initramfs"),
        ("{", "is not JSON"),
        ('{"kind": "decision", "schema": 2}', "schema: 2 is newer"),
    ],
)
def test_no_decision(root: Path, text: str | None, says: str) -> None:
    """No record is a state of its own, for both commands, and nothing is changed."""
    path = root / "run/safemem/decision.json"
    path.unlink() if text is None else path.write_text(text)
    for words in (["status"], ["release", "--reason", "x"]):
        result = run(root, *words)
        assert (result.exit_code, says in result.stderr) == (6, True)
    assert (root / "sys/devices/system/memory/memory32/state").read_text() == "offline\n"


@pytest.mark.parametrize("text", ["{", "[1]", '[{"time": 1, "reason": "x", "ranges": ["y"]}]', '{"a": 1}'])
def test_a_damaged_list_of_releases(root: Path, text: str) -> None:
    """Not knowing what was released is no reason to guess in either direction."""
    (root / standing.RELEASES).write_text(text)
    result = run(root, "status")

    assert (result.exit_code, "released by hand cannot be read" in result.stderr) == (6, True)


def test_release_in_part_then_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges are rounded inwards, the reason is recorded, and only the whole release lets udev go."""
    carry_out = apply.carry_out

    def real(*values: object) -> apply.Result:
        result = carry_out(*values)  # type: ignore[arg-type]
        settle(root)
        return result._replace(problems=())

    monkeypatch.setattr(apply, "carry_out", real)
    assert run(root, "release", "0x104000000-0x11fffffff", "--reason", "guests migrated").exit_code == 0
    states = {n: (root / f"sys/devices/system/memory/memory{n}/state").read_text().strip() for n in range(32, 40)}
    assert [n for n, state in states.items() if state == "online"] == [33, 34, 35]
    assert (root / "run/udev/rules.d/40-vendor.rules").is_symlink()
    result = run(root, "status")
    assert result.exit_code == 4 and "guests migrated" in result.stdout and "changed" not in result.stdout

    assert run(root, "release", "--reason", "all of them").exit_code == 0
    assert not (root / "run/udev/rules.d/40-vendor.rules").is_symlink()
    assert (root / "run/safemem/arrivals").read_text().startswith("SAFEMEM_ARRIVALS=online_movable\n")
    assert run(root, "status").exit_code == 0
    assert len(json.loads((root / standing.RELEASES).read_text())) == 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["release"], 2, "Missing option '--reason'"),
        (["release", "--reason", " "], 2, "say why in one line"),
        (["release", "--reason", "a\nb"], 2, "say why in one line"),
        (["release", "0x5-0x1", "--reason", "x"], 2, "range `0x5-0x1` is backwards"),
        (["release", "0x0-0xfff", "--reason", "x"], 3, "nothing is held wholly inside 0x0-0xfff"),
    ],
)
def test_bad_releases(root: Path, words: list[str], code: int, says: str) -> None:
    """Nothing is onlined and nothing recorded."""
    result = run(root, *words)

    assert (result.exit_code, says in result.stderr) == (code, True)
    assert not (root / standing.RELEASES).exists()


def test_watch_refuses_another_policy(root: Path) -> None:
    """The daemon applies the decision of this boot, so it wants the policy that made it."""
    other = Path(__file__).resolve().parent.parent / "policies/maintenance.toml"
    result = run(root, "watch", "--policy", str(other))

    assert result.exit_code == 3
    assert "but this boot was decided by" in result.stderr


def test_watch_applies_the_same_engine_to_what_arrives(root: Path) -> None:
    """A block inside the safe region comes online, its neighbour does not, and what somebody onlined is named."""
    target = Policy("test", (), Rule("otherwise", "online-safe"), Failure("panic"), (Range(40 << 27, 41 << 27),))
    memory = root / "sys/devices/system/memory"
    for number in (40, 41):
        (memory / f"memory{number}").mkdir()
        (memory / f"memory{number}/state").write_text("offline\n")
    (memory / "memory35/state").write_text("online\n")
    decision, batch = watch.look(str(root), target)

    assert (memory / "memory40/state").read_text().startswith("online_movable")
    assert (memory / "memory41/state").read_text() == "offline\n"
    assert batch.loose == batch.left == (Range(35 << 27, 36 << 27),)
    assert decision.action == "online-safe"
