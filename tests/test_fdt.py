# SPDX-License-Identifier: MIT
"""The device tree reader: right on good blobs, total on all others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot.fdt import FdtError, parse
from tests.fakes import fdt

GOOD = fdt(("LUO", "kexec-metadata"))


def test_parse() -> None:
    """Names, properties and children come out as they went in."""
    root = parse(GOOD)

    assert root.text("compatible") == "kho-v4"
    assert [child.name for child in root.children] == ["LUO", "kexec-metadata"]


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "device tree blob is 0 bytes, shorter than its 40-byte header"),
        (bytes(40), "device tree blob starts with 0x00000000, not 0xd00dfeed"),
        (GOOD[:-1], f"device tree blob is cut off: {len(GOOD) - 1} of {len(GOOD)} bytes"),
    ],
)
def test_errors(blob: bytes, message: str) -> None:
    """What is wrong with a blob is said in one sentence."""
    with pytest.raises(FdtError) as caught:
        parse(blob)

    assert message == str(caught.value)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_every_flipped_byte(position: int, value: int) -> None:
    """Any one changed byte gives a tree or an FdtError, never anything else."""
    blob = GOOD[:position] + bytes([value]) + GOOD[position + 1 :]
    try:
        parse(blob)
    except FdtError as error:
        assert str(error)


@given(st.binary(max_size=300), st.booleans())
def test_total(data: bytes, with_header: bool) -> None:
    """Any bytes give a tree or an FdtError."""
    try:
        parse(GOOD[:40] + data if with_header else data)
    except FdtError as error:
        assert str(error)


def test_deep_nesting() -> None:
    """A tree nested too deeply is refused before it exhausts the stack."""
    deep = GOOD[:56] + b"\0\0\0\1\0\0\0\0" * 500
    sized = deep[:36] + (4000).to_bytes(4, "big") + deep[40:]
    sized = sized[:4] + len(sized).to_bytes(4, "big") + sized[8:32] + bytes(4) + sized[36:]
    with pytest.raises(FdtError, match="nested more than 32 deep"):
        parse(sized)
