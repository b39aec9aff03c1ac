# SPDX-License-Identifier: MIT
"""The gate in Debian systems with the package: put in place and taken out, and three kernels behind it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import distro, harness
from tests.vm.harness import boot, shell
from tests.vm.kit import policy_text

pytestmark = pytest.mark.vm

GATE = "/usr/lib/safemem/gate"
IN = "systemctl kexec  goes through the gate\nkexec            goes through the gate: /usr/sbin/kexec\n"
#: What `gate status` says beside that.
REST = """cannot tell      {}
override         none waits
"""
ALLOWED = REST.format('goes on, with a warning: `cannot_tell = "allow"`, for there is no /etc/safemem/preflight.toml')
REFUSED = REST.format('is refused: `cannot_tell = "refuse"` in /etc/safemem/preflight.toml')
OUT = "systemctl kexec  goes past the gate\nkexec            goes past the gate\n"
MAKERS = (("bookworm", "initramfs-tools"), ("trixie", "dracut"))
#: Those whose guests boot: of the other one only `make nightly`'s, for three boots under emulation take long.
BOOTED = MAKERS if os.environ.get("SAFEMEM_ALL") else MAKERS[1:]
VERSIONS = {"bookworm": "252", "trixie": "257"}
MORE = ("kexec-tools", "dbus")


def of(makers: tuple[tuple[str, str], ...]) -> pytest.MarkDecorator:
    """Return what has a test called with a system of each of these suites."""
    return pytest.mark.parametrize("system", makers, ids=[f"@{suite}-gate" for suite, _ in makers], indirect=True)


@pytest.fixture
def system(request: pytest.FixtureRequest, deb: Callable[[str], Path], tmp_path: Path) -> tuple[str, distro.Tree]:
    """Return a suite, and a system of it with kexec-tools and the package."""
    if os.geteuid():
        pytest.fail("these tests call chroot: run them as root")
    suite, maker = request.param
    tree = distro.Tree(tmp_path / "tree", suite, maker, MORE)
    tree.install(deb(suite))
    return suite, tree


def tools(folder: Path, place: str, text: str) -> bytes:
    """Return a package kexec-tools of a later version, whose kexec is `text` and lies in `place`."""
    stage = folder / place.replace("/", "-")
    (stage / place).mkdir(parents=True)
    (stage / place / "kexec").write_text(text)
    (stage / "DEBIAN").mkdir()
    (stage / "DEBIAN/control").write_text(
        "Package: kexec-tools\nVersion: 1:9\nArchitecture: all\nMaintainer: nobody <n@safemem.example>\nDescription: test\n"
    )
    target = folder / "tools.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", stage, target], check=True, capture_output=True)
    return target.read_bytes()


@of(MAKERS)
def test_in_place_and_out(system: tuple[str, distro.Tree], tmp_path: Path) -> None:
    """Off until it is enabled; an upgrade of kexec-tools leaves it in place, under either name; the package takes it along."""
    _, tree = system
    assert tree.run(f"{GATE} status", 1) == f"{OUT}{ALLOWED}"
    before = tree.run("sha256sum /usr/sbin/kexec")
    for _ in range(2):
        assert tree.run(f"{GATE} enable") == IN
    away = "/usr/sbin/kexec.distrib*"
    assert tree.run(f"sha256sum {away}").split()[0] == before.split()[0]
    for place in ("sbin", "usr/sbin"):
        tree.put({"tools.deb": tools(tmp_path, place, f"#!/bin/sh\necho {place}\n")})
        tree.run("dpkg -i /tools.deb")
        assert tree.run(f"{GATE} status; cat {away}") == f"{IN}{ALLOWED}#!/bin/sh\necho {place}\n"
    assert tree.run(f"{GATE} disable") == OUT
    assert tree.run("cat /usr/sbin/kexec") == "#!/bin/sh\necho usr/sbin\n"
    assert tree.run("dpkg-divert --list '*kexec*'") == ""
    tree.run(f"{GATE} enable")
    # As in a container, or where systemd is being replaced: the system keeps its kexec all the same.
    tree.run("mv /usr/bin/systemctl /root/")
    tree.run("dpkg --no-triggers -r safemem")
    tree.run("mv /root/systemctl /usr/bin/ && dpkg --triggers-only --pending")
    assert tree.run("cat /usr/sbin/kexec; dpkg-divert --list '*kexec*'; ls /etc/systemd/system | grep kexec || :") == (
        "#!/bin/sh\necho usr/sbin\n"
    )


@of(BOOTED)
def test_refused_through_and_forced(system: tuple[str, distro.Tree], tmp_path: Path) -> None:
    """An incompatible kernel is refused and the system goes on; a compatible one goes through; a forced one is told of in its boot."""
    suite, tree = system
    (tree.path / "etc/systemd/system/systemd-logind.service").unlink()  # who asks for a kexec asks it
    # Under emulation each start of Python takes long, and these have no part in it.
    tree.run("systemctl --quiet mask safemem-watch.service safemem-metrics.timer")
    shutil.copy(harness.kernel("old-kho"), tree.path / "boot/vmlinuz-old")
    initrd = f"/boot/{tree.initrd.name}"
    tree.run(f"{GATE} enable")
    place = tmp_path / "system"
    place.mkdir()
    # A forced boot is shown with one of them, nightly: the boots are what takes long.
    last = "3" if suite == "trixie" and os.environ.get("SAFEMEM_ALL") else "2"
    files = {
        "verdict": shell("gate", INITRD=initrd, LAST=last).encode(),
        "etc/safemem/preflight.toml": b'cannot_tell = "refuse"\n',
    }
    built = tree.system(place, policy_text(), files)
    if tree.maker == "dracut":  # its shutdown may end in there, and calls kexec
        assert "usr/sbin/kexec.distrib" in tree.run(f"lsinitrd {shlex.quote(initrd)}")
    result = boot(distro.guest(f"gate-{suite}", built, cmdline="stage=1", boot_mib=2048, dimm_mib=0))
    report = result.report

    assert result.fate == "poweroff" and report["done"] == last, result.serial[-4000:]
    assert (report["version"], report["code_gate"], report["said_gate"]) == (VERSIONS[suite], "0", f"{IN}{REFUSED}")
    # Past what is judged nothing of the first kernel is refused that should not be.
    assert report["code_judged"] == "5", report["said_judged"]
    assert "safemem: kexec refused: incompatible: " in report["said_judged"] and "kho-v3" in report["said_judged"]
    assert report["code_nothing"] == "1" and "no kernel is loaded" in report["journal_untold"]
    assert report["code_past"] == "0", report["said_past"]
    assert report["code_good"] == "0", report["said_good"]
    for name, why in (
        ("untold", "cannot tell: what is loaded was not loaded by `kexec`"),
        ("changed", "incompatible: "),
    ):
        assert report[f"jobs_{name}"] == ""
        assert report[f"active_{name}"].split() == ["active"] * 4
        assert f"kexec refused: {why}" in report[f"journal_{name}"]
        assert f"safemem: kexec refused: {why}" in result.serial
    assert result.serial.count("Linux version") == int(last)
    own = re.search(r"040000001400000003000000474e5500(\w{16})", report["id_2"])
    assert own
    same = f"judged    this kernel was judged before the kexec: compatible; build ID {own[1]}"
    assert "judged  " not in report["said_status_1"] and "forced  " not in report["said_status_1"]
    assert same in report["said_status_2"].splitlines()
    assert (report["code_disable"], report["said_disable"], report["kexec"]) == ("0", OUT, "/usr/sbin/kexec")
    if last == "2":
        return
    assert report["code_judged2"] == "5"
    forced = "forced    the kexec that ended the boot before was against the verdict: the test says so (incompatible: "
    assert [line for line in report["said_status_3"].splitlines() if line.startswith(forced)]
    assert (report["code_override"], report["code_forced"]) == ("0", "0"), report["said_forced"]
    assert "against the verdict: the test says so" in report["journal_end"]
