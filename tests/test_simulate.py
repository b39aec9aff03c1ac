# SPDX-License-Identifier: MIT
"""`simulate` tells the whole outcome: what comes of a decision, on machines that are described, captured or on record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings

from safemem.boot import account, engine, plan
from safemem.boot.model import FINAL, Blocks, Room, Rule, Snapshot, Step
from safemem.boot.ranges import Range
from safemem.cli import main
from safemem.host import reader, tried
from safemem.policy import forecast, imagined, load, matrix
from safemem.render import decision as render
from tests.draws import machines, policies
from tests.fakes import BLOCK, MIB, make_root
from tests.kit import POLICY, policy, rule, snapshot

DEFAULT = str(POLICY)
TAKES_OFF = """\
format = 1
name = "takes-off"
[[rule]]
name = "lost"
when = { handover = "rejected" }
action = "online-safe"
enter = "maintenance"
boot_memory = "offline"
exposed_max = "1%"
on_shortfall = "panic"
[otherwise]
action = "online-all"
accept_data_exposure = true
[on_failure]
action = "panic"
"""
NODES = "2 nodes of 1GiB, DIMM 1GiB on node 1, DIMM 512MiB, guard 400MiB on node 1"


def run(*words: str, columns: int = 80) -> Result:
    """Run the command as a terminal of some width would."""
    return CliRunner().invoke(main, list(words), env={"COLUMNS": str(columns)})


def written(folder: Path, text: str) -> str:
    """Return a policy file."""
    path = folder / "p.toml"
    path.write_text(text)
    return str(path)


# ---- machines in words


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("1GiB, DIMM 1GiB", [(0, 7, "online", 0, "dimm"), (32, 39, "offline", 0, "dimm")]),
        ("2 nodes of 1GiB", [(0, 7, "online", 0, "dimm"), (8, 15, "online", 1, "dimm")]),
        ("4GiB", [(0, 23, "online", 0, "dimm"), (32, 39, "online", 0, "dimm")]),
        ("512GiB, cxl 256GiB on node 2", [(0, 256, "online", 0, "dimm"), (257, 384, "offline", 2, "kmem")]),
        ("1GiB, 2 virtio-mem 512MiB on node 1", [(0, 7, "online", 0, "dimm"), (32, 35, "offline", 1, "virtio-mem"), (36, 39, "offline", 1, "virtio-mem")]),
    ],
)  # fmt: skip
def test_a_machine_in_words(text: str, blocks: list[tuple[Any, ...]]) -> None:
    """Blocks lie where a server of that kind has them."""
    assert [tuple(run) for run in imagined.imagine(text).blocks] == blocks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`` describes no part of a machine"),
        ("DIMM 1GiB", "boot memory is missing: begin with such as `2 nodes of 512GiB`"),
        ("1GiB, 2GiB", "`2GiB`: boot memory is given twice"),
        ("1GiB, DIMM 100MiB", "100 MiB are not whole memory blocks of 128 MiB"),
        ("1GiB, guard 2GiB", "guard 2 GiB does not fit: node 0 has 768 MiB for it in one piece"),
        ("1GiB, guard 128MiB on node 1", "guard on node 1: nodes with boot memory are 0 to 0"),
        ("1GiB, blocks of 100MiB", "blocks of 100 MiB: a power of 2 from 16MiB to 64GiB is one"),
        ("0 nodes of 1GiB", "a machine has 1 to 1,024 nodes"),
    ],
)
def test_no_machine_in_words(text: str, message: str) -> None:
    """What cannot be understood is said, and what could."""
    result = run("simulate", DEFAULT, "--machine", text)

    assert (result.exit_code, "Traceback" in result.output) == (3, False)
    assert message in result.output


# ---- what comes of it


def test_a_limit_that_cannot_be_met_is_read_at_the_desk(tmp_path: Path) -> None:
    """The kernel's own block, a hole and what is beside the guard stay online, so one percent cannot be."""
    words = ("simulate", written(tmp_path, TAKES_OFF), "--machine", NODES, "--set", "handover=rejected")
    result = run(*words, columns=120)

    assert result.exit_code == 5
    lines = result.output.splitlines()
    assert lines[0] == "online-safe, then panic  handover rejected"
    stays = {line.split("  ")[-2].strip(): line for line in lines if line.startswith("  leave online")}
    assert stays["block 0"].endswith("(kernel text or data)")
    assert stays["block 7"].endswith("(it has a hole: not all of it is memory)")
    assert stays["block 10"].endswith("(a guard keeps a part of it, which nothing can move)")
    assert any(line.startswith("  take offline") and "blocks 1-6" in line for line in lines)
    assert "! stays online, unprotected" in result.output
    end = "  on_shortfall = panic: at best 368 MiB of 3.5 GiB stay exposed, and the policy allows 1%, 35.8 MiB"
    assert end in lines
    assert not any("arrives later" in line for line in lines)
    document = json.loads(run(*words, "--format", "json").output)
    assert (document["exit_code"], document["outcome"]["ends"], document["outcome"]["sure"]) == (5, "panic", True)
    assert document["outcome"]["totals"]["exposed"] == 368 * MIB
    assert document["outcome"]["exposed_limit"] == 3584 * MIB // 100


