# SPDX-License-Identifier: MIT
"""A policy that only observes: everything is decided, recorded and shown, and the machine is what Linux alone makes of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from safemem.boot import crashkernel, model, paths, record
from safemem.boot import main as boot
from safemem.boot.cmdline import argument
from safemem.boot.console import KEYS
from safemem.boot.model import Failure, Override, Policy, Rule
from safemem.boot.ranges import Range
from safemem.cli import main
from safemem.host import doctor, journal, standing
from safemem.initramfs import on_failure
from safemem.policy import compare, compiler
from safemem.realroot import hold as realroot
from tests.fakes import BLOCK, GIB, make_root, rejecting
from tests.kit import NEVER, REPOSITORY, guarded, install, policy
from tests.needs import lacking

ASKED = "kho=on memhp_default_state=offline"


def observed(base: Path, action: str = "panic", cmdline: str = ASKED, before: str = "offline", **more: Any) -> Path:
    """Return a machine that was handed something in vain, and has observed."""
    root = make_root(base, offered=True, cmdline=cmdline)
    (root / paths.AUTO_ONLINE).write_text(f"{before}\n")
    install(root, otherwise=Rule("otherwise", action, message="handover lost", **more), observe=True)
    assert boot.main(["--root", str(root)]) == 0
    return root


def blocks(root: Path) -> dict[str, int]:
    """Return how many blocks are in which state."""
    texts = [path.read_text().strip() for path in (root / paths.MEMORY).glob("memory*/state")]
    return {text: texts.count(text) for text in set(texts)}


def run(root: Path, *words: str) -> Any:
    """Run a command on the machine."""
    return CliRunner().invoke(main, [*words, "--root", str(root)])


def test_the_names_are_one() -> None:
    """What no policy can say is said alike by the builder and its scripts."""
    assert on_failure.GO_ON not in model.FINAL and on_failure.GO_ON not in KEYS
    assert f'"$1" != {on_failure.GO_ON} ]' in (REPOSITORY / "safemem/initramfs/files/boot.sh").read_text()


@pytest.mark.parametrize("action", model.ACTIONS)
def test_nothing_is_done_but_what_linux_would_do(tmp_path: Path, action: str) -> None:
    """No end, no mask, no hold: memory that was offline for us comes online, and so does what arrives."""
    root = observed(tmp_path, action, **({} if action in model.FINAL else {"enter": "maintenance"}))

    assert (root / "proc/sysrq-trigger").read_text() == ""
    assert blocks(root) == {"online": 16}
    assert (root / paths.AUTO_ONLINE).read_text() == "online"
    assert not (root / "run/udev").exists() and not (root / "run/systemd").exists()
    document = json.loads((root / record.RECORD).read_text())
    assert document["decision"]["action"] == action
    assert (document["result"]["observed"], document["result"]["bytes_onlined"]) == (True, 8 * BLOCK)
    assert "account" not in document
    env = (root / record.ENV).read_text().splitlines()
    assert "SAFEMEM_DRY_RUN=yes" in env and env[-1] == "SAFEMEM_FINISHED=yes" and "ARRIVALS" not in " ".join(env)
    assert realroot.main(["--root", str(root)]) == 0
    assert not (root / realroot.MASKED).exists() and (root / paths.AUTO_ONLINE).read_text() == "online"


def test_the_console_says_that_nothing_is_done(tmp_path: Path) -> None:
    """Right after what was decided, and as loud."""
    lines = (observed(tmp_path, "panic") / "dev/kmsg").read_text().splitlines()
    at = lines.index("<3>safemem: panic: handover lost (rule `otherwise`, policy `test`)")
    assert lines[at + 2] == "<3>safemem: observe: nothing of this is done"
    assert not [line for line in lines if line.startswith(("<0>", "<1>", "<2>"))]


@pytest.mark.parametrize("before", ["online", "online_kernel", "online_movable"])
def test_the_kernels_own_word_counts(tmp_path: Path, before: str) -> None:
    """Where the kernel onlined what arrives before the hold, it does so again, and what came meanwhile gets that word."""
    root = observed(tmp_path, cmdline="kho=on", before=before)
    assert (root / paths.AUTO_ONLINE).read_text() == before
    assert {path.read_text() for path in (root / paths.MEMORY).glob("memory3[2-9]/state")} == {before}


def test_what_is_udevs_is_left_to_udev(tmp_path: Path) -> None:
    """A kernel that says `offline` by itself has never onlined anything."""
    root = observed(tmp_path, cmdline="kho=on")
    assert (root / paths.AUTO_ONLINE).read_text() == "offline"
    assert blocks(root) == {"online": 8, "offline": 8}
    assert json.loads((root / record.RECORD).read_text())["result"]["problems"] == []


@pytest.mark.parametrize(("cmdline", "after"), [(ASKED, "online"), ("kho=on", "offline")])
def test_what_could_not_be_read_before_the_hold(tmp_path: Path, cmdline: str, after: str) -> None:
    """What was asked for safemem's sake is taken back; of the rest it is said that nobody knows."""
    root = observed(tmp_path, cmdline=cmdline, before="nonsense")
    assert (root / paths.AUTO_ONLINE).read_text() == after
    codes = json.loads((root / record.RECORD).read_text())["result"]["problem_codes"]
    assert codes == ([] if after == "online" else ["auto-online-not-set"])


