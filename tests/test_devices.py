# SPDX-License-Identifier: MIT
"""PCI functions that may write to memory: found, named, and stopped where a rule asks."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot import devices, engine, files, paths, probe, record
from safemem.boot import main as boot
from safemem.boot.model import Device, Fact, Note
from safemem.cli import main as command
from safemem.host import reader
from safemem.policy.forecast import forecast
from tests.fakes import make_root, pci
from tests.kit import install, policy, rule, snapshot

EDU = Device("0000:00:04.0", 0x1234, 0x11E8)
ON, OFF = 0x0107, 0x0103
#: Of a machine that is no subject of this page: a bridge, a function with a driver, one that is off, one that has gone.
ORDINARY: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("0000:00:00.0", ON, {"base_class": 6}),
    ("0000:00:01.0", ON, {"header": 0x81}),
    ("0000:00:02.0", ON, {"driver": True}),
    ("0000:00:03.0", OFF, {}),
    ("0000:00:05.0", 0xFFFF, {"ids": (0xFFFF, 0xFFFF)}),
)


def machine(base: Path, **options: Any) -> Path:
    """Return a rejecting machine with the ordinary functions and EDU, which may write to memory."""
    root = make_root(base, offered=True, **options)
    for address, value, more in ORDINARY:
        pci(root, address, value, **more)
    pci(root)
    return root


def bus(root: Path) -> tuple[Fact, tuple[Device, ...]]:
    """Return the fact and the functions that it is about."""
    facts, masters = devices.read(str(root))
    return facts["bus_masters"], masters


def word(root: Path, address: str = EDU.address) -> int:
    """Return a function's command register."""
    data = (root / paths.PCI_DEVICES / address / "config").read_bytes()
    return int.from_bytes(data[4:6], "little")


def commands(root: Path) -> dict[str, bytes]:
    """Return the whole configuration of every function."""
    return {path.parent.name: path.read_bytes() for path in (root / paths.PCI_DEVICES).glob("*/config")}


# ---- what is found


def test_a_function_that_nobody_owns_is_named(tmp_path: Path) -> None:
    root = machine(tmp_path)
    assert bus(root) == (Fact("some", paths.PCI_DEVICES), (EDU,))
    found = probe.read_snapshot(str(root))
    assert found.masters == (EDU,) and found.facts["bus_masters"].value == "some"


def test_bridges_owned_quiet_and_gone_ones_are_not(tmp_path: Path) -> None:
    root = machine(tmp_path)
    shutil.rmtree(root / paths.PCI_DEVICES / EDU.address)
    assert bus(root) == (Fact("none", paths.PCI_DEVICES), ())


def test_a_virtual_function_is_named_by_the_kernel(tmp_path: Path) -> None:
    """It answers all ones for vendor and device, as one that has gone does, and writes to memory all the same."""
    pci(tmp_path, "10000:e1:1f.7", 0x0004, ids=(0x8086, 0x154C), virtual=True)
    assert bus(tmp_path) == (Fact("some", paths.PCI_DEVICES), (Device("10000:e1:1f.7", 0x8086, 0x154C),))


def _folder(config: Path) -> None:
    config.unlink()
    config.mkdir()


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda config: config.unlink(), "no such file or directory"),
    "empty": (lambda config: config.write_bytes(b""), "its configuration is cut off"),
    "short": (lambda config: config.write_bytes(config.read_bytes()[:15]), "its configuration is cut off"),
    "folder": (_folder, "is a directory"),
}


@pytest.mark.parametrize("damage", UNREADABLE)
def test_one_that_cannot_be_read_hides_no_other(tmp_path: Path, damage: str) -> None:
    change, why = UNREADABLE[damage]
    change(pci(tmp_path, "0000:00:02.0"))
    place = f"{paths.PCI_DEVICES}/0000:00:02.0"
    assert bus(tmp_path) == (Fact("unknown", paths.PCI_DEVICES, f"{place}: {why}"), ())
    change(pci(tmp_path, "0000:00:03.0"))
    pci(tmp_path)
    assert bus(tmp_path) == (Fact("some", paths.PCI_DEVICES, f"{place}: {why}; and 1 more"), (EDU,))


