# SPDX-License-Identifier: MIT
"""What goes where in a package: the one list of files and the one list of units, for every kind of package."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from packages import man

TREE = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
_UNITS, _DOC = "usr/lib/systemd/system/", "usr/share/doc/safemem/"
POLICY = "etc/safemem/policy.toml"


class File(NamedTuple):
    """Files of this tree that a package has."""

    source: str  #: pattern below the tree
    target: str  #: below the root: a folder, which ends in `/`, or the file
    mode: int = 0o644
    only: str = ""  #: the kind of package that has them, `deb` or `rpm`; "" for both


FILES = (
    File("policies/live-update-host.toml", POLICY),
    File("policies/*.toml", "usr/share/safemem/policies/"),
    File("systemd/*.service", _UNITS),
    File("systemd/*.path", _UNITS),
    File("systemd/*.target", _UNITS),
    File("systemd/*.timer", _UNITS),
    File("systemd/safemem-generator", "usr/lib/systemd/system-generators/", 0o755),
    File("udev/*.rules", "usr/lib/udev/rules.d/"),
    File("prometheus/*.yml", "usr/share/safemem/prometheus/"),
    File("safemem/initramfs/files/dracut/module-setup.sh", "usr/lib/dracut/modules.d/50safemem/", 0o755),
    File("packages/kernel-install/*.install", "usr/lib/kernel/install.d/", 0o755),
    File("packages/next-boot.sh", "usr/lib/safemem/next-boot", 0o755),
    File("packages/kexec.sh", "usr/lib/safemem/kexec", 0o755),
    # What follows an RPM has by directives of its own, or its distributions have no use for.
    File("safemem/initramfs/files/initramfs-tools/safemem", "usr/share/initramfs-tools/hooks/", 0o755, "deb"),
    File("README.md", _DOC, only="deb"),
    File("packages/debian/copyright", _DOC, only="deb"),
)
#: Enabled when the package is first installed; the rest is for the operator, or started by others.
UNITS = (
    "safemem-hold.service", "safemem-mask.path", "safemem-record.service", "safemem-metrics.timer", "safemem-watch.service",
)  # fmt: skip

#: Programs that are written for where the package has safemem's modules.
COMMAND = """#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/{modules}")
from safemem.cli import main

main()
"""
#: Of the real root. -I -S: neither the environment nor site-packages' .pth files can get in between.
REALROOT = """#!/usr/bin/python3 -IS
import sys

sys.path.insert(0, "/{modules}")
from safemem.realroot.{name} import main

sys.exit(main(sys.argv[1:]))
"""


def programs(package: str, command: str) -> dict[str, str]:
    """Return the programs by path, where safemem's package is in the folder `package`.

    `command` is where the command looks first: for what others have written and only safemem sees.
    """
    realroot = {
        f"usr/lib/safemem/{name}": REALROOT.format(modules=package, name=name)
        for name in ("gate", "hold", "loading", "maintenance", "token")
    }
    return {"usr/bin/safemem": COMMAND.format(modules=command), **realroot}


def fill(root: Path, kind: str, package: str, command: str, scratch: Path) -> None:
    """Put everything that both kinds of package have below `root`, for one of `kind`; the folders as for `programs`."""
    wheel(root / package, scratch)
    for file in FILES:
        if file.only in ("", kind):
            for source in sorted(TREE.glob(file.source)):
                name = source.name if file.target.endswith("/") else ""
                put(root / file.target / name, source.read_bytes(), file.mode)
    for path, text in programs(package, command).items():
        put(root / path, text.encode(), 0o755)
    for page, text in man.pages().items():
        put(root / f"usr/share/man/man{page[-1]}/{page}.gz", gzip.compress(text.encode(), mtime=0))


def wheel(folder: Path, scratch: Path) -> None:
    """Install safemem's Python package below `folder`."""
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch, TREE], check=True)
    with zipfile.ZipFile(next(scratch.glob("safemem-*.whl"))) as archive:
        archive.extractall(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o755 if path.suffix == ".sh" else 0o644)


def put(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
