# SPDX-License-Identifier: MIT
"""The package in real Debian userspaces: installed, upgraded, removed; its units in two boots of a guest."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit import RELEASES, contents
from tests.vm import debian
from tests.vm.harness import boot, shell
from tests.vm.kit import ALL, ALL_ONLINE, HELD, RAMOOPS, SITE, lost, policy_text

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("release", RELEASES if ALL else RELEASES[:2])
def test_install_upgrade_remove(deb: Callable[[str], Path], release: str, tmp_path: Path) -> None:
    """In a root of the release: it runs, keeps an operator's policy over an upgrade, and leaves nothing behind."""
    if os.geteuid():
        pytest.fail("this test calls chroot: run it as root")
    package = deb(release)
    tree = tmp_path / "tree"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tree, debian.root(release)], check=True, capture_output=True)
    (tree / "safemem.deb").write_bytes(package.read_bytes())

    def run(command: str, code: int = 0) -> str:
        result = subprocess.run(["chroot", tree, "sh", "-c", command], capture_output=True, text=True)
        assert result.returncode == code, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    said = run("dpkg -i /safemem.deb")
    assert "safemem: from the next boot on, /etc/safemem/policy.toml decides which memory may be used.\n" in said
    assert "after a cold boot" not in said  # no /sys here
    assert "version 0.1.0" in run("cd / && safemem --version")
    assert "all invariants hold" in run("safemem check /etc/safemem/policy.toml")
    assert "no decision was recorded" in run("safemem status", 6)
    # No zstd and no kernel here: the archive is made all the same.
    assert "files" in run("safemem initramfs cpio --policy /etc/safemem/policy.toml -o /tmp/safemem.cpio")
    enabled = run("ls /etc/systemd/system/sysinit.target.wants /etc/systemd/system/timers.target.wants")
    assert "safemem-record.service" in enabled and "safemem-metrics.timer" in enabled
    assert "pydantic" not in run("find /usr/lib/python3/dist-packages -name '*pydantic*'")

    run("echo '# mine' >>/etc/safemem/policy.toml; dpkg --force-confdef -i /safemem.deb")
    assert run("tail -1 /etc/safemem/policy.toml") == "# mine\n"
    run("safemem check /etc/safemem/policy.toml")
    run("dpkg -r safemem")
    assert run("ls /etc/safemem") == "policy.toml\n"
    assert run("find / -xdev -path /tmp -prune -o -path /var/lib/dpkg -prune -o -name '*safemem*' -print "
               "| grep -v -e ^/etc/safemem -e ^/safemem.deb -e ^/etc/systemd -e ^/var/lib/systemd/deb-systemd-helper "
               "|| :") == ""  # fmt: skip
    run("mkdir -p /var/lib/safemem/history; dpkg -P safemem")
    left = run("find / -xdev -path /tmp -prune -o -name '*safemem*' -print")
    assert left.split() == ["/safemem.deb"], left


