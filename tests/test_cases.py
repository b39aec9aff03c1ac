# SPDX-License-Identifier: MIT
"""Files of cases: what may stand in them, machines, and the cases that are missing."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from safemem.cli import main
from safemem.policy import case_reference, cases
from safemem.policy.casefile import BESIDE, EXPECTED
from safemem.policy.missing import MOST, case_text, missing
from tests.fakes import SHIPPED

ROOT = Path(__file__).resolve().parent.parent
TWO_NODE = ROOT / "tests/policies/two-node.toml"
#: Policies with every kind of condition.
POLICIES = [*SHIPPED, TWO_NODE, *sorted((ROOT / "tests/bad").glob("*.toml"))]
POLICY = """
format = 1
name = "p"
[safe_region]
sources = ["0x0-0x3fffffff"]
[[memory]]
range = "0x180000000-0x1ffffffff"
hold = true
{rules}
[otherwise]
action = "{otherwise}"
[on_failure]
action = "panic"
"""
RULE = '[[rule]]\nname = "whole"\nwhen = {{ {} }}\naction = "online-all"\n'
MACHINE = 'machine = "2 nodes of 1GiB, DIMM 2GiB on node 1, DIMM 2GiB on node 1, guard 256MiB on node 1"\n'


def run(*words: object) -> Result:
    """Run `safemem test`."""
    return CliRunner().invoke(main, ["test", *map(str, words)])


def written(folder: Path, text: str, *, otherwise: str = "online-safe", when: str = 'handover = "none"') -> Path:
    """Write a policy with one rule, and cases of these words for it."""
    (folder / "p.toml").write_text(POLICY.format(rules=RULE.format(when), otherwise=otherwise))
    (folder / "p.cases.toml").write_text(f'policy = "p.toml"\n{text}')
    return folder / "p.cases.toml"


def case(**words: Any) -> str:
    """Return a case with these words, given as they are written."""
    return "[[case]]\n" + "".join(f"{key} = {value}\n" for key, value in words.items())


def lost(**words: Any) -> str:
    """Return a case about a rejected handover."""
    return case(name='"lost"', state='{ handover = "rejected" }', action='"online-safe"', rule='"otherwise"', **words)


def faults(path: Path) -> list[str]:
    """Return what is wrong, case by case."""
    return [verdict.fault for verdict in cases.run(path).verdicts]


# ---- machines


def test_what_becomes_of_a_machine(tmp_path: Path) -> None:
    """Each piece by its name: the guard stays and hot-added memory is held; after a cold boot it comes online."""
    held = lost(
        plan='{ "boot memory" = "keep", guard = "keep-guard", "DIMM on node 1" = "hold", "memory on node 0" = "keep" }',
        ends='""',
    )
    path = written(tmp_path, MACHINE + held)
    assert faults(path) == [""]

    cold = case(name='"cold"', state='{ handover = "none" }', action='"online-all"', rule='"whole"', machine='"1GiB, dax 1GiB"',
                plan='{ "boot memory" = "keep", dax = "online", "hot-added memory" = "online" }')  # fmt: skip
    assert faults(written(tmp_path, cold)) == [""]


def test_another_fate(tmp_path: Path) -> None:
    """A piece that becomes something else fails the case, with the command that shows it on the same machine."""
    path = written(tmp_path, MACHINE + lost(plan='{ DIMM = "online" }'))
    result = run(path)
    words = MACHINE.strip().partition(" = ")[2].strip('"')

    assert result.exit_code == 1
    assert result.stdout.splitlines()[:2] == [
        f"{path}:4: FAIL lost: plan: `DIMM` is `hold`, expected `online`",
        f"    try: safemem simulate {tmp_path}/p.toml --machine '{words}' --set handover=rejected",
    ]


def test_a_piece_that_is_divided(tmp_path: Path) -> None:
    """Of a piece that an exception divides both parts are told."""
    cold = case(name='"cold"', state='{ handover = "none" }', action='"online-all"', rule='"whole"',
                machine='"1GiB, DIMM 4GiB"', plan='{ DIMM = "online" }')  # fmt: skip

    assert faults(written(tmp_path, cold)) == ["plan: `DIMM` is `online` in part and `hold`, expected `online`"]


def test_how_the_boot_ends(tmp_path: Path) -> None:
    """A limit that the machine cannot meet ends the boot, and one that it can does not."""
    path = written(tmp_path, MACHINE + lost(ends='""'))
    text = (tmp_path / "p.toml").read_text()

    def ends(limit: str) -> list[str]:
        words = f'action = "online-safe"\non_shortfall = "reboot"\nexposed_max = "{limit}"'
        (tmp_path / "p.toml").write_text(text.replace('action = "online-safe"', words))
        return faults(path)

    assert ends("50%") == [""]
    assert ends("1%") == ["the boot ends in reboot, expected that it goes on"]
    path.write_text(path.read_text().replace('ends = ""', 'ends = "panic"'))
    assert ends("1%") == ["the boot ends in reboot, expected that it ends in panic"]
    assert ends("50%") == ["the boot goes on, expected that it ends in panic"]


def test_what_the_machine_says_is_not_asked(tmp_path: Path) -> None:
    """A state with other nodes, another guard or other blocks is none of this machine's, and is not described by its cases."""
    path = written(tmp_path, MACHINE + lost(plan='{ DIMM = "hold" }'),
                   when='guard = "none", handover = "none", numa_nodes = 2, held_blocks = "yes"')  # fmt: skip
    result = cases.run(path)
    space = result.outcomes.space
    seen = [space.named(state) for state in result.verdicts[0].states]

    assert [verdict.fault for verdict in result.verdicts] == [""]
    assert {(s["guard"], s["held_blocks"], s["numa_nodes"]) for s in seen} == {("full", "yes", 2)}
    impossible = MACHINE + lost(plan='{ DIMM = "hold" }').replace('"rejected"', '"none"')
    assert faults(written(tmp_path, impossible)) == ["this machine cannot be in this state"]
    unguarded = lost(machine='"1GiB"', ends='""').replace("{ handover", '{ guard = "held", handover')
    assert faults(written(tmp_path, unguarded)) == ["this machine cannot be in this state"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"machine": '"1 GB"'}, "machine: `1 GB` describes no part of a machine; parts, with commas between, are"),
        ({"machine": "1"}, "machine: expected text such as `2 nodes of 512GiB, DIMM 256GiB on node 1`, not `1`"),
        ({"plan": '{ dimm = "hold" }'}, "plan: `dimm` is no piece of a machine; there are `memory`, "),
        ({"plan": '{ dax = "hold" }'}, "plan: the machine has no `dax`"),
        ({"plan": '{ "DIMM on node 7" = "hold" }'}, "plan: the machine has no `DIMM on node 7`"),
        ({"plan": '{ "guard on node 0" = "hold" }'}, "plan: the machine has no `guard on node 0`"),
        ({"plan": '{ DIMM = "held" }'}, "plan.DIMM: `held` is not one of `online`, `hold`, `keep`, `offline`, `keep-guard`, `release-guard`; did you mean `hold`?"),
        ({"plan": "1"}, "plan: expected a table of pieces of the machine"),
        ({"ends": '"online-all"'}, "ends: `online-all` is not one of `panic`, `reboot`, `halt`; `\"\"` says that the boot goes on"),
        ({"final": '"yes"'}, "final: expected true or false"),
        ({"memory": "true"}, "memory: expected a list of tables"),
        ({"zone": "true"}, "zone: expected text"),
    ],
)  # fmt: skip
def test_bad_words(tmp_path: Path, words: dict[str, str], message: str) -> None:
    """What is wrong with an expectation is told, whatever its kind."""
    result = run(written(tmp_path, MACHINE + lost(**words)))

    assert (result.exit_code, message in result.stderr) == (3, True), result.stderr


