# SPDX-License-Identifier: MIT
"""The boot program on fake roots: everything up to the kernel's own answer, which tests/vm shows."""

from __future__ import annotations

import binascii
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from safemem.boot import (
    account,
    apply,
    compiled,
    console,
    crashkernel,
    engine,
    files,
    hold,
    memory,
    paths,
    probe,
    record,
)
from safemem.boot import main as boot
from safemem.boot.model import Blocks, Failure, Note, Rule, Term
from safemem.host import reader
from safemem.policy import compiler
from tests.fakes import make_root
from tests.kit import NEVER, guarded, install, policy, rule, snapshot, when


def kmsg(root: Path) -> str:
    """Return everything that was written to the fake kernel log, in order."""
    return (root / "dev/kmsg").read_text()


def test_online_safe_holds_and_records(tmp_path: Path) -> None:
    """A lost handover under online-safe: nothing comes online, the record says why, status 0."""
    root = make_root(tmp_path, offered=True)
    (root / "sys/devices/system/memory/auto_online_blocks").write_text("online\n")
    install(root, otherwise=Rule("otherwise", "online-safe"))

    assert boot.main(["--root", str(root)]) == 0

    document: dict[str, Any] = json.loads((root / record.RECORD).read_text())
    assert document["decision"]["action"] == "online-safe"
    assert document["result"]["complete"] is True
    assert document["snapshot"]["facts"]["auto_online"]["value"] == "online"
    assert (root / "sys/devices/system/memory/auto_online_blocks").read_text() == "offline"
    assert {"offline\n"} == {(root / f"sys/devices/system/memory/memory{n}/state").read_text() for n in range(32, 40)}
    # What udev needs to keep it so: the standing decision, and no vendor's rule.
    assert (root / record.ENV).read_text() == (
        "SAFEMEM_ARRIVALS=hold\nSAFEMEM_WHY=online-safe by rule otherwise, policy test\n"
        "SAFEMEM_DRY_RUN=no\nSAFEMEM_FINISHED=yes\n"
    )
    assert (root / "run/udev/rules.d/40-vendor.rules").readlink() == Path("/dev/null")


def test_the_console_tells_it_in_order(tmp_path: Path) -> None:
    """The outcome first, then what it follows from and what is done, then what came of it; last words are urgent."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise="online-safe")
    boot.main(["--root", str(root)])
    assert kmsg(root).splitlines() == [
        "<3>safemem: online-safe: handover rejected (rule `otherwise`, policy `test`)",
        "<3>safemem: handover is rejected: offered, KHO is on, and no incoming tree is shown",
        "<5>safemem: hold 0x100000000-0x13fffffff (1 GiB): outside the safe region",
        "<5>safemem: no safe region is known: no held block is onlined",
        "<5>safemem: 1 GiB were online before the decision and are not protected: 0x0-0x3fffffff",
        "<5>safemem: done: 0 B of 0 B onlined",
        "<5>safemem: 1 GiB held (50.0 %), 1 GiB exposed (50.0 %): only guarded and held memory was never in use in this boot",
    ]

    root = make_root(tmp_path / "panic", offered=True)
    install(root, otherwise="panic")
    boot.main(["--root", str(root)])
    tries = [f"<0>safemem: writing `{key}` to {paths.SYSRQ} did not end this boot" for key in "cb"]
    assert kmsg(root).splitlines()[-4:] == [
        "<0>safemem: end action=panic code=decided",
        "<0>safemem: panic: handover rejected",
        *tries,
    ]


QUIET = 4


@pytest.mark.parametrize(
    ("action", "more", "first"),
    [
        ("online-all", {}, ""),
        ("online-all", {"enter": "maintenance"}, "online-all + maintenance: handover rejected (rule `"),
        ("online-safe", {}, "online-safe: handover rejected (rule `"),
        ("online-safe", {"enter": "maintenance"}, "online-safe + maintenance: handover rejected (rule `"),
        ("panic", {}, "panic: handover rejected (rule `"),
        ("online-safe", {"on_shortfall": "panic"}, "online-safe: handover rejected (rule `"),
    ],
)
def test_what_a_quiet_console_says(tmp_path: Path, action: str, more: dict[str, Any], first: str) -> None:
    """Its level is 4: the decision and its reason unless nothing is out of the ordinary, and the reason of an end."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=Rule("otherwise", action, **more))
    if "on_shortfall" in more:
        (root / "run/udev/rules.d").mkdir(parents=True)
        (root / "run/udev/rules.d/40-vendor.rules").touch()
    for path in (root / "sys/devices/system/memory").glob("memory*/state"):
        path.write_text("online\n") if action == "online-all" else None
    boot.main(["--root", str(root)])
    lines = [line for line in kmsg(root).splitlines() if int(line[1]) < QUIET]
    if not first:
        assert lines == []
        return
    assert lines[0].startswith(f"<3>safemem: {first}") and lines[1].startswith("<3>safemem: handover is rejected: ")
    ends = [line for line in lines if line.startswith("<0>")]
    assert bool(ends) == (action == "panic" or "on_shortfall" in more)
    if "on_shortfall" in more:
        assert ends[1].startswith("<0>safemem: panic: udev rules file 40-vendor.rules could not be masked")


