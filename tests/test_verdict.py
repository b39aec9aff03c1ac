# SPDX-License-Identifier: MIT
"""How a boot stands: `status` in that boot and `previous` in the next one say the same of every shape of record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from safemem.boot import account, crashkernel, engine, files, memory, record
from safemem.boot import main as boot
from safemem.boot.model import Blocks, Note, Override, Rule
from safemem.boot.ranges import Range
from safemem.boot.record import Done
from safemem.cli import main
from safemem.host import doctor, history, incidents, reader, required, standing
from safemem.host.verdict import held_then, verdict
from safemem.realroot.hold import EVERYTHING
from tests.fakes import BLOCK, make_root
from tests.kit import install, policy, rule, snapshot

GUARD = {"crash": "01000000-24ffffff", "cmdline": "kho=on safemem.guard=0x1000000-0x24ffffff"}
DRY = {"cmdline": "kho=on safemem.dry_run"}
ALL, SAFE = "online-all", "online-safe"


def run(root: Path, *words: str) -> Result:
    """Run a command on the machine."""
    return CliRunner().invoke(main, [*words, "--root", str(root)])


def booted(base: Path, action: str, policy: dict[str, Any], **options: Any) -> Path:
    """Return a machine that has decided, as the kernel would show it after all writes, and whose record says so."""
    root = make_root(base, offered=True, **options)
    (root / "proc/meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n")
    rule = Rule("otherwise", action, boot_memory=policy.pop("boot_memory", "leave"))
    install(root, otherwise=rule, allow_cmdline_override=True, **policy)
    boot.main(["--root", str(root)])
    for path in (root / "sys/devices/system/memory").glob("memory*/state"):
        path.write_text(path.read_text().split("_")[0].strip() + "\n")
    found = reader.record(str(root / record.RECORD))
    if found.done and not found.done.dry_run:
        left = crashkernel.left(str(root), found.snapshot.guard)
        shares = account.account(
            found.decision, found.snapshot, memory.states(str(root)), (account.Guarded(left),) if left else (), {}, {}
        )
        write(root, found._replace(done=found.done._replace(complete=True, problems=(), shortfall=""), account=shares))
    return root


def write(root: Path, found: reader.Record) -> None:
    """Let the record of this boot be another one."""
    shares = found.account
    text = record.record_text(
        found.snapshot, found.decision, found.done, account.to_json(shares), account.totals(shares)
    )
    files.replace(str(root), record.RECORD, text)


def incomplete(root: Path) -> None:
    """Let a block have refused."""
    found = reader.record(str(root / record.RECORD))
    assert found.done
    write(root, found._replace(done=found.done._replace(complete=False)))


def refused(root: Path, more: tuple[Note, ...] = (), **rule: Any) -> None:
    """Let blocks 6 and 7 have refused to go offline, under a rule with these words, beside `more`."""
    found = reader.record(str(root / record.RECORD))
    assert found.done
    short = rule.pop("shortfall", "")
    done = found.done._replace(complete=False, problems=(REFUSED, *more), shortfall=short)
    decision = found.decision._replace(rule=found.decision.rule._replace(boot_memory="offline", **rule))
    shares = tuple(share._replace(why="hole: not all of it is memory") for share in found.account)
    write(root, found._replace(done=done, decision=decision, account=shares))


def unfinished(root: Path) -> None:
    """Let the boot program have been killed before it was done."""
    write(root, reader.record(str(root / record.RECORD))._replace(done=None, account=()))


def unread(root: Path) -> None:
    """Let nobody be able to read the record."""
    (root / record.RECORD).write_text("{")


REFUSED = Note(
    "not-offline", "blocks 0-7 (0x0-0x3fffffff, 1 GiB) could not be taken offline: hole: not all of it is memory"
)
UNMASKED = Note("not-masked", "udev rules file x.rules could not be masked, so it may online held memory: x")


def refusing(*more: Note, **rule: Any) -> Callable[[Path], None]:
    """Return what lets blocks have refused."""
    return lambda root: refused(root, more, **rule)


HOLD = {"memory": (Override(range=Range(32 * BLOCK, 33 * BLOCK), hold=True),)}
#: The whole of what is offline at first.
ROOM = {"sources": (Range(32 * BLOCK, 40 * BLOCK),)}
SHAPES: list[tuple[str, str, dict[str, Any], dict[str, Any], Callable[[Path], None] | None, str, int]] = [
    ("online-all", ALL, {}, {}, None, "open", 0),
    ("online-all with an exception", ALL, HOLD, {}, None, "held", 4),
    ("online-all without blocks to hold", ALL, HOLD, {"offline": "33-39"}, None, "open", 0),
    ("online-safe", SAFE, {}, {}, None, "held", 4),
    ("online-safe with nothing left to hold", SAFE, ROOM, {}, None, "open", 0),
    ("online-safe with an exception", SAFE, {**ROOM, **HOLD}, {}, None, "held", 4),
    ("guard kept", SAFE, ROOM, GUARD, None, "held", 4),
    ("guard given back", ALL, {}, GUARD, None, "open", 0),
    ("kdump's rest", ALL, {"keep_crashkernel": "256MiB"}, GUARD, None, "open", 0),
    ("boot memory taken offline", SAFE, {**ROOM, "boot_memory": "offline"}, {}, None, "held", 4),
    ("dry run", SAFE, {}, DRY, None, "partly", 64),
    ("dry run of a panic", "panic", {}, DRY, None, "partly", 64),
    ("incomplete", SAFE, {}, {}, incomplete, "partly", 64),
    ("online-all, incomplete", ALL, {}, {}, incomplete, "partly", 64),
    ("a refusal that the policy tolerates", SAFE, {}, {}, refusing(), "held", 4),
    ("within the limit", SAFE, {}, {}, refusing(exposed_max="50%", on_shortfall="panic"), "held", 4),
    ("beyond the limit", SAFE, {}, {}, refusing(exposed_max="1%", shortfall="1 GiB are exposed"), "partly", 64),
    ("a hold that is in doubt", SAFE, {}, {}, refusing(UNMASKED), "partly", 64),
    ("a refusal that ends a boot, and did not", SAFE, {}, {}, refusing(on_shortfall="panic"), "partly", 64),
    ("unfinished", SAFE, {}, {}, unfinished, "partly", 64),
    ("panic", "panic", {}, {}, None, "ended", 5),
    ("reboot", "reboot", {}, {}, None, "ended", 5),
    ("halt", "halt", {}, {}, None, "ended", 5),
    ("not read", SAFE, {}, {}, unread, "unknown", 6),
]


@pytest.mark.parametrize(("action", "policy", "options", "change", "name", "code"),
                         [shape[1:] for shape in SHAPES], ids=[shape[0] for shape in SHAPES])  # fmt: skip
def test_this_boot_and_the_next_one_agree(
    tmp_path: Path, action: str, policy: dict[str, Any], options: dict[str, Any],
    change: Callable[[Path], None] | None, name: str, code: int,
) -> None:  # fmt: skip
    """In text, JSON, and every command and old spelling that ends with it."""
    root = booted(tmp_path, action, dict(policy), **options)
    if change:
        change(root)
    here = [["status"], ["status", "--keep"], ["keep"], ["metrics", "-o", str(tmp_path / "m")],
            ["status", "--prometheus", str(tmp_path / "n")]]  # fmt: skip
    assert {" ".join(words): run(root, *words).exit_code for words in here} == {" ".join(words): code for words in here}
    force = "\nsafemem_decision_in_force "
    assert (f"{force}1\n" in (tmp_path / "m").read_text()) == (name in ("open", "held"))
    if code != 6:
        assert standing.read(str(root)).verdict == name
        assert json.loads(run(root, "status", "--format", "json").stdout)["exit_code"] == code
    (root / history.BOOT_ID).write_text("00000002-1111-4222-8333-444455556666\n")
    assert (run(root, "previous").exit_code, run(root, "status", "--previous").exit_code) == (code, code)
    assert json.loads(run(root, "previous", "--format", "json").stdout)["exit_code"] == code


@pytest.mark.parametrize(("action", "policy", "options", "change", "name", "code"),
                         [shape[1:] for shape in SHAPES], ids=[shape[0] for shape in SHAPES])  # fmt: skip
def test_what_services_require(
    tmp_path: Path, action: str, policy: dict[str, Any], options: dict[str, Any],
    change: Callable[[Path], None] | None, name: str, code: int,
) -> None:  # fmt: skip
    """`decided` is a decision in force, `all` is all memory, `accepted` is never made up; what is not so is said in one line."""
    root = booted(tmp_path, action, dict(policy), **options)
    if change:
        change(root)
    found = {form: run(root, "require", form) for form in required.FORMS}
    force = name in ("open", "held")
    assert {form: result.exit_code for form, result in found.items()} == {
        "decided": 0 if force else code, "all": code, "accepted": 1 if force else code,
    }  # fmt: skip
    for form, result in found.items():
        lines = result.stderr.splitlines()
        assert (result.stdout, len(lines)) == ("", bool(result.exit_code))
        assert all(line.startswith("safemem: ") for line in lines), form


def test_what_is_required_says_why(tmp_path: Path) -> None:
    """What holds memory, what is not in force, and a handover that was accepted or not."""
    root = booted(tmp_path / "a", SAFE, {})
    assert run(root, "require", "all").stderr == (
        "safemem: required `all`: 1 GiB of memory is held back: online-safe by rule `otherwise`, handover rejected;"
        " `safemem release` ends the hold, and what is preserved there is lost\n"
    )
    refused(root, (UNMASKED,))
    assert run(root, "require", "decided").stderr == (
        f"safemem: required `decided`: the decision is only partly in force: {UNMASKED}\n"
    )
    found = standing.read(str(booted(tmp_path / "b", ALL, {})))
    assert found.decision.facts["handover"].value == "rejected"
    handover = found.decision.facts["handover"]._replace(value="accepted")
    decision = found.decision._replace(facts={**found.decision.facts, "handover": handover})
    assert required.lacks(found._replace(record=found.record._replace(decision=decision)), "accepted") is None


def test_what_is_offline_by_itself_stops_nobody(tmp_path: Path) -> None:
    """A block that has just arrived, or that the operator took offline, is none that the decision holds; an exception is."""
    root = booted(tmp_path / "a", ALL, {})
    (root / f"{STATES}/memory39/state").write_text("offline\n")
    assert run(root, "require", "all").exit_code == 0
    root = booted(tmp_path / "b", ALL, dict(HOLD))
    assert "128 MiB of memory is held back" in run(root, "require", "all").stderr


@pytest.mark.parametrize(("state", "code"), [("begun", 4), ("partly", 4), ("done", 0)])
def test_a_release_that_did_not_end_releases_nothing(tmp_path: Path, state: str, code: int) -> None:
    """What is still offline then is still held, whatever was asked for."""
    root = booted(tmp_path, SAFE, {})
    whole = {"time": 1, "reason": "x", "ranges": [EVERYTHING], "state": state, "forced": False, "nodes": []}
    (root / standing.RELEASES).write_text(json.dumps([whole]))
    assert run(root, "require", "all").exit_code == code


STATES = "sys/devices/system/memory"


def _kernel_onlines(root: Path) -> None:
    (root / f"{STATES}/auto_online_blocks").write_text("online_movable\n")


def _nothing_shown(root: Path) -> None:
    shutil.rmtree(root / STATES)


def _not_counted(root: Path) -> None:
    (root / incidents.COUNTS).write_text("{")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_kernel_onlines, "memory that arrives is onlined by the kernel: "), (_nothing_shown, "memory"),
        (_not_counted, "cannot be told"),
    ],
)  # fmt: skip
def test_a_decision_in_doubt_is_not_in_force(tmp_path: Path, change: Callable[[Path], None], why: str) -> None:
    """What was carried out, but is no longer so or cannot be seen, lets nothing start."""
    root = booted(tmp_path, SAFE, {})
    assert run(root, "require", "decided").exit_code == 0
    change(root)
    for form in required.FORMS:
        result = run(root, "require", form)
        assert result.exit_code == 64 and why in result.stderr, (form, result.output)


def test_a_release_is_what_was_required(tmp_path: Path) -> None:
    """After it the VMM may start; what asks for preserved guests may not."""
    root = booted(tmp_path, SAFE, {})
    assert run(root, "require", "all").exit_code == 4
    run(root, "release", "--reason", "lost")
    for path in (root / "sys/devices/system/memory").glob("memory*/state"):
        path.write_text(path.read_text().split("_")[0].strip() + "\n")
    assert [run(root, "require", form).exit_code for form in ("decided", "all", "accepted")] == [0, 0, 1]


def test_without_an_account_the_plan_tells(tmp_path: Path) -> None:
    """A record that lost its account never says that all memory may be used while its plan holds some."""
    found = reader.record(str(booted(tmp_path, SAFE, {}) / record.RECORD))
    assert held_then(found) and held_then(found._replace(account=()))
    assert verdict(found, held=held_then(found)) == "held"


def test_others_undo_a_decision(tmp_path: Path) -> None:
    """Held memory that somebody onlined is no decision in force, whatever was recorded."""
    found = reader.record(str(booted(tmp_path, SAFE, {}) / record.RECORD))
    assert verdict(found, held=True, onlined_by_others=True) == "partly"


def test_what_the_policy_tolerates_is_listed_once(tmp_path: Path) -> None:
    """As exposed memory, with its reason in plain words; a problem it is only where the policy does not let it be."""
    root = booted(tmp_path, SAFE, {})
    refused(root)
    lines = run(root, "status").stdout.splitlines()
    assert [line for line in lines if "hole" in line] == [
        "exposed   0x0-0x3fffffff  1 GiB: hole: not all of it is memory"
    ]
    assert "not-applied" not in {found.code for found in doctor.examine(str(root))}
    refused(root, exposed_max="1%", shortfall="1 GiB of 2 GiB are exposed")
    assert f"problem   {REFUSED}" in run(root, "status").stdout.splitlines()
    assert "not-applied" in {found.code for found in doctor.examine(str(root))}


@pytest.mark.parametrize("action", [ALL, SAFE])
def test_totals_are_of_now(tmp_path: Path, action: str) -> None:
    """After a release memory is where it is now, in text, JSON and metrics, and no byte is in no state."""
    root = booted(tmp_path, action, {} if action == SAFE else dict(HOLD))
    then = json.loads(run(root, "status", "--format", "json").stdout)
    assert then["recorded_totals"] == then["totals"]
    run(root, "release", "--reason", "moved away")
    for path in (root / "sys/devices/system/memory").glob("memory*/state"):
        path.write_text(path.read_text().split("_")[0].strip() + "\n")

    now = json.loads(run(root, "status", "--format", "json").stdout)
    assert now["recorded_totals"] == then["totals"]
    assert now["totals"] == {**dict.fromkeys(account.KINDS, 0), "in_use": 16 * BLOCK}
    shown = run(root, "status").stdout.splitlines()
    assert "memory    2 GiB in use (100 %)" in shown
    assert not [line for line in shown if line.startswith(("exposed", "held"))]


@pytest.mark.parametrize("first", range(32, 40))
def test_a_release_of_some(tmp_path: Path, first: int) -> None:
    """The sum is all memory blocks, whatever was released and whoever has onlined one."""
    root = booted(tmp_path, SAFE, {"sources": (Range(0, BLOCK),)})
    area = f"0x{first * BLOCK:x}-0x{40 * BLOCK - 1:x}"
    run(root, "release", area, "--reason", "moved away")
    for number in range(first, 40):
        (root / f"sys/devices/system/memory/memory{number}/state").write_text("online\n")
    totals = json.loads(run(root, "status", "--format", "json").stdout)["totals"]
    assert totals == {
        "in_use": (40 - first) * BLOCK, "safe": BLOCK, "guarded": 0, "held": (first - 32) * BLOCK,
        "quarantined": 0, "exposed": 7 * BLOCK,
    }  # fmt: skip
    run(root, "metrics", "-o", str(tmp_path / "m"))
    lines = (tmp_path / "m").read_text().splitlines()
    sizes = [int(line.split()[-1]) for line in lines if line.startswith("safemem_memory_bytes{")]
    assert sum(sizes) == 16 * BLOCK


def test_quarantined_memory_that_somebody_onlines_again() -> None:
    """What the decision itself took offline is held from then on: online again, it is somebody else's doing."""
    was, now = (snapshot((Blocks(0, 7, state),), handover="rejected") for state in ("online", "online"))
    decision = engine.decide(policy(otherwise=rule(boot_memory="offline")), was)
    shares = (account.Share("quarantined", 0, 4 * BLOCK), account.Share("exposed", 4 * BLOCK, 8 * BLOCK, "busy"))
    found = standing.Standing(
        reader.Record(decision, Done(complete=True, bytes_quarantined=4 * BLOCK), shares, was), now
    )

    assert (found.onlined_by_others, found.verdict) == ((Range(0, 4 * BLOCK),), "partly")


def test_boot_memory_of_a_node_that_is_held_is_in_use() -> None:
    """After a clean boot an exception exposes nothing: `status` says of it what the record says."""
    was = snapshot(
        (Blocks(0, 3, "online", 1), Blocks(8, 9, "offline", 1), Blocks(10, 11, "offline", 0)), handover="none"
    )
    decision = engine.decide(policy(otherwise="online-all", memory=(Override(node=1, hold=True),)), was)
    now = was._replace(blocks=(*was.blocks[:2], Blocks(10, 11, "online", 0)))
    shares = account.account(decision, was, now.blocks, (), {}, {})
    found = standing.Standing(reader.Record(decision, Done(complete=True), shares, was), now)

    assert found.totals == account.totals(shares)
    assert (found.totals["in_use"], found.totals["held"], found.totals["exposed"]) == (6 * BLOCK, 2 * BLOCK, 0)
