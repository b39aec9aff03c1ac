# SPDX-License-Identifier: MIT
"""Masks in the real root on fake roots; tests/vm/test_debian_hold.py mounts for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from safemem.boot import hold, paths, record
from safemem.boot import main as boot
from safemem.boot.model import Rule
from safemem.host import doctor, standing
from safemem.realroot import hold as realroot
from safemem.realroot import udevrules
from tests.fakes import make_root
from tests.kit import install

RULE = 'SUBSYSTEM=="memory", ACTION=="add", ATTR{state}="online"\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a machine on which a lost handover was held, with a rule of its own under /usr."""
    found = make_root(tmp_path, offered=True)
    install(found, otherwise=Rule("otherwise", "online-safe", message="handover lost"))
    assert boot.main(["--root", str(found)]) == 0
    (found / "usr/lib/udev/rules.d").mkdir(parents=True, exist_ok=True)
    (found / "usr/lib/udev/rules.d/55-own.rules").write_text(RULE)
    return found


def test_masks_what_this_root_has_and_takes_it_back(root: Path) -> None:
    """A rule that the archive did not know is masked, twice is once, and a release leaves nothing."""
    for _ in range(2):
        assert realroot.main(["--root", str(root)]) == 0
    assert (root / "run/udev/rules.d/55-own.rules").readlink() == Path("/dev/null")
    assert (root / "run/systemd/system/daxdev-reconfigure@.service").readlink() == Path("/dev/null")
    assert udevrules.find(str(root)) == []
    lines = (root / realroot.MASKED).read_text().splitlines()
    assert len(lines) == len(set(lines)) and "run/udev/rules.d/55-own.rules" in lines

    assert realroot.release(str(root)) == []
    assert not (root / realroot.MASKED).exists()
    assert not list((root / "run/systemd/system").iterdir())
    assert [item.file for item in udevrules.find(str(root))] == ["usr/lib/udev/rules.d/55-own.rules"]


