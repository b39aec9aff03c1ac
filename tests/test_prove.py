# SPDX-License-Identifier: MIT
"""`check`, `diff`, `test` and `schema` as a user meets them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from click.testing import CliRunner, Result

from safemem.cli import main
from safemem.policy import invariants, load, reference
from safemem.policy.catalogue import CODES
from safemem.policy.space import Outcomes, Space
from tests.fakes import SHIPPED

ROOT = Path(__file__).resolve().parent.parent
BAD = ROOT / "tests/bad"
GOOD = ROOT / "policies/live-update-host.toml"


def run(*words: object) -> Result:
    """Run a command."""
    return CliRunner().invoke(main, [str(word) for word in words])


def test_check_says_where_why_and_what_to_do() -> None:
    """An error has its place, a state to try and a way out; the exit code is 3."""
    result = run("check", BAD / "exposes-handover.toml")
    lines = result.stdout.splitlines()

    assert result.exit_code == 3
    assert lines[0].startswith(f"{BAD}/exposes-handover.toml:7:1: error: a handover that was lost ends in online-all")
    assert lines[1] == f"    try: safemem simulate {BAD}/exposes-handover.toml --set handover=lost"
    assert lines[2].startswith("    help: use online-safe or panic")
    shown = run(*lines[1].split()[2:])
    assert "so `otherwise` decides" not in shown.stdout and shown.stdout.startswith("online-all")


def test_check_counts_in_words(tmp_path: Path) -> None:
    """One is one, and two are several."""
    (tmp_path / "two.toml").write_text((BAD / "unreachable-rule.toml").read_text().replace("[otherwise]", """[[rule]]