def test_what_the_rest_of_the_boot_will_be(tmp_path: Path) -> None:
    """`enter`, arrivals, `if_onlined`, `final`: each has its line, and nodes are in the plan."""
    text = TAKES_OFF.replace('exposed_max = "1%"\n', 'exposed_max = "50%"\nfinal = true\nif_onlined = "offline"\n')
    text = text.replace('"50%"\n', '"50%"\nmemory = [{ node = 1, hold = true }]\n')
    result = run("simulate", written(tmp_path, text), "--machine", NODES, "--set", "handover=rejected", columns=120)

    assert result.exit_code == 4
    assert "at best " in result.output
    for line in (
        "on_shortfall = panic if more than 50%, 1.8 GiB, is exposed; as far as this state tells that is not so,"
        " and a page that cannot be moved may make it so",
        "enter = maintenance: the boot goes on to it, and no guest starts by itself",
        "memory that arrives later is held, but for what lies in the safe region",
        "if_onlined = offline: held memory that somebody onlines is reported and counted, taken offline again",
        "final = true: `release` ends this hold only with --force",
    ):
        assert f"  {line}" in result.output.splitlines()
    held = next(line for line in result.output.splitlines() if line.startswith("  hold ") and "node 1" in line)
    assert "1 GiB  node 1  blocks 32-39" in held


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["handover=none", "previous_kernel=7.2.0"],
            "only an accepted handover shows producers, a predecessor and a count",
        ),
        (["handover=accepted", "guard=held"], "a guard is in force as a whole only if nothing was accepted"),
    ],
)
def test_an_impossible_state_is_called_so(words: list[str], says: str) -> None:
    """The decision is shown as well: somebody may have made a record by hand."""
    options = [option for word in words for option in ("--set", word)]
    result = run("simulate", DEFAULT, *options)

    assert f"impossible: no machine shows this: {says}" in result.output
    assert json.loads(run("simulate", DEFAULT, *options, "--format", "json").output)["impossible"] == [says]


@pytest.mark.parametrize("text", [">=7.2", "7.*", "<1", "=7", "!7", ""])
def test_a_condition_is_no_value(text: str) -> None:
    """A machine has one release."""
    result = run("simulate", DEFAULT, "--set", f"kernel={text}")

    assert result.exit_code == 2
    assert f"--set kernel: `{text}` is a condition; a machine has one value, such as `7.3.4`" in result.output


def test_a_handover_that_is_set_takes_its_tree_with_it(tmp_path: Path) -> None:
    """What a capture says of its own handover is no reason for one that was put in its place."""
    root = make_root(tmp_path)
    result = run("simulate", DEFAULT, "--root", str(root), "--set", "handover=accepted", "--format", "json")

    fact = json.loads(result.output)["snapshot"]["facts"]["previous_kernel"]
    assert (fact["value"], fact["source"]) == ("unknown", "--set")


