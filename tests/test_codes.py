# SPDX-License-Identifier: MIT
"""Exit codes stand in one table: help, manual page, README and units say what it says, and nobody else names a number."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path
from typing import get_args

import click
import pytest

from packages import man
from safemem.boot.model import Refused
from safemem.cli import codes, main
from safemem.cli.codes import Code
from safemem.host.verdict import Verdict

REPOSITORY = Path(__file__).resolve().parent.parent
COMMANDS = dict(man.walk(main, "safemem"))
#: Unit -> what it ends with and is no failure to systemd, and what it is not started again after.
UNITS = {
    "safemem-record.service": ({"held", "ended", "partly"}, set()),
    "safemem-metrics.service": ({"held", "ended", "unknown", "partly"}, set()),
    "safemem-watch.service": ({"unknown"}, {"invalid", "unknown"}),
    # It asks: whatever is not so is a failure, and what requires it does not start.
    "safemem-decided@.service": (set(), set()),
}


def refusals() -> list[type[Refused]]:
    """Return every kind of refusal, by loading every module."""
    for path in (REPOSITORY / "safemem").rglob("*.py"):
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        __import__(name)
    found, todo = [Refused], [Refused]
    while todo:
        below = todo.pop().__subclasses__()
        found += below
        todo += below
    return found


def test_people_script_against_these() -> None:
    """Numbers and names are fixed by the design."""
    assert {code.name.lower(): int(code) for code in Code} == {
        "done": 0, "failure": 1, "usage": 2, "invalid": 3, "held": 4, "ended": 5, "unknown": 6, "partly": 64, "interrupted": 130,
    }  # fmt: skip


def test_every_verdict_and_every_refusal_has_a_code() -> None:
    """None of the words that become a code is unknown to the table."""
    assert [int(codes.of(name)) for name in get_args(Verdict)] == [0, 4, 5, 64, 6]
    assert {codes.of(refusal.kind) for refusal in refusals()} == {Code.FAILURE, Code.INVALID, Code.UNKNOWN}
    assert click.UsageError("").exit_code == Code.USAGE


def test_readme() -> None:
    """The table in the README is this one."""
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert rows == [(str(int(code)), code.meaning) for code in Code]


def test_manual_page() -> None:
    """EXIT STATUS is the table, and each command's own codes are in what it says of itself."""
    page = man.command_page()
    assert f".SH EXIT STATUS\n{codes.listing()}\n" in page
    for name, command in COMMANDS.items():
        found = getattr(command.callback, "codes", ())
        (said,) = re.findall(r"\n\nExit code: (.*)\.$", command.help or "") if found else [""]
        assert [int(number) for number in re.findall(r"(?:^|; )(\d+) ", said)] == list(found), name
        assert man.roff(said) in page


def test_no_help_says_codes_by_itself() -> None:
    """What a command ends with is declared, not written into its text."""
    for path in sorted((REPOSITORY / "safemem/cli").glob("*.py")):
        assert path.name == "codes.py" or "Exit code" not in path.read_text(), path


@pytest.mark.parametrize("unit", UNITS)
def test_units(unit: str) -> None:
    """systemd takes for success and failure what the command that it starts means by its codes."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(REPOSITORY / "systemd" / unit)
    service = parser["Service"]
    name = " ".join(service["ExecStart"].split()[:2]).removeprefix("/usr/bin/")
    may = {code.name.lower() for code in getattr(COMMANDS[name].callback, "codes", ())}
    good, final = UNITS[unit]

    assert service.get("SuccessExitStatus", "").split() == [
        str(int(codes.of(word))) for word in sorted(good, key=codes.of)
    ]
    assert service.get("RestartPreventExitStatus", "").split() == [
        str(int(codes.of(word))) for word in sorted(final, key=codes.of)
    ]
    assert good | final <= may, "the command does not say that it ends so"
    # A unit that keeps or writes something does so for every decision; what it could not do is a failure.
    assert not good or may - good - final <= {"done", "failure", "unknown"}


def test_every_unit_with_a_command_is_known() -> None:
    """A new one has to say which codes are no failure."""
    units = (REPOSITORY / "systemd").glob("*.service")
    assert {path.name for path in units if "ExecStart=/usr/bin/safemem" in path.read_text()} == set(UNITS)


def numbers(node: ast.AST) -> list[int]:
    """Return the whole numbers that stand in an expression."""
    found = (item.value for item in ast.walk(node) if isinstance(item, ast.Constant))
    return [value for value in found if type(value) is int]


@pytest.mark.parametrize("room", ["cli", "host", "render"])
def test_no_number_elsewhere(room: str) -> None:
    """Whoever ends with a code, or compares one, names it."""
    for path in sorted((REPOSITORY / "safemem" / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                ends = [*node.args, *(word.value for word in node.keywords)] if name in ("exit", "_exit") else []
                ends += [word.value for word in node.keywords if word.arg == "exit_code"]
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = {getattr(target, "attr", getattr(target, "id", "")) for target in targets}
                ends = [node.value] if "exit_code" in names and node.value else []
            elif isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                ends = (
                    sides
                    if any(getattr(side, "attr", getattr(side, "id", "")) == "exit_code" for side in sides)
                    else []
                )
            else:
                continue
            assert not [number for end in ends for number in numbers(end)], f"{path}:{node.lineno}"
