# SPDX-License-Identifier: MIT
"""Every system call of the boot program fails in turn: the outcome is the intended one, or a stricter one.

`make test` draws some of the faults, `make nightly` takes them all (SAFEMEM_FAULTS=all).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from safemem.boot import compiled, hold, paths, record
from safemem.boot import main as boot
from safemem.boot.cmdline import sealed
from safemem.boot.model import FINAL, Override, Policy, Term
from safemem.boot.ranges import Range
from safemem.policy import compiler
from tests.fakes import BLOCK, make_root, pci
from tests.faults import REACH, Call, Fault, Machine, drawn, judged
from tests.kit import GUARD, NEVER, policy, rule, shipped, when

#: Boots of each scenario in `make test`.
DRAWN = os.environ.get("SAFEMEM_FAULTS", "120")
_ACCEPTED = {"offered": True, "kho_in": True}
_SMALL = {"online": "0-3", "offline": "32-35"}


def _held(**more: Any) -> Policy:
    """Return a policy that onlines all memory on a cold boot, and otherwise only what is safe."""
    cold = rule("online-all", name="cold", when=when("handover", Term("is", "none")))
    return policy(
        cold, otherwise=rule("online-safe", **more), sources=("kho-scratch", "cmdline", Range(32 * BLOCK, 34 * BLOCK))
    )


class Scenario(NamedTuple):
    """A machine and its policies."""

    name: str
    policy: Policy
    options: dict[str, Any] = {}  # noqa: RUF012  (nobody changes it)
    named: dict[str, Policy] = {}  # noqa: RUF012
    change: Callable[[Path], None] = lambda _: None


def _device_tree(root: Path) -> None:
    shutil.rmtree(root / "sys/kernel/boot_params")
    (root / paths.ARCH).write_text("aarch64\n")
    (root / paths.CHOSEN).mkdir(parents=True)
    for name, data in (("name", b"chosen\0"), ("linux,kho-fdt", bytes(16))):
        (root / paths.CHOSEN / name).write_bytes(data)


def _efi(root: Path) -> None:
    (root / paths.EFIVARS).mkdir(parents=True)
    (root / paths.EFIVARS / "Timeout-x").write_bytes(bytes(6))
    (root / paths.ATTEMPTS).write_bytes(b"\7\0\0\0\1\0\0\0")


def _old_kernel(root: Path) -> None:
    (root / paths.LOAD_LIMIT).unlink()


def _kmem(root: Path) -> None:
    with (root / paths.IOMEM).open("a") as file:
        file.write(f"{32 * BLOCK:x}-{36 * BLOCK - 1:x} : System RAM (kmem)\n")


def _own_rule(root: Path) -> None:
    for name in ("etc/udev/rules.d/40-vendor.rules", hold.INITRD):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('SUBSYSTEM=="memory", ATTR{state}="online"\n')


def _device(root: Path) -> None:
    pci(root)
    pci(root, "0000:00:05.0", driver=True)


def _available(root: Path) -> None:
    (root / paths.MEMINFO).write_text("MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n")
    (root / paths.UPTIME).write_text("1.00 1.00\n")


def _all(action: str, **more: Any) -> Policy:
    """Return a policy that is all `action`."""
    return policy(NEVER, otherwise=rule(action, accept_data_exposure=action == "online-all"), **more)


def _token(root: Path) -> None:
    """Leave what a look at the token has found, as a second run of the program finds it, and a device that does not answer."""
    (root / paths.TOKEN_TAKEN).parent.mkdir(parents=True)
    (root / paths.TOKEN_TAKEN).write_text(f"right {'0' * 64} the predecessor's token came through LUO\n")
    (root / paths.LUO_DEVICE).touch()


_KMEM = (Override(driver="kmem", hold=True),)
_BOUND = policy(rule("reboot", name="twice", when=when("boot_attempts", Term("<", 2))), otherwise="panic", name="bound")
SCENARIOS = [
    Scenario("cold", shipped("live-update-host")),
    Scenario("accepted", shipped("live-update-host"), _ACCEPTED),
    Scenario("rejected", shipped("live-update-host"), {"offered": True}),
    Scenario("orphaned", shipped("live-update-host"), {"offered": True, "kho_out": False, "cmdline": "kho=off"}),
    Scenario("unsupported", shipped("maintenance"), {"offered": True, "kho_out": False, "config": "CONFIG_64BIT=y\n"}),
    Scenario("no debugfs", shipped("maintenance"), {"offered": True, "debugfs": False}),
    Scenario("lost", shipped("live-update-host"), GUARD),
    Scenario("lost and held", shipped("maintenance"), GUARD),
    Scenario("rejected with a guard", shipped("maintenance"), {"offered": True, **GUARD}),
    Scenario("rejected, an older kernel", shipped("maintenance"), {"offered": True, **GUARD}, {}, _old_kernel),
    Scenario("rejected, safe ranges named", shipped("maintenance"), {"offered": True, "cmdline": "kho=on safemem.safe=0x100000000-0x107ffffff"}),
    Scenario("accepted without sessions", shipped("maintenance"), {**_ACCEPTED, "luo": False}),
    Scenario("device tree", shipped("maintenance"), {"offered": True}, {}, _device_tree),
    Scenario("dax", shipped("dax-guests"), {"offered": True}),
    Scenario("minimal", shipped("minimal")),
    Scenario("virtio-mem", shipped("virtio-mem-guest"), _ACCEPTED),
    Scenario("quarantine", _held(boot_memory="offline", floor="1MiB"), {"offered": True}, {}, _available),
    Scenario("shortfall ends the boot", _held(on_shortfall="panic", exposed_max="70%"), {"offered": True}),
    Scenario("hold, or reboot", _held(on_shortfall="reboot"), {"offered": True, **GUARD}),
    Scenario("a device is stopped", _held(quiesce="pci", on_shortfall="panic"), {"offered": True}, {}, _device),
    Scenario("kmem is held", _all("online-all", memory=_KMEM), {}, {}, _kmem),
    Scenario("named stricter", shipped("development"), {"cmdline": "kho=on safemem.policy=strict"}, {"strict": _all("panic")}),
    Scenario("named holds kmem", shipped("live-update-host"), {"cmdline": "kho=on safemem.policy=strict"}, {"strict": _all("online-all", memory=_KMEM)}, _kmem),
    Scenario("a rules file of the image", shipped("maintenance"), {"offered": True}, {}, _own_rule),
    Scenario("counted boots", _BOUND, {"offered": True}, {}, _efi),
    Scenario("a trusted guard", _held()._replace(trust_guard=True), {"offered": True, "debugfs": False, "cmdline": GUARD["cmdline"]}),
    Scenario("a token", shipped("maintenance")._replace(retrieve_token=True), {"offered": True, "kho_out": False, "luo": True, "config": "CONFIG_KEXEC_HANDOVER=y\n", "cmdline": f"safemem.token={sealed('0' * 64)}"}, {}, _token),
]  # fmt: skip


class Outcome(NamedTuple):
    """How a boot ended."""

    goes_on: bool
    online: frozenset[int]  #: blocks
    normal: frozenset[int]  #: of these, those in the kernel's zone, which no live update survives
    auto_online: str
    holds: bool  #: what arrives, as udev has it
    guard: str  #: bytes reserved
    load_limit: str  #: "" where the kernel has none
    hidden: frozenset[str]  #: rules files and units
    complete: bool
    short: bool  #: by its own account less is held than was decided
    final: bool  #: the rule that decided ends the boot over a shortfall
    masters: frozenset[str]  #: PCI functions that may write to memory and have no driver

    def looser(self, got: Outcome, held: frozenset[int]) -> tuple[list[str], list[str]]:
        """Return in which ways `got` is looser than this, and of these what its record owns up to; `held` are offline at first."""
        if not got.goes_on:
            return [], []
        if not self.goes_on:
            return ["the boot goes on"], []
        found: list[str] = []
        said: list[str] = []
        for what, differs in (
            ("held memory is online", bool((got.online - self.online) & held)),
            ("arrivals are not held", self.holds and not got.holds),
            ("the guard is given back", got.guard != self.guard),
            ("the kernel's zone", bool((got.normal - self.normal) & held)),
            ("a device may write to memory", bool(got.masters - self.masters)),
            ("a shortfall that the policy ends the boot over", self.final and got.final and got.short),
        ):
            found += [what] if differs else []
        for what, differs in (
            ("boot memory is online", bool(got.online - self.online - held)),
            ("the kernel onlines what arrives", self.auto_online == "offline" and got.auto_online != "offline"),
            ("a crash kernel may be loaded", self.load_limit == "0" and got.load_limit != "0"),
            ("rules are in force", bool(self.hidden - got.hidden)),
        ):
            if differs:
                (found if got.complete else said).append(what)
        return found, said


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def outcome(root: Path, status: int) -> Outcome:
    """Return how a boot of `root` ended that left `status`; the wrapper asks for the last line of the environment as well."""
    env = _read(root / record.ENV).splitlines()
    try:
        document = json.loads(_read(root / record.RECORD))
        complete = bool(document["result"]["complete"])
        short = bool(set(document["result"]["problem_codes"]) - {"not-onlined"})
        final = document["decision"]["on_shortfall"] in FINAL
    except (ValueError, TypeError, KeyError):
        complete = short = final = False
    states = {int(path.name[6:]): path for path in (root / paths.MEMORY).glob("memory*")}
    online = frozenset(number for number, path in states.items() if _read(path / "state") == "online")
    folders = (root / hold.UDEV_RUN, root / hold.UNITS_RUN)
    return Outcome(
        goes_on=status == 0 and "SAFEMEM_FINISHED=yes" in env,
        online=online,
        normal=frozenset(number for number in online if _read(states[number] / "valid_zones").split() == ["Normal"]),
        auto_online=_read(root / paths.AUTO_ONLINE),
        holds="SAFEMEM_ARRIVALS=hold" in env,
        guard=_read(root / paths.CRASH_SIZE),
        load_limit=_read(root / paths.LOAD_LIMIT),
        hidden=frozenset(
            path.name for folder in folders if folder.exists() for path in folder.iterdir() if path.is_symlink()
        ),
        complete=complete,
        short=short,
        final=final,
        masters=frozenset(
            path.parent.name
            for path in (root / paths.PCI_DEVICES).glob("*/config")
            if path.read_bytes()[4] & 4 and not path.with_name("driver").is_symlink()
        ),
    )


def machine(base: Path, scenario: Scenario) -> Machine:
    """Return the scenario's machine."""
    root = make_root(base, **{**_SMALL, **scenario.options})
    scenario.change(root)
    place = root / boot.POLICIES
    place.mkdir(parents=True)
    (root / boot.POLICY).write_bytes(compiler.dump(scenario.policy))
    (root / boot.MASKS).write_bytes(compiled.names_text(["40-vendor.rules"]))
    for name, one in scenario.named.items():
        (place / f"{name}.json").write_bytes(compiler.dump(one))
    return Machine(root)