def test_a_guard_that_is_set_has_a_place() -> None:
    """The states that `check` names can be pasted, and mean what they say."""
    held = json.loads(run("simulate", DEFAULT, "--set", "guard=held", "--format", "json").output)
    void = json.loads(run("simulate", DEFAULT, "--machine", NODES, "--set", "guard=void", "--format", "json").output)

    assert held["snapshot"]["guard"] == "0x20000000-0x3fffffff"
    assert void["snapshot"]["guard"] is None
    said = "guard = full  (--set: where it lies is imagined, as half of the largest piece of memory: `guard SIZE on node N`"
    assert said in run("simulate", DEFAULT, "--set", "guard=full", columns=300).output
    given = run("simulate", DEFAULT, "--machine", "8GiB, guard 1GiB", "--set", "guard=full", columns=300).output
    assert "guard = full  (--set)\n" in given


def test_paths_begin_at_the_root(tmp_path: Path) -> None:
    """A reader takes `sys/kernel` for a path below the folder they are in."""
    output = run("simulate", DEFAULT, "--root", str(make_root(tmp_path)), columns=200).output

    assert "handover = none, proven  (/sys/kernel/boot_params/data: no handover was offered)" in output
    assert not [line for line in output.splitlines() if " sys/" in line or "(sys/" in line]


# ---- forecast against the account


@settings(deadline=None, max_examples=300)
@given(policies(), machines())
def test_the_forecast_accounts_for_all_memory(drawn: Any, met: Any) -> None:
    """Each byte once, an end only where the decision or `on_shortfall` says so, and never less exposed than can be."""
    decision = engine.decide(drawn, met.snapshot)
    found = forecast.forecast(decision, met.snapshot)

    if decision.action in FINAL:
        assert (found.ends, found.totals) == (decision.action, {})
        return
    size = met.snapshot.block_size
    assert sum(found.totals.values()) == size * sum(run.number for run in met.snapshot.blocks)
    assert found.ends in ("", decision.rule.on_shortfall)
    wanted = {n for step in decision.steps if step.op == "offline" for n in range(step.first, step.last + 1)}
    assert set(found.stays) <= wanted
    everything = forecast.Tried(frozenset(wanted), dict.fromkeys(wanted, "busy"), whole=True)
    worst = forecast.forecast(decision, met.snapshot, everything)
    assert worst.totals["exposed"] >= found.totals["exposed"]
    assert worst.sure


def test_what_a_boot_has_tried_is_known() -> None:
    """What went offline then goes now, what refused refuses, and the floor is not asked again."""
    chosen = policy(otherwise=rule(boot_memory="offline", on_shortfall="panic", exposed_max="10%"))
    met = snapshot((Blocks(0, 9, "online"),), handover="rejected")._replace(room=Room(ram=(Range(0, 10 * BLOCK),)))
    decision = engine.decide(chosen, met)
    free = forecast.forecast(decision, met)
    ten = frozenset(range(10))
    known = forecast.forecast(decision, met, forecast.Tried(ten, {3: "unmovable: busy"}, whole=True))
    two = forecast.forecast(decision, met, forecast.Tried(ten, {3: "busy", 4: "busy"}, whole=True))

    # At best the floor stays: 128 MiB and a part of what there is are one block and a bit.
    assert (free.totals["exposed"], free.sure, free.ends) == (2 * BLOCK, True, "panic")
    assert (known.totals["exposed"], known.sure, known.ends, known.stays) == (BLOCK, True, "", {3: "unmovable: busy"})
    assert (two.ends, two.short) == (
        "panic",
        "at best 256 MiB of 1.2 GiB stay exposed, and the policy allows 10%, 128 MiB",
    )


# ---- the matrix


