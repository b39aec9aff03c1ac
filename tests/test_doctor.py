# SPDX-License-Identifier: MIT
"""Doctor: a healthy machine is healthy, and each thing that would defeat the policy is found by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from safemem import boot, doctor
from safemem.cli import main
from safemem.model import Rule
from tests.fakes import make_root
from tests.test_boot import install


def healthy(base: Path, **options: object) -> Path:
    """Return a machine on which a lost handover is held, with our udev rule, and nothing is wrong."""
    cmdline = str(options.pop("cmdline", "kho=on liveupdate=on memhp_default_state=offline"))
    root = make_root(base, offered=True, online="", cmdline=cmdline, **options)  # type: ignore[arg-type]
    (root / "usr/lib/udev/rules.d").mkdir(parents=True)
    (root / "usr/lib/udev/rules.d/60-safemem.rules").touch()
    (root / "proc/meminfo").write_text("MemTotal: 1000000 kB\nMemAvailable: 900000 kB\n")
    install(root, otherwise=Rule("otherwise", "online-safe"))
    (root / "run/safemem").mkdir(parents=True)
    (root / "run/safemem/masked").touch()
    assert boot.main(["--root", str(root)]) == 0
    # A plain file keeps the tail of what was longer.
    (root / "sys/devices/system/memory/auto_online_blocks").write_text("offline\n")
    return root


def put(path: str, text: str) -> Callable[[Path], None]:
    """Return a change: the file with `text`."""

    def change(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    return change


FAULTS: list[tuple[str, str, Callable[[Path], None]]] = [
    ("no-decision", "severe", lambda root: (root / "run/safemem/decision.json").unlink()),
    ("onlined-by-others", "severe", put("sys/devices/system/memory/memory35/state", "online\n")),
    ("kernel-onlines", "severe", put("sys/devices/system/memory/auto_online_blocks", "online\n")),
    ("no-memhp-argument", "warning", put("proc/cmdline", "kho=on liveupdate=on\n")),
    ("udev-rule", "severe", put("usr/lib/udev/rules.d/41-x.rules", 'SUBSYSTEM=="memory", ATTR{state}="online"\n')),
    ("no-udev-rule", "warning", lambda root: (root / "usr/lib/udev/rules.d/60-safemem.rules").unlink()),
    ("daxctl", "severe", put("etc/daxctl.conf.d/a.conf", "[reconfigure-device x]\nmode = system-ram\n")),
    ("agent", "warning", put("proc/77/comm", "qemu-ga\n")),
    ("luo-missing", "warning", lambda root: os.rename(root / "sys/class/misc/liveupdate/dev", root / "gone")),
    ("memmap-cost", "warning", put("proc/meminfo", "MemTotal: 100000 kB\nMemAvailable: 90000 kB\n")),
    ("virtio-mem-stalls", "warning", put("proc/iomem", "100000000-13fffffff : System RAM (virtio_mem)\n")),
    ("dlpar", "severe", put("proc/sys/kernel/arch", "ppc64le\n")),
    ("guard-void", "warning", put("proc/cmdline", "kho=on memhp_default_state=offline safemem.guard=0x1000000-0x24ffffff\n")),
]  # fmt: skip


def test_healthy(tmp_path: Path) -> None:
    """Nothing is found where nothing is wrong."""
    root = healthy(tmp_path)
    result = CliRunner().invoke(main, ["doctor", "--root", str(root)])

    assert (result.stdout, result.exit_code) == ("nothing stands in the policy's way\n", 0)


@pytest.mark.parametrize(("code", "severity", "change"), FAULTS, ids=[code for code, _, _ in FAULTS])
def test_each_fault_is_found_by_itself(
    tmp_path: Path, code: str, severity: str, change: Callable[[Path], None]
) -> None:
    """One fault, its finding with evidence and remedy; only what is severe sets the exit code."""
    root = healthy(tmp_path)
    change(root)
    if code == "luo-missing":
        (root / "sys/class/misc/liveupdate").rmdir()
    found = doctor.examine(str(root))

    assert (code, severity) in [(item.code, item.severity) for item in found]
    assert all(item.evidence and item.remedy for item in found)
    result = CliRunner().invoke(main, ["doctor", "--root", str(root), "--format", "json"])
    assert result.exit_code == (1 if any(item.severity == "severe" for item in found) else 0)
    assert json.loads(result.stdout)["findings"][0]["severity"] == found[0].severity
    # Nothing else is blamed for it.
    assert {item.code for item in found} <= {code, *(["luo-without-kho"] if code == "luo-missing" else [])}


def test_memory_that_was_online_before_us(tmp_path: Path) -> None:
    """Hot-added memory that the kernel onlined before safemem ran is told from boot memory by firmware's map."""
    for name, count, says in (
        ("told", 1, "0x100000000-0x13fffffff (1 GiB) was hot-added and online before safemem ran: boot with memhp_default_state=offline"),
        ("untold", 0, "whether hot-added memory was online before safemem ran cannot be told: sys/kernel/boot_params/data: sys/kernel/boot_params/data holds no memory map"),
    ):  # fmt: skip
        root = make_root(tmp_path / name, offered=True, online="0-7,32-39", offline="")
        (root / "sys/devices/system/memory/auto_online_blocks").write_text("online\n")
        page = bytearray(4096)
        page[0x1E8] = count
        page[0x2D0 : 0x2D0 + 20] = (0).to_bytes(8, "little") + (1 << 30).to_bytes(8, "little") + b"\1\0\0\0"
        (root / "sys/kernel/boot_params/data").write_bytes(page)
        install(root, otherwise=Rule("otherwise", "online-safe"))
        assert boot.main(["--root", str(root)]) == 0
        found = {item.code: item for item in doctor.examine(str(root))}
        assert (found["onlined-before-us"].severity, found["onlined-before-us"].message) == ("severe", says)


def test_a_guard_that_could_be_overwritten(tmp_path: Path) -> None:
    """While a guard is held, a crash kernel that is loaded, or could be, is severe."""
    root = healthy(
        tmp_path,
        cmdline="kho=on liveupdate=on memhp_default_state=offline safemem.guard=0x1000000-0x24ffffff",
        crash="01000000-24ffffff",
    )
    (root / "proc/sys/kernel/kexec_load_limit_panic").write_text("0\n")
    assert [item.code for item in doctor.examine(str(root))] == []
    (root / "proc/sys/kernel/kexec_load_limit_panic").write_text("-1\n")
    (root / "sys/kernel/kexec_crash_loaded").write_text("1\n")
    assert [item.code for item in doctor.examine(str(root))] == ["crash-kernel-in-guard", "crash-kernel-allowed"]
