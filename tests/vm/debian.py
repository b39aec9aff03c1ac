# SPDX-License-Identifier: MIT
"""Boot a real Debian userspace, systemd and udev included, on the kernels of the other guests.

The root is made with mmdebstrap from this machine's mirror, once, and attached read-only; what
the guest writes goes to memory, or to a disk that outlives the guest. The verdict is a unit of ours
in that root: it runs after coldplug and basic.target, and ends the guest.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.vm import harness
from tests.vm.harness import Guest
from tests.vm.kit import archive

SUITES = ("bookworm", "trixie")
_PACKAGES = ("systemd", "systemd-sysv", "udev", "kmod", "python3")
#: Units that take long under emulation and have nothing to do with memory.
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "console-getty.service", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "getty.target", "ldconfig.service", "motd-news.timer",
    "networkd-dispatcher.service", "systemd-hwdb-update.service", "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service", "systemd-logind.service", "systemd-machine-id-commit.service",
    "systemd-networkd-wait-online.service", "systemd-pcrphase-sysinit.service", "systemd-random-seed.service",
    "systemd-sysusers.service", "systemd-timesyncd.service", "systemd-update-done.service",
    "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-user-sessions.service",
)  # fmt: skip
_UNIT = """[Unit]
Wants=systemd-udev-settle.service
After=systemd-udev-settle.service basic.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
StandardOutput=journal+console
ExecStart=/bin/sh /verdict
"""


#: Kernel arguments that leave udev out, where it has no part in what is shown: under emulation it takes half of a boot.
NO_UDEV = " ".join(f"systemd.mask=systemd-udev{name}" for name in ("d.service", "-trigger.service", "-settle.service"))


#: A service that keeps a memfd in systemd's store for file descriptors (guest/store.py), by path.
STORE = {
    "store.py": (harness.HERE / "guest/store.py").read_bytes(),
    "etc/systemd/system/store.service": b"""[Service]
Type=notify
NotifyAccess=all
FileDescriptorStoreMax=4
FileDescriptorStorePreserve=yes
ExecStart=/usr/bin/python3 -IS /store.py
""",
}


@contextmanager
def building(path: Path) -> Iterator[Path | None]:
    """Give a draft for the file `path` to whoever comes first, and None to the others once it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            yield Path(scratch) / "draft"
            (Path(scratch) / "draft").rename(path)


def mirror() -> list[str]:
    """Return the mirror of Debian that this machine's apt uses; nothing leaves the choice to mmdebstrap."""
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Label: Debian", "Created-By: Packages"]
    found = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
    return [item for item in dict.fromkeys(found) if item.startswith(("http://", "https://"))][:1]


@functools.cache
def root(suite: str, packages: tuple[str, ...] = ()) -> Path:
    """Return a Debian root with systemd and `packages` as a squashfs image, made once for each content."""
    masks = "; ".join(f'ln -s /dev/null "$1/etc/systemd/system/{unit}"' for unit in _MASKED)
    hooks = [
        masks,
        'echo 5afe0000000000000000000000005afe >"$1/etc/machine-id"',
        'ln -s /lib/systemd/system/multi-user.target "$1/etc/systemd/system/default.target"',
        'rm -f "$1"/etc/resolv.conf "$1"/etc/fstab',
    ]
    words = [
        "--variant=minbase", f"--include={','.join((*_PACKAGES, *packages))}", "--aptopt=APT::Install-Recommends false",
        "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*", *(f"--customize-hook={hook}" for hook in hooks),
        # A mirror may be some weeks behind what a suite that changes every day promises of itself.
        *(("--aptopt=Acquire::Check-Valid-Until false",) if suite == "testing" else ()), suite,
    ]  # fmt: skip
    key = hashlib.sha256("\0".join([*words, "root-mode 0755"]).encode()).hexdigest()[:16]
    image = harness.CACHE / "debian" / f"{suite}-{key}.squashfs"
    with building(image) as draft:
        if draft:
            tar = draft.with_name("root.tar")
            _run("mmdebstrap", "--quiet", *words[:-1], suite, str(tar), *mirror())
            # Not compressed: the guest's processor is emulated, the disk is not.
            _run(
                "mksquashfs",
                "-",
                str(draft),
                "-tar",
                "-quiet",
                "-no-progress",
                "-noI",
                "-noD",
                "-noF",
                "-noX",
                # Otherwise anybody may write to `/`, and a policy below it is refused.
                "-root-mode",
                "0755",
                stdin=tar,
            )
            tar.unlink()
    return image


