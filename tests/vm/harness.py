# SPDX-License-Identifier: MIT
"""Boot real kernels in QEMU and learn, from outside, what became of them.

A guest runs one shell script on both sides of a kexec; `$STAGE` tells it which. What the script
says goes through a virtio port (`report KEY VALUE`), never through the console; how the guest
ended comes from QEMU itself. The shell itself is in guest/*.sh.
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
import resource
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safemem.initramfs.cpio import Archive

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safemem"
LOGS = HERE / "logs"
#: Kernel arguments of every guest; `stage=` and what the test adds come after them. Under load, emulation is too slow for
#: the kernel's check of its timer, which then panics.
CMDLINE = "console=ttyS0 panic=-1 no_timer_check kho=on liveupdate=on memhp_default_state=offline"
GIB = 1024
#: Without `erms`, kernels clear and copy pages by words instead of bytes, each of which is a step to the emulator.
CPU = "max,erms=off"
#: What a checkpoint returns to cut the guest's power: what is not on a disk by then is gone.
CUT: list[dict[str, Any]] = [{"execute": "quit"}]


class Guest(NamedTuple):
    """A machine to boot; `_replace` makes another one of it. Sizes are in MiB."""

    name: str  #: of the log in tests/vm/logs
    initrd: bytes
    cmdline: str = ""  #: what follows CMDLINE
    kernel: str = "current"  #: "" is what firmware finds on a disk
    next_kernel: str = ""  #: for a kexec, on a disk: the shell's `handover` takes it from there
    boot_mib: int = GIB
    dimm_mib: int = GIB  #: 0 is no DIMM
    nodes: tuple[int, ...] = ()  #: boot memory of each NUMA node, if there is more than one; the DIMM is in the first
    #: A folder in which the memory is kept, to count pages from outside: `boot` (of more nodes: and `boot1`, ...), `dimm`.
    memory: Path | None = None
    devices: tuple[str, ...] = ()  #: more arguments for QEMU
    #: Seconds of processor time, then the guest is killed and its fate is `timeout`.
    timeout: float = 120
    patience: float = 5  #: times as many seconds by the clock: a guest is slow where others load the machine
    #: Called with what was reported so far and the processors stopped, each time the guest has said `report checkpoint`
    #: with another number; may return commands for the machine protocol (QMP), such as to plug memory, or `CUT`.
    checkpoint: Callable[[dict[str, str]], Any] | None = None
    watch: Callable[[str], None] | None = None  #: called with each new piece of the console
    qemu: str = "qemu-system-x86_64"  #: the program


class Cost(NamedTuple):
    """What a guest took."""

    name: str
    seconds: float  #: from power-on to the end
    processor: float  #: seconds of it that QEMU was running, and what counts pages
    kernels: int  #: that were started


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
    folders = [os.environ.get("SAFEMEM_KERNELS"), CACHE / "kernels"]
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


def pages_at(total: int, ranges: list[tuple[int, int]]) -> list[slice]:
    """Return which pages of boot memory, `total` bytes of it in one piece, lie at physical addresses, `[start, end)` each."""
    low = _LOW_MIB << 20 if total >= 3584 << 20 else total
    found = []
    for start, end in ranges:
        for first, last, shift in ((0, low, 0), (1 << 32, (1 << 32) + total - low, (1 << 32) - low)):
            if max(start, first) < min(end, last):
                found.append(slice((max(start, first) - shift) // 4096, (min(end, last) - shift) // 4096))
    return found


def boot_places(memory: Path, mib: int, nodes: int = 1) -> array[int]:
    """Return, for each page of boot memory, the number from 1 of the pattern's page that stands intact in it, or 0."""
    found = array("I")
    for file in boot_files(memory, nodes):
        found += places(file, mib)
    return found


def count_at(memory: Path, mib: int, ranges: list[tuple[int, int]]) -> int:
    """Return how many of the pattern's pages stand intact at physical addresses of boot memory, `[start, end)` each."""
    found = boot_places(memory, mib)
    return len({number for part in pages_at(len(found) * 4096, ranges) for number in found[part]} - {0})


def count_pattern(memory: Path, mib: int, start: int = 0, end: int | None = None) -> int:
    """Return how many of the pattern's pages stand intact in a guest's memory, between two byte offsets."""
    return len(set(places(memory, mib, start, end)) - {0})


def places(memory: Path, mib: int, start: int = 0, end: int | None = None) -> array[int]:
    """Return, for each page of this file, the number from 1 of the pattern's page that stands intact in it, or 0."""
    last = memory.stat().st_size if end is None else end
    out = subprocess.run([program("places"), memory, str(mib), str(start), str(last)], check=True, capture_output=True)
    return array("I", out.stdout)


@functools.cache
def closure(name: str, target: str) -> dict[str, bytes]:
    """Return the program `name` as the file `target`, with every library that it loads."""
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin") or name
    libraries = re.findall(
        r"(/\S+)", subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    )
    return {target: Path(program).read_bytes(), **{path: Path(path).read_bytes() for path in libraries}}


def shell(name: str, **values: str | int) -> str:
    """Return the script guest/NAME.sh with these variables set in front of it."""
    text = (HERE / f"guest/{name}.sh").read_text()
    return "".join(f"{key}={shlex.quote(str(value))}\n" for key, value in values.items()) + text