def test_a_panic_is_named_after_us(tmp_path: Path) -> None:
    """Of the kernel's own words about it, the name of the process is the one that is ours to choose."""
    root = make_root(tmp_path, offered=True)
    (root / paths.COMM).parent.mkdir(parents=True)
    (root / paths.COMM).write_text("ld.so\n")
    install(root, otherwise="panic")
    boot.main(["--root", str(root)])
    assert (root / paths.COMM).read_text() == "safemem"


@pytest.mark.parametrize("link", [True, False])
def test_a_rules_file_that_cannot_be_masked_is_reported(tmp_path: Path, link: bool) -> None:
    """What stands where the mask should be, and is none, is a problem in the record, not a mask."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=Rule("otherwise", "online-safe"))
    place = root / "run/udev/rules.d/40-vendor.rules"
    place.parent.mkdir(parents=True)
    place.symlink_to("/usr/lib/udev/rules.d/other.rules") if link else place.touch()
    assert boot.main(["--root", str(root)]) == 0

    result = json.loads((root / record.RECORD).read_text())["result"]
    assert result["complete"] is False
    assert "40-vendor.rules could not be masked" in result["problems"][0]


def test_a_hold_that_will_not_hold_is_a_shortfall(tmp_path: Path) -> None:
    """A vendor's rule that cannot be masked would online everything in coldplug: `on_shortfall` has its say."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=Rule("otherwise", "online-safe", on_shortfall="panic"))
    place = root / "run/udev/rules.d/40-vendor.rules"
    place.parent.mkdir(parents=True)
    place.touch()

    assert boot.main(["--root", str(root)]) == 1
    assert (root / "proc/sysrq-trigger").read_text() in ("c", "b")


def test_online_all_leaves_udev_alone(tmp_path: Path) -> None:
    """With nothing to hold no file is masked, and arrivals get the same zone."""
    root = make_root(tmp_path)
    install(root, otherwise=Rule("o", "online-all")._replace(name="otherwise"))
    boot.main(["--root", str(root)])

    assert (root / record.ENV).read_text().startswith("SAFEMEM_ARRIVALS=online_movable\n")
    assert not (root / "run/udev").exists()


@pytest.mark.parametrize(("action", "key", "status"), [("panic", "b", 1), ("reboot", "c", 1), ("halt", "", 5)])
def test_final_actions(tmp_path: Path, action: str, key: str, status: int) -> None:
    """Panic and reboot try one means after the other; if all return, the status is the wrapper's business."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=Rule("otherwise", action, message="guests' memory is lost"))

    assert status == boot.main(["--root", str(root)])

    assert key == (root / paths.SYSRQ).read_text()
    assert action == json.loads((root / record.RECORD).read_text())["decision"]["action"]


@pytest.mark.parametrize("damage", ["missing", "flipped", "empty", "folder"])
def test_bad_policy_decides_nothing(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a sound policy nothing is decided or recorded, memory stays held, and the status says so."""
    root = make_root(tmp_path)
    install(root, otherwise=Rule("otherwise", "online-all"))
    path = root / boot.POLICY
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if damage == "flipped":
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "folder":
        path.mkdir()

    assert boot.main(["--root", str(root)]) == 1

    assert not (root / record.RECORD).exists()
    assert "safemem: cannot decide: " in capsys.readouterr().err


def test_a_record_that_cannot_be_written_stops_the_boot(tmp_path: Path) -> None:
    """No record, no boot: later stages would not know what is held."""
    root = make_root(tmp_path)
    install(root, otherwise=Rule("otherwise", "online-all"))
    (root / "run").write_text("in the way")

    assert boot.main(["--root", str(root)]) == 1

    assert (root / "sys/devices/system/memory/memory32/state").read_text() == "offline\n"


def test_writes_that_do_not_take_are_reported(tmp_path: Path) -> None:
    """What reads back differently is a problem, one line a range; a plain file is such a kernel."""
    root = make_root(tmp_path)
    install(
        root, Rule("cold", "online-all", when("handover", Term("is", "none"))), otherwise=Rule("otherwise", "panic")
    )

    assert boot.main(["--root", str(root)]) == 0

    result = json.loads((root / record.RECORD).read_text())["result"]
    assert result["complete"] is False
    assert result["bytes_onlined"] == 0
    assert result["problems"] == [
        "blocks 32-39 (0x100000000-0x13fffffff, 1 GiB) could not be onlined in zone movable: "
        "reads `online_movable` after it was written"
    ]


