# SPDX-License-Identifier: MIT
"""The analysis against the engine, against brute force, and against policies that are wrong on purpose."""

from __future__ import annotations

import copy
import itertools
import os
import random
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from safemem.boot import engine, probe
from safemem.boot.model import DERIVED, FACTS, UNKNOWN, Condition, Fact, Policy, Rule, Term
from safemem.boot.ranges import Range
from safemem.policy import cases, invariants, load
from safemem.policy.space import CONSTRAINTS, FROM_THE_TREE, LOST, Outcomes, Space, TooLarge
from tests.fakes import SHIPPED, make_root
from tests.kit import policy, snapshot, when

ROOT = Path(__file__).resolve().parent.parent
BAD = sorted((ROOT / "tests/bad").glob("*.toml"))
#: `make draws` asks for 100,000.
DRAWS = int(os.environ.get("SAFEMEM_DRAWS", "1200"))

RELEASES = ("7.2", "7.2.13", "7.3", "7.3-rc2", "7.3.4", "6.19.8")
GLOBS = ("7.*", "*-amd64", "7.3*", "7.?.4", "*")
NAMES = ("LUO", "memblock", "iommu")


def terms(kind: str) -> Any:
    """Return what a policy may ask of a fact that is no closed set."""

    def comparisons(bounds: Any) -> Any:
        op = st.sampled_from(["<", "<=", ">", ">="])
        return st.lists(st.builds(Term, op, bounds), min_size=1, max_size=2).map(tuple)

    def single(op: str, strategy: Any) -> Any:
        return strategy.map(lambda value: (Term(op, value),))

    unknown = st.just((Term("is", UNKNOWN),))
    if kind == "number":
        return unknown | single("is", st.integers(0, 5)) | comparisons(st.integers(0, 5))
    if kind == "names":
        return unknown | single("has", st.sampled_from(NAMES))
    texts = unknown | single("is", st.sampled_from(RELEASES)) | single("glob", st.sampled_from(GLOBS))
    unordered = st.just((Term("unordered", "unordered"),))
    return texts | unordered | comparisons(st.sampled_from(RELEASES)) if kind == "version" else texts


def conditions(fact: str) -> st.SearchStrategy[Condition]:
    """Return conditions on `fact`."""
    kind, members = FACTS[fact]
    group = st.sampled_from(members).map(lambda v: (Term("is", v),)) if kind == "set" else terms(kind)
    return st.builds(Condition, st.just(fact), st.lists(group, min_size=1, max_size=3).map(tuple), st.booleans())