def test_a_name_that_is_no_address(tmp_path: Path) -> None:
    pci(tmp_path, "0000:00:04.8")
    (tmp_path / paths.PCI_DEVICES / b"\xff\x1b[31m".decode("utf-8", "surrogateescape")).mkdir()
    reason = f"{paths.PCI_DEVICES}: what is there is not named as PCI functions are"
    assert bus(tmp_path) == (Fact("unknown", paths.PCI_DEVICES, reason), ())


def test_a_driver_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pci(tmp_path)
    monkeypatch.setattr(files, "exists", lambda *_: None)
    fact, masters = bus(tmp_path)
    assert (fact.value, fact.reason) == (
        "unknown",
        f"{paths.PCI_DEVICES}/{EDU.address}: whether a driver owns it cannot be told",
    )
    assert masters == ()


@pytest.mark.parametrize("text", ["", "none", "0x1_0000", "-1", "0x10000"])
def test_a_virtual_function_without_a_name(tmp_path: Path, text: str) -> None:
    pci(tmp_path, virtual=True).with_name("device").write_text(f"{text}\n" if text else "")
    fact, masters = bus(tmp_path)
    assert (fact.value, masters) == ("unknown", ())


@pytest.mark.parametrize(
    ("folders", "value", "reason"),
    [
        (["sys/bus/platform"], "none", ""),
        (["sys/bus"], "unknown", "sys/bus is empty"),
        (["sys"], "unknown", "sys/bus: no such file or directory"),
        (["sys/bus/pci"], "unknown", "sys/bus/pci/devices is not there"),
        (["sys/bus/pci/devices"], "unknown", "sys/bus/pci/devices is empty"),
    ],
)
def test_a_bus_that_is_not_shown(tmp_path: Path, folders: list[str], value: str, reason: str) -> None:
    """Only a machine that shows its other buses has no PCI; what is empty may be hidden by a mount."""
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    fact, masters = bus(tmp_path)
    assert (fact.value, fact.reason, masters) == (value, reason, ())


def test_a_bus_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "sys/bus/pci").mkdir(parents=True)
    (tmp_path / paths.PCI_DEVICES).write_text("")
    assert bus(tmp_path)[0] == Fact("unknown", paths.PCI_DEVICES, f"{paths.PCI_DEVICES}: not a directory")


def test_hundreds_of_functions_take_milliseconds(tmp_path: Path) -> None:
    for number in range(1000):
        pci(tmp_path, f"0000:{number // 256:02x}:{number // 8 % 32:02x}.{number % 8}", OFF, driver=True)
    best = min(_seconds(lambda: bus(tmp_path)) for _ in range(5))
    assert best < 0.25


def _seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


@pytest.mark.parametrize("text", ["0000:00:04.0", "10000:e1:1f.7", "deadbeef:ff:00.3"])
def test_addresses(text: str) -> None:
    assert devices.is_address(text)


