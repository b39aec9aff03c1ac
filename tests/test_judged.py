# SPDX-License-Identifier: MIT
"""What the next boot says of the verdict on its kernel; tests/vm/test_gate.py has real kernels."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner

from safemem.boot import main as boot
from safemem.boot import paths
from safemem.boot.model import Rule
from safemem.cli import main
from safemem.host import history, judged
from safemem.realroot import loaded
from safemem.realroot.loaded import Override
from tests.fakes import make_root
from tests.kit import install

MINE = "6e4ad3f43c4f0a0d66d2b2f5c3a4d5e6f7081920"
BEFORE = "11111111-2222-4333-8444-555555555555"
BASE = "console=ttyS0 kho=on"
FORCED = Override(BEFORE, 1_800_000_000, "the host burns", "incompatible", "it reads kho-v3", "/boot/old")
LINES = {
    "": [],
    f"safemem.preflight={MINE[:16]}": ["judged    this kernel was judged before the kexec: compatible; build ID 6e4ad3f43c4f0a0d"],
    f"safemem.preflight=00000000+{MINE[:16]}": ["judged    this kernel was judged before the kexec: compatible; build ID 6e4ad3f43c4f0a0d"],
    f"safemem.preflight={MINE[:16]},cannot-tell": ["judged    this kernel was looked at before the kexec, which could not tell whether it is compatible; build ID 6e4ad3f43c4f0a0d"],
    "safemem.preflight=0011223344556677": ["warning   this is another kernel than preflight judged: build ID 6e4ad3f43c4f0a0d, and not 0011223344556677"],
    "safemem.preflight=unknown": ["judged    whether this kernel was judged before the kexec cannot be told: the build ID of the image that was judged could not be told"],
    "safemem.preflight=6e4a": ["judged    whether this kernel was judged before the kexec cannot be told: safemem.preflight= on the command line is ignored: `6e4a` is not what kexec was given"],
    f"safemem.preflight={MINE[:16]},more": [f"judged    whether this kernel was judged before the kexec cannot be told: safemem.preflight= on the command line is ignored: `{MINE[:16]},more` is not what kexec was given"],
    f"safemem.preflight={MINE[:16]},overridden": ["forced    the kexec that ended the boot before was against the verdict: the reason is not on record"],
}  # fmt: skip


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def notes(*items: tuple[bytes, int, bytes]) -> bytes:
    """Return ELF notes: name, type and content each."""
    return b"".join(
        struct.pack("=III", len(name), len(data), kind) + _padded(name) + _padded(data) for name, kind, data in items
    )


GOOD = notes((b"Xen\0", 18, b"abc"), (b"GNU\0", 1, bytes(16)), (b"GNU\0", 3, bytes.fromhex(MINE)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a machine that has not decided yet."""
    found = make_root(tmp_path, cmdline=BASE)
    install(found, otherwise=Rule("otherwise", "online-all"))
    (found / paths.NOTES).parent.mkdir(parents=True, exist_ok=True)
    (found / paths.NOTES).write_bytes(GOOD)
    return found


def status(root: Path, word: str, form: str = "text") -> str:
    """Boot with `word` on the command line, and return what `safemem status` prints."""
    (root / "proc/cmdline").write_text(f"{BASE} {word}\n")
    assert boot.main(["--root", str(root)]) == 0
    return CliRunner().invoke(main, ["status", "--root", str(root), "--format", form]).stdout


def shown(text: str) -> list[str]:
    """Return the lines that are about the verdict."""
    return [line for line in text.splitlines() if line.startswith(("judged", "forced")) or "preflight judged" in line]


def before(root: Path, name: str = BEFORE) -> None:
    """Have an earlier boot leave its record."""
    (root / history.FOLDER / f"00000001-20260101T000000Z-{name}").mkdir(parents=True)


@pytest.mark.parametrize(("word", "lines"), LINES.items(), ids=LINES)
def test_status_says_whether_the_judged_kernel_runs(root: Path, word: str, lines: list[str]) -> None:
    """By the build ID on the command line and the one in /sys/kernel/notes."""
    assert lines == shown(status(root, word))


def test_a_forced_kexec_is_shown_with_its_reason(root: Path) -> None:
    """As the boot before has kept it; where its record is missing, as the newest one."""
    loaded.keep(str(root), FORCED._replace(boot_id="0" * 36, reason="another boot's"))
    loaded.keep(str(root), FORCED)
    os.utime(root / loaded.OVERRIDES / f"{BEFORE}.json", (1, 1))
    line = "forced    the kexec that ended the boot before was against the verdict: {} (incompatible: it reads kho-v3)"
    assert shown(status(root, f"safemem.preflight={MINE[:16]},overridden")) == [line.format("another boot's")]
    before(root)
    assert shown(status(root, f"safemem.preflight={MINE[:16]},overridden")) == [line.format("the host burns")]
    # It was loaded only, and this boot is another one.
    assert shown(status(root, "")) == []
    # Loaded past the wrapper, and let through by the gate: no word names it.
    loaded.keep(str(root), FORCED._replace(started=True))
    assert shown(status(root, "")) == [line.format("the host burns")]
    document = json.loads(status(root, f"safemem.preflight={MINE[:16]},overridden", "json"))
    assert document["preflight"] == {
        "judged": [MINE[:16]], "running": MINE, "same": True, "could_tell": True, "forced": True,
        "override": FORCED._replace(started=True)._asdict(), "problem": None,
    }  # fmt: skip


def test_nothing_was_said(root: Path) -> None:
    """A cold boot, and one after a boot that was not forced, say nothing."""
    before(root)
    loaded.keep(str(root), FORCED._replace(boot_id="0" * 36))
    assert json.loads(status(root, "", "json"))["preflight"] is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "/sys/kernel/notes has no build ID"),
        (GOOD[:-4], "/sys/kernel/notes has no build ID"),
        (GOOD[:-60], "/sys/kernel/notes has no build ID"),
        (b"\xff" * 64, "/sys/kernel/notes has no build ID"),
        (None, "/sys/kernel/notes: no such file or directory"),
    ],
    ids=["empty", "cut", "none", "noise", "missing"],
)
def test_a_kernel_that_does_not_say_which_it_is(root: Path, data: bytes | None, why: str) -> None:
    """Notes that are missing, cut off or none: it cannot be told."""
    (root / paths.NOTES).unlink()
    if data is not None:
        (root / paths.NOTES).write_bytes(data)
    found = judged.read(str(root), f"safemem.preflight={MINE[:16]}")
    assert found and (found.same, found.problem) == (None, why)


def test_a_damaged_override_is_said(root: Path) -> None:
    """Only where the command line says that there is one."""
    before(root)
    (root / loaded.OVERRIDES).mkdir(parents=True)
    (root / loaded.OVERRIDES / f"{BEFORE}.json").write_text("{")
    found = judged.read(str(root), f"safemem.preflight={MINE[:16]},overridden")
    assert (
        found
        and found.forced
        and found.problem
        == (f"the override of the boot before cannot be read: /{loaded.OVERRIDES}/{BEFORE}.json is damaged")
    )
    assert judged.read(str(root), "") is None
