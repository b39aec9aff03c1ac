# SPDX-License-Identifier: MIT
"""Build the archive that puts safemem into any initrd: what goes in, proved before it goes anywhere.

Everything is private to /usr/lib/safemem, loader and C library included: an archive that is
appended to a foreign initrd must not replace that initrd's own libraries.
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from safemem.boot import compiled, model
from safemem.initramfs import interpreter, on_failure, proof
from safemem.initramfs.cpio import Archive
from safemem.initramfs.items import POLICIES, PREFIX, BuildError, Item, beside, plain, put, shipped
from safemem.realroot import udevrules

#: Zeros in front of what is appended: behind an image that is packed with lz4 the kernel wants four.
_AHEAD = 512


class Cost(NamedTuple):
    """What the archive adds to an initrd, in bytes."""

    size: int  #: of the file
    raw: int
    files: int
    biggest: tuple[tuple[str, int], ...]


def build(
    policy: bytes,
    python: str | None = None,
    more: Mapping[str, bytes] | None = None,
    named: Iterable[model.Policy] = (),
) -> tuple[bytes, Cost]:
    """Return the archive with `more` files by path, and then the compiled `policy`, after proving that it decides; and its cost.

    Raises:
        BuildError: something is missing, or the result does not decide.
    """
    items = {**plain(more or {}), **files(policy, python, named)}
    data = archive(items)
    made = appendable(data)
    sizes = sorted(((path, len(item.data)) for path, item in items.items()), key=lambda pair: -pair[1])
    return made, Cost(len(made), len(data), len(items), tuple(sizes[:5]))


def appendable(data: bytes) -> bytes:
    """Return an archive as `cat` may put it behind any image, and another such one behind it.

    A plain archive counts only at a multiple of 4 (init/initramfs.c), and images that are compressed have any length:
    so this is a gzip member, which may begin anywhere.
    """
    packed = bytes(_AHEAD) + gzip.compress(data, 6, mtime=0)
    return packed + bytes(-len(packed) % 512)


def files(policy: bytes, python: str | None = None, named: Iterable[model.Policy] = ()) -> dict[str, Item]:
    """Return every file that an initramfs needs for the compiled `policy`, by path, after proving that they decide.

    `python` is the interpreter to ship; this one's own, outside of any virtual environment, if none is named. `named` are
    the policies that the command line may name.

    Raises:
        BuildError: something is missing, or the program does not decide what the policy says.
    """
    checked = compiled.load(policy, "policy")
    python = os.path.realpath(python or getattr(sys, "_base_executable", "") or sys.executable)
    try:
        with tempfile.TemporaryDirectory(prefix="safemem-image-") as scratch:
            return _files(Path(scratch), python, policy, checked, tuple(named))
    except subprocess.CalledProcessError as error:
        text = error.stderr.decode("utf-8", "replace") if isinstance(error.stderr, bytes) else error.stderr
        raise BuildError(f"cannot build the archive with {python}: {proof.why(text or str(error))}") from None
    except (BuildError, OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"cannot build the archive with {python}: {error}") from None


def policies(named: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of the compiled policies that `safemem.policy=NAME` may name."""
    return {f"{POLICIES}/{name}.json": policy for name, policy in named.items()}


def _files(
    scratch: Path, python: str, policy: bytes, checked: model.Policy, named: tuple[model.Policy, ...]
) -> dict[str, Item]:
    ours = _ours(policy, checked, named)
    put(ours, scratch)
    cases = proof.cases(scratch / "list", checked, f"{scratch}/{PREFIX}")
    listing = interpreter.listing(python, [case.root for case in cases])
    for case, (status, said) in zip(cases, listing.runs, strict=True):
        case.prove(status == 0, said)
    items = dict(sorted({**ours, **interpreter.items(python, listing, scratch / "compiled")}.items()))
    proof.try_out(scratch / "try", items, checked)
    return items


def _ours(policy: bytes, checked: model.Policy, named: tuple[model.Policy, ...]) -> dict[str, Item]:
    """Return the files beside interpreter and modules."""
    return {
        f"{PREFIX}/boot": Item(on_failure.wrapper(on_failure.of(checked, *named)), 0o755),
        f"{PREFIX}/mounts.sh": Item(shipped("mounts.sh"), 0o644),
        f"{PREFIX}/gate.sh": Item(on_failure.gate(on_failure.of(checked, *named)), 0o644),
        f"{PREFIX}/proof.sh": Item(on_failure.proof(on_failure.of(checked, *named)), 0o644),
        f"{PREFIX}/capture": Item(shipped("capture.sh"), 0o755),
        f"{PREFIX}/handover-args": Item(shipped("handover-args.sh"), 0o755),
        f"{PREFIX}/masks": Item(compiled.names_text(udevrules.masks("/")), 0o644),
        f"{PREFIX}/policy.json": Item(policy, 0o644),
        # Where an initrd has udev, the rule works there too; the real root's own copy takes over.
        "usr/lib/udev/rules.d/60-safemem.rules": Item(beside("udev/60-safemem.rules"), 0o644),
    }


def archive(items: Mapping[str, Item]) -> bytes:
    """Return the files as an archive of the form newc."""
    out = io.BytesIO()
    cpio = Archive(out)
    for path, item in items.items():
        cpio.file(path, item.data, item.mode)
    cpio.close()
    return out.getvalue()
