# SPDX-License-Identifier: MIT
"""Boot real kernels in QEMU and learn, from outside, what became of them.

A guest runs one shell script on both sides of a kexec; `$stage` tells it which. What the script
says goes through a virtio port (`report KEY VALUE`), never through the console; how the guest
ended comes from QEMU itself.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safemem.initramfs.cpio import Archive

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safemem"
LOGS = HERE / "logs"
#: Logs of the guests that this test has booted so far.
LOGGED: list[Path] = []
#: Kernel arguments of every guest; `stage=` and what the test adds come after them. Under load, emulation is too slow for
#: the kernel's check of its timer, which then panics.
CMDLINE = "console=ttyS0 panic=-1 no_timer_check kho=on liveupdate=on memhp_default_state=offline"
GIB = 1024
#: What a checkpoint returns to cut the guest's power: what is not on a disk by then is gone.
CUT: list[dict[str, Any]] = [{"execute": "quit"}]


class Result(NamedTuple):
    """What became of a guest.

    `fate` is `poweroff` (the script's own end), `panic`, `reset`, `halted`, `killed` (by a checkpoint), `timeout` or `lost`.
    """

    fate: str
    report: dict[str, str]
    serial: str
    seconds: float


def kernel(name: str) -> Path:
    """Return the kernel image called `name`, from the first folder that has it."""
    folders = [os.environ.get("SAFEMEM_KERNELS"), CACHE / "kernels", REPOSITORY.parent / "shared/kernels"]
    for folder in folders:
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    raise FileNotFoundError(f"kernel `{name}` is not in {CACHE / 'kernels'}: build it with `make kernels`")


@functools.cache
def program(name: str) -> Path:
    """Return the static program compiled from guest/NAME.c, compiled once for each content."""
    source = (HERE / f"guest/{name}.c").read_bytes() + (HERE / "guest/pattern.h").read_bytes()
    binary = CACHE / "vm" / f"{name}-{hashlib.sha256(source).hexdigest()[:16]}"
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=binary.parent) as scratch:
            draft = Path(scratch) / name
            subprocess.run(
                ["gcc", "-Wall", "-Wextra", "-Werror", "-O2", "-static", "-D_GNU_SOURCE",
                 "-o", draft, HERE / f"guest/{name}.c"],
                check=True,
            )  # fmt: skip
            draft.rename(binary)
    return binary


#: Of the `pc` machine: boot memory from here on lies above 4 GiB.
_LOW_MIB = 3 * GIB


def boot_files(memory: Path, nodes: int = 1) -> list[Path]:
    """Return the files of a guest's boot memory, one a node, in the order of their addresses."""
    return [memory / (f"boot{node}" if node else "boot") for node in range(nodes)]


def count_at(memory: Path, mib: int, ranges: list[tuple[int, int]], nodes: int = 1) -> int:
    """Return how many of the pattern's pages stand intact at physical addresses of boot memory, `[start, end)` each."""
    count, base = 0, 0
    low = _LOW_MIB << 20 if sum(file.stat().st_size for file in boot_files(memory, nodes)) >= 3584 << 20 else 1 << 32
    for file in boot_files(memory, nodes):
        size = file.stat().st_size
        for start, end in ranges:
            for first, last, shift in ((0, low, 0), (1 << 32, 1 << 63, (1 << 32) - low)):
                # Where this part of the range lies in all of boot memory, then in this file.
                at, until = max(start, first) - shift - base, min(end, last) - shift - base
                if max(at, 0) < min(until, size):
                    count += count_pattern(file, mib, max(at, 0), min(until, size))
        base += size
    return count


def count_pattern(memory: Path, mib: int, start: int = 0, end: int | None = None) -> int:
    """Return how many of the pattern's pages stand intact in a guest's memory, between two byte offsets."""
    last = memory.stat().st_size if end is None else end
    out = subprocess.run(
        [program("count"), memory, str(mib), str(start), str(last)], check=True, capture_output=True, text=True
    )
    return int(out.stdout)


#: Shell functions for both the initrd and what it may switch to.
FUNCTIONS = r"""
report() { printf '%s=%s\n' "$1" "$2" > /dev/vport0p1; }
report_file() { printf '%s:=%s\n' "$1" "$(base64 -w0 "$2")" > /dev/vport0p1; }
# blocks FIRST LAST: the states of these blocks as runs, such as `online*8`.
blocks() {
    n=$1
    while [ "$n" -le "$2" ]; do
        [ ! -e /sys/devices/system/memory/memory$n/state ] || cat /sys/devices/system/memory/memory$n/state
        n=$((n + 1))
    done | uniq -c | while read -r count state; do printf '%s*%s ' "$state" "$count"; done
}
"""
_INIT = rf"""#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
stage=1
for word in $(cat /proc/cmdline); do
    case $word in stage=*) stage=${{word#stage=}} ;; esac
done
until [ -e /dev/vport0p1 ]; do sleep 0.1; done
{FUNCTIONS}
# disk SERIAL: the device of a disk that the test attached, or nothing.
disk() {{
    for serial in $(grep -lx "$1" /sys/block/vd*/serial); do
        serial=${{serial%/serial}}
        echo "/dev/${{serial##*/}}"
    done
}}
# handover ARGUMENTS: kexec into the next kernel with the same initrd; does not return.
handover() {{
    head -c "$(cat /next_size)" "$(disk kernel)" > /next
    cat "$(disk initrd)" > /initrd
    kexec -s -l /next --initrd=/initrd --command-line="$1 stage=2" || {{ report kexec failed; poweroff -f; }}
    rm /next /initrd
    kexec -e
    report kexec returned
    poweroff -f
}}
. /script
report done "$stage"
poweroff -f
sleep 1000
"""


def closure(name: str, target: str) -> dict[str, bytes]:
    """Return the program `name` as the file `target`, with every library that it loads."""
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin") or name
    libraries = re.findall(
        r"(/\S+)", subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    )
    return {target: Path(program).read_bytes(), **{path: Path(path).read_bytes() for path in libraries}}


def image(
    script: str, *, archive: bytes = b"", next_kernel: str | None = None, files: dict[str, bytes] | None = None
) -> bytes:
    """Return an initrd whose init runs `script`; `archive` is appended, as an operator would append safemem's."""
    out = io.BytesIO()
    cpio = Archive(out)
    for folder in ("proc", "sys", "dev", "tmp", "run", "root"):
        cpio.directory(folder)
    cpio.device("dev/console", 0o020600, 5, 1)
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    cpio.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split():
        if applet not in ("busybox", "init"):
            cpio.symlink(f"bin/{applet}", "busybox")
    for name in ("luo", "fill", "online"):
        cpio.file(f"bin/{name}", program(name).read_bytes(), 0o755)
    kexec = closure("kexec", "/usr/sbin/kexec")
    for path, data in {**kexec, **(files or {})}.items():
        cpio.file(path, data, 0o755)
    cpio.file("init", _INIT.encode(), 0o755)
    cpio.file("script", script.encode())
    if next_kernel:
        cpio.file("next_size", f"{kernel(next_kernel).stat().st_size}\n".encode())
    cpio.close()
    return out.getvalue() + archive


def disk(serial: str, path: Path, *, writable: bool = False) -> tuple[str, ...]:
    """Return QEMU's arguments for a disk; in the guest, `disk SERIAL` prints its device."""
    mode = "cache=writethrough" if writable else "readonly=on"
    return (
        "-drive", f"if=none,id={serial},file={path},format=raw,{mode}",
        "-device", f"virtio-blk-pci,drive={serial},serial={serial}",
    )  # fmt: skip


def run(
    name: str,
    initrd: bytes,
    *,
    cmdline: str = "",
    kernel_name: str = "current",
    next_kernel: str | None = None,
    boot_mib: int = GIB,
    dimm_mib: int = GIB,
    nodes: int = 1,
    timeout: float = 120,
    memory: Path | None = None,
    checkpoint: Callable[[dict[str, str]], Any] | None = None,
    watch: Callable[[str], None] | None = None,
    devices: tuple[str, ...] = (),
) -> Result:
    """Boot one guest and wait for its end.

    Args:
        name: of the log in tests/vm/logs.
        nodes: NUMA nodes that share boot memory in equal parts; the DIMM is in the first.
        memory: a folder in which the guest's memory is kept as `boot` (of more nodes: and `boot1`, ...) and `dimm`,
            to count pages from outside.
        checkpoint: called with what was reported so far and the guest's processors stopped, each time it has said
            `report checkpoint` with another number; may return commands for the machine protocol (QMP), such as to plug
            memory, or `CUT`.
        devices: more arguments for QEMU.
        watch: called with each new piece of the console.
        timeout: seconds, then the guest is killed and its fate is `timeout`.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="safemem-vm-") as folder:
        base = Path(folder)
        (base / "initrd").write_bytes(initrd + bytes(-len(initrd) % 512))
        for file in ("report", "serial"):
            (base / file).touch()
        command = [
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-machine", "pc", "-smp", "1",
            "-m", f"{boot_mib}M,slots=4,maxmem=64G", "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", str(kernel(kernel_name)), "-initrd", str(base / "initrd"),
            "-append", f"{CMDLINE} {cmdline}",
            "-serial", f"file:{base / 'serial'}",
            "-device", "virtio-serial-pci", "-chardev", f"file,id=report,path={base / 'report'},append=on",
            "-device", "virtserialport,nr=1,chardev=report,name=safemem",
            "-qmp", f"unix:{base / 'qmp'},server=on,wait=on",
        ]  # fmt: skip
        backend = "memory-backend-ram" if memory is None else "memory-backend-file"
        place = "" if memory is None else f",share=on,mem-path={memory}/"
        for node, item in enumerate(boot_files(memory or Path(), nodes)):
            size = f"{boot_mib // nodes}M"
            command += ["-object", f"{backend},id={item.name},size={size}{place}{item.name if place else ''}"]
            command += ["-machine", "memory-backend=boot"] if nodes == 1 else []
            command += ["-numa", f"node,nodeid={node},memdev={item.name}"] if nodes > 1 else []
        if dimm_mib:
            command += ["-object", f"{backend},id=dimm,size={dimm_mib}M{place}{'dimm' if place else ''}"]
            command += ["-device", "pc-dimm,id=dimm0,memdev=dimm"]
        command += devices
        if next_kernel:
            image_path = base / "kernel"
            data = kernel(next_kernel).read_bytes()
            image_path.write_bytes(data + bytes(-len(data) % 512))
            command += [*disk("kernel", image_path), *disk("initrd", base / "initrd")]
        with (base / "output").open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            reason = _wait(process, base, started + timeout, checkpoint, watch)
        finally:
            process.kill()
            process.wait()
        output = (base / "output").read_text("utf-8", "replace")
        serial = (base / "serial").read_text("utf-8", "replace")
        report = _report((base / "report").read_text("utf-8", "replace"))
    fate = _fate(reason, serial)
    LOGS.mkdir(exist_ok=True)
    log = LOGS / f"{name}.log"
    log.write_text(f"fate: {fate}\nreport: {report}\n{output}\n{serial}")
    LOGGED.append(log)
    return Result(fate, report, serial, time.monotonic() - started)


def _wait(
    process: subprocess.Popen[bytes],
    base: Path,
    deadline: float,
    checkpoint: Callable[[dict[str, str]], Any] | None,
    watch: Callable[[str], None] | None,
) -> str:
    """Return why QEMU stopped: the reason of its SHUTDOWN event, `halted`, `timeout` or `lost`."""
    monitor = _connect(base / "qmp", process, deadline)
    if monitor is None:
        return "lost"
    reason, buffer, seen, reached = "lost", b"", 0, ""
    with monitor:
        monitor.sendall(b'{"execute": "qmp_capabilities"}\n')
        monitor.settimeout(0.5)
        while True:
            try:
                data = monitor.recv(65536)
                if not data:
                    return reason
                buffer += data
            except TimeoutError:
                data = b""
            except ConnectionError:
                return reason
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                event = json.loads(line)
                if "error" in event:
                    return f"QEMU refused: {event['error']}"
                if event.get("event") == "SHUTDOWN":
                    reason = str(event["data"]["reason"])
            report = _report((base / "report").read_text("utf-8", "replace")) if checkpoint else {}
            if checkpoint and report.get("checkpoint", reached) != reached:
                reached = report["checkpoint"]
                monitor.sendall(b'{"execute": "stop"}\n')
                more = checkpoint(report) or ()
                with contextlib.suppress(ConnectionError):  # after CUT nobody listens
                    for command in more:
                        monitor.sendall(json.dumps(command).encode() + b"\n")
                    monitor.sendall(b'{"execute": "cont"}\n')
            serial = (base / "serial").read_bytes()
            if watch and len(serial) > seen:
                watch(serial[seen:].decode("utf-8", "replace"))
                seen = len(serial)
            # The kernel's last words; nothing after them, so a copy in an earlier line does not count.
            if serial.rstrip().endswith(b"reboot: System halted"):
                return "halted"
            if time.monotonic() > deadline:
                return "timeout"


def _connect(path: Path, process: subprocess.Popen[bytes], deadline: float) -> socket.socket | None:
    while time.monotonic() < deadline and process.poll() is None:
        monitor = socket.socket(socket.AF_UNIX)
        try:
            monitor.connect(str(path))
            return monitor
        except OSError:
            monitor.close()
            time.sleep(0.05)
    return None


def _fate(reason: str, serial: str) -> str:
    if reason == "guest-shutdown":
        return "poweroff"
    if reason == "host-qmp-quit":
        return "killed"
    if reason == "guest-reset":
        # With panic=-1 a panic ends in a reset; these kernels have no pvpanic driver to tell them apart.
        return "panic" if "Kernel panic - not syncing" in serial else "reset"
    return reason if reason in ("halted", "timeout") else "lost"


def _report(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key.endswith(":"):
            key, value = key[:-1], base64.b64decode(value).decode("utf-8", "replace")
        found[key] = value
    return found