def test_a_plan_without_a_machine(tmp_path: Path) -> None:
    """What becomes of memory cannot be expected where there is none; what is wrong at the top is told too."""
    assert (
        "`machine` is missing, in the case or at the top of the file" in run(written(tmp_path, lost(ends='""'))).stderr
    )
    assert "2:1: machine: boot memory is missing" in run(written(tmp_path, 'machine = "guard 1GiB"\n' + lost())).stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{ all = [] }", "state.handover: expected a list of conditions in `all`"),
        ('{ all = ["nono"] }', "state.handover: `nono` is not one of"),
        ('{ every = ["none"] }', "state.handover: expected a value, a list of values, or { not = … }"),
    ],
)
def test_bad_conditions(tmp_path: Path, value: str, message: str) -> None:
    """`all` takes conditions, and no other word does."""
    result = run(written(tmp_path, case(name='"x"', state=f"{{ handover = {value} }}", action='"a"', rule='"r"')))

    assert (result.exit_code, message in result.stderr) == (3, True), result.stderr


def test_all_of_several_conditions(tmp_path: Path) -> None:
    """A state between two conditions on one fact can be named."""
    path = written(
        tmp_path,
        case(name='"x"', state='{ handover = "none", kernel = { all = [">=7.2", { not = "7.3.*" }] } }', action='"online-all"', rule='"whole"'),
        when='handover = "none", kernel = [">=7.4", "7.2.*"]',
    )  # fmt: skip

    assert faults(path) == ["action is `online-safe`, expected `online-all`"]  # 7.3-rc1, say
    path.write_text(path.read_text().replace('{ not = "7.3.*" }', '"7.2.*"'))
    assert faults(path) == [""]