name = "again"
when = { handover = "accepted", luo = "busy" }
action = "panic"
[otherwise]"""))  # fmt: skip

    assert ": 1 error (" in run("check", BAD / "unreachable-rule.toml").stdout
    assert ": 2 errors, 1 warning (" in run("check", tmp_path / "two.toml").stdout
    assert ": all invariants hold, 3 warnings (" in run("check", BAD / "failure-loop.toml").stdout


def test_check_exit_codes() -> None:
    """Warnings count only with --strict; one bad policy among good ones is enough."""
    assert run("check", GOOD).exit_code == 0
    assert run("check", BAD / "failure-loop.toml").exit_code == 0
    assert run("check", "--strict", BAD / "failure-loop.toml").exit_code == 3
    assert run("check", GOOD, BAD / "reboot-loop.toml").exit_code == 3
    assert run("check", GOOD, "nowhere.toml").exit_code == 3
    assert run("check").exit_code == 2


def test_check_formats() -> None:
    """Each format holds the same findings."""
    path = BAD / "unreachable-rule.toml"
    document = json.loads(run("check", path, "--format", "json").stdout)
    assert (document["schema"], document["kind"]) == (1, "check")
    finding = document["policies"][0]["findings"][0]
    assert (finding["code"], finding["line"], finding["column"]) == ("unreachable-rule", 9, 1)

    suite = ElementTree.fromstring(run("check", path, "--format", "junit").stdout)[0]
    assert (suite.get("tests"), suite.get("failures")) == (str(len(CODES)), "1")
    assert [case.get("name") for case in suite if len(case)] == ["unreachable-rule"]

    sarif = json.loads(run("check", path, "--format", "sarif").stdout)
    jsonschema.validate(sarif, SARIF)
    driver = sarif["runs"][0]["tool"]["driver"]
    first = sarif["runs"][0]["results"][0]
    assert driver["rules"][first["ruleIndex"]]["id"] == first["ruleId"] == "unreachable-rule"
    assert first["locations"][0]["physicalLocation"]["region"] == {"startLine": 9, "startColumn": 1}


#: What SARIF 2.1.0 asks of the parts that we write, closed, so that nothing else slips in.
SARIF: dict[str, Any] = {
    "type": "object", "additionalProperties": False, "required": ["version", "runs"],
    "properties": {"$schema": {"type": "string"}, "version": {"const": "2.1.0"}, "runs": {"type": "array", "items": {
        "type": "object", "additionalProperties": False, "required": ["tool"],
        "properties": {
            "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
            "tool": {"type": "object", "required": ["driver"], "additionalProperties": False, "properties": {"driver": {
                "type": "object", "required": ["name"], "additionalProperties": False,
                "properties": {"name": {"type": "string"}, "version": {"type": "string"}, "rules": {"type": "array", "uniqueItems": True, "items": {
                    "type": "object", "required": ["id"], "additionalProperties": False, "properties": {
                        "id": {"type": "string"}, "shortDescription": {"type": "object", "required": ["text"]},
                        "defaultConfiguration": {"type": "object", "properties": {"level": {"enum": ["none", "note", "warning", "error"]}}}}}}}}}},
            "results": {"type": "array", "items": {
                "type": "object", "required": ["message"], "additionalProperties": False, "properties": {
                    "ruleId": {"type": "string"}, "ruleIndex": {"type": "integer", "minimum": -1},
                    "level": {"enum": ["none", "note", "warning", "error"]},
                    "message": {"type": "object", "required": ["text"]}, "properties": {"type": "object"},
                    "locations": {"type": "array", "items": {"type": "object", "properties": {"physicalLocation": {"type": "object", "properties": {
                        "artifactLocation": {"type": "object", "required": ["uri"]},
                        "region": {"type": "object", "properties": {"startLine": {"type": "integer", "minimum": 1},
                                                                    "startColumn": {"type": "integer", "minimum": 1}}}}}}}}}}}}}}},
}  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_check_is_quick(path: Path) -> None:
    """Every state of a shipped policy in under a second of processor time, interpreter start included."""
    times = []
    for _ in range(3):
        # What else runs on this machine does not count.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([Path(sys.executable).parent / "safemem", "check", path], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    assert min(times) < 1


def test_diff(tmp_path: Path) -> None:
    """What is looser comes first; the exit code is for scripts."""
    text = GOOD.read_text()
    looser = tmp_path / "looser.toml"
    looser.write_text(
        text.replace('action = "panic"\nmessage = "handover', 'action = "online-safe"\nmessage = "handover')
    )
    same = tmp_path / "same.toml"
    same.write_text(text)
    reworded = tmp_path / "reworded.toml"
    reworded.write_text(text.replace("no handover was offered", "cold boot"))

    assert run("diff", GOOD, same).exit_code == 0
    assert "equal" in run("diff", GOOD, same).stdout
    result = run("diff", GOOD, looser)
    assert result.exit_code == 5
    assert result.stdout.startswith(
        "looser in 60 of 96 states: handover lost or rejected or orphaned or unsupported or unknown\n  - panic by `otherwise`"
    )
    assert run("diff", looser, GOOD).exit_code == 4
    assert run("diff", looser, GOOD).stdout.startswith("stricter in 60 of 96 states")
    result = run("diff", GOOD, reworded)
    assert result.exit_code == 4 and result.stdout.startswith("reason in 6 of 96 states: handover none")
    document = json.loads(run("diff", GOOD, looser, "--format", "json").stdout)
    assert (document["verdict"], document["changes"][0]["new"]["action"]) == ("looser", "online-safe")


@pytest.mark.parametrize(
    ("before", "after", "says", "code"),
    [
        ('["kho-scratch", "cmdline"]', '["none"]', "looser\n  - online-safe by `safe_region` (sources kho-scratch, cmdline)", 5),
        ("[safe_region]", "allow_cmdline_override = true\n[safe_region]", "looser\n", 5),
        ("[safe_region]", "open_luo = true\n[safe_region]", "stricter\n", 4),
        ("[safe_region]", "trust_guard = true\n[safe_region]", "looser\n", 5),
        ("[safe_region]", 'keep_crashkernel = "256MiB"\n[safe_region]', "stricter\n", 4),
        ('[on_failure]\naction = "panic"', '[on_failure]\naction = "halt"', "other\n  - panic by `on_failure`", 4),
        ("[otherwise]", '[[memory]]\nnode = 1\nhold = true\n[otherwise]', "stricter\n", 4),
    ],
)  # fmt: skip
def test_diff_outside_the_rules(tmp_path: Path, before: str, after: str, says: str, code: int) -> None:
    """What stands beside the rules is compared too."""
    (tmp_path / "new.toml").write_text(GOOD.read_text().replace(before, after))
    result = run("diff", GOOD, tmp_path / "new.toml")

    assert result.stdout.startswith(says)
    assert result.exit_code == code


def test_cases(tmp_path: Path) -> None:
    """A case with the right answer from the wrong rule fails, with the state in which it does."""
    (tmp_path / "live-update-host.toml").write_text(GOOD.read_text())
    good = (ROOT / "policies/live-update-host.cases.toml").read_text()
    path = tmp_path / "x.cases.toml"
    path.write_text(good)
    assert run("test", path, "--threshold", 100).exit_code == 0

    path.write_text(good.replace('rule = "otherwise"', 'rule = "clean boot"'))
    result = run("test", path, "--coverage")
    assert result.exit_code == 1
    assert f"{path}:52: FAIL a lost handover never boots: rule is `otherwise`, expected `clean boot`" in result.stdout
    assert (
        f"    try: safemem simulate {tmp_path}/live-update-host.toml --set handover=rejected --set preserved=yes\n"
        in result.stdout
    )
    assert "4 of 5 rules; no case that holds asks for: `otherwise`" in result.stdout
    suite = ElementTree.fromstring(run("test", path, "--format", "junit").stdout)[0]
    assert suite.get("failures") == "3"

    path.write_text(
        'policy = "live-update-host.toml"\n[[case]]\nname = "one"\nstate = { handover = "none" }\naction = "online-all"\nrule = "clean boot"\n'
    )
    result = run("test", path, "--threshold", 50)
    assert (result.exit_code, "6% are covered, 50 % are asked for" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.cases.toml:1:1: `policy` is missing; add the file that the cases are about, relative to this one"),
        ('policy = "p\\u0000"\n', 'x.cases.toml:1:1: policy: `"p\\u0000"` is no name of a file'),
        ('policy = "p"\n[[case]]\nnam = "x"', "x.cases.toml:3:1: unknown key `nam`; did you mean `name`?"),
        ('policy = "p"\n[[case]]\nname = "x"\naction = "a"\nrule = "r"\nstate = { handovr = "none" }', "x.cases.toml:6:11: unknown fact `handovr`; did you mean `handover`?"),
        ('policy = "p"\n[[case]]\nname = "x"\naction = "a"\nrule = "r"\nstate = { handover = "nine" }', "x.cases.toml:6:11: state.handover: `nine` is not one of"),
        ('policy = "p"\n[[case]]\nname = "x"\naction = "a"\nrule = "r"', "p: no such file or directory"),
        ("policy = ", "x.cases.toml:1:10: not valid TOML"),
    ],
)  # fmt: skip
def test_bad_cases(tmp_path: Path, text: str, message: str) -> None:
    """Bad input has its place, and no traceback."""
    path = tmp_path / "x.cases.toml"
    path.write_text(text)
    result = run("test", path)

    assert result.exit_code == 3
    assert message in result.stderr


def test_schema_is_in_step() -> None:
    """The JSON Schema takes every shipped policy and refuses what the models refuse."""
    schema = json.loads(run("schema").stdout)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for path in SHIPPED:
        validator.validate(tomllib.loads(path.read_text()))
    document = tomllib.loads(GOOD.read_text())
    changes: list[dict[str, Any]] = [
        {"nmae": "x"},
        {"rule": []},
        {"format": 2},
        {"on_failure": {"action": "online-all"}},
    ]
    for change in changes:
        assert not validator.is_valid({**document, **change})


def test_reference_is_in_step() -> None:
    """The page under docs is what the models say."""
    assert (ROOT / "docs/policy-language.md").read_text() == reference.markdown() == run("schema", "--reference").stdout


def test_explain() -> None:
    """Each rule up to the one that decides, with what held, what failed and where it was read."""
    result = run("simulate", GOOD, "--set", "handover=accepted", "--set", "luo=failed", "--explain")

    assert result.exit_code == 4
    assert result.stdout.split("trace\n")[1].splitlines() == [
        "  rule `clean boot`: does not match",
        "    fails  handover wants none; it is accepted  (--set)",
        "  rule `live update arrived whole`: does not match",
        "    holds  handover wants accepted; it is accepted  (--set)",
        "    fails  luo wants ready or busy; it is failed  (--set)",
        "  rule `preserved memory is safe but sessions are lost`: decides",
        "    holds  handover wants accepted; it is accepted  (--set)",
    ]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ('handover = "none", previous_kernel = "7.1.*"', "only an accepted handover shows producers, a predecessor and a count"),
        ('handover = "none", nodes = "node1"', "only an accepted handover shows producers, a predecessor and a count"),
        ('previous_kernel = "7.1.*", luo = "ready", handover = { not = "accepted" }', "only an accepted handover shows producers, a predecessor and a count"),
        ('handover = "none", boot_attempts = ">=1, <1"', "nothing is `boot_attempts` >=1, <1"),
        ('handover = "orphaned", luo = "busy"', "LUO needs KHO"),
    ],
)  # fmt: skip
def test_a_rule_that_no_machine_meets_says_which_condition(asked: str, why: str) -> None:
    """Not only that it never decides."""
    text = (
        'format = 1\nname = "p"\n[[rule]]\nname = "never"\nwhen = { ' + asked + ' }\naction = "online-safe"\n'
        '[otherwise]\naction = "panic"\n[on_failure]\naction = "panic"\n'
    )
    found = load.parse(text.encode(), "p").policy
    messages = [item.message for item in invariants.check(found, Outcomes(Space(found), found))]

    assert messages[0] == f"rule `never` never decides: no machine can be in a state that it matches: {why}"


def test_a_release_that_cannot_be_compared_can_be_named() -> None:
    """`unordered` is what neither a comparison nor its negation matches, and no state is left beside the three."""
    whens = ('"unordered"', '">=7.2"', '{ not = ">=7.2" }', '"unknown"')
    rules = "".join(
        f'[[rule]]\nname = "r{place}"\nwhen = {{ handover = "accepted", kernel = {text} }}\naction = "halt"\n'
        for place, text in enumerate(whens)
    )
    text = f'format = 1\nname = "p"\n{rules}[otherwise]\naction = "panic"\n[on_failure]\naction = "panic"\n'
    found = load.parse(text.encode(), "p").policy
    outcomes = Outcomes(Space(found), found)

    decided = {outcomes.rule(state).name for state in outcomes.of if state[0] == "accepted"}
    assert decided == {"r0", "r1", "r2", "r3"}
    assert not any(outcomes.rule(state).name == "otherwise" for state in outcomes.of if state[0] == "accepted")