#: What the kernel takes for `memhp_default_state=offline`, and what it does not (parameq() and next_arg() of kernel/params.c
#: and lib/cmdline.c, setup_memhp_default_state() of mm/memory_hotplug.c: the last value that is one counts).
SPELLINGS = {
    "memhp-default-state=offline": True,
    "memhp_default-state=offline": True,
    '"memhp_default_state=offline"': True,
    'memhp-default_state="offline"': True,
    "memhp_default_state=online memhp-default-state=offline": True,
    "memhp_default_state=offline memhp_default_state=nonsense": True,
    "memhp_default_state=offline memhp-default-state=": True,
    "memhp_default_state=offline memhp-default-state=online_movable": False,
    "memhp_default_state=nonsense": False,
    "memhp.default.state=offline": False,
    "xmemhp_default_state=offline": False,
    "memhp_default_state=offline1": False,
    "-- memhp_default_state=offline": False,
}


@pytest.mark.parametrize(("words", "offline"), SPELLINGS.items(), ids=range(len(SPELLINGS)))
def test_an_argument_in_any_spelling(tmp_path: Path, words: str, offline: bool) -> None:
    """The program, its wrapper and doctor read it as the kernel does."""
    line = f"console=ttyS0 {words}"
    assert (argument(line, "memhp_default_state") == "offline") == offline
    root = observed(tmp_path, cmdline=line)
    assert (root / paths.AUTO_ONLINE).read_text().strip() == ("online" if offline else "offline")
    assert ("no-memhp-argument" in [item.code for item in doctor.examine(str(root))]) == (not offline)


@pytest.mark.parametrize(("words", "offline"), SPELLINGS.items(), ids=range(len(SPELLINGS)))
def test_an_argument_in_any_spelling_to_the_wrapper(tmp_path: Path, words: str, offline: bool) -> None:
    """Where the program fails, the wrapper takes the hold back by itself."""
    root = make_root(tmp_path, cmdline=f"console=ttyS0 {words}")
    script = tmp_path / "boot"
    script.write_bytes(on_failure.wrapper(Failure(on_failure.GO_ON), str(root)))
    # Its watchdog sleeps on with whatever it was started with: a pipe would be waited for.
    nothing = subprocess.DEVNULL
    result = subprocess.run(["sh", str(script)], stdin=nothing, stdout=nothing, stderr=nothing, timeout=60, check=False)
    assert result.returncode == on_failure.GOES_ON
    assert (root / paths.AUTO_ONLINE).read_text().strip() == ("online" if offline else "offline")


