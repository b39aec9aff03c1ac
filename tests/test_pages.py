# SPDX-License-Identifier: MIT
"""Gigantic pages of a guard in the real root: what status says of them, release by node or range, and watch."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from safemem.boot import files, gigantic, record
from safemem.boot import main as boot
from safemem.boot.model import Rule
from safemem.boot.ranges import Range
from safemem.cli import main
from safemem.host import doctor, history, incidents, pages, reader, standing, watch
from safemem.host.incidents import Counts
from safemem.realroot import hold as realroot
from tests import pool
from tests.fakes import AREA, BLOCK, GIB, MIB, rejecting
from tests.kit import guarded, install

PAGES: dict[int, tuple[int, ...]] = {0: (4, 5), 1: (6, 7)}
NODE0, NODE1 = Range(4 * GIB, 6 * GIB), Range(6 * GIB, 8 * GIB)
#: Blocks 80 to 87, which were hot-added.
HELD = Range(80 * BLOCK, 88 * BLOCK)


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a kernel behind the pools and the states of blocks."""
    pool.patch(monkeypatch.setattr)
    pool.patch_states(monkeypatch.setattr)


def booted(base: Path, action: str = "online-safe", own: dict[int, int] | None = None, **given: Any) -> Path:
    """Return a rejecting machine that has decided, with two gigantic pages on each of two nodes."""
    root = rejecting(base, PAGES, {0: 2, 1: 2}, own, reserved=False, **given)
    for number in range(80, 88):
        (root / f"sys/devices/system/memory/memory{number}/valid_zones").write_text("Movable\n")
    (root / "proc/sys/kernel/kexec_load_limit_panic").write_text("0\n")
    install(root, otherwise=Rule("otherwise", action), sources=("none",))
    assert boot.main(["--root", str(root)]) == 0
    return root


def run(root: Path, *words: str) -> Result:
    """Run a command on the machine."""
    return CliRunner().invoke(main, [*words, "--root", str(root)])


def status(root: Path) -> dict[str, Any]:
    """Return what `status` says, and check that every byte is in one state."""
    found: dict[str, Any] = json.loads(run(root, "status", "--format", "json").stdout)
    assert sum(found["totals"].values()) == 6 * GIB
    return found


def pools(root: Path) -> dict[int, tuple[int, int]]:
    """Return how many pages each node has, and how many its file reserves."""
    return {
        node: (pool.word(str(root), f"{pool.NODES}/node{node}/hugepages/{pool.NAME}/nr_hugepages"), pool.reserved(str(root)).get(node, 0))
        for node in (0, 1)
    }  # fmt: skip


def test_status_lists_both_guards(tmp_path: Path) -> None:
    """The crash range and the pages of each node, merged; of the latter it does not say that they were never touched."""
    root = booted(tmp_path)
    found = status(root)
    assert (found["exit_code"], found["guard"], found["let_go"]) == (4, str(AREA), [])
    assert [(item["node"], item["number"], item["guarded"]) for item in found["gigantic"]] == [
        (0, 2, True),
        (1, 2, True),
    ]
    assert found["totals"] == found["recorded_totals"] and found["totals"]["guarded"] == 4 * GIB + AREA.size
    lines = run(root, "status").stdout.splitlines()
    assert f"guarded   {AREA}  576 MiB  crash range: never used in this boot" in lines
    assert f"guard     full, proven: {AREA} is reserved; gigantic pages: 2 of 2 on node 0, 2 of 2 on node 1" in lines
    text = "never used in this boot, but for the first 4 KiB of each"
    for node, area in enumerate((NODE0, NODE1)):
        assert f"guarded   {area}  2 GiB  node {node}, 2 gigantic pages: {text}" in lines