def quarantine(root: Path, floor: str = "") -> apply.Result:
    """Carry out online-safe with `boot_memory = "offline"` on a fake root."""
    rule = Rule("otherwise", "online-safe", boot_memory="offline", floor=floor)
    decision = engine.decide(policy(otherwise=rule, sources=("none",)), probe.read_snapshot(str(root)))
    return apply.carry_out(decision.plan, str(root), patience=0.2)


def memory_states(root: Path) -> list[str]:
    """Return the states of blocks 0 to 7."""
    folder = root / "sys/devices/system/memory"
    return [(folder / f"memory{number}/state").read_text().strip() for number in range(8)]


def test_quarantine_goes_from_the_top_and_stops_at_the_floor(tmp_path: Path) -> None:
    """What is online outside the region goes offline, as long as enough memory is available."""
    root = make_root(tmp_path, offered=True)
    (root / "proc/meminfo").write_text("MemTotal: 1000000 kB\nMemAvailable: 900000 kB\n")
    for number in range(8):
        (root / f"sys/devices/system/memory/memory{number}/state").write_text("online\n")
    result = quarantine(root)
    assert (result.quarantined, result.problems, result.exposed) == (1 << 30, (), False)
    assert memory_states(root) == ["offline"] * 8

    (root / "proc/meminfo").write_text("MemTotal: 1000000 kB\nMemAvailable: 200000 kB\n")
    for number in range(8):
        (root / f"sys/devices/system/memory/memory{number}/state").write_text("online\n")
    result = quarantine(root)
    assert memory_states(root) == ["online"] * 8
    assert result.exposed and result.problems == (
        "blocks 0-7 (0x0-0x3fffffff, 1 GiB) could not be taken offline: below the floor: 160 MiB of memory have to stay available",
    )


def lively(
    root: Path, monkeypatch: pytest.MonkeyPatch, available: int, refuse: frozenset[int] = frozenset()
) -> list[int]:
    """Let a fake root lose a block's size of available memory, in bytes, with each that goes offline; return the order."""
    left, order = [available], list[int]()
    (root / "proc/meminfo").write_text(f"MemAvailable: {available >> 10} kB\n")

    def take(base: str, number: int, patience: float) -> tuple[int, str]:
        order.append(number)
        if number in refuse:
            return 16, "device or resource busy"
        (root / f"sys/devices/system/memory/memory{number}/state").write_text("offline\n")
        left[0] -= 128 << 20
        (root / "proc/meminfo").write_text(f"MemAvailable: {left[0] >> 10} kB\n")
        return 0, ""

    monkeypatch.setattr("safemem.boot.quarantine._take_off", take)
    return order


def test_what_is_surest_goes_first_and_the_floor_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Movable blocks first, then from the top down; what refused is tried once more; the policy's floor stays available."""
    root = make_root(tmp_path, offered=True)
    for number in (1, 3):
        (root / f"sys/devices/system/memory/memory{number}/valid_zones").write_text("Movable\n")
    order = lively(root, monkeypatch, 1 << 30, refuse=frozenset({6}))
    result = quarantine(root, floor="500MiB")

    assert order == [3, 1, 7, 6, 5]
    assert result.quarantined == 4 << 27
    floor = "below the floor: 500 MiB of memory have to stay available"
    assert result.refused == {6: "unmovable: device or resource busy", 4: floor, 2: floor, 0: floor}

    for number in range(8):
        (root / f"sys/devices/system/memory/memory{number}/state").write_text("online\n")
    order = lively(root, monkeypatch, 8 << 30, refuse=frozenset({6}))
    assert quarantine(root).quarantined == 7 << 27
    assert order == [3, 1, 7, 6, 5, 4, 2, 0, 6]


def test_the_floor_grows_with_the_machine_and_its_initrd(tmp_path: Path) -> None:
    """By default 128 MiB, four times the packed initrd and a 64th of all memory stay available."""
    root = make_root(tmp_path, offered=True, online="0-71", offline="72-135")
    page = bytearray(4096)
    page[0x21C:0x220] = (10 << 20).to_bytes(4, "little")
    (root / "sys/kernel/boot_params/data").write_bytes(page)
    (root / "proc/meminfo").write_text("MemAvailable: 200000 kB\n")

    assert "below the floor: 440 MiB of memory" in quarantine(root).problems[0]


