# SPDX-License-Identifier: MIT
"""Which kernels can hand over to which: names, the table, the document and the picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import click
import pytest
from click.testing import CliRunner

from safemem.boot.model import Fact
from safemem.cli import main
from safemem.outgoing import image
from safemem.outgoing.kernel import Kernel, Speaks
from safemem.outgoing.pairs import pairs
from safemem.render import pairs as render

YES, NO = Fact("yes", "a test"), Fact("no", "a test")


def kernel(path: str, tree: str = "kho-v4", luo: str = "luo-v5", handlers: str = "memfd-v2", **more: Any) -> Kernel:
    """Return a kernel that speaks these."""
    speaks = Speaks(frozenset({tree}), frozenset({luo}), frozenset({handlers}))
    found = Kernel(path, "bzImage", arch="x86_64", release="7.3.4", page_size=4096, kho=YES, luo=YES, speaks=speaks)
    return found._replace(**more)


A, OLD = kernel("/boot/a"), kernel("/boot/old", tree="kho-v3")
UNTOLD = kernel("/boot/untold", kho=Fact("unknown", "a test", "nothing tells"))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/boot/a", "/boot/b"], ["a", "b"]),
        (["/x/boot/vmlinuz", "/y/boot/vmlinuz"], ["x/boot/vmlinuz", "y/boot/vmlinuz"]),
        (["a", "x/a"], ["a", "x/a"]),
        (["/boot/a", "/boot/a"], ["a", "a (2)"]),
    ],
)
def test_names_tell_kernels_apart(paths: list[str], names: list[str]) -> None:
    """A kernel is called by as much of the end of its path as no other has."""
    assert list(pairs(tuple(kernel(path) for path in paths)).kernels) == names


def test_profiles_are_kernels() -> None:
    """Each profile of a unified image is one of them."""
    found = pairs((A._replace(profile="main"), A._replace(profile="debug")))

    assert list(found.kernels) == ["a@main", "a@debug"]


@pytest.mark.parametrize(
    ("first", "second", "verdict", "word"),
    [
        (A, A, "compatible", "yes"),
        (A, OLD, "incompatible", "rejected"),
        (A, kernel("/boot/b", luo="luo-v4"), "incompatible", "panics"),
        (A, kernel("/boot/b", handlers="memfd-v3"), "incompatible", "in part"),
        (A, kernel("/boot/b", kho=NO), "incompatible", "no KHO"),
        (kernel("/boot/b", kho=NO), A, "incompatible", "sends none"),
        (A, kernel("/boot/b", arch="aarch64"), "incompatible", "other arch"),
        (A, kernel("/boot/b", page_size=16384), "incompatible", "page size"),
        (A, UNTOLD, "cannot tell", "unknown"),
    ],
)
def test_verdict_and_word(first: Kernel, second: Kernel, verdict: str, word: str) -> None:
    """Compatible takes that all of it arrives; a cell says in a word what comes instead, and the reason is below."""
    found = pairs((first, second))
    text = render.pairs_text(found)
    row = next(line for line in text.splitlines() if line.startswith("1 "))

    assert found.pairs[1].verdict == verdict
    assert word in row
    assert f"{word}: " in text
    told = verdict == "compatible" or word in ("other arch", "page size")
    assert told or found.pairs[1].prediction.why.split(":")[0] in " ".join(text.split())


def test_many_kernels_get_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table is wider than the terminal, and no name is broken."""
    monkeypatch.setenv("COLUMNS", "60")
    found = pairs((OLD, *(kernel(f"/boot/a-kernel-{n}") for n in range(14))))
    lines = click.unstyle(render.pairs_text(found)).splitlines()

    assert lines[:3] == [" 1 old", "  yes to 1", f"  rejected to {', '.join(map(str, range(2, 16)))}"]
    assert lines[3] == " 2 a-kernel-0" and max(map(len, lines)) <= 60


def test_the_picture_is_well_formed() -> None:
    """It has a title, a description that says each pair, a box a pair, and a hostile name stays text."""
    found = pairs((A, OLD, kernel("/boot/<script>&\x1b[2J")))
    svg = ElementTree.fromstring(render.pairs_svg(found))
    space = "{http://www.w3.org/2000/svg}"

    assert svg.findtext(f"{space}title") and "a to old: rejected." in str(svg.findtext(f"{space}desc"))
    assert len(svg.findall(f"{space}g/{space}rect")) == 9
    assert not list(svg.iter(f"{space}script")) and "\x1b" not in render.pairs_svg(found)
    assert "http" not in render.pairs_svg(found).replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(("kernels", "code"), [([A, A], 0), ([A, OLD], 5), ([A, UNTOLD], 6), ([OLD, A, UNTOLD], 5)])
@pytest.mark.parametrize("form", ["text", "json", "svg"])
def test_the_command(monkeypatch: pytest.MonkeyPatch, kernels: list[Kernel], code: int, form: str) -> None:
    """It ends with the worst pair's code, in each format."""
    monkeypatch.setattr(image, "read", lambda path: (kernels[int(path)],))
    result = CliRunner().invoke(main, ["matrix", *map(str, range(len(kernels))), "--format", form])

    assert result.exit_code == code
    if form == "json":
        document = json.loads(result.stdout)
        assert (document["kind"], document["exit_code"]) == ("kernel-matrix", code)
        assert len(document["pairs"]) == len(kernels) ** 2


@pytest.mark.parametrize("form", ["text", "svg"])
def test_what_is_no_kernel(form: str) -> None:
    """All of them are told at once, each with its name; a picture is not written, nor anything in its place."""
    result = CliRunner().invoke(main, ["matrix", "/etc/passwd", "/nonexistent", "--format", form])

    assert (result.exit_code, result.stdout) == (3, "")
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == [" /etc/passwd", " /nonexistent"]