def test_everything_is_released(tmp_path: Path) -> None:
    """The pools are as the operator asked, no reservation of ours is left, and the boot counts as open."""
    root = booted(tmp_path, own={1: 1})
    result = run(root, "release", "--reason", "guests are gone")
    assert (result.exit_code, result.stdout) == (0, "released 1 GiB of 1 GiB and 3.6 GiB of guard\n"), result.output
    assert pools(root) == {0: (0, 0), 1: (1, 0)}
    found = status(root)
    assert (found["exit_code"], found["totals"]["in_use"], found["gigantic"], found["let_go"]) == (0, 6 * GIB, [], [])
    assert found["releases"][0]["nodes"] == [0, 1]
    # What the operator does with the pool from then on is the operator's.
    (root / pool.ALL / "resv_hugepages").write_text("1\n")
    assert status(root)["totals"]["in_use"] == 6 * GIB
    before = pools(root)
    run(root, "release", "--reason", "again")
    assert pools(root) == before


def test_one_node_is_released(tmp_path: Path) -> None:
    """Its blocks and its pages; what it does not have alone stays, and so does the other node."""
    root = booted(tmp_path)
    result = run(root, "release", "--node", "1", "--reason", "x")
    assert (result.exit_code, pools(root)) == (0, {0: (2, 2), 1: (0, 0)}), result.output
    found = status(root)
    assert (found["exit_code"], found["onlined_by_others"], found["let_go"]) == (4, [], [])
    assert found["totals"] == {
        "in_use": 2 * GIB, "safe": 0, "guarded": 2 * GIB + AREA.size, "held": GIB, "quarantined": 0, "exposed": GIB - AREA.size,
    }  # fmt: skip
    assert "with the gigantic pages of node 1 at" in run(root, "status").stdout
    again = run(root, "release", "--node", "1", "--reason", "x")
    assert again.exit_code == 3 and "nothing that is held on node 1" in again.stderr

    # Node 0 has the crash range to itself, and what was hot-added.
    assert run(root, "release", "--node", "0", "--reason", "x").exit_code == 0
    assert pools(root) == {0: (0, 0), 1: (0, 0)} and (root / "sys/kernel/kexec_crash_size").read_text() == "0"
    assert status(root)["totals"]["in_use"] == 6 * GIB and status(root)["exit_code"] == 0


def test_the_operators_own_stay_reserved_until_all_are_released(tmp_path: Path) -> None:
    """A reservation is a number: of a page on one node that is free, the kernel may make one on another."""
    root = booted(tmp_path, own={0: 1, 1: 1})
    result = run(root, "release", "--node", "1", "--reason", "x")
    assert (result.exit_code, pools(root)) == (0, {0: (2, 2), 1: (1, 1)}), result.output
    assert result.stdout.startswith(
        "released 1 GiB of guard\nstill held: the pages that hugepages= asks for stay reserved there"
    )
    found = status(root)
    assert [item["node"] for item in found["gigantic"]] == [0] and found["totals"]["guarded"] == 2 * GIB + AREA.size
    assert gigantic.kept(str(root), standing.read(str(root)).now.gigantic)

    assert run(root, "release", "--node", "0", "--reason", "x").exit_code == 0
    assert pools(root) == {0: (1, 0), 1: (1, 0)}
    assert (root / pool.ALL / "resv_hugepages").read_text() == "0\n"
    assert status(root)["exit_code"] == 0


def test_a_crash_range_that_is_on_two_nodes_stays(tmp_path: Path) -> None:
    """Its end may be given back by a range; a node's name says nothing of it."""
    root = booted(tmp_path)
    for number in (0, 1):
        (root / f"sys/devices/system/node/node0/memory{number}").rename(
            root / f"sys/devices/system/node/node1/memory{number}"
        )
    result = run(root, "release", "--node", "1", "--reason", "x")
    assert result.exit_code == 0 and pools(root)[1] == (0, 0)
    assert f"still held: the crash range {AREA} stays: it is not on node 1 alone" in result.stdout
    assert status(root)["guard"] == str(AREA)


