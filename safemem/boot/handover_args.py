# SPDX-License-Identifier: MIT
"""What to append to the next kernel's command line, right before the kexec: guard, safe region, hold.

Runs in the outgoing system and from the boot archive: standard library only. Scratch areas
move at each cold boot (KASLR), so this has to be computed anew each time. Where too little is known
nothing is printed.
"""

from __future__ import annotations

import sys

from safemem.boot import attempts, crashkernel, probe
from safemem.boot.cmdline import arguments, split
from safemem.boot.guard import CannotSay, Left, best_guard, left_open, read_ground
from safemem.boot.ranges import Range, common, total
from safemem.boot.tuples import NamedTuple

#: What x86 takes as a command line (COMMAND_LINE_SIZE less its end); what is longer the kernel cuts off.
LONGEST = 2047
#: Arguments that are written anew; the kernel reads `-` in a name as `_`.
_REPLACED = ("crashkernel", "memhp_default_state", "BOOT_IMAGE")


class Advice(NamedTuple):
    """What to append, and what it is worth. Sizes in bytes."""

    arguments: tuple[str, ...]
    guard: Range
    memory: int  #: what firmware says there is
    safe: int  #: in scratch areas
    open: int  #: neither guarded nor scratch
    left: tuple[Left, ...]  #: the same, range by range
    notes: tuple[str, ...]
    cmdline: str  #: of the running kernel

    @property
    def guarded(self) -> int:
        """Bytes."""
        return self.guard.size


def advise(root: str = "/", kernel: str = "", initrd: str = "", understands: bool | None = None) -> Advice:
    """Return the arguments for the next kernel, whose image is the file `kernel` and whose initrd is `initrd`.

    Without them, both are taken to be as large as this boot's. `understands` says whether that kernel has KHO at all, None
    where nobody has looked: the boot archive cannot unpack an image.

    Raises:
        CannotSay: KHO is off, or its scratch areas, the machine's memory or a file cannot be read.
    """
    snapshot = probe.read_snapshot(root)
    scratch = probe.scratch_now(root)
    if not scratch:
        kho = snapshot.facts["kho"]
        raise CannotSay(
            f"no scratch areas can be read (KHO is {kho.value}: {kho.reason or kho.source}): is debugfs mounted?"
        )
    ground = read_ground(root, snapshot.cmdline, scratch, kernel, initrd)
    guard = best_guard(ground)
    safe = ",".join(str(area) for area in scratch)
    import binascii

    words = [
        f"crashkernel={guard.size}@{guard.start:#x}",
        f"{crashkernel.ARGUMENT}={guard}",
        f"safemem.safe={safe};crc32={binascii.crc32(safe.encode()):08x}",
        "memhp_default_state=offline",
    ]
    count = snapshot.facts["boot_attempts"]
    if not attempts.in_firmware(count):
        words.append(f"{attempts.ARGUMENT}={attempts.handed_on(root, count)}")
    notes = _notes(snapshot.cmdline)
    if understands is False:
        # Its unpacker knows nothing of scratch areas and puts the image anywhere: into the guard in 2 of 3 boots of a
        # 7.3.4 without KHO. Where kexec loads it is scratch. A kernel with KHO keeps its randomisation within scratch.
        words.append("nokaslr")
        notes.append(f"{kernel} has no KHO: nokaslr keeps its image out of the guard, and its addresses are not random")
    elif understands is None:
        notes.append("should the next kernel have no KHO, append nokaslr too: its image could be put inside the guard")
    left = left_open(ground, guard)
    return Advice(
        arguments=tuple(words),
        guard=guard,
        memory=total(ground.ram),
        safe=total(common(ground.ram, scratch)),
        open=total(item.range for item in left),
        left=left,
        notes=tuple(notes),
        cmdline=snapshot.cmdline,
    )


