# SPDX-License-Identifier: MIT
"""What the guests of several tests share: policies, the archive with one, guests that decide, and what they reported."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from safemem.boot.model import Snapshot
from safemem.boot.ranges import Range, parse_range, size_text
from safemem.cli import main
from safemem.host import reader
from safemem.initramfs import build, items
from safemem.policy import compiler, load
from tests.kit import proof
from tests.vm import harness
from tests.vm.harness import Guest, Result

#: The DIMM's blocks come after a hole below 4 GiB.
HELD, ALL_ONLINE = "offline*8", "online*8"
BLOCK = 128 << 20
DIMM = 0x1_0000_0000

#: `make nightly`: every combination, where `make test` takes one of each kind.
ALL = bool(os.environ.get("SAFEMEM_ALL"))

#: The command in this machine's own environment, on its root: a guest shares it, read-only.
SAFEMEM = f"{Path(sys.executable).parent}/safemem"
SHARE = ("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap")
COMMAND = harness.shell("command", SAFEMEM=SAFEMEM)
#: 1 MiB that neither the kernel nor its allocator may touch (memmap=, ramoops: Documentation/admin-guide).
RAMOOPS = "memmap=1M$0x18000000 ramoops.mem_address=0x18000000 ramoops.mem_size=0x100000 ramoops.record_size=0x8000 ramoops.console_size=0x8000"
#: Files of the names that are known, each with one way to online memory, in our words.
VENDOR = {
    "40-redhat.rules": 'SUBSYSTEM=="memory", ACTION=="add", ATTR{state}=="offline", ATTR{state}="online"\n',
    "40-vm-hotadd.rules": 'SUBSYSTEM=="memory", ACTION=="add", DEVPATH=="/devices/system/memory/memory[0-9]*", ATTR{state}="online"\n',
    "80-hotplug-cpu-mem.rules": 'SUBSYSTEM=="memory", ACTION=="add", RUN+="/bin/sh -c \'echo online > /sys$devpath/state\'"\n',
    "90-daxctl-device.rules": 'SUBSYSTEM=="dax", ACTION=="add", TAG+="systemd", ENV{SYSTEMD_WANTS}="daxdev-reconfigure@$env{DEVNAME}.service"\n',
}
#: In the real root only: no archive knew of it, and in /etc it wins over any mask in /run.
SITE = 'SUBSYSTEM=="memory", ACTION=="add|change", \\\n  ATTR{state}="online_movable"\n'
#: Commands for QEMU that plug another DIMM, blocks 40 to 47.
PLUG: list[dict[str, Any]] = [
    {"execute": "object-add", "arguments": {"qom-type": "memory-backend-ram", "id": "more", "size": 1 << 30}},
    {"execute": "device_add", "arguments": {"driver": "pc-dimm", "id": "dimm1", "memdev": "more"}},
]


def machine_root(result: Result, folder: Path) -> str:
    """Unpack into `folder` what the guest reported as its `machine`; return it as a root to look at."""
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(result.report["machine"]))) as archive:
        archive.extractall(folder)
    return str(folder)


def efi(folder: Path) -> tuple[str, ...]:
    """Return QEMU's arguments for a machine that UEFI firmware boots; its variables are kept in `folder`."""
    firmware = Path("/usr/share/OVMF")
    (folder / "vars").write_bytes((firmware / "OVMF_VARS_4M.fd").read_bytes())
    return (
        "-drive", f"if=pflash,format=raw,readonly=on,file={firmware / 'OVMF_CODE_4M.fd'}",
        "-drive", f"if=pflash,format=raw,file={folder / 'vars'}",
    )  # fmt: skip


#: Seconds without progress that a guest may take: its clock goes on while others load this machine.
DEADLINE = 40


def policy_text(lost: str = "online-safe", *, extra: str = "", sources: str = '"kho-scratch", "cmdline"') -> str:
    """Return a policy that onlines everything unless the handover was lost; `extra` goes into `[otherwise]`."""
    return f"""
format = 1
name = "vm"
[safe_region]
sources = [{sources}]
[[rule]]
name = "whole"
when = {{ handover = ["none", "accepted"] }}
action = "online-all"
{extra if lost == "online-all-in-zone" else ""}
[otherwise]
action = "{"panic" if lost == "online-all-in-zone" else lost}"
message = "handover lost, says the test"
{"" if lost == "online-all-in-zone" else extra}
[on_failure]
action = "reboot"
deadline = {DEADLINE}
message = "no decision, says the test"
"""


