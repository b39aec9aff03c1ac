# SPDX-License-Identifier: MIT
"""The suite on another Python: in a scratch root of the release of Debian that has it, or on one of this machine's own.

The boot path uses three private modules of the interpreter (`_json`, `_signal`, `_sha2`), so every version counts.
Roots are made once for each list of what is in them, and kept where the guests' roots are.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

from tests.vm import debian, harness

#: Version -> the release of Debian that has it; 3.12 was in none, and counts where this machine has it.
VERSIONS = {"3.11": "bookworm", "3.12": "", "3.13": "trixie", "3.14": "forky"}
#: Programs that the suite starts.
_PACKAGES = ("busybox-static", "cpio", "lz4", "mount", "zstd")
#: Development tools that the suite itself does without.
_LINTERS = ("codespell", "hatchling", "mypy", "pytest-xdist", "ruff")
_REPOSITORY = harness.REPOSITORY
#: Everything under tests/ but guests, packages, linters, what is shell alone, and the long searches for a policy or a cut
#: that nothing about an interpreter decides, what is downloaded, boot menus, faults and hooks that are cut off; of the random draws a part.
_SUITE = (
    "-m", "pytest", "-q", "--tb=short", "--durations=0", "--durations-min=5", "-p", "no:cacheprovider",
    "-m", "not vm and not pythons and not bench", "-k", "not cut_off and not bombs",
    *(f"--ignore=tests/test_{name}.py" for name in ("analysis", "bootmenu", "bootplaces", "debian_images", "deceptive", "faults", "faults_later", "fuzz", "gigantic_guard", "hostile", "kernel_install", "makers", "package", "pairs", "preflight", "project", "search", "stricter", "wrapper")),
)  # fmt: skip
#: Runs in mount and process namespaces of its own; $1 is the root, $2 the repository, the rest the command. Not by chroot:
#: the kernel lets nobody in one make a user namespace, and tests do.
_ENTER = """
set -e
PATH=$PATH:/usr/sbin:/sbin
mount --bind "$1" "$1"
cd "$1"
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs tmp tmp
mount --bind "$2" src
mount -o remount,bind,ro src
shift 2
pivot_root . mnt
cd /src
umount -l /mnt
exec "$@"
"""


class Unavailable(Exception):
    """A version that cannot be had here; the message says why."""


class Python(NamedTuple):
    """An interpreter with everything that the suite imports.

    `root` is the folder to enter, None for an interpreter of this machine; `home` the environment and `tree` the
    repository, both as seen from there.
    """

    root: Path | None
    home: Path
    tree: Path


def get(version: str) -> Python:
    """Return the Python of a version such as `3.13`, made ready if it is not; raise Unavailable."""
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text())["project"]
    tools = [need for need in project["optional-dependencies"]["dev"] if not need.startswith(_LINTERS)]
    needs = [*project["dependencies"], *tools]
    program = None if VERSIONS[version] and shutil.which("mmdebstrap") else _of_this_machine(version)
    key = hashlib.sha256(repr((VERSIONS[version], _PACKAGES, needs, program)).encode()).hexdigest()[:16]
    folder = harness.CACHE / "pythons" / f"{version}-{key}"
    home = Path("/venv") if program is None else folder / "venv"
    tree = Path("/src") if program is None else _REPOSITORY
    try:
        with debian.building(folder) as draft:
            if draft:
                draft.mkdir()
                if program is None:
                    _bootstrap(draft, version)
                _environment(draft / "venv", home, program or Path(f"/usr/bin/python{version}"), version, needs)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{error.cmd[0]} failed: {error.stderr.strip()}") from None
    # What metadata says of safemem itself is this tree's, and the tree moves.
    site = folder / f"venv/lib/python{version}/site-packages"
    about = site / "safemem.dist-info/METADATA"
    about.parent.mkdir(exist_ok=True)
    about.write_text(f"Metadata-Version: 2.1\nName: safemem\nVersion: {importlib.metadata.version('safemem')}\n")
    (site / "tree.pth").write_text(f"{tree}\n")
    return Python(folder if program is None else None, home, tree)


def run(python: Python, *words: str) -> subprocess.CompletedProcess[str]:
    """Run that Python in the repository, which it cannot change."""
    with tempfile.TemporaryDirectory() as scratch:
        own = Path("/tmp") if python.root else Path(scratch)
        environment = [
            "env", "-i", f"PATH={python.home}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", f"HOME={own}",
            f"PYTHONPYCACHEPREFIX={own}/bytecode", f"HYPOTHESIS_STORAGE_DIRECTORY={own}/hypothesis", "SAFEMEM_DRAWS=200",
            "SAFEMEM_EXAMPLES=20", "SAFEMEM_FAULTS=8", "SAFEMEM_KILLS=3", f"{python.home}/bin/python3",
        ]  # fmt: skip
        enter = []
        if python.root:
            maps = [] if os.geteuid() == 0 else ["--map-root-user", "--map-auto"]
            enter = [
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                *maps,
                "sh",
                "-c",
                _ENTER,
                "sh",
                str(python.root),
                str(_REPOSITORY),
            ]
        return subprocess.run([*enter, *environment, *words], cwd=_REPOSITORY, capture_output=True, text=True)


def suite(python: Python) -> subprocess.CompletedProcess[str]:
    """Run the suite on that Python."""
    # An interpreter that nobody has stripped takes minutes to pack.
    return run(python, *_SUITE, *([] if python.root else ["--ignore=tests/test_image.py"]))


def _of_this_machine(version: str) -> Path:
    """Return the interpreter of that version that somebody put on this machine; raise Unavailable."""
    found = shutil.which(f"python{version}")
    places = [*([Path(found)] if found else []), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")]
    for place in places:
        words = [str(place), "-I", "-c", "import sys; print(sys.executable)"]
        result = subprocess.run(words, capture_output=True, text=True)
        if result.returncode == 0:
            return Path(result.stdout.strip()).resolve()
    raise Unavailable(
        f"no python{version} on this machine, and {VERSIONS[version] or 'no release of Debian'} was not asked"
    )


def _bootstrap(folder: Path, version: str) -> None:
    """Put a small Debian with that Python below `folder`, owned by whoever runs this."""
    words = [
        "mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join((f'python{version}', *_PACKAGES))}",
        "--aptopt=APT::Install-Recommends false", "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
        # Lists of testing expire after a week, and a mirror may be a snapshot; they are signed all the same.
        "--aptopt=Acquire::Check-Valid-Until false",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        tar = Path(scratch) / "root.tar"
        _call(*words, VERSIONS[version], str(tar), *debian.mirror())
        _call("tar", "--no-same-owner", "--exclude=./dev/*", "-C", str(folder), "-xf", str(tar))
    (folder / "src").mkdir()


def _environment(venv: Path, home: Path, program: Path, version: str, needs: list[str]) -> None:
    """Make an environment at `venv`, to be found at `home`, for an interpreter that may be another machine's."""
    site = venv / f"lib/python{version}/site-packages"
    site.mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text(f"home = {program.parent}\ninclude-system-site-packages = false\n")
    (venv / "bin").mkdir()
    (venv / "bin/python3").symlink_to(program)
    command = f"#!{home}/bin/python3\nfrom safemem.cli import main\n\nmain()\n"
    (venv / "bin/safemem").write_text(command)
    (venv / "bin/safemem").chmod(0o755)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    place = ["--only-binary", ":all:", "--python-version", version, "--platform", f"manylinux2014_{platform.machine()}"]
    _call(*pip, "install", "--no-compile", *place, "--target", str(site), *needs)


def _call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