def test_a_guard_is_given_back(tmp_path: Path) -> None:
    """Linux alone would have all of that memory, and crash kernels may still be loaded."""
    root = guarded(tmp_path / "g", "online-safe")
    path = root / boot.POLICY
    path.write_bytes(compiler.dump(policy(NEVER, otherwise="online-safe", observe=True)))
    assert boot.main(["--root", str(root)]) == 0
    assert (root / paths.CRASH_SIZE).read_text() == "0"
    found = standing.read(str(root))
    assert found.guard is None and found.now.guard is None
    assert not crashkernel.forbidden(str(root))


def test_gigantic_pages_are_given_back_wherever_they_are(tmp_path: Path) -> None:
    """Their number is known where their places are not, and that is enough."""
    root = rejecting(tmp_path, {0: (4, 5), 1: (6, 7)}, {0: 2, 1: 2})
    (root / paths.CRASH_SIZE).write_text("0\n")
    (root / paths.PAGEFLAGS).unlink()
    install(root, otherwise=Rule("otherwise", "panic"), observe=True)
    assert boot.main(["--root", str(root)]) == 0
    pools = (root / f"{paths.NODE_HUGE.format(node, GIB >> 10)}/nr_hugepages" for node in (0, 1))
    assert [pool.read_text().strip() for pool in pools] == ["0", "0"]


