# SPDX-License-Identifier: MIT
"""No bytes make a parser raise what is not its own, or take seconds or much memory; see tests/fuzz.py."""

from __future__ import annotations

import ast
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import fuzz

PACKAGE = Path(__file__).resolve().parent.parent / "safemem"
#: Seconds for all targets together; `make nightly` asks for an hour.
SECONDS = float(os.environ.get("SAFEMEM_FUZZ", "27"))
#: Seconds at least of targets by themselves, in `make test`: an image comes from wherever the next kernel does.
LONGER = {"kernel-image": 60.0} if os.environ.get("CI") else {}
#: Arguments that come from outside as they are.
_RAW = ("text", "data", "blob", "cmdline", "value")
#: Functions that take such an argument and parse nothing.
_NO_PARSER = {
    "safemem.host.journal.warning",
    "safemem.initramfs.build.appendable",
    "safemem.initramfs.packed.number",
    "safemem.render.text.fit",
    "safemem.render.text.rooted",
}


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_nothing_but_its_own_error(name: str, record_property: Callable[[str, object], None]) -> None:
    """What is kept, and changes of it for a while."""
    seed = random.randrange(1 << 32)
    count = fuzz.search(name, max(SECONDS / len(fuzz.TARGETS), LONGER.get(name, 0)), seed)
    record_property("says", f"fuzz {name}: {count:,} inputs from seed {seed}")
    assert count > len(fuzz.corpus(name))


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_within_bounds(name: str) -> None:
    """Small inputs take little memory."""
    assert fuzz.largest(name, 1) < fuzz.BYTES


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_the_corpus_is_understood(name: str) -> None:
    """Some of what is kept gets past the first look of its parser, so that changes of it reach what is behind."""

    def accepted(data: bytes) -> bool:
        try:
            fuzz.TARGETS[name].run(data)
        except fuzz.TARGETS[name].errors:
            return False
        return True

    assert any(accepted(data) for data in fuzz.corpus(name).values())
    assert (fuzz.CORPUS / f"{name}.txt").stat().st_size < 50_000


def test_every_parser_is_a_target() -> None:
    """A public function whose first argument is raw text or bytes is covered by a target."""
    covered = {f"{call.__module__}.{call.__name__}" for target in fuzz.TARGETS.values() for call in target.covers}
    found = {
        f"{'.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts)}.{item.name}"
        for path in PACKAGE.rglob("*.py")
        for item in ast.parse(path.read_text()).body
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")
        for first in (item.args.posonlyargs + item.args.args)[:1]
        if first.arg in _RAW and first.annotation and ast.unparse(first.annotation) in ("bytes", "str", "str | None")
    }
    assert found - covered == _NO_PARSER


def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What raises another error, or takes too long, is found, with the input."""

    def careless(data: bytes) -> None:
        if b"\0" in data:
            raise KeyError("careless")

    monkeypatch.setitem(fuzz.TARGETS, "fdt", fuzz.Target(careless, (ValueError,), ()))
    with pytest.raises(fuzz.Failed, match=r"fdt: KeyError: 'careless': b'"):
        fuzz.search("fdt", 5, 1)
    monkeypatch.setattr(fuzz, "SECONDS", -1)
    with pytest.raises(fuzz.Failed, match=r"udev: 0.0 s: b'"):
        fuzz.one("udev", b"")
