# SPDX-License-Identifier: MIT
"""What `status` shows, keeps and exports, on fake roots; tests/vm/test_evidence.py has a real crash."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families

from safemem.boot import files, record
from safemem.boot import main as boot
from safemem.boot.model import Rule
from safemem.cli import main
from safemem.host import history, journal, metrics, previous, standing
from tests.fakes import make_root
from tests.kit import install

ANOTHER = "00000002-1111-4222-8333-444455556666"
CRASH = """Panic#1 Part1
<6>[    1.000000] Run /init as init process
<13>[    2.100000] safemem: panic: handover lost (rule `otherwise`, policy `live-update-host`)
<13>[    2.110000] safemem: handover is rejected: offered, but the kernel did not revive it
<8>[    2.200000] safemem: end action=panic code=decided
<8>[    2.210000] safemem: panic: handover lost
<0>[    2.300000] Kernel panic - not syncing: sysrq triggered crash
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a machine on which a lost handover was held."""
    found = make_root(tmp_path, offered=True)
    install(found, otherwise=Rule("otherwise", "online-safe", message="handover lost"))
    assert boot.main(["--root", str(found)]) == 0
    return found


def status(root: Path, *words: str) -> Result:
    """Run `safemem status` on the machine."""
    return CliRunner().invoke(main, ["status", *words, "--root", str(root)])


def crash(root: Path, text: str = CRASH, name: str = "sys/fs/pstore/dmesg-ramoops-0", at: float = 0) -> Path:
    """Leave a crash behind, written at `at`, or now."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (at or time.time() + 5,) * 2)
    return path


def next_boot(root: Path) -> None:
    """Let the machine be in another boot."""
    (root / history.BOOT_ID).write_text(ANOTHER + "\n")


def account(root: Path) -> None:
    """Let the last block of the boot memory have been taken offline, and add an account to the record."""
    path = root / "run/safemem/decision.json"
    (root / "sys/devices/system/memory/memory7/state").write_text("offline\n")
    items = [
        {"kind": "exposed", "range": "0x0-0x37ffffff", "bytes": 7 << 27, "why": None, "seconds_in_use": None},
        {
            "kind": "quarantined",
            "range": "0x38000000-0x3fffffff",
            "bytes": 1 << 27,
            "why": None,
            "seconds_in_use": 3,
        },
    ]
    path.write_text(json.dumps({**json.loads(path.read_text()), "account": items}))


def test_what_was_too_late_is_said(root: Path) -> None:
    """Memory that was in use before the decision is told from memory that never was."""
    account(root)
    lines = status(root).stdout.splitlines()

    assert "exposed   0x0-0x37ffffff  896 MiB: was in use, and still may be" in lines
    assert "quarantined 0x38000000-0x3fffffff  128 MiB: in use for 3 s, then taken offline" in lines


def test_what_arrived_is_said(root: Path) -> None:
    """Blocks that the record does not know are a change, with their state."""
    for number, state in ((40, "offline"), (41, "online"), (20, "offline")):
        path = root / f"sys/devices/system/memory/memory{number}/state"
        path.parent.mkdir()
        path.write_text(f"{state}\n")
    document = json.loads(status(root, "--format", "json").stdout)

    assert document["arrived"] == [
        {"range": "0xa0000000-0xa7ffffff", "state": "offline"},
        {"range": "0x140000000-0x147ffffff", "state": "offline"},
        {"range": "0x148000000-0x14fffffff", "state": "online"},
    ]
    assert "arrived   0x148000000-0x14fffffff  128 MiB, online" in status(root).stdout.splitlines()


def test_what_the_command_line_asked_for_is_said(root: Path) -> None:
    """A word on the command line that made a difference is shown, whoever put it there."""
    path = root / "run/safemem/decision.json"
    document = json.loads(path.read_text())
    document["snapshot"] |= {"overrides": ["dry-run"], "cmdline_safe": ["0x0-0xfffffff"]}
    path.write_text(json.dumps(document))
    lines = status(root).stdout.splitlines()

    assert "cmdline   safemem.dry_run" in lines and "cmdline   safemem.safe=0x0-0xfffffff" in lines


