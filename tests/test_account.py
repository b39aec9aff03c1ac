# SPDX-License-Identifier: MIT
"""The account of memory: each byte is one thing, and it is the right one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot import account, engine, record
from safemem.boot import main as boot
from safemem.boot.model import ACTIONS, Blocks, Override, Rule
from safemem.boot.ranges import Range, merge_ranges
from safemem.cli import main
from tests.fakes import BLOCK, make_root
from tests.kit import block_runs, install, policy, snapshot

SIZE = 8
spans = st.tuples(st.integers(0, 40 * SIZE), st.integers(1, 10 * SIZE)).map(lambda pair: Range(pair[0], sum(pair)))


def state_of(runs: tuple[Blocks, ...], number: int) -> str:
    """Return the state of one block, or `absent`."""
    return next((run.state for run in runs if run.first <= number <= run.last), "absent")


@given(
    before=block_runs(), after=block_runs(), region=st.lists(spans, max_size=4), guard=st.none() | spans,
    refused=st.dictionaries(st.integers(0, 40), st.sampled_from(["unmovable", "hole"])),
    taken=st.dictionaries(st.integers(0, 40), st.integers(0, 3)), action=st.sampled_from(ACTIONS[:2]),
)  # fmt: skip
def test_each_byte_is_one_thing(
    before: tuple[Blocks, ...],
    after: tuple[Blocks, ...],
    region: list[Range],
    guard: Range | None,
    refused: dict[int, str],
    taken: dict[int, int],
    action: str,
) -> None:
    """The shares cover every byte of every block once, in order, and each has the kind that its byte has by itself."""
    state = snapshot(before, size=SIZE)
    decision = engine.decide(policy(otherwise=action, sources=("none",)), state)._replace(
        region=merge_ranges(tuple(region))
    )
    shares = account.account(decision, state, after, (account.Guarded(guard),) if guard else (), refused, taken)
    covered = [(byte, share) for share in shares for byte in range(share.start, share.end)]

    assert [byte for byte, _ in covered] == [
        byte for run in after for byte in range(run.first * SIZE, (run.last + 1) * SIZE)
    ]
    for byte, share in covered:
        number = byte // SIZE
        now, was = state_of(after, number), state_of(before, number)
        if now == "offline":
            untouched = was in ("offline", "absent") and number not in taken
            lost = any(area.start <= byte < area.end for area in region)
            assert share.kind == ("held" if untouched else "quarantined")
            assert share.why == ("safe, but out of use with its block" if lost else "")
            assert share.seconds == (-1 if untouched else taken.get(number, -1))
        elif now != "online":
            assert (share.kind, share.why) == ("exposed", refused.get(number, f"its state is {now}"))
        elif guard and guard.start <= byte < guard.end:
            assert (share.kind, share.why) == ("guarded", "")
        elif action == "online-all":
            assert (share.kind, share.why) == ("in_use", "")
        elif any(area.start <= byte < area.end for area in region):
            assert share.kind == "safe"
        else:
            assert share.kind == "exposed" and share.why
            assert number not in refused or share.why == refused[number]
    assert account.totals(shares) == {kind: sum(share.kind == kind for _, share in covered) for kind in account.KINDS}


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        ({"guarded": 3 << 30, "exposed": 1 << 30}, "3 GiB guarded (75.0 %), 1 GiB exposed (25.0 %)"),
        ({"held": (1 << 40) - 1, "exposed": 1}, "1024.0 GiB held (99.9 %), 1 B exposed (< 0.1 %)"),
        ({"held": 4096}, "4 KiB held (100 %)"),
        ({"held": 1 << 30, "in_use": 3 << 30}, "3 GiB in use (75.0 %), 1 GiB held (25.0 %)"),
    ],
)
def test_totals_on_one_line(sums: dict[str, int], expected: str) -> None:
    """What is nearly all is not said to be all, and what is little is not said to be nothing."""
    assert account.totals_text({**dict.fromkeys(account.KINDS, 0), **sums}) == (
        f"{expected}: only guarded and held memory was never in use in this boot"
    )


def test_memory_in_ordinary_use_is_no_matter_of_touching() -> None:
    """A clean boot says how much memory is in use, and that is all."""
    assert account.totals_text({**dict.fromkeys(account.KINDS, 0), "in_use": 4 << 30}) == "4 GiB in use (100 %)"


def test_what_online_all_excepts_and_others_onlined_is_exposed() -> None:
    """An exception is held also where everything else is in ordinary use; what is left to kdump is kdump's."""
    before = snapshot((Blocks(0, 3, "online"), Blocks(8, 9, "offline")), size=SIZE)
    exception = Override(range=Range(8 * SIZE, 9 * SIZE), hold=True)
    given = policy(otherwise="online-all", memory=(exception,), keep_crashkernel="4KiB")
    after = (Blocks(0, 3, "online"), Blocks(8, 9, "online"))
    shares = account.account(engine.decide(given, before), before, after, (account.Guarded(Range(0, SIZE)),), {}, {})
    assert shares == (
        account.Share("in_use", 0, SIZE, "left to kdump"),
        account.Share("in_use", SIZE, 4 * SIZE),
        account.Share("exposed", 8 * SIZE, 9 * SIZE, "was held, and somebody else has onlined it"),
        account.Share("in_use", 9 * SIZE, 10 * SIZE),
    )


