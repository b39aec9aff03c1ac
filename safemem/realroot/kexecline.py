# SPDX-License-Identifier: MIT
"""The command line of `kexec`, read as kexec-tools reads it: what it loads, by which system call, with which command line.

Options and their order: kexec-tools 2.0.32, kexec/kexec.c (`main`), kexec/arch/*/include/arch/options.h, and
kexec-bzImage64.c, whose later options win over its earlier ones. Read by getopt_long(3): options anywhere, abbreviations,
arguments apart or behind `=`, short ones together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

#: What a call does: loads a kernel; loads and shuts down; loads and jumps at once; jumps; unloads; anything else.
DOES = ("load", "shutdown", "now", "exec", "unload", "other")
#: Letters; those before `:` take an argument (KEXEC_OPT_STR).
_SHORT = {
    "h": "help", "?": "help", "v": "version", "d": "debug", "f": "force", "i": "no-checks", "x": "no-ifdown",
    "y": "no-sync", "l": "load", "u": "unload", "e": "exec", "t": "type", "p": "load-panic",
    "s": "kexec-file-syscall", "c": "kexec-syscall", "a": "kexec-syscall-auto", "S": "status",
}  # fmt: skip
#: Names that stand for another one.
_SAME = {"command-line": "append", "ramdisk": "initrd"}
#: Options of every architecture; whether they take an argument.
_COMMON = {
    **dict.fromkeys(_SHORT.values(), False), "type": True, "exec-live-update": False, "load-preserve-context": False,
    "load-jump-back-helper": False, "load-live-update": False, "entry": True, "mem-min": True, "mem-max": True,
    "reuseinitrd": False, "print-ckr-size": False, "hotplug": False, "no-cma": False, "force-dtb": False,
    "append": True, "command-line": True, "reuse-cmdline": False, "initrd": True, "ramdisk": True, "dtb": True,
    "serial": True,
}  # fmt: skip
_X86 = {
    "reset-vga": False, "serial-baud": True, "console-vga": False, "console-serial": False,
    "elf32-core-headers": False, "elf64-core-headers": False, "pass-memmap-cmdline": False, "noefi": False,
    "reuse-video-type": False, "args-elf": False, "args-linux": False, "args-none": False, "module": True,
    "real-mode": False, "entry-32bit": False,
}  # fmt: skip
_LOADERS = {"kexec-file-syscall": "kexec_file", "kexec-syscall": "kexec_load", "kexec-syscall-auto": "auto"}
#: These end kexec before it does anything else.
_ENDS = ("help", "version", "print-ckr-size")
#: What is loaded with these is not only what stands on the line.
_UNCLEAR = (
    "reuseinitrd", "load-preserve-context", "load-jump-back-helper", "load-live-update", "exec-live-update", "module",
    "entry", "dtb", "real-mode", "entry-32bit",
)  # fmt: skip
#: The argument by which the next boot knows which kernel was judged.
ARGUMENT = "safemem.preflight"
_OLD = re.compile(rf"(?:^|\s){re.escape(ARGUMENT)}=\S*")
_BOOT_IMAGE = re.compile(r"(?:^|(?<=\s))BOOT_IMAGE\S* ?")


class Call(NamedTuple):
    """What one call of kexec would do."""

    does: str  #: one of DOES
    crash: bool = False  #: with the kernel for a panic, which is no live update
    kernel: str = ""  #: the file, as it was written
    initrd: str = ""  #: the file, as it was written, or ""
    append: str = ""  #: what is put on the next command line
    reuse: bool = False  #: behind the command line of this boot
    loader: str = ""  #: `kexec_file`, `kexec_load`, `auto` (the first, then the other), or "" where none is named
    less: tuple[str, ...] = ()  #: what it leaves out before it jumps, as options
    unclear: tuple[str, ...] = ()  #: why what is loaded cannot be told from the line
    rest: tuple[str, ...] = ()  #: the arguments without those that say the command line, and without the kernel


class _Word(NamedTuple):
    """One option, or one other word, with its place among the arguments."""

    option: str  #: "" is no option
    value: str
    known: bool
    places: tuple[int, ...]


def parse(words: Sequence[str], machine: str = "x86_64") -> Call:
    """Return what `kexec` with these arguments does on a machine of this architecture (uname -m)."""
    load, run, shutdown, unload = True, False, True, False
    crash = reuse = False
    kernel = initrd = append = loader = ""
    less: list[str] = []
    unclear: list[str] = []
    dropped: set[int] = set()
    for word in _words(words, _options(machine)):
        option = word.option
        if option in _ENDS:
            return Call("other", unclear=tuple(unclear))
        if not word.known:
            unclear.append(f"the option `{option}` is not known here")
        elif option in ("", "--"):
            kernel = kernel or ("" if option else word.value)  # of several, kexec takes the first
            dropped.update(word.places)
        elif option in ("force", "exec"):
            load, run, shutdown = option == "force", True, False
        elif option == "load":
            load, run, shutdown = True, False, False
        elif option in ("load-panic", "load-preserve-context", "load-live-update", "load-jump-back-helper"):
            # Each sets the flags of the system call anew: of these the last one says which kernel is meant.
            load, run, shutdown, crash = True, False, False, option == "load-panic"
        elif option in ("unload", "exec-live-update"):
            load, shutdown, unload, run = False, False, option == "unload", run or option != "unload"
        elif option == "status":
            return Call("other")
        elif option in ("append", "reuse-cmdline"):
            reuse |= option == "reuse-cmdline"
            append = word.value if option == "append" else append
            dropped.update(word.places)
        elif option == "initrd":
            initrd = word.value
        elif option in ("no-ifdown", "no-sync"):
            less.append(f"--{option}")
        loader = _LOADERS.get(option, loader)
        if option in _UNCLEAR and word.known:
            unclear.append(f"`--{option}` adds what preflight does not see")
    does = ("shutdown" if shutdown else "now" if run else "load") if load else "exec" if run else "other"
    if unload and load:
        unclear.append("`--unload` with a kernel to load does one thing or the other, by the system call")
    elif unload and (does == "other" or not crash):
        does = "unload"  # and then there is nothing to jump to, but where the kernel for a panic goes
    rest = tuple(text for place, text in enumerate(words) if place not in dropped)
    return Call(does, crash, kernel, initrd, append, reuse, loader, tuple(less), tuple(unclear), rest)


def cmdline(call: Call, now: str) -> str:
    """Return the next kernel's command line; `now` is that of this boot. An older word of ours is left out."""
    base = [_BOOT_IMAGE.sub("", now.strip())] if call.reuse else []
    line = " ".join([*base, *([call.append] if call.append else [])])
    return _OLD.sub("", line).strip()