def _notes(cmdline: str) -> list[str]:
    """Return what on the command line, if the next kernel has it too, is at odds with a guard."""
    names = dict(arguments(cmdline))
    notes = []
    if "crashkernel" in names:
        notes.append(
            "crashkernel= of this boot is kdump's: leave it out of the next command line, only one range counts"
        )
    # dma_contiguous_reserve and hugetlb_cma_reserve come before arch_reserve_crashkernel in setup_arch.
    for name in ("cma", "hugetlb_cma"):
        if names.get(name, "0") not in ("0", ""):
            notes.append(f"{name}= is reserved before the guard and may lie where the guard should: leave it out")
    if "hugepages" in names:
        notes.append("hugepages= takes what the guard leaves open: a kernel that rejects may have too little to run")
    return notes


# ---- the whole command


def kexec_command(advice: Advice, kernel: str, initrd: str) -> str:
    """Return the command that loads the next kernel, for a shell: this kernel's command line with the advice in it.

    Raises:
        CannotSay: this kernel's command line cannot be reused with a guard.
    """
    words = ["kexec", "-s", "-l", kernel, *([f"--initrd={initrd}"] if initrd else [])]
    return " ".join(_quoted(word) for word in (*words, f"--command-line={next_cmdline(advice)}"))


def next_cmdline(advice: Advice) -> str:
    """Return this kernel's command line with what the advice replaces taken out, and the advice put in.

    Raises:
        CannotSay: something on it would undo the guard, or it becomes too long.
    """
    kept, init = _kept(advice.cmdline)
    for word in (*kept, *init):
        name, _, value = word.partition("=")
        if name in ("cma", "hugetlb_cma") and value not in ("", "0"):
            raise CannotSay(f"`{word}` on the command line is reserved before the guard, and may be put inside it")
        if "crashkernel=" in word:
            # The kernel looks for this text anywhere in the line, even inside another word.
            raise CannotSay(f"`{word}` on the command line would be read as a crashkernel= of its own")
    text = " ".join([*kept, *advice.arguments, *init])
    if len(text.encode()) > LONGEST:
        raise CannotSay(f"the next command line would have {len(text.encode())} bytes, and the kernel takes {LONGEST}")
    return text


def _kept(cmdline: str) -> tuple[list[str], list[str]]:
    """Return the words to keep, as they are written, and those for init, from `--` on."""
    words, init, quoted = split(cmdline)
    if quoted:
        raise CannotSay("a quotation mark on this kernel's command line is not closed: what is appended would be lost")
    kept = []
    for word in words:
        name = word.lstrip('"').partition("=")[0].replace("-", "_")
        if name not in _REPLACED and not name.startswith("safemem."):
            kept.append(word)
    # An old one of ours would count there too, and as the last one.
    return kept, [word for word in init if not word.lstrip('"').startswith("safemem.")]


def _quoted(word: str) -> str:
    """Return `word` for a shell; like shlex.quote, which the boot archive does not carry."""
    if word and all(char.isalnum() or char in "@%+=:,./-_" for char in word) and word.isascii():
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


_USAGE = "usage: handover-args [--root DIR] [--kernel IMAGE [--initrd FILE] [--kexec-command]]"


def main(argv: list[str]) -> int:
    """Print the arguments on one line; return 0, 1 if there are none to give, or 2 for a call that is wrong."""
    options = {"--root": "/", "--kernel": "", "--initrd": ""}
    words, whole = list(argv), False
    while words:
        word = words.pop(0)
        if word in options and words:
            options[word] = words.pop(0)
        elif word == "--kexec-command":
            whole = True
        else:
            sys.stderr.write(f"{_USAGE}\n")
            return 2
    root, kernel, initrd = options.values()
    if whole and not kernel:
        sys.stderr.write(f"safemem: --kexec-command needs --kernel\n{_USAGE}\n")
        return 2
    try:
        advice = advise(root, kernel, initrd)
        text = kexec_command(advice, kernel, initrd) if whole else " ".join(advice.arguments)
    except CannotSay as error:
        sys.stderr.write(f"safemem: {error}\n")
        return 1
    for note in advice.notes:
        sys.stderr.write(f"safemem: {note}\n")
    sys.stdout.write(f"{text}\n")
    return 0
