# SPDX-License-Identifier: MIT
"""Machine formats: a document also where nothing could be done; and files of which one is bad, and names of policies."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from safemem.boot import main as boot
from safemem.boot.model import Rule
from safemem.cli import main
from safemem.policy import installed
from safemem.render.text import folded
from tests.fakes import make_root
from tests.kit import POLICY, install

CASES = POLICY.with_name("minimal.cases.toml")
BAD = "format = 2\n"


def run(*words: object, **more: Any) -> Result:
    """Run a command."""
    return CliRunner().invoke(main, [str(word) for word in words], **more)


#: Command -> what cannot be done, with its code; FILE is no policy, ROOT no machine.
FAILS: dict[str, int] = {
    "diff FILE minimal": 3,
    "diff minimal none/there": 3,
    "simulate FILE": 3,
    "simulate minimal --set x=1": 2,
    "simulate minimal --live --root ROOT": 2,
    "status --root ROOT": 6,
    "previous --root ROOT": 1,
    "handover-args --root ROOT": 1,
    "handover-args --kexec-command": 2,
    "layout --root ROOT": 1,
    "initramfs check --root ROOT": 6,
    "initramfs check FILE": 6,
}


@pytest.mark.parametrize("words", FAILS)
def test_a_failure_is_a_document(tmp_path: Path, words: str) -> None:
    """Of one kind in every command, with the lines that stand on stderr and the exit code."""
    (tmp_path / "file").write_text(BAD)
    given = [{"FILE": tmp_path / "file", "ROOT": tmp_path}.get(word, word) for word in words.split()]
    result = run(*given, "--format", "json")
    document = json.loads(result.stdout)

    assert result.exit_code == FAILS[words], result.output
    assert sorted(document) == ["command", "errors", "exit_code", "kind", "schema"]
    command = " ".join(words.split()[: 2 if words.startswith("initramfs") else 1])
    assert (document["schema"], document["kind"], document["command"], document["exit_code"]) == (
        1, "error", command, FAILS[words],
    )  # fmt: skip
    assert document["errors"] and result.stderr.endswith("".join(f"safemem: {line}\n" for line in document["errors"]))
    text = run(*given)
    assert (text.stdout, text.exit_code, text.stderr) == ("", result.exit_code, result.stderr)


def test_every_document_has_its_exit_code(tmp_path: Path) -> None:
    """Whatever it says."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=Rule("otherwise", "online-safe"))
    assert boot.main(["--root", str(root)]) == 0
    documents: dict[str, list[object]] = {
        "check": ["check", POLICY],
        "diff": ["diff", "minimal", "maintenance"],
        "doctor": ["doctor", "--root", root],
        "matrix": ["simulate", "minimal", "--matrix"],
        "simulation": ["simulate", "minimal"],
        "status": ["status", "--root", root],
        "test": ["test", CASES],
    }
    for kind, words in documents.items():
        result = run(*words, "--format", "json")
        document = json.loads(result.stdout)
        assert (document["schema"], document["kind"]) == (1, kind)
        assert (document["exit_code"], result.stderr) == (result.exit_code, "")


def test_check_goes_on_after_a_bad_file(tmp_path: Path) -> None:
    """The others are looked at; what is no policy has its place in every format, and is told on stderr in all."""
    bad = tmp_path / "bad.toml"
    bad.write_text(POLICY.read_text().replace("\nname", "\nnmae", 1))
    files = (POLICY, bad, tmp_path / "none.toml", POLICY.with_name("minimal.toml"))
    told = [
        f"{bad}:{{}}:1: unknown key `nmae`; did you mean `name`?",
        f"{tmp_path}/none.toml: no such file or directory",
    ]
    line = next(number for number, text in enumerate(bad.read_text().splitlines(), 1) if text.startswith("nmae"))
    errors = {form: run("check", *files, "--format", form) for form in ("text", "json", "sarif", "junit")}

    for result in errors.values():
        assert result.exit_code == 3
        assert f"safemem: {told[0].format(line)}\n" in result.stderr and f"safemem: {told[1]}\n" in result.stderr
    text = errors["text"].stdout
    assert [name for name in map(str, files) if f"\n{name}: all invariants hold" in f"\n{text}"] == [
        str(files[0]),
        str(files[3]),
    ]
    policies = json.loads(errors["json"].stdout)["policies"]
    assert [item["policy"] for item in policies] == ["live-update-host", None, None, "minimal"]
    assert {item["code"] for item in policies[1]["findings"]} == {"invalid-policy"}
    assert ("invalid-policy", line) in [(item["code"], item["line"]) for item in policies[1]["findings"]]
    sarif = json.loads(errors["sarif"].stdout)["runs"][0]["results"]
    assert {item["ruleId"] for item in sarif if item["level"] == "error"} == {"invalid-policy"}
    suites = ElementTree.fromstring(errors["junit"].stdout).findall("testsuite")
    assert [(suite.get("name"), suite.get("failures")) for suite in suites] == [
        (str(files[0]), "0"), (str(bad), "1"), (str(files[2]), "1"), (str(files[3]), "0"),
    ]  # fmt: skip


