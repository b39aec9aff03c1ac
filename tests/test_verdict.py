# SPDX-License-Identifier: MIT
"""How a boot stands: `status` in that boot and `previous` in the next one say the same of every shape of record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from safemem.boot import account, crashkernel, files, memory, record
from safemem.boot import main as boot
from safemem.boot.model import Override, Rule
from safemem.boot.ranges import Range
from safemem.cli import main
from safemem.host import history, reader, standing
from safemem.host.verdict import held_then, verdict
from tests.fakes import BLOCK, make_root
from tests.kit import install

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
        shares = account.account(found.decision, found.snapshot, memory.states(str(root)), left, {}, {})
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


def unfinished(root: Path) -> None:
    """Let the boot program have been killed before it was done."""
    write(root, reader.record(str(root / record.RECORD))._replace(done=None, account=()))


def unread(root: Path) -> None:
    """Let nobody be able to read the record."""
    (root / record.RECORD).write_text("{")


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


def test_without_an_account_the_plan_tells(tmp_path: Path) -> None:
    """A record that lost its account never says that all memory may be used while its plan holds some."""
    found = reader.record(str(booted(tmp_path, SAFE, {}) / record.RECORD))
    assert held_then(found) and held_then(found._replace(account=()))
    assert verdict(found, held=held_then(found)) == "held"


def test_others_undo_a_decision(tmp_path: Path) -> None:
    """Held memory that somebody onlined is no decision in force, whatever was recorded."""
    found = reader.record(str(booted(tmp_path, SAFE, {}) / record.RECORD))
    assert verdict(found, held=True, onlined_by_others=True) == "partly"
