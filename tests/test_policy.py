# SPDX-License-Identifier: MIT
"""Policies in TOML: what they mean, and every error at its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from safemem.boot import compiled, model, ranges
from safemem.boot.model import Condition, Term
from safemem.boot.ranges import Range
from safemem.policy import compiler, installed, language, load
from safemem.policy.space import TooLarge
from tests.fakes import SHIPPED

GOOD = """\
format = 1
name = "test"
[[rule]]
name = "one"
when = { handover = "none" }
action = "online-all"
[otherwise]
action = "panic"
[on_failure]
action = "panic"
"""


def problems(text: str | bytes) -> list[str]:
    """Return the lines of the error that `text` gives."""
    with pytest.raises(load.PolicyError) as caught:
        load.parse(text.encode() if isinstance(text, str) else text, "p.toml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped(path: Path) -> None:
    """Every shipped policy is valid, says for whom it is, and goes through the compiled form unchanged."""
    found = load.read(path)
    assert path.stem == found.name
    assert path.read_text().startswith("# For ")
    assert found == compiled.load(compiler.dump(found), "x")
    assert len(found.digest) == 64


def test_defaults() -> None:
    """What a short policy leaves out has the documented values."""
    found = load.parse(GOOD.encode(), "p.toml").policy
    assert found.sources == ("kho-scratch",)
    assert (found.allow_cmdline_override, found.open_luo) == (False, False)
    assert model.Failure("panic", "", 10) == found.on_failure
    assert model.Rule("one", "online-all", (Condition("handover", ((Term("is", "none"),),)),)) == found.rules[0]
    assert model.Rule("otherwise", "panic") == found.otherwise


@pytest.mark.parametrize(
    "mangle", [lambda s: s.replace("\n", "\r\n"), lambda s: "\ufeff" + s, lambda s: s.rstrip("\n")]
)
def test_files_from_other_systems(mangle: object) -> None:
    """CRLF, a byte-order mark and a missing last newline change nothing."""
    assert callable(mangle)
    assert load.parse(GOOD.encode(), "p").policy == load.parse(mangle(GOOD).encode(), "p").policy


@pytest.mark.parametrize(
    ("when", "condition"),
    [
        ('luo = ["ready", "busy"]', Condition("luo", ((Term("is", "ready"),), (Term("is", "busy"),)))),
        ('luo = { not = "off" }', Condition("luo", ((Term("is", "off"),),), True)),
        (
            'handover = { not = ["none", "unknown"] }',
            Condition("handover", ((Term("is", "none"),), (Term("is", "unknown"),)), True),
        ),
        ('kernel = "7.*"', Condition("kernel", ((Term("glob", "7.*"),),))),
        ('kernel = ">=7.2, <7.4"', Condition("kernel", ((Term(">=", "7.2"), Term("<", "7.4")),))),
        ('kernel = ["unknown", "<7-rc1"]', Condition("kernel", ((Term("is", "unknown"),), (Term("<", "7-rc1"),)))),
        ("kexec_count = 3", Condition("kexec_count", ((Term("is", 3),),))),
        ('kexec_count = "> 3"', Condition("kexec_count", ((Term(">", 3),),))),
        ('nodes = "memory"', Condition("nodes", ((Term("has", "memory"),),))),
        ('nodes = "unknown"', Condition("nodes", ((Term("is", "unknown"),),))),
        ('virt = "qemu"', Condition("virt", ((Term("is", "qemu"),),))),
    ],
)
def test_when(when: str, condition: Condition) -> None:
    """Each way to ask for a fact."""
    found = load.parse(GOOD.replace('handover = "none"', when).encode(), "p").policy
    assert (condition,) == found.rules[0].when
    assert found == compiled.load(compiler.dump(found), "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GiB", 2 << 30), ("0MiB", 0), ("1%", 10), ("0.5%", 5), ("100.0%", 1000), ("0%", 0), ("12.3%", 123)],
)
def test_limits(text: str, expected: int) -> None:
    """Sizes and shares mean what they say, rounded down."""
    assert ranges.parse_limit(text, 1000) == expected


@given(st.text("0123456789.%KMGTiB -", max_size=8))
def test_limits_are_total(text: str) -> None:
    """Whatever is written is a limit within what there is, or refused."""
    try:
        limit = ranges.parse_limit(text, 1000)
    except ValueError:
        return
    assert limit <= 1000 if text.endswith("%") else limit >= 0


def test_sources() -> None:
    """Ranges take their end in."""
    text = GOOD.replace("[[rule]]", '[safe_region]\nsources = ["cmdline", "0x1000-0x1fff"]\n[[rule]]', 1)
    assert ("cmdline", Range(0x1000, 0x2000)) == load.parse(text.encode(), "p").policy.sources


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("format = 1", "format = 2", "p.toml:1:1: format: `2` is not a format that this safemem reads; it reads 1"),
        ("format = 1", "format = nan", "p.toml:1:1: format: `NaN` is not a format that this safemem reads; it reads 1"),
        ("format = 1\n", "", "p.toml:1:1: `format` is missing; add `format = 1`"),
        ('name = "test"', 'name = "test"\nnmae = "x"', "p.toml:3:1: unknown key `nmae`; did you mean `name`?"),
        ('name = "test"', 'name = "a\\nb"', 'p.toml:2:1: name: `"a\\nb"` holds characters that cannot be printed on one line'),
        ('"online-all"', '"online-al"', "p.toml:6:1: rule `one`, action: `online-al` is not one of `online-all`, `online-safe`, `panic`, `reboot`, `halt`; did you mean `online-all`?"),
        ('"none"', '"nine"', "p.toml:5:10: rule `one`, when.handover: `nine` is not one of `none`, `lost`, `accepted`, `rejected`, `orphaned`, `unsupported`, `unknown`; did you mean `none`?"),
        ('"none"', '["none", "nine"]', "p.toml:5:30: rule `one`, when.handover: `nine` is not one of `none`, `lost`, `accepted`, `rejected`, `orphaned`, `unsupported`, `unknown`; did you mean `none`?"),
        ('handover = "none"', 'handovr = "none"', "p.toml:5:10: rule `one`, when: unknown key `handovr`; did you mean `handover`?"),
        ('"none"', "[]", "p.toml:5:10: rule `one`, when.handover: the list is empty, so the rule could never match"),
        ('"none"', "{ nott = 1 }", 'p.toml:5:10: rule `one`, when.handover: expected a value, a list of values, or { not = … }, not `{"nott": 1}`'),
        ('handover = "none"', "", "p.toml:5:1: rule `one`, when: a rule without conditions always matches: that is what [otherwise] is for"),
        ('handover = "none"', 'kernel = "~=7"', "p.toml:5:10: rule `one`, when.kernel: `~=7` is not a comparison; use <, <=, > or >= and commas, such as `>=7.2, <7.4`"),
        ('handover = "none"', 'kernel = "<seven"', "p.toml:5:10: rule `one`, when.kernel: `seven` is not a version that can be compared, such as 7.2, 7.2.1 or 7.2-rc3"),
        ('handover = "none"', 'kernel = "7.[0-3]"', "p.toml:5:10: rule `one`, when.kernel: `7.[0-3]`: only `*` and `?` stand for other characters, `[` does not"),
        ('handover = "none"', "kexec_count = -1", "p.toml:5:10: rule `one`, when.kexec_count: expected a whole number or a comparison such as `>=1, <3`, not `-1`"),
        ('handover = "none"', "kexec_count = true", "p.toml:5:10: rule `one`, when.kexec_count: expected a whole number or a comparison such as `>=1, <3`, not `true`"),
        ('handover = "none"', 'safe_region = "unknown"', "p.toml:5:10: rule `one`, when.safe_region: `safe_region` is always known"),
        ("[otherwise]\naction", "[otherwise]\nenter = 'maintenance'\naction", "p.toml:8:1: otherwise.enter: `enter` has no effect: after `panic` the boot does not go on"),
        ('[otherwise]\naction = "panic"\n', "", "p.toml:1:1: `otherwise` is missing; add what decides if no rule does, such as `[otherwise]` with `action = \"panic\"`"),
        ('[on_failure]\naction = "panic"', '[on_failure]\naction = "online-all"', "p.toml:10:1: on_failure.action: `online-all` is not one of `panic`, `reboot`, `halt`"),
        ("[on_failure]", "[on_failure]\ndeadline = 601", "p.toml:10:1: on_failure.deadline: expected whole seconds from 1 to 600, not `601`"),
        ("[on_failure]", "[on_failure]\ndeadline = 1.5", "p.toml:10:1: on_failure.deadline: expected whole seconds from 1 to 600, not `1.5`"),
        ("[otherwise]", '[[rule]]\nname="one"\nwhen={luo="off"}\naction="halt"\n[otherwise]', "p.toml:8:1: rule `one`, name: rule 1 in line 4 has this name already"),
        ('name = "one"', 'name = "otherwise"', "p.toml:4:1: rule `otherwise`, name: the name `otherwise` is reserved for [otherwise]"),
        ('name = "one"\n', "", "p.toml:3:1: rule 1: `name` is missing; add a name, such as `name = \"…\"`"),
        ('name = "test"', 'name = "test"\nsafe_region.sources = []', "p.toml:3:1: safe_region.sources: the list is empty"),
        ('name = "test"', 'name = "test"\nsafe_region.sources = ["cmdlin"]', "p.toml:3:24: safe_region.sources: `cmdlin` is neither one of `kho-scratch`, `cmdline`, `none` nor a range; did you mean `cmdline`?"),
        ('name = "test"', 'name = "test"\nsafe_region.sources = ["0x2-0x1"]', "p.toml:3:24: safe_region.sources: range `0x2-0x1` is backwards: its end lies before its start"),
        ('name = "test"', 'name = "test"\nsafe_region.sources = ["0x0-0x10000000000000000"]', "p.toml:3:24: safe_region.sources: range `0x0-0x10000000000000000` does not fit into 64 bits"),
        ('name = "test"', 'name = "test"\nsafe_region.sources = ["0x0-0xfff", "0x800-0xfff"]', "p.toml:3:37: safe_region.sources: range `0x800-0xfff` overlaps `0x0-0xfff`"),
        ("[otherwise]", '[otherwise]\nfloor = "1GiB"', "p.toml:8:1: otherwise.floor: `floor` has no effect without `boot_memory = \"offline\"`"),
        ("[otherwise]", '[otherwise]\nfloor = "1 GB"', "p.toml:8:1: otherwise.floor: `1 GB` is not a size, such as 256MiB or 2GiB"),
        ("[otherwise]", '[otherwise]\nfloor = 1', "p.toml:8:1: otherwise.floor: expected a size such as `256MiB`, not `1`"),
        ("[otherwise]", '[otherwise]\nexposed_max = "1%"', "p.toml:8:1: otherwise.exposed_max: `exposed_max` has no effect with `panic`, only with `online-safe`"),
        ('[otherwise]\naction = "panic"', '[otherwise]\nexposed_max = "1%"\naction = "online-safe"', "p.toml:8:1: otherwise.exposed_max: `exposed_max` has no effect while `on_shortfall` is `continue`"),
        ("[otherwise]", '[otherwise]\nboot_memory = "offline"', "p.toml:8:1: otherwise.boot_memory: `boot_memory` has no effect with `panic`, only with `online-safe`"),
        ("[otherwise]", '[otherwise]\nif_onlined = "offline"', "p.toml:8:1: otherwise.if_onlined: `if_onlined` has no effect: `panic` leaves no memory held"),
        ('"online-all"', '"online-all"\nfinal = true', "p.toml:7:1: rule `one`, final: `final` has no effect: `online-all` leaves no memory held"),
        ("[otherwise]", "[[memory]]\nnode = 0\ndriver = 'kmem'\nhold = true\n[otherwise]", "p.toml:7:1: memory: needs exactly one of `range`, `node` and `driver`, and has 2"),
        ("[otherwise]", "[[memory]]\nnode = -1\nhold = true\n[otherwise]", "p.toml:8:1: memory.node: expected the number of a NUMA node from 0 to 65536, not `-1`"),
        ("[otherwise]", "[[memory]]\nnode = 0\nhold = false\n[otherwise]", "p.toml:9:1: memory.hold: expected true, or a `zone` instead of this key, not `false`"),
        ("[otherwise]", "[[memory]]\nnode = 0\n[otherwise]", "p.toml:7:1: memory: needs `hold = true` or a `zone`, and not both"),
        ("[otherwise]", "[[memory]]\nrange = '0x0-0xfff'\nhold = true\n[[memory]]\nrange = '0x800-0xfff'\nhold = true\n[otherwise]", "p.toml:11:1: memory.range: range `0x800-0xfff` overlaps `0x0-0xfff`"),
        ("[otherwise]", '[otherwise]\nexposed_max = "101%"', "p.toml:8:1: otherwise.exposed_max: `101%` is not a share from 0% to 100% with one decimal at most, such as 1% or 0.5%"),
        ("[otherwise]", '[otherwise]\nexposed_max = "0.55%"', "p.toml:8:1: otherwise.exposed_max: `0.55%` is not a share from 0% to 100% with one decimal at most, such as 1% or 0.5%"),
        ("[otherwise]", '[otherwise]\nexposed_max = 5', "p.toml:8:1: otherwise.exposed_max: expected a size such as `2GiB` or a share such as `1%`, not `5`"),
        ('name = "test"', f'name = "{"ü" * 126}"', f"p.toml:2:1: name: `{'ü' * 60}…` is longer than the 250 bytes that a line of the kernel's log has for it"),
        ('"none"', f'"none", arch = "{"x" * 251}"', f"p.toml:5:29: rule `one`, when.arch: `{'x' * 60}…` is longer than 250 bytes"),
        ('handover = "none"', "nodes = 2", "p.toml:5:10: rule `one`, when.nodes: expected the name of a producer in the handover, such as `LUO` (NUMA nodes are `numa_nodes`), not `2`"),
        ('handover = "none"', "kernel = 7.2", "p.toml:5:10: rule `one`, when.kernel: expected a release, a glob or a comparison such as `>=7.2, <7.4`, not `7.2`; put it in quotes: `\"7.2\"`"),
        ('action = "online-all"', 'action = "maintenance"', "p.toml:6:1: rule `one`, action: `maintenance` is not one of `online-all`, `online-safe`, `panic`, `reboot`, `halt`; `enter = \"maintenance\"` is another key"),
        ("[otherwise]", "[otherwise]\nallow_cmdline_override = true", "p.toml:8:1: otherwise: `allow_cmdline_override` is a key of the policy: it goes to the top, before the first table"),
        ("[otherwise]", "[otherwise]\nmemory = [{ node = 1, hold = true }]", "p.toml:8:1: otherwise.memory: `memory` has no effect: `panic` onlines nothing that could be excepted"),
        ('action = "online-all"', 'action = "online-all"\nmemory = [{ node = 1 }]', "p.toml:7:11: rule `one`, memory: needs `hold = true` or a `zone`, and not both"),
        ('action = "online-all"', 'action = "online-all"\nmemory = [{ node = 1, holds = true }]', "p.toml:7:23: rule `one`, memory: unknown key `holds`; did you mean `hold`?"),
        ('name = "test"', 'name = "test"\nname = "twice"', "p.toml:3:15: not valid TOML: cannot overwrite a value: `name = \"twice\"`; it is given twice"),
    ],
)  # fmt: skip
def test_one_error(old: str, new: str, expected: str) -> None:
    """Each mistake gives one message: file, line, column, where, what, and what to do."""
    assert old in GOOD
    assert [expected] == problems(GOOD.replace(old, new, 1))


def test_no_rules() -> None:
    """An empty list of rules and no list give the same advice."""
    table = GOOD[GOOD.index("[[rule]]") : GOOD.index("[otherwise]")]
    advice = "there are no rules: add a [[rule]] with name, when and action"
    assert [f"p.toml:1:1: {advice}"] == problems(GOOD.replace(table, ""))
    assert [f"p.toml:3:1: rule: {advice}"] == problems(GOOD.replace(table, "rule = []\n"))


def test_all_errors_at_once() -> None:
    """Every mistake is told in one run, in the order of the file."""
    text = GOOD.replace("format = 1", "format = 3").replace('"none"', '"x"').replace('"panic"', '"y"')
    assert [line.split(":")[1] for line in problems(text)] == ["1", "5", "8", "10"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x7fELF\x80", "p.toml:1:5: byte 0x80 is not UTF-8 text: is this a TOML file?"),
        (b"x" * (load.MAX_SIZE + 1), "p.toml:1:1: the file is larger than 1 MiB: this is no policy"),
        (b"a = " + b"[" * 5000, "p.toml:1:1: the file is nested too deeply"),
        (b"a = " + b"1" * 5000, "p.toml:1:1: the file holds a number with thousands of digits"),
        (b"name = ", "p.toml:1:8: not valid TOML: invalid value: `name =`; text stands in quotes"),
    ],
)
def test_no_toml(data: bytes, expected: str) -> None:
    """What is no TOML at all is told from a policy with mistakes."""
    assert [expected] == problems(data)


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.integers(0, len(GOOD) - 1).map(lambda n: GOOD[:n].encode())
)
def test_total(data: bytes) -> None:
    """Whatever the file holds, the answer is a policy or a PolicyError."""
    try:
        load.parse(data, "p")
    except load.PolicyError as error:
        assert str(error).startswith("p:")


def words(table: type[BaseModel], key: str) -> tuple[str, ...]:
    """Return the words that `key` of a table may be, as an editor is told them."""
    schema = table.model_json_schema()["properties"][key]
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    return tuple(word for option in options for word in option.get("enum", [option.get("const")]))


def test_models_name_what_the_engine_knows() -> None:
    """The words of the language are the words of model.py and compiled.py."""
    assert words(language.Outcome, "action") == model.ACTIONS
    assert words(language.Failure, "action") == model.FINAL
    assert words(language.Outcome, "zone") == words(language.Memory, "zone") == model.ZONES
    assert words(language.Memory, "driver") == model.DRIVERS
    assert words(language.Outcome, "on_shortfall") == compiled.ON_SHORTFALL
    assert words(language.Outcome, "enter") == compiled.ENTER
    assert words(language.Outcome, "boot_memory") == compiled.BOOT_MEMORY
    assert words(language.Outcome, "if_onlined") == compiled.IF_ONLINED
    assert list(model.FACTS) == list(language.When.model_fields)


@pytest.mark.parametrize("refusal", [load.PolicyError, TooLarge, compiled.Invalid, installed.Untrusted])
def test_what_is_wrong_with_a_policy_is_a_refusal(refusal: type[model.Refused]) -> None:
    """The command line catches one parent, and ends with the code of an invalid input."""
    assert issubclass(refusal, model.Refused)
    assert refusal.kind == "invalid"
