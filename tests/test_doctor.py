# SPDX-License-Identifier: MIT
"""Doctor: a healthy machine is healthy, and each thing that would defeat the policy is found by itself."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from string import Formatter

import pytest
from click.testing import CliRunner

from safemem.boot import main as boot
from safemem.boot import paths, record
from safemem.boot.model import Rule
from safemem.cli import main
from safemem.host import catalogue, doctor
from safemem.initramfs.cpio import Archive
from tests.fakes import make_root
from tests.kit import guarded, install

POLICIES = Path(__file__).parent.parent / "policies"


def healthy(base: Path, **options: object) -> Path:
    """Return a machine on which a lost handover is held, with our udev rule, and nothing is wrong."""
    cmdline = str(options.pop("cmdline", "kho=on liveupdate=on memhp_default_state=offline"))
    root = make_root(base, offered=True, online="", cmdline=cmdline, **options)  # type: ignore[arg-type]
    (root / "usr/lib/udev/rules.d").mkdir(parents=True)
    (root / "usr/lib/udev/rules.d/60-safemem.rules").touch()
    (root / "proc/meminfo").write_text("MemTotal: 1000000 kB\nMemAvailable: 900000 kB\n")
    # The fake root's own areas would not hold the memory map of what is held.
    for name, text in (("scratch_phys", "0x10000000\n"), ("scratch_len", "0x8000000\n")):
        (root / f"sys/kernel/debug/kho/out/{name}").write_text(text)
    install(root, otherwise=Rule("otherwise", "online-safe"))
    (root / "run/safemem").mkdir(parents=True)
    (root / "run/safemem/masked").touch()
    assert boot.main(["--root", str(root)]) == 0
    pack(root, (root / boot.POLICY).read_bytes())
    return root


def pack(
    root: Path, policy: bytes | None, init: bytes = b"#!/bin/sh\n/usr/lib/safemem/boot; [ $? = 42 ] || exit\n"
) -> None:
    """Make the initrd of the next boot, with safemem and `policy` in it or without."""
    out = io.BytesIO()
    archive = Archive(out)
    archive.file("init", init, 0o755)
    if policy is not None:
        archive.file(boot.POLICY, policy)
        archive.file("usr/lib/safemem/boot", b"#!/bin/sh\n", 0o755)
    archive.close()
    (root / "boot").mkdir(exist_ok=True)
    release = (root / "proc/sys/kernel/osrelease").read_text().strip()
    (root / f"boot/initrd.img-{release}").write_bytes(gzip.compress(out.getvalue()))


def put(path: str, text: str) -> Callable[[Path], None]:
    """Return a change: the file with `text`."""

    def change(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    return change


def result(**more: object) -> Callable[[Path], None]:
    """Return a change: what came of the decision, as the record has it."""

    def change(root: Path) -> None:
        document = json.loads((root / record.RECORD).read_text())
        document["result"].update(more)
        (root / record.RECORD).write_text(json.dumps(document))

    return change


def kernel_zone(root: Path) -> None:
    """Plug a block by virtio-mem that is online in zone Normal, and was released."""
    for path, text in (
        ("sys/devices/system/memory/memory50/state", "online\n"), ("sys/devices/system/memory/memory50/valid_zones", "Normal\n"),
        ("proc/iomem", "190000000-197ffffff : System RAM (virtio_mem)\n"),
        ("run/safemem/releases.json", '[{"time": 1, "reason": "x", "ranges": ["0x190000000-0x197ffffff"], "state": "done"}]'),
    ):  # fmt: skip
        put(path, text)(root)


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
    ("initrd-without-safemem", "severe", lambda root: pack(root, None)),
    ("initrd-not-first", "severe", lambda root: pack(root, (root / boot.POLICY).read_bytes(), b"#!/bin/sh\n")),
    ("policy-refused", "severe", put("etc/safemem/policy.toml", "format = 2\n")),
    ("initrd-other-policy", "severe", put("etc/safemem/policy.toml", (POLICIES / "minimal.toml").read_text())),
    ("initrd-unreadable", "severe", lambda root: pack(root, b"{}")),
    ("cannot-tell", "warning", lambda root: shutil.rmtree(root / "sys/kernel/debug")),
    ("kernel-zone", "severe", kernel_zone),
    ("not-applied", "warning", result(problems=["a block refused"], problem_codes=["failed"])),
    ("real-root-not-masked", "warning", lambda root: (root / "run/safemem/masked").unlink()),
    ("no-initrd", "note", lambda root: shutil.rmtree(root / "boot")),
    ("old-kexec", "severe", put("etc/init.d/kexec-load", '\t/sbin/kexec -l "$KERNEL_IMAGE" --append="$REAL_APPEND"\n')),
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
    if code == "initrd-other-policy" and os.geteuid():
        pytest.skip("only root's policies are compared")
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


def test_a_lost_handover_that_left_boot_memory_open(tmp_path: Path) -> None:
    """Boot memory that was online before the decision is a warning, with what would have kept it."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=Rule("otherwise", "online-safe"))
    assert boot.main(["--root", str(root)]) == 0
    found = {item.code: item for item in doctor.examine(str(root))}
    assert found["too-late"].severity == "warning"
    assert found["too-late"].remedy == "boot with memhp_default_state=offline, and with a guard for boot memory"