def test_the_record_and_status_carry_the_account(tmp_path: Path) -> None:
    """A boot with a guard: what is held, guarded and exposed is in the record, in status and on the console."""
    root = make_root(tmp_path, offered=True, crash="08000000-17ffffff", cmdline="safemem.guard=0x8000000-0x17ffffff")
    install(root, otherwise=Rule("otherwise", "online-safe"))
    assert boot.main(["--root", str(root)]) == 0

    document = json.loads((root / record.RECORD).read_text())
    why = "in use since the start of this boot"
    assert document["account"] == [
        {"kind": "exposed", "range": "0x0-0x7ffffff", "bytes": BLOCK, "why": why, "seconds_in_use": None},
        {"kind": "guarded", "range": "0x8000000-0x17ffffff", "bytes": 2 * BLOCK, "why": None, "seconds_in_use": None},
        {"kind": "exposed", "range": "0x18000000-0x3fffffff", "bytes": 5 * BLOCK, "why": why, "seconds_in_use": None},
        {"kind": "held", "range": "0x100000000-0x13fffffff", "bytes": 8 * BLOCK, "why": None, "seconds_in_use": None},
    ]
    assert document["totals"] == {
        "in_use": 0, "safe": 0, "guarded": 2 * BLOCK, "held": 8 * BLOCK, "quarantined": 0, "exposed": 6 * BLOCK
    }  # fmt: skip
    says = "256 MiB guarded (12.5 %), 1 GiB held (50.0 %), 768 MiB exposed (37.5 %): only guarded and held memory"
    assert says in (root / "dev/kmsg").read_text()
    shown = CliRunner().invoke(main, ["status", "--root", str(root)])
    assert shown.exit_code == 4 and f"memory    {says}" in shown.stdout
    asked = CliRunner().invoke(main, ["status", "--root", str(root), "--format", "json"])
    assert json.loads(asked.stdout)["totals"] == document["totals"]


def test_an_exception_for_another_node_exposes_nothing() -> None:
    """Blocks are looked at again without their node: what is known of them from before counts."""
    before = snapshot((Blocks(0, 1, "online", 1), Blocks(2, 3, "offline", 0)), handover="none")
    decision = engine.decide(policy(otherwise="online-all", memory=(Override(node=1, hold=True),)), before)
    after = (Blocks(0, 3, "online"),)

    assert {share.kind for share in account.account(decision, before, after, (), {}, {})} == {"in_use"}
