# SPDX-License-Identifier: MIT
"""The kit itself: nothing but the kit is shared, and its builders, roots and images are what they say."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from safemem.boot import compiled, engine, paths, probe
from safemem.boot import main as boot
from safemem.boot.model import DERIVED, FACTS, UNKNOWN, Failure, Policy, Rule
from safemem.boot.ranges import Range
from safemem.initramfs import check
from tests import conftest, kit
from tests.fakes import BLOCK, GIB, MIB, machine, make_root, numbers
from tests.vm import harness

TESTS = Path(__file__).resolve().parent


def test_no_test_module_imports_another() -> None:
    """What two of them need is in the kit, in tests/ or in tests/vm/; functions that import are seen too."""
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [item.name for item in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            for name in names:
                parts = name.split(".")
                assert parts[0] != "tests" or not any(part.startswith("test_") for part in parts), f"{path}: {name}"


def test_no_thread_outlives_the_tests() -> None:
    """An interpreter does not end before its threads, and nor would the run: one that waits must not count."""
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Thread"):
                said = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert said.get("daemon") == "True", f"{path}:{node.lineno}: a thread without daemon=True"


def test_a_policy_is_what_its_keywords_say() -> None:
    """Actions stand for rules and failures; what is not given is what a policy has by itself."""
    assert kit.policy() == Policy("test", (), Rule("otherwise", "panic"), Failure("panic"), ("kho-scratch", "cmdline"))
    chosen = kit.policy(kit.NEVER, otherwise="halt", sources=("none",), failure="reboot", name="x", trust_guard=True)
    assert chosen == Policy(
        "x", (kit.NEVER,), Rule("otherwise", "halt"), Failure("reboot"), ("none",), trust_guard=True
    )
    last, fails = kit.rule("online-safe", floor="1GiB"), Failure("halt", deadline=3)
    assert kit.policy(otherwise=last, failure=fails)[2:4] == (last, fails)
    assert (last.name, last.floor) == ("otherwise", "1GiB")


def test_a_snapshot_knows_what_it_is_told() -> None:
    """Every fact that is read is there, unknown unless it is given; one that follows from others cannot be given."""
    state = kit.snapshot(handover="rejected", kexec_count=3)

    assert set(state.facts) == set(FACTS) - set(DERIVED)
    known = {name: fact.value for name, fact in state.facts.items() if fact.value != UNKNOWN}
    assert known == {"handover": "rejected", "kexec_count": 3}
    assert (state.block_size, kit.snapshot(size=8).block_size) == (BLOCK, 8)
    with pytest.raises(TypeError, match="no fact that can be read: held_blocks, weather"):
        kit.snapshot(held_blocks="yes", weather="fine")


def test_never_matches_nowhere() -> None:
    """The rule that stands for any other does not decide, whatever is known."""
    for arch in ("x86_64", UNKNOWN):
        assert engine.decide(kit.policy(kit.NEVER), kit.snapshot(arch=arch)).rule.name == "otherwise"


def test_install_is_what_the_boot_program_reads(tmp_path: Path) -> None:
    """The compiled policy is where the program looks, with a rule that never matches where no other is given."""
    kit.install(tmp_path, otherwise="online-all", allow_cmdline_override=True)
    found = compiled.load((tmp_path / boot.POLICY).read_bytes(), "policy")

    assert found._replace(digest="") == kit.policy(kit.NEVER, otherwise="online-all", allow_cmdline_override=True)


def test_a_guarded_machine_has_its_guard(tmp_path: Path) -> None:
    """The range that was asked for is reserved, and the policy keeps a part of it for kdump if it is told to."""
    root = kit.guarded(tmp_path / "a", "online-safe", "256MiB")
    found = probe.read_snapshot(str(root))

    assert (found.guard, found.facts["guard"].value) == (Range(16 * MIB, 592 * MIB), "full")
    assert compiled.load((root / boot.POLICY).read_bytes(), "policy").keep_crashkernel == "256MiB"


def test_a_fake_root_is_read_as_the_machine_it_stands_for(tmp_path: Path) -> None:
    """By default a cold boot with KHO on, 1 GiB online and 1 GiB in a DIMM."""
    found = probe.read_snapshot(str(make_root(tmp_path)))

    assert (found.facts["handover"].value, found.facts["kho"].value) == ("none", "on")
    states = {number: run.state for run in found.blocks for number in range(run.first, run.last + 1)}
    assert states == {**dict.fromkeys(range(8), "online"), **dict.fromkeys(range(32, 40), "offline")}
    assert numbers("0-2,9") == [0, 1, 2, 9]


def test_a_machine_has_a_map_of_its_firmware(tmp_path: Path) -> None:
    """What computes a guard finds 1 GiB there, and the DIMM in the kernel's map only."""
    root = machine(tmp_path)

    assert len((root / paths.BOOT_PARAMS).read_bytes()) == 4096
    assert "40000000-7fffffff : System RAM" in (root / paths.IOMEM).read_text()
    assert probe.read_snapshot(str(root)).facts["handover"].value == "none" and GIB == 1024 * MIB


