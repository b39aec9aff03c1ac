# SPDX-License-Identifier: MIT
"""Prove that what is to be shipped decides: on fake roots, by the record, which has to say what the engine says here.

A decision may be to panic. So nothing of this machine may be in reach: the boot program and its wrapper get a fake root,
whose sysrq-trigger is a plain file, and root's try-out is in a chroot without /proc, /sys, mount and halt.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from safemem.boot import asked, engine, handover_args, main, plainjson, probe, record
from safemem.boot.cmdline import sealed
from safemem.boot.model import FINAL, Decision, Policy
from safemem.boot.ranges import Range
from safemem.initramfs.interpreter import needs
from safemem.initramfs.items import PREFIX, BuildError, Item, put
from safemem.initramfs.on_failure import GOES_ON, with_value

_MIB, _BLOCK, _PAGE = 1 << 20, 512 << 20, 512 << 20
#: The wrapper's last word for programs, when it has ended a boot and the machine, being none, has not gone.
_STOPPED = "end code=stopped"
#: Seconds for one boot of a fake root. It takes a fraction of one.
_PATIENCE = 120.0
#: What the wrapper calls on a fake root.
_PROGRAMS = ("sh", "sleep", "rm")
_ACCEPTED = "an accepted handover"
#: Programs that print, with the words that make them; tried out where there is most to print.
_PRINTS: tuple[tuple[Callable[[list[str]], int], list[str]], ...] = ((main.main, ["capture"]), (handover_args.main, []))


class Case(NamedTuple):
    """A fake root, and what the engine says to it."""

    name: str
    root: Path
    decision: Decision
    observed: bool  #: nothing of it is done

    def prove(self, goes_on: bool, said: str) -> None:
        """Compare what a boot left with the decision; `goes_on` is whether it would have gone on, `said` its words.

        Raises:
            BuildError: it did not decide, or not so.
        """
        place = f"on a machine with {self.name} the boot program"
        try:
            document = json.loads((self.root / record.RECORD).read_text())
            decided, result = document["decision"], document["result"]
        except (OSError, ValueError, LookupError, TypeError):
            raise BuildError(f"{place} decides nothing: {why(said)}") from None
        wanted = json.loads(plainjson.dumps(record.decision_to_json(self.decision)))
        if decided != wanted:
            keys = ", ".join(sorted(key for key in {**decided, **wanted} if decided.get(key) != wanted.get(key)))
            raise BuildError(f"{place} does not decide what the policy says, which is `{wanted['action']}`: {keys}")
        final = decided["action"] in FINAL and not self.observed
        if not final and result is None:
            raise BuildError(f"{place} decides and does not finish: {why(said)}")
        # On a fake root memory does not come online when it is told to, and a policy may end the boot for that.
        ends = final or bool(not self.observed and result["shortfall"] and decided["on_shortfall"] != "continue")
        if goes_on == ends:
            text = "lets the boot go on, and should end it" if ends else "ends the boot, and should let it go on"
            raise BuildError(f"{place} {text}: {why(said)}")


def cases(folder: Path, policy: Policy, prefix: str) -> list[Case]:
    """Write the fake roots below `folder`, each with a link to `prefix`, where safemem's own files are. Raises OSError."""
    found = []
    for name, files in machines().items():
        root = folder / name.replace(" ", "-")
        for path, data in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        (root / PREFIX).parent.mkdir(parents=True, exist_ok=True)
        (root / PREFIX).symlink_to(prefix)
        snapshot = probe.read_snapshot(str(root), open_luo=policy.open_luo, token=policy.retrieve_token)
        found.append(Case(name, root, engine.decide(policy, snapshot), policy.observe))
    return found