def test_a_range_that_covers_all_of_a_node(tmp_path: Path) -> None:
    root = booted(tmp_path)
    assert run(root, "release", str(NODE1), "--reason", "x").exit_code == 0
    assert pools(root) == {0: (2, 2), 1: (0, 0)} and status(root)["releases"][0]["nodes"] == [1]


@pytest.mark.parametrize("area", [Range(6 * GIB, 7 * GIB), Range(5 * GIB, 8 * GIB), Range(4 * GIB, 4 * GIB + 4096)])
def test_a_range_that_covers_a_part_is_refused(tmp_path: Path, area: Range) -> None:
    """The kernel chooses the page; the message names what can be released."""
    root = booted(tmp_path)
    result = run(root, "release", str(area), "--reason", "x")
    node, whole = (0, NODE0) if area.start < 6 * GIB else (1, NODE1)
    assert result.exit_code == 3 and pools(root) == {0: (2, 2), 1: (2, 2)}
    assert f"name --node {node}, or {whole} whole" in result.stderr
    assert not (root / standing.RELEASES).exists()


def test_both_are_not_asked_for_at_once(tmp_path: Path) -> None:
    result = run(booted(tmp_path), "release", str(HELD), "--node", "0", "--reason", "x")
    assert result.exit_code == 2 and "either ranges or --node" in result.stderr