def run(fake: Machine, fault: Fault | None = None) -> Outcome:
    """Boot the machine once."""
    fake.restore()
    with fake.failing(fault):
        status = boot.main(["--root", str(fake.root)])
    return outcome(fake.root, status)


def by_design(call: Call, kind: str) -> bool:
    """Return whether a fault is an answer and no fault: what nobody passed, counted, has or drives is not there."""
    answers = call.path in (paths.ATTEMPTS, paths.LOAD_LIMIT, boot.POLICIES) or call.path.endswith("/driver")
    return kind == "ENOENT" and answers


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.name for scenario in SCENARIOS])
def test_no_fault_ends_looser(tmp_path: Path, scenario: Scenario, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever fails, memory that is held undisturbed stays held, and a boot that ends undisturbed ends."""
    fake = machine(tmp_path, scenario)
    meant = run(fake)
    action = json.loads((fake.root / record.RECORD).read_text())["decision"]["action"]
    assert meant.goes_on != (action in FINAL), (
        "undisturbed it does not come to its end, so no fault could show anything"
    )
    again = run(fake)
    assert meant == again, "a boot leaves the machine such that the next one ends otherwise"
    calls = fake.calls
    states = (fake.root / paths.MEMORY).glob("memory*")
    held = frozenset(range(32, 36)) & frozenset(int(path.name[6:]) for path in states)
    faults = [
        Fault(at, kind, reach)
        for at, call in enumerate(calls)
        for kind in call.kinds
        for reach in REACH
        if not by_design(call, kind)
    ]

    def judge(fault: Fault) -> tuple[list[str], list[str]]:
        return meant.looser(run(fake, fault), held)

    assert judged(scenario.name, calls, drawn(faults, DRAWN), judge, capsys) == []
