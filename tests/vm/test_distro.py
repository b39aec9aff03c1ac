# SPDX-License-Identifier: MIT
"""Debian with the package and an initramfs made by the distribution's own command: from the handover to the login target."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from safemem.boot import asked
from safemem.boot.model import Failure
from safemem.boot.ranges import Range
from safemem.cli import main
from safemem.initramfs import makers, unpack
from safemem.initramfs.check import inside
from safemem.initramfs.cpio import Archive
from safemem.initramfs.items import PREFIX
from safemem.initramfs.on_failure import unit_files
from tests.vm import distro, harness
from tests.vm.harness import GIB, boot
from tests.vm.kit import ALL, ALL_ONLINE, DEADLINE, HELD, RAMOOPS, decided, policy_text

pytestmark = pytest.mark.vm

#: Tests of one tree go to one worker (tests/conftest.py): the tree and its systems are made once.
MAKERS = [pytest.param(suite, maker, id=f"@{suite}-{maker}") for suite, maker in distro.MAKERS]


def some(*names: str) -> list[Any]:
    """Return the combinations with these names; nightly, each that there is."""
    return [item for item in MAKERS if ALL or str(item.id).removeprefix("@") in names]


#: `make test` takes each suite and each maker in each of the two long ones, otherwise one with each kind of initramfs.
IMAGES = some("bookworm-initramfs-tools", "testing-dracut")
REJECTED = some("bookworm-initramfs-tools", "trixie-dracut", "testing-dracut")
PANICS, MAINTAINED, UPGRADED = some("trixie-dracut"), some("bookworm-initramfs-tools"), some("bookworm-initramfs-tools")


#: What doctor finds in these systems after a rejection: boot memory outside the guard was in use.
FOUND = {"too-late"}


class Make:
    """Makes a system for a suite, a maker of the initramfs and a policy, each once."""

    def __init__(self, folder: Path, package: Callable[[str], Path]) -> None:
        self._folder, self.package = folder, package
        self._known: dict[tuple[object, ...], distro.System] = {}
        self._trees: dict[tuple[str, str], distro.Tree] = {}

    def _tree(self, suite: str, maker: str) -> distro.Tree:
        """Return the tree, with the package installed. One at a time is kept: they are large."""
        if (suite, maker) not in self._trees:
            for old in self._trees.values():
                shutil.rmtree(old.path)
            self._trees.clear()
            tree = distro.Tree(self.place() / "tree", suite, maker)
            tree.install(self.package(suite))
            self._trees[suite, maker] = tree
        return self._trees[suite, maker]

    @contextmanager
    def copy(self, suite: str, maker: str) -> Iterator[distro.Tree]:
        """Return a copy of the tree that a test may change: others are not to see it, whatever comes first."""
        tree = self._tree(suite, maker).copy(self.place() / "tree")
        try:
            yield tree
        finally:
            shutil.rmtree(tree.path)

    def place(self) -> Path:
        """Return an empty folder, another one each time."""
        return Path(tempfile.mkdtemp(dir=self._folder))

    def __call__(self, suite: str, maker: str, policy: str = "online-safe", **more: str) -> distro.System:
        """Return the system."""
        key = (suite, maker, policy, *sorted(more.items()))
        if key not in self._known:
            self._known[key] = self._tree(suite, maker).system(self.place(), policy_text(policy, **more))
        return self._known[key]


@pytest.fixture(scope="module")
def make(deb: Callable[[str], Path]) -> Iterator[Make]:
    """Return what makes systems."""
    if os.geteuid():
        pytest.fail("these tests call chroot: run them as root")
    with tempfile.TemporaryDirectory(prefix="safemem-distro-", dir="/var/tmp") as name:
        yield Make(Path(name), deb)


@pytest.mark.parametrize(("suite", "maker"), IMAGES)
def test_image(make: Make, suite: str, maker: str) -> None:
    """The image is what check wants; one that cannot be made leaves it alone; install and remove do without the package."""
    with make.copy(suite, maker) as tree:
        tree.put({"etc/safemem/policy.toml": policy_text().encode()})
        tree.make_initrd()
        assert "before everything else" in tree.run(f"safemem initramfs check --kernel {tree.release}")
        good = tree.initrd.read_bytes()

        # The distribution's own command, with a policy that anybody can write.
        tree.run("chmod 666 /etc/safemem/policy.toml")
        with pytest.raises(AssertionError, match="refused, because the file"):
            tree.make_initrd()
        assert tree.initrd.read_bytes() == good and not list(tree.path.glob("boot/*.new"))
        tree.run("chmod 644 /etc/safemem/policy.toml")

        # Without the package's hook, and from outside: the tree is another system.
        packaged = "/usr/share/initramfs-tools/hooks/safemem" if maker == "initramfs-tools" else "/usr/lib/dracut/modules.d/50safemem"  # fmt: skip
        tree.run(f"mv {packaged} /aside")
        from_outside(tree, "install")
        tree.run(f"safemem initramfs check --kernel {tree.release}")
        from_outside(tree, "remove")
        tree.run(f"safemem initramfs check --kernel {tree.release}", code=1)
        tree.run(f"mv /aside {packaged}")


def from_outside(tree: distro.Tree, verb: str) -> None:
    """Run `safemem initramfs install` or `remove` of this machine's on a tree."""
    result = CliRunner().invoke(main, ["initramfs", verb, "--root", str(tree.path)])
    assert result.exit_code == 0, result.output