def test_a_page_that_a_program_has_is_no_end(tmp_path: Path) -> None:
    """It cannot be given back: the release is not whole, says so, and can be run again."""
    root = booted(tmp_path, mapped=(7,))
    assert status(root)["totals"]["exposed"] == 2 * GIB - AREA.size
    result = run(root, "release", "--node", "1", "--reason", "x")
    assert result.exit_code == 64 and pools(root) == {0: (2, 2), 1: (1, 0)}
    assert "the gigantic pages of node 1 could not be given back" in result.stderr
    found = status(root)
    assert found["releases"][0]["state"] == "partly" and found["exit_code"] == 4
    with open(root / pool.FLAGS, "r+b") as file:  # the program has ended
        file.seek(7 * GIB // 4096 * 8)
        file.write((0x28000).to_bytes(8, "little"))
    pool.told(str(root))
    assert run(root, "release", "--node", "1", "--reason", "x").exit_code == 0
    assert pools(root) == {0: (2, 2), 1: (0, 0)}


def test_it_is_on_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word of a release is there before the first page goes, and an interruption is said."""
    root = booted(tmp_path)
    seen: list[tuple[str, tuple[int, ...]]] = []

    def interrupted(root: str, name: str, size: int) -> None:
        folder = history.current(root) or ""
        seen.extend((item.state, item.nodes) for item in reader.releases(f"{folder}/releases.json"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "shorten", interrupted)
        result = run(root, "release", "--node", "0", "--reason", "x")
    assert (result.exit_code, seen) == (64, [("begun", (0,))]) and "released in part" in result.stderr
    assert status(root)["releases"][0]["state"] == "partly" and pools(root) == {0: (2, 2), 1: (2, 2)}
    assert run(root, "release", "--node", "0", "--reason", "x").exit_code == 0
    assert pools(root) == {0: (0, 0), 1: (2, 2)}


@pytest.mark.parametrize("how", ["file", "mount", "lost"])
def test_a_reservation_that_somebody_took_away(tmp_path: Path, how: str) -> None:
    """Exposed, with the reason; the boot is in force only in part."""
    root = booted(tmp_path)
    if how != "lost":
        for path in (root / pool.FILES).glob("node1" if how == "file" else "node*"):
            path.unlink()
        pool.told(str(root))
    else:
        (root / pool.ALL / "resv_hugepages").write_text("3\n")
    found = status(root)
    assert (found["exit_code"], found["totals"]["exposed"]) == (64, 5 * GIB - AREA.size)
    assert found["let_go"] == [str(Range(4 * GIB, 8 * GIB))]
    lines = run(root, "status").stdout.splitlines()
    assert f"exposed   {NODE1}  2 GiB  node 1, 2 gigantic pages: not reserved, so any program can map it" in lines
    assert (
        "changed   0x100000000-0x1ffffffff  4 GiB: gigantic pages that guarded it are in programs' reach, or gone"
        in lines
    )


def test_after_online_all_the_pool_is_the_operators(tmp_path: Path) -> None:
    """Whatever is in it then, and whoever reserves it: nothing is guarded, and a release takes nothing away."""
    root = booted(tmp_path, "online-all", own={1: 1})
    assert pools(root) == {0: (0, 0), 1: (1, 0)}
    (root / pool.ALL / "resv_hugepages").write_text("1\n")
    found = status(root)
    assert (found["exit_code"], found["gigantic"], found["totals"]["in_use"]) == (0, [], 6 * GIB)
    run(root, "release", "--reason", "x")
    assert pools(root) == {0: (0, 0), 1: (1, 0)}


def test_after_online_all_nothing_is_kept_from_programs(tmp_path: Path) -> None:
    """Also where a program held on to a page, so that its node could not be brought to the operator's number."""
    root = booted(tmp_path, "online-all", own={0: 1, 1: 1}, mapped=(4, 5))
    assert pools(root) == {0: (2, 0), 1: (1, 0)}
    assert looks(root).problems == () and pools(root) == {0: (2, 0), 1: (1, 0)}
    assert not [item for item in doctor.examine(str(root)) if item.code in ("pages-not-reserved", "page-mapped")]


def test_a_release_after_a_dry_run(tmp_path: Path) -> None:
    """What nobody has given back yet a release gives back, whatever was decided."""
    root = rejecting(tmp_path, PAGES, {0: 2, 1: 2}, {1: 1}, reserved=False)
    line = (root / "proc/cmdline").read_text().strip()
    (root / "proc/cmdline").write_text(f"{line} safemem.dry_run\n")
    install(root, otherwise=Rule("otherwise", "online-all"), sources=("none",), allow_cmdline_override=True)
    assert boot.main(["--root", str(root)]) == 0
    assert pools(root) == {0: (2, 0), 1: (2, 0)}
    run(root, "release", "--reason", "x")
    assert pools(root) == {0: (0, 0), 1: (1, 0)}


def test_a_record_of_before_reads(tmp_path: Path) -> None:
    root = booted(tmp_path)
    (root / standing.RELEASES).write_text('[{"time": 1, "reason": "x", "ranges": ["0x0-0xfff"], "state": "done"}]')
    assert standing.read(str(root)).releases[0].nodes == ()
    assert (root / record.RECORD).exists() and MIB


# ---- watch


def looks(root: Path, seen: Counts | None = None) -> watch.Batch:
    """Return what one look leads to, with the hugetlbfs mounted."""
    if not (root / "proc/mounts").exists():
        (root / "proc/mounts").write_text(f"hugetlbfs {(root / pool.FILES).resolve()} hugetlbfs rw 0 0\n")
    realroot.main(["--root", str(root)])
    return watch.look(str(root), Counts() if seen is None else seen)


def test_a_reservation_that_is_gone_is_noticed_and_made_anew(tmp_path: Path) -> None:
    """It counts once, names who has mapped huge pages, and what programs could reach meanwhile is not called untouched."""
    root = booted(tmp_path)
    found = standing.read(str(root))
    before = pages.signs(str(root), found)
    assert before == ("4", "4", "4", "0") and looks(root).incident == ()
    (root / pool.FILES / "node1").unlink()
    pool.told(str(root))
    for path, text in (
        ("proc/7/status", "Name:\tgreedy\nHugetlbPages:\t 1048576 kB\n"), ("proc/8/status", "Name:\tsmall\nHugetlbPages:\t 2048 kB\n"),
        ("proc/9/comm", "tuned\n"),
    ):  # fmt: skip
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(text)
    assert pages.signs(str(root), found) != before

    batch = looks(root)
    assert (batch.incident, batch.pages, batch.reverted) == ((Range(4 * GIB, 8 * GIB),), True, 0)
    text = "gigantic pages that guard 4 GiB were not reserved, so any program could map them: they are reserved again"
    assert text in batch.problems
    assert [item.who for item in batch.counts.last[-1].suspects] == [
        "greedy, which has mapped 1 GiB of huge pages", "tuned",
    ]  # fmt: skip
    assert pools(root) == {0: (2, 2), 1: (2, 2)}
    again = looks(root, batch.counts)
    assert (again.incident, again.counts, again.problems) == ((), batch.counts, ())

    now = status(root)
    assert (now["exit_code"], now["let_go"]) == (4, [])
    assert (now["totals"]["guarded"], now["totals"]["quarantined"]) == (AREA.size, 4 * GIB)
    said = "reserved again, after any program could map it: what was in it may be lost"
    assert f"offline   {NODE1}  2 GiB  node 1, 2 gigantic pages: {said}" in run(root, "status").stdout.splitlines()


def test_a_pool_that_somebody_makes_smaller_is_set_again(tmp_path: Path) -> None:
    """The pages stay, as they are reserved; but they would go with their reservation."""
    root = booted(tmp_path)
    found = standing.read(str(root))
    before = pages.signs(str(root), found)
    name = f"{pool.NODES}/node1/hugepages/{pool.NAME}/nr_hugepages"
    files.put(str(root), name, "0")
    assert pages.signs(str(root), found) != before and pools(root)[1] == (2, 2)
    batch = looks(root)
    assert batch.incident == ()
    text = "somebody has set it lower than the pages that are reserved; it is 2 again"
    assert [problem for problem in batch.problems if text in problem] == [f"{name}: {text}"]
    assert pool.word(str(root), name.replace("nr_", "surplus_")) == 0 and looks(root).problems == ()


def test_what_is_unmounted_is_mounted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = booted(tmp_path)
    (root / "proc/mounts").write_text("proc /proc proc rw 0 0\n")
    for path in (root / pool.FILES).iterdir():
        path.unlink()
    pool.told(str(root))
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(realroot, "run", lambda *words: told.append(words) or "")  # type: ignore[func-returns-value]
    problems = looks(root).problems
    assert told[-1] == (
        realroot.MOUNT, "-t", "hugetlbfs", "-o", "pagesize=1048576K,mode=0700", "hugetlbfs", str(root / pool.FILES),
    )  # fmt: skip
    assert f"{pool.FILES} was not mounted any more" in problems and pools(root) == {0: (2, 2), 1: (2, 2)}


def test_a_page_that_somebody_has_mapped_is_no_longer_guarded(tmp_path: Path) -> None:
    """The rest is reserved again; what is gone stays an incident, which is counted once."""
    root = booted(tmp_path)
    (root / pool.FILES / "node1").unlink()
    with open(root / pool.FLAGS, "r+b") as file:
        file.seek(6 * GIB // 4096 * 8)
        file.write((0x28800).to_bytes(8, "little"))
    pool.told(str(root))
    batch = looks(root)
    assert batch.incident == (Range(4 * GIB, 8 * GIB),) and pools(root) == {0: (2, 2), 1: (2, 1)}
    assert batch.counts.onlined_by_others == (Range(6 * GIB, 7 * GIB),)
    assert looks(root, batch.counts).incident == ()
    found = status(root)
    assert (found["exit_code"], found["let_go"]) == (64, [str(Range(6 * GIB, 7 * GIB))])
    assert found["totals"]["exposed"] == 2 * GIB - AREA.size
    assert "exposed   1 gigantic page of node 1: mapped by a program" in run(root, "status").stdout


def test_a_release_is_no_incident(tmp_path: Path) -> None:
    """Neither one that is done, nor one that was cut off, and nothing of it is undone."""
    root = booted(tmp_path)
    run(root, "release", "--node", "1", "--reason", "x")
    assert looks(root).incident == () and pools(root) == {0: (2, 2), 1: (0, 0)}
    name = f"{pool.NODES}/node0/hugepages/{pool.NAME}/nr_hugepages"
    path = root / standing.RELEASES
    entry = json.loads(path.read_text())[0]
    path.write_text(json.dumps([entry, {**entry, "ranges": [str(NODE0)], "nodes": [0], "state": "partly"}]))
    files.put(str(root), name, "0")
    files.shorten(str(root), f"{pool.FILES}/node0", GIB)
    batch = looks(root)
    assert (batch.incident, pools(root)) == ((), {0: (1, 1), 1: (0, 0)}) and batch.problems == ()


def test_watch_counts_before_it_mends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cuts it off in between does not hide that programs could reach the pages."""
    root = booted(tmp_path)
    (root / pool.FILES / "node1").unlink()
    pool.told(str(root))

    def cut_off(*_: object) -> list[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pages, "keep", cut_off)
        with pytest.raises(KeyboardInterrupt):
            looks(root)
    assert reader.counts(str(root / incidents.COUNTS)).touched == (Range(4 * GIB, 8 * GIB),)


def test_the_metrics_count_them(tmp_path: Path) -> None:
    root = booted(tmp_path)
    (root / pool.FILES / "node1").unlink()
    pool.told(str(root))
    looks_at = tmp_path / "m"
    assert run(root, "metrics", "-o", str(looks_at)).exit_code == 64
    lines = looks_at.read_text().splitlines()
    assert f"safemem_onlined_by_others_bytes {4 * GIB}" in lines
    assert f'safemem_memory_bytes{{state="guarded"}} {AREA.size}' in lines


def test_a_kernel_without_nodes_has_one(tmp_path: Path) -> None:
    """All that is held is on node 0, the crash range too."""
    root = guarded(tmp_path / "m", "online-safe")
    shutil.rmtree(root / "sys/devices/system/node")
    for number in range(32, 40):
        (root / f"sys/devices/system/memory/memory{number}/valid_zones").write_text("Movable\n")
    assert boot.main(["--root", str(root)]) == 0
    refused = run(root, "release", "--node", "1", "--reason", "x")
    assert refused.exit_code == 3 and "nothing that is held on node 1 can be released so" in refused.stderr
    result = run(root, "release", "--node", "0", "--reason", "x")
    assert (result.exit_code, result.stdout) == (0, "released 1 GiB of 1 GiB and 576 MiB of guard\n"), result.output


@pytest.mark.parametrize("name", ["put", "shorten", "remove"])
@pytest.mark.parametrize("call", range(3))
def test_a_release_of_which_a_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """It is not whole and says so, nothing that was not asked for is in programs' reach, and a second one finishes."""
    root = booted(tmp_path, own={1: 1})
    real, made = getattr(files, name), 0

    def failing(where: str, path: str, *more: object, **options: bool) -> None:
        nonlocal made
        if "hugepages" in path or "/pages/" in path:
            made += 1
            if made == call + 1:
                raise OSError(errno.EIO, "Input/output error")
        real(where, path, *more, **options)

    with monkeypatch.context() as patched:
        patched.setattr(files, name, failing)
        result = run(root, "release", "--node", "1", "--reason", "x")
    failed = made > call
    assert result.exit_code == (64 if failed and name != "remove" else 0), (made, result.output)
    assert gigantic.kept(str(root), standing.read(str(root)).now.gigantic)
    found = status(root)
    assert (found["let_go"], pools(root)[0]) == ([], (2, 2))
    assert found["releases"][0]["state"] == ("partly" if result.exit_code else "done")

    with monkeypatch.context() as patched:
        made = 0
        patched.setattr(files, name, failing)
        result = run(root, "release", "--reason", "x")
    # An empty file reserves nothing.
    assert result.exit_code == (64 if (made > call if name != "remove" else call == 1) else 0), (made, result.output)
    assert run(root, "release", "--reason", "x").exit_code == 0
    assert pools(root) == {0: (0, 0), 1: (1, 0)} and status(root)["exit_code"] == 0