def blank(path: Path, mib: int = 512) -> Path:
    """Make an empty ext4 disk: as `upper` it keeps everything that guests write from one boot to the next."""
    with path.open("wb") as file:
        file.truncate(mib << 20)
    _run("mke2fs", "-q", "-F", "-t", "ext4", str(path))
    return path


def ext4(path: Path, suite: str, packages: tuple[str, ...] = (), mib: int = 2048) -> Path:
    """Make a Debian root as an ext4 disk of its own, for an initramfs of the distribution to mount."""
    with path.open("wb") as file:
        file.truncate(mib << 20)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        tree = f"{scratch}/tree"
        script = (
            f"unsquashfs -q -n -d {shlex.quote(tree)} {shlex.quote(str(root(suite, packages)))} >/dev/null && "
            f"mke2fs -q -F -t ext4 -d {shlex.quote(tree)} {shlex.quote(str(path))}; code=$?; "
            f"rm -rf {shlex.quote(tree)}; exit $code"
        )
        _run(*(() if os.geteuid() == 0 else ("fakeroot",)), "sh", "-c", script)
    return path


def _run(*words: str, stdin: Path | None = None) -> None:
    with open(stdin or os.devnull, "rb") as file:
        result = subprocess.run(words, stdin=file, capture_output=True, text=True)
    assert result.returncode == 0, f"{words[0]} failed: {result.stdout}{result.stderr}"


def verdict(script: str) -> dict[str, bytes]:
    """Return the files that make a root run `script` after coldplug, and end there; for a root of your own."""
    return {
        "etc/systemd/system/verdict.service": _UNIT.encode(),
        "etc/systemd/system/multi-user.target.d/verdict.conf": b"[Unit]\nWants=verdict.service\n",
        "functions.sh": harness.shell("functions").encode(),
        "verdict": harness.shell("debian").encode(),
        "verdict.sh": script.encode(),
    }


def guest(
    name: str,
    suite: str,
    early: str,
    script: str,
    *,
    policy: str = "",
    files: dict[str, bytes] | None = None,
    packages: tuple[str, ...] = (),
    upper: Path | None = None,
    devices: tuple[str, ...] = (),
    cmdline: str = "",
    **more: Any,
) -> Guest:
    """Return a guest that runs `early`, then switches to the root of `suite`, where `script` runs after coldplug.

    Args:
        early: shell; may call `handover` in stage 1. /run is a tmpfs that both share.
        script: shell in the root, with the same functions; what it reports is the verdict.
        policy: the text of a policy; safemem's archive with it is appended.
        files: put into the root, by path.
        packages: of Debian, in the root too.
        upper: a disk made by `blank`, on which everything that the guest writes stays for the next boot.
        more: any other field of a guest.
    """
    inside = {f"debian/{path}": data for path, data in {**verdict(script), **(files or {})}.items()}
    begin = "mount -t tmpfs -o mode=755 run /run\nmount -t debugfs d /sys/kernel/debug\n"
    image = harness.image(
        f"{begin}{early}\n{harness.shell('switch')}", archive=archive(policy) if policy else b"", files=inside
    )
    disks = harness.disk("root", root(suite, packages))
    if upper:
        disks += harness.disk("upper", upper, writable=True)
    options: dict[str, Any] = {"timeout": 300, **more}
    return Guest(name, image, devices=(*disks, *devices), cmdline=f"systemd.firstboot=off {cmdline}", **options)
