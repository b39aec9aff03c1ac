# SPDX-License-Identifier: MIT
"""The command line: exit codes, every message, nothing written on bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from safemem.cli import main
from tests.fakes import make_root

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
    assert any("[####" in line for line in lines)


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
    assert {"none", "accepted", "rejected", "orphaned", "unsupported", "unknown"} == {
        state["facts"]["handover"] for state in states
    }
    assert {"panic"} == {s["action"] for s in states if s["facts"]["handover"] not in ("none", "accepted")}
    assert all(s in run("simulate", DEFAULT, "--matrix").output for s in ("rejected", "online-safe", "panic"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--set", "hanover=none"], 2, "--set `hanover`: there is no such fact; did you mean `handover`?"),
        (["--set", "handover=rejectd"], 2, "`rejectd` is not one of none, accepted, rejected"),
        (["--set", "handover"], 2, "--set `handover`: expected FACT=VALUE"),
        (["--set", "kexec_count=many"], 2, "--set kexec_count: `many` is not a whole number"),
        (
            ["--root", "/nowhere"],
            3,
            "safemem: /nowhere/sys/kernel: there is no such folder; is sysfs mounted below /nowhere?",
        ),
        (["--state", "/nowhere"], 3, "safemem: /nowhere: no such file or directory"),
        (["--live", "--root", "/"], 2, "--live, --state and --root exclude each other"),
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


def test_unwritable_output(tmp_path: Path) -> None:
    """A folder that does not exist is named, status 1."""
    result = run("capture", "--root", str(make_root(tmp_path)), "-o", str(tmp_path / "no/file"))

    assert result.exit_code == 1
    assert f"{tmp_path}/no/file: no such file or directory" in result.output