def first(pattern: str, text: str) -> int:
    """Return where `pattern` first matches in a console or journal; fails if it does not."""
    found = re.search(pattern, text)
    assert found, f"`{pattern}` is not in\n{text[-3000:]}"
    return found.start()


def checked(result: harness.Result, suite: str, maker: str) -> dict[str, str]:
    """Check what holds in every guest that reached the login target; return what it reported."""
    report = result.report
    assert result.fate == "poweroff", result.serial[-3000:]
    assert report["version"] == distro.VERSIONS[suite]
    assert "multi-user.target" in report["target"].split()
    assert report["failed"] == ""
    # Priority 5, a notice; newer dmesg(1) shows the facility as well, 1: a program.
    first(r"(?m)^<(5|13)>.*safemem: done: ", report["kmsg"])
    # safemem had finished before the initramfs' udev was started.
    udev = r"Starting systemd-udevd version" if maker == "initramfs-tools" else r"Starting systemd-udevd\.service|Starting .*Rule-based Manager"  # fmt: skip
    assert first(r"safemem: done: ", result.serial) < first(udev, result.serial)
    if maker == "dracut":
        journal = report["journal"]
        order = [
            first(r"Finished safemem-decide\.service", journal), first(r"Starting systemd-udevd\.service", journal),
            first(r"(Starting|Finished) systemd-udev-trigger\.service", journal), first(r"Switching root", journal),
        ]  # fmt: skip
        assert order == sorted(order), journal
    return report


@pytest.mark.parametrize(("suite", "maker"), REJECTED)
def test_rejected(make: Make, suite: str, maker: str) -> None:
    """The login target is reached without one block of what has to be held, and with all gigantic pages reserved."""
    asks = asked.Asked(Range(0x40000000, 0x50000000), 1 << 30, ((0, 2),))
    line = f"crashkernel=256M@0x40000000 hugepagesz=1G hugepages=0:2 {asked.ARGUMENT}={asked.write(asks)} look=doctor"
    result = boot(
        distro.guest(f"distro-{suite}-{maker}-rejected", make(suite, maker), handover_from="old-kho", cmdline=line,
                     boot_mib=6 * GIB)
    )  # fmt: skip
    report = checked(result, suite, maker)

    assert report["auto_online"] == "offline"
    facts = decided(result)["facts"]
    assert (facts["handover"]["value"], facts["guard"]["value"]) == ("rejected", "full")
    assert report["status"] == "4", report["status_text"]
    lines = report["status_text"].splitlines()
    assert "held      0x1c0000000-0x1ffffffff  1 GiB  blocks 56-63: never used in this boot" in lines
    # The mount and what is reserved on it have come over from the initramfs: in programs' reach, it would be exposed.
    pages = "2 GiB  node 0, 2 gigantic pages: never used in this boot, but for the first 4 KiB of each"
    assert f"guarded   0x100000000-0x17fffffff  {pages}" in lines, lines

    # A system as it comes: what doctor finds is true, and there is nothing else.
    assert "before everything else" in report["check"], report["check"]
    findings = json.loads(report["doctor"])["findings"]
    assert {item["code"] for item in findings} == FOUND, findings