def test_a_long_run_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few seconds one line; a short run says nothing."""
    said: list[str] = []
    monkeypatch.setattr(console, "say", lambda root, priority, text: said.append(text))
    monkeypatch.setattr(console, "SAY_EVERY", 0)
    lively(make_root(tmp_path, offered=True), monkeypatch, 8 << 30)
    quarantine(tmp_path / "root")

    assert said[:2] == [
        "taking memory offline: 128 MiB of 1 GiB tried, 128 MiB are offline",
        "taking memory offline: 256 MiB of 1 GiB tried, 256 MiB are offline",
    ]


def test_every_way_to_refuse_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO nobody reads, an input error, a block that goes away: each is reported as what it is, and nothing hangs."""
    root = make_root(tmp_path, offered=True)
    (root / "proc/meminfo").write_text("MemAvailable: 9000000 kB\n")
    folder = root / "sys/devices/system/memory"
    (folder / "memory5/state").unlink()
    os.mkfifo(folder / "memory5/state")
    real, failing = os.write, os.stat(folder / "memory3/state").st_ino

    def write(fd: int, data: bytes) -> int:
        if os.fstat(fd).st_ino == failing:
            real(fd, b"online\n")  # what sysfs shows then
            raise OSError(5, "Input/output error")
        if (folder / "memory2").exists():  # unplugged while the first block went offline
            for file in (folder / "memory2").iterdir():
                file.unlink()
            (folder / "memory2").rmdir()
        return real(fd, data + b"\n" if data == b"offline" else data)  # sysfs shows whole lines

    monkeypatch.setattr("posix.write", write)
    rule = Rule("otherwise", "online-safe", boot_memory="offline", on_shortfall="halt")
    install(root, otherwise=rule)
    never = rule._replace(name="never", when=NEVER.when)
    chosen = policy(never, otherwise=rule, failure=Failure("panic", deadline=1), sources=("none",))
    (root / boot.POLICY).write_bytes(compiler.dump(chosen))
    state = Blocks(0, 7, "online", 0)
    monkeypatch.setattr(memory, "blocks", lambda root: (128 << 20, (state, Blocks(32, 39, "offline", 0)), ()))
    started = time.monotonic()

    assert boot.main(["--root", str(root)]) == 5
    assert time.monotonic() - started < 5
    document = json.loads((root / record.RECORD).read_text())
    assert document["result"]["problems"] == [
        "block 3 (0x18000000-0x1fffffff, 128 MiB) could not be taken offline: input/output error",
        "block 5 (0x28000000-0x2fffffff, 128 MiB) could not be taken offline: timeout: the kernel was still trying after 0.5 s",
        "block 2 (0x10000000-0x17ffffff, 128 MiB) disappeared before its turn",
    ]
    assert (
        document["result"]["shortfall"] == f"memory that should be held is online: {document['result']['problems'][0]}"
    )
    whys = {item["range"]: item["why"] for item in document["account"] if item["kind"] == "exposed"}
    assert whys == {
        "0x18000000-0x1fffffff": "input/output error",
        "0x28000000-0x2fffffff": "timeout: the kernel was still trying after 0.5 s",
    }


