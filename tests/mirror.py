# SPDX-License-Identifier: MIT
"""Packages of Debian for any architecture, downloaded from this machine's mirror, and of each only what is asked for.

apt gets a configuration of its own for each architecture, in a scratch folder: the machine's own is only read. What was
unpacked once stays in the user's cache folder.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.needs import lacking
from tests.vm import harness
from tests.vm.debian import building, mirror

FOLDER = harness.CACHE / "debian-packages"
SUITES = ("bookworm", "trixie", "trixie-backports")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Apt:
    """apt for one architecture, with nothing installed."""

    def __init__(self, base: Path, arch: str) -> None:
        """Fetch the lists of all suites into `base`. Raises OSError if they cannot be had."""
        for folder in ("lists/partial", "cache/archives/partial"):
            (base / folder).mkdir(parents=True)
        (base / "status").touch()
        signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
        found = mirror()
        if not found:
            raise OSError("apt on this machine has no source for Debian: which mirror to use is not known")
        (base / "sources.list").write_text("".join(f"deb {signed}{found[0]} {suite} main\n" for suite in SUITES))
        self._base = base
        self._options = [word for key, value in {
            "Dir::State::lists": f"{base}/lists", "Dir::State::status": f"{base}/status", "Dir::Cache": f"{base}/cache",
            "Dir::Etc::sourceparts": "-", "Dir::Etc::sourcelist": f"{base}/sources.list", "APT::Sandbox::User": "root",
            "Acquire::Languages": "none", "APT::Architecture": arch, "APT::Architectures": arch,
        }.items() for word in ("-o", f"{key}={value}")]  # fmt: skip
        self._run("apt-get", "update", "-qq")

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [words[0], *self._options, *words[1:]], cwd=self._base, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise OSError(f"{' '.join(words)}: {(done.stderr.strip() or 'failed').splitlines()[0]}")
        return done.stdout

    def names(self, beginning: str) -> list[str]:
        """Return the names of packages that begin so."""
        return sorted(self._run("apt-cache", "pkgnames", beginning).split())

    def unpack(self, package: str, wanted: tuple[str, ...], folder: Path) -> None:
        """Put the files of a package whose paths match `wanted` below `folder`; nothing is installed."""
        self._run("apt-get", "download", "-qq", package)
        (archive,) = self._base.glob("*.deb")
        words = ["tar", "-x", "-C", str(folder), "--wildcards", *wanted]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as tar:
            # A pattern that nothing matches is no error: packages of different releases are laid out differently.
            subprocess.run(words, stdin=tar.stdout, stderr=subprocess.DEVNULL, check=False)
        archive.unlink()


@contextmanager
def apt(arch: str) -> Iterator[Apt]:
    """Give apt for an architecture; skip the test if the mirror cannot be reached."""
    with tempfile.TemporaryDirectory(prefix="safemem-apt-") as scratch:
        try:
            yield Apt(Path(scratch), arch)
        except OSError as error:
            lacking(f"packages of Debian cannot be had: {error}")


def kernels(arch: str, versions: int) -> dict[str, Path]:
    """Return the newest kernel of each of so many minor versions, by name: a folder with its image and configuration.

    All are of the flavour `cloud`, which is the smallest; of the newest the plain one comes too. From Linux 6.19 on Debian has
    an image in a package of its own, signed and not; before, it comes with its modules.
    """
    folder = FOLDER / f"kernels-{arch}-{versions}"
    with building(folder) as draft:
        if draft:
            draft.mkdir()
            with apt(arch) as tool:
                for release, packages in _chosen(tool, arch, versions).items():
                    (draft / release).mkdir()
                    for package in packages:
                        tool.unpack(
                            package,
                            ("./boot/vmlinuz-*", "./boot/config-*", "./*/modules/*/vmlinuz*", "./*/modules/*/config"),
                            draft / release,
                        )
                    (draft / release / "packages").write_text(json.dumps(packages))
    return {item.name: item for item in sorted(folder.iterdir())}


def _chosen(tool: Apt, arch: str, versions: int) -> dict[str, list[str]]:
    """Return what to download for each release."""
    names = set(tool.names("linux-"))
    release = re.compile(rf"linux-(?:image|binary|binary-unsigned)-(\d+\.\d+\.\d+\S*?-(?:cloud-)?{arch})(?:-unsigned)?")
    found = {match[1] for name in names if (match := release.fullmatch(name))}
    newest: dict[tuple[int, ...], str] = {}

    def numbers(one: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", one.partition(f"-{arch}")[0]))

    for one in found:
        number = numbers(one)
        if "cloud" in one and number > numbers(newest.get(number[:2], "")):
            newest[number[:2]] = one
    # The oldest two are those of stable releases; in between are the largest packages, for which nobody waits.
    order = sorted(newest)
    chosen = [newest[number] for number in (*order[:2], *order[2 - versions :])]
    plain = chosen[-1].replace("cloud-", "")
    result = {}
    for place, one in enumerate([*chosen, *([plain] if plain in found else [])]):
        kinds = [
            f"linux-binary-{one}",
            f"linux-binary-unsigned-{one}",
            f"linux-image-{one}",
            f"linux-image-{one}-unsigned",
        ]
        # Signed and unsigned in turn, where there are both.
        order_of = kinds if place % 2 else [kinds[1], kinds[0], kinds[3], kinds[2]]
        image = next(kind for kind in order_of if kind in names and not (kind in kinds[2:] and _split(names, one)))
        result[one] = [image, *([f"linux-base-{one}"] if f"linux-base-{one}" in names else [])]
    return result


def _split(names: set[str], release: str) -> bool:
    return any(f"linux-{kind}-{release}" in names for kind in ("binary", "binary-unsigned"))


def ukify() -> Path:
    """Return a folder with systemd's ukify, the module that it needs, and its stubs."""
    folder = FOLDER / "ukify"
    with building(folder) as draft:
        if draft:
            draft.mkdir()
            with apt("amd64") as tool:
                for package in ("systemd-ukify", "systemd-boot-efi", "python3-pefile"):
                    tool.unpack(package, ("./usr/bin/ukify", "./usr/lib/systemd/*", "./usr/lib/python3/*"), draft)
    return folder