def test_arguments_that_contradict_each_other(tmp_path: Path) -> None:
    """LUO without KHO cannot start."""
    root = healthy(tmp_path, cmdline="kho=off liveupdate=on memhp_default_state=offline", luo=False)
    found = {item.code: item.severity for item in doctor.examine(str(root))}
    assert (found["luo-without-kho"], found["luo-missing"]) == ("warning", "warning")


def test_a_machine_without_memory_blocks(tmp_path: Path) -> None:
    """There is nothing to hold, which is a note."""
    root = healthy(tmp_path)
    shutil.rmtree(root / "sys/devices/system/memory")
    assert "no-blocks" in [item.code for item in doctor.examine(str(root)) if item.severity == "note"]


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


def test_kdump_where_the_kernel_cannot_forbid_it(tmp_path: Path) -> None:
    """Before Linux 6.3 a kdump unit that is there and not masked is severe; what online-all left to kdump is its own."""
    root = guarded(tmp_path / "a", "online-safe")
    (root / paths.LOAD_LIMIT).unlink()
    put("usr/lib/systemd/system/kdump-tools.service", "")(root)
    found = [item for item in doctor.examine(str(root)) if item.code == "crash-kernel-allowed"]
    assert [item.message for item in found] == [
        "kdump-tools.service loads a crash kernel, which would be written into the guard"
    ]
    assert boot.main(["--root", str(root)]) == 0
    assert not [item for item in doctor.examine(str(root)) if item.code == "crash-kernel-allowed"]

    root = guarded(tmp_path / "b", "online-all", "256MiB")
    assert boot.main(["--root", str(root)]) == 0
    put("sys/kernel/kexec_crash_loaded", "1\n")(root)
    assert not [item for item in doctor.examine(str(root)) if "crash-kernel" in item.code]


def test_a_kexec_that_hands_nothing_over_is_found_only_where_it_would_be_used(tmp_path: Path) -> None:
    """Debian's kexec-load counts when it is switched on and loads with the old system call."""
    root = healthy(tmp_path)
    put("etc/init.d/kexec-load", "/sbin/kexec -s -l /vmlinuz\n")(root)
    assert doctor.examine(str(root)) == []
    put("etc/init.d/kexec-load", "/sbin/kexec -l /vmlinuz\n")(root)
    put("etc/default/kexec", '# LOAD_KEXEC=true\nLOAD_KEXEC="false"\n')(root)
    assert doctor.examine(str(root)) == []


def test_the_map_of_held_memory_against_the_safe_region(tmp_path: Path) -> None:
    """1 GiB held costs 16 MiB of map: little of 1 GiB in use, all of 16 MiB of scratch."""
    root = healthy(tmp_path)
    put("sys/kernel/debug/kho/out/scratch_len", "0x1000000\n")(root)
    (found,) = doctor.examine(str(root))
    assert found.message == "holding 1 GiB costs 16 MiB of memory map, out of 16 MiB of safe region"


def test_a_policy_that_cannot_be_read_for_lack_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the language needs may be broken: that is a finding, and the others are made all the same."""
    root = healthy(tmp_path)
    put("etc/safemem/policy.toml", (POLICIES / "minimal.toml").read_text())(root)
    monkeypatch.setitem(sys.modules, "safemem.policy.load", None)
    monkeypatch.delattr("safemem.policy.load", raising=False)
    (found,) = doctor.examine(str(root))
    assert (found.code, found.severity) == ("policy-not-read", "warning")
    assert found.message == "whether the initrd has the policy of /etc/safemem/policy.toml cannot be told"


def test_a_warning_is_found_by_its_code(tmp_path: Path) -> None:
    """Another sentence is the same finding; the same sentence under another code is none."""
    root = healthy(tmp_path)
    for code, found in (("too-late", ["too-late"]), ("state-unknown", [])):
        document = json.loads((root / record.RECORD).read_text())
        document["decision"].update(warnings=["what was online before the decision stays so"], warning_codes=[code])
        (root / record.RECORD).write_text(json.dumps(document))
        assert [item.code for item in doctor.examine(str(root))] == found


def yielded() -> list[tuple[str, set[str]]]:
    """Return each code that a check yields, with the names of the values that it gives."""
    tree = ast.parse(Path(doctor.__file__).read_text())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "finding":
            code = node.args[0]
            assert isinstance(code, ast.Constant), "a check names its finding"
            names = {word.arg for word in node.keywords if word.arg} - {"severity"}
            spread = any(word.arg is None for word in node.keywords)
            found.append((str(code.value), names | ({"*"} if spread else set())))
    return found


def test_the_catalogue_is_whole() -> None:
    """Each finding that a check makes is in it, with a text for each value, and none is in it that no check makes."""
    assert {code for code, _ in yielded()} == set(catalogue.CODES)
    for code, given in yielded():
        entry = catalogue.CODES[code]
        asked = {name for text in (entry.message, entry.remedy) for _, name, _, _ in Formatter().parse(text) if name}
        assert given == asked or ("*" in given and given - {"*"} < asked), code
    for code, entry in catalogue.CODES.items():
        assert entry.severity in catalogue.SEVERITIES and (entry.remedy or entry.severity == "note"), code
