# SPDX-License-Identifier: MIT
"""Every system call of the real root's hold, of `watch` and of `release` fails in turn: nothing ends looser, and what is said is true.

As tests/test_faults.py does for the boot program: `make test` draws some of the faults, `make nightly` takes them all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from safemem.boot import compiled, hold, paths, plan, record
from safemem.boot import main as boot
from safemem.boot.model import FINAL, Override, Policy, Refused
from safemem.boot.ranges import Range, parse_range, without
from safemem.cli import main
from safemem.host import incidents, reader, standing, watch
from safemem.host.incidents import Counts
from safemem.policy import compiler
from safemem.realroot import hold as realroot
from safemem.realroot import storage, udevrules
from tests.fakes import BLOCK, make_root
from tests.faults import REACH, Fault, Machine, drawn, judged
from tests.kit import GUARD, NEVER, policy, rule, shipped

#: Runs of each scenario in `make test`.
DRAWN = os.environ.get("SAFEMEM_FAULTS", "40")
RULE = 'SUBSYSTEM=="memory", ATTR{state}="online"\n'
#: Blocks that are hot-added; of what arrives later, 40 is safe.
ADDED = range(32, 60)
_UNIT = f"{hold.UNITS_RUN}/{realroot.UNITS[0]}"


class Did(NamedTuple):
    """What a program said of itself."""

    code: int  #: 0 is all well
    why: str
    counts: Counts = Counts()


def _hold(root: Path) -> Did:
    return Did(realroot.main(["--root", str(root)]), "")


def _hold_again(root: Path) -> Did:
    return Did(realroot.main(["--root", str(root), "--again"]), "")


def _watch(root: Path, seen: Counts | None = None) -> Did:
    """Look once, as the daemon does that has counted `seen`, or has been started just now."""
    try:
        if seen is None:
            path = root / incidents.COUNTS
            seen = reader.counts(str(path)) if path.exists() else Counts()
        batch = watch.look(str(root), seen)
    except (Refused, OSError) as error:
        return Did(1, str(error), seen or Counts())
    return Did(1 if batch.problems else 0, "; ".join(batch.problems), batch.counts)


def _release(*words: str) -> Callable[[Path], Did]:
    def act(root: Path) -> Did:
        result = CliRunner().invoke(main, ["release", *words, "--reason", "guests are gone", "--root", str(root)])
        crashed = result.exception is not None and not isinstance(result.exception, SystemExit)
        return Did(result.exit_code, f"{result.exception!r}" if crashed else result.output)

    return act


class Scenario(NamedTuple):
    """A decision that stands, what has happened since, and what is done then."""

    name: str
    act: Callable[[Path], Did]
    policy: Policy
    options: dict[str, Any] = {}  # noqa: RUF012  (nobody changes it)
    since: Callable[[Path], None] = lambda _: None
    held: bool = True  #: the hold of the real root has run


def _safe(**more: Any) -> Policy:
    return policy(NEVER, otherwise=rule("online-safe", **more), sources=(Range(40 * BLOCK, 41 * BLOCK),))


def _block(root: Path, number: int, state: str) -> None:
    folder = root / f"{paths.MEMORY}/memory{number}"
    folder.mkdir(exist_ok=True)
    (folder / "state").write_text(f"{state}\n")
    (folder / "valid_zones").write_text("Movable\n")


def _arrivals(root: Path) -> None:
    """Somebody has onlined a held block and one that arrived; safe and other memory has arrived."""
    for number, state in ((35, "online"), (40, "offline"), (50, "offline"), (51, "online")):
        _block(root, number, state)


def _loosened(root: Path) -> None:
    """Somebody has changed what kernel and udev go by, and a package has brought a rule."""
    (root / paths.AUTO_ONLINE).write_text("online\n")
    (root / record.ENV).write_text("SAFEMEM_ARRIVALS=online\nSAFEMEM_DRY_RUN=no\n")
    (root / "usr/lib/udev/rules.d/85-agent.rules").write_text(RULE)


def _own_rule(root: Path) -> None:
    (root / "etc/udev/rules.d/85-agent.rules").write_text(RULE)


def _released(root: Path) -> None:
    assert _release()(root).code == 0
    (root / paths.AUTO_ONLINE).write_text("online_movable\n")


def _begun(root: Path) -> None:
    """A release of the whole was cut off when it had onlined two blocks, and masks stand still."""
    entry = reader.Release(1, "guests are gone", (Range(0, 1 << 64),), "partly")
    (root / realroot.RELEASES).write_text(json.dumps(reader.releases_to_json((entry,))))
    _block(root, 32, "online")
    _block(root, 33, "online")


_PART = f"0x{33 * BLOCK:x}-0x{35 * BLOCK - 1:x}"
_REJECTED = {"offered": True}
_GUARDED = {"offered": True, **GUARD}
_KMEM = policy(
    NEVER, otherwise=rule("online-all", accept_data_exposure=True), memory=(Override(driver="kmem", hold=True),)
)
_KDUMP = shipped("maintenance")._replace(keep_crashkernel="64MiB")
_ENDS = _safe(on_shortfall="panic")
SCENARIOS = [
    Scenario("hold", _hold, _safe(), _REJECTED, held=False),
    Scenario("hold, or panic", _hold, _ENDS, _REJECTED, held=False),
    Scenario("hold, the shipped policy", _hold, shipped("dax-guests"), _REJECTED, held=False),
    Scenario("hold with a guard", _hold, shipped("maintenance"), _GUARDED, held=False),
    Scenario("hold where all is online", _hold, shipped("live-update-host"), held=False),
    Scenario("hold after somebody loosened", _hold, _safe(), _REJECTED, _loosened, held=False),
    Scenario("hold after a release", _hold, _safe(), _REJECTED, _released),
    Scenario("hold again", _hold_again, _safe(), _REJECTED, _loosened),
    Scenario("hold again, a rule in /etc", _hold_again, _ENDS, _REJECTED, _own_rule),
    Scenario("hold of exceptions", _hold, _KMEM, {}, held=False),
    Scenario("watch, nothing new", _watch, _safe(), _REJECTED),
    Scenario("watch, arrivals", _watch, _safe(), _REJECTED, _arrivals),
    Scenario("watch, taken off", _watch, _safe(if_onlined="offline"), _REJECTED, _arrivals),
    Scenario("watch after somebody loosened", _watch, _safe(), _REJECTED, _loosened),
    Scenario("watch, a rule in /etc", _watch, _safe(if_onlined="offline"), _GUARDED, _own_rule),
    Scenario("watch after a release", _watch, _safe(if_onlined="offline"), _REJECTED, _released),
    Scenario("watch after half a release", _watch, _safe(if_onlined="offline"), _REJECTED, _begun),
    Scenario("watch, exceptions", _watch, _KMEM, {}, _arrivals),
    Scenario("release", _release(), _safe(), _REJECTED),
    Scenario("release in part", _release(_PART), _safe(if_onlined="offline"), _REJECTED),
    Scenario("release with a guard", _release(), shipped("maintenance"), _GUARDED),
    Scenario("release, kdump gets some", _release(), _KDUMP, _GUARDED),
    Scenario("release of a guard's end", _release("0x10000000-0x17ffffff"), shipped("maintenance"), _GUARDED),
    Scenario("release resumed", _release(), _safe(), _REJECTED, _begun),
    Scenario("release that is final", _release("--force"), _safe(final=True), _REJECTED, _own_rule),
]  # fmt: skip


class Outcome(NamedTuple):
    """How a machine stands."""

    online: frozenset[int]
    guard: int  #: bytes
    lets_arrive: bool  #: the kernel onlines what arrives
    holds: bool  #: what arrives, as udev has it
    rules: frozenset[str]  #: rules and units in force that online memory
    ended: bool  #: by sysrq
    released: tuple[reader.Release, ...] | None  #: None if that cannot be read
    code: int  #: of `status`
    others: frozenset[int]  #: blocks that `status` says somebody else has onlined
    never_used: frozenset[int]  #: blocks of which `status` says so

    @property
    def everything(self) -> bool:
        """Whether word of a release of everything is on record."""
        return any(area.end == 1 << 64 for item in self.released or () for area in item.ranges)

    def names(self, number: int) -> bool:
        """Return whether a release on record is about a block, or for -1 about a guard."""
        areas = [area for item in self.released or () for area in item.ranges]
        if number < 0:
            return any(area.start < 4 << 30 for area in areas)
        return any(area.start <= number * BLOCK and (number + 1) * BLOCK <= area.end for area in areas)


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def releases(root: Path) -> tuple[reader.Release, ...] | None:
    """Return what is on record as released; None if that cannot be read."""
    try:
        return reader.releases(str(root / realroot.RELEASES))
    except FileNotFoundError:
        return ()
    except Refused:
        return None


def numbers(areas: list[str]) -> frozenset[int]:
    """Return the hot-added blocks in ranges."""
    found = [parse_range(text) for text in areas]
    return frozenset(n for n in ADDED for area in found if area.start <= n * BLOCK < area.end)


def outcome(fake: Machine) -> Outcome:
    """Return how the machine stands, and what `status` says of that."""
    root = fake.root
    with fake.failing():
        result = CliRunner().invoke(main, ["status", "--format", "json", "--root", str(root)])
        rules = {item.file for item in udevrules.find(str(root))}
        masked = os.path.islink(root / _UNIT)
    said = json.loads(result.stdout) if result.stdout.startswith("{") else {}
    states = {int(path.name[6:]): path for path in (root / paths.MEMORY).glob("memory*")}
    return Outcome(
        online=frozenset(number for number, path in states.items() if _read(path / "state") == "online"),
        guard=int(_read(root / paths.CRASH_SIZE)),
        lets_arrive=_read(root / paths.AUTO_ONLINE).startswith("online"),
        holds="SAFEMEM_ARRIVALS=hold" in _read(root / record.ENV).splitlines(),
        rules=frozenset({*rules, *(() if masked else (_UNIT,))}),
        ended=bool(_read(root / paths.SYSRQ)),
        released=releases(root),
        code=result.exit_code,
        others=numbers(said.get("onlined_by_others", [])),
        never_used=numbers([item["range"] for item in said.get("held", [])]),
    )


class Stage(NamedTuple):
    """A machine on which a decision stands."""

    fake: Machine
    before: Outcome
    held: frozenset[int]  #: blocks that the decision holds wherever they are offline
    final: bool  #: a shortfall ends the boot


def stage(base: Path, scenario: Scenario) -> Stage:
    """Return the scenario's machine, on which everything until now has gone well."""
    root = make_root(base, **{"online": "0-3", "offline": "32-35", **scenario.options})
    (root / paths.MEMINFO).write_text("MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n")
    for name, text in (
        (boot.MASKS, compiled.names_text(["40-vendor.rules"]).decode()),
        ("usr/lib/udev/rules.d/55-own.rules", RULE),
        ("etc/udev/rules.d/56-own.rules", RULE),
        ("run/udev/control", ""),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    if scenario.policy.memory:
        with (root / paths.IOMEM).open("a") as file:
            file.write(f"{32 * BLOCK:x}-{60 * BLOCK - 1:x} : System RAM (kmem)\n")
    (root / boot.POLICY).write_bytes(compiler.dump(scenario.policy))
    fake = Machine(root)
    with fake.failing():
        assert boot.main(["--root", str(root)]) == 0
        if scenario.held:
            assert realroot.main(["--root", str(root)]) == 0
        scenario.since(root)
        found = standing.read(str(root))
        areas = plan.held(found.decision.action, found.now, found.decision.region, found.decision.policy.memory)
    held = numbers([str(area) for area in areas]) - frozenset(
        number for run in found.then.blocks if run.state == "online" for number in range(run.first, run.last + 1)
    )
    fake = Machine(root, fake.mounts)
    return Stage(fake, outcome(fake), held, found.decision.rule.on_shortfall in FINAL)


class Run(NamedTuple):
    """What came of one run, and of what is done after it undisturbed."""

    did: Did
    got: Outcome
    unsaid: frozenset[int]  #: blocks, -1 for the guard, that were given back before word of it was on record
    later: Outcome
    blamed: tuple[Range, ...]  #: on somebody else, after a release


def run(at: Stage, scenario: Scenario, fault: Fault | None = None) -> Run:
    """Do it once, with a fault or without."""
    fake, root = at.fake, at.fake.root
    fake.restore()
    releasing = scenario.name.startswith("release")
    unsaid: set[int] = set()

    def onlined(number: int) -> None:
        if not at.before._replace(released=_written(fake)).names(number):
            unsaid.add(number)

    if releasing:
        fake.onlined = onlined
    with fake.failing(fault):
        did = scenario.act(root)
        calls = fake.calls
    fake.onlined = lambda _: None
    got = outcome(fake)
    blamed: tuple[Range, ...] = ()
    with fake.failing():
        if releasing:
            if (root / realroot.RELEASES).exists() or got.online != at.before.online:
                blamed = _watch(root).counts.onlined_by_others
        elif scenario.name.startswith("watch"):
            again = _watch(root, did.counts if not did.code else None)
            blamed = again.counts.touched
        else:
            realroot.main(["--root", str(root), "--again"])
    later = got if releasing else outcome(fake)
    fake.calls = calls
    return Run(did, got, frozenset(unsaid), later, blamed)


def _written(fake: Machine) -> tuple[reader.Release, ...] | None:
    """Return what is on record as released at this moment, by calls that are not the program's."""
    try:
        fd = fake.real_open(fake.root / realroot.RELEASES, os.O_RDONLY)
    except FileNotFoundError:
        return ()
    try:
        items = json.loads(fake.real_read(fd, 1 << 20))
        return tuple(
            reader.Release(0, "", tuple(parse_range(text) for text in item["ranges"]), "begun") for item in items
        )
    except (ValueError, TypeError, KeyError):
        return None
    finally:
        fake.real_close(fd)


def looser(at: Stage, scenario: Scenario, meant: Run, ran: Run, fault: Fault, path: str) -> tuple[list[str], list[str]]:
    """Return in which ways a run ended looser than it was meant to, and of these what it owned up to."""
    before, got, said = at.before, ran.got, ran.did.code != 0
    # A release of which there is no word is none.
    goal = before if scenario.name.startswith("release") and not got.everything else meant.got
    found: list[str] = []
    owned: list[str] = []

    def compare(what: str, is_looser: bool, was: bool) -> None:
        if is_looser:
            (owned if said and was else found).append(what)

    extra = got.online - meant.got.online
    compare("held memory is online", bool(extra), extra <= before.online)
    compare("the guard is smaller", got.guard < meant.got.guard, False)
    compare("the kernel onlines", got.lets_arrive and not goal.lets_arrive, before.lets_arrive)
    compare("arrivals are not held", goal.holds and not got.holds, not before.holds)
    rules = got.rules - goal.rules
    compare(f"in force: {', '.join(sorted(rules))}", bool(rules), rules <= before.rules)
    truth = frozenset(number for number in got.online & at.held if not got.names(number))
    if got.code in (0, 4):
        compare("status says that all is well", bool(truth), False)
        used = got.never_used & (before.online | got.online)
        compare(f"status says never used of {sorted(used)}", bool(used), True)
    if got.code == 0:
        compare("status says that nothing is held", bool(got.guard and before.guard == got.guard), False)
    if got.code != 6:
        compare("status does not see what others onlined", bool(truth - got.others), False)
    if scenario.name.startswith("hold") and at.final and said:
        by_itself = fault.reach == "once" and path not in (record.RECORD, paths.SYSRQ)
        compare("the boot goes on", by_itself and not got.ended, False)
    if scenario.name.startswith("release"):
        compare("released without word of it", bool(ran.unsaid), False)
        if not ran.did.code:
            kept = got.guard > meant.got.guard and not scenario.policy.keep_crashkernel
            compare("release says done", got.online != meant.got.online or kept, False)
        compare("somebody else is blamed", bool(ran.blamed), False)
        compare("a crash", ran.did.why.startswith(("OSError", "ValueError", "TypeError")), False)
    else:
        compare("memory is online after a second run", bool(ran.later.online - meant.later.online), False)
        goal, later = meant.later, ran.later
        compare("the kernel onlines after a second run", later.lets_arrive and not goal.lets_arrive, False)
        compare("arrivals are not held after a second run", goal.holds and not later.holds, False)
        rules = later.rules - goal.rules
        compare(f"in force after a second run: {', '.join(sorted(rules))}", bool(rules), False)
    if scenario.name.startswith("watch"):
        missing = without(meant.blamed, ran.blamed)
        compare(f"forgotten: {', '.join(map(str, missing))}", bool(missing), True)
    return found, owned


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.name for scenario in SCENARIOS])
def test_no_fault_ends_looser(tmp_path: Path, scenario: Scenario, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever fails, held memory stays held unless word of its release is on record, and nobody says otherwise."""
    at = stage(tmp_path, scenario)
    meant = run(at, scenario)
    calls = at.fake.calls
    assert meant.did.code == 0 or scenario.name.startswith("watch"), meant.did
    kinds = ("signal",) if scenario.name.startswith("release") else ()
    faults = [Fault(at, kind, reach) for at, call in enumerate(calls) for kind in call.kinds for reach in REACH]
    faults += [Fault(at, kind) for at in range(len(calls)) for kind in kinds]

    def judge(fault: Fault) -> tuple[list[str], list[str]]:
        return looser(at, scenario, meant, run(at, scenario, fault), fault, calls[fault.at].path)

    assert judged(scenario.name, calls, drawn(faults, DRAWN), judge, capsys) == []


#: Faults that once ended looser, or with a word that was not true: scenario, call, kind and reach.
FOUND = [
    ("hold", "read", "usr/lib/udev/rules.d/55-own.rules", "cut", "path"),
    ("hold", "read", "usr/lib/udev/rules.d/55-own.rules", "empty", "all"),
    ("hold again, a rule in /etc", "listdir", "etc/udev/rules.d", "ENOENT", "path"),
    ("watch, a rule in /etc", "listdir", "etc/udev/rules.d", "ENOENT", "all"),
    ("watch, taken off", "open", paths.BLOCK_SIZE, "EACCES", "path"),
    ("watch, taken off", "open", f"{paths.MEMORY}/memory35/state", "ENOSPC", "path"),
    ("watch after half a release", "open", realroot.RELEASES, "ENOENT", "once"),
    ("release", "listdir", paths.MEMORY, "empty", "once"),
    ("release", "read", f"{paths.MEMORY}/memory34/state", "EMFILE", "once"),
    ("release with a guard", "read", paths.IOMEM, "EACCES", "path"),
]


@pytest.mark.parametrize(("name", "call", "path", "kind", "reach"), FOUND)
def test_found(tmp_path: Path, name: str, call: str, path: str, kind: str, reach: str) -> None:
    """What was found stays mended, whatever `make test` draws."""
    scenario = next(item for item in SCENARIOS if item.name == name)
    at = stage(tmp_path, scenario)
    meant = run(at, scenario)
    places = [number for number, item in enumerate(at.fake.calls) if (item.name, item.path) == (call, path)]
    assert places
    for number in places:
        fault = Fault(number, kind, reach)
        assert looser(at, scenario, meant, run(at, scenario, fault), fault, path)[0] == []


@pytest.mark.parametrize("taken", [0, 1 << 20])
def test_a_write_that_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """A kernel that takes nothing more is no reason to try for ever, and one that lies does not replace a file."""
    path = tmp_path / "file"
    path.write_text("before")
    monkeypatch.setattr(os, "write", lambda _fd, data: min(taken, len(data)))
    with pytest.raises(OSError, match="taken" if not taken else "arrived"):
        storage.put(str(tmp_path), "file", "after")

    assert (path.read_text(), os.listdir(tmp_path)) == ("before", ["file"])


def test_memory_that_cannot_be_seen(tmp_path: Path) -> None:
    """`status` does not say that all is well, `release` not that all is given back, and `watch` looks again."""
    scenario = next(item for item in SCENARIOS if item.name == "release")
    root = stage(tmp_path, scenario).fake.root
    (root / f"{paths.MEMORY}/memory34/state").write_text("?\n")
    result = CliRunner().invoke(main, ["status", "--root", str(root)])
    assert (result.exit_code, "problem   state of block 34 reads" in result.output) == (64, True)
    batch = watch.look(str(root), Counts())
    assert batch.unseen and "state of block 34 reads" in batch.problems[0]
    did = scenario.act(root)
    assert (did.code, "state of block 34 reads" in did.why) == (64, True)
    assert [item.state for item in reader.releases(str(root / realroot.RELEASES))] == ["partly"]
