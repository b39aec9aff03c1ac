# SPDX-License-Identifier: MIT
"""Ranges cut, joined and compared, against the same done byte by byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from safemem.boot.ranges import Range, common, cut, joined, merge_ranges, size_text, spans, total, whole_blocks, without

RANGE = st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda pair: Range(pair[0], pair[0] + pair[1]))
RANGES = st.lists(RANGE, max_size=6).map(lambda found: merge_ranges(tuple(found)))


def places(ranges: tuple[Range, ...]) -> set[int]:
    """Return every byte of the ranges."""
    return {place for area in ranges for place in range(area.start, area.end)}


@given(RANGES, RANGES)
def test_what_two_have_in_common_and_not(one: tuple[Range, ...], other: tuple[Range, ...]) -> None:
    """Every byte is in the common part or in what is left of the first, as sets of bytes say."""
    assert places(common(one, other)) == places(one) & places(other)
    assert places(without(one, other)) == places(one) - places(other)
    assert total(common(one, other)) + total(without(one, other)) == total(one)


@given(RANGE, RANGES)
def test_cut_covers_all_and_names_the_area(whole: Range, areas: tuple[Range, ...]) -> None:
    """The pieces follow one another without a gap, and each lies in the area that it names or in none."""
    pieces = cut(whole.start, whole.end, areas)

    assert [place for start, end, _ in pieces for place in range(start, end)] == list(range(whole.start, whole.end))
    for start, end, index in pieces:
        inside = {number for number, area in enumerate(areas) if places((area,)) & set(range(start, end))}
        assert inside == ({index} if index >= 0 else set())
        assert index < 0 or (areas[index].start <= start and end <= areas[index].end)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab")), max_size=12))
def test_joined_pieces_are_as_few_as_can_be(drawn: list[tuple[int, str]]) -> None:
    """Neighbours with one key become one piece, nothing is lost, and a gap stays one."""
    at, pieces = 0, []
    for gap, key in drawn:
        pieces.append((at + gap, at + gap + 1, key))
        at += gap + 1
    found = joined(pieces)

    assert {(place, key) for start, end, key in found for place in range(start, end)} == {
        (start, key) for start, _, key in pieces
    }
    assert not [1 for one, two in zip(found, found[1:], strict=False) if one[1] == two[0] and one[2] == two[2]]


@given(RANGE, st.integers(1, 9))
def test_a_block_counts_only_if_all_of_it_is_inside(area: Range, size: int) -> None:
    """One byte that is missing at either end leaves the block out."""
    blocks = whole_blocks(area, size)

    assert set(range(blocks.start, blocks.end)) == {
        number for number in range(60) if area.start <= number * size and (number + 1) * size <= area.end
    }


def test_blocks_with_one_reason_are_one_span() -> None:
    """What failed in a row for the same reason is said once, with numbers, addresses and size."""
    assert spans({4: "busy", 5: "busy", 6: "gone", 9: "busy"}, 1 << 20) == [
        ("blocks 4-5 (0x400000-0x5fffff, 2 MiB)", "busy"),
        ("block 6 (0x600000-0x6fffff, 1 MiB)", "gone"),
        ("block 9 (0x900000-0x9fffff, 1 MiB)", "busy"),
    ]


def test_what_is_no_size_has_a_short_text() -> None:
    """A number beyond any address is said as such: what it was read from may have thousands of digits."""
    assert size_text((1 << 64) - 1) == "16777216.0 TiB"
    assert size_text(1 << 64) == size_text(16**5000) == "16777216 TiB or more"