def test_what_cannot_be_masked_is_said(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """A file in /etc that cannot be covered: the kernel log, the record, `status` and `doctor` say so."""
    (root / "etc/udev/rules.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/udev/rules.d/55-own.rules").write_text(RULE)
    monkeypatch.setattr(realroot, "MOUNT", "/nonexistent/mount")

    assert realroot.main(["--root", str(root)]) == 1
    why = "could not be masked, so it may online held memory: /nonexistent/mount: No such file or directory"
    assert why in (root / "dev/kmsg").read_text() or why in capsys.readouterr().err
    assert standing.read(str(root)).verdict == "partly"
    found = {(item.code, item.severity) for item in doctor.examine(str(root))}
    assert {("not-applied", "warning"), ("udev-rule", "severe")} <= found
    result = json.loads((root / "run/safemem/decision.json").read_text())["result"]
    problems = result["problems"]
    assert len(result["problem_codes"]) == len(problems) and "still-onlines" in result["problem_codes"]
    assert any("still onlines memory, although it was to be masked" in text for text in problems)


def env(root: Path, name: str, value: str) -> None:
    """Change what udev and the hold read of the decision."""
    lines = [line for line in (root / record.ENV).read_text().splitlines() if not line.startswith(f"{name}=")]
    (root / record.ENV).write_text("\n".join([f"{name}={value}", *lines, ""]))


def test_nothing_is_masked_after_a_release(root: Path) -> None:
    """Vendors' rules are none of our business once everything was given back, and only then."""
    everything = [{"time": 1, "reason": "x", "ranges": [realroot.EVERYTHING], "state": "done"}]
    env(root, "SAFEMEM_ARRIVALS", "online_movable")
    (root / realroot.RELEASES).write_text(json.dumps(everything))
    assert realroot.main(["--root", str(root)]) == 0
    assert not (root / realroot.MASKED).exists()


def test_nothing_is_masked_after_online_all(tmp_path: Path) -> None:
    """Where all memory may be used, every rule stays, and what the kernel does stays as it is."""
    root = make_root(tmp_path)
    install(root, otherwise="online-all")
    assert boot.main(["--root", str(root)]) == 0
    (root / paths.AUTO_ONLINE).write_text("online_movable")
    assert realroot.main(["--root", str(root)]) == 0
    assert not (root / realroot.MASKED).exists()
    assert (root / paths.AUTO_ONLINE).read_text() == "online_movable"


def test_a_dry_run_masks_nothing(tmp_path: Path) -> None:
    """A decision that was not carried out hides no rule."""
    root = make_root(tmp_path, offered=True, cmdline="kho=on safemem.dry_run")
    install(root, otherwise="online-safe", allow_cmdline_override=True)
    assert boot.main(["--root", str(root)]) == 0
    assert realroot.main(["--root", str(root)]) == 0
    assert not (root / realroot.MASKED).exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("SAFEMEM_ARRIVALS", "online"), ("SAFEMEM_ARRIVALS", "online_kernel"), ("SAFEMEM_DRY_RUN", "yes")],
)
@pytest.mark.parametrize(
    "releases", [None, "[", '[{"ranges": ["0x100000000-0x107ffffff"]}]', "[" * 100_000, "{}", '[{"ranges": 1}]']
)
def test_the_record_decides(root: Path, name: str, value: str, releases: str | None) -> None:
    """A file for udev that says otherwise, or a release of a part, ends no hold; nor does a list that cannot be read."""
    env(root, name, value)
    if releases is not None:
        (root / realroot.RELEASES).write_text(releases)
    assert realroot.main(["--root", str(root)]) == 0
    assert udevrules.find(str(root)) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"decision": {"arrivals": "movable"}', "[]", "1e999", b"\xff"]
)
def test_a_record_that_cannot_be_read_holds(root: Path, text: str | bytes) -> None:
    """Whatever is in it, known names and this root's own rules are masked."""
    (root / record.RECORD).write_bytes(text if isinstance(text, bytes) else text.encode())
    env(root, "SAFEMEM_ARRIVALS", "online")
    assert realroot.main(["--root", str(root)]) == 0
    assert udevrules.find(str(root)) == []
    assert {f"{hold.UDEV_RUN}/{name}" for name in udevrules.KNOWN} <= set(
        (root / realroot.MASKED).read_text().splitlines()
    )


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("safemem.realroot.udevrules.find", RecursionError("maximum recursion depth exceeded")),
        ("safemem.realroot.hold.boot.hold", ValueError("x")),
        ("safemem.realroot.hold._keep", OSError(28, "No space left on device")),
        ("safemem.realroot.storage.locked", OSError(24, "Too many open files")),
        ("safemem.realroot.hold._masked", IsADirectoryError(21, "Is a directory")),
    ],
)
def test_each_step_on_its_own(root: Path, monkeypatch: pytest.MonkeyPatch, where: str, kind: Exception) -> None:
    """A step that fails is said where it matters, and costs none of the others."""

    def fail(*_: object, **__: object) -> None:
        raise kind

    monkeypatch.setattr(where, fail)
    code = realroot.main(["--root", str(root)])
    for name in udevrules.KNOWN:
        assert (root / hold.UDEV_RUN / name).readlink() == Path("/dev/null")
    assert (root / hold.UNITS_RUN / realroot.UNITS[0]).is_symlink()
    assert code == (0 if "locked" in where or "_masked" in where else 1)
    monkeypatch.undo()
    if code:
        assert standing.read(str(root)).verdict == "partly"


def test_a_damaged_list_of_masks(root: Path) -> None:
    """Bytes that are no text in the list of what was masked neither end the hold nor a release."""
    (root / realroot.MASKED).write_bytes(b"run/udev/rules.d/\xff.rules\n")
    assert realroot.main(["--root", str(root)]) == 0
    assert udevrules.find(str(root)) == []
    assert realroot.release(str(root)) == []
    assert not (root / realroot.MASKED).exists()
    (root / realroot.MASKED).mkdir()
    assert realroot.release(str(root)) == ["run/safemem/masked: is a directory: what is masked stays so"]


def test_it_sets_and_reads_back_what_the_kernel_does(root: Path) -> None:
    """Somebody has set auto_online_blocks since: it is set back, and a kernel that does not keep it is a problem."""
    (root / paths.AUTO_ONLINE).write_text("online\n")
    assert realroot.main(["--root", str(root)]) == 0
    assert (root / paths.AUTO_ONLINE).read_text() == "offline"
    (root / paths.AUTO_ONLINE).unlink()
    os.symlink("/dev/null", root / paths.AUTO_ONLINE)
    assert realroot.main(["--root", str(root)]) == 1
    problems = json.loads((root / record.RECORD).read_text())["result"]["problems"]
    assert problems == [f"{paths.AUTO_ONLINE} could not be set to offline: it reads `nothing` after it was written"]


