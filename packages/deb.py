# SPDX-License-Identifier: MIT
"""Build the Debian package for one release of Debian, without its tools for sources.

    python3 -m packages.deb bookworm|trixie [-o FOLDER] [--wheels FOLDER]

Debian 12 has pydantic 1 and safemem needs 2: what safemem needs beyond the standard library comes
along in /usr/lib/safemem/vendor, as wheels for that release's Python. Nothing else sees it.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packages import tree
from packages.tree import PIP, PROJECT, TREE, UNITS, put

#: Release: version of its Python, the next one, suffix of ours.
RELEASES = {
    "bookworm": ("3.11", "3.12", "deb12u1"),
    "trixie": ("3.13", "3.14", "deb13u1"),
    "testing": ("3.14", "3.15", "deb14u1"),
}
VENDOR = "usr/lib/safemem/vendor"
PACKAGES = "usr/lib/python3/dist-packages"
CONTROL = """Package: safemem
Version: {version}
Architecture: {architecture}
Maintainer: The safemem authors <safemem@safemem.example>
Installed-Size: {size}
Depends: python3 (>= {python}), python3 (<< {below}), libc6 (>= 2.17), libgcc-s1
Recommends: dracut | initramfs-tools, zstd
Suggests: kexec-tools, prometheus-node-exporter-collectors
Section: admin
Priority: optional
Description: safe-region memory onlining policy engine for live-update hosts
 A live-update host swaps its kernel by kexec while guests' memory stays in
 place. If the next kernel rejects what it was handed, Linux boots normally and
 puts every page into its allocator.
 .
 An early-boot hook reads what the predecessor offered and what this kernel
 accepted, and applies a policy: online all memory, online only the safe region,
 or panic, reboot, halt.
"""


def main() -> None:
    """Build one package and print where it is."""
    parser = argparse.ArgumentParser(description="Build the Debian package.")
    parser.add_argument("release", choices=RELEASES)
    parser.add_argument("-o", "--output", type=Path, default=TREE / "build")
    parser.add_argument("--wheels", type=Path, help="keep the modules that are downloaded here, and use them again")
    words = parser.parse_args()
    os.umask(0o022)
    words.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="safemem-deb-") as scratch:
        stage = Path(scratch) / "root"
        name = fill(stage, words.release, Path(scratch), words.wheels or Path(scratch) / "wheels")
        target: Path = words.output / name
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", stage, target], check=True, stdout=sys.stderr
        )
    print(target)


def fill(stage: Path, release: str, scratch: Path, wheels: Path) -> str:
    """Put everything below `stage`; return the name of the package."""
    python, below, suffix = RELEASES[release]
    version = f"{PROJECT['version']}-1~{suffix}"
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
    ).stdout.strip()
    tree.fill(stage, "deb", PACKAGES, VENDOR, scratch)
    vendored(stage / VENDOR, PROJECT["dependencies"], python, wheels)
    changes = f"""safemem ({version}) {release}; urgency=medium

  * See /usr/share/doc/safemem/README.md and the upstream changelog.

 -- The safemem authors <safemem@safemem.example>  {date()}
"""
    doc = stage / "usr/share/doc/safemem"
    put(doc / "changelog.Debian.gz", gzip.compress(changes.encode(), mtime=0))
    put(doc / "changelog.gz", gzip.compress((TREE / "CHANGELOG.md").read_bytes(), mtime=0))
    control = stage / "DEBIAN"
    sizes = sum(path.stat().st_size for path in stage.rglob("*") if path.is_file())
    text = CONTROL.format(version=version, architecture=architecture, size=sizes // 1024, python=python, below=below)
    put(control / "control", text.encode())
    put(control / "conffiles", f"/{tree.POLICY}\n".encode())
    # dracut and initramfs-tools both rebuild their images on it, when we come, change and go.
    put(control / "triggers", b"activate-noawait update-initramfs\n")
    for name in ("postinst", "prerm", "postrm"):
        script = (
            (TREE / "packages/debian" / name)
            .read_text()
            .replace("@UNITS@", " ".join(UNITS))
            .replace("@VENDOR@", f"/{VENDOR}")
        )
        put(control / name, script.encode(), 0o755)
    listing = subprocess.run(
        "find . -path ./DEBIAN -prune -o -type f -print0 | sort -z | xargs -0 md5sum | sed 's, \\./, ,'",
        shell=True, cwd=stage, check=True, capture_output=True,
    ).stdout  # fmt: skip
    put(control / "md5sums", listing)
    return f"safemem_{version}_{architecture}.deb"


def vendored(vendor: Path, needed: list[str], python: str, wheels: Path) -> None:
    """Install what safemem needs where only safemem looks."""
    place = ["--only-binary", ":all:", "--python-version", python, "--platform", "manylinux2014_x86_64"]
    if not wheels.exists():
        wheels.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wheels.parent) as draft:
            subprocess.run([*PIP, "download", *place, "--dest", f"{draft}/wheels", *needed], check=True)
            try:
                os.rename(f"{draft}/wheels", wheels)
            except OSError:
                if not wheels.exists():  # another build was faster otherwise
                    raise
    subprocess.run(
        [*PIP, "install", "--no-compile", *place, "--no-index", "--find-links", wheels, "--target", vendor, *needed],
        check=True,
    )
    # Commands of other people's, and what only their builders want.
    shutil.rmtree(vendor / "bin", ignore_errors=True)
    for path in [*vendor.rglob("*.dist-info"), *vendor.rglob("tests"), *vendor.rglob("__pycache__")]:
        keep = next(iter([*path.glob("METADATA")]), None) if path.suffix == ".dist-info" else None
        data = keep.read_bytes() if keep else b""
        shutil.rmtree(path)
        if keep:  # `importlib.metadata` asks for it
            put(keep, data)
    for path in vendor.rglob("*"):
        if path.is_file():
            path.chmod(0o755 if path.suffix == ".sh" else 0o644)
            if path.suffix == ".so":
                subprocess.run(["strip", "--strip-unneeded", path], check=True)


def date() -> str:
    """Return when the newest commit was made, or now in a tree without any."""
    found = subprocess.run(
        ["git", "log", "-1", "--format=%cD"], cwd=TREE, capture_output=True, text=True
    ).stdout.strip()
    return found or subprocess.run(["date", "-R"], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