def again(call: Call, line: str) -> list[str]:
    """Return arguments that load the same kernel with the command line `line`, and do nothing more than load it."""
    # Behind all others, for the last one counts. Where none is named, the one that can hand anything over: since
    # kexec-tools 2.0.27 it is tried first anyway, and falling back to the other would silently lose the handover.
    loader = {"kexec_load": "--kexec-syscall"}.get(call.loader, "--kexec-file-syscall")
    last = ["--load-panic" if call.crash else "--load", loader, f"--append={line}", "--", call.kernel]
    return [*call.rest, *last]


def _options(machine: str) -> dict[str, bool]:
    return {**_COMMON, **_X86} if machine in ("x86_64", "i386", "i486", "i586", "i686") else _COMMON


def _words(words: Sequence[str], options: dict[str, bool]) -> Iterator[_Word]:
    """Yield options and other words as getopt_long(3) finds them, in their order."""
    place = 0
    while place < len(words):
        word, at = words[place], place
        place += 1
        if word == "--":
            yield _Word("--", "", True, (at,))
            yield from (_Word("", text, True, (place + n,)) for n, text in enumerate(words[place:]))
            return
        if word.startswith("--"):
            text, equals, value = word[2:].partition("=")
            name, takes = _named(text, options)
            if takes and not equals:
                if place == len(words):
                    yield _Word(f"{word} without its argument", "", False, (at,))
                    return
                value = words[place]
                place += 1
            known = takes is not None and not (equals and not takes)
            yield _Word(name if known else f"--{text}", value, known, tuple(range(at, place)))
        elif word.startswith("-") and word != "-":
            for index, letter in enumerate(word[1:], 2):
                name = _SHORT.get(letter, "")
                if not name:
                    yield _Word(f"-{letter}", "", False, (at,))
                elif options[name]:
                    value = word[index:]
                    if not value:
                        if place == len(words):
                            yield _Word(f"-{letter} without its argument", "", False, (at,))
                            return
                        value = words[place]
                        place += 1
                    yield _Word(name, value, True, (at,))
                    break
                else:
                    yield _Word(name, "", True, (at,))
        else:
            yield _Word("", word, True, (at,))


def _named(text: str, options: dict[str, bool]) -> tuple[str, bool | None]:
    """Return the option that `text` stands for, and whether it takes an argument; None if it stands for none, or several."""
    if text in options:
        return _SAME.get(text, text), options[text]
    found = {(_SAME.get(name, name), takes) for name, takes in options.items() if text and name.startswith(text)}
    return found.pop() if len(found) == 1 else (text, None)
