# SPDX-License-Identifier: MIT
"""A word of the policy language is known wherever it has to be, and a new one costs four files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safemem.boot import compiled
from safemem.boot.model import Failure, Override, Policy, Rule
from safemem.policy import cases, compare, language, reference
from safemem.render import findings

PACKAGE = Path(__file__).resolve().parent.parent / "safemem"
#: A field of the model -> its key in a policy file, where that is another. `digest` is of the compiled form.
KEYS = {"rules": "rule", "sources": "safe_region", "digest": ""}


@pytest.mark.parametrize("field", Rule._fields)
def test_every_word_of_a_rule_has_its_places(field: str) -> None:
    """The reader of the archive, the language, its reference, the comparison, its output and the cases."""
    assert field in compiled.RULE, f"compiled.RULE does not say what Rule.{field} may be"
    assert field in language.RuleTable.model_fields, f"language.Outcome or RuleTable has no key for Rule.{field}"
    assert f"\n| `{field}` | " in reference.markdown()
    assert field in compare.STRICTNESS, (
        f"compare.STRICTNESS does not say what of Rule.{field} is stricter, None if nothing"
    )
    change = compare.Change("other", Rule("a", "panic"), Rule("b", "panic"), 1, {}, {})
    side = json.loads(findings.diff_json([change], 1, 4))["changes"][0]["old"]
    shown = {"name": "rule"}.get(field, field)
    assert (shown in side) == (shown in cases.EXPECTED) == (field not in ("when", "accept_data_exposure"))


@pytest.mark.parametrize("field", Policy._fields)
def test_every_field_of_a_policy_has_its_places(field: str) -> None:
    """The reader of the archive, the language, its reference, the comparison and the cases."""
    assert field in compare.FIELDS, f"compare.FIELDS does not say how Policy.{field} is compared, None if it is not"
    assert (field in compiled.POLICY) == (field != "digest"), f"compiled.POLICY does not say what Policy.{field} may be"
    key = KEYS.get(field, field)
    assert not key or key in language.PolicyFile.model_fields, f"language.PolicyFile has no key for Policy.{field}"
    assert not key or f"\n| `{key}` | " in reference.markdown()
    assert (field in cases.BESIDE) == (field not in ("name", "rules", "otherwise", "memory", "digest"))


def test_nothing_is_known_that_the_model_has_not() -> None:
    """A word that goes takes its entries with it, and the small tables are whole too."""
    assert set(compiled.RULE) == set(compare.STRICTNESS) == set(language.RuleTable.model_fields) == set(Rule._fields)
    assert {*compiled.POLICY, "digest"} == set(compare.FIELDS) == set(Policy._fields)
    assert {*language.PolicyFile.model_fields} - {"format"} == {KEYS.get(field, field) for field in Policy._fields} - {
        ""
    }
    assert set(compiled.OVERRIDE) == set(language.Memory.model_fields) == set(Override._fields)
    assert {only.key for only in language.ONLY_WITH} <= set(language.Outcome.model_fields)
    assert set(compiled.FAILURE) == set(language.Failure.model_fields) == set(Failure._fields)


@pytest.mark.parametrize(
    ("table", "model"),
    [(language.Outcome, Rule), (language.PolicyFile, Policy), (language.Failure, Failure), (language.Memory, Override)],
)
def test_the_language_names_the_models_defaults(table: type[language.Table], model: Any) -> None:
    """What the reference says of a key that is left out is what the policy then holds; no value stands for none."""
    for key, field in table.model_fields.items():
        if key in model._field_defaults:
            default = model._field_defaults[key]
            assert field.default == (list(default) if isinstance(default, tuple) else default) or (
                field.default is None and default in ("", -1, False, None)
            ), key


# ---- the recipe of CONTRIBUTING.md, carried out: a word `colour` of a rule and a word `shade` of a policy

_MORE = {
    "boot/model.py": [("class Rule(NamedTuple)", '    colour: str = ""\n'), ("class Policy(NamedTuple)", '    shade: str = ""\n')],
    "boot/compiled.py": [("RULE: ", '    "colour": _one_of("", "red", "blue"),\n'), ("POLICY: ", '    "shade": _text,\n')],
    "policy/language.py": [
        ("class Outcome(", '    colour: Annotated[str, OneOf(("red", "blue"))] | None = Field(None, description="Of the lamp.")\n'),
        ("class PolicyFile(", '    shade: Text = Field("", description="Over the lamp.")\n'),
    ],
    "policy/compare.py": [
        ("STRICTNESS: ", '    "colour": lambda mine, _: mine == "red",\n'),
        ("FIELDS: ", '    "shade": Comparison(lambda shade: f"shade {shade}", _neither),\n'),
    ],
}  # fmt: skip

_SHOW = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from safemem.boot import compiled, engine, record
from safemem.boot.model import DERIVED, FACTS, Fact, Snapshot
from safemem.policy import cases, compare, compiler, load, reference
from safemem.render import findings
old, new = (load.read(Path(sys.argv[1], name)) for name in ("old.toml", "new.toml"))
assert compiled.load(compiler.dump(new), "p") == new
changes, states = compare.compare(old, new)
def problem(name):
    try:
        load.read(Path(sys.argv[1], name))
    except load.PolicyError as error:
        return error.problems[0].message
facts = {name: Fact("unknown", "test") for name in FACTS if name not in DERIVED}
decision = engine.decide(new, Snapshot(facts, 128 << 20, (), (), "", ()))
print(json.dumps({
    "record": record.decision_to_json(decision)["colour"],
    "policy": [new.otherwise.colour, old.otherwise.colour, new.shade],
    "text": findings.diff_text(changes, states, "old", "new"),
    "json": json.loads(findings.diff_json(changes, states, 4)),
    "cases": [verdict.fault for verdict in cases.run(Path(sys.argv[1], "new.cases.toml")).verdicts],
    "wrong": [problem("wrong.toml"), problem("near.toml")],
    "reference": reference.markdown(),
}))
"""

