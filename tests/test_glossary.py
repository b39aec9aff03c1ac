# SPDX-License-Identifier: MIT
"""Every word has its meaning, in one place, and whatever speaks of words takes it from there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from packages import man
from safemem.boot import account, compiled
from safemem.boot.model import ACTIONS, DRIVERS, FACTS, FINAL, ZONES
from safemem.cli import COMMANDS, main
from safemem.cli.explain import known_words
from safemem.host import catalogue
from safemem.outgoing import findings
from safemem.policy import glossary, reference
from safemem.render import glossary as render
from safemem.render.decision import VERBS
from tests.fakes import SHIPPED

ROOT = Path(__file__).resolve().parent.parent


def run(*words: str) -> Result:
    """Run `safemem explain`, in 80 columns."""
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, ["explain", *words])


@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_and_value_is_explained(fact: str) -> None:
    """In safemem/policy/glossary.toml, in the order of boot/model.py, and nothing that the model has not."""
    assert fact in glossary.facts(), f"glossary.toml lacks [facts.{fact}]"
    entry = glossary.facts()[fact]
    assert tuple(glossary.values(fact)) == FACTS[fact][1], f"[facts.{fact}.values] are not those of boot/model.py"
    assert entry.meaning.endswith(".") and entry.read


def test_nothing_is_explained_that_is_not_there() -> None:
    """A fact or a value that goes takes its entry with it."""
    assert set(glossary.facts()) == set(FACTS)
    document = tomllib.loads((ROOT / "safemem/policy/glossary.toml").read_text())
    assert {key: set(known) for key, known in document["values"].items()} == {
        "action": set(ACTIONS), "on_shortfall": {"continue", *FINAL}, "zone": set(ZONES), "driver": set(DRIVERS),
        "enter": set(compiled.ENTER), "boot_memory": set(compiled.BOOT_MEMORY), "quiesce": set(compiled.QUIESCE), "if_onlined": set(compiled.IF_ONLINED),
        "sources": set(compiled.SOURCES), "step": set(VERBS),
    }  # fmt: skip


def test_every_kind_of_memory_is_a_word() -> None:
    """And so is what the issue of an operator who did not know them names."""
    words = {glossary.plain(name) for name in glossary.words()}

    assert {glossary.plain(kind) for kind in account.KINDS} <= words
    assert {"kho", "luo", "kexec", "scratch", "guard", "safe region", "block", "zone", "lost", "witness", "maintenance",
            "shortfall", "arrivals", "record", "release", "observe", "dry run", "in use"} <= words  # fmt: skip
    for entry in glossary.words().values():
        assert entry.meaning.endswith(".") and entry.operator.endswith(".") and entry.read, entry.name


def test_every_argument_is_explained() -> None:
    """Whatever the boot half reads of the kernel's command line under our name."""
    sources = "".join(path.read_text() for path in (ROOT / "safemem/boot").glob("*.py"))
    read = set(re.findall(r"\"(safemem\.[a-z_]+)\"", sources))

    assert len(read) >= 4 and read <= set(glossary.arguments())


def codes(page: Path) -> set[str]:
    """Return the words of a page that stand in backticks alone."""
    return set(re.findall(r"`([a-z][a-z0-9_-]*)`", page.read_text()))


#: Of the kernel or of other programs, which explain them; and examples.
OTHERS = {
    *(path.stem for path in SHIPPED), "make", "junit", "true", "false",
    "arch", "bootmem_phys", "kernelcore", "kvm", "memblock", "qemu", "xen", "vm-other", "aarch64", "x86_64", "kho_bootmem",
    "next-20260101",
}  # fmt: skip


@pytest.mark.parametrize("name", ["docs/policy-language.md", "docs/glossary.md", "docs/cases.md", "README.md"])
def test_every_word_in_backticks_can_be_explained(name: str) -> None:
    """What the pages for operators write as code, `safemem explain` knows."""
    known, lacking = known_words()
    unknown = {word for word in codes(ROOT / name) - OTHERS if not glossary.find(word, known)}

    assert (unknown, lacking) == (set(), "")


def test_the_page_is_in_step() -> None:
    """docs/glossary.md is what the glossary says, and has no word twice."""
    page = (ROOT / "docs/glossary.md").read_text()

    assert page == render.page() == run("--page").stdout
    names = [name.casefold() for name in glossary.words()]
    assert len(names) == len(set(names))


def test_the_readme_says_the_same() -> None:
    """KHO and LUO are explained on its first screen in the glossary's words."""
    screen = " ".join((ROOT / "README.md").read_text().split("\n## ")[0].split())

    for name in ("KHO", "LUO"):
        assert glossary.words()[name].meaning in screen
    for option in ("CONFIG_KEXEC_HANDOVER", "CONFIG_KEXEC_HANDOVER_DEBUGFS", "CONFIG_LIVEUPDATE"):
        assert f"`{option}`" in screen and option in " ".join(item.operator for item in glossary.words().values())


# ---- the schema


def validator() -> Any:
    """Return what validates policies."""
    return jsonschema.Draft202012Validator(reference.schema())


def test_the_schema_explains_every_value() -> None:
    """Each fact, and each value of a closed set, has its meaning where an editor looks."""
    facts = reference.schema()["$defs"]["When"]["properties"]
    for fact, (_, members) in FACTS.items():
        assert facts[fact]["description"].startswith(glossary.facts()[fact].meaning)
        if members:
            options = facts[fact]["anyOf"]
            for one in (options[0], options[1]["items"], options[2]["properties"]["not"]["anyOf"][0]):
                assert one["oneOf"] == [
                    {"const": value, "description": glossary.values(fact)[value]} for value in members
                ]
    text = json.dumps(reference.schema())
    assert '"null"' not in text and '"enum"' not in text