@pytest.mark.parametrize(
    ("limit", "short"),
    [
        ("512MiB", "1 GiB of 2 GiB are exposed, and the policy allows 512MiB, 512 MiB"),
        ("49.9%", "1 GiB of 2 GiB are exposed, and the policy allows 49.9%, 1022.0 MiB"),
        ("50%", None),
        ("1GiB", None),
    ],
)
def test_a_shortfall_may_have_a_limit(tmp_path: Path, limit: str, short: str | None) -> None:
    """Beyond the limit the policy's way out is taken, with both figures; up to it the boot goes on."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=Rule("otherwise", "online-safe", on_shortfall="halt", exposed_max=limit))

    assert boot.main(["--root", str(root)]) == (5 if short else 0)
    document = json.loads((root / record.RECORD).read_text())
    assert document["result"]["shortfall"] == short
    assert document["decision"]["exposed_max"] == limit
    if short:
        assert f"halt: {short}" in kmsg(root)


@pytest.mark.parametrize("action", ["online-safe", "online-all"])
def test_a_second_run_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """What was done stays done, what was quarantined stays so in the account, and nothing fails for being done already."""
    root = make_root(tmp_path, offered=True, crash="18000000-27ffffff", cmdline="safemem.guard=0x18000000-0x27ffffff")
    rule = Rule("otherwise", action, boot_memory="offline" if action == "online-safe" else "leave")
    install(root, otherwise=rule)
    (root / "proc/meminfo").write_text("MemAvailable: 900000 kB\n")
    (root / "proc/uptime").write_text("2.5 1.0\n")
    for number in range(32, 40):
        (root / f"sys/devices/system/memory/memory{number}/valid_zones").write_text("Movable\n")

    def write(base: str, path: str, text: str, **_: bool) -> None:
        file = Path(base) / path
        assert file.exists()
        if path == paths.LOAD_LIMIT and file.read_text() == "0\n":
            raise OSError(22, "Invalid argument")  # kernel/kexec_core.c: only a lower limit than there is
        file.write_text(f"{text}\n")

    def seen() -> dict[str, bytes]:
        folders = (root / "sys", root / "proc", root / "run/udev", root / "run/safemem")
        skip = ("decision.json", "progress")
        return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*")
                if path.is_file() and path.name not in skip}  # fmt: skip

    monkeypatch.setattr(files, "put", write)
    real = os.write
    monkeypatch.setattr("posix.write", lambda fd, data: real(fd, b"online\n" if data == b"online_movable" else data))
    accounts, states = [], []
    for _ in range(2):
        assert boot.main(["--root", str(root)]) == 0
        document = json.loads((root / record.RECORD).read_text())
        assert document["result"]["problems"] == []
        accounts.append(
            [{key: item[key] for key in ("kind", "range", "seconds_in_use")} for item in document["account"]]
        )
        states.append(seen())
    assert accounts[0] == accounts[1]
    assert states[0] == states[1]
    kinds = {item["kind"] for item in accounts[1]}
    assert kinds == ({"guarded", "quarantined", "held"} if action == "online-safe" else {"in_use"})


def test_online_all_that_fails_half_way(tmp_path: Path) -> None:
    """What should be in use and is not is a shortfall of its own, and said so."""
    root = make_root(tmp_path)
    rule = Rule("cold", "online-all", when("handover", Term("is", "none")), on_shortfall="halt")
    install(root, rule, otherwise=Rule("otherwise", "panic"))

    assert boot.main(["--root", str(root)]) == 5
    short = json.loads((root / record.RECORD).read_text())["result"]["shortfall"]
    assert short.startswith("memory that should be in use is not: blocks 32-39 (0x100000000-0x13fffffff, 1 GiB)")


def test_a_block_that_never_goes_offline_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that the kernel retries for ever is ended by a signal and reported; the others are done."""
    root = make_root(tmp_path, offered=True)
    (root / "proc/meminfo").write_text("MemTotal: 1000000 kB\nMemAvailable: 900000 kB\n")
    for number in range(8):
        (root / f"sys/devices/system/memory/memory{number}/state").write_text("online\n")
    real, hung = os.write, os.stat(root / "sys/devices/system/memory/memory3/state").st_ino

    def write(fd: int, data: bytes) -> int:
        if os.fstat(fd).st_ino == hung:
            real(fd, b"online\n")  # what sysfs shows as long as the kernel tries
            time.sleep(30)
        return real(fd, data)

    monkeypatch.setattr("posix.write", write)
    started = time.monotonic()
    result = quarantine(root)

    assert time.monotonic() - started < 5
    assert memory_states(root) == ["offline"] * 3 + ["online"] + ["offline"] * 4
    assert result.problems == (
        "block 3 (0x18000000-0x1fffffff, 128 MiB) could not be taken offline: timeout: the kernel was still trying after 0.2 s",
    )


@pytest.mark.parametrize(
    ("own", "named", "allowed", "action", "warning"),
    [
        ("online-all", "online-safe", False, "online-safe", "policy `other` decides: the command line names it"),
        ("online-safe", "online-all", False, "online-safe", "is ignored: online-all is not stricter than online-safe"),
        ("online-safe", "online-all", True, "online-all", "policy `other` decides"),
        ("online-safe", "online-safe", False, "online-safe", "is ignored: online-safe is not stricter"),
        ("online-all", "panic", False, "panic", "policy `other` decides"),
    ],
)
def test_a_policy_on_the_command_line(
    tmp_path: Path, own: str, named: str, allowed: bool, action: str, warning: str
) -> None:
    """It may make the outcome stricter; looser only if the policy that counts lets it."""
    root = make_root(tmp_path, offered=True, cmdline="kho=on safemem.policy=strict")
    install(root, otherwise=Rule("otherwise", own, accept_data_exposure=True), allow_cmdline_override=allowed)
    loose = rule(named, accept_data_exposure=True)
    other = policy(NEVER, otherwise=loose, failure="halt", sources=("none",), name="other")
    (root / boot.POLICIES).mkdir()
    (root / boot.POLICIES / "strict.json").write_bytes(compiler.dump(other))

    assert boot.main(["--root", str(root)]) == (1 if action == "panic" else 0)
    document = json.loads((root / record.RECORD).read_text())
    assert document["decision"]["action"] == action
    assert document["decision"]["policy"]["name"] == ("other" if "decides" in warning else "test")
    assert warning in document["decision"]["warnings"][0]
    assert document["snapshot"]["overrides"] == ["policy=strict"]