def test_the_matrix_has_every_fact_that_the_policy_asks_for(tmp_path: Path) -> None:
    """Not knowing a release is one state of several, not the frame of all."""
    text = TAKES_OFF.replace('{ handover = "rejected" }', '{ handover = "rejected", kernel = ">=7.2" }')
    path = written(tmp_path, text)
    document = json.loads(run("simulate", path, "--matrix", "--format", "json").output)

    assert list(document["states"][0]["facts"]) == ["handover", "kernel"]
    assert (
        run("simulate", path, "--matrix").output.splitlines()
        == [
            "handover                                                kernel          decision                   by rule",
        ]
        or "rejected" in run("simulate", path, "--matrix").output
    )
    listed = run("simulate", path, "--matrix", columns=60).output.splitlines()
    assert listed[listed.index("online-safe + maintenance by `lost`") + 1] == "    handover rejected; kernel >=7.2"
    assert "    handover rejected; kernel other, unknown" in listed
    wide = run("simulate", path, "--matrix", columns=160).output.splitlines()
    assert wide[0].split() == ["handover", "kernel", "decision", "by", "rule"]
    assert max(map(len, listed)) <= 60
    fixed = run("simulate", path, "--matrix", "--set", "kernel=7.3.4", columns=160).output.splitlines()
    assert fixed[0].split() == ["handover", "decision", "by", "rule"]
    assert fixed[-1] == "in every row kernel = 7.3.4  (--set)"


def test_the_matrix_of_a_machine_keeps_what_the_machine_is(tmp_path: Path) -> None:
    """Its kernel and its blocks do not change with the handover."""
    text = TAKES_OFF.replace('{ handover = "rejected" }', '{ handover = "rejected", kernel = ">=7.2", luo = "ready" }')
    words = ("simulate", written(tmp_path, text), "--root", str(make_root(tmp_path)), "--matrix", "--format", "json")
    document = json.loads(run(*words).output)

    assert document["given"] == {"kernel": "7.3.4"}
    assert {state["facts"]["handover"] for state in document["states"]} >= {"none", "accepted", "rejected", "orphaned"}


@settings(deadline=None, max_examples=150)
@given(policies())
def test_the_table_says_what_its_states_say(drawn: Any) -> None:
    """Each state lies in exactly one row, and that row has its outcome."""
    met = imagined.imagine(imagined.DEFAULT)
    found = matrix.matrix(drawn, met, set(), whole=True)
    closed = found.columns
    for state, decision in found.states:
        rows = [
            row
            for row in found.rows
            if all(
                matrix.ANY in values or state[name] in values for name, values in zip(closed, row.values, strict=True)
            )
        ]
        assert [(row.decision.action, row.decision.rule.name) for row in rows] == [
            (decision.action, decision.rule.name)
        ]


def test_a_matrix_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    """With what to do."""
    asked = ", ".join(
        f'{fact} = "x*"' for fact in ("arch", "virt", "product", "machine_class", "kernel", "previous_kernel")
    )
    numbers = 'kexec_count = ">=1, <9", boot_attempts = ">=2, <7", numa_nodes = ">=3, <5"'
    text = TAKES_OFF.replace('{ handover = "rejected" }', f'{{ handover = "rejected", {asked}, {numbers} }}')
    result = run("simulate", written(tmp_path, text), "--matrix")

    assert result.exit_code == 3
    assert "states are no table: give some facts with --set" in result.output


def test_a_large_machine_is_no_work() -> None:
    """The plan for 262,144 blocks is a handful of steps, and so is its forecast."""
    chosen = load.parse(TAKES_OFF.encode(), "p").policy
    met = imagined.imagine("8 nodes of 64TiB, blocks of 2GiB")
    met = met._replace(facts={**met.facts, "handover": met.facts["handover"]._replace(value="rejected")})
    found = forecast.forecast(engine.decide(chosen, met), met)

    assert sum(run.number for run in met.blocks) > 262_000
    # What stays available grows with the machine: more than one percent of it.
    assert found.ends == "panic"
    assert 7 << 40 < found.totals["exposed"] < 9 << 40
    assert tuple(found.totals) == account.KINDS


