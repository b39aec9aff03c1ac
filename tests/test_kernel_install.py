# SPDX-License-Identifier: MIT
"""The plug-ins of kernel-install, run by the kernel-install of this machine with its own plug-in for entries."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from safemem.initramfs import bootplaces, check
from safemem.initramfs.target import APPENDED, ASKED
from tests.images import bzimage, pe
from tests.kit import POLICY, archive, base, units

pytestmark = [
    pytest.mark.needs("kernel-install"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make an archive"),
]
PLUGINS = Path(__file__).resolve().parent.parent / "packages/kernel-install"
ENTRIES = Path("/usr/lib/kernel/install.d/90-loaderentry.install")
REL, MID = "9.9.9-amd64", "5afe0000000000000000000000005afe"
SYSTEMD = {"usr/lib/systemd/systemd": b"\x7fELF", "init": b"\x7fELF"}
#: What a generator makes: of systemd's kind without safemem, and with it.
WITHOUT, WITH = archive(SYSTEMD), archive({**SYSTEMD, **base(), **units()})
#: For the layout of unified images: Debian 12 has neither ukify nor the plug-in that copies what it makes.
UKIFY = """#!{python}
import os, sys
from pathlib import Path
from tests.images import bzimage, pe
stage = Path(os.environ["KERNEL_INSTALL_STAGING_AREA"])
if sys.argv[1] == "add" and not (stage / "uki.efi").exists():
    initrd = b"".join(path.read_bytes() for path in sorted(stage.glob("initrd*")))
    (stage / "uki.efi").write_bytes(pe([(".linux", Path(sys.argv[4]).read_bytes()), (".initrd", initrd)]))
"""
COPY = """#!/bin/sh
[ "$1" = add ] || exit 0
mkdir -p "$KERNEL_INSTALL_BOOT_ROOT/EFI/Linux"
cp "$KERNEL_INSTALL_STAGING_AREA/uki.efi" "$KERNEL_INSTALL_BOOT_ROOT/EFI/Linux/$KERNEL_INSTALL_ENTRY_TOKEN-$2.efi"
"""


class Machine(NamedTuple):
    """A machine with kernel-install, a generator and our plug-ins."""

    root: Path

    def put(self, path: str, data: bytes | str, mode: int = 0o644) -> Path:
        """Put a file."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)
        file.chmod(mode)
        return file

    def add(
        self, *initrds: Path, layout: str = "bls", generator: str = 'cp /made "$KERNEL_INSTALL_STAGING_AREA/initrd"'
    ) -> subprocess.CompletedProcess[str]:
        """Run `kernel-install add` and return how it ended."""
        self.put("conf/install.conf", f"layout={layout}\nMACHINE_ID={MID}\n")
        self.put("conf/cmdline", "quiet\n")
        self.put("vmlinuz", bzimage(b"x", release=REL))
        text = f'#!/bin/sh\n[ "$1" = add ] || exit 0\n{generator}\n'.replace("/made", str(self.root / "made"))
        plugins = [self.put("50-generator.install", text, 0o755)]
        plugins += [
            self.put(path.name, path.read_text().replace("/etc/safemem", str(self.root / "etc/safemem")), 0o755)
            for path in sorted(PLUGINS.iterdir())
        ]
        # It asks where the partition is mounted, and ours is a folder.
        entries = ENTRIES.read_text().replace('$(stat -c %m "$BOOT_ROOT")', "$BOOT_ROOT")
        plugins.append(self.put(ENTRIES.name, entries, 0o755))
        if layout == "uki":
            plugins.insert(2, self.put("60-ukify.install", UKIFY.format(python=sys.executable), 0o755))
            plugins.append(self.put("90-uki-copy.install", COPY, 0o755))
        here = Path(__file__).resolve().parent.parent
        safemem = Path(sys.executable).parent / "safemem"
        # `check` compares with the policy of this root; the plug-in says nothing of a root, for a machine has one.
        words = f'case "$1 $2" in "initramfs check") shift 2; set -- initramfs check --root {self.root} "$@" ;; esac'
        self.put("bin/safemem", f'#!/bin/sh\n{words}\nexec {safemem} "$@"\n', 0o755)
        env = {
            "PATH": f"{self.root}/bin:{os.environ['PATH']}", "PYTHONPATH": str(here), "BOOT_ROOT": str(self.boot), "LC_ALL": "C.UTF-8",
            "KERNEL_INSTALL_CONF_ROOT": str(self.root / "conf"), "KERNEL_INSTALL_PLUGINS": " ".join(map(str, plugins)),
        }  # fmt: skip
        return subprocess.run(
            ["kernel-install", "add", REL, self.root / "vmlinuz", *initrds], env=env, capture_output=True, text=True
        )

    @property
    def boot(self) -> Path:
        """The partition."""
        return self.root / "efi"

    @property
    def boots(self) -> bootplaces.Boots:
        """What boots the kernel now."""
        return bootplaces.find(str(self.root), REL)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine with a policy and one other entry."""
    made = Machine(tmp_path)
    made.put("efi/loader/entries/old.conf", "title old\nlinux /vmlinuz-1.0.0\ninitrd /initrd-1.0.0\n")
    made.put("efi/vmlinuz-1.0.0", bzimage(b"x", release="1.0.0"))
    (tmp_path / "efi" / MID).mkdir()
    (tmp_path / "etc/safemem").mkdir(parents=True)
    shutil.copy(POLICY, tmp_path / "etc/safemem/policy.toml")
    return made


def test_an_image_with_safemem_is_installed(machine: Machine) -> None:
    """Of a generator that has a hook of ours; staged, named on the command line, and beside the entry itself."""
    machine.put("made", WITH)
    result = machine.add()
    assert result.returncode == 0, result.stderr
    assert "before everything else" in result.stderr
    assert machine.boots.files == (machine.boot / MID / REL / "initrd",)

    for more in ("true", 'cp /made "$3/initrd"'):
        shutil.rmtree(machine.boot / MID / REL)
        named = [machine.put("initrd.img", WITH)] if more == "true" else []
        result = machine.add(*named, generator=more)
        assert result.returncode == 0, result.stderr
        found = check.inside(machine.boots.read())
        assert found is not None and not found.fault


@pytest.mark.parametrize("layout", ["bls", "uki"])
def test_an_image_without_it_is_not(machine: Machine, layout: str) -> None:
    """kernel-install fails, and what was there stays: no entry of the new kernel, the other one as it was."""
    machine.put("made", WITHOUT)
    result = machine.add(layout=layout)

    assert result.returncode == 1
    assert "safemem is not in it" in result.stderr
    assert result.stderr.endswith(f"safemem: kernel {REL} is not installed: it would boot without the policy of /etc/safemem; see above\n".replace("/etc/safemem", str(machine.root / "etc/safemem")))  # fmt: skip
    assert sorted(path.name for path in machine.boot.rglob("*") if path.suffix in (".conf", ".efi")) == ["old.conf"]
    assert not machine.boots.files


def test_no_initrd_at_all(machine: Machine) -> None:
    """It would boot without a decision as well."""
    result = machine.add(generator="true")
    assert result.returncode == 1 and f"the entry of kernel {REL} has no initrd" in result.stderr


def test_a_machine_with_no_other_entry_is_not_left_without(machine: Machine) -> None:
    """The first entry is made, and what it lacks is said."""
    (machine.boot / "loader/entries/old.conf").unlink()
    machine.put("made", WITHOUT)
    result = machine.add()
    assert result.returncode == 0 and "there is no other entry" in result.stderr
    assert machine.boots.files


def test_what_cannot_be_told_stops_nothing(machine: Machine) -> None:
    """An image that is not read here, because a program for it is missing, may be good."""
    machine.put("made", b"no archive at all")
    result = machine.add()
    assert result.returncode == 0 and "cannot be told; see above" in result.stderr


@pytest.mark.parametrize("layout", ["other", "bls"])
def test_where_nobody_asks(machine: Machine, layout: str) -> None:
    """Without a policy of the operator's, and where kernel-install makes no entries, nothing is looked at."""
    machine.put("made", WITHOUT)
    if layout == "bls":
        (machine.root / "etc/safemem/policy.toml").unlink()
    result = machine.add(layout=layout)
    assert result.returncode == 0 and "safemem" not in result.stderr