@pytest.mark.parametrize("name", ["other", "../policy", "", "/usr/lib/safemem/policy"])
def test_an_unknown_policy_on_the_command_line(tmp_path: Path, name: str) -> None:
    """What is not built in is said, and changes nothing; a damaged one ends the boot."""
    root = make_root(tmp_path, offered=True, cmdline=f"kho=on safemem.policy={name}")
    install(root, otherwise=Rule("otherwise", "online-safe"))
    (root / boot.POLICIES).mkdir()

    assert boot.main(["--root", str(root)]) == 0
    warning = json.loads((root / record.RECORD).read_text())["decision"]["warnings"][0]
    assert warning == f"safemem.policy={name} on the command line is ignored: no policy of that name is built in"

    (root / boot.POLICIES / "other.json").write_text("{}")
    assert boot.main(["--root", str(root)]) == (1 if name == "other" else 0)


@pytest.mark.parametrize("allowed", [True, False])
def test_dry_run_on_the_command_line(tmp_path: Path, allowed: bool) -> None:
    """A dry run decides, records and does nothing else, if the policy allows it; otherwise it is not asked."""
    root = make_root(tmp_path, offered=True, cmdline="kho=on safemem.dry_run")
    (root / "sys/devices/system/memory/auto_online_blocks").write_text("online\n")
    path = root / boot.POLICY
    path.parent.mkdir(parents=True)
    path.write_bytes(compiler.dump(policy(NEVER, sources=("none",), allow_cmdline_override=allowed)))

    assert boot.main(["--root", str(root)]) == (0 if allowed else 1)
    assert ((root / "proc/sysrq-trigger").read_text() == "") == allowed
    text = (root / "sys/devices/system/memory/auto_online_blocks").read_text()
    assert text == ("online" if allowed else "offline")
    document = json.loads((root / record.RECORD).read_text())
    if allowed:
        assert document["result"] == {"dry_run": True}
    else:
        assert (
            "safemem.dry_run on the command line is ignored: the policy does not allow it"
            in document["decision"]["warnings"]
        )


def test_shortfall_ends_the_boot_if_the_policy_says_so(tmp_path: Path) -> None:
    """A held block that somebody else onlines meanwhile is a shortfall."""
    root = make_root(tmp_path, offered=True)
    decision = engine.decide(
        policy(otherwise="online-safe", sources=("none",)),
        probe.read_snapshot(str(root)),
    )
    (root / "sys/devices/system/memory/memory35/state").write_text("online\n")
    result = apply.carry_out(decision.plan, str(root))

    assert result.exposed
    assert result.problems == (
        "block 35 (0x118000000-0x11fffffff, 128 MiB) should be held, but somebody else has onlined it",
    )


def test_guard_is_kept_and_given_back(tmp_path: Path) -> None:
    """online-safe keeps the guard and forbids crash kernels; online-all writes 0 to its size, and forbids nothing."""
    for name, action, size, limit in (("a", "online-safe", "603979776\n", "0"), ("b", "online-all", "0", "-1\n")):
        root = guarded(tmp_path / name, action)
        boot.main(["--root", str(root)])

        assert (root / "sys/kernel/kexec_crash_size").read_text() == size
        assert limit == (root / paths.LOAD_LIMIT).read_text()


def test_kdump_keeps_its_part_of_a_guard(tmp_path: Path) -> None:
    """online-all gives the guard back from its end, down to what kdump shall keep, and forbids it nothing."""
    root = guarded(tmp_path / "a", "online-all", "256MiB")
    assert boot.main(["--root", str(root)]) == 0

    document = json.loads((root / record.RECORD).read_text())
    assert [(step["op"], step["range"]) for step in document["decision"]["plan"][:2]] == [
        ("keep-guard", "0x1000000-0x10ffffff"), ("release-guard", "0x11000000-0x24ffffff")
    ]  # fmt: skip
    assert (root / "sys/kernel/kexec_crash_size").read_text() == "268435456"
    assert (root / paths.LOAD_LIMIT).read_text() == "-1\n"
    assert not (root / "run/systemd").exists()

    root = guarded(tmp_path / "b", "online-all", "1GiB")
    assert boot.main(["--root", str(root)]) == 0
    assert (root / "sys/kernel/kexec_crash_size").read_text() == "603979776\n"
    assert {item["why"] for item in json.loads((root / record.RECORD).read_text())["account"]} >= {"left to kdump"}


def test_kdump_units_are_masked_where_the_kernel_cannot_forbid(tmp_path: Path) -> None:
    """Before Linux 6.3 there is no limit: kdump's units are hidden, in the real root too. A limit that is there must take."""
    root = guarded(tmp_path / "a", "online-safe")
    (root / paths.LOAD_LIMIT).unlink()
    assert boot.main(["--root", str(root)]) == 0
    units = [root / "run/systemd/system" / name for name in crashkernel.KDUMP]
    assert {unit.readlink() for unit in units} == {Path("/dev/null")}
    result = json.loads((root / record.RECORD).read_text())["result"]
    assert (result["complete"], result["masked"]) == (True, ["40-vendor.rules", *crashkernel.KDUMP])
    hold.unmask(str(root), result["masked"])
    assert not any(unit.is_symlink() for unit in units)

    root = guarded(tmp_path / "b", "online-safe")
    (root / paths.LOAD_LIMIT).unlink()
    (root / paths.LOAD_LIMIT).mkdir()
    assert boot.main(["--root", str(root)]) == 0
    problem = json.loads((root / record.RECORD).read_text())["result"]["problems"][0]
    assert problem == (
        "proc/sys/kernel/kexec_load_limit_panic could not be set to 0, so a crash kernel could be loaded into the guard: is a directory"
    )