@pytest.mark.parametrize("action", ["panic", "reboot", "halt"])
def test_an_image_with_systemd(action: str) -> None:
    """What the kit calls an image with safemem and its units is one without a fault."""
    found = check.inside(kit.archive({**kit.base(), **kit.units(action)}))

    assert found is not None and (found.start, found.fault, found.policy) == ("systemd", "", "live-update-host")


def test_variables_in_front_of_a_script() -> None:
    """Whatever a test says comes through the guest's shell as it is."""
    text = harness.shell("hand-over", NEXT='it\'s $HOME `x` "y"', NUMBER=3)

    assert text.endswith((TESTS / "vm/guest/hand-over.sh").read_text())
    front = text.removesuffix((TESTS / "vm/guest/hand-over.sh").read_text())
    said = subprocess.run(["sh", "-c", f'{front}printf "%s %s" "$NEXT" "$NUMBER"'], capture_output=True, text=True)
    assert said.stdout == 'it\'s $HOME `x` "y" 3'


@pytest.mark.parametrize(
    ("nodeid", "scope"),
    [
        ("tests/test_udevrules.py::test_x[daxdev@$env]", "tests/test_udevrules.py"),
        ("tests/test_pythons.py::test_fast_suite[@3.12]", "3.12"),
        ("tests/vm/test_boot.py::test_luo[off]", "tests/vm/test_boot.py::test_luo[off]"),
        ("tests/vm/test_distro.py::test_cold[@trixie-dracut]", "trixie-dracut"),
        ("tests/vm/test_distro.py::test_failure[wrapper@trixie-dracut]", "trixie-dracut"),
    ],
)
def test_what_shares_a_worker(nodeid: str, scope: str) -> None:
    """Files without guests, and guests whose parameters name what they share."""
    assert conftest.scope(nodeid) == scope


def test_what_guests_took_is_summed_up() -> None:
    """One line for all of them, then one each, the longest first; reports of other tests say nothing."""
    place = ("tests/vm/test_a.py", 1, "test_b")

    def report(name: str, *properties: tuple[str, object]) -> pytest.TestReport:
        return pytest.TestReport(f"{place[0]}::{name}", place, {}, "passed", None, "call", user_properties=properties)

    found = conftest.costs(
        [
            report("test_b", ("guests", [["one", 4.0, 3.5, 1], ["two", 12.25, 9.0, 2]])),
            report("test_c", ("other", 1)),
            report("test_d", ("guests", [["three", 5.0, 4.0, 1]])),
        ]
    )
    assert [(cost.name, cost.kernels, cost.test) for cost in found] == [
        ("two", 2, "test_a.py::test_b"), ("three", 1, "test_a.py::test_d"), ("one", 1, "test_a.py::test_b"),
    ]  # fmt: skip
    lines = [" ".join(line.split()) for line in conftest.lines(found)]
    assert lines[0] == "21.2 s 16.5 s of processor 4 kernels 3 guests"
    assert lines[1] == "12.2 s 9.0 s of processor 2 kernels two test_a.py::test_b"
