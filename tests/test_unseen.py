# SPDX-License-Identifier: MIT
"""What the boot program could not read, write or look at is a problem, a shortfall, or the end of the boot."""

from __future__ import annotations

import json
import os
import posix
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safemem.boot import apply, attempts, console, files, hold, memory, paths, probe, record
from safemem.boot import main as boot
from safemem.boot.model import Blocks, Plan, Step
from safemem.boot.printable import printable
from safemem.policy import compiler
from tests.fakes import BLOCK, make_root
from tests.kit import GUARD, NEVER, install, policy, rule, shipped


def folder(path: Path) -> None:
    """Put a folder in place of a file: opening it works, reading does not."""
    path.unlink(missing_ok=True)
    path.mkdir()


def result(root: Path) -> dict[str, Any]:
    """Return what the record says came of the decision."""
    found: dict[str, Any] = json.loads((root / record.RECORD).read_text())["result"]
    return found


def name(root: Path, **policies: str | Any) -> None:
    """Build policies in beside the first; each is an action or a policy."""
    (root / boot.POLICIES).mkdir()
    for key, one in policies.items():
        made = policy(NEVER, otherwise=one, name=key) if isinstance(one, str) else one
        (root / boot.POLICIES / f"{key}.json").write_bytes(compiler.dump(made))


def test_without_a_command_line_every_policy_has_a_say(tmp_path: Path) -> None:
    """It may have named any of those that are built in; the strictest of them is what the operator can have meant."""
    root = make_root(tmp_path)
    install(root, otherwise=rule("online-all", accept_data_exposure=True))
    name(root, safe="online-safe", strict="panic")
    folder(root / paths.CMDLINE)

    assert boot.main(["--root", str(root)]) == 1
    assert json.loads((root / record.RECORD).read_text())["decision"]["policy"]["name"] == "strict"