def units(*packages: str) -> dict[str, bytes]:
    """Return the systemd units that packages of Debian's newest stable release bring, by path."""
    kept = FOLDER / f"units-{'-'.join(packages)}"
    with building(kept) as draft:
        if draft:
            draft.mkdir()
            with apt("amd64") as tool:
                for package in packages:
                    tool.unpack(package, ("./usr/lib/systemd/system/*", "./lib/systemd/system/*"), draft)
    found = {str(path.relative_to(kept)): path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    assert found, f"no units in {packages}"
    return {path if path.startswith("usr/") else f"usr/{path}": data for path, data in found.items()}


def unified(output: Path, kernel: Path, initrd: Path, uname: str, cmdline: str = "kho=on") -> None:
    """Make a unified kernel image with ukify, with a profile `main` and a profile `factory` with its own command line."""
    folder = ukify()
    stub = folder / "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
    more = output.with_suffix(".profile")
    program = folder / "usr/bin/ukify"
    if not program.exists() or program.is_symlink():
        program = folder / "usr/lib/systemd/ukify"
    for words in (
        ["--stub", stub.with_name("addonx64.efi.stub"), "--profile=ID=factory", "--cmdline=kho=off", "--output", more],
        ["--stub", stub, "--linux", kernel, "--initrd", initrd, f"--cmdline={cmdline}", f"--uname={uname}",
         "--profile=ID=main", "--join-profile", more, "--output", output],
    ):  # fmt: skip
        subprocess.run(
            ["/usr/bin/python3", str(program), "build", *map(str, words)], check=True, capture_output=True,
            env={**os.environ, "PYTHONPATH": str(folder / "usr/lib/python3/dist-packages")},
        )  # fmt: skip