@functools.cache
def archive(text: str) -> bytes:
    """Return safemem's archive with the policy `text` in it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vm.toml").write_text(text)
        data = compiler.dump(load.read(Path(folder) / "vm.toml"))
        return build.archive({**build.files(data), **items.plain(proof(data))})


def guest(
    name: str, script: str = "decide", text: str = "", *, files: dict[str, bytes] | None = None, **more: Any
) -> Guest:
    """Return a guest whose init runs `script`, with safemem and the policy `text` in its initrd, or without either.

    `more` is any other field of a guest.
    """
    image = harness.image(script, archive=archive(text) if text else b"", files=files)
    return Guest(name, image, **more)


def lost(name: str, script: str, text: str = "", **more: Any) -> Guest:
    """Return a guest whose first kernel hands over in a format that the next one rejects."""
    return guest(name, script, text, kernel="old-kho", next_kernel="current", **more)


def gigantic() -> dict[str, bytes]:
    """Return the program of guests that look at gigantic pages, as files of an image."""
    return {"bin/gigantic": harness.program("gigantic").read_bytes()}


def argument(line: str, name: str) -> str:
    """Return the value of the last argument of that name on a kernel's command line."""
    return [word.partition("=")[2] for word in line.split() if word.startswith(f"{name}=")][-1]


def decided(result: Result) -> dict[str, Any]:
    """Return the decision in the record that the guest reported, after checking that it was carried out."""
    document: dict[str, Any] = json.loads(result.report["record"])
    assert document["result"] is not None
    decision: dict[str, Any] = document["decision"]
    return decision


def simulated(result: Result, text: str) -> dict[str, Any]:
    """Return what `safemem simulate --state` says to the capture that the guest reported.

    Checks that it is what the guest did: by the record where there is one, by the console otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "vm.toml").write_text(text)
        (base / "capture.json").write_text(result.report["capture"])
        words = ["simulate", str(base / "vm.toml"), "--state", str(base / "capture.json"), "--format", "json"]
        outcome = CliRunner().invoke(main, words)
    document: dict[str, Any] = json.loads(outcome.stdout)
    decision: dict[str, Any] = document["decision"]
    # What the console showed is the same decision as well, range by range.
    what = f"{decision['action']} + {decision['enter']}" if decision["enter"] else decision["action"]
    lines = [f"safemem: {what}: {decision['message']} (rule `{decision['rule']}`, policy `vm`)"]
    for step in decision["plan"]:
        if step["op"] != "keep":
            lines.append(f"safemem: {step['op']} {step['range']} ({size_text(step['bytes'])})")
    for line in lines:
        assert line in result.serial, f"the console does not show `{line}`"
    if result.report.get("record"):
        made = decided(result)
        assert {**made, "facts": _values(made)} == {**decision, "facts": _values(decision)}
    foretold(result, text)
    return decision


#: What ends a boot -> what the harness calls that.
ENDS = {"panic": "panic", "reboot": "reset", "halt": "halted"}


def foretold(result: Result, text: str) -> dict[str, Any]:
    """Return what `simulate` says will come of the capture that the guest reported, after comparing it with what came.

    From the capture, which was taken before the decision, at best; from the record, where there is one, to the byte.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vm.toml").write_text(text)
        said = {}
        for name in ("capture", "record"):
            if result.report.get(name):
                (Path(folder) / name).write_text(result.report[name])
                words = ["simulate", f"{folder}/vm.toml", "--state", f"{folder}/{name}", "--format", "json"]
                said[name] = json.loads(CliRunner().invoke(main, words).stdout)
    before: dict[str, Any] = said["capture"]["outcome"]
    went_on = result.report.get("returned") == "0"
    if before["sure"] or before["ends"]:
        assert went_on == (not before["ends"])
        assert went_on or result.fate == ENDS[before["ends"]]
    if "record" in said:
        record, after = json.loads(result.report["record"]), said["record"]["outcome"]
        assert (after["ends"], after["sure"]) == (None, True)
        said_, came_ = ({kind: size for kind, size in each["totals"].items() if size} for each in (after, record))
        assert said_ == came_, (said_, came_, record["account"])
        assert before["totals"]["exposed"] <= record["totals"]["exposed"]
        assert bool(after["shortfall"]) == bool(record["result"]["shortfall"])
        assert said["record"]["happened"]["shortfall"] == record["result"]["shortfall"]
    return before


def _values(decision: dict[str, Any]) -> dict[str, Any]:
    # A capture is taken before safemem sets auto_online_blocks or after: its source differs, not what is decided.
    return {name: fact["value"] for name, fact in decision["facts"].items()}


def snapshot(result: Result) -> Snapshot:
    """Return the snapshot in the record that the guest reported."""
    return reader.snapshot_from_text(result.report["record"], "record")


def span(first: int, last: int) -> str:
    """Return the addresses of blocks `first` to `last` as safemem writes them."""
    return str(Range(first * BLOCK, (last + 1) * BLOCK))


def kinds(shares: list[dict[str, Any]], numbers: range) -> list[set[str]]:
    """Return what the account calls each block's bytes."""
    found = []
    for number in numbers:
        block, mine = Range(number * BLOCK, (number + 1) * BLOCK), set()
        for item in shares:
            area = parse_range(item["range"])
            if area.start < block.end and block.start < area.end:
                mine.add(item["kind"])
        found.append(mine)
    return found