_POLICY = """\
format = 1
name = "lamp"
[[rule]]
name = "one"
when = { handover = "none" }
action = "online-all"
[otherwise]
action = "panic"
[on_failure]
action = "panic"
"""


def test_a_new_word_costs_four_files(tmp_path: Path) -> None:
    """In the model, its reader, the language and the comparison; the rest takes it from there."""
    for room in ("boot", "policy", "render"):
        shutil.copytree(PACKAGE / room, tmp_path / "safemem" / room)
    shutil.copy(PACKAGE / "__init__.py", tmp_path / "safemem")
    for name, additions in _MORE.items():
        text = (tmp_path / "safemem" / name).read_text()
        for start, lines in additions:
            # At the end of the class or of the table that begins with `start`.
            text, found = re.subn(rf"(\n{re.escape(start)}.*?\n)(?=\}}\n|\n\n\S|\Z)", lambda m, new=lines: m[1] + new, text, count=1, flags=re.S)  # type: ignore[misc]  # fmt: skip
            assert found == 1, f"{name}: {start}"
        (tmp_path / "safemem" / name).write_text(text)
    red = _POLICY.replace('"panic"\n[on', '"panic"\ncolour = "red"\n[on')
    for name, text in {
        "old.toml": _POLICY,
        "new.toml": red.replace('"lamp"', '"lamp"\nshade = "dark"'),
        "wrong.toml": red.replace("red", "green"),
        "near.toml": red.replace("colour", "color"),
        "new.cases.toml": 'policy = "new.toml"\nshade = "light"\n[[case]]\nname = "lost"\nstate = { handover = "rejected" }\n'
        'action = "panic"\nrule = "otherwise"\ncolour = "blue"\n',
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    result = subprocess.run([sys.executable, "-c", _SHOW, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)

    assert shown["policy"] == ["red", "", "dark"]
    assert shown["record"] == "red"
    assert shown["cases"] == ["shade is `dark`, expected `light`", "colour is `red`, expected `blue`"]
    assert shown["wrong"] == [
        "otherwise.colour: `green` is not one of `red`, `blue`",
        "otherwise: unknown key `color`; did you mean `colour`?",
    ]
    assert "| `colour` | `red`, `blue` |  | Of the lamp. |" in shown["reference"]
    assert "| `shade` | text |  | Over the lamp. |" in shown["reference"]
    beside, states = shown["json"]["changes"]
    assert (beside["old"]["rule"], beside["new"]["message"]) == ("shade", "shade dark")
    assert (states["direction"], states["old"]["colour"], states["new"]["colour"]) == ("stricter", None, "red")
    assert "  - panic by `otherwise`\n  + panic, colour red by `otherwise`" in shown["text"]