@pytest.mark.parametrize("damage", [folder, lambda path: path.write_text("kho=on safemem.pol")])
def test_without_a_command_line_nothing_is_complete(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """What nobody could ask for is said, and is a shortfall."""
    root = make_root(tmp_path)
    install(root, otherwise=rule("online-safe"))
    damage(root / paths.CMDLINE)

    assert boot.main(["--root", str(root)]) == 0
    assert (result(root)["complete"], result(root)["problem_codes"][0]) == (False, "cmdline-unreadable")
    assert "kernel arguments are unknown" in result(root)["shortfall"]


def test_policies_that_cannot_be_listed_end_the_boot(tmp_path: Path) -> None:
    """A stricter policy that the command line names is never dropped because its folder cannot be read."""
    root = make_root(tmp_path, cmdline="safemem.policy=strict")
    install(root, otherwise=rule("online-all", accept_data_exposure=True))
    (root / boot.POLICIES).write_text("no folder")

    assert boot.main(["--root", str(root)]) == 1
    assert not (root / record.RECORD).exists()


@pytest.mark.parametrize("path", [paths.IOMEM, paths.CRASH_SIZE])
def test_a_guard_that_cannot_be_seen_is_kept_from_kdump(tmp_path: Path, path: str) -> None:
    """A crash kernel is forbidden unless it is known that no guard is in force."""
    root = make_root(tmp_path, offered=True, **GUARD)
    install(root, otherwise=rule("online-safe"))
    folder(root / path)
    if path == paths.CRASH_SIZE:
        (root / paths.IOMEM).write_text("00001000-0009fbff : System RAM\n")
    boot.main(["--root", str(root)])

    assert (root / paths.LOAD_LIMIT).read_text() == "0"
    assert "guard-unknown" in result(root)["problem_codes"]


@pytest.mark.parametrize("path", [paths.BLOCK_SIZE, paths.MEMORY])
@pytest.mark.parametrize("on_shortfall", ["continue", "panic"])
@pytest.mark.parametrize("guard", [{}, GUARD], ids=["no guard", "a guard"])
def test_blocks_that_cannot_be_read(tmp_path: Path, path: str, on_shortfall: str, guard: dict[str, Any]) -> None:
    """Nobody knows what there is to hold: that is a problem, and a shortfall."""
    root = make_root(tmp_path, offered=True, **guard)
    install(root, otherwise=rule("online-safe", on_shortfall=on_shortfall, exposed_max="99%"))
    if path == paths.MEMORY:
        (root / path).rename(root / "sys/gone")
        (root / path).write_text("")
    else:
        folder(root / path)

    assert boot.main(["--root", str(root)]) == (1 if on_shortfall == "panic" else 0)
    assert (result(root)["complete"], "blocks-unreadable" in result(root)["problem_codes"]) == (False, True)


def test_a_kernel_that_cannot_hotplug_is_no_fault(tmp_path: Path) -> None:
    """With sysfs there, the missing folder is an answer; without it, nothing is held for certain."""
    root = make_root(tmp_path)
    (root / paths.MEMORY).rename(root / "sys/gone")
    assert (memory.blocks(str(root)), hold.hold(str(root))) == ((0, (), ()), [])

    (root / "sys").rename(root / "elsewhere")
    assert [note.code for note in memory.blocks(str(root))[2]] == ["blocks-unreadable"]
    assert [note.code for note in hold.hold(str(root))] == ["auto-online-not-set"]


def test_a_look_afterwards_that_fails_is_a_shortfall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody has seen offline is not held."""
    root = make_root(tmp_path)
    step = Step("hold", 32 * BLOCK, 40 * BLOCK, 32, 39)
    assert not apply.carry_out(Plan((step,)), str(root)).exposed

    folder(root / f"{paths.MEMORY}/memory33/state")
    found = apply.carry_out(Plan((step,)), str(root))
    assert (found.exposed, [note.code for note in found.problems]) == (True, ["not-looked-at"])
    assert "block 33" in found.problems[0]

    monkeypatch.setattr(paths, "MEMORY", "nowhere")
    found = apply.carry_out(Plan((step,)), str(root))
    assert (found.exposed, [note.code for note in found.problems]) == (True, ["not-looked-at"])


@pytest.mark.parametrize(
    ("block", "held", "boot_memory"),
    [(50, "32-39", "leave"), (50, "", "leave"), (6, "32-39", "offline")],
    ids=["arrives", "arrives where nothing is held", "was taken offline"],
)
def test_what_comes_online_during_the_boot_is_a_shortfall(
    tmp_path: Path, block: int, held: str, boot_memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that somebody onlines between plan and account is not held, whether the plan knew it or not."""
    root = make_root(tmp_path, offered=True, offline=held)
    (root / "proc/meminfo").write_text("MemAvailable: 99000000 kB\n")
    install(root, otherwise=rule(on_shortfall="panic", boot_memory=boot_memory))
    look = memory.states

    def states(where: str) -> tuple[Blocks, ...]:
        place = root / f"{paths.MEMORY}/memory{block}/state"
        place.parent.mkdir(exist_ok=True)
        place.write_text("online\n")
        return look(where)

    monkeypatch.setattr(memory, "states", states)
    monkeypatch.setattr(apply, "states", states)

    assert boot.main(["--root", str(root)]) == 1
    assert (result(root)["shortfall"] or "").startswith("memory that should be held is online: ")
    assert "onlined-by-others" in result(root)["problem_codes"]


def test_blocks_that_nobody_can_look_at_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may have arrived and come online is a shortfall where everything that arrives is to be held."""
    root = make_root(tmp_path, offered=True, offline="")
    install(root, otherwise=rule(on_shortfall="panic"))
    monkeypatch.setattr(memory, "states", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))

    assert boot.main(["--root", str(root)]) == 1
    assert result(root)["problem_codes"] == ["not-looked-at"]


def test_a_hold_is_read_back(tmp_path: Path) -> None:
    """A write that was taken and changed nothing is no hold."""
    root = make_root(tmp_path)
    place = root / paths.AUTO_ONLINE
    place.unlink()
    place.symlink_to("/dev/null")

    assert "it reads `nothing` after it was written" in hold.hold(str(root))[0]


def test_a_short_write_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a value is another value."""
    (tmp_path / "x").touch()
    monkeypatch.setattr(posix, "write", lambda fd, data: len(data) - 1)
    with pytest.raises(OSError, match="6 of 7 bytes were written"):
        files.put(str(tmp_path), "x", "offline")
    with pytest.raises(OSError, match="1 of 2 bytes were written"):
        files.create(str(tmp_path), "y", b"12")


@pytest.mark.parametrize("initrd", [True, False])
def test_a_rules_file_in_etc_wins_over_run(tmp_path: Path, initrd: bool) -> None:
    """In an initramfs it is replaced by the mask; on a disk it is not ours, and the hold is none."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=rule("online-safe"))
    own = root / "etc/udev/rules.d/40-vendor.rules"
    own.parent.mkdir(parents=True)
    own.write_text('SUBSYSTEM=="memory", ATTR{state}="online"\n')
    if initrd:
        (root / hold.INITRD).touch()
    boot.main(["--root", str(root)])

    assert own.is_symlink() == initrd
    assert ("not-masked" in result(root)["problem_codes"]) != initrd


def test_a_device_that_cannot_be_looked_at_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An lstat that fails is not `it is not there`: neither LUO nor KHO is off for that."""
    root = make_root(tmp_path, luo=False, kho_out=False, cmdline="quiet")
    facts = probe.read_snapshot(str(root)).facts
    assert (facts["luo"].value, facts["kho"].value) == ("off", "off")

    real = files.exists
    hidden = (paths.LUO_CLASS, paths.LUO_DEVICE, *(f"{base}/out" for base in paths.KHO))
    monkeypatch.setattr(files, "exists", lambda root, path: None if path in hidden else real(root, path))
    facts = probe.read_snapshot(str(root)).facts
    assert (facts["luo"].value, facts["kho"].value) == ("unknown", "unknown")


def test_a_count_of_boots_takes_the_variables_to_be_there(tmp_path: Path) -> None:
    """Without the folder nobody knows whether there is a count; only a variable that is missing among others is 0."""
    root = make_root(tmp_path)
    (root / paths.EFI).mkdir(parents=True)
    assert attempts.read(str(root), {}).value == "unknown"

    (root / paths.EFIVARS).mkdir()
    assert attempts.read(str(root), {}).value == "unknown"
    (root / paths.EFIVARS / "Timeout-x").touch()
    assert attempts.read(str(root), {}).value == 0
    folder(root / paths.ATTEMPTS)
    assert attempts.read(str(root), {"safemem.attempts": "0"}).value == "unknown"


@pytest.mark.parametrize("size", [b"", b"60397977", b"100000000000000000000000"])
def test_part_of_a_guard_is_given_back_only_where_its_size_is_known(tmp_path: Path, size: bytes) -> None:
    """A number that was cut off would give back what is to stay."""
    root = make_root(tmp_path, crash="01000000-24ffffff")
    (root / paths.CRASH_SIZE).write_bytes(size)
    found = apply.carry_out(Plan((Step("release-guard", 0x24000000, 0x25000000),)), str(root))

    assert [note.code for note in found.problems] == ["guard-kept"]
    assert (root / paths.CRASH_SIZE).read_bytes() == size


@pytest.mark.parametrize(
    "text", ["a " * 900, "x" * 3000, "ü" * 1100, "<0>\n<0>safemem: panic: forged\x1b[2J\u202e\x9b" * 40]
)
def test_the_kernel_takes_every_line_whole(tmp_path: Path, text: str) -> None:
    """The kernel refuses a record above 1,024 bytes; nothing is lost of it, and no line is another's."""
    root = make_root(tmp_path)
    console.say(str(root), console.NOTICE, text)
    lines = (root / paths.KMSG).read_bytes().split(b"\n")[:-1]
    said = [line.decode().removeprefix("<5>safemem: ") for line in lines]

    assert all(len(line) < 976 and line.startswith(b"<5>safemem: ") for line in lines)
    assert all(line.isprintable() for line in said)
    assert "".join("".join(said).split()) == "".join(printable(text).split())


def test_a_guard_without_a_handover_is_not_given_back(tmp_path: Path) -> None:
    """None of the policies that we ship for hosts with guests takes it for a cold boot."""
    for one in ("live-update-host", "maintenance", "reboot-bounded", "virtio-mem-guest", "dax-guests"):
        root = make_root(tmp_path / one, **GUARD)
        (root / boot.POLICY).parent.mkdir(parents=True)
        (root / boot.POLICY).write_bytes(compiler.dump(shipped(one)))
        (root / boot.MASKS).write_text("")
        boot.main(["--root", str(root)])

        decision = json.loads((root / record.RECORD).read_text())["decision"]
        assert (decision["facts"]["handover"]["value"], decision["action"] != "online-all") == ("lost", True)
        assert (root / paths.CRASH_SIZE).read_text() == f"{256 << 20}\n"


def test_what_we_make_is_ours_to_write(tmp_path: Path) -> None:
    """Whatever the init's umask, and whatever lies where a draft is made."""
    root = make_root(tmp_path)
    install(root, otherwise=rule("online-safe"))
    victim = tmp_path / "victim"
    victim.write_text("root's")
    (root / "run/safemem").mkdir(parents=True)
    (root / f"{record.RECORD}.new").symlink_to(victim)
    before = os.umask(0)
    try:
        boot.main(["--root", str(root)])
    finally:
        os.umask(before)

    assert victim.read_text() == "root's"
    made = [path for path in (root / "run").rglob("*") if not path.is_symlink() and path != root / "run/safemem"]
    assert [path for path in made if path.stat().st_mode & 0o022] == []
