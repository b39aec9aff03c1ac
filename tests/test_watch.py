# SPDX-License-Identifier: MIT
"""One look of `watch` on fake roots: what is applied, noticed, taken back and counted; tests/vm has the daemon."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from safemem.boot import apply, compiled, files, paths, record
from safemem.boot import main as boot
from safemem.boot.model import Blocks, Override, Policy, Rule, Term
from safemem.boot.ranges import Range
from safemem.cli import main
from safemem.host import doctor, incidents, metrics, reader, standing, suspects, watch
from safemem.host.incidents import Counts
from safemem.realroot import hold as realroot
from safemem.realroot import storage, udevrules
from tests import kit
from tests.fakes import make_root
from tests.kit import install, when

MEMORY = "sys/devices/system/memory"
BLOCK = 1 << 27


def decided(
    base: Path,
    *,
    action: str = "online-safe",
    if_onlined: str = "report",
    sources: tuple[Range, ...] = (Range(40 * BLOCK, 42 * BLOCK),),
    memory: tuple[Override, ...] = (),
    **options: Any,
) -> tuple[Path, Policy]:
    """Return a machine on which a lost handover was decided, and the policy; blocks 40 and 41 are safe."""
    root = make_root(base, offered=True, **options)
    # Boot memory stays in use, as on a machine that needs it.
    (root / "proc/meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable: 4000 kB\n")
    rule = Rule("otherwise", action, if_onlined=if_onlined, boot_memory="offline")
    install(root, otherwise=rule, sources=sources, memory=memory, allow_cmdline_override=True)
    boot.main(["--root", str(root)])
    (root / "proc/meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n")
    for number in range(8):  # as they are on a real machine: what refused is online
        block(root, number, "online")
    return root, compiled.load((root / boot.POLICY).read_bytes(), "policy")


def block(root: Path, number: int, state: str) -> None:
    """Give a block this state, and make it if it is not there."""
    (root / f"{MEMORY}/memory{number}").mkdir(exist_ok=True)
    (root / f"{MEMORY}/memory{number}/state").write_text(f"{state}\n")


def states(root: Path, first: int, last: int) -> list[str]:
    """Return what was written last to blocks."""
    return [(root / f"{MEMORY}/memory{number}/state").read_text().strip() for number in range(first, last + 1)]


def counts(root: Path) -> Counts:
    """Return what has been counted."""
    return reader.counts(str(root / incidents.COUNTS))


def span(first: int, last: int) -> Range:
    """Return the range of blocks."""
    return Range(first * BLOCK, (last + 1) * BLOCK)


def test_the_same_engine_for_what_arrives(tmp_path: Path) -> None:
    """A block inside the safe region comes online, its neighbour does not, and nothing else is touched."""
    root, _ = decided(tmp_path)
    block(root, 41, "offline")
    block(root, 42, "offline")
    batch = watch.look(str(root), Counts())

    assert states(root, 41, 42) == ["online_movable", "offline"]
    assert states(root, 0, 7) == ["online"] * 8
    assert (batch.incident, batch.counts.incidents) == ((), 0)


@pytest.mark.parametrize("if_onlined", ["report", "offline"])
def test_what_somebody_onlined(tmp_path: Path, if_onlined: str) -> None:
    """Held since the decision or arrived later: noticed, counted once, and taken off only where the policy says so."""
    root, _ = decided(tmp_path, if_onlined=if_onlined)
    block(root, 35, "online")
    block(root, 50, "online")
    fresh = (span(35, 35), span(50, 50))
    batch = watch.look(str(root), Counts())

    assert batch.incident == fresh
    assert (batch.counts.incidents, batch.counts.onlined) == (1, 2 * BLOCK)
    assert states(root, 35, 35) + states(root, 50, 50) == [if_onlined.replace("report", "online")] * 2
    # Boot memory was online before the decision: taken off at boot or not at all.
    assert states(root, 0, 7) == ["online"] * 8
    assert batch.counts.reverted == batch.counts.last[0].taken_offline == (2 * BLOCK if if_onlined == "offline" else 0)
    assert batch.counts.onlined_by_others == (() if if_onlined == "offline" else fresh)
    kept = counts(root)
    assert kept == batch.counts
    # A restart counts nothing twice, and a second time is one more.
    again = watch.look(str(root), kept)
    assert (again.incident, again.counts) == ((), kept)
    block(root, 35, "offline")
    gone = watch.look(str(root), kept).counts
    block(root, 35, "online")
    assert watch.look(str(root), gone).counts.incidents == 2


def test_only_what_is_new_is_counted(tmp_path: Path) -> None:
    """A block beside one that is counted already is one block more, not two."""
    root, _ = decided(tmp_path)
    block(root, 35, "online")
    seen = watch.look(str(root), Counts()).counts
    block(root, 36, "online")
    batch = watch.look(str(root), seen)

    assert batch.incident == (span(36, 36),)
    assert (batch.counts.incidents, batch.counts.onlined) == (2, 2 * BLOCK)


def test_counted_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is killed while it takes memory off again does not hide that it was online."""
    root, _ = decided(tmp_path, if_onlined="offline")
    block(root, 35, "online")
    monkeypatch.setattr(apply, "carry_out", lambda *_: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        watch.look(str(root), Counts())
    kept = counts(root)

    assert (kept.incidents, kept.reverted, kept.onlined_by_others) == (1, 0, (span(35, 35),))
    monkeypatch.undo()
    after = watch.look(str(root), kept).counts
    assert (after.incidents, after.onlined, after.reverted, after.onlined_by_others) == (1, BLOCK, BLOCK, ())


def test_what_comes_online_in_the_meantime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that somebody onlines while another one is taken off is an incident of its own, in the next look."""
    root, _ = decided(tmp_path, if_onlined="offline")
    block(root, 35, "online")
    carry_out = apply.carry_out

    def busy(*values: Any) -> apply.Result:
        result = carry_out(*values)
        block(root, 36, "online")
        return result

    monkeypatch.setattr(apply, "carry_out", busy)
    seen = watch.look(str(root), Counts()).counts
    monkeypatch.undo()
    assert (seen.incidents, seen.onlined_by_others) == (1, ())
    batch = watch.look(str(root), seen)
    assert (batch.incident, batch.counts.incidents, batch.counts.reverted) == ((span(36, 36),), 2, 2 * BLOCK)


def test_counts_that_cannot_be_kept(tmp_path: Path) -> None:
    """It is said, and the decision is applied all the same."""
    root, _ = decided(tmp_path, if_onlined="offline")
    block(root, 35, "online")
    (root / incidents.COUNTS).mkdir()
    batch = watch.look(str(root), Counts())

    assert states(root, 35, 35) == ["offline"]
    assert "what was counted is lost at a restart" in batch.problems[0]


@pytest.mark.parametrize(
    ("memory", "released", "free"),
    [
        ((), "", {40, 41}),
        ((Override(range=span(41, 41), hold=True),), "", {40}),
        ((Override(range=Range(40 * BLOCK + 1, 40 * BLOCK + 2), hold=True),), "", {41}),
        ((Override(driver="dimm", hold=True),), "", set()),
        ((), f"{span(34, 36)} {Range(37 * BLOCK + 1, 39 * BLOCK)} {Range(42 * BLOCK, 43 * BLOCK - 1)}", {34, 35, 36, 38, 40, 41}),
        ((), f"{Range(34 * BLOCK, 34 * BLOCK + 4096)} {Range(34 * BLOCK + 4096, 36 * BLOCK)}", {34, 35, 40, 41}),
        ((), f"{Range(0, 1 << 64)}", set(range(32, 44))),
    ],
)  # fmt: skip
def test_onlined_by_others(tmp_path: Path, memory: tuple[Override, ...], released: str, free: set[int]) -> None:
    """Of what was held or arrived and is online now, all but the safe region and what was released; exceptions count."""
    root, _ = decided(tmp_path, memory=memory)
    for number in range(32, 44):
        block(root, number, "online")
    if released:
        entry = {"time": 1, "reason": "x", "ranges": released.split(), "state": "done"}
        files.replace(str(root), standing.RELEASES, json.dumps([entry]))
    found = standing.read(str(root)).onlined_by_others

    assert {n for n in range(44) if any(a.start <= n * BLOCK < a.end for a in found)} == set(range(32, 44)) - free
    assert watch.look(str(root), Counts()).incident == found


def test_many_blocks_onlined_by_others(tmp_path: Path) -> None:
    """32,768 blocks that alternate take time for their number, not for its square."""
    root, _ = decided(tmp_path)
    found = standing.read(str(root))
    runs = tuple(Blocks(n, n, "offline") for n in range(32768))
    flipped = tuple(run._replace(state="online" if run.first % 2 else "offline") for run in runs)
    snapshot = found.then._replace(blocks=runs[::3])
    many = found._replace(record=found.record._replace(snapshot=snapshot), now=found.now._replace(blocks=flipped))
    began = time.process_time()
    others, arrived = many.onlined_by_others, many.arrived

    assert sum(area.end - area.start for area in others) == (16384 - 1) * BLOCK
    assert len(arrived) == 32768 - len(runs[::3])
    assert time.process_time() - began < 5


@pytest.mark.parametrize("if_onlined", ["report", "offline"])
def test_online_all_with_an_exception(tmp_path: Path, if_onlined: str) -> None:
    """Where everything may be used but one range, that range is all that others can online."""
    memory = (Override(range=span(33, 34), hold=True),)
    root, _ = decided(tmp_path, action="online-all", if_onlined=if_onlined, memory=memory)
    for number in range(32, 40):
        block(root, number, "online")
    batch = watch.look(str(root), Counts())

    assert batch.incident == (span(33, 34),)
    assert states(root, 32, 35) == ["online", *[if_onlined.replace("report", "online")] * 2, "online"]


def test_safemem_off(tmp_path: Path) -> None:
    """What the command line asked for is the decision that stands: arrivals come online, and nothing is others' doing."""
    root, _ = decided(tmp_path, if_onlined="offline", cmdline="kho=on safemem=off memhp_default_state=offline")
    block(root, 50, "offline")
    block(root, 51, "online")
    batch = watch.look(str(root), Counts())

    assert batch.decision.action == "online-all"
    assert (batch.incident, states(root, 50, 51)) == ((), ["online_movable", "online"])


def test_after_a_dry_run_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run's decision is not in force: `watch` says so and ends with 6, and nothing is somebody else's doing."""
    root, policy = decided(tmp_path, cmdline="kho=on safemem.dry_run memhp_default_state=offline")
    file = tmp_path / "policy.toml"
    file.write_text("")
    monkeypatch.setattr("safemem.cli.policies.load_policy", lambda _: policy)
    block(root, 35, "online")
    block(root, 40, "offline")
    result = CliRunner().invoke(main, ["watch", "--policy", str(file), "--root", str(root)])

    assert result.exit_code == 6
    assert "this boot is a dry run: its decision is not in force, so there is nothing to apply" in result.stderr
    assert states(root, 35, 35) + states(root, 40, 40) == ["online", "offline"]
    status = CliRunner().invoke(main, ["status", "--root", str(root)])
    assert (status.exit_code, "changed" in status.stdout) == (64, False)


#: Facts that follow from the blocks, and what they make of the same machine once the blocks have changed.
DERIVED = {
    "nothing was hot-added": ("held_blocks", "nothing"),
    "nothing is outside": ("online_outside_safe", "outside"),
}


def lost(base: Path, fact: str) -> Path:
    """Return a machine on which a lost handover is held as long as `fact` is yes or unknown, and another one would not be."""
    root = make_root(base, offered=True)
    (root / "proc/meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n")
    careful = Rule(
        "careful", "online-safe", when(fact, Term("is", "yes"), Term("is", "unknown")), boot_memory="offline"
    )
    sources = (Range(40 * BLOCK, 42 * BLOCK),)
    install(root, careful, otherwise=Rule("otherwise", "online-all", accept_data_exposure=True), sources=sources)
    boot.main(["--root", str(root)])
    return root


@pytest.mark.parametrize(("fact", "change"), DERIVED.values(), ids=DERIVED)
def test_what_was_derived_stays(tmp_path: Path, fact: str, change: str) -> None:
    """A rule that would not decide now has decided: what was unplugged or taken off since loosens nothing."""
    root = lost(tmp_path, fact)
    for number in range(8):
        block(root, number, "offline" if change == "outside" else "online")
    if change == "nothing":
        for number in range(32, 40):
            shutil.rmtree(root / f"{MEMORY}/memory{number}")
    batch = watch.look(str(root), Counts())
    block(root, 50, "offline")
    again = watch.look(str(root), batch.counts)

    assert (batch.decision.rule.name, again.decision.rule.name, again.onlined) == ("careful", "careful", 0)
    assert states(root, 50, 50) == ["offline"] and (root / paths.AUTO_ONLINE).read_text() == "offline"
    assert states(root, 0, 7) == ["offline" if change == "outside" else "online"] * 8
    assert "SAFEMEM_ARRIVALS=hold" in (root / record.ENV).read_text().splitlines()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_nothing_but_a_release_loosens_it(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever is plugged, unplugged, edited, restarted or added: blocks outside the region stay as they are, and the hold."""
    root = lost(tmp_path_factory.mktemp("x"), data.draw(st.sampled_from([fact for fact, _ in DERIVED.values()])))
    (root / "usr/lib/udev/rules.d").mkdir(parents=True, exist_ok=True)
    seen = Counts()
    for _ in range(data.draw(st.integers(1, 4))):
        change = data.draw(
            st.sampled_from(["plug", "unplug", "env", "auto", "rule", "policy", "restart", "counts", "part"])
        )
        number = data.draw(st.integers(0, 50))
        if change == "plug":
            block(root, number, "offline")
        elif change == "unplug":
            shutil.rmtree(root / f"{MEMORY}/memory{number}", ignore_errors=True)
        elif change == "env":
            (root / record.ENV).write_text(
                data.draw(st.sampled_from(["SAFEMEM_ARRIVALS=online\n", "SAFEMEM_DRY_RUN=yes\n", ""]))
            )
        elif change == "auto":
            (root / paths.AUTO_ONLINE).write_text("online_kernel\n")
        elif change == "rule":
            (root / f"usr/lib/udev/rules.d/{number}-x.rules").write_text('SUBSYSTEM=="memory", ATTR{state}="online"\n')
        elif change == "policy":
            (root / "etc/safemem").mkdir(parents=True, exist_ok=True)
            (root / "etc/safemem/policy.toml").write_text("format = 1\n")
        elif change == "restart":
            realroot.main(["--root", str(root)])
        elif change == "counts":
            (root / incidents.COUNTS).write_text(data.draw(st.sampled_from(["", "{}", "1e999", "[" * 99999])))
        else:
            entry = {"time": 1, "reason": "x", "ranges": [str(span(number, number))], "state": "done"}
            files.replace(str(root), standing.RELEASES, json.dumps([entry]))
        before = {path: path.read_text() for path in (root / MEMORY).glob("memory*/state")}
        seen = watch.look(str(root), seen).counts
        for path, text in before.items():
            assert path.read_text() == text or path.parent.name in ("memory40", "memory41")
        assert (root / paths.AUTO_ONLINE).read_text() == "offline"
        assert "SAFEMEM_ARRIVALS=hold" in (root / record.ENV).read_text().splitlines()
        assert udevrules.find(str(root)) == []


def test_what_was_set_otherwise_is_said(tmp_path: Path) -> None:
    """Each thing that somebody has changed is set right and named, once."""
    root, _ = decided(tmp_path)
    (root / record.ENV).write_text("SAFEMEM_ARRIVALS=online\n")
    (root / paths.AUTO_ONLINE).write_text("online\n")
    (root / "usr/lib/udev/rules.d").mkdir(parents=True)
    (root / "usr/lib/udev/rules.d/85-new.rules").write_text('SUBSYSTEM=="memory", ATTR{state}="online"\n')

    assert watch.look(str(root), Counts()).problems[:3] == (
        "run/safemem/decision.env did not say that memory is held, as the decision does: it was written anew",
        f"{paths.AUTO_ONLINE} read `online`: somebody else has set it",
        'usr/lib/udev/rules.d/85-new.rules:1 onlines memory, and was not there before: ATTR{state}="online"',
    )
    assert not [text for text in watch.look(str(root), Counts()).problems if "somebody" in text or "before" in text]


def test_after_a_release_nothing_is_held_again(tmp_path: Path) -> None:
    """What the operator has given back is his: neither rules nor the kernel's own onlining are touched."""
    root, _ = decided(tmp_path)
    files.replace(
        str(root), standing.RELEASES, json.dumps([{"time": 1, "reason": "x", "ranges": [realroot.EVERYTHING]}])
    )
    (root / paths.AUTO_ONLINE).write_text("online_movable")
    (root / record.ENV).write_text("SAFEMEM_ARRIVALS=online_movable\n")
    watch.look(str(root), Counts())
    assert (root / paths.AUTO_ONLINE).read_text() == "online_movable"
    assert (root / record.ENV).read_text() == "SAFEMEM_ARRIVALS=online_movable\n"


def test_a_look_waits_for_a_release(tmp_path: Path) -> None:
    """What is being released is not taken off again in between."""
    root, _ = decided(tmp_path, if_onlined="offline")
    block(root, 35, "online")
    with storage.locked(str(root / storage.LOCK)), pytest.raises(BlockingIOError):
        watch.look(str(root), Counts())
    assert states(root, 35, 35) == ["online"]
    assert watch.look(str(root), Counts()).reverted == BLOCK


def test_only_one_watches(tmp_path: Path) -> None:
    """A second daemon would count twice: it says so and ends."""
    root, _ = decided(tmp_path)
    found = standing.read(str(root))
    with (
        storage.locked(str(root / watch.WATCHED)),
        pytest.raises(watch.Stopped, match="another `safemem watch` runs already"),
    ):
        watch.run(str(root), found)


def test_an_edited_policy_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's policy is the next boot's: that it is another one, or none at all, is said, and `watch` runs."""
    root, _ = decided(tmp_path)
    ran: list[str] = []
    monkeypatch.setattr(watch, "run", lambda root, _: ran.append(root))
    folder = root / "etc/safemem"
    folder.mkdir(parents=True)
    for text in (None, "nonsense", (kit.REPOSITORY / "policies/maintenance.toml").read_text()):
        if text is not None:
            (folder / "policy.toml").write_text(text)
        result = CliRunner().invoke(main, ["watch", "--root", str(root)])
        assert result.exit_code == 0 and "stands until the next boot" in result.stderr, result.output
    assert len(ran) == 3


def test_who_could_have_done_it(tmp_path: Path) -> None:
    """A rule in force, the kernel, a program that runs: each with its evidence; otherwise it cannot be known."""
    root, _ = decided(tmp_path)
    assert suspects.find(str(root)) == ()
    assert suspects.text(()).startswith("who did it cannot be known")
    for path, text in (
        ("usr/lib/udev/rules.d/41-x.rules", 'SUBSYSTEM=="memory", ATTR{state}="online"\n'),
        (f"{MEMORY}/auto_online_blocks", "online\n"),
        ("proc/7/comm", "bash\n"), ("proc/71/comm", "google_guest_ag\n"), ("proc/72/comm", "python3\n"),
        ("proc/72/cmdline", "/usr/bin/python3\0-u\0/usr/sbin/waagent\0-daemon\0"), ("proc/73/comm", "python3\n"),
        ("proc/73/cmdline", "/usr/bin/python3\0/usr/bin/cat\0/usr/sbin/tuned\0"),
    ):  # fmt: skip
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    block(root, 35, "online")
    (incident,) = watch.look(str(root), Counts()).counts.last

    assert [(item.who, item.evidence.removeprefix(f"{root}/")) for item in incident.suspects] == [
        ('a udev rule: ATTR{state}="online"', "usr/lib/udev/rules.d/41-x.rules:1"),
        ("the kernel itself, if it had just added the memory", f"{MEMORY}/auto_online_blocks reads `online`"),
        ("google_guest_agent", "proc/71/comm"), ("waagent", "proc/72/comm"),
    ]  # fmt: skip
    status = CliRunner().invoke(main, ["status", "--root", str(root)]).stdout
    assert "watch     held memory was found online 1 time (128 MiB), 0 B taken offline again; " in status
    assert (
        'may have been a udev rule: ATTR{state}="online" (/usr/lib/udev/rules.d/41-x.rules:1), or the kernel' in status
    )


def test_a_rule_that_was_just_masked_is_named_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What udev had begun with a rule goes on for a moment after the mask: who did it is not forgotten in between."""
    root, _ = decided(tmp_path)
    (root / "usr/lib/udev/rules.d").mkdir(parents=True)
    (root / "usr/lib/udev/rules.d/41-late.rules").write_text('SUBSYSTEM=="memory", ATTR{state}="online"\n')
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    block(root, 35, "online")
    seen = watch.look(str(root), Counts()).counts
    assert udevrules.find(str(root)) == []
    block(root, 36, "online")
    seen = watch.look(str(root), seen).counts
    now += 60
    block(root, 37, "online")
    seen = watch.look(str(root), seen).counts

    named = [[item.evidence for item in incident.suspects] for incident in seen.last]
    assert named == [["usr/lib/udev/rules.d/41-late.rules:1"]] * 2 + [[]]


def test_a_rule_that_somebody_else_has_masked_is_named(tmp_path: Path) -> None:
    """The mask's own unit may be faster than we are; what was masked before anybody watched was so before udev ran."""
    root, _ = decided(tmp_path)
    (root / "usr/lib/udev/rules.d").mkdir(parents=True)
    (root / "usr/lib/udev/rules.d/41-late.rules").write_text('SUBSYSTEM=="memory", ATTR{state}="online"\n')
    assert realroot.main(["--root", str(root)]) == 0
    named = []
    for number, since in ((35, 0.0), (36, time.time() + 60)):
        block(root, number, "online")
        last = watch.look(str(root), Counts(), since).counts.last[-1]
        named.append([item.evidence for item in last.suspects])

    assert named == [["usr/lib/udev/rules.d/41-late.rules:1"], []]


def test_what_was_online_was_not_untouched(tmp_path: Path) -> None:
    """Only memory that nobody ever onlined is called held: not what was reverted, released, or boot memory taken off."""
    root, _ = decided(tmp_path, if_onlined="offline")
    block(root, 35, "online")
    watch.look(str(root), Counts())
    entries = [
        {"time": 1, "reason": "x", "ranges": [str(span(37, 37))], "state": "done"},
        {"time": 1, "reason": "y", "ranges": [str(span(38, 38))], "state": "begun"},
    ]
    files.replace(str(root), standing.RELEASES, json.dumps(entries))
    for number in (3, 35):
        block(root, number, "offline")  # as the kernel would show it
    found = standing.read(str(root))

    assert found.held == (span(32, 34), span(36, 36), span(38, 39))
    assert found.taken_offline == (span(3, 3), span(35, 35), span(37, 37))
    status = CliRunner().invoke(main, ["status", "--root", str(root)]).stdout
    assert f"offline   {span(35, 35)}  128 MiB: was online in this boot, so what was in it may be lost" in status
    assert f'{{state="quarantined"}} {3 * BLOCK}' in metrics.text(found)
    assert f'{{state="held"}} {6 * BLOCK}' in metrics.text(found)
    assert "was-online" in [item.code for item in doctor.examine(str(root))]


def test_counts_in_status_and_metrics(tmp_path: Path) -> None:
    """Counters that only grow, with `_total`; none without a daemon that counts."""
    root, _ = decided(tmp_path)
    assert "_total" not in metrics.text(standing.read(str(root)))
    incidents.write(str(root), Counts(2, 3 << 30, 1 << 30, 4, 5, 6 << 30))
    families = {
        family.name: family for family in text_string_to_metric_families(metrics.text(standing.read(str(root))))
    }
    values = {name: family.samples[0].value for name, family in families.items() if family.type == "counter"}

    assert values == {
        "safemem_held_memory_onlined": 2, "safemem_held_memory_onlined_bytes": 3 << 30, "safemem_events_lost": 4,
        "safemem_held_memory_reverted_bytes": 1 << 30, "safemem_arrivals": 5, "safemem_arrivals_bytes": 6 << 30,
    }  # fmt: skip
    document = json.loads(CliRunner().invoke(main, ["status", "--format", "json", "--root", str(root)]).stdout)
    assert (document["watch"]["lost"], document["watch"]["onlined"]) == (4, 3 << 30)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2}', '{"schema": 1, "incidents": 1}'])
