# SPDX-License-Identifier: MIT
"""What tests share: builders for policies and snapshots, machines that have a policy, images and packages.

Fake roots are in tests/fakes.py, what guests need in tests/vm/kit.py. No test module imports another one.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from safemem.boot import compiled
from safemem.boot import main as boot
from safemem.boot.model import DERIVED, FACTS, UNKNOWN, Blocks, Condition, Fact, Failure, Policy, Rule, Snapshot, Term
from safemem.boot.ranges import Range
from safemem.initramfs import proven
from safemem.initramfs.cpio import Archive
from safemem.initramfs.items import PREFIX
from safemem.initramfs.on_failure import unit_files
from safemem.policy import catalogue, compiler, load
from tests.fakes import BLOCK, make_root
from tests.vm.harness import CACHE

REPOSITORY = Path(__file__).resolve().parent.parent
#: The policy that packages install.
POLICY = REPOSITORY / "policies/live-update-host.toml"
#: Releases of Debian that get a package.
RELEASES = ("bookworm", "trixie", "testing")


# ---- Policies and snapshots


def when(fact: str, *terms: Term, negate: bool = False) -> tuple[Condition, ...]:
    """Return a rule's condition that any of `terms` satisfies."""
    return (Condition(fact, tuple((term,) for term in terms), negate),)


def rule(action: str = "online-safe", *, name: str = "otherwise", **more: Any) -> Rule:
    """Return a rule; `more` is any other field of it."""
    return Rule(name, action, **more)


#: Matches on no machine of these tests.
NEVER = rule("halt", name="never", when=when("arch", Term("is", "vax")))


def policy(
    *rules: Rule,
    otherwise: str | Rule = "panic",
    sources: tuple[str | Range, ...] = ("kho-scratch", "cmdline"),
    failure: str | Failure = "panic",
    name: str = "test",
    **more: Any,
) -> Policy:
    """Return a policy with `rules`; `otherwise` and `failure` are actions or values, `more` is any other field."""
    last = rule(otherwise) if isinstance(otherwise, str) else otherwise
    fails = Failure(failure) if isinstance(failure, str) else failure
    return Policy(name, rules, last, fails, sources, **more)


def snapshot(
    blocks: tuple[Blocks, ...] = (Blocks(0, 7, "online"), Blocks(32, 39, "offline")), *, size: int = BLOCK, **facts: Any
) -> Snapshot:
    """Return a snapshot in which every fact is unknown but `facts`, given as values; a block has `size` bytes."""
    values = {name: Fact(facts.pop(name, UNKNOWN), "test") for name in FACTS if name not in DERIVED}
    if facts:
        raise TypeError(f"no fact that can be read: {', '.join(facts)}")
    return Snapshot(values, size, blocks, (), "", ())


states = st.sampled_from(["online", "offline", "going-offline", UNKNOWN])


@st.composite
def block_runs(draw: st.DrawFn) -> tuple[Blocks, ...]:
    """Draw disjoint runs of blocks, ascending, with holes."""
    runs, at = [], 0
    for _ in range(draw(st.integers(0, 6))):
        first = at + draw(st.integers(0, 3))
        last = first + draw(st.integers(0, 5))
        runs.append(Blocks(first, last, draw(states), draw(st.integers(-1, 1))))
        at = last + 1
    return tuple(runs)


# ---- Machines that have a policy


def install(root: Path, *rules: Rule, otherwise: str | Rule, **more: Any) -> None:
    """Put a compiled policy where the boot program looks for it; without `rules`, one that never matches here."""
    path = root / boot.POLICY
    path.parent.mkdir(parents=True)
    (root / boot.MASKS).write_bytes(compiled.names_text(["40-vendor.rules"]))
    path.write_bytes(compiler.dump(policy(*(rules or (NEVER,)), otherwise=otherwise, **more)))


#: Options of `make_root` for a machine with a guard of 256 MiB in force.
GUARD: dict[str, Any] = {
    "crash": "08000000-17ffffff",
    "cmdline": "kho=on safemem.guard=0x8000000-0x17ffffff crashkernel=256M@128M",
}


def shipped(name: str) -> Policy:
    """Return a policy that we ship."""
    return load.read(POLICY.parent / f"{name}.toml")


def guarded(base: Path, action: str, keep: str = "", **options: Any) -> Path:
    """Return a machine with a guard of 576 MiB and a policy that is all `action`; `options` are those of `make_root`."""
    base.mkdir()
    root = make_root(
        base, offered=True, crash="01000000-24ffffff", cmdline="safemem.guard=0x1000000-0x24ffffff", **options
    )
    install(root, otherwise=action, keep_crashkernel=keep)
    return root


# ---- What is in an initramfs


def archive(files: dict[str, bytes]) -> bytes:
    """Return an initrd with these files."""
    out = io.BytesIO()
    cpio = Archive(out)
    for path, data in files.items():
        cpio.file(path, data)
    cpio.close()
    return out.getvalue()


def base() -> dict[str, bytes]:
    """Return what every initramfs with safemem has, by path."""
    data = compiler.dump(load.read(POLICY))
    return {f"{PREFIX}/policy.json": data, f"{PREFIX}/boot": b"#!/bin/sh\n", **proof(data)}


def proof(*policies: bytes) -> dict[str, bytes]:
    """Return the file that says what was proved of the compiled `policies`, by path: that they hold in 36 states."""
    proofs = tuple(proven.Proof(compiled.load(data, "p").digest, 36, ()) for data in policies)
    return {proven.PATH: proven.dump(proven.Proven("0.9", catalogue.ERRORS, proofs))}


#: systemd, and /init that is the same program; in images it mostly is a link.
SYSTEMD = {"usr/lib/systemd/systemd": b"\x7fELF systemd", "init": b"\x7fELF systemd"}


def units(action: str = "panic") -> dict[str, bytes]:
    """Return what an initramfs with systemd has more, by path, for an `on_failure` of `action`."""
    return {**unit_files(Failure(action)), **SYSTEMD}


# ---- Roots and packages


def make(root: Path, tree: dict[str, bytes]) -> None:
    """Put files below a root."""
    for path, data in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def build_deb(release: str, folder: Path) -> Path:
    """Build the package for `release` of Debian into `folder`, and return it."""
    # The modules of other people are downloaded once for each list of them.
    needed = repr(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"])
    wheels = CACHE / "wheels" / f"{release}-{hashlib.sha256(needed.encode()).hexdigest()[:16]}"
    words = [sys.executable, "-m", "packages.deb", release, "-o", str(folder), "--wheels", str(wheels)]
    return Path(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY).stdout.strip())


def contents(package: Path, folder: Path) -> dict[str, bytes]:
    """Return the files in a package of Debian by path; `folder` takes what is written on the way."""
    tar = folder / "fsys.tar"
    with tar.open("wb") as out:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=out)
    with tarfile.open(tar) as files:
        return {
            item.name.removeprefix("./"): file.read()
            for item in files if item.isfile() and (file := files.extractfile(item))
        }  # fmt: skip


def handover_args(root: Path, *words: str) -> tuple[int, str, str]:
    """Run `safemem handover-args` and return code, output and messages."""
    from click.testing import CliRunner

    from safemem.cli import main

    result = CliRunner().invoke(main, ["handover-args", "--root", str(root), *words])
    return result.exit_code, result.stdout, result.stderr