ASKED = (
    "handover",
    "luo",
    "kho",
    "guard",
    "safe_region",
    "held_blocks",
    "kernel",
    "previous_kernel",
    "kexec_count",
    "nodes",
    "virt",
)
#: Made once: making a strategy takes longer than drawing from it.
CONDITIONS = {fact: conditions(fact) for fact in ASKED}
SOME = st.lists(st.sampled_from(ASKED), min_size=1, max_size=3, unique=True)
ACTION = st.sampled_from(["online-all", "online-safe", "panic", "reboot", "halt"])
SOURCES = st.sampled_from([("kho-scratch",), ("cmdline",), ("none",), ("kho-scratch", "cmdline"), (Range(0, 1 << 30),)])


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Return a small policy over any facts."""
    rules = [
        Rule(f"r{index}", draw(ACTION), tuple(draw(CONDITIONS[fact]) for fact in draw(SOME)))
        for index in range(draw(st.integers(1, 4)))
    ]
    return policy(*rules, otherwise=draw(ACTION), sources=draw(SOURCES))


def values(fact: str) -> st.SearchStrategy[Any]:
    """Return what a machine may show for `fact`, chosen without looking at any policy."""
    kind, members = FACTS[fact]
    if kind == "set":
        return st.sampled_from(members)
    if kind == "number":
        return st.integers(0, 9) | st.just(UNKNOWN)
    if kind == "names":
        return st.lists(st.sampled_from((*NAMES, "other")), unique=True).map(
            lambda names: tuple(sorted(names))
        ) | st.just(UNKNOWN)
    release = st.builds("{}.{}{}{}".format, st.integers(5, 8), st.integers(0, 20), st.sampled_from(["", ".0", ".4", ".13", ".99"]),
                        st.sampled_from(["", "-rc1", "-amd64", "-cloud-amd64", "+"]))  # fmt: skip
    return release | st.sampled_from(RELEASES) | st.text("7.3-amd64x", min_size=1, max_size=8) | st.just(UNKNOWN)


def together(facts: dict[str, Any]) -> dict[str, Any]:
    """Return `facts` with those changed that no machine shows together; most draws would be thrown away otherwise."""
    if facts["handover"] != "accepted":
        facts = {**facts, **dict.fromkeys(FROM_THE_TREE, UNKNOWN)}
    if facts["handover"] == "accepted":
        facts = {**facts, "kho": facts["kho"].replace("off", "on"), "guard": facts["guard"].replace("full", "void")}
    if facts["handover"] == "none" and facts["guard"] in ("full", "part", "void"):
        facts = {**facts, "guard": "none"}
    if facts["handover"] in ("orphaned", "unsupported"):
        facts = {**facts, "kho": "off"}
    if facts["kho"] == "off" and facts["luo"] in ("ready", "failed", "busy"):
        facts = {**facts, "luo": "off"}
    return facts


MACHINES = st.fixed_dictionaries({fact: values(fact) for fact in FACTS}).map(together)


@settings(max_examples=DRAWS, deadline=None, suppress_health_check=list(HealthCheck))
@given(policies(), MACHINES)
def test_every_machine_falls_into_a_class_with_its_outcome(drawn: Policy, facts: dict[str, Any]) -> None:
    """What the analysis says for the class of a machine is what the engine decides for the machine."""
    space = Space(drawn)
    known = {name: Fact(value, "") for name, value in facts.items()}
    state = space.locate(known)
    assume(space.possible(state))
    outcomes = Outcomes(space, drawn)

    decision = engine.decide(drawn, snapshot(())._replace(facts=known))
    assert decision.rule.name == outcomes.rule(state).name


@settings(max_examples=max(200, DRAWS // 10), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(conditions("kernel"), min_size=1, max_size=4), st.lists(values("kernel"), min_size=20, max_size=20))
def test_every_release_falls_into_a_class(asked: list[Condition], releases: list[str]) -> None:
    """Globs and comparisons on one fact, in any mixture."""
    rules = tuple(Rule(f"r{index}", "panic", (condition,)) for index, condition in enumerate(asked))
    space = Space(policy(*rules, sources=("none",)))
    for release in releases:
        space.locate({"handover": Fact("none", ""), "kernel": Fact(release, "")})


@settings(max_examples=200, deadline=None)
@given(
    # Not `Rule` itself: hypothesis would make up the words that are not given.
    st.lists(st.builds(lambda *words, **more: Rule(*words, **more), st.uuids().map(str), ACTION, st.lists(st.sampled_from(["handover", "luo"]), min_size=1, unique=True)
        .flatmap(lambda facts: st.tuples(*(conditions(fact) for fact in facts))),
        on_shortfall=st.sampled_from(["continue", "reboot", "halt"]), accept_data_exposure=st.booleans()), min_size=1, max_size=4, unique_by=lambda rule: rule.name),
    ACTION,
)  # fmt: skip
def test_brute_force_finds_the_same(rules: list[Rule], action: str) -> None:
    """Every state of two facts, one call of the engine each, and the invariants written out by hand."""
    drawn = policy(*rules, otherwise=action, sources=("cmdline",))

    def decide(handover: str, luo: str) -> Rule:
        name = engine.decide(drawn, snapshot((), handover=handover, luo=luo)).rule.name
        return next(rule for rule in (*rules, drawn.otherwise) if rule.name == name)

    def reboots(rule: Rule) -> bool:
        return rule.action == "reboot" or (
            rule.action in ("online-all", "online-safe") and rule.on_shortfall == "reboot"
        )

    dead = {("orphaned", luo) for luo in ("ready", "failed", "busy")} | {
        ("unsupported", luo) for luo in ("ready", "failed", "busy")
    }
    states = [pair for pair in itertools.product(FACTS["handover"][1], FACTS["luo"][1]) if pair not in dead]
    scale = {"online-all": 2, "online-safe": 1, "panic": 0, "reboot": 0, "halt": 0}
    wrong = {("unreachable-rule", rule.name) for rule in rules} - {
        ("unreachable-rule", decide(*pair).name) for pair in states
    }
    for handover, luo in states:
        rule = decide(handover, luo)
        if handover in (*LOST, UNKNOWN) and rule.action == "online-all" and not rule.accept_data_exposure:
            wrong.add(("exposes-handover", rule.name))
        others = [(h, luo) for h in FACTS["handover"][1] if handover == UNKNOWN] + [
            (handover, v) for v in FACTS["luo"][1] if luo == UNKNOWN
        ]
        if any(scale[decide(*other).action] < scale[rule.action] for other in others if other in states):
            wrong.add(("unknown-permissive", rule.name))
        after = (handover if handover in (UNKNOWN, "lost") else "none", luo)
        if reboots(rule) and reboots(decide(*after)):
            wrong.add(("reboot-loop", rule.name))
    space_policy = drawn._replace(rules=(*rules, Rule("both", "halt", tuple(
        Condition(fact, ((Term("is", UNKNOWN),),)) for fact in ("handover", "luo")))))  # fmt: skip
    outcomes = Outcomes(Space(drawn, space_policy), drawn)
    errors = {(item.code, item.rule) for item in invariants.check(drawn, outcomes) if item.level == "error"}
    assert errors == wrong


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_policies_are_proved_and_covered(path: Path) -> None:
    """Every policy that we ship holds every invariant without a warning, and its cases cover all of it."""
    target = load.read(path)
    found = invariants.check(target, Outcomes(Space(target), target))
    result = cases.run(path.with_suffix(".cases.toml"))

    assert [item for item in found if item.level != "note"] == []
    assert [verdict for verdict in result.verdicts if verdict.fault] == []
    assert result.coverage == 1
    assert path.read_text().startswith("# For ")


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_policies_show_each_invariant_failing(path: Path) -> None:
    """The first line of each bad policy says what is wrong with it; that is found, and its example is real."""
    target = load.read(path)
    outcomes = Outcomes(Space(target), target)
    found = [item for item in invariants.check(target, outcomes) if item.level != "note"]
    expected = re.findall(r"[a-z]+-[a-z]+(?:-[a-z]+)?", path.read_text().splitlines()[0].split(".")[0])

    assert sorted({item.code for item in found}) == sorted(expected)
    for item in found:
        if item.example:
            example: dict[str, Any] = {name: value for name, value in item.example.items() if name not in DERIVED}
            assert engine.decide(target, snapshot((), **example)).rule.name == item.rule


@pytest.mark.parametrize(
    "options",
    [
        {}, {"offered": True}, {"offered": True, "kho_in": True}, {"offered": True, "debugfs": False, "config": None},
        {"offered": True, "kho_out": False, "luo": False, "cmdline": "kho=off"},
        {"offered": True, "kho_out": False, "luo": False, "config": "CONFIG_X=y\n"},
        {"offered": True, "cmdline": "kho=on safemem.guard=0x1000000-0x24ffffff", "crash": "01000000-24ffffff"},
    ],
)  # fmt: skip
def test_the_probe_shows_nothing_that_is_called_impossible(tmp_path: Path, options: dict[str, Any]) -> None:
    """The constraints leave out only what the probe cannot return."""
    snapshot = probe.read_snapshot(str(make_root(tmp_path, **options)))
    facts = {name: fact.value for name, fact in snapshot.facts.items()}

    assert [item.text for item in CONSTRAINTS if item.broken(facts)] == []


# ---- mutation: a policy that was changed by accident is noticed


def mutants(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the policy with each one value, action or order changed."""
    found: list[tuple[str, dict[str, Any]]] = []

    def add(what: str, change: Any) -> None:
        other = copy.deepcopy(document)
        change(other)
        if other != document:
            found.append((what, other))

    tables = [(f"rule {index}", lambda doc, index=index: doc["rule"][index]) for index in range(len(document["rule"]))]
    for name, table in [
        *tables,
        ("otherwise", lambda doc: doc["otherwise"]),
        ("on_failure", lambda doc: doc["on_failure"]),
    ]:
        choices: dict[str, list[Any]] = {"action": ["panic", "reboot", "halt"], "message": ["changed"]}
        if name == "on_failure":
            choices["deadline"] = [11]
        else:
            choices["action"] += ["online-all", "online-safe"]
            choices |= {"zone": ["movable", "kernel", "auto"], "enter": ["maintenance"], "boot_memory": ["offline"], "floor": ["1GiB"], "exposed_max": ["1%"], "if_onlined": ["offline"], "final": [True], "accept_data_exposure": [True, False],
                        "on_shortfall": ["panic", "reboot", "halt", "continue"]}  # fmt: skip
        for key, options in choices.items():
            for value in options:
                add(f"{name}.{key} = {value}", lambda doc, t=table, k=key, v=value: t(doc).update({k: v}))
            add(f"{name} without {key}", lambda doc, t=table, k=key: t(doc).pop(k, None))
    for index, rule in enumerate(document["rule"]):
        add(f"without rule {index}", lambda doc, i=index: doc["rule"].pop(i))
        if index:
            add(
                f"rules {index - 1} and {index} swapped",
                lambda doc, i=index: doc["rule"].insert(i - 1, doc["rule"].pop(i)),
            )
        for fact, wanted in rule["when"].items():
            listed = wanted if isinstance(wanted, list) else [wanted]
            for value in FACTS[fact][1]:
                changed = [v for v in listed if v != value] if value in listed else [*listed, value]
                add(
                    f"rule {index} {fact} {value}",
                    lambda doc, i=index, f=fact, c=changed: doc["rule"][i]["when"].update({f: c}),
                )
            add(f"rule {index} without {fact}", lambda doc, i=index, f=fact: doc["rule"][i]["when"].pop(f))
            add(
                f"rule {index} not {fact}",
                lambda doc, i=index, f=fact, w=wanted: doc["rule"][i]["when"].update({f: {"not": w}}),
            )
    for sources in (["none"], ["cmdline"], ["kho-scratch"], ["cmdline", "kho-scratch"]):
        add(f"sources {sources}", lambda doc, s=sources: doc.update(safe_region={"sources": s}))
    for key in ("allow_cmdline_override", "open_luo", "retrieve_token", "trust_guard"):
        add(key, lambda doc, k=key: doc.update({k: True}))
    return found