@pytest.mark.parametrize(
    "text",
    ["", "0000:00:04", "000:00:04.0", "0000:00:04.8", "0000:00:20.0", "0000:00:04.0 ", "0000:0G:04.0", "0000:00:04.00",
     "0000:00:04.0/..", "../00:04.0", "0000:00:\u0664\u0664.0", "0000:00:04.0\n", "0000:00:04:0", "123456789:00:04.0"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    assert not devices.is_address(text)


# ---- the IOMMU


@pytest.mark.parametrize(
    ("units", "groups", "value", "reason"),
    [
        (["dmar0"], ["0", "1"], "on", "2 groups of functions"),
        ([], [], "off", ""),
        (None, None, "off", ""),
        (None, [], "off", ""),
        (["dmar0"], [], "unknown", "it is empty, and sys/class/iommu is not"),
        (["dmar0"], None, "unknown", "it is empty, and sys/class/iommu is not"),
        ([], ["0"], "unknown", "it is empty, and sys/kernel/iommu_groups is not"),
    ],
)
def test_iommu(tmp_path: Path, units: list[str] | None, groups: list[str] | None, value: str, reason: str) -> None:
    for place, entries in ((paths.IOMMU_CLASS, units), (paths.IOMMU_GROUPS, groups)):
        (tmp_path / place).parent.joinpath("other").mkdir(parents=True)
        if entries is not None:
            (tmp_path / place).mkdir()
            for name in entries:
                (tmp_path / place / name).mkdir()
    fact = devices.read(str(tmp_path))[0]["iommu"]
    assert (fact.value, fact.reason) == (value, reason)


@pytest.mark.parametrize("hidden", [paths.IOMMU_CLASS, paths.IOMMU_GROUPS])
@pytest.mark.parametrize("how", ["file", "nothing above", "empty above"])
def test_an_iommu_that_cannot_be_looked_at(tmp_path: Path, hidden: str, how: str) -> None:
    for place in (paths.IOMMU_CLASS, paths.IOMMU_GROUPS):
        (tmp_path / place).mkdir(parents=True)
    above = (tmp_path / hidden).parent
    shutil.rmtree(above if how != "file" else tmp_path / hidden)
    if how == "file":
        (tmp_path / hidden).write_text("")
    elif how == "empty above":
        above.mkdir()
    assert devices.read(str(tmp_path))[0]["iommu"].value == "unknown"


# ---- what a decision says of them


def codes(
    handover: str = "rejected", iommu: str = "on", masters: tuple[Device, ...] = (EDU,), **more: Any
) -> list[str]:
    """Return the codes of what a decision warns of."""
    found = snapshot(handover=handover, iommu=iommu)._replace(masters=masters)
    decided = engine.decide(policy(otherwise=rule(**{"action": "online-safe", **more})), found)
    return [note.code for note in decided.warnings if note.code in engine.PLANNED[4:]]


def test_an_iommu_that_lets_everything_through(tmp_path: Path) -> None:
    """As with `iommu=pt`: off, once all groups say so."""
    for name in ("0", "1"):
        (tmp_path / paths.IOMMU_GROUPS / name).mkdir(parents=True)
        (tmp_path / paths.IOMMU_GROUPS / name / "type").write_text("identity\n")
    (tmp_path / paths.IOMMU_CLASS / "dmar0").mkdir(parents=True)
    found = devices.read(str(tmp_path))[0]["iommu"]
    assert found.value == "off" and "type identity" in found.reason

    (tmp_path / paths.IOMMU_GROUPS / "1" / "type").write_text("DMA-FQ\n")
    assert devices.read(str(tmp_path))[0]["iommu"].value == "on"


def test_what_is_not_known_is_said() -> None:
    """A bus that a rule wants stopped and nobody can see, functions without a name, an IOMMU that cannot be told."""
    unseen = snapshot(handover="rejected", bus_masters="unknown")
    asks = policy(otherwise=rule("online-safe", quiesce="pci"))
    assert "devices-unknown" in [note.code for note in engine.decide(asks, unseen).warnings]
    some = snapshot(handover="rejected", bus_masters="some")
    assert "devices-write" in [note.code for note in engine.decide(policy(otherwise="online-safe"), some).warnings]
    assert codes("rejected", "unknown") == ["devices-write", "no-iommu"]


@pytest.mark.parametrize("handover", ["lost", "rejected", "orphaned", "unsupported", "unknown"])
def test_what_nobody_claims_is_said(handover: str) -> None:
    assert codes(handover) == ["devices-write"] and codes(handover, "off") == ["devices-write", "no-iommu"]
    assert codes(handover, "unknown") == ["devices-write", "no-iommu"]
    assert codes(handover, "off", quiesce="pci") == ["devices-stopped", "no-iommu"]
    assert codes(handover, action="panic", quiesce="pci") == ["devices-write"]
    assert codes(handover, "off", ()) == [] and codes(handover, "off", (), quiesce="pci") == ["devices-unknown"]


@pytest.mark.parametrize("handover", ["none", "accepted"])
def test_what_has_an_owner_is_not_said(handover: str) -> None:
    assert codes(handover, "off") == [] and codes(handover, "off", quiesce="pci") == ["devices-stopped"]


def test_the_sentences() -> None:
    more = tuple(Device(f"0000:00:0{number}.0", 1, number) for number in range(5, 8))
    found = snapshot(handover="lost", iommu="off")._replace(masters=(EDU, *more))
    left, stopped = (
        engine.decide(policy(otherwise=rule(quiesce=word)), found._replace(masters=masters)).warnings
        for word, masters in (("", (EDU, *more)), ("pci", (EDU,)))
    )
    assert (
        "4 PCI functions may still write to memory: 0000:00:04.0 (1234:11e8), 0000:00:05.0 (0001:0005),"
        " 0000:00:06.0 (0001:0006), 0000:00:07.0 (0001:0007); no driver owns them"
    ) in left
    assert "there is no IOMMU in the way: a stray device reaches all memory" in left
    assert (
        "1 PCI function is stopped before memory is touched: 0000:00:04.0 (1234:11e8);"
        " that stops no device behind a driver, no core that goes on running and nothing of firmware's"
    ) in stopped
    many = tuple(Device(f"0000:00:0{number}.{each}", 1, 1) for number in range(2) for each in range(8))
    text = engine.decide(policy(otherwise="panic"), found._replace(masters=many)).warnings[0]
    assert text.startswith("16 PCI functions") and "0000:00:00.3 (0001:0001), and 12 more; no driver" in text


# ---- stopping them


def test_one_bit_of_one_function_changes(tmp_path: Path) -> None:
    root = machine(tmp_path)
    before = commands(root)
    assert devices.quiesce(str(root), (EDU,)) == devices.Stopped((EDU.address,))
    whole = bytearray(before[EDU.address])
    whole[4] &= ~4
    assert commands(root) == {**before, EDU.address: bytes(whole)}
    assert bus(root)[0].value == "none"


def stopped(root: Path) -> devices.Stopped:
    """Return what comes of stopping EDU."""
    return devices.quiesce(str(root), (EDU,))


def _not(why: str) -> str:
    return f"PCI function {EDU} may still write to memory: {why}"


def test_another_function_is_left_alone(tmp_path: Path) -> None:
    pci(tmp_path, ids=(0x1AF4, 0x1000))
    found = stopped(tmp_path)
    assert found.addresses == () and word(tmp_path) == ON
    assert found.problems == (_not("it is another one by now, 1af4:1000"),)


def test_a_driver_that_came_first(tmp_path: Path) -> None:
    pci(tmp_path, driver=True)
    text = f"PCI function {EDU} is left alone: a driver owns it by now"
    assert stopped(tmp_path) == devices.Stopped(owned=(Note(devices.OWNED, text),)) and word(tmp_path) == ON


def test_one_that_has_gone(tmp_path: Path) -> None:
    pci(tmp_path, "0000:00:1f.0", OFF)
    assert stopped(tmp_path).problems == (_not("no such file or directory"),)


def test_one_that_is_cut_off(tmp_path: Path) -> None:
    config = pci(tmp_path)
    config.write_bytes(config.read_bytes()[:8])
    found = stopped(tmp_path)
    assert found.problems[0] == _not("its configuration is cut off") and word(tmp_path) == ON


def test_one_that_stays_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pci(tmp_path)
    monkeypatch.setattr(files, "write_at", lambda *_: None)
    assert stopped(tmp_path).problems == (_not("bus mastering stays on"),)


def test_one_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel refuses it in lockdown."""
    pci(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files, "write_at", refuse)
    found = stopped(tmp_path)
    assert found.problems == (_not("operation not permitted"),) and found.problems[0].code == devices.NOT_QUIESCED


def test_one_that_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the look afterwards finds counts."""
    config = pci(tmp_path)
    look = devices.look

    def start(root: str) -> devices.Bus:
        files.write_at(root, f"{paths.PCI_DEVICES}/{EDU.address}/config", 4, ON.to_bytes(2, "little"))
        return look(root)

    monkeypatch.setattr(devices, "look", start)
    assert stopped(tmp_path) == devices.Stopped(
        problems=(Note(devices.NOT_QUIESCED, f"PCI function {EDU} may write to memory again"),)
    )
    assert config.exists()


def test_one_that_a_driver_takes_while_it_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not said to have no bus mastering: the driver may have set that again, or lacks it."""
    root, real = machine(tmp_path), files.write_at

    def bound(*words: Any) -> None:
        real(*words)
        (root / paths.PCI_DEVICES / EDU.address / "driver").mkdir()

    monkeypatch.setattr(files, "write_at", bound)
    stopped = devices.quiesce(str(root), (EDU,))
    assert (stopped.addresses, stopped.problems) == ((), ())
    assert [note.code for note in stopped.owned] == [devices.OWNED] and "may have been cleared" in stopped.owned[0]


def test_one_that_came_since_the_decision(tmp_path: Path) -> None:
    pci(tmp_path)
    pci(tmp_path, "0000:00:06.0", ids=(1, 2))
    found = stopped(tmp_path)
    assert found.addresses == (EDU.address,)
    assert found.problems == ("PCI function 0000:00:06.0 (0001:0002) may write to memory since the decision",)
    assert word(tmp_path, "0000:00:06.0") == ON  # nobody has decided on it


def test_a_bus_that_cannot_be_seen_is_not_stopped(tmp_path: Path) -> None:
    found = devices.quiesce(str(tmp_path), ())
    assert found.problems == (
        "which PCI functions may write to memory cannot be told: sys/bus: no such file or directory",
    )
    assert found.problems[0].code == devices.NOT_QUIESCED


@pytest.mark.parametrize("size", [0, 1])
def test_a_write_of_half_a_word_is_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    pci(tmp_path)
    monkeypatch.setattr("posix.pwrite", lambda *_: size)
    assert stopped(tmp_path).problems == (_not(f"{size} of 2 bytes were written"),)


# ---- in a boot


def decided(root: Path) -> dict[str, Any]:
    """Boot the machine and return its record."""
    boot.main(["--root", str(root)])
    loaded: dict[str, Any] = json.loads((root / record.RECORD).read_text())
    return loaded


def test_a_rule_that_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded first, then stopped, before memory is touched; all of it in the record."""
    root = machine(tmp_path)
    install(root, otherwise=rule(quiesce="pci"))
    put, seen = files.write_at, []

    def look(*words: Any) -> None:
        loaded = json.loads((root / record.RECORD).read_text())
        seen.append((loaded["snapshot"]["masters"], loaded["result"]))
        assert not (root / "run/udev").exists()  # masks come afterwards
        put(*words)

    monkeypatch.setattr(files, "write_at", look)
    document = decided(root)
    named = [{"address": EDU.address, "vendor": 0x1234, "device": 0x11E8}]
    assert seen == [(named, None)] and word(root) == OFF
    assert document["result"]["quiesced"] == [EDU.address] and document["snapshot"]["masters"] == named
    assert (document["result"]["problems"], document["result"]["shortfall"]) == ([], None)
    assert "devices-stopped" in document["decision"]["warning_codes"]


@pytest.mark.parametrize("action", ["panic", "reboot", "halt"])
def test_an_end_of_the_boot_stops_nothing(tmp_path: Path, action: str) -> None:
    root = machine(tmp_path)
    install(root, otherwise=rule(action, quiesce="pci"))
    before = commands(root)
    decided(root)
    assert commands(root) == before


def test_a_rule_that_does_not_ask(tmp_path: Path) -> None:
    root = machine(tmp_path)
    install(root, otherwise="online-safe")
    before = commands(root)
    document = decided(root)
    assert commands(root) == before and "quiesced" not in document["result"]
    assert "devices-write" in document["decision"]["warning_codes"]


@pytest.mark.parametrize("more", [{"observe": True}, {"allow_cmdline_override": True}], ids=["observed", "dry run"])
def test_what_is_not_done_stops_nothing(tmp_path: Path, more: dict[str, Any]) -> None:
    root = machine(tmp_path, cmdline="kho=on safemem.dry_run")
    install(root, otherwise=rule(quiesce="pci"), **more)
    before = commands(root)
    decided(root)
    assert commands(root) == before


@pytest.mark.parametrize("action", ["online-safe", "online-all"])
def test_one_that_stays_on_is_a_shortfall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """Whatever memory comes into use: what writes to it is not stopped, so the rule's `on_shortfall` applies."""
    root = machine(tmp_path, offline="")
    install(root, otherwise=rule(action, quiesce="pci", on_shortfall="panic", accept_data_exposure=True))
    monkeypatch.setattr(files, "write_at", lambda *_: None)
    document = decided(root)
    result = document["result"]
    assert result["shortfall"] == _not("bus mastering stays on") and not result["complete"]
    assert devices.NOT_QUIESCED in result["problem_codes"] and "quiesced" not in result
    assert "end action=panic code=shortfall" in (root / "dev/kmsg").read_text()


def test_one_that_a_driver_has_taken_is_no_shortfall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = machine(tmp_path)
    install(root, otherwise=rule(quiesce="pci", on_shortfall="panic"))
    quiesce = devices.quiesce

    def bind(base: str, wanted: tuple[Device, ...]) -> devices.Stopped:
        (root / paths.PCI_DEVICES / EDU.address / "driver").symlink_to("x")
        return quiesce(base, wanted)

    monkeypatch.setattr(devices, "quiesce", bind)
    result = decided(root)["result"]
    assert result["problem_codes"] == [devices.OWNED] and result["shortfall"] is None and word(root) == ON


# ---- what reads it back


def test_a_capture_comes_back(tmp_path: Path) -> None:
    found = probe.read_snapshot(str(machine(tmp_path)))
    assert found.masters == (EDU,)
    assert reader.snapshot_from_text(reader.capture_text(found), "x") == found
    older = json.loads(reader.capture_text(found))
    del older["snapshot"]["masters"]
    assert reader.snapshot_from_text(json.dumps(older), "x") == found._replace(masters=())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("address", "../4", "address: `../4` is no address of a PCI function, such as 0000:00:03.0"),
        ("address", 4, "address: should be text"),
        ("vendor", 0x10000, "vendor: `65536` should be a number of 16 bits"),
        ("device", -1, "device: `-1` should be a whole number from 0 to 2^64"),
        ("device", "0x1", "device: `0x1` should be a whole number from 0 to 2^64"),
    ],
)
def test_a_foreign_capture(tmp_path: Path, key: str, value: object, message: str) -> None:
    document = json.loads(reader.capture_text(probe.read_snapshot(str(machine(tmp_path)))))
    document["snapshot"]["masters"][0][key] = value
    with pytest.raises(reader.Invalid) as caught:
        reader.snapshot_from_text(json.dumps(document), "x")
    assert str(caught.value) == f"x: snapshot.masters[0].{message}"


