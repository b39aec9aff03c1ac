# SPDX-License-Identifier: MIT
"""Who could have onlined memory: what on this machine is known to do so, each with its evidence.

Nobody can know more: the kernel's event carries no process, and a write to a block's state leaves no trace.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safemem.boot import probe
from safemem.boot.ranges import size_text
from safemem.realroot import udevrules

#: Programs that online memory, on their own or on somebody else's word, by name.
PROGRAMS = {
    "qemu-ga": "the QEMU guest agent onlines blocks when the host says guest-set-memory-blocks",
    # Writes to each block's `online` as its event comes (kata-containers/agent PR 364, kata-containers PR 13376).
    "kata-agent": "Kata's agent onlines each block as it arrives",
    # Sets auto_online_blocks, or onlines a GPU's memory as movable (NVIDIA/nvidia-persistenced, nvpd numa code and issue 11).
    "nvidia-persistenced": "where a GPU's memory is a NUMA node it onlines that, and has the kernel online what arrives",
    "ovirt-guest-agent.py": "oVirt's guest agent sees to it that plugged memory is movable",
    "google_guest_agent": "Google's guest agent; with it come scripts that the instance's metadata name",
    "waagent": "Azure's guest agent; it runs extensions that the portal names",
    "tuned": "tuned profiles may write to memory blocks",
    "daxctl": "daxctl onlines the memory that it makes of a dax device",
    "chmem": "chmem onlines what it is told to",
}
#: Of these, those that online memory by themselves or at the host's word once they run: tools do nothing by being there.
_INSTALLED = ("qemu-ga", "kata-agent", "nvidia-persistenced")
_FOLDERS = ("usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "opt/kata/bin", "bin", "sbin")
#: Bytes of a program's name in /proc/PID/comm (TASK_COMM_LEN without its end).
_COMM = 15


#: Programs that change pools of huge pages.
POOLS = {
    "tuned": "tuned profiles may set vm.nr_hugepages",
    "libvirtd": "libvirt changes a node's pool when it is told to, such as by virsh allocpages",
    "virtqemud": "libvirt changes a node's pool when it is told to, such as by virsh allocpages",
    "hugeadm": "hugeadm changes pools",
}


class Suspect(NamedTuple):
    """Somebody who could have done it."""

    who: str
    evidence: str


def find(root: str, masked: frozenset[str] = frozenset()) -> tuple[Suspect, ...]:
    """Return who could have onlined memory on the machine below `root`, as far as that shows now.

    `masked` are rules files that were masked a moment ago: udev may still have been at work with them.
    """
    rules = udevrules.find(root, masked)
    found = [Suspect(f"a udev rule: {rule.what}", f"{rule.file}:{rule.line}") for rule in rules]
    auto = probe.auto_online(root)
    if auto.value != "offline":
        found.append(
            Suspect("the kernel itself, if it had just added the memory", f"{auto.source} reads `{auto.value}`")
        )
    return (*found, *(Suspect(name, path) for name, path in running(root)))


def find_for_pages(root: str, size: int) -> tuple[Suspect, ...]:
    """Return who could have taken a gigantic page of `size` bytes, or changed their pool, as far as that shows now."""
    found = []
    for status in sorted((Path(root) / "proc").glob("[0-9]*/status")):
        try:
            lines = dict(line.partition(":")[::2] for line in status.read_text("utf-8", "replace").splitlines())
        except OSError:
            continue  # it has ended
        number = lines.get("HugetlbPages", "").strip().partition(" ")[0]
        if number.isascii() and number.isdecimal() and len(number) < 16 and int(number) << 10 >= size:
            name = lines.get("Name", "").strip()
            found.append(Suspect(f"{name}, which has mapped {size_text(int(number) << 10)} of huge pages", str(status)))
    return (*found, *(Suspect(name, path) for name, path in running(root, POOLS)))


def text(suspects: tuple[Suspect, ...]) -> str:
    """Return in one sentence what can be known of who did it."""
    if not suspects:
        return "who did it cannot be known: the kernel's event names nobody, and nothing that is known to do it is here"
    return "may have been " + ", or ".join(f"{item.who} ({item.evidence})" for item in suspects)


def installed(root: str) -> list[tuple[str, str]]:
    """Return which agents are installed below `root`, running or not, and the file that shows it."""
    found: dict[str, str] = {}
    for name in _INSTALLED:
        for folder in _FOLDERS:
            if (Path(root) / folder / name).is_file():
                found.setdefault(name, f"{folder}/{name}")
    return list(found.items())


def running(root: str, programs: dict[str, str] = PROGRAMS) -> list[tuple[str, str]]:
    """Return which of these programs run, once each, and the file that shows it."""
    found: dict[str, str] = {}
    for comm in sorted((Path(root) / "proc").glob("[0-9]*/comm")):
        try:
            name = comm.read_text("utf-8", "replace").strip()
            if name.startswith("python"):  # a script that was not started by its own name
                words = (comm.parent / "cmdline").read_text("utf-8", "replace").split("\0")
                name = next((Path(word).name for word in words[1:] if word[:1] != "-"), "")
        except OSError:
            continue  # it has ended
        for program in programs:
            if name in (program, program[:_COMM]):
                found.setdefault(program, str(comm))
    return list(found.items())