def machines() -> dict[str, dict[str, bytes]]:
    """Return the files of fake roots by what the machine meets: together they take the boot program's rarer ways."""
    common = {
        "proc/config.gz": gzip.compress(b"CONFIG_KEXEC_HANDOVER=y\nCONFIG_KEXEC_HANDOVER_DEBUGFS=y\n", mtime=0),
        "proc/iomem": b"00100000-7fffffff : System RAM\n  01000000-01ffffff : Kernel code\n  40000000-4fffffff : Crash kernel\n",
        "proc/meminfo": b"MemAvailable: 1048576 kB\n",
        "proc/sys/kernel/arch": b"x86_64\n",
        "proc/sys/kernel/osrelease": b"7.3.4\n",
        "proc/sys/kernel/kexec_load_limit_panic": b"-1\n",
        "proc/sysrq-trigger": b"",
        "proc/uptime": b"1.00 1.00\n",
        "dev/kmsg": b"",
        "dev/liveupdate": b"",
        "sys/class/dmi/id/sys_vendor": b"QEMU\n",
        "sys/class/misc/liveupdate/dev": b"10:122\n",
        "sys/kernel/boot_params/data": _zero_page(0),
        "sys/kernel/boot_params/version": b"0x020f\n",
        "sys/kernel/kexec_crash_size": b"%d\n" % (256 * _MIB),
        "sys/kernel/debug/kho/out/scratch_phys": b"0x10000000\n",
        "sys/kernel/debug/kho/out/scratch_len": b"0x8000000\n",
        "sys/devices/system/memory/block_size_bytes": b"%x\n" % _BLOCK,
        "sys/devices/system/memory/auto_online_blocks": b"offline\n",
    }
    for number in (0, 1, 2, 3, 8, 9):  # 2 GiB of boot memory, and 1 GiB that was plugged in above 4 GiB
        state = b"online\n" if number < 4 else b"offline\n"
        common[f"sys/devices/system/memory/memory{number}/state"] = state
        common[f"sys/devices/system/memory/memory{number}/valid_zones"] = b"Normal Movable\n"
    offered = {
        **common,
        "sys/kernel/boot_params/data": _zero_page(1 << 20),
        "sys/kernel/boot_params/setup_data/0/type": b"0xa\n",
    }
    guard = asked.write(asked.Asked(Range(1 << 30, 1280 * _MIB), _PAGE, ((0, 1),)))
    pool = f"sys/kernel/mm/hugepages/hugepages-{_PAGE >> 10}kB"
    args = (
        b"kho=on",
        b"safemem.safe=%s" % sealed("0x10000000-0x17ffffff").encode(),
        b"safemem.guard=%s" % guard.encode(),
        b"safemem.attempts=1",
        # On a fake root nothing answers to it.
        b"safemem.token=%s" % sealed("0" * 64).encode(),
    )
    return {
        "no handover": {**common, "proc/cmdline": b"kho=on liveupdate=on\n"},
        _ACCEPTED: {
            **offered,
            "proc/cmdline": b"kho=on liveupdate=on\n",
            "sys/kernel/debug/kho/in/fdt": _handover_tree(),
            "sys/kernel/debug/kho/in/sub_fdts/kexec-metadata": struct.pack("<I65sI", 1, b"7.3.4", 1),
        },
        "a rejected handover": {
            **offered,
            "proc/cmdline": b" ".join(args) + b"\n",
            **{f"{pool}/{name}_hugepages": b"1\n" for name in ("nr", "free", "resv")},
            # The second 512 MiB are a gigantic page that nobody has mapped: its head, and a tail 2 MiB further on.
            "proc/kpageflags": bytes(_PAGE // 4096 * 8) + struct.pack("<Q4088xQ", 0x28000, 0x30000),
            "run/safemem/pages/.mounted": b"",
            # A function that may write to memory and has no driver.
            "sys/bus/pci/devices/0000:00:04.0/config": b"\x34\x12\xe8\x11\x07\x01" + bytes(58),
        },
        "nothing to read": {},
    }


def _zero_page(pointer: int) -> bytes:
    """Return what the kernel keeps of boot_params with one range of memory in it (Documentation/arch/x86/zero-page.rst).

    `pointer` leads to what else the boot loader passes.
    """
    page = bytearray(4096)
    page[0x202:0x208] = struct.pack("<4sH", b"HdrS", 0x20F)
    page[0x250:0x258] = struct.pack("<Q", pointer)
    page[0x1E8] = 1
    page[0x2D0:0x2E4] = struct.pack("<QQI", _MIB, 2047 * _MIB, 1)
    return bytes(page)


def _handover_tree() -> bytes:
    """Return a flattened device tree with one empty node `LUO` (devicetree specification 0.4, chapter 5)."""
    body = struct.pack(">II", 1, 0) + struct.pack(">I4sI", 1, b"LUO", 2) + struct.pack(">II", 2, 9)
    end = 56 + len(body)
    return struct.pack(">10I16x", 0xD00DFEED, end, 56, end, 40, 17, 16, 0, 0, len(body)) + body


def try_out(folder: Path, items: Mapping[str, Item], policy: Policy) -> None:
    """Unpack the archive into `folder` and boot its own wrapper and program on each fake root.

    Root does it in a chroot, so that nothing of this machine helps them either.

    Raises:
        BuildError: on one of them they do not do what the policy says.
        OSError: they cannot be run.
    """
    put(items, folder)
    enter = _jail(folder) if os.geteuid() == 0 else None
    base = "" if enter else str(folder)
    for case in cases(folder, policy, f"{base}/{PREFIX}"):
        root = f"{base}/{case.root.name}"
        (folder / "boot").write_bytes(with_value(items[f"{PREFIX}/boot"].data, f"{PREFIX}/boot", "ROOT", root))
        for run, words in _PRINTS if case.name == _ACCEPTED else ():
            found = _run(base, enter, run.__module__, ["--root", root, *words])
            if found != _here(run, ["--root", str(case.root), *words]):
                place = f"on a machine with {case.name} the archive's {run.__module__}"
                raise BuildError(f"{place} does not print what it prints in this interpreter")
        goes_on, said = _boot(f"{base}/boot", enter, folder / "said")
        case.prove(goes_on, said)


def _run(base: str, enter: Callable[[], None] | None, module: str, words: list[str]) -> str:
    """Return what the archive's own program prints. Raises BuildError, OSError."""
    home = f"{base}/{PREFIX}"
    code = f"import sys; sys.path.insert(0, '{home}/app'); from {module} import main; main(sys.argv[1:])"
    python = [f"{home}/lib/ld.so", "--library-path", f"{home}/lib", f"{home}/bin/python3", "-I", "-S", "-B", "-c", code]
    result = subprocess.run([*python, *words], preexec_fn=enter, env={}, cwd="/", capture_output=True, text=True)
    if result.returncode:
        raise BuildError(f"the archive's own program ends with status {result.returncode}: {why(result.stderr)}")
    return result.stdout


def _here(run: Callable[[list[str]], int], words: list[str]) -> str:
    """Return what the same program prints in this interpreter."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        run(words)
    return out.getvalue()


def _jail(folder: Path) -> Callable[[], None]:
    """Put what the wrapper calls into `folder`; return what makes that folder a process's root.

    Raises:
        OSError: a program is missing.
        BuildError: one of its libraries is.
    """
    files: dict[str, str] = {}
    for name in _PROGRAMS:
        program = shutil.which(name)
        if program is None:
            raise FileNotFoundError(2, "the wrapper calls it, and it is not installed", name)
        loader, libraries = needs([program])
        files |= {f"bin/{name}": program} | {path.lstrip("/"): path for path in (loader, *libraries) if path}
    put({target: Item(Path(file).read_bytes(), 0o755) for target, file in files.items()}, folder)
    (folder / "dev").mkdir()
    (folder / "dev/null").touch()  # a plain file serves, and needs no privilege

    def enter() -> None:
        os.chroot(folder)
        os.chdir("/")

    return enter


def _boot(wrapper: str, enter: Callable[[], None] | None, log: Path) -> tuple[bool, str]:
    """Run the wrapper; return whether the boot would have gone on, and what was said.

    Raises:
        BuildError: neither that nor a boot that was ended.
    """
    path = os.environ.get("PATH", os.defpath) if enter is None else "/bin"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["/bin/sh", wrapper], preexec_fn=enter, env={"PATH": path}, cwd="/", stdin=subprocess.DEVNULL, stdout=out,
            stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        limit = time.monotonic() + _PATIENCE
        while time.monotonic() < limit:
            # In this order: who has ended has said everything.
            status, said = process.poll(), log.read_text(errors="replace")
            if status == GOES_ON:
                return True, said
            if status is not None:
                raise BuildError(f"the wrapper returns with status {status}, and never should: {why(said)}")
            if _STOPPED in said:
                return False, said
            time.sleep(0.01)
    finally:
        # Its own sleep and the program may be left.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    raise BuildError(f"the wrapper has neither let a boot go on nor ended it in {_PATIENCE:g} s")


def why(said: str) -> str:
    """Return the line that tells most: the last error of the interpreter's or the shell's, or what safemem said first."""
    lines = [line.strip() for line in said.strip().splitlines()] or ["nothing was said"]
    foreign = [line for line in lines if not line.startswith("safemem: ")]
    errors = [line for line in foreign if "rror" in line]
    return (errors or foreign or [lines[0].removeprefix("safemem: ")])[-1]