def test_units_in_two_boots(deb: Callable[[str], Path], tmp_path: Path) -> None:
    """The unit keeps the decision on the disk and in the journal; a boot that panics next is found in systemd's archive."""
    files = contents(deb("bookworm"), tmp_path)
    files["etc/systemd/system/sysinit.target.d/safemem.conf"] = b"[Unit]\nWants=safemem-record.service\n"
    upper = debian.blank(tmp_path / "upper")
    options: dict[str, Any] = {"policy": policy_text(), "files": files, "upper": upper, "timeout": 600}
    early, script = shell("hand-over", NEXT=f"{RAMOOPS} systemd.firstboot=off"), shell("record-unit")
    losing = debian.guest("package-1", "bookworm", early, script, kernel="old-kho", next_kernel="current", **options)
    first_boot = boot(losing)
    crashed = boot(lost(
        "package-2", early, policy_text("panic"), cmdline=RAMOOPS, memory=tmp_path, timeout=300, dimm_mib=0
    ))  # fmt: skip
    assert crashed.fate == "panic", crashed.serial[-3000:]
    cold = debian.guest(
        "package-3", "bookworm", "decide", script, cmdline=RAMOOPS, memory=tmp_path, dimm_mib=0, **options
    )
    last_boot = boot(cold)
    results = [first_boot, last_boot]
    for result in results:
        assert result.fate == "poweroff", result.serial[-3000:]
        assert "ActiveState=active" in result.report["unit"], result.report["log"]
        assert result.report["metrics"] == "0"
        assert "safemem_decision_recorded 1" in result.report["prom"].splitlines()
    first, second = (result.report for result in results)
    assert (first["now"], first["previous"], first["kept"]) == ("4", "6", "1")
    assert {"SAFEMEM_ACTION=online-safe", "SAFEMEM_HANDOVER=rejected", "PRIORITY=4"} <= set(first["entry"].splitlines())
    assert (second["now"], second["previous"], second["kept"]) == ("0", "5", "2"), second["previous_text"]
    lines = second["previous_text"].splitlines()
    assert lines[0] == "panic  handover lost, says the test"
    # systemd-pstore has been there: the dump is where it puts it.
    assert second["archive"].startswith("/var/lib/systemd/pstore/dmesg-ramoops-0")
    assert lines[2].split(", ")[0].split()[1] in second["archive"].split()
    assert "online-safe  handover lost, says the test" in lines


def test_watch_unit(deb: Callable[[str], Path], tmp_path: Path) -> None:
    """It comes back when it is killed, and with a policy that was edited since; what a rule of udev onlines is named and reverted; then a release."""
    text = policy_text(extra='if_onlined = "offline"')
    files = contents(deb("bookworm"), tmp_path)
    files["etc/systemd/system/sysinit.target.d/safemem.conf"] = b"[Unit]\nWants=safemem-hold.service\n"
    files["etc/safemem/policy.toml"] = text.encode()
    files["late"] = SITE.encode()
    guest = debian.guest(
        "package-watch", "bookworm", shell("hand-over"), shell("watch-unit") + shell("watch-unit-life"), policy=text,
        files=files, kernel="old-kho", next_kernel="current",
    )  # fmt: skip
    result = boot(guest)
    report = result.report

    assert result.fate == "poweroff", result.serial[-3000:]
    assert (report["started"], report["first"].split()) == ("0", ["success", "0", "0", "active"]), report["log"]
    assert report["killed"].split() == ["success", "1", "0", "active"]
    status = json.loads(report["status"])
    assert report["reverted"].split() == [HELD], report["log"]
    assert status["watch"]["reverted"] == status["watch"]["onlined"] > 0
    assert [item["evidence"] for item in status["watch"]["last"][-1]["suspects"]] == [
        "usr/lib/udev/rules.d/41-late.rules:1"
    ]
    assert "may have been a udev rule" in report["log"]
    assert report["other"].split() == ["success", "0", "0", "active"]
    assert "but this boot was decided by" in report["log"]
    # What was released is nobody's fault.
    assert (report["again"], report["released"], report["masks"]) == ("0", "0", "0")
    assert report["dimm"].split() == [ALL_ONLINE]
    assert report["failed"] == ""


def test_watch_unit_in_a_dry_run(deb: Callable[[str], Path], tmp_path: Path) -> None:
    """It says that nothing is in force and ends well, once; what is offline stays so."""
    text = policy_text().replace('name = "vm"', 'name = "vm"\nallow_cmdline_override = true')
    files = contents(deb("bookworm"), tmp_path)
    files["etc/safemem/policy.toml"] = text.encode()
    script = shell("watch-unit") + 'begin 3; log; report dimm "$(blocks 32 39)"'
    guest = debian.guest(
        "package-dry-run", "bookworm", "decide", script, policy=text, files=files, cmdline="safemem.dry_run"
    )
    result = boot(guest)
    report = result.report

    assert result.fate == "poweroff", result.serial[-3000:]
    # A unit that has ended well is forgotten, its exit status too.
    assert (report["started"], report["first"].split()[0::3]) == ("0", ["success", "inactive"]), report["log"]
    assert report["log"].count("this boot is a dry run: its decision is not in force") == 1
    assert report["dimm"].split() == [HELD]
    assert report["failed"] == ""