@pytest.mark.parametrize(("suite", "maker"), [item for item in MAKERS if item.id == "@bookworm-dracut"])
def test_rejected_without_systemd(make: Make, suite: str, maker: str) -> None:
    """An initramfs of shell scripts, where hooks are sourced: ours still comes before udev, and the hold survives."""
    with make.copy(suite, maker) as tree:
        plain = b'omit_dracutmodules+=" systemd systemd-initrd dracut-systemd "\n'
        system = tree.system(make.place(), policy_text("online-safe"), {"etc/dracut.conf.d/plain.conf": plain})
    data = system.initrd.read_bytes()
    found = inside(data)
    assert found and (found.start, found.fault) == ("dracut", "")

    # Without the first of the two hooks the second ends the boot.
    gate = next(path for path in unpack.find(data, makers.HOOKS) if path.endswith("/00-gate.sh"))
    empty = boot(distro.guest(f"distro-{suite}-{maker}-plain-empty", broken(system, {gate: (b"", 0o755)}), timeout=300))
    assert empty.fate == "reset" and "the gate has not let this boot pass" in empty.serial, empty.serial[-3000:]

    result = boot(distro.guest(f"distro-{suite}-{maker}-plain", system, handover_from="old-kho"))
    report = result.report
    assert result.fate == "poweroff" and report["failed"] == "", (report.get("failed"), result.serial[-3000:])
    assert "multi-user.target" in report["target"].split()
    assert first(r"safemem: done: ", result.serial) < first(r"[Ss]tarting (systemd-udevd )?version", result.serial)
    assert report["dimm"].split() == [HELD]
    assert report["status"] == "4", report["status_text"]


@pytest.mark.parametrize(("suite", "maker"), MAKERS[:1])
def test_command_line(make: Make, suite: str, maker: str) -> None:
    """A stricter policy of those that were built in decides; loosening is refused; status shows each argument."""
    strict = policy_text().replace('"none", "accepted"', '"accepted"').encode()
    with make.copy(suite, maker) as tree:
        system = tree.system(make.place(), policy_text(), {"etc/safemem/policies/strict.toml": strict})
    asked = "safemem=off safemem.dry_run safemem.policy=strict safemem.safe=0x100000000-0x107ffffff"
    result = boot(distro.guest("distro-command-line", system, cmdline=asked))
    report = checked(result, suite, maker)

    assert report["dimm"].split() == ["online*1", "offline*7"]
    assert report["status"] == "4"
    lines = report["status_text"].splitlines()
    for word in asked.split():
        assert f"cmdline   {word}" in lines, lines
    for text in ("policy `vm` decides: the command line names it",
                 "safemem=off on the command line is ignored: the policy does not allow it",
                 "safemem.dry_run on the command line is ignored: the policy does not allow it"):  # fmt: skip
        assert f"warning   {text}" in lines, lines


@pytest.mark.parametrize(("suite", "maker"), PANICS)
def test_rejected_panic(make: Make, suite: str, maker: str, tmp_path: Path) -> None:
    """The kernel panics before udev is started, and no shell of the initramfs comes up; the next boot, a cold one, knows why.

    The reason outlives the reset in pstore, and `status --previous` finds it where systemd has put it.
    """
    name = f"distro-{suite}-{maker}-panic"
    again = distro.guest(name, make(suite, maker, "panic"), cmdline=RAMOOPS, memory=tmp_path)
    first_boot = boot(distro.guest(
        f"{name}-1", make(suite, maker, "panic"), handover_from="old-kho", cmdline=RAMOOPS, memory=tmp_path
    ))  # fmt: skip
    assert first_boot.fate == "panic", first_boot.serial[-3000:]
    assert "sysrq triggered crash" in first_boot.serial
    assert "Starting systemd-udevd" not in first_boot.serial
    assert "(initramfs)" not in first_boot.serial and "mergency" not in first_boot.serial

    report = checked(boot(again._replace(name=f"{name}-2")), suite, maker)
    assert report["previous"] == "5", report["previous_text"]
    lines = report["previous_text"].splitlines()
    assert lines[0] == "panic  handover lost, says the test"
    assert any("/var/lib/systemd/pstore" in line for line in lines if line.startswith("found")), lines
    online(report)


def online(report: dict[str, str]) -> None:
    """Check what a boot reported in which nothing was lost: all memory is online at the login target."""
    assert report["dimm"].split() == [ALL_ONLINE]
    assert report["status"] == "0", report["status_text"]