def test_counts_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    """The decision is told all the same, and what is missing is named; no counter claims a 0."""
    root, _ = decided(tmp_path)
    (root / incidents.COUNTS).write_text(text)
    result = CliRunner().invoke(main, ["status", "--root", str(root)])

    assert result.exit_code in (4, 64)
    assert f"problem   {root / incidents.COUNTS}: " in result.stdout
    assert "_total" not in metrics.text(standing.read(str(root)))


def test_a_release_of_a_part_ends_no_other_hold(tmp_path: Path) -> None:
    """A range that reaches to the end of all addresses is not everything: what arrives below stays held."""
    root, _ = decided(tmp_path)
    (root / standing.RELEASES).write_text(
        json.dumps(reader.releases_to_json((reader.Release(1, "x", (Range(60 * BLOCK, 1 << 64),), "done", False),)))
    )
    (root / paths.AUTO_ONLINE).write_text("online\n")
    watch.look(str(root), Counts())

    assert (root / paths.AUTO_ONLINE).read_text().strip() == "offline"


def test_what_udev_goes_by_cannot_be_written(tmp_path: Path) -> None:
    """The kernel is kept from onlining what arrives whatever becomes of a file in /run."""
    root, _ = decided(tmp_path)
    (root / record.ENV).unlink()
    (root / record.ENV).mkdir()
    (root / paths.AUTO_ONLINE).write_text("online\n")
    problems = watch.look(str(root), Counts()).problems

    assert (root / paths.AUTO_ONLINE).read_text().strip() == "offline"
    assert [text for text in problems if text.startswith(record.ENV) and text.endswith("is a directory")]


@pytest.mark.parametrize("ranges", [realroot.EVERYTHING, {realroot.EVERYTHING: 1}, f"x{realroot.EVERYTHING}"])
def test_a_release_that_nobody_can_read_ends_no_hold(tmp_path: Path, ranges: object) -> None:
    """The real root takes no other text for a release than `release` writes, whatever udev goes by."""
    root, _ = decided(tmp_path)
    (root / record.ENV).write_text("SAFEMEM_ARRIVALS=online_movable\n")
    (root / standing.RELEASES).write_text(json.dumps([{"ranges": ranges}]))

    assert realroot.stands(str(root))