def test_the_schema_still_judges() -> None:
    """It takes all that we ship, and refuses a value, a fact and a key that are none, wherever they stand."""
    for path in SHIPPED:
        validator().validate(tomllib.loads(path.read_text()))
    good = tomllib.loads(SHIPPED[0].read_text())
    rule = good["rule"][0]
    for when in (
        {"handover": "nono"},
        {"handover": ["none", "nono"]},
        {"handover": {"not": "nono"}},
        {"handovr": "none"},
    ):
        assert not validator().is_valid({**good, "rule": [{**rule, "when": when}]}), when
    for wrong in ({"action": "maintenance"}, {"zone": "normal"}, {"enter": ""}, {"on_shortfall": "online-all"}):
        assert not validator().is_valid({**good, "otherwise": {**good["otherwise"], **wrong}}), wrong


# ---- the command


def test_a_fact() -> None:
    """With its values, where it is read, and in 80 columns."""
    result = run("luo")

    assert result.exit_code == 0
    assert result.stdout.startswith("LUO  (word)\n  Live Update Orchestrator: ")
    assert "\n\nluo  (fact)\n  Whether guests can have their sessions back from LUO.\n  Where: " in result.stdout
    assert "\n    ready    Its device is there; with `open_luo`, it could be opened too.\n" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("rejected", "rejected  (value of handover)\n  Offered, and not taken: "),
        ("handover=rejected", "rejected  (value of handover)\n"),
        ("exposed_max", "exposed_max  (key of a policy)\n"),
        ("reboot-loop", "reboot-loop  (finding of check)\n  Found where this does not hold: No reboot finds the state that i"),
        ("no-decision", "no-decision  (finding of doctor)\n  safemem decided nothing in this boot (severe)\n"),
        ("kho-differs", "kho-differs  (finding of preflight)\n  the next kernel rejects the handover"),
        ("status", "status  (command)\n  Show what was decided in this boot, and what is held."),
        ("safemem.guard=", "safemem.guard  (kernel argument)\n"),
        ("Dry-Run", "dry run  (word)\n"),
        ("safe region", "safe region  (word)\n"),
    ],
)  # fmt: skip
def test_each_kind_of_word(word: str, says: str) -> None:
    """Whatever stands in a policy, a record, a page or a finding can be asked for as it stands there."""
    result = run(*word.split(" "))

    assert (result.exit_code, result.stdout[: len(says)]) == (0, says)


def test_one_value_of_one_fact() -> None:
    """`guard=none` is not `handover=none`."""
    result = run("guard=none")

    assert result.stdout == "none  (value of guard)\n  None was asked for.\n"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rejctd", "`rejctd` is no word of safemem's; did you mean `rejected`?"),
        ("handovr=none", "`handovr=none` is no word of safemem's; did you mean `handover=none`?"),
        ("xyzzy", "`xyzzy` is no word of safemem's; `safemem explain` lists all of them"),
    ],
)
def test_a_word_that_is_none(word: str, message: str) -> None:
    """A near miss is suggested; nothing is printed that could be taken for an answer."""
    result = run(word)

    assert (result.exit_code, result.stdout, result.stderr) == (3, "", f"safemem: {message}\n")


def test_the_list() -> None:
    """Without a word, all of them by kind, in 80 columns."""
    result = run()

    assert result.exit_code == 0
    for name in (*glossary.words(), *FACTS, *glossary.arguments(), *COMMANDS):
        assert re.search(rf"(^|[ ,]){re.escape(name.split(' ')[0])}\b", result.stdout, re.MULTILINE), name
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_a_broken_machine_can_ask() -> None:
    """Without pydantic words are explained, and a key that cannot be looked up is not called unknown without saying so."""
    script = (
        "import sys\nsys.modules['pydantic'] = None\nfrom safemem.cli import main\n"
        "main(['explain', *sys.argv[1:]], prog_name='safemem')"
    )

    def ask(word: str) -> tuple[int, str, str]:
        result = subprocess.run([sys.executable, "-c", script, word], cwd=ROOT, capture_output=True, text=True)
        return result.returncode, result.stdout[:14], result.stderr

    assert ask("quarantined") == (0, "quarantined  (", "")
    code, said, why = ask("exposed_max")
    assert (code, said) == (3, "")
    assert "keys of a policy cannot be looked up: " in why


def test_the_manual_pages_say_it_too() -> None:
    """Every word, fact, value and argument is in one of them, in the glossary's words."""
    pages = "\n".join(man.pages().values())
    for entry in glossary.entries():
        if entry.kind == "value of step" or not entry.kind.startswith("value of ") or entry.kind[9:] in FACTS:
            assert man.roff(entry.meaning) in pages, entry.name
    assert re.search(r'^\.TH SAFEMEM 1 "\d{4}-\d\d-\d\d"', pages, re.MULTILINE)


def test_a_finding_is_explained_without_what_a_check_fills_in() -> None:
    """`{node}` is a name of the source; capitals stand for it, as in the help of commands."""
    assert "pages of the guard on node NODE, NUMBER of them" in " ".join(run("page-mapped").stdout.split())
    assert "a warning of this boot's decision" in run("too-late").stdout
    for code in (*catalogue.CODES, *findings.CODES):
        assert not re.search(r"\{\w+\}", run(code).stdout), code