def toml(document: dict[str, Any]) -> str:
    """Return a policy as TOML."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{ " + ", ".join(f"{key} = {value(inner)}" for key, inner in item.items()) + " }"
        if isinstance(item, list):
            return f"[{', '.join(map(value, item))}]"
        return (
            {True: "true", False: "false"}[item]
            if isinstance(item, bool)
            else repr(item)
            if isinstance(item, int)
            else f'"{item}"'
        )

    lines = [f"{key} = {value(item)}" for key, item in document.items() if not isinstance(item, (dict, list))]
    for key, item in document.items():
        for table in item if isinstance(item, list) else [item] if isinstance(item, dict) else []:
            lines += ["", f"[[{key}]]" if isinstance(item, list) else f"[{key}]"]
            lines += [f"{name} = {value(inner)}" for name, inner in table.items()]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_mutants_are_noticed(path: Path, tmp_path: Path) -> None:
    """At least 95 % of all one-step changes fail to load, fail `check --strict`, or fail a case."""
    document = tomllib.loads(path.read_text())
    (tmp_path / "cases.toml").write_text(path.with_suffix(".cases.toml").read_text().replace(path.name, "mutant.toml"))
    original, survivors, total = load.read(path), [], 0
    for what, mutant in mutants(document):
        (tmp_path / "mutant.toml").write_text(toml(mutant))
        try:
            changed = load.read(tmp_path / "mutant.toml")
        except load.PolicyError:
            total += 1
            continue
        if changed._replace(digest="") == original._replace(digest=""):
            continue  # a default written out: the same policy
        space = Space(changed, original)
        before, after = (Outcomes(space, item) for item in (original, changed))
        if all(
            before.rule(state) == after.rule(state)._replace(when=before.rule(state).when) for state in before.of
        ) and (changed._replace(rules=(), digest="") == original._replace(rules=(), digest="")):
            continue  # another way to write the same decisions, such as two rules that never meet swapped
        total += 1
        found = invariants.check(changed, Outcomes(Space(changed), changed))
        result = cases.run(tmp_path / "cases.toml")
        if not any(item.level != "note" for item in found) and all(not verdict.fault for verdict in result.verdicts):
            survivors.append(what)
    print(f"{path.stem}: {total - len(survivors)} of {total} mutants noticed; survived: {survivors}")
    assert total > 20
    assert len(survivors) <= total * 0.05


def test_many_rules(tmp_path: Path) -> None:
    """200 rules with 30 different releases, and every state of them."""
    source = random.Random(1)
    releases = [f"{major}.{minor}" for major in (5, 6, 7) for minor in range(10)]
    rules = "".join(
        f'[[rule]]\nname = "r{index}"\nwhen = {{ handover = "{source.choice(["none", "accepted"])}", luo = "{source.choice(["ready", "off"])}",'
        f' kernel = ">={source.choice(releases)}, <{source.choice(releases)}.{index}" }}\naction = "online-safe"\nmessage = "{index}"\n'
        for index in range(200)
    )
    text = f'format = 1\nname = "many"\n{rules}[otherwise]\naction = "panic"\n[on_failure]\naction = "panic"\n'
    target = load.parse(text.encode(), "many").policy
    space = Space(target)

    assert len(space.classes[space.facts.index("kernel")]) > 60
    assert len(Outcomes(space, target).of) > 4_000


def test_too_much_to_look_at() -> None:
    """A policy beyond any review is refused with the reason."""
    names = tuple((Term("has", f"n{index}"),) for index in range(20))
    wide = policy(Rule("r", "panic", (Condition("nodes", names),)), sources=("none",))
    with pytest.raises(TooLarge, match="`nodes`: 20 names are 1048576 combinations"):
        Space(wide)


def test_trust_in_the_guard_is_noted() -> None:
    """Where evidence that is no proof makes an outcome more permissive, `check` says so, and for which state."""

    def found(trust: bool) -> list[invariants.Finding]:
        whole = Rule("whole", "online-all", when("handover", Term("is", "none"), Term("is", "accepted")))
        chosen = policy(whole, sources=("none",), trust_guard=trust)
        return [item for item in invariants.check(chosen, Outcomes(Space(chosen), chosen))
                if item.code == "trusts-guard"]  # fmt: skip

    assert found(False) == []
    assert [(item.level, item.rule, item.message, item.example) for item in found(True)] == [(
        "note", "whole",
        "with trust_guard, a handover that nobody can tell ends in online-all instead of panic if the guard is not in force",
        {"handover": "accepted"},
    )]  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "codes"),
    [
        (Condition("preserved", ((Term("is", "no"),),)), {"predecessors-word"}),
        (Condition("preserved", ((Term("is", "yes"),),)), {"exposes-handover"}),
        (Condition("preserved", ((Term("is", UNKNOWN),),)), {"exposes-handover", "unknown-permissive"}),
        (Condition("preserved", ((Term("is", "no"),), (Term("is", "yes"),))), {"exposes-handover", "predecessors-word"}),
        (Condition("preserved", ((Term("is", "yes"),), (Term("is", UNKNOWN),)), negate=True), {"exposes-handover", "predecessors-word"}),
        (Condition("kho", ((Term("is", "on"),),)), {"exposes-handover"}),
    ],
)  # fmt: skip
def test_only_a_rule_that_names_it_takes_the_predecessors_word(condition: Condition, codes: set[str]) -> None:
    """That nothing was preserved exposes no guest, if the rule asks for just that; and it is said whose word that is."""

    def found(*rules: Rule) -> list[invariants.Finding]:
        chosen = policy(*rules, otherwise="panic", sources=("none",))
        return invariants.check(chosen, Outcomes(Space(chosen), chosen))

    asked = (*when("handover", Term("is", "rejected")), condition)
    codes_found = {item.code for item in found(Rule("idle", "online-all", asked))}
    wanted = {"exposes-handover", "unknown-permissive", "predecessors-word"}
    assert codes_found & wanted == codes
    # Who accepts the exposure all the same is told that it changes nothing.
    accepted = found(Rule("idle", "online-all", asked, accept_data_exposure=True))
    assert ("idle-acceptance" in {item.code for item in accepted}) == (codes == {"predecessors-word"})


def test_the_predecessors_word_is_noted_with_its_state() -> None:
    """The note names the rule that the word decides, also where another one names the fact."""
    cautious = Rule("cautious", "panic", when("preserved", Term("is", "yes"), Term("is", UNKNOWN)))
    chosen = policy(cautious, otherwise=Rule("otherwise", "online-all", accept_data_exposure=True), sources=("none",))
    (item,) = [
        item for item in invariants.check(chosen, Outcomes(Space(chosen), chosen)) if item.code == "predecessors-word"
    ]

    assert (item.level, item.rule, item.example) == ("note", "otherwise", {"handover": "lost", "preserved": "no"})
    assert item.message == (
        "a handover that was lost ends in online-all where the predecessor says that nothing was preserved: that is its word"
        " alone, on the command line, and nothing here confirms it"
    )


@pytest.mark.parametrize(
    ("condition", "loops"),
    [
        ((Term("<", 3),), False),
        ((Term(">=", 3),), True),
        ((Term("is", 2),), False),
        ((Term("is", UNKNOWN),), True),
        ((Term(">=", 0),), True),
    ],
)
def test_a_count_of_boots_bounds_a_reboot(condition: tuple[Term, ...], loops: bool) -> None:
    """A reboot that is counted ends where the count is beyond the bound; an unknown count never grows."""
    rule = Rule("again", "reboot", (Condition("boot_attempts", (condition,)),))
    chosen = policy(rule, otherwise="halt", sources=("none",))
    found = invariants.check(chosen, Outcomes(Space(chosen), chosen))
    assert ("reboot-loop" in {item.code for item in found}) == loops