def test_a_record_says_what_happened(tmp_path: Path) -> None:
    """Beside what the policy at hand would do: another one than decided then, or the same."""
    record = str(Path(__file__).parent / "records/0.1.0-online-safe.json")
    words = ("simulate", written(tmp_path, TAKES_OFF), "--state", record)
    document = json.loads(run(*words, "--format", "json").output)

    happened = document["happened"]
    assert (happened["action"], happened["rule"], happened["policy"], happened["ends"]) == (
        "online-safe",
        "otherwise",
        "test",
        None,
    )
    says = "happened: online-safe by rule `otherwise` of policy `test`; 128 MiB held (16.6 %), 640 MiB exposed (83.3 %)"
    assert any(says in line for line in run(*words, columns=200).output.splitlines())


def test_a_terminal_gets_lines_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 50 columns too; what is drawn is as wide as there is room, and addresses are never cut."""
    monkeypatch.setattr("safemem.render.text.terminal_width", lambda: 50)
    lines = run("simulate", DEFAULT, "--machine", NODES, "--set", "handover=rejected", columns=50).output.splitlines()

    assert "" in lines
    long = [line for line in lines[1:] if len(line) > 50]
    assert not [line for line in long if "[" in line and "]" in line]
    assert all(len(line.split()) <= 3 for line in long), long


@pytest.mark.parametrize("own", [True, False])
def test_a_record_of_another_policy_says_nothing_of_the_floor(own: bool) -> None:
    """What refused for want of room may go with another floor, and what went may have no room with another."""
    text = (Path(__file__).parent / "records/0.1.0-online-safe.json").read_text()
    record = reader.record_from_text(text, "record")
    record = record._replace(
        account=(
            account.Share("exposed", 0, BLOCK, "below the floor: 1 GiB of memory have to stay available"),
            account.Share("exposed", BLOCK, 2 * BLOCK, "unmovable: device or resource busy"),
            account.Share("quarantined", 2 * BLOCK, 3 * BLOCK),
        ),
        decision=record.decision._replace(
            steps=(Step("offline", 0, 3 * BLOCK, 0, 2),),
        ),
    )
    found = tried.of(record, record.decision.policy.digest if own else "another")

    assert (found.blocks, set(found.refused), found.whole) == (
        (frozenset({0, 1, 2}), {0, 1}, True) if own else (frozenset({1}), {1}, False)
    )


def test_what_the_command_line_asks_for_is_said() -> None:
    """A dry run ends nothing; a policy that is named is not at hand."""
    met = machine_with(overrides=("dry-run", "policy=strict"), handover="rejected")
    chosen = policy(otherwise="panic", allow_cmdline_override=True)
    decision = engine.decide(chosen, met)
    shown = render.Simulation(decision, met, forecast.Forecast("", dry_run=True, sure=False))

    assert list(render.outcome(shown)) == [
        "nothing of this is done: safemem.dry_run on the command line",
        "the command line names policy `strict`, which is not looked at here: it may make this stricter",
    ]


@pytest.mark.parametrize(("limit", "ends"), [("", "panic"), ("50%", "")])
def test_a_block_on_its_way_offline(limit: str, ends: str) -> None:
    """Without a limit it is a shortfall, as the boot program has it; within one it is not; neither is sure."""
    chosen = policy(otherwise=rule(on_shortfall="panic", exposed_max=limit))
    met = snapshot((Blocks(0, 9, "offline"), Blocks(10, 10, "going-offline")), handover="rejected")
    found = forecast.forecast(engine.decide(chosen, met), met)

    assert (found.ends, found.sure) == (ends, False)


def machine_with(*, overrides: tuple[str, ...], **facts: Any) -> Snapshot:
    """Return a machine whose command line asks for something."""
    return snapshot(**facts)._replace(overrides=overrides)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["numa_nodes=7"], "numa_nodes is 2 by the memory that it has"),
        (["held_blocks=no"], "held_blocks is yes by the memory that it has"),
        (["numa_nodes=2"], ""),
    ],
)
def test_a_fact_that_the_memory_contradicts(words: list[str], says: str) -> None:
    """A machine that was described has the nodes and blocks that it has."""
    options = [option for word in words for option in ("--set", word)]
    output = run("simulate", DEFAULT, "--machine", NODES, *options, "--format", "json").output

    assert json.loads(output)["impossible"] == ([says] if says else [])


def test_the_matrix_of_a_machine_in_words(tmp_path: Path) -> None:
    """It has the nodes that were given, and no row for others."""
    text = TAKES_OFF.replace('{ handover = "rejected" }', '{ handover = "rejected", numa_nodes = 2 }')
    words = ("simulate", written(tmp_path, text), "--machine", NODES, "--matrix", "--format", "json")
    document = json.loads(run(*words).output)

    assert document["given"] == {"numa_nodes": "2"}
    assert {state["rule"] for state in document["states"] if state["facts"]["handover"] == "rejected"} == {"lost"}


def test_a_matrix_of_nothing_is_told(tmp_path: Path) -> None:
    """What was set leaves no state that a machine can show."""
    text = TAKES_OFF.replace('{ handover = "rejected" }', '{ handover = "rejected", previous_kernel = "unknown" }')
    words = ("--set", "handover=none", "--set", "previous_kernel=7.1.0")
    result = run("simulate", written(tmp_path, text), "--matrix", *words)

    assert result.exit_code == 3
    assert "no machine shows what was set: only an accepted handover shows producers" in result.output


def test_what_the_user_named_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of the machine begins at its root; that of a file given here does not. Several names are words."""
    (tmp_path / "run").mkdir()
    shutil.copy(Path(__file__).parent / "records/0.1.0-online-safe.json", tmp_path / "run/decision.json")
    monkeypatch.chdir(tmp_path)
    text = TAKES_OFF.replace('{ handover = "rejected" }', '{ handover = "accepted", nodes = "LUO" }')
    words = ("simulate", written(tmp_path, text), "--state", "run/decision.json")
    lines = run(*words, "--set", "handover=accepted", "--set", "nodes=LUO,memblock", columns=200).output.splitlines()

    assert "state   recorded in run/decision.json; set handover=accepted, nodes=LUO,memblock" in lines
    assert "  nodes = LUO memblock  (--set)" in lines