def test_test_goes_on_after_a_bad_file(tmp_path: Path) -> None:
    """The same holds for cases; that a file cannot be run counts for more than a case that does not hold."""
    (tmp_path / "bad.cases.toml").write_text("[[case]]\nnam = 1\n")
    failing = tmp_path / "failing.cases.toml"
    failing.write_text(
        f'policy = "{POLICY}"\n[[case]]\nname = "no"\nstate = {{ handover = "none" }}\naction = "panic"\nrule = "otherwise"\n'
    )
    results = {
        form: run("test", tmp_path / "bad.cases.toml", failing, CASES, "--format", form)
        for form in ("text", "json", "junit")
    }

    for result in results.values():
        assert result.exit_code == 3
        assert f"safemem: {tmp_path}/bad.cases.toml:2:1: unknown key `nam`" in result.stderr
    assert f"{failing}: 0 of 1 cases hold\n" in results["text"].stdout
    document = json.loads(results["json"].stdout)
    assert (document["kind"], document["exit_code"]) == ("test", 3)
    found = {Path(item["file"]).name: item for item in document["files"]}
    assert found["bad.cases.toml"]["policy"] is None and len(found["bad.cases.toml"]["errors"]) > 1
    (case,) = found["failing.cases.toml"]["cases"]
    assert (case["name"], case["line"], case["holds"], case["example"]) == ("no", 3, False, {"handover": "none"})
    assert case["fault"].startswith("rule is ") or case["fault"].startswith("action is ")
    good = found["minimal.cases.toml"]
    assert all(item["holds"] and item["fault"] is None for item in good["cases"])
    assert good["covered"] == good["states"] == 21 and set(good["rules"].values()) == {True}
    suites = ElementTree.fromstring(results["junit"].stdout).findall("testsuite")
    assert [suite.get("failures") for suite in suites] == ["1", "1", "0"]
    assert good["missing"] is None
    asked = run("test", failing, "--coverage", "--format", "json")
    assert asked.exit_code == 1 and "\n[[case]]\n" in json.loads(asked.stdout)["files"][0]["missing"]


@pytest.mark.parametrize("form", ["sarif", "junit"])
def test_what_a_build_server_reads_of_a_mistake_in_usage(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """A run that failed, not an empty file."""
    monkeypatch.setattr(installed, "POLICY", "none/there")
    result = run("check", "--format", form)
    assert result.exit_code == 2
    said = "which POLICY? There is no /none/there"
    if form == "sarif":
        (one,) = json.loads(result.stdout)["runs"]
        assert one["results"] == [] and one["invocations"] == [
            {
                "executionSuccessful": False,
                "toolExecutionNotifications": [{"level": "error", "message": {"text": said}}],
            }
        ]
        return
    (suite,) = ElementTree.fromstring(result.stdout).findall("testsuite")
    assert (suite.get("name"), suite.get("failures")) == ("check", "1")


# ---- which policy is meant


def test_check_takes_the_operators_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is one; otherwise that is said."""
    mine = tmp_path / "policy.toml"
    monkeypatch.setattr(installed, "POLICY", str(mine)[1:])
    result = run("check")
    assert result.exit_code == 2 and result.stderr.endswith(f"\nsafemem: which POLICY? There is no {mine}\n")
    mine.write_text(POLICY.read_text())
    result = run("check")
    assert result.exit_code == 0 and f"\n{mine}: all invariants hold" in f"\n{result.stdout}"


def test_a_name_alone_is_a_shipped_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every command; a file of that name comes first, and what is neither is told with the names that there are."""
    monkeypatch.chdir(tmp_path)
    for words in (["check", "maintenance"], ["simulate", "maintenance", "--set", "handover=none"], ["diff", "maintenance", "maintenance"],
                  ["compile", "maintenance", "-o", "out"]):  # fmt: skip
        assert run(*words).exit_code == 0, words
    (tmp_path / "maintenance").write_text(BAD)
    assert "safemem: maintenance:1:1: format" in run("check", "maintenance").stderr
    for name in ("maintenanc", "minimal.cases"):
        result = run("simulate", name)
        assert result.exit_code == 3 and result.stderr == (
            f"safemem: {name}: there is no such file, and of policies that are shipped only {', '.join(sorted(path.stem for path in POLICY.parent.glob('*.toml') if '.cases' not in path.name))}\n"
        )
    assert run("simulate", "minimal.toml").stderr == "safemem: minimal.toml: no such file or directory\n"


def test_standard_input_is_a_policy() -> None:
    """For `-`, with its places."""
    text = POLICY.read_text()
    assert run("check", "-", input=text).stdout.splitlines()[-1].startswith("-: all invariants hold")
    result = run("check", "-", input=BAD)
    assert (result.exit_code, "safemem: -:1:1: format: `2` is not a format" in result.stderr) == (3, True)
    assert run("simulate", "-", "--set", "handover=none", input=text).exit_code == 0


# ---- widths


@pytest.mark.parametrize("width", [50, 80])
def test_doctor_fits_a_terminal(tmp_path: Path, width: int) -> None:
    """No line is longer than the terminal is wide, but for words that are; where there is none nothing is folded."""
    make_root(tmp_path)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-c", "from safemem.cli import main; main()", "doctor", "--root", str(tmp_path)]
    process = subprocess.Popen(words, stdout=theirs, env={**os.environ, "COLUMNS": str(width), "TERM": "dumb"})
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 1 << 16):
            seen += data
    except OSError:  # EIO is the end of a terminal
        pass
    process.wait()
    os.close(ours)
    lines = seen.decode().splitlines()
    assert len(lines) > 10
    assert [line for line in lines if len(line) > width and " " in line.strip()] == []
    piped = subprocess.run(words, capture_output=True, text=True).stdout
    assert " ".join(" ".join(lines).split()) == " ".join(piped.split())
    assert max(map(len, piped.splitlines())) > width


def test_folded() -> None:
    """The lead of the first line stays, and 0 folds nothing."""
    assert folded("    seen: one two three", 14, "          ") == ["    seen: one", "          two", "          three"]
    assert folded("    a" * 50, 0, "") == ["    a" * 50]
    assert folded("error: x", 3, "    ") == ["error:", "    x"]