def test_everybody_may_read_the_record(tmp_path: Path) -> None:
    """The record says nothing secret, and whoever looks after the machine need not be root."""
    before = os.umask(0o077)
    files.replace(str(tmp_path), record.RECORD, "{}")
    os.umask(before)

    assert stat.S_IMODE((tmp_path / record.RECORD).stat().st_mode) == 0o644


def test_the_record_is_kept_for_the_next_boot(root: Path) -> None:
    """The same record, bit for bit; the next boot shows it with the exit code that it had."""
    result = status(root, "--keep")
    folder = history.current(str(root))
    assert (result.exit_code, result.stdout) == (4, "") and folder
    assert (Path(folder) / "decision.json").read_bytes() == (root / "run/safemem/decision.json").read_bytes()
    history.write(str(root), "releases.json", '[{"time": 0, "reason": "why not", "ranges": ["0x0-0xfff"]}]')
    assert status(root, "--previous").exit_code == 6
    next_boot(root)
    result = status(root, "--previous")
    lines = result.stdout.splitlines()

    assert (result.exit_code, lines[0]) == (4, "online-safe  handover lost")
    assert "released  0x0-0xfff at 1970-01-01 00:00:00 UTC: why not" in lines
    assert lines[-1] == f"kept      {folder}"
    document = json.loads(status(root, "--previous", "--format", "json").stdout)
    assert (document["ending"], document["record"]["decision"]["action"]) == (None, "online-safe")


def test_a_record_that_is_not_understood_is_kept_all_the_same(root: Path) -> None:
    """Evidence is not thrown away; both boots say that they cannot read it."""
    (root / "run/safemem/decision.json").write_text("{")
    assert status(root, "--keep").exit_code == 6
    next_boot(root)
    result = status(root, "--previous")

    assert result.exit_code == 6
    assert "is not JSON" in result.stdout


def test_a_record_that_cannot_be_kept(root: Path) -> None:
    """A history that cannot be written fails the unit, and says where."""
    (root / history.BOOT_ID).write_text("")
    result = status(root, "--keep")

    assert (result.exit_code, "the record is not kept: this is not a boot ID" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "name",
    ["sys/fs/pstore/dmesg-ramoops-0", "var/lib/systemd/pstore/dmesg-ramoops-0", "var/lib/systemd/pstore/17/dmesg.txt"],
)
def test_last_words(root: Path, name: str) -> None:
    """A boot that safemem ended is found in pstore and in systemd's archive, before the last boot on record."""
    status(root, "--keep")
    next_boot(root)
    path = crash(root, name=name)
    result = status(root, "--previous")
    lines = result.stdout.splitlines()

    assert (result.exit_code, lines[0]) == (5, "panic  handover lost")
    assert lines[2].startswith(f"found     {path}, 20")
    assert "said      handover is rejected: offered, but the kernel did not revive it" in lines
    assert "the last boot on record, which may be the same one or one before it:" in lines
    assert json.loads(status(root, "--previous", "--format", "json").stdout)["ending"]["reason"] == "handover lost"


def test_last_words_of_an_older_boot(root: Path) -> None:
    """A crash before the last boot on record is not how the last boot ended."""
    status(root, "--keep")
    next_boot(root)
    crash(root, at=time.time() - 3600)

    assert status(root, "--previous").exit_code == 4


