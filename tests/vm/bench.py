# SPDX-License-Identifier: MIT
"""Print where safemem stands against its budgets. Every figure is a ratio or a size from one run.

python -m tests.vm.bench
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safemem.boot import engine, probe
from safemem.initramfs import build
from safemem.initramfs.cpio import Archive
from safemem.outgoing import layout
from safemem.policy import compiler, load
from tests import hosts, mirror
from tests.vm import harness
from tests.vm.harness import boot, shell
from tests.vm.kit import guest, policy_text

ROUNDS = 15
BLOCKS = 64
_PROGRAM = 'import sys; sys.path.insert(0, "/usr/lib/safemem/app"); from safemem.boot.main import main; main([])'
_PEAK = 'print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])'
_CARRY_OUT = f"""
import sys, time
sys.path.insert(0, "/usr/lib/safemem/app")
from safemem.boot import apply
from safemem.boot.model import Plan, Step
step = Step("online", 32 << 27, (32 + {BLOCKS}) << 27, 32, 31 + {BLOCKS}, "movable")
start = time.monotonic()
result = apply.carry_out(Plan((step,)))
print(int((time.monotonic() - start) * 1e6) if result.complete else result.problems)
"""
#: Unpacks a kernel and an initrd, and does nothing else; against it what reads both. Each says seconds of the
#: processor, its own and those of the programs that unpack, and KiB at most.
_UNPACK = """
import struct, sys
from safemem.initramfs import packed
data = open(sys.argv[1], "rb").read()
start, size = struct.unpack_from("<II", data, 0x248)
start += (data[0x1f1] + 1) * 512
for stream in (data[start : start + size], open(sys.argv[2], "rb").read()):
    for _ in packed.pieces(stream, 0):
        pass
