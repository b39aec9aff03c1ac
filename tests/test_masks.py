# SPDX-License-Identifier: MIT
"""What the hold does with rules files of every kind: links to nowhere, programs that nobody can read, other devices' rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safemem.boot import main as boot
from safemem.boot.model import Rule
from safemem.host import doctor
from safemem.realroot import alongside, udevrules
from safemem.realroot import hold as realroot
from tests.fakes import make_root
from tests.kit import install

ONLINE = 'SUBSYSTEM=="memory", ACTION=="add", ATTR{state}="online"\n'
BOTH = (
    'SUBSYSTEM=="cpu", ACTION=="add", TEST=="online", ATTR{online}=="0", ATTR{online}="1"\n'
    f"{ONLINE}"
    'SUBSYSTEM=="cpu", ACTION=="change", ATTR{online}="1"\n'
    'ACTION!="add", GOTO="end"\n'
    'KERNEL=="sd*", RUN+="/bin/true"\n'
    'LABEL="end"\n'
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a machine on which a lost handover was held."""
    found = make_root(tmp_path, offered=True)
    install(found, otherwise=Rule("otherwise", "online-safe", message="handover lost"))
    assert boot.main(["--root", str(found)]) == 0
    for folder in ("usr/lib/udev/rules.d", "etc/udev/rules.d", "run/udev/rules.d"):
        (found / folder).mkdir(parents=True, exist_ok=True)
    return found


def result(root: Path) -> dict[str, object]:
    """Return what the record says of how the decision was carried out."""
    found: dict[str, object] = json.loads((root / "run/safemem/decision.json").read_text())["result"]
    return found


@pytest.mark.parametrize("folder", ["etc/udev/rules.d", "run/udev/rules.d"])
@pytest.mark.parametrize("known", [True, False])
def test_a_link_to_nowhere_is_in_nobodys_way(
    root: Path, folder: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is mounted over it, the hold is whole, and what comes after it under that name is masked."""
    monkeypatch.setattr(realroot, "MOUNT", "/nonexistent/mount")
    name = udevrules.KNOWN[0] if known else "55-x.rules"
    link = root / folder / name
    link.unlink(missing_ok=True)
    link.symlink_to("/opt/vendor/x.rules")
    assert realroot.main(["--root", str(root)]) == 0
    assert result(root).get("complete") is not False
    (root / "usr/lib/udev/rules.d" / name).write_text(ONLINE)
    assert realroot.main(["--root", str(root), "--again"]) == 0
    assert (root / "run/udev/rules.d" / name).readlink() == Path("/dev/null")
    assert udevrules.find(str(root)) == []
    assert realroot.release(str(root)) == []
    assert not (root / "run/udev/rules.d" / name).is_symlink()


def test_what_a_mask_takes_along_is_said(root: Path) -> None:
    """In the kernel log, in a file beside the record, and by doctor; gone with the mask."""
    (root / "usr/lib/udev/rules.d/55-x.rules").write_text(BOTH)
    assert realroot.main(["--root", str(root)]) == 0
    words = 'SUBSYSTEM=="cpu" at line 1, KERNEL=="sd*" at line 5'
    says = f"usr/lib/udev/rules.d/55-x.rules is masked, and with it rules for other devices: {words}"
    assert f"<5>safemem: {says}\n" in (root / "dev/kmsg").read_text()
    assert [
        (item.code, item.message.rpartition(": ")[2])
        for item in doctor.examine(str(root))
        if item.code == "masked-besides"
    ] == [("masked-besides", words)]
    kept = (root / alongside.KEPT).read_text()
    assert realroot.main(["--root", str(root), "--again"]) == 0
    assert (root / alongside.KEPT).read_text() == kept
    realroot.release(str(root))
    assert not (root / alongside.KEPT).exists()


def test_what_the_initramfs_has_masked_is_said_too(root: Path) -> None:
    """It knew the file by its name; a mask of the operator's own is the operator's."""
    name = udevrules.KNOWN[2]
    (root / "usr/lib/udev/rules.d" / name).write_text(BOTH)
    (root / "usr/lib/udev/rules.d/56-y.rules").write_text(BOTH)
    (root / "etc/udev/rules.d/56-y.rules").symlink_to("/dev/null")
    assert realroot.main(["--root", str(root)]) == 0
    assert {item.file for item in alongside.kept((root / alongside.KEPT).read_text())} == {
        f"usr/lib/udev/rules.d/{name}"
    }


def test_why_a_file_is_masked_of_which_nobody_knows(root: Path) -> None:
    """A program that cannot be read: masked, and said why; one that only logs is left alone."""
    (root / "usr/lib/udev/rules.d/55-x.rules").write_text('SUBSYSTEM=="memory", RUN+="/opt/x"\n')
    (root / "usr/lib/udev/rules.d/56-y.rules").write_text('SUBSYSTEM=="memory", RUN+="/usr/bin/logger %k"\n')
    assert realroot.main(["--root", str(root)]) == 0
    says = (
        'usr/lib/udev/rules.d/55-x.rules is masked: RUN+="/opt/x" at line 1 may online memory, and there is no /opt/x here,'
        " so what it does is not known"
    )
    assert f"<5>safemem: {says}\n" in (root / "dev/kmsg").read_text()
    assert (root / "run/udev/rules.d/55-x.rules").is_symlink()
    assert not (root / "run/udev/rules.d/56-y.rules").is_symlink()