def image(script: str, *, archive: bytes = b"", files: dict[str, bytes] | None = None) -> bytes:
    """Return an initrd whose init runs `script`, with guest/functions.sh and `$CMDLINE`.

    `archive` is appended, as an operator would append safemem's.
    """
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
    cpio.file("init", shell("init").encode(), 0o755)
    cpio.file("functions.sh", shell("functions").encode())
    cpio.file("script", f"CMDLINE={shlex.quote(CMDLINE)}\n{script}\n".encode())
    cpio.close()
    return out.getvalue() + archive


def disk(serial: str, path: Path, *, writable: bool = False) -> tuple[str, ...]:
    """Return QEMU's arguments for a disk; in the guest, `disk SERIAL` prints its device."""
    mode = "cache=writethrough" if writable else "readonly=on"
    return (
        "-drive", f"if=none,id={serial},file={path},format=raw,{mode}",
        "-device", f"virtio-blk-pci,drive={serial},serial={serial}",
    )  # fmt: skip


#: Logs of the guests that this test has booted so far, and what they took.
LOGGED: list[tuple[Path, Cost]] = []


def boot(guest: Guest) -> Result:
    """Boot a guest and wait for its end."""
    started, before = time.monotonic(), _processor()
    with tempfile.TemporaryDirectory(prefix="safemem-vm-") as folder:
        base = Path(folder)
        (base / "initrd").write_bytes(_sectors(guest.initrd))
        if guest.next_kernel:
            (base / "kernel").write_bytes(_sectors(kernel(guest.next_kernel).read_bytes()))
        for file in ("report", "serial"):
            (base / file).touch()
        with (base / "output").open("wb") as out:
            process = subprocess.Popen(_command(guest, base), stdout=out, stderr=subprocess.STDOUT)
        try:
            reason = _wait(process, base, guest, started + guest.patience * guest.timeout)
        finally:
            process.kill()
            process.wait()
        output, serial, report = (
            (base / name).read_text("utf-8", "replace") for name in ("output", "serial", "report")
        )
    result = Result(_fate(reason, serial), _report(report), serial, time.monotonic() - started)
    LOGS.mkdir(exist_ok=True)
    log = LOGS / f"{guest.name}.log"
    log.write_text(f"fate: {result.fate}\nreport: {result.report}\n{output}\n{serial}")
    LOGGED.append((log, Cost(guest.name, result.seconds, _processor() - before, serial.count("Linux version "))))
    return result


def _used(process: subprocess.Popen[bytes]) -> float:
    """Return the seconds of processor time that a child has used so far; proc_pid_stat(5)."""
    words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _sectors(data: bytes) -> bytes:
    """Return `data` as a disk holds it: whole sectors."""
    return data + bytes(-len(data) % 512)


def _command(guest: Guest, base: Path) -> list[str]:
    """Return the command that starts QEMU; its files are in `base`."""
    command = [
        guest.qemu, "-accel", "tcg", "-cpu", CPU, "-machine", "pc", "-smp", "1",
        "-m", f"{guest.boot_mib}M,slots=4,maxmem=64G", "-nodefaults", "-display", "none", "-no-reboot",
        "-serial", f"file:{base / 'serial'}",
        "-device", "virtio-serial-pci", "-chardev", f"file,id=report,path={base / 'report'},append=on",
        "-device", "virtserialport,nr=1,chardev=report,name=safemem",
        "-qmp", f"unix:{base / 'qmp'},server=on,wait=on",
    ]  # fmt: skip
    if guest.kernel:
        command += ["-kernel", str(kernel(guest.kernel)), "-initrd", str(base / "initrd")]
        command += ["-append", f"{CMDLINE} {guest.cmdline}"]
    backend = "memory-backend-file" if guest.memory else "memory-backend-ram"
    place = f",share=on,mem-path={guest.memory}/" if guest.memory else ""
    sizes = guest.nodes or (guest.boot_mib,)
    for node, (item, mib) in enumerate(zip(boot_files(guest.memory or Path(), len(sizes)), sizes, strict=True)):
        command += ["-object", f"{backend},id={item.name},size={mib}M{place}{item.name if place else ''}"]
        command += ["-numa", f"node,nodeid={node},memdev={item.name}"] if guest.nodes else []
    command += [] if guest.nodes else ["-machine", "memory-backend=boot"]
    if guest.dimm_mib:
        command += ["-object", f"{backend},id=dimm,size={guest.dimm_mib}M{place}{'dimm' if place else ''}"]
        command += ["-device", "pc-dimm,id=dimm0,memdev=dimm"]
    if guest.next_kernel:
        command += [*disk("kernel", base / "kernel"), *disk("initrd", base / "initrd")]
    # Last: behind another host bridge, what names no bus would be put there.
    return [*command, *guest.devices]


def _wait(
    process: subprocess.Popen[bytes],
    base: Path,
    guest: Guest,
    deadline: float,
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
            report = _report((base / "report").read_text("utf-8", "replace")) if guest.checkpoint else {}
            if guest.checkpoint and report.get("checkpoint", reached) != reached:
                reached = report["checkpoint"]
                monitor.sendall(b'{"execute": "stop"}\n')
                more = guest.checkpoint(report) or ()
                with contextlib.suppress(ConnectionError):  # after CUT nobody listens
                    for command in more:
                        monitor.sendall(json.dumps(command).encode() + b"\n")
                    monitor.sendall(b'{"execute": "cont"}\n')
            serial = (base / "serial").read_bytes()
            if guest.watch and len(serial) > seen:
                guest.watch(serial[seen:].decode("utf-8", "replace"))
                seen = len(serial)
            # The kernel's last words; nothing after them, so a copy in an earlier line does not count.
            if serial.rstrip().endswith(b"reboot: System halted"):
                return "halted"
            if time.monotonic() > deadline or _used(process) > guest.timeout:
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
