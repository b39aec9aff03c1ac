#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Build the RPM from this tree, or put its files where rpmbuild wants them: what the Debian package has, differently.

    build.py [-o FOLDER]
    build.py --stage ROOT

safemem's modules are private to it, and so one package serves every version of Python.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import deb as debian

HERE = Path(__file__).resolve().parent
TREE = HERE.parent

MODULES = "usr/lib/safemem/python"
PRESET = "usr/lib/systemd/system-preset/80-safemem.preset"
#: Of Debian only.
WITHOUT = (
    "usr/share/initramfs-tools/hooks/safemem",
    "usr/share/doc/safemem/copyright",
    "usr/share/doc/safemem/README.md",
)


def main() -> None:
    """Build the package and print where it is."""
    parser = argparse.ArgumentParser(description="Build the RPM.")
    parser.add_argument("-o", "--output", type=Path, default=TREE / "build")
    parser.add_argument("--stage", type=Path, metavar="ROOT", help="only put the files below ROOT, for the spec")
    words = parser.parse_args()
    os.umask(0o022)
    with tempfile.TemporaryDirectory(prefix="safemem-rpm-") as scratch:
        if words.stage:
            stage(words.stage, Path(scratch))
            return
        macros = {"_topdir": scratch, "_rpmdir": words.output.resolve(), "_rpmfilename": "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm",
                  "_dbpath": f"{scratch}/db", "__python3": sys.executable}  # fmt: skip
        defines = [word for name, value in macros.items() for word in ("--define", f"{name} {value}")]
        spec = HERE / "rpm/safemem.spec"
        # Not the machine's RPM database but pip brought what the spec says is needed to build.
        command = ["rpmbuild", "-bb", "--nodeps", "--build-in-place", *defines, spec]
        subprocess.run(command, check=True, cwd=TREE, stdout=sys.stderr)
        query = ["rpmspec", "-q", *defines, "--qf", macros["_rpmfilename"], spec]
        name = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    print(words.output / name)


def stage(root: Path, scratch: Path) -> None:
    """Put everything below `root`."""
    debian.ours(root, MODULES)
    debian.package(root / MODULES, scratch)
    for name in WITHOUT:
        (root / name).unlink()
    for unit in (root / "usr/lib/systemd/system").iterdir():
        debian.put(unit, unit.read_text().replace(f"/{debian.PACKAGES}", f"/{MODULES}").encode())
    debian.put(root / PRESET, "".join(f"enable {unit}\n" for unit in debian.UNITS).encode())
    for path in (root / MODULES).rglob("*"):
        if path.is_file():
            path.chmod(0o755 if path.suffix == ".sh" else 0o644)


if __name__ == "__main__":
    main()
