# SPDX-License-Identifier: MIT
"""What the guests of several tests share: a policy, the archive with it, and the script around the decision."""

from __future__ import annotations

import base64
import functools
import io
import json
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
from safemem.initramfs import build
from safemem.policy import compiler, load
from tests.vm import harness
from tests.vm.harness import Result

#: The DIMM's blocks come after a hole below 4 GiB.
HELD, ALL_ONLINE = "offline*8", "online*8"
BLOCK = 128 << 20
DIMM = 0x1_0000_0000

#: Shell functions for the guest. The verdict is read from sysfs, not from what safemem says.
SHELL = r"""
zones() {
    for n in 32 33 34 35 36 37 38 39; do cut -d' ' -f1 /sys/devices/system/memory/memory$n/valid_zones; done | uniq
}
# decide: run safemem as any init would, and report what it left.
decide() {
    /usr/lib/safemem/boot capture >/tmp/capture.json || report capture failed
    report_file capture /tmp/capture.json
    [ "${dry:-}" ] || /usr/lib/safemem/boot
    report returned $?
    report_file record /run/safemem/decision.json
    state
}
state() {
    report dimm "$(blocks 32 39)"
    report zones "$(zones)"
    report auto_online "$(cat /sys/devices/system/memory/auto_online_blocks)"
    report guard "$(cat /sys/kernel/kexec_crash_size)"
    report memtotal "$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
}
# guard: set $first and $last to the memory between 16 MiB and the lowest scratch area. KASLR moves
# the kernel, and with it the scratch areas, at each cold boot.
guard() {
    last=$((0x40000000))
    for pair in $(paste -d, /sys/kernel/debug/kho/out/scratch_phys /sys/kernel/debug/kho/out/scratch_len); do
        [ $((${pair#*,})) = 0 ] || [ $((${pair%,*})) -ge "$last" ] || last=$((${pair%,*}))
    done
    first=$((16 << 20)) last=$((last / (16 << 20) * (16 << 20) - 1))
    report guarded "$first-$last"
    crashkernel="crashkernel=$((last + 1 - first))@$first"
}
# machine: report what `safemem layout` and `handover-args` read, as an archive that `machine_root` unpacks.
machine() {
    for file in proc/iomem proc/cmdline proc/sys/kernel/osrelease sys/kernel/boot_params/data \
        sys/kernel/debug/kho/out/scratch_phys sys/kernel/debug/kho/out/scratch_len \
        sys/devices/system/memory/block_size_bytes $(cd / && ls sys/devices/system/memory/memory*/state); do
        mkdir -p "/tmp/machine/${file%/*}" && cat "/$file" >"/tmp/machine/$file"
    done
    for file in /sys/devices/system/node/node*/memory*; do mkdir -p "/tmp/machine$file"; done
    report machine "$(tar -c -C /tmp/machine . | gzip | base64 -w0)"
}
# arguments: set $arguments to what handover-args prints for the next kernel.
arguments() {
    arguments="$(/usr/lib/safemem/handover-args 2>/tmp/why)" || { report_file arguments /tmp/why; poweroff -f; }
    report arguments "$arguments"
}
# preserve MIB [NODE]: keep a memfd through the next kexec; returns when LUO has it.
preserve() {
    luo preserve guest "$@" >/tmp/luo &
    until [ -s /tmp/luo ]; do sleep 0.1; done
    read -r said </tmp/luo
    report luo "$said"
}
"""
#: What most guests' scripts begin with.
START = f"CMDLINE='{harness.CMDLINE}'\nmount -t debugfs d /sys/kernel/debug\n"
#: The command in this machine's own environment.
SAFEMEM = f"{Path(sys.executable).parent}/safemem"
SHARE = ("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap")
#: The kernel's file systems over those of the share, then the command as an operator would call it.
COMMAND = f"""
mkdir -p /host
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose host /host
for folder in proc sys run dev; do mount --bind /$folder /host/$folder; done
safemem() {{ PYTHONDONTWRITEBYTECODE=1 chroot /host {SAFEMEM} "$@" >/tmp/out 2>&1; code=$?; }}
"""
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
message = "no decision, says the test"
"""


@functools.cache
def archive(text: str) -> bytes:
    """Return safemem's archive with the policy `text` in it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vm.toml").write_text(text)
        # Not `build.build`, which compresses the archive to say how large it is: that takes as long as a guest's boot.
        return build.archive(build.files(compiler.dump(load.read(Path(folder) / "vm.toml"))))


def initrd(script: str, text: str, *, next_kernel: str | None = None, files: dict[str, bytes] | None = None) -> bytes:
    """Return an initrd with safemem and the policy `text`, whose init runs `script`."""
    return harness.image(SHELL + script, archive=archive(text), next_kernel=next_kernel, files=files)


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
    lines = [f"safemem: {decision['action']}: {decision['message']} (rule `{decision['rule']}`, policy `vm`)"]
    for step in decision["plan"]:
        if step["op"] != "keep":
            lines.append(f"safemem: {step['op']} {step['range']} ({size_text(step['bytes'])})")
    for line in lines:
        assert line in result.serial, f"the console does not show `{line}`"
    if result.report.get("record"):
        made = decided(result)
        assert {**made, "facts": _values(made)} == {**decision, "facts": _values(decision)}
    return decision


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
