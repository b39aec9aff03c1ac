# SPDX-License-Identifier: MIT
"""The Debian packages: built for each release, checked by lintian, and what is in them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.vm import harness

ROOT = Path(__file__).resolve().parent.parent
RELEASES = ("bookworm", "trixie")


@pytest.fixture(scope="module", params=RELEASES)
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the package for one release."""
    return build(request.param, tmp_path_factory.mktemp("deb"))


def build(release: str, folder: Path) -> Path:
    """Build the package for `release` into `folder`."""
    # The modules of other people are downloaded once for each list of them.
    needed = repr(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    wheels = harness.CACHE / "wheels" / f"{release}-{hashlib.sha256(needed.encode()).hexdigest()[:16]}"
    words = [sys.executable, str(ROOT / "debian/build.py"), release, "-o", str(folder), "--wheels", str(wheels)]
    return Path(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def contents(package: Path, folder: Path) -> dict[str, bytes]:
    """Return the files in `package` by path."""
    tar = folder / "fsys.tar"
    with tar.open("wb") as out:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=out)
    with tarfile.open(tar) as files:
        return {
            item.name.removeprefix("./"): file.read()
            for item in files if item.isfile() and (file := files.extractfile(item))
        }  # fmt: skip


def test_lintian(package: Path) -> None:
    """Debian's own checker finds no error."""
    result = subprocess.run(["lintian", "--fail-on", "error", package], capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr


def test_contents(package: Path, tmp_path: Path) -> None:
    """Command, units, rules, policies, manual pages and the private modules are there, for the release's Python."""
    files = contents(package, tmp_path)
    fields = subprocess.run(["dpkg-deb", "-f", package, "Depends"], check=True, capture_output=True, text=True).stdout
    python = "3.11" if "deb12" in package.name else "3.13"

    assert {
        "etc/safemem/policy.toml", "usr/bin/safemem", "usr/lib/systemd/system/safemem-record.service",
        "usr/lib/systemd/system/safemem-metrics.timer", "usr/lib/systemd/system/safemem-hold.service", "usr/lib/udev/rules.d/60-safemem.rules",
        "usr/share/safemem/policies/maintenance.toml", "usr/share/man/man1/safemem.1.gz",
        "usr/share/man/man5/safemem-policy.5.gz", "usr/lib/python3/dist-packages/safemem/boot.py",
        "usr/lib/safemem/vendor/pydantic/main.py", "usr/share/initramfs-tools/hooks/safemem",
        "usr/lib/dracut/modules.d/50safemem/module-setup.sh", "usr/lib/systemd/system/safemem-maintenance.target",
        "usr/lib/systemd/system/safemem-maintenance.service", "usr/lib/systemd/system-generators/safemem-generator",
    } <= set(files)  # fmt: skip
    # Only in an initramfs: in the real root it would decide a second time.
    assert not [name for name in files if name.startswith("usr/lib/systemd") and "decide" in name]
    assert f"python3 (>= {python})" in fields
    assert any(f"cpython-{python.replace('.', '')}-" in name for name in files if "pydantic_core" in name)
    assert not any(name.startswith("usr/lib/python3") and "pydantic" in name for name in files)


def test_manual_pages(package: Path, tmp_path: Path) -> None:
    """Both pages format without a complaint, and name every command and every exception of the policy's language."""
    files = contents(package, tmp_path)
    for name, words in (("1/safemem.1", ("handover-args", "--previous")), ("5/safemem-policy.5", ("on_shortfall",))):
        page = subprocess.run(["gzip", "-dc"], input=files[f"usr/share/man/man{name}.gz"], capture_output=True).stdout
        result = subprocess.run(
            ["groff", "-k", "-Kutf8", "-man", "-Tutf8", "-ww", "-P-cbou"], input=page, capture_output=True
        )
        assert (result.returncode, result.stderr) == (0, b"")
        for word in words:
            assert word.encode() in result.stdout