def test_a_dry_run_forbids_nothing(tmp_path: Path) -> None:
    """The limit on crash kernels cannot be raised again, so it is lowered only once the guard is to stay."""
    root = guarded(tmp_path / "a", "online-safe")
    policy = compiled.load((root / boot.POLICY).read_bytes(), "p")._replace(allow_cmdline_override=True)
    (root / boot.POLICY).write_bytes(compiler.dump(policy))
    (root / "proc/cmdline").write_text("safemem.guard=0x1000000-0x24ffffff safemem.dry_run\n")
    assert boot.main(["--root", str(root)]) == 0
    assert (root / paths.LOAD_LIMIT).read_text() == "-1\n"


def test_a_crash_kernel_of_kdump_is_left_alone(tmp_path: Path) -> None:
    """Without safemem.guard= a reservation is not ours, whatever the decision."""
    root = make_root(tmp_path, crash="01000000-24ffffff", cmdline="crashkernel=576M@16M")
    install(root, otherwise=Rule("otherwise", "online-all"))
    boot.main(["--root", str(root)])

    assert (root / "sys/kernel/kexec_crash_size").read_text() == "603979776\n"


def test_capture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`boot capture` prints a snapshot that simulate can read, and changes nothing."""
    root = make_root(tmp_path, offered=True)

    assert boot.main(["--root", str(root), "capture"]) == 0

    snapshot = reader.snapshot_from_text(capsys.readouterr().out, "capture")
    assert snapshot.facts["handover"].value == "rejected"
    assert not (root / "run").exists()


def test_unknown_argument(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped argument is refused before anything is touched."""
    assert boot.main(["captrue"]) == 2
    assert capsys.readouterr().err == "safemem: unknown argument `captrue`: the only one is capture\n"


def counting(base: Path, action: str) -> tuple[Path, Path]:
    """Return a machine with EFI variables and a policy that reboots twice at most, and then does `action`."""
    root = make_root(base, offered=True)
    (root / paths.EFIVARS).mkdir(parents=True)
    (root / paths.EFIVARS / "Timeout-8be4df61-93ca-11d2-aa0d-00e098032b8c").touch()
    rule = Rule("again", "reboot", when("boot_attempts", Term("<", 2)))
    install(root, rule, otherwise=Rule("otherwise", action))
    return root, root / paths.ATTEMPTS


def test_boots_are_counted_in_firmware(tmp_path: Path) -> None:
    """Each reboot counts one more before it happens; the policy's bound ends that; online-all starts anew."""
    root, variable = counting(tmp_path, "online-all")
    for number in (1, 2):
        assert boot.main(["--root", str(root)]) == 1
        assert variable.read_bytes() == b"\7\0\0\0" + number.to_bytes(4, "little")
    assert boot.main(["--root", str(root)]) == 0
    assert json.loads((root / record.RECORD).read_text())["decision"]["rule"] == "otherwise"
    assert not variable.exists()


def test_a_reboot_that_cannot_be_counted_is_none(tmp_path: Path) -> None:
    """Without a count the next boot would find the same state: that is a failure of ours, with its own way out."""
    root, variable = counting(tmp_path, "online-safe")
    variable.mkdir()
    again = Rule("again", "reboot", when("boot_attempts", Term("<", 2), Term("is", "unknown")))
    (root / boot.POLICY).write_bytes(compiler.dump(policy(again, otherwise="online-safe", sources=("none",))))
    # A folder in place of the variable can be neither read nor written.
    assert "is a directory" in probe.read_snapshot(str(root)).facts["boot_attempts"].reason
    variable.rmdir()
    variable.symlink_to("/proc/version")

    assert boot.main(["--root", str(root)]) == 1
    assert "cannot decide: " in kmsg(root) and "so boots are not counted" in kmsg(root)
    assert (root / paths.SYSRQ).read_text() == ""


def test_a_halt_that_cannot_be_counted_is_one(tmp_path: Path) -> None:
    """Only a reboot needs the count: a halt must not become what `on_failure` says, which may be a reboot."""
    root, variable = counting(tmp_path, "online-safe")
    stop = Rule("stop", "halt", when("boot_attempts", Term("<", 2), Term("is", "unknown")))
    chosen = policy(stop, otherwise="online-safe", failure="reboot", sources=("none",))
    (root / boot.POLICY).write_bytes(compiler.dump(chosen))
    variable.symlink_to("/proc/version")

    assert boot.main(["--root", str(root)]) == 5
    assert "so boots are not counted" in kmsg(root) and "cannot decide" not in kmsg(root)