@pytest.mark.parametrize("layout", ["bls", "uki"])
def test_the_archive_as_one_more_initrd(machine: Machine, layout: str) -> None:
    """Asked for, it makes the image of any generator good, behind what that has made."""
    machine.put("made", WITHOUT)
    machine.put(ASKED, "")
    result = machine.add(layout=layout)

    assert result.returncode == 0, result.stderr
    boots = machine.boots
    if layout == "bls":
        assert [path.name for path in boots.files] == ["initrd", APPENDED]
        assert boots.read().startswith(WITHOUT)
    found = check.inside(boots.read())
    assert found is not None and (found.start, found.fault) == ("systemd", "")
    assert machine.root in boots.files[0].parents


@pytest.mark.parametrize(
    ("generator", "why"),
    [
        ("true", "no generator has staged an initrd"),
        ('cp /made "$3/initrd"', "no generator has staged an initrd"),
        ('cp /made "$KERNEL_INSTALL_STAGING_AREA/uki.efi"', "a unified kernel image is there already"),
    ],
)
def test_where_it_would_do_harm(machine: Machine, generator: str, why: str) -> None:
    """Alone, it would take the place of the image that boots the machine; the look at the end fails the entry."""
    machine.put("made", pe([(".linux", bzimage(b"x")), (".initrd", WITHOUT)]) if "uki" in generator else WITHOUT)
    machine.put(ASKED, "")
    result = machine.add(generator=generator, layout="uki" if "uki" in generator else "bls")
    assert result.returncode == 1 and why in result.stderr, result.stderr
    assert not list(machine.boot.rglob(APPENDED))


def test_a_policy_that_is_not_built(machine: Machine) -> None:
    """Of a policy with errors no archive is made, and the entry fails."""
    machine.put("made", WITHOUT)
    machine.put(ASKED, "")
    machine.put("etc/safemem/policy.toml", "format = 2\n")
    result = machine.add()
    assert result.returncode == 1 and "it cannot be made" in result.stderr


def test_removal_is_no_business_of_theirs(machine: Machine) -> None:
    """They look at `add` alone."""
    for path in PLUGINS.iterdir():
        result = subprocess.run(
            [path, "remove", REL, "/x"], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