def broken(system: distro.System, files: dict[str, tuple[bytes, int]]) -> distro.System:
    """Return the system with an initramfs in which these files are others: what comes later in it counts."""
    out = io.BytesIO()
    cpio = Archive(out)
    for path, (data, mode) in files.items():
        cpio.file(path, data, mode)
    cpio.close()
    initrd = Path(tempfile.mkdtemp(dir=system.initrd.parent)) / "initrd"
    data = system.initrd.read_bytes() + out.getvalue()
    initrd.write_bytes(data + bytes(-len(data) % 512))
    return system._replace(initrd=initrd)


#: What is broken, as files with modes; the fate that the policy's on_failure asks for, and what the console says.
_PANIC_UNITS = {path: (data, 0o644) for path, data in unit_files(Failure("panic")).items()}
_FAILURES: dict[str, tuple[dict[str, tuple[bytes, int]], str, str]] = {
    "interpreter": ({f"{PREFIX}/bin/python3": (b"", 0o755)}, "reset", "safemem: reboot: no decision, says the test"),
    "deadline": ({f"{PREFIX}/lib/ld.so": (b"#!/bin/sh\nexec sleep 1000\n", 0o755)}, "reset", f"safemem: no progress for {DEADLINE} s"),
    "wrapper": ({f"{PREFIX}/boot": (b"", 0o644)}, "reset", ""),
    # Ends with 0, as everything does that is cut off at the right place.
    "wrapper-empty": ({f"{PREFIX}/boot": (b"#!/bin/sh\n", 0o755)}, "reset", ""),
    "wrapper-panic": ({f"{PREFIX}/boot": (b"", 0o644), **_PANIC_UNITS}, "panic", "safemem: panic: the boot program cannot be started"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("suite", "maker", "what"),
    [
        pytest.param(suite, maker, what, id=f"{what}@{suite}-{maker}")
        for suite, maker, what in (
            *(("trixie", "dracut", what) for what in _FAILURES), ("bookworm", "dracut", "wrapper-panic"),
            ("bookworm", "initramfs-tools", "interpreter"), ("bookworm", "initramfs-tools", "wrapper-empty"),
            *(
                (("bookworm", "dracut", "wrapper"), ("bookworm", "dracut", "wrapper-empty"),
                 ("bookworm", "initramfs-tools", "wrapper"))
                if ALL else ()
            ),
        )
    ],
)  # fmt: skip
def test_failure(make: Make, suite: str, maker: str, what: str) -> None:
    """Whatever fails, the boot ends as `on_failure` says, before udev and without a shell."""
    files, fate, words = _FAILURES[what]
    result = boot(distro.guest(f"distro-{suite}-{maker}-{what}", broken(make(suite, maker), files), timeout=300))

    assert result.fate == fate, result.serial[-3000:]
    assert words in result.serial
    assert "Starting systemd-udevd" not in result.serial and "safemem: done" not in result.serial
    assert "(initramfs)" not in result.serial and "mergency" not in result.serial


_MAINTENANCE = {
    "etc/systemd/system/networking.service": b"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n",
    "etc/systemd/system/guests.service": b"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n",
    "verdict.more": harness.shell("distro-maintenance").encode(),
}


@pytest.mark.parametrize(("suite", "maker"), MAINTAINED)
def test_rejected_maintenance(make: Make, suite: str, maker: str) -> None:
    """The boot ends in maintenance: the reason on the console and at the login, the network up, nothing else, and a way on."""
    with make.copy(suite, maker) as tree:
        units = tree.path / "etc/systemd/system"
        for unit in ("getty.target", "systemd-user-sessions.service"):
            (units / unit).unlink()
        (units / "multi-user.target.wants").mkdir(exist_ok=True)
        for unit in ("networking.service", "guests.service"):
            (units / "multi-user.target.wants" / unit).symlink_to(f"../{unit}")
        system = tree.system(make.place(), policy_text(extra='enter = "maintenance"'), _MAINTENANCE)
    result = boot(distro.guest(f"distro-{suite}-{maker}-maintenance", system, handover_from="old-kho"))
    report = result.report

    assert result.fate == "poweroff" and report["failed"] == "", (report.get("failed"), result.serial[-3000:])
    assert report["dimm"].split() == [HELD]
    assert (
        "safemem-maintenance.target" in report["target"].split() and "multi-user.target" not in report["target"].split()
    )
    active = report["active"].split()
    assert "networking.service" in active and "guests.service" not in active
    assert "serial-getty@ttyS0.service" in active
    reason = "online-safe: handover lost, says the test"
    # From the unit, and once more from the getty, right before its prompt: but for 12's, which reads no /run/issue.d where
    # there is an /etc/issue.
    assert first(r"login: ", result.serial) > first(rf"MAINTENANCE\s+{reason}", result.serial)
    assert result.serial.count(reason) >= (1 if suite == "bookworm" else 2), result.serial[-4000:]
    for text in (report["motd"], report["login"] if suite == "bookworm" else report["motd"]):
        assert reason in text and "safemem release --reason TEXT" in text, text
        assert "handover rejected: " in text and "memory when this was decided: 1 GiB held (" in text, text
    assert report["status"] == "4" and "safemem release --reason TEXT" in report["status_text"]
    assert (report["isolate"], report["after"]) == ("0", "active active inactive "), report


def seconds(report: dict[str, str]) -> float:
    """Return how long the boot took, kernel and initramfs included, by systemd-analyze: `1min 2.3s`, or `1min 23ms`."""
    units = {"min": 60.0, "s": 1.0, "ms": 0.001}
    total = report["analyze"].rpartition("= ")[2]
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(min|ms|s)\b", total))


@pytest.mark.parametrize(("suite", "maker"), UPGRADED)
def test_upgrade_and_removal(make: Make, suite: str, maker: str, tmp_path: Path) -> None:
    """Either has the image made anew, and it boots; the two boots show what safemem costs.

    The first one accepts a handover: all memory is online, and nobody has touched the device of the live update.
    """
    subprocess.run(["dpkg-deb", "-R", make.package(suite), tmp_path / "new"], check=True)
    control = tmp_path / "new/DEBIAN/control"
    control.write_text(control.read_text().replace("Version: ", "Version: 9:"))
    subprocess.run(
        ["dpkg-deb", "-Znone", "-b", tmp_path / "new", tmp_path / "new.deb"], check=True, capture_output=True
    )
    with make.copy(suite, maker) as tree:
        tree.put({"etc/safemem/policy.toml": policy_text().encode()})
        tree.make_initrd()
        before = tree.initrd.stat().st_mtime_ns
        tree.install(tmp_path / "new.deb")
        assert tree.initrd.stat().st_mtime_ns != before
        tree.run(f"safemem initramfs check --kernel {tree.release}")
        upgraded = tree.as_it_is(make.place())
        tree.run("dpkg -r safemem")
        assert inside(tree.initrd.read_bytes()) is None
        removed = tree.as_it_is(make.place())
    accepting = boot(distro.guest(f"distro-{suite}-{maker}-upgraded", upgraded, handover_from="current"))
    with_it = checked(accepting, suite, maker)
    online(with_it)
    assert decided(accepting)["facts"]["handover"]["value"] == "accepted"
    assert with_it["luo"] == "/dev/liveupdate opens"

    result = boot(distro.guest(f"distro-{suite}-{maker}-removed", removed))
    without = result.report
    assert result.fate == "poweroff" and without["failed"] == "", (without, result.serial[-3000:])
    assert "multi-user.target" in without["target"].split() and "] safemem: " not in result.serial
    if maker == "dracut":
        # The archive alone, as in a unified kernel image: nothing of the initrd is changed.
        (tmp_path / "vm.toml").write_text(policy_text())
        archive = tmp_path / "archive"
        words = ["initramfs", "cpio", "--systemd", "--policy", str(tmp_path / "vm.toml"), "-o", str(archive)]
        assert CliRunner().invoke(main, words).exit_code == 0
        removed.initrd.write_bytes(removed.initrd.read_bytes() + archive.read_bytes())
        appended = boot(distro.guest(f"distro-{suite}-{maker}-appended", removed))
        assert first(r"safemem: done: ", appended.serial) < first(r"Starting systemd-udevd\.service|Starting .*Rule-based Manager", appended.serial)  # fmt: skip
        assert (
            appended.report["dimm"].split() == [ALL_ONLINE] and "multi-user.target" in appended.report["target"].split()
        )
    took = seconds(with_it), seconds(without)
    print(f"{suite} {maker}: boot with safemem {took[0]:.1f} s, without {took[1]:.1f} s, ratio {took[0] / took[1]:.2f}")
    print(f"  with     {with_it['analyze']}\n  without  {without['analyze']}")
    assert took[0] < 8 * took[1]  # guests beside this one make it a coarse figure