def test_exceptions_of_a_rule(tmp_path: Path) -> None:
    """What a rule's own exceptions have to be, as far as the case says."""
    path = written(tmp_path, lost(memory="[{ node = 1 }]"))
    text = (tmp_path / "p.toml").read_text()
    (tmp_path / "p.toml").write_text(text.replace('action = "online-safe"', 'action = "online-safe"\nmemory = [{ node = 1, hold = true }]'))  # fmt: skip
    assert faults(path) == [""]

    path.write_text(path.read_text().replace("node = 1", "node = 0"))
    assert "expected" in faults(path)[0] and faults(path)[0].startswith("memory is ")


# ---- what is missing


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_what_is_missing_can_be_pasted(path: Path, tmp_path: Path) -> None:
    """From one case to all states of any policy: what is printed holds, and leaves nothing out; a few dozen cases at most."""
    (tmp_path / path.name).write_text(path.read_text())
    document = tomllib.loads(path.read_text())
    first = case(name='"first"', state='{ handover = "none", luo = "busy" }', action='"halt"', rule=json.dumps(document["rule"][0]["name"]))  # fmt: skip
    file = tmp_path / "x.cases.toml"
    file.write_text(f"policy = {json.dumps(path.name)}\n{first}")
    for _ in range(5):
        found, left = missing(cases.run(file))
        assert len(found) <= MOST
        with file.open("a") as out:
            out.writelines(f"\n{case_text(item, number)}\n" for number, item in enumerate(found, 1))
        if not left:
            break
    result = cases.run(file)

    assert (result.covered, missing(result)) == (result.states, ((), 0))
    assert [verdict for verdict in result.verdicts[1:] if verdict.fault] == []


def test_missing_cases_are_printed(tmp_path: Path) -> None:
    """Folded, as TOML, with the rule that decides now; only where coverage is asked for."""
    path = written(tmp_path, case(name='"cold"', state='{ handover = "none" }', action='"online-all"', rule='"whole"'))

    assert "[[case]]" not in run(path).stdout
    result = run(path, "--threshold", 100)
    assert result.exit_code == 1
    assert result.stdout.split("(14%)\n\n")[1] == (
        "# no case describes these states; 1 case to paste, once the outcome is what you want\n\n"
        '[[case]]\nname = "otherwise, 1"\n'
        'state = { handover = ["lost", "accepted", "rejected", "orphaned", "unsupported", "unknown"] }\n'
        'action = "online-safe"\nrule = "otherwise"\n\n'
    )


@pytest.mark.parametrize("path", [*SHIPPED, TWO_NODE], ids=lambda path: path.stem)
def test_the_library_is_covered(path: Path) -> None:
    """Every policy that we ship, and the one of an operator with two nodes, describes all of its states."""
    result = run(path.with_suffix(".cases.toml"), "--threshold", 100)

    assert result.exit_code == 0, result.stdout + result.stderr


def test_the_command_of_a_failing_case_can_be_pasted(tmp_path: Path) -> None:
    """It is whole, and shows the outcome that the case did not expect."""
    path = written(tmp_path, lost().replace("online-safe", "panic"))
    line = next(line for line in run(path).stdout.splitlines() if line.startswith("    try: "))
    words = shlex.split(line.removeprefix("    try: "))

    assert words[:2] == ["safemem", "simulate"]
    assert CliRunner().invoke(main, words[1:]).stdout.startswith("online-safe  ")


# ---- the schema and the page


def test_the_schema_takes_what_we_ship() -> None:
    """And refuses what the reader refuses."""
    schema = json.loads(CliRunner().invoke(main, ["schema", "--of", "cases"]).stdout)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for path in (*SHIPPED, TWO_NODE):
        validator.validate(tomllib.loads(path.with_suffix(".cases.toml").read_text()))
    good = tomllib.loads(TWO_NODE.with_suffix(".cases.toml").read_text())
    first = good["case"][0]
    for change in (
        {"plan": {"DIMM": "held"}},
        {"ends": "never"},
        {"state": {"handover": "nono"}},
        {"nam": "x"},
        {"final": "yes"},
        {"enter": "rescue"},
    ):
        assert not validator.is_valid({**good, "case": [{**first, **change}]}), change
    assert not validator.is_valid({**good, "machine": {}})
    assert not validator.is_valid({key: item for key, item in good.items() if key != "policy"})
    validator.validate({**good, "case": [{**first, "state": {"kernel": {"all": [">=7.2", {"not": "7.3.*"}]}}}]})


def test_the_page_is_in_step() -> None:
    """docs/cases.md is what `schema` writes, and its example is one."""
    page = (ROOT / "docs/cases.md").read_text()

    assert (
        page == case_reference.markdown() == CliRunner().invoke(main, ["schema", "--of", "cases", "--reference"]).stdout
    )
    for key in (*EXPECTED, *BESIDE):
        assert f"`{key}`" in page
    example = tomllib.loads(page.split("```toml\n")[1].split("```")[0])
    jsonschema.Draft202012Validator(case_reference.schema()).validate(example)