def test_nodes_that_are_not_there_do_not_count() -> None:
    """As the kernel lists them: a DIMM on node 5 makes two."""
    assert imagined.imagine("1GiB, DIMM 1GiB on node 5").facts["numa_nodes"].value == 2


def test_memory_in_two_pieces_has_no_hole() -> None:
    """Where one resource ends and the next begins, a block can go offline; the desk and the boot program ask one function."""
    step = Step("offline", 0, 4 * BLOCK, 0, 3)
    room = Room(ram=(Range(0, BLOCK + 4096), Range(BLOCK + 4096, 3 * BLOCK)), kernel=(Range(BLOCK - 1, BLOCK),))

    assert plan.fixed(step, room, ()) == {0: "kernel", 3: "hole"}


def test_a_block_that_a_guard_ends_in_stays_in_use_whatever_was_tried() -> None:
    """It is never tried, and what is beside the guard in it may be safe: then no share of the record names a reason."""
    guard, rest = Range(0, 2 * BLOCK + (1 << 20)), Range(2 * BLOCK + (1 << 20), 3 * BLOCK)
    found = snapshot((Blocks(0, 7, "online"),))._replace(guard=guard, room=Room(available=1 << 40))
    decided = engine.decide(policy(otherwise=Rule("o", "online-safe", boot_memory="offline"), sources=(rest,)), found)
    told = forecast.forecast(decided, found, forecast.Tried(frozenset(range(8)), {}, 1 << 40))
    assert told.stays == {2: plan.KEPT["guard"]} and told.totals["quarantined"] == 5 * BLOCK