"""
_READ = """
import sys
from safemem.initramfs import check
from safemem.outgoing import image
image.read(sys.argv[1], "/nowhere")
check.inside(open(sys.argv[2], "rb").read())
"""
_SAID = f"""
import resource
{{}}
spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(sum(one.ru_utime + one.ru_stime for one in spent), {_PEAK[6:-1]})
"""


def line(what: str, value: str, budget: str, good: bool) -> bool:
    """Print one figure beside its budget."""
    print(f"{'ok  ' if good else 'OVER'}  {what:<58} {value:>12}   {budget}", flush=True)
    return good


def boot_path() -> None:
    """The boot path in a guest that has nothing to online."""
    script = shell("bench-boot", ROUNDS=ROUNDS, PROGRAM=_PROGRAM, PEAK=_PEAK)
    result = boot(guest("bench-boot", script, policy_text("panic"), dimm_mib=0, timeout=300))
    bare, program, whole, peak, bare_peak = (
        int(result.report[key]) for key in ("bare", "program", "boot", "peak", "bare_peak")
    )
    each = 10 / ROUNDS
    line(
        "boot program against a bare interpreter",
        f"{program / bare:.2f}",
        f"at most 1.5 ({program * each:.0f} ms, {bare * each:.0f} ms)",
        program <= 1.5 * bare,
    )
    print(f"      {'the same with the wrapper':<58} {whole / bare:>12.2f}   ({whole * each:.0f} ms)")
    line(
        "peak memory of the boot program",
        f"{peak / 1024:.1f} MiB",
        f"at most 12 MiB (bare interpreter {bare_peak / 1024:.1f} MiB)",
        peak <= 12 << 10,
    )


def onlining() -> None:
    """Onlining the same blocks by a C loop and by safemem, in turn, in one guest."""
    script = shell("bench-online", LAST=31 + BLOCKS, PROGRAM=_CARRY_OUT)
    result = boot(guest("bench-online", script, policy_text("panic"), dimm_mib=BLOCKS * 128, timeout=300))
    loop, ours = (sorted([int(word) for word in result.report[key].split()][1:]) for key in ("loop", "ours"))
    rate = loop[len(loop) // 2] / ours[len(ours) // 2]
    line(
        f"onlining {BLOCKS} blocks, rate against a C loop",
        f"{rate:.2f}",
        f"at least 0.98 ({ours[len(ours) // 2] / 1000:.0f} ms, {loop[len(loop) // 2] / 1000:.0f} ms)",
        rate >= 0.98,
    )


def size() -> None:
    """What the archive adds to an initrd."""
    data = build.archive(build.files(compiler.dump(load.read(harness.REPOSITORY / "policies/live-update-host.toml"))))
    packed = len(subprocess.run(["zstd", "-19", "-q", "-c"], input=data, check=True, capture_output=True).stdout)
    line(
        "archive, zstd -19",
        f"{packed / (1 << 20):.2f} MiB",
        f"at most 3 MiB ({len(data) / (1 << 20):.1f} MiB raw)",
        packed <= 3 << 20,
    )


def many_blocks(count: int = 32768) -> None:
    """Snapshot, decision and plan of a machine with many blocks, against lsmem on the same tree."""
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        base = Path(folder)
        memory = base / "sys/devices/system/memory"
        memory.mkdir(parents=True)
        (memory / "block_size_bytes").write_text("8000000\n")
        (base / "sys/devices/system/node/node0").mkdir(parents=True)
        (base / "sys/kernel/boot_params").mkdir(parents=True)
        (base / "proc").mkdir()
        (base / "proc/cmdline").write_text("kho=on\n")
        for number in range(count):
            block = memory / f"memory{number}"
            block.mkdir()
            for name, text in (("state", "online" if number < count // 2 else "offline"), ("removable", "1"),
                               ("valid_zones", "Normal"), ("phys_index", f"{number:08x}")):  # fmt: skip
                (block / name).write_text(f"{text}\n")
            (base / f"sys/devices/system/node/node0/memory{number}").symlink_to(block)
            (block / "node0").symlink_to(base / "sys/devices/system/node/node0")
        loaded = load.read(harness.REPOSITORY / "policies/live-update-host.toml")
        ours, theirs = [], []
        for _ in range(5):
            start = time.monotonic()
            decision = engine.decide(loaded, probe.read_snapshot(str(base)))
            middle = time.monotonic()
            subprocess.run(["lsmem", "--sysroot", base, "--summary=only"], check=True, stdout=subprocess.DEVNULL)
            theirs.append(time.monotonic() - middle)
            ours.append(middle - start)
        assert decision.steps
    ratio = sorted(ours)[2] / sorted(theirs)[2]
    line(
        f"{count:,} blocks, against lsmem on the same tree",
        f"{ratio:.2f}",
        f"at most 0.35 ({sorted(ours)[2] * 1000:.0f} ms, {sorted(theirs)[2] * 1000:.0f} ms)",
        ratio <= 0.35,
    )


def guards(size: int = 1024, nodes: int = 8) -> None:
    """The layout of the largest host, and both guards with it."""
    snapshot = hosts.host(*[size] * nodes)
    start = time.monotonic()
    found = layout.advise_on(snapshot)
    seconds = time.monotonic() - start
    line(
        f"layout and guards of {nodes} nodes of {size} GiB",
        f"{seconds * 1000:.0f} ms",
        f"at most 1000 ms ({found.after / found.memory:.1%} guarded)",
        seconds <= 1,
    )


def images(rounds: int = 9) -> None:
    """A kernel of Debian's and an initrd of 100 MB: reading both against unpacking both, in turn, by the processor's time."""
    folder = list(mirror.kernels("amd64", 7).values())[-1]
    (kernel,) = folder.rglob("vmlinuz*")
    times: dict[str, list[float]] = {_UNPACK: [], _READ: []}
    peaks = dict.fromkeys(times, 0)
    with tempfile.TemporaryDirectory() as scratch:
        initrd = Path(scratch) / "initrd"
        with initrd.open("wb") as out:
            archive = Archive(out)
            for number in range(1000):
                # As modules do, each packs to about half.
                archive.file(f"usr/lib/modules/{number}.ko", os.urandom(100_000) + bytes(100_000))
            archive.close()
        subprocess.run(["zstd", "-q", "-3", "--rm", "-o", f"{initrd}.zst", initrd], check=True)
        for _ in range(rounds):
            for program, seconds in times.items():
                words = [sys.executable, "-c", _SAID.format(program), str(kernel), f"{initrd}.zst"]
                told = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
                seconds.append(float(told[0]))
                peaks[program] = max(peaks[program], int(told[1]))
        size = Path(f"{initrd}.zst").stat().st_size
    theirs, ours = (min(seconds) for seconds in times.values())
    line(
        f"kernel of {kernel.stat().st_size / 1e6:.0f} MB, initrd of {size / 1e6:.0f} MB, against unpacking",
        f"{ours / theirs:.2f}",
        f"at most 1.3 ({ours * 1000:.0f} ms, {theirs * 1000:.0f} ms)",
        ours <= 1.3 * theirs,
    )
    line("peak memory of that", f"{peaks[_READ] / 1024:.0f} MiB", "at most 300 MiB", peaks[_READ] <= 300 << 10)


def command_line(rounds: int = 20) -> None:
    """`safemem --help` against importing click, in turn; the first round warms the page cache."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds + 1):
        for times, words in (
            (theirs, [sys.executable, "-c", "import click"]),
            (ours, [str(Path(sys.executable).with_name("safemem")), "--help"]),
        ):
            start = time.monotonic()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            times.append(time.monotonic() - start)
    mine, click = (sorted(times[1:])[rounds // 2] for times in (ours, theirs))
    line(
        "safemem --help, against importing click",
        f"{mine / click:.2f}",
        f"at most 2.0 ({mine * 1000:.0f} ms, {click * 1000:.0f} ms)",
        mine <= 2.0 * click,
    )


def main() -> int:
    """Print every figure; a budget that is missed is shown, not an error: machines differ."""
    if shutil.which("lsmem") is None:
        print("bench: lsmem is not installed (Debian: util-linux)", file=sys.stderr)
        return 1
    for part in (size, command_line, many_blocks, guards, images, boot_path, onlining):
        part()
    return 0


if __name__ == "__main__":
    sys.exit(main())
