# SPDX-License-Identifier: MIT
"""The boot archive: complete without this machine, the same each time, and small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from safemem.boot import compiled
from safemem.boot.model import Failure
from safemem.initramfs import build
from safemem.policy import language

pytestmark = pytest.mark.needs("cpio", "zstd")

ROOT = Path(__file__).resolve().parent.parent
#: Bytes, with zstd -19, for each of Debian's interpreters. The aim is 3 MiB; Debian 12's interpreter, C library and
#: loader alone are 3.4 MiB, so this only keeps the archive from growing. `make bench` prints where it stands.
CEILINGS = {(3, 11): 3_660_000, (3, 13): 3_830_000, (3, 14): 4_470_000}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, build.Cost, Path]:
    """Return the archive with the shipped policy, its cost, and the folder it was unpacked to."""
    base = tmp_path_factory.mktemp("image")
    data = compiled.dump(language.read(ROOT / "policies/live-update-host.toml"))
    cost = build.build(data, base / "safemem.cpio")
    (base / "root").mkdir()
    with (base / "safemem.cpio").open("rb") as archive:
        subprocess.run(["cpio", "-idm", "--quiet"], stdin=archive, cwd=base / "root", check=True)
    return base / "safemem.cpio", cost, base / "root"


def test_everything_is_private(built: tuple[Path, build.Cost, Path]) -> None:
    """An archive appended to a foreign initrd must not replace one of its files."""
    files = [str(path.relative_to(built[2])) for path in built[2].rglob("*") if path.is_file()]

    assert files
    rules = "usr/lib/udev/rules.d/60-safemem.rules"
    assert [path for path in files if not path.startswith(f"{build.PREFIX}/")] == [rules]


def test_only_what_the_boot_needs(built: tuple[Path, build.Cost, Path]) -> None:
    """No package, no source, no module of the lower half; bytecode that is used without a source (PEP 552)."""
    home = built[2] / build.PREFIX
    names = {path.stem for path in (home / "app/safemem/boot").iterdir()}

    assert names == {path.stem for path in (ROOT / "safemem/boot").glob("*.py")}
    assert not list(home.rglob("*.py")) and not list(home.rglob("site-packages"))
    assert not {path.stem for path in home.rglob("*.pyc")} & {"enum", "typing"} and not list(home.rglob("json"))
    for path in home.rglob("*.pyc"):
        assert path.read_bytes()[4:8] == b"\1\0\0\0", f"{path} is not unchecked-hash bytecode"


def test_the_same_each_time(built: tuple[Path, build.Cost, Path], tmp_path: Path) -> None:
    """Two builds are one file, byte for byte, so that an image can be compared."""
    data = (built[2] / build.PREFIX / "policy.json").read_bytes()
    build.build(data, tmp_path / "again.cpio")

    assert (tmp_path / "again.cpio").read_bytes() == built[0].read_bytes()


def test_size(built: tuple[Path, build.Cost, Path]) -> None:
    """The cost that is printed is the cost, and it is below the ceiling."""
    assert built[1].raw == built[0].stat().st_size
    squeezed = subprocess.run(
        ["zstd", "-19", "-q", "-c"], input=built[0].read_bytes(), capture_output=True, check=True
    ).stdout
    assert built[1].compressed == len(squeezed)
    assert len(squeezed) <= CEILINGS.get(sys.version_info[:2], max(CEILINGS.values()))


def test_no_interpreter(tmp_path: Path) -> None:
    """A build that cannot work says so and leaves what was there alone."""
    out = tmp_path / "out.cpio"
    out.write_bytes(b"before")
    data = compiled.dump(language.read(ROOT / "policies/live-update-host.toml"))
    with pytest.raises(build.BuildError, match=r"cannot build the archive with .*/none: .*No such file"):
        build.build(data, out, str(tmp_path / "none"))

    assert [path.name for path in tmp_path.iterdir()] == ["out.cpio"]
    assert out.read_bytes() == b"before"


@pytest.mark.parametrize("text", ["it's lost", "a $(reboot) b", "`x` \\n", "'; exit 0; '"])
def test_messages_stay_text(text: str) -> None:
    """What an operator writes into `on_failure.message` is never shell."""
    script = build.wrapper(Failure("panic", text), "ROOT=''\nON_FAILURE=''\nMESSAGE=''\nDEADLINE=''\n")
    said = subprocess.run(
        ["sh", "-c", script.decode() + "printf %s \"$MESSAGE\""], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip

    assert said == text