def test_a_record_comes_back(tmp_path: Path) -> None:
    root = machine(tmp_path)
    install(root, otherwise=rule(quiesce="pci"))
    document = decided(root)
    found = reader.record_from_text(json.dumps(document), "x")
    assert found.done is not None and found.done.quiesced == (EDU.address,)
    document["result"]["quiesced"] = ["\x1b[31m"]
    with pytest.raises(reader.Invalid, match="is no address of a PCI function"):
        reader.record_from_text(json.dumps(document), "x")


@given(st.binary(max_size=80))
def test_any_configuration_is_read(data: bytes) -> None:
    """Whatever a function answers, it is one that may write, one that may not, or one of which nobody knows."""
    with tempfile.TemporaryDirectory() as base:
        config = pci(Path(base))
        config.write_bytes(data)
        fact, masters = bus(Path(base))
        assert (fact.value == "some") == bool(masters)
        assert fact.value == "unknown" if len(data) < 16 else fact.value in ("none", "some")
        if fact.value == "some":
            assert data[4] & 4 and data[11] != 6 and data[14] & 0x7F != 1


def test_simulate_says_it(tmp_path: Path) -> None:
    found = probe.read_snapshot(str(machine(tmp_path)))
    (tmp_path / "capture.json").write_text(reader.capture_text(found))
    outcome = CliRunner().invoke(command, ["simulate", "maintenance", "--state", str(tmp_path / "capture.json")])
    below = outcome.stdout.partition("not protected")[2]
    assert f"1 PCI function may still write to memory: {EDU}; no driver owns them" in " ".join(below.split())


def test_simulate_knows_what_quiesce_cannot_see(tmp_path: Path) -> None:
    """With a bus that cannot be seen the outcome is a shortfall, at the desk as in the boot."""
    root = machine(tmp_path)
    shutil.rmtree(root / "sys/bus")
    asks = policy(otherwise=rule(quiesce="pci", on_shortfall="panic"))
    install(root, otherwise=asks.otherwise)
    found = probe.read_snapshot(str(root))
    foreseen = forecast(engine.decide(asks, found), found)
    result = decided(root)["result"]
    assert foreseen.ends == "panic" and foreseen.short == result["shortfall"]
    assert foreseen.short == f"{devices.UNSEEN}: sys/bus: no such file or directory"


def test_status_says_it(tmp_path: Path) -> None:
    """What was stopped, and what that does not stop."""
    root = machine(tmp_path)
    install(root, otherwise=rule(quiesce="pci"))
    decided(root)
    shown = " ".join(CliRunner().invoke(command, ["status", "--root", str(root)]).stdout.split())
    assert f"stopped PCI {EDU.address}: no bus mastering" in shown
    assert f"warning 1 PCI function is stopped before memory is touched: {EDU}; that stops no device behind" in shown