def test_boots_are_counted_for_the_policy_that_the_command_line_names(tmp_path: Path) -> None:
    """Its bound would never be reached otherwise: a reboot without end."""
    root, variable = counting(tmp_path, "online-all")
    again = (root / boot.POLICY).read_bytes()
    calm = policy(NEVER, otherwise="online-all", sources=("none",), name="calm")
    (root / boot.POLICY).write_bytes(compiler.dump(calm))
    (root / boot.POLICIES).mkdir()
    (root / boot.POLICIES / "again.json").write_bytes(again)
    line = root / "proc/cmdline"
    line.write_text(f"{line.read_text().strip()} safemem.policy=again\n")
    for number in (1, 2):
        assert boot.main(["--root", str(root)]) == 1
        assert variable.read_bytes() == b"\7\0\0\0" + number.to_bytes(4, "little")
    assert boot.main(["--root", str(root)]) == 0


def test_a_limit_is_not_kept_by_an_empty_account() -> None:
    """Where the blocks cannot be read after the work, a refusal is a shortfall, whatever the limit."""
    last = rule("online-safe", on_shortfall="halt", exposed_max="99%")
    decision = engine.decide(policy(otherwise=last, sources=("none",)), snapshot((), size=0))
    result = apply.Result(
        0, 0, 0, (Note("not-offline", "block 1 could not be taken offline"),), missed=False, exposed=True
    )
    assert "could not be taken offline" in boot._shortfall(
        decision, ("99%",), result, [], dict.fromkeys(account.KINDS, 0)
    )


def test_firmware_is_left_alone_where_no_rule_asks(tmp_path: Path) -> None:
    """A policy that bounds nothing by boots writes no variable."""
    root, variable = counting(tmp_path, "online-safe")
    (root / boot.POLICY).unlink()
    (root / boot.MASKS).unlink()
    (root / boot.POLICY).parent.rmdir()
    install(root, otherwise=Rule("otherwise", "reboot"))
    assert boot.main(["--root", str(root)]) == 1
    assert not variable.exists()


@pytest.mark.parametrize(
    ("checksum", "says", "online"),
    [
        (";crc32=%08x", "", True),
        ("", "safemem.safe= has no check sum: its ranges are taken as they are written", True),
        (";crc32=00000000", "safemem.safe= on the command line is ignored: check sum of", False),
    ],
)
def test_a_safe_region_on_the_command_line(tmp_path: Path, checksum: str, says: str, online: bool) -> None:
    """Without a check sum the record says so; with a wrong one nothing is safe; what no whole block holds is accounted for."""
    text = "0x104000000-0x113ffffff"
    safe = f"safemem.safe={text}{checksum % binascii.crc32(text.encode()) if '%' in checksum else checksum}"
    root = make_root(tmp_path, offered=True, cmdline=f"kho=on {safe}")
    install(root, otherwise=Rule("otherwise", "online-safe"))
    assert boot.main(["--root", str(root)]) == 0

    document = json.loads((root / record.RECORD).read_text())
    assert (says in "\n".join(document["snapshot"]["notes"])) and bool(document["snapshot"]["notes"]) == bool(says)
    assert document["decision"]["facts"]["safe_region"]["value"] == ("resolved" if online else "unresolved")
    assert [step["range"] for step in document["decision"]["plan"] if step["op"] == "online"] == (
        ["0x108000000-0x10fffffff"] if online else []
    )
    lost = [item["range"] for item in document["account"] if item["why"] == "safe, but out of use with its block"]
    assert lost == (["0x104000000-0x107ffffff", "0x110000000-0x113ffffff"] if online else [])


@pytest.mark.parametrize("text", [b"", b"40-vendor.rules\n", b'{"digest":"'])
def test_a_damaged_list_of_masks_ends_the_boot(tmp_path: Path, text: bytes) -> None:
    """Which rules online memory has to be known before anything is brought online."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=Rule("otherwise", "online-safe"))
    (root / boot.MASKS).write_bytes(text)

    assert boot.main(["--root", str(root)]) == 1
    assert (root / "sys/devices/system/memory/memory32/state").read_text() == "offline\n"
    assert "SAFEMEM_FINISHED=no" in (root / record.ENV).read_text()


def test_a_mask_with_a_blank_in_its_name(tmp_path: Path) -> None:
    """The name is one name."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=Rule("otherwise", "online-safe"))
    (root / boot.MASKS).write_bytes(compiled.names_text(["vendor memory.rules"]))

    assert boot.main(["--root", str(root)]) == 0
    assert os.listdir(root / "run/udev/rules.d") == ["vendor memory.rules"]
