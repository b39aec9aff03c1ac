# SPDX-License-Identifier: MIT
"""`status` and `release` on fake roots: what is said and recorded; tests/vm/test_hold.py onlines for real."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from safemem.boot import apply, paths, record
from safemem.boot import main as boot
from safemem.boot.model import Plan, Rule
from safemem.boot.ranges import Range, parse_range
from safemem.cli import main
from safemem.host import history, previous, reader, release, standing
from safemem.realroot import storage
from tests.fakes import make_root
from tests.kit import guarded, install


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a machine on which a lost handover was held."""
    found = make_root(tmp_path, offered=True)
    install(found, otherwise=Rule("otherwise", "online-safe", message="handover lost"))
    assert boot.main(["--root", str(found)]) == 0
    return found


def run(root: Path, *words: str) -> Result:
    """Run a command on the machine."""
    return CliRunner().invoke(main, [*words, "--root", str(root)])


def settle(root: Path) -> None:
    """Let the fake blocks show what the kernel would after a write."""
    for state in (root / "sys/devices/system/memory").glob("memory*/state"):
        if state.read_text() == "online_movable":
            state.write_text("online\n")


def test_status_of_a_hold(root: Path) -> None:
    """The outcome first, then why, then what is held; the exit code says it too."""
    result = run(root, "status")

    assert result.exit_code == 4
    lines = result.stdout.splitlines()
    assert lines[0] == "online-safe  handover lost"
    assert "held      0x100000000-0x13fffffff  1 GiB  blocks 32-39: never used in this boot" in lines
    document = json.loads(run(root, "status", "--format", "json").stdout)
    assert (document["exit_code"], document["held"][0]["bytes"]) == (4, 1 << 30)


def test_status_of_a_dry_run(root: Path) -> None:
    """A decision that was not carried out is not in force, and the exit code does not say that it is."""
    path = root / "run/safemem/decision.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "result": {"dry_run": True}}))
    result = run(root, "status")

    assert (result.exit_code, "nothing: this was a dry run" in result.stdout) == (64, True)


def test_status_notices_somebody_else(root: Path) -> None:
    """A held block that is online without a release is a change, and the decision is only partly in force."""
    (root / "sys/devices/system/memory/memory35/state").write_text("online\n")
    result = run(root, "status")

    assert result.exit_code == 64
    assert "changed   0x118000000-0x11fffffff was held and is online now: somebody else did that" in result.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no decision was recorded in this boot: safemem did not run in the initramfs"),
        ("{", "is not JSON"),
        ('{"kind": "decision", "schema": 2}', "schema: 2 is newer"),
    ],
)
def test_no_decision(root: Path, text: str | None, says: str) -> None:
    """No record is a state of its own, for both commands, and nothing is changed."""
    path = root / "run/safemem/decision.json"
    path.unlink() if text is None else path.write_text(text)
    for words in (["status"], ["release", "--reason", "x"]):
        result = run(root, *words)
        assert (result.exit_code, says in result.stderr) == (6, True)
    assert (root / "sys/devices/system/memory/memory32/state").read_text() == "offline\n"


@pytest.mark.parametrize("text", ["{", "[1]", '[{"time": 1, "reason": "x", "ranges": ["y"]}]', '{"a": 1}'])
def test_a_damaged_list_of_releases(root: Path, text: str) -> None:
    """Not knowing what was released is no reason to guess in either direction."""
    (root / standing.RELEASES).write_text(text)
    result = run(root, "status")

    assert (result.exit_code, "released by hand cannot be read" in result.stderr) == (6, True)