def test_what_cannot_be_onlined_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that Linux could not have either is a problem, and no reason to stop."""
    root = make_root(tmp_path, offered=True, cmdline=ASKED)
    install(root, otherwise=Rule("otherwise", "panic"), observe=True)
    (root / paths.MEMORY / "memory35/state").unlink()
    (root / paths.MEMORY / "memory35/state").mkdir()
    assert boot.main(["--root", str(root)]) == 0
    (root / paths.BLOCK_SIZE).write_text("nonsense\n")
    assert boot.main(["--root", str(root)]) == 0
    codes = json.loads((root / record.RECORD).read_text())["result"]["problem_codes"]
    assert "not-looked-at" in codes


def test_it_is_shown_as_a_state_of_its_own(tmp_path: Path) -> None:
    """In text, JSON, metrics, the exit code of a decision that is not in force, and to whoever watches."""
    root = observed(tmp_path, "online-safe", enter="maintenance", final=True)
    shown = run(root, "status")
    lines = shown.stdout.splitlines()
    assert shown.exit_code == 64 and lines[0] == "online-safe  handover lost"
    assert "observe   the policy only observes: nothing of this was done" in lines
    assert "applied   1 GiB of 1 GiB onlined, as Linux alone would have" in lines
    assert not [line for line in lines if line.startswith(("changed", "next", "final", "held"))]
    document = json.loads(run(root, "status", "--format", "json").stdout)
    assert (document["mode"], document["onlined_by_others"], document["held"]) == ("observe", [], [])
    run(root, "metrics", "-o", str(tmp_path / "m"))
    metrics = (tmp_path / "m").read_text().splitlines()
    for line in ('safemem_mode{mode="observe"} 1', 'safemem_mode{mode="enforce"} 0', "safemem_maintenance 0"):
        assert line in metrics
    assert 'safemem_memory_bytes{state="exposed"} 2147483648' in metrics  # it may hold guests' pages, and is in use
    found = standing.read(str(root))
    entry = journal.fields(found, 64)
    assert (entry["SAFEMEM_MODE"], entry["PRIORITY"]) == ("observe", "5")
    assert (found.mode, found.verdict, found.maintenance) == ("observe", "partly", False)
    watched = run(root, "watch")
    assert watched.exit_code == 6 and "the policy of this boot only observes" in watched.stderr


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("loosens", [False, True])
def test_the_command_line_turns_it_neither_on_nor_off(tmp_path: Path, own: bool, other: bool, loosens: bool) -> None:
    """A named policy that observes is ignored unless the built-in one lets it loosen; one that acts counts, and alone."""
    root = make_root(tmp_path, offered=True, cmdline=f"{ASKED} safemem.policy=named")
    install(root, otherwise=Rule("otherwise", "panic"), observe=own, allow_cmdline_override=loosens)
    named = root / boot.POLICIES / "named.json"
    named.parent.mkdir(parents=True)
    named.write_bytes(compiler.dump(policy(NEVER, otherwise="online-safe", name="named", observe=other)))
    boot.main(["--root", str(root)])
    document = json.loads((root / record.RECORD).read_text())
    done = bool((document["result"] or {}).get("observed"))
    decided = (document["decision"]["action"], document["decision"]["policy"]["name"], done)
    assert (
        decided
        == {
            # own acts: what is named counts where it is stricter, and never if it observes
            (False, False, False): ("panic", "test", False),
            (False, True, False): ("panic", "test", False),
            # nothing of the built-in one is in force: what is named counts as it is
            (True, False, False): ("online-safe", "named", False),
            (True, True, False): ("panic", "test", True),
            # it may loosen
            (False, False, True): ("online-safe", "named", False),
            (False, True, True): ("online-safe", "named", True),
            (True, False, True): ("online-safe", "named", False),
            (True, True, True): ("online-safe", "named", True),
        }[own, other, loosens]
    )
    warned = "policy `named`, which the command line names, is ignored: it only observes"
    assert (warned in document["decision"]["warnings"]) == ((own, other, loosens) == (False, True, False))
    assert ((root / "proc/sysrq-trigger").read_text() == "") == (decided[0] != "panic" or done)


def test_a_command_line_that_cannot_be_read_has_every_policy_that_acts(tmp_path: Path) -> None:
    """It may have named any: those that observe loosen none of the others."""
    root = make_root(tmp_path, offered=True)
    (root / "proc/cmdline").unlink()
    install(root, otherwise=Rule("otherwise", "online-safe"), observe=True)
    (root / boot.POLICIES).mkdir(parents=True)
    for name, action, only in (("a", "panic", True), ("b", "online-safe", False)):
        data = compiler.dump(policy(NEVER, otherwise=action, name=name, observe=only))
        (root / boot.POLICIES / f"{name}.json").write_bytes(data)
    assert boot.main(["--root", str(root)]) == 0
    document = json.loads((root / record.RECORD).read_text())
    assert document["decision"]["policy"]["name"] == "b" and "observed" not in document["result"]


def test_an_end_that_fails_is_no_failure_to_go_on_after(tmp_path: Path) -> None:
    """A named policy that acts, in an image that observes: where no key of sysrq works, the wrapper is to halt."""
    root = make_root(tmp_path, offered=True, cmdline=f"{ASKED} safemem.policy=named")
    install(root, otherwise=Rule("otherwise", "online-safe"), observe=True)
    (root / boot.POLICIES).mkdir(parents=True)
    (root / boot.POLICIES / "named.json").write_bytes(compiler.dump(policy(NEVER, otherwise="panic", name="named")))
    assert boot.main(["--root", str(root)]) == 5


# ---- at a desk


POLICY = """\
format = 1
name = "seen"
observe = true
[[rule]]
name = "clean"
when = { handover = ["none", "accepted"] }
action = "online-all"
[otherwise]
action = "panic"
[on_failure]
action = "panic"
"""


def test_check_says_that_nothing_is_in_force(tmp_path: Path) -> None:
    """Whoever gates policies sees it, and `--strict` refuses it."""
    (tmp_path / "p.toml").write_text(POLICY)
    result = CliRunner().invoke(main, ["check", str(tmp_path / "p.toml")])
    assert "nothing of this policy is in force" in result.output
    assert CliRunner().invoke(main, ["check", "--strict", str(tmp_path / "p.toml")]).exit_code != 0


def test_simulate_says_that_nothing_is_done(tmp_path: Path) -> None:
    """What would be decided, and that nothing comes of it."""
    (tmp_path / "p.toml").write_text(POLICY)
    words = ["simulate", str(tmp_path / "p.toml"), "--set", "handover=rejected"]
    shown = CliRunner().invoke(main, words).output
    assert "panic  handover rejected" in shown and "the boot ends here" not in shown
    assert "  nothing of this is done, because the policy only observes: " in shown
    assert json.loads(CliRunner().invoke(main, [*words, "--format", "json"]).output)["outcome"]["ends"] is None


@pytest.mark.parametrize(("before", "after", "direction"), [(False, True, "looser"), (True, False, "stricter")])
def test_diff_calls_it_looser(before: bool, after: bool, direction: str) -> None:
    """To stop doing what is decided is looser than anything."""
    own: Policy = policy(otherwise="panic")
    changes, _ = compare.compare(own._replace(observe=before), own._replace(observe=after))
    assert [change.direction for change in changes] == [direction]


# ---- an image whose policy observes, and safemem fails


def wrapper(
    base: Path, program: str | None, before: str, cmdline: str, crash: str | None = None
) -> tuple[int, str, Path]:
    """Run the wrapper of an observing policy with `program` as its interpreter; return how it ended and its machine."""
    root = make_root(base, cmdline=cmdline, crash=crash)
    (root / paths.AUTO_ONLINE).write_text(f"{before}\n")
    (root / "run/safemem").mkdir(parents=True)
    loader = root / "usr/lib/safemem/lib/ld.so"
    loader.parent.mkdir(parents=True)
    if program is not None:
        loader.write_text(f"#!/bin/sh\nSTATE={root}/run/safemem\n{program}\n")
        loader.chmod(0o755)
    script = root / "usr/lib/safemem/boot"
    script.write_bytes(on_failure.wrapper(on_failure.of(policy(otherwise="panic", observe=True)), str(root)))
    # The watchdog's last sleep outlives the wrapper, and would keep a pipe open.
    with (base / "said").open("w") as out:
        status = subprocess.run(["sh", str(script)], stdout=out, stderr=out, stdin=subprocess.DEVNULL).returncode
    return status, (base / "said").read_text(), root


@pytest.mark.parametrize(
    ("own", "left"), [("", ["0", "0"]), (";own=1:2", ["0", "2"]), (";own=0:3,11:1", ["3", "0"]), (None, ["5", "6"])]
)
def test_a_failure_gives_the_guards_back(tmp_path: Path, own: str | None, left: list[str]) -> None:
    """All but the operator's own pages; what a command line without a guard of ours reserves is nobody's business."""
    words = (
        "kho=on" if own is None else f"kho=on safemem.guard=0x1000000-0x1ffffff;1G=0:5,1:6{own};crc32=00000000 quiet"
    )
    base = tmp_path / "base"
    base.mkdir()
    pools = [
        base / f"root/sys/devices/system/node/node{node}/hugepages/hugepages-1048576kB/nr_hugepages" for node in (0, 1)
    ]
    for pool, number in zip(pools, (5, 6), strict=True):
        pool.parent.mkdir(parents=True)
        pool.write_text(str(number))
    status, _, root = wrapper(base, "exit 1", "online", words, "01000000-01ffffff")
    assert status == 42 and [pool.read_text() for pool in pools] == left
    assert (root / paths.CRASH_SIZE).read_text().strip() == ("0" if own is not None else str(16 << 20))


@pytest.mark.parametrize("program", [None, "exit 1", "kill -9 $$", "exit 0", "echo '{' >$STATE/decision.json; exit 1"])
@pytest.mark.parametrize(
    ("before", "cmdline", "after"),
    [("offline", ASKED, "online"), ("online_movable", "kho=on", "online_movable"), ("offline", "kho=on", "")],
)
def test_a_failure_does_not_end_the_boot(
    tmp_path: Path, program: str | None, before: str, cmdline: str, after: str
) -> None:
    """Whatever fails, the boot goes on, without a decision, and with the memory that it would have had."""
    held = None if program is None else f"echo offline >{tmp_path}/root/{paths.AUTO_ONLINE}; {program}"
    status, said, root = wrapper(tmp_path, held, before, cmdline)

    assert status == on_failure.GOES_ON, said
    assert "the policy only observes, so this boot goes on without a decision" in said
    assert (root / "proc/sysrq-trigger").read_text() == ""
    assert (root / "run/safemem/passed").read_text() == "failed\n"
    states = {path.read_text().strip() for path in (root / paths.MEMORY).glob("memory3[2-9]/state")}
    assert states == {after or "offline"}
    assert (root / paths.AUTO_ONLINE).read_text().strip() == (after or "offline")
    shown = run(root, "status")
    assert shown.exit_code == 6
    assert "safemem failed in the initramfs, and its policy only observes" in shown.stderr


def test_a_halt_that_was_decided_is_one(tmp_path: Path) -> None:
    """Status 5 comes from a policy that acts: the wrapper does not go on after it."""
    root = make_root(tmp_path)
    script = on_failure.wrapper(on_failure.of(policy(otherwise="panic", observe=True)), str(root)).decode()
    assert "5) end halt decided" in script and "ON_FAILURE='continue'" in script and "KEYS=''" in script


def test_gates_and_units_let_it_go_on(tmp_path: Path) -> None:
    """A wrapper that cannot be started ends nothing either: no assertion, no requirement, no end."""
    failure = on_failure.of(policy(otherwise="panic", observe=True))
    for name, data in (("gate.sh", on_failure.gate(failure)), ("proof.sh", on_failure.proof(failure))):
        (tmp_path / name).write_bytes(data.replace(b"/usr/lib/safemem/boot", b"/nowhere/boot"))
        made = subprocess.run(["sh", "-c", f". {tmp_path / name}; echo goes on"], capture_output=True, text=True)
        assert made.stdout == "goes on\n"
    units = {path: data.decode() for path, data in on_failure.units(failure).items()}
    for unit in on_failure.GUARDED:
        drop = units[f"{unit}.d/50-safemem.conf"].splitlines()
        assert f"Wants={on_failure.UNIT}" in drop and not [line for line in drop if line.startswith(("Req", "Assert"))]
    assert "OnFailure" not in units[on_failure.UNIT] and "FailureAction" not in units[on_failure.UNIT]
    assert on_failure.of(policy(otherwise="panic", failure=Failure("halt"))) == Failure("halt")


def test_an_image_is_proven_to_observe(tmp_path: Path) -> None:
    """Building it boots fake roots: each goes on, whatever was decided."""
    from safemem.initramfs import build
    from safemem.initramfs.items import BuildError

    override = Override(range=Range(0x100000000, 0x120000000), hold=True)
    try:
        items = build.files(compiler.dump(policy(NEVER, otherwise="panic", observe=True, memory=(override,))))
    except BuildError as error:
        if "not installed" in str(error):
            lacking(str(error))
        raise
    assert b"ON_FAILURE='continue'" in items["usr/lib/safemem/boot"].data


def test_an_image_with_a_policy_that_acts_ends_as_that_one_says() -> None:
    """Which of the two the command line names, nobody knows of a program that has failed."""
    observing, acting = policy(otherwise="panic", observe=True), policy(otherwise="panic", failure=Failure("reboot"))

    assert on_failure.of(observing, acting).action == "reboot"
    assert on_failure.of(observing, observing).action == on_failure.GO_ON
    assert on_failure.of(acting, observing).action == "reboot"


def test_an_action_that_nobody_knows_is_no_going_on() -> None:
    """Neither wrapper nor unit is made for it."""
    for make in (on_failure.wrapper, on_failure.gate, on_failure.units):
        with pytest.raises(KeyError):
            make(Failure("contineu"))