@pytest.mark.parametrize("year", [2099, 1970])
def test_a_wrong_clock_hides_no_ending(root: Path, year: int) -> None:
    """Which endings a boot has found already is kept by content: what is new since is how a boot ended, whatever its time."""
    crash(root, CRASH.replace("2.1", "9.1"), "var/lib/systemd/pstore/1/dmesg.txt", at=4_000_000_000)
    status(root, "--keep")
    (folder,) = history.boots(str(root))
    os.rename(folder, os.path.join(os.path.dirname(folder), f"00000001-{year}0101T000000Z-{folder[-36:]}"))
    next_boot(root)
    assert status(root, "--previous").exit_code == 4
    crash(root, at=time.time() if year == 2099 else 60)
    result = status(root, "--previous")

    assert (result.exit_code, result.stdout.splitlines()[0]) == (5, "panic  handover lost")
    # One boot later it has been told.
    status(root, "--keep")
    (root / history.BOOT_ID).write_text("00000003-1111-4222-8333-444455556666\n")
    assert status(root, "--previous").exit_code == 4


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (CRASH, ("panic", "handover lost")),
        (
            "[    2.2] safemem: end action=reboot code=x\n[    2.2] safemem: reboot: a console has no priorities\n",
            ("reboot", "a console has no priorities"),
        ),
        (
            "<8>safemem: end action=panic code=x\n<8>safemem: panic: a kernel without times\n",
            ("panic", "a kernel without times"),
        ),
        (
            "<8>[    2.2][    T1] safemem: end action=halt code=x\n<8>[    2.2][    T1] safemem: halt: with the thread\n",
            ("halt", "with the thread"),
        ),
        ("<13>[    2.1] safemem: panic: dry run (rule `otherwise`, policy `x`)\n", None),
        ("<6>[    2.1] other: safemem: end action=panic code=x\n", None),
        ("<6>[    2.1] safemem: panic: a rule is called `end action=panic code=x`\n", None),
        ("", None),
        ("\0\xff safemem: end action=panic code=x\n", None),
    ],
)
def test_what_counts_as_last_words(tmp_path: Path, text: str, found: tuple[str, str] | None) -> None:
    """Only the line with which safemem ends a boot counts; the summary of a decision, also of a dry run, does not."""
    crash(tmp_path, text)
    ending = previous.last_words(str(tmp_path))

    assert (ending and (ending.action, ending.reason)) == found


def test_last_words_in_pieces(tmp_path: Path) -> None:
    """EFI keeps a log in small files: what was said before is in another one."""
    *before, end, last, _ = CRASH.splitlines(keepends=True)
    now = time.time()
    crash(tmp_path, "".join(before).replace("Part1", "Part2"), "sys/fs/pstore/dmesg-efi_pstore-170002", now - 1)
    crash(tmp_path, "Panic#1 Part1\n" + end + last, "sys/fs/pstore/dmesg-efi_pstore-170001", now)
    crash(
        tmp_path,
        "<8>[    1.0] safemem: end action=halt code=decided\n<8>[    1.0] safemem: halt: long ago\n",
        "sys/fs/pstore/dmesg-efi_pstore-160001",
        now - 999,
    )
    crash(tmp_path, CRASH, "sys/fs/pstore/dmesg-ramoops-0.enc.z", now + 5)
    ending = previous.last_words(str(tmp_path))

    assert ending and ending.file.endswith("170001")
    assert [line[:9] for line in ending.lines] == ["panic: ha", "handover ", "end actio", "panic: ha"]


def test_a_crash_is_named_before_a_console(tmp_path: Path) -> None:
    """The console's file is as old as its mount; the dump beside it tells when it happened."""
    crash(tmp_path, at=time.time() - 60)
    crash(tmp_path, CRASH, "sys/fs/pstore/console-ramoops-0")
    ending = previous.last_words(str(tmp_path))

    assert ending and ending.file.endswith("dmesg-ramoops-0")


def test_nothing_is_known_of_an_earlier_boot(root: Path) -> None:
    """No evidence is a state of its own, and not good news."""
    result = status(root, "--previous")

    assert result.exit_code == 6
    assert "nothing is known of an earlier boot" in result.stderr