def test_a_rule_that_comes_later_is_masked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package's rule, one that comes while others are masked, and one in /run; udev is told, but not before it runs."""
    told: list[tuple[str, ...]] = []
    real = realroot.run
    monkeypatch.setattr(realroot, "run", lambda *words: told.append(words) or cover(words))  # type: ignore[func-returns-value]

    def cover(words: tuple[str, ...]) -> str:
        if words[0] == realroot.MOUNT:
            os.unlink(words[-1])
            os.symlink("/dev/null", words[-1])
        return "" if words[0] in (realroot.MOUNT, realroot._UDEVADM) else real(*words)

    assert realroot.main(["--root", str(root)]) == 0
    (root / "run/udev/control").touch()
    (root / "usr/lib/udev/rules.d/85-new-agent.rules").write_text(RULE)
    find = udevrules.find

    def busy(where: str) -> list[udevrules.Onliner]:
        found = find(where)
        (root / "usr/lib/udev/rules.d/86-meanwhile.rules").write_text(RULE)
        return found

    monkeypatch.setattr(udevrules, "find", busy)
    (root / "run/udev/rules.d/87-runtime.rules").write_text(RULE)
    assert realroot.main(["--root", str(root), "--again"]) == 0
    monkeypatch.setattr(udevrules, "find", find)
    assert find(str(root)) == []
    assert told == [
        (realroot.MOUNT, "--bind", "/dev/null", str(root / "run/udev/rules.d/87-runtime.rules")),
        (realroot._UDEVADM, "control", "--reload", "--timeout=10"),
    ]
    # Nothing more to mask, nothing to tell, no folder changed that would bring us up again.
    before = (root / "run/udev/rules.d").stat().st_mtime_ns
    assert realroot.main(["--root", str(root), "--again"]) == 0
    assert (len(told), (root / "run/udev/rules.d").stat().st_mtime_ns) == (2, before)


def test_the_operators_mask_is_not_ours(root: Path) -> None:
    """What the operator has masked in /etc is neither mounted over nor taken back."""
    (root / "etc/udev/rules.d").mkdir(parents=True)
    os.symlink("/dev/null", root / "etc/udev/rules.d/40-redhat.rules")
    assert realroot.main(["--root", str(root)]) == 0
    assert "etc/udev" not in (root / realroot.MASKED).read_text()
    assert realroot.release(str(root)) == []
    assert (root / "etc/udev/rules.d/40-redhat.rules").is_symlink()


@pytest.mark.parametrize(("action", "keys"), [("panic", "b"), ("reboot", "c"), ("halt", ""), ("continue", "")])
def test_a_hold_that_falls_short_ends_as_the_rule_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, keys: str
) -> None:
    """What cannot be masked ends the boot with its reason in the kernel log; the record says so first."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=Rule("otherwise", "online-safe", message="handover lost", on_shortfall=action))
    assert boot.main(["--root", str(root)]) == 0
    (root / "etc/udev/rules.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/udev/rules.d/41-x.rules").write_text(RULE)
    monkeypatch.setattr(realroot, "MOUNT", "/nonexistent/mount")

    assert realroot.main(["--root", str(root)]) == 1
    assert (root / "proc/sysrq-trigger").read_text() == keys  # the last of them: this kernel obeys none
    log = (root / "dev/kmsg").read_text()
    assert (f"safemem: end action={action} code=shortfall\n" in log) == (action != "continue")
    assert "could not be masked" in json.loads((root / record.RECORD).read_text())["result"]["problems"][0]


def test_without_arrivals_it_holds(root: Path) -> None:
    """A missing file is no permission."""
    (root / record.ENV).unlink()
    assert realroot.main(["--root", str(root)]) == 0
    assert udevrules.find(str(root)) == []


def test_doctor_misses_the_unit(root: Path) -> None:
    """A hold whose real root was never masked is a finding, and none afterwards."""
    assert "real-root-not-masked" in {item.code for item in doctor.examine(str(root))}
    realroot.main(["--root", str(root)])
    assert "real-root-not-masked" not in {item.code for item in doctor.examine(str(root))}


def test_runs_on_the_bare_interpreter(root: Path) -> None:
    """The unit's program needs no package beyond the standard library."""
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from safemem.realroot.hold import main; sys.exit(main(sys.argv[1:]))"
    package = str(Path(realroot.__file__).parent.parent.parent)
    subprocess.run([sys.executable, "-I", "-S", "-c", code, package, "--root", str(root)], check=True)
    assert udevrules.find(str(root)) == []
