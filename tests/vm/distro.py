# SPDX-License-Identifier: MIT
"""Debian systems with the package installed and the initramfs that the distribution's own command made, to boot.

A guest boots either straight into that initramfs (cold), or into one of ours that hands over to it by kexec.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from tests.vm import debian, harness
from tests.vm.harness import Guest

#: Suite and package that makes the initramfs. What `make test` takes comes first, and has each suite and each maker.
MAKERS = (
    ("bookworm", "initramfs-tools"), ("bookworm", "dracut"), ("trixie", "dracut"), ("testing", "initramfs-tools"),
    ("trixie", "initramfs-tools"), ("testing", "dracut"),
)  # fmt: skip
#: Version of systemd that a suite has; of testing the one that was seen last, and what comes after it is as good.
VERSIONS = {"bookworm": "252", "trixie": "257", "testing": "262"}
CMDLINE = f"{harness.CMDLINE} root=LABEL=system rw systemd.firstboot=off systemd.log_target=kmsg"

_UNIT = """[Unit]
DefaultDependencies=no
After=multi-user.target safemem-maintenance.target
[Service]
StandardOutput=journal+console
ExecStart=/bin/sh /verdict
"""


class System(NamedTuple):
    """A disk with an installed system, and the initramfs that was made in it."""

    root: Path
    initrd: Path


def version(kernel: Path) -> str:
    """Return the release of a kernel image, from its header (Documentation/arch/x86/boot.rst)."""
    data = kernel.read_bytes()
    at = int.from_bytes(data[0x20E:0x210], "little") + 0x200
    return data[at : data.index(b"\0", at)].decode().split()[0]


class Tree:
    """A Debian root in a folder: the package is installed, and commands run inside."""

    def __init__(self, folder: Path, suite: str, maker: str, more: tuple[str, ...] = ()) -> None:
        self.path, self.maker = folder, maker
        image = debian.root(suite, (maker, *more))
        subprocess.run(["unsquashfs", "-q", "-n", "-d", folder, image], check=True, capture_output=True)
        self.release = version(harness.kernel("current"))
        modules = folder / "usr/lib/modules" / self.release
        modules.mkdir(parents=True)
        for name in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):  # no modules: all is built in
            (modules / name).touch()
        shutil.copy(harness.kernel("current"), folder / f"boot/vmlinuz-{self.release}")
        (folder / f"boot/config-{self.release}").write_text("CONFIG_BLK_DEV_INITRD=y\nCONFIG_RD_GZIP=y\n")
        (folder / "etc/fstab").touch()
        (folder / "functions.sh").write_text(harness.shell("functions"))
        (folder / "verdict").write_text(harness.shell("distro"))
        units = folder / "etc/systemd/system"
        (units / "verdict.service").write_text(_UNIT)
        (units / "sysinit.target.wants").mkdir(exist_ok=True)
        (units / "sysinit.target.wants/verdict.service").symlink_to("../verdict.service")

    def copy(self, folder: Path) -> Tree:
        """Return another tree like this one, in a folder that is not there yet."""
        subprocess.run(["cp", "-a", "--reflink=auto", self.path, folder], check=True)
        other = copy.copy(self)
        other.path = folder
        return other

    @property
    def initrd(self) -> Path:
        """Where the distribution keeps the image."""
        return self.path / f"boot/initrd.img-{self.release}"

    def run(self, command: str, code: int = 0) -> str:
        """Run a shell command inside, with /proc and /dev; return what it printed."""
        mounts = [
            (kind, self.path / place) for kind, place in (("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev"))
        ]
        for kind, place in mounts:
            subprocess.run(["mount", "-t", kind, kind, place], check=True)
        try:
            result = subprocess.run(
                ["chroot", self.path, "sh", "-c", command], capture_output=True, text=True,
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
        finally:
            for _, place in mounts:
                subprocess.run(["umount", "-l", place], check=True)
        assert result.returncode == code, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    def install(self, package: Path) -> str:
        """Install a package from a file."""
        shutil.copy(package, self.path / "safemem.deb")
        try:
            return self.run("dpkg -i /safemem.deb")
        finally:
            (self.path / "safemem.deb").unlink()

    def put(self, files: dict[str, bytes]) -> None:
        """Put files into the root, by path."""
        for path, data in files.items():
            (self.path / path).parent.mkdir(parents=True, exist_ok=True)
            (self.path / path).write_bytes(data)

    def make_initrd(self) -> str:
        """Make the image by the distribution's own command, as its documentation says."""
        before = self.initrd.stat().st_mtime_ns if self.initrd.exists() else None
        if self.maker == "initramfs-tools":
            out = self.run(f"update-initramfs -{'u' if before else 'c'} -k {self.release}")
        else:
            out = self.run(f"dracut --force /boot/initrd.img-{self.release} {self.release}")
        # dracut's exit status says nothing: it is 0 as well when it has decided that no image is wanted.
        assert self.initrd.exists() and self.initrd.stat().st_mtime_ns != before, f"no image was made: {out}"
        return out

    def system(self, folder: Path, policy: str, files: dict[str, bytes] | None = None) -> System:
        """Return the system with `policy` in force, as a disk and an initramfs in `folder`, which is there and empty."""
        (self.path / "etc/safemem/policy.toml").write_text(policy)
        self.put(files or {})
        self.make_initrd()
        return self.as_it_is(folder)

    def as_it_is(self, folder: Path) -> System:
        """Return the system with the initramfs that is there."""
        initrd = folder / "initrd"
        data = self.initrd.read_bytes()
        initrd.write_bytes(data + bytes(-len(data) % 512))
        return System(disk(folder / "root", self.path), initrd)


def disk(path: Path, tree: Path, mib: int = 1024) -> Path:
    """Write a folder to an ext4 disk with the label that the guests' command line names."""
    with path.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "system", "-d", tree, path], check=True, capture_output=True
    )
    return path


def guest(
    name: str,
    system: System,
    *,
    handover_from: str = "",
    cmdline: str = "",
    devices: tuple[str, ...] = (),
    **more: Any,
) -> Guest:
    """Return a guest that boots a system cold, or by a kexec with a handover from the kernel `handover_from`.

    What the guest writes to the disk is thrown away. `more` is any other field of a guest.
    """
    root = ("-drive", f"if=none,id=root,file={system.root},format=raw,snapshot=on",
            "-device", "virtio-blk-pci,drive=root,serial=root")  # fmt: skip
    line = f"{CMDLINE} {cmdline}"
    options: dict[str, Any] = {"timeout": 900, **more}
    if not handover_from:
        line = line.removeprefix(harness.CMDLINE)
        return Guest(name, system.initrd.read_bytes(), line, devices=(*root, *devices), **options)
    # The predecessor gets the same words: what keeps memory apart has to do so from the beginning.
    first = harness.image(harness.shell("predecessor"), files={"next_cmdline": line.encode()})
    disks = (*root, *harness.disk("system_initrd", system.initrd), *devices)
    return Guest(name, first, cmdline, handover_from, "current", devices=disks, **options)