def test_previous_stands_alone(root: Path) -> None:
    """The metrics and the history are about this boot."""
    for words in (["--keep"], ["--prometheus", "x"]):
        result = status(root, "--previous", *words)
        assert (result.exit_code, "cannot be combined" in result.stderr) == (2, True)


def test_metrics(root: Path, tmp_path: Path) -> None:
    """The file is what Prometheus reads, with base units, help for each, and every kind of memory always there."""
    account(root)
    (root / "sys/devices/system/memory/memory35/state").write_text("online\n")
    file = tmp_path / "safemem.prom"
    before = os.umask(0o077)
    result = status(root, "--prometheus", str(file))
    os.umask(before)
    families = {family.name: family for family in text_string_to_metric_families(file.read_text())}

    assert (result.exit_code, result.stdout) == (64, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    values = {
        (name, sample.labels.get("state", "")): sample.value
        for name, family in families.items() for sample in family.samples
    }  # fmt: skip
    info = families["safemem_decision_info"].samples[0].labels
    assert info.pop("digest") == standing.read(str(root)).decision.policy.digest
    assert info == {"action": "online-safe", "rule": "otherwise", "policy": "test", "handover": "rejected"}
    assert {key: value for key, value in values.items() if key[0] == "safemem_memory_bytes"} == {
        ("safemem_memory_bytes", "held"): 7 << 27, ("safemem_memory_bytes", "guarded"): 0,
        ("safemem_memory_bytes", "safe"): 0, ("safemem_memory_bytes", "in_use"): 0,
        ("safemem_memory_bytes", "quarantined"): 1 << 27, ("safemem_memory_bytes", "exposed"): 1 << 30,
    }  # fmt: skip
    assert (values["safemem_decision_in_force", ""], values["safemem_onlined_by_others_bytes", ""]) == (0, 1 << 27)
    for family in families.values():
        assert family.type == "gauge" and family.documentation.endswith(".")


def test_metrics_of_names_with_quotes(root: Path) -> None:
    """Whatever an operator calls a rule comes back out of the file."""
    name = 'a "rule" with \\ and\na line'
    found = standing.read(str(root))
    decision = found.decision._replace(rule=found.decision.rule._replace(name=name))
    found = found._replace(record=found.record._replace(decision=decision))
    families = {family.name: family for family in text_string_to_metric_families(metrics.text(found))}

    assert families["safemem_decision_info"].samples[0].labels["rule"] == name


def test_metrics_without_a_decision(root: Path, tmp_path: Path) -> None:
    """That there is no decision is a metric, so that an alert can tell it from a machine without safemem."""
    (root / "run/safemem/decision.json").unlink()
    file = tmp_path / "safemem.prom"
    result = status(root, "--prometheus", str(file))

    assert result.exit_code == 6
    assert file.read_text().splitlines()[-1] == "safemem_decision_recorded 0"


def test_metrics_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    """The message says which file."""
    result = status(root, "--prometheus", str(tmp_path / "no/safemem.prom"))

    assert (result.exit_code, "no/safemem.prom: no such file or directory" in result.stderr) == (1, True)


def test_journal(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry with fields; a value of several lines goes with its length; without a journal nothing is lost."""
    found = standing.read(str(root))
    decision = found.decision._replace(message="two\nlines")
    found = found._replace(record=found.record._replace(decision=decision))
    assert not journal.send(str(root), journal.fields(found, 4))
    path = root / journal.SOCKET
    path.parent.mkdir(parents=True)
    monkeypatch.chdir(root)  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(journal.SOCKET)
        assert journal.send("", journal.fields(found, 4))
        entry = server.recv(65536)

    text = b"online-safe: two\nlines"
    assert entry.startswith(b"MESSAGE\n" + len(text).to_bytes(8, "little") + text + b"\n")
    assert {
        b"SAFEMEM_ACTION=online-safe",
        b"SAFEMEM_HANDOVER=rejected",
        b"PRIORITY=4",
        b"SAFEMEM_RULE=otherwise",
    } <= set(entry.splitlines())