def test_release_in_part_then_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges are rounded inwards, the reason is recorded, and only the whole release lets udev go."""
    carry_out = apply.carry_out

    def real(*values: object) -> apply.Result:
        result = carry_out(*values)  # type: ignore[arg-type]
        settle(root)
        return result._replace(problems=())

    monkeypatch.setattr(apply, "carry_out", real)
    assert run(root, "release", "0x104000000-0x11fffffff", "--reason", "guests migrated").exit_code == 0
    states = {n: (root / f"sys/devices/system/memory/memory{n}/state").read_text().strip() for n in range(32, 40)}
    assert [n for n, state in states.items() if state == "online"] == [33, 34, 35]
    assert (root / "run/udev/rules.d/40-vendor.rules").is_symlink()
    result = run(root, "status")
    assert result.exit_code == 4 and "guests migrated" in result.stdout and "changed" not in result.stdout

    assert run(root, "release", "--reason", "all of them").exit_code == 0
    assert not (root / "run/udev/rules.d/40-vendor.rules").is_symlink()
    assert (root / record.ENV).read_text().startswith("SAFEMEM_ARRIVALS=online_movable\n")
    assert run(root, "status").exit_code == 0
    assert len(json.loads((root / standing.RELEASES).read_text())) == 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["release"], 2, "Missing option '--reason'"),
        (["release", "--reason", " "], 2, "say why in one line"),
        (["release", "--reason", "a\nb"], 2, "say why in one line"),
        (["release", "0x5-0x1", "--reason", "x"], 2, "range `0x5-0x1` is backwards"),
        (["release", "0x0-0xfff", "--reason", "x"], 3, "nothing is held wholly inside 0x0-0xfff"),
    ],
)
def test_bad_releases(root: Path, words: list[str], code: int, says: str) -> None:
    """Nothing is onlined and nothing recorded."""
    result = run(root, *words)

    assert (result.exit_code, says in result.stderr) == (code, True)
    assert not (root / standing.RELEASES).exists()


def entries(root: Path, *, durable: bool = False) -> tuple[reader.Release, ...]:
    """Return the releases that this boot sees, or what is on the disk of them."""
    folder = history.current(str(root)) if durable else str(root / "run/safemem")
    return reader.releases(f"{folder}/releases.json")


def test_a_final_hold_needs_force(root: Path) -> None:
    """Nothing is onlined and nothing recorded without it; with it the record and `status` say so."""
    path = root / "run/safemem/decision.json"
    document = json.loads(path.read_text())
    document["decision"]["final"] = True
    path.write_text(json.dumps(document))
    result = run(root, "release", "--reason", "x")

    assert result.exit_code == 1
    assert "rule `otherwise` of policy `test` calls this hold final: nothing was released" in result.stderr
    assert not (root / standing.RELEASES).exists()
    assert (root / "sys/devices/system/memory/memory32/state").read_text() == "offline\n"
    run(root, "release", "--reason", "x", "--force")
    assert [item.forced for item in entries(root)] == [True]
    status = run(root, "status").stdout
    assert "final     the policy says so: `release` needs --force" in status and "(forced) at" in status


def test_force_is_recorded_only_where_it_was_needed(root: Path) -> None:
    """A hold that is not final is not forced, whatever the command says."""
    run(root, "release", "--reason", "x", "--force")
    assert [item.forced for item in entries(root)] == [False]


def test_word_of_a_release_is_on_the_disk_before_the_first_block(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut leaves `begun` and the decision that it ended; the next boot says so, until a release is whole."""
    seen = []

    def cut(*_: object) -> apply.Result:
        seen.append(entries(root, durable=True))
        raise SystemExit(0)

    monkeypatch.setattr(apply, "carry_out", cut)
    monkeypatch.setattr(release, "_note", once(release._note))
    run(root, "release", "--reason", "guests moved away")
    assert [item.state for item in seen[0]] == ["begun"]
    assert "(begun, not finished) at" in run(root, "status").stdout

    (root / history.BOOT_ID).write_text("00000002-1111-4222-8333-444455556666\n")
    (root / standing.RELEASES).unlink()
    says = "in the boot before, a release of 0x0-0xffffffffffffffff was begun and not finished: guests moved away"
    assert f"before    {says}" in run(root, "status").stdout.splitlines()
    before = run(root, "status", "--previous")
    assert "released  0x0-0xffffffffffffffff (begun, not finished) at" in before.stdout
    assert before.stdout.startswith("online-safe  handover lost")


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as it is the first time, and nothing afterwards: the machine is gone."""
    calls: list[int] = []

    def wrapper(*values: Any) -> Any:
        calls.append(1)
        return function(*values) if len(calls) == 1 else []

    return wrapper


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_release_says_so_and_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """What was given back until then is; the record says `partly`, on the disk too; a second run finishes."""
    real = apply.carry_out

    def carry_out(plan: Plan, folder: str, progress: Callable[[int], None]) -> apply.Result:
        def stop(size: int) -> None:
            progress(size)
            signal.raise_signal(number)  # to this thread, at once

        result = real(plan, folder, stop if len(entries(root)) == 1 else progress)
        settle(root)
        return result._replace(problems=())

    monkeypatch.setattr(apply, "carry_out", carry_out)
    # Behind a shell's back, SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    result = run(root, "release", "--reason", "first try")
    signal.signal(signal.SIGINT, before)
    assert (result.exit_code, "interrupted: released in part" in result.stderr) == (64, True)
    settle(root)
    states = [(root / f"sys/devices/system/memory/memory{n}/state").read_text().strip() for n in range(32, 40)]
    assert states == ["online"] + ["offline"] * 7
    assert [item.state for item in entries(root, durable=True)] == ["partly"]
    assert previous.unfinished(entries(root)) == entries(root)

    assert run(root, "release", "--reason", "second try").exit_code == 0
    assert [item.state for item in entries(root, durable=True)] == ["partly", "done"]
    assert previous.unfinished(entries(root)) == ()


def test_releases_at_once_are_all_on_record(root: Path) -> None:
    """Whoever comes second waits, sees what the first has done, and forgets nothing of it."""
    words = [sys.executable, "-c", "from safemem.cli import main; main()", "release", "--root", str(root), "--reason"]
    running = [
        subprocess.Popen([*words, f"number {number}"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for number in range(4)
    ]
    for process in running:
        process.wait()
    assert sorted(item.reason for item in entries(root)) == [f"number {number}" for number in range(4)]
    assert entries(root) == entries(root, durable=True) and {item.state for item in entries(root)} <= {"done", "partly"}


def test_a_release_that_was_planned_before_another(root: Path) -> None:
    """What has been released since a plan was made stays on record."""
    found = standing.read(str(root))
    for number, reason in enumerate(("first", "second")):
        what = release.plan(
            found,
            (parse_range(f"0x{0x100000000 + number * (1 << 27):x}-0x{0x107FFFFFF + number * (1 << 27):x}"),),
            (),
            "auto",
        )
        release.carry_out(str(root), found, what, reason, 5, lambda _: None)
    assert [item.reason for item in entries(root)] == ["first", "second"]


def test_a_release_waits_for_the_lock(root: Path) -> None:
    """Nothing is read, planned or given back before the lock is had."""
    words = [
        sys.executable,
        "-c",
        "from safemem.cli import main; main()",
        "release",
        "--reason",
        "x",
        "--root",
        str(root),
    ]
    with storage.locked(str(root / storage.LOCK)):
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        assert not (root / standing.RELEASES).exists()
    process.wait()
    assert len(entries(root)) == 1


def test_a_history_that_cannot_be_written_is_said_and_no_obstacle(root: Path) -> None:
    """A rescue system has no disk to write to, and its operator may know what he does."""
    (root / "var").write_text("")
    result = run(root, "release", "--reason", "x")

    assert "word of this release will not outlive this boot" in result.stderr
    assert len(entries(root)) == 1


GUARD = "10000000-4fffffff"


@pytest.mark.parametrize(
    ("ranges", "tail"),
    [
        ((), "0x10000000-0x4fffffff"),
        (("0x40000000-0x4fffffff",), "0x40000000-0x4fffffff"),
        (("0x3ff00001-0x13fffffff",), "0x40000000-0x4fffffff"),
        (("0x0-0x4fffffff",), "0x10000000-0x4fffffff"),
        (("0x30000000-0x3fffffff", "0x40000000-0x5fffffff"), "0x30000000-0x4fffffff"),
        (("0x100000000-0x13fffffff",), ""),
        (("0x10000000-0x1fffffff",), "can only be given back from its end"),
        (("0x10000000-0x1fffffff", "0x40000000-0x4fffffff"), "can only be given back from its end"),
        (("0x4fffff00-0x4fffffff",), "can only be given back from its end"),
    ],
)
def test_a_guard_is_given_back_from_its_end(tmp_path: Path, ranges: tuple[str, ...], tail: str) -> None:
    """Only what lies at its end can go; anything else is refused with what is possible."""
    words = f"kho=on liveupdate=on safemem.guard=0x{GUARD.replace('-', '-0x')}"
    root = make_root(tmp_path, offered=True, crash=GUARD, cmdline=words)
    install(root, otherwise=Rule("otherwise", "online-safe"))
    assert boot.main(["--root", str(root)]) == 0
    found = standing.read(str(root))
    areas = tuple(map(parse_range, ranges))
    if "only" in tail:
        with pytest.raises(release.NotPossible, match="START-0x4fffffff, with a START from 0x10000000 up"):
            release.plan(found, areas, (), "movable")
        return
    what = release.plan(found, areas, (), "movable")
    steps = [str(Range(step.start, step.end)) for step in what.plan.steps if step.op == "release-guard"]
    assert steps == ([tail] if tail else [])


def test_a_whole_release_leaves_kdump_its_part_if_it_can_be_used(tmp_path: Path) -> None:
    """Where crash kernels were forbidden, which no kernel takes back in this boot, kdump gets nothing, and that is said."""
    for limit, size in (("-1\n", "268435456"), ("0\n", "0")):
        root = guarded(tmp_path / size, "online-safe", "256MiB")
        assert boot.main(["--root", str(root)]) == 0
        (root / paths.LOAD_LIMIT).write_text(limit)
        (root / paths.CRASH_SIZE).write_text("603979776")
        result = run(root, "release", "--reason", "x")
        assert (root / paths.CRASH_SIZE).read_text() == size
        assert ("kdump gets nothing of the guard" in result.stderr) == (size == "0")
        if size != "0":
            assert "guarded" not in run(root, "status").stdout.split("memory    ")[0]


def test_progress_covers_the_guard(tmp_path: Path) -> None:
    """The bar's length is the bytes that are reported, and the guard ends with what was asked for."""
    words = f"kho=on liveupdate=on safemem.guard=0x{GUARD.replace('-', '-0x')}"
    root = make_root(tmp_path, offered=True, crash=GUARD, cmdline=words, offline="32-49")
    install(root, otherwise=Rule("otherwise", "online-safe"))
    assert boot.main(["--root", str(root)]) == 0
    found = standing.read(str(root))
    what = release.plan(found, (parse_range("0x20000000-0x1ffffffff"),), (), "movable")
    signs: list[tuple[str, int]] = []
    first = root / "sys/devices/system/memory/memory32/state"
    release.carry_out(str(root), found, what, "x", 0, lambda size: signs.append((first.read_text().strip(), size)))

    # What the guard gives back is there before anything is onlined.
    assert [state for state, _ in signs[:3]] == ["offline"] * 3
    assert {state for state, _ in signs[3:]} == {"online_movable"}
    assert sum(size for _, size in signs) == what.size == (3 << 28) + (18 << 27)
    assert (root / paths.CRASH_SIZE).read_text() == str(0x10000000)


def test_watch_refuses_another_policy(root: Path) -> None:
    """The daemon applies the decision of this boot, so it wants the policy that made it."""
    other = Path(__file__).resolve().parent.parent / "policies/maintenance.toml"
    result = run(root, "watch", "--policy", str(other))

    assert result.exit_code == 3
    assert "but this boot was decided by" in result.stderr
