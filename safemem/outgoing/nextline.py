# SPDX-License-Identifier: MIT
"""What the next kernel's command line asks for: KHO and LUO, the hold, safemem's own arguments, and whether it arrives whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from safemem.boot import paths, probe, stake, token
from safemem.boot.cmdline import argument, arguments, boolean, last, split, unsealed
from safemem.boot.handover_args import LONGEST
from safemem.boot.model import UNKNOWN, Note, Policy
from safemem.boot.ranges import Range, merge_ranges, parse_range
from safemem.initramfs import bootoptions
from safemem.outgoing.findings import Finding, finding
from safemem.outgoing.kernel import Kernel
from safemem.outgoing.running import Running

_WHERE = "the next command line"
#: What each architecture takes as a command line, less its end (COMMAND_LINE_SIZE).
_MOST = {"x86_64": LONGEST, "aarch64": 2047}


#: Words by which the kernel may not get what this machine shows or hands over; others keep safemem from the boot.
_HIDES = {
    "initcall_blacklist": "what the kernel leaves out may be what takes the handover",
    "mem": "the next kernel has other memory than this machine shows",
    "memmap": "the next kernel has other memory than this machine shows",
}


class Line(NamedTuple):
    """The next command line; and what it asks of the next kernel, None where that cannot be told."""

    text: str | None  #: None if it is not known
    kho: bool | None = None
    luo: bool | None = None
    dropped: str = ""  #: the option by which the kernel drops the line that it is given for its own

    def get(self, name: str) -> str | None:
        """Return the value of the last argument of that name, or None."""
        return argument(self.text or "", name)


def line(kernel: Kernel, text: str | None) -> Line:
    """Return the command line `text` as that kernel takes it, with what is built in; None is not known."""
    text, dropped = _built_in(kernel, text)
    if text is None:
        return Line(None)
    wanted = [boolean(argument(text, name)) for name in ("kho", "liveupdate")]
    kho = _default(kernel, "CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT") if wanted[0] is None else wanted[0]
    # There is no option that has LUO on by itself (kernel/liveupdate/Kconfig, Linux 7.3); and without KHO there is none.
    return Line(text, kho, bool(wanted[1]) and kho is not False, dropped)


def _built_in(kernel: Kernel, text: str | None) -> tuple[str | None, str]:
    """Return the line that the kernel makes of one that it is given and of its own, and by which option one is dropped.

    On x86 its own comes first (setup_arch); on arm64 it counts where nothing is given (early_init_dt_scan_chosen).
    """
    config, x86 = kernel.config or {}, kernel.arch == "x86_64"
    own = config.get("CONFIG_CMDLINE", "n")
    own = own.strip('"').replace('\\"', '"').replace("\\\\", "\\") if own != "n" else ""
    if not own or (x86 and config.get("CONFIG_CMDLINE_BOOL") != "y"):
        return text, ""
    option = "CONFIG_CMDLINE_OVERRIDE" if x86 else "CONFIG_CMDLINE_FORCE"
    if config.get(option) == "y":
        return own, option if text is not None and text.split() != own.split() else ""
    if text is None:
        return None, ""
    if x86:
        return f"{own} {text}", ""
    return f"{text} {own}" if config.get("CONFIG_CMDLINE_EXTEND") == "y" else text or own, ""


def _default(kernel: Kernel, option: str) -> bool | None:
    return None if kernel.config is None else kernel.config.get(option) == "y"


def check(running: Running, kernel: Kernel, found: Line, policy: Policy | None) -> Iterator[Finding]:
    """Yield what is wrong with the next command line, the guard aside; `policy` is the one that decides in the next boot."""
    if found.text is None:
        yield finding("no-cmdline", "neither --cmdline nor the image has one")
        return
    if found.dropped:
        yield finding("cmdline-dropped", f"{kernel.path}: {found.text}", option=found.dropped)
    if kernel.config is None and running.outgoing.kho.value != "no":
        severity = "note" if running.at_stake.value == "no" else UNKNOWN
        yield finding("built-in-untold", kernel.path, severity=severity)
    yield from _whole(kernel, found.text)
    yield from _undone(found.text)
    yield from _live_update(running, kernel, found)
    if found.get("memhp_default_state") != "offline":
        yield finding("memhp-online", f"{_WHERE}: no memhp_default_state=offline")
    asked = probe.overrides(last(arguments(found.text)))
    for override, word in (("off", "safemem=off"), ("dry-run", "safemem.dry_run")):
        if override in asked:
            yield finding("safemem-off", _WHERE, word=word)
    resets = found.get("panic")
    if resets not in (None, "", "0") and (policy is None or _may_panic(policy)):
        yield finding("panic-resets", f"{_WHERE}: panic={resets}")
    yield from _safe(running, found.text)
    yield from _word(running, found.text)
    yield from _token(running, found.text)


def _whole(kernel: Kernel, text: str) -> Iterator[Finding]:
    most = _MOST.get(kernel.arch, LONGEST)
    size = len(os.fsencode(text))
    if size > most:
        yield finding("cmdline-long", _WHERE, size=size, most=most)
    if split(text)[2]:
        yield finding("quote-open", _WHERE)


def _live_update(running: Running, kernel: Kernel, found: Line) -> Iterator[Finding]:
    """Yield whether KHO and LUO are off where this kernel hands something over and the next one has them."""
    if running.outgoing.kho.value == "no" or kernel.kho.value == "no":
        return
    if not found.kho:
        asked = found.get("kho")
        said = f"kho={asked}" if asked is not None else "no kho=, and it is off by default"
        code = "kho-ask-untold" if found.kho is None else "kho-not-asked"
        yield finding(code, f"{_WHERE}: {said}" if found.kho is False else f"{_WHERE}: no kho=, and no configuration")
    if not found.luo and running.outgoing.luo.value != "no" and kernel.luo.value != "no":
        severity = "warning" if running.at_stake.value == "no" else "error"
        asked = found.get("liveupdate")
        said = "no liveupdate=on" if asked is None else f"liveupdate={asked}"
        yield finding("luo-not-asked", f"{_WHERE}: {said}", severity=severity)


def _undone(text: str) -> Iterator[Finding]:
    """Yield words that keep safemem from the boot, or may keep the handover or memory from the kernel."""
    for word, why in bootoptions.undone(text):
        yield finding("word-undoes", _WHERE, severity="error", word=word, why=why)
    for name, value in arguments(text):
        if name in _HIDES:
            word = f"{name}={value}" if value else name
            yield finding("word-undoes", _WHERE, severity=UNKNOWN, word=word, why=_HIDES[name])


def _may_panic(policy: Policy) -> bool:
    ends = {word for rule in (*policy.rules, policy.otherwise) for word in (rule.action, rule.on_shortfall)}
    return "panic" in {*ends, policy.on_failure.action}


# ---- safemem's own arguments


def safe_region(text: str) -> tuple[tuple[Range, ...], bool]:
    """Return the safe region that a command line tells, and whether it has a check sum. Raises ValueError: it is ignored."""
    found = argument(text, stake.SAFE)
    if found is None:
        return (), False
    ranges, whole = unsealed(found)
    return tuple(parse_range(item) for item in ranges.split(",")), whole


def _safe(running: Running, text: str) -> Iterator[Finding]:
    told = argument(text, stake.SAFE)
    if told is None and running.outgoing.kho.value == "no":
        return
    if told is None:
        yield finding("no-safe", f"{_WHERE}: no {stake.SAFE}=")
        return
    try:
        found, whole = safe_region(text)
    except ValueError as error:
        yield finding("safe-bad", f"{_WHERE}: {stake.SAFE}={told}", why=error)
        return
    if not whole:
        yield finding("safe-unsealed", f"{_WHERE}: {stake.SAFE}={told}")
    if running.scratch and merge_ranges(found) != merge_ranges(running.scratch):
        scratch = ",".join(map(str, running.scratch))
        yield finding("safe-stale", f"{stake.SAFE}={told}, and scratch is {scratch}")


def _word(running: Running, text: str) -> Iterator[Finding]:
    """Compare the word on what is preserved with what is."""
    said = argument(text, stake.ARGUMENT)
    if said is None or running.outgoing.kho.value == "no":
        return
    fact = stake.told(arguments(text))
    if fact.value == "no" and running.at_stake.value != "no":
        held = running.at_stake.value == "yes"
        what, severity = ("something is", "error") if held else ("whether anything is cannot be told", UNKNOWN)
        yield finding("word-stale", running.at_stake.reason or f"/{paths.PROC}", severity=severity, what=what)
    elif fact.value == UNKNOWN and said.partition(";")[0] != UNKNOWN:
        yield finding("word-bad", _WHERE, why=fact.reason)


def _token(running: Running, text: str) -> Iterator[Finding]:
    """Compare the token that is named with the one that this system holds."""
    if argument(text, stake.TOKEN) is None or not running.root:
        return
    notes: list[Note] = []
    digest = token.told(text, notes)
    if not digest:
        yield finding("token-stale", _WHERE, why=notes[0])
        return
    held, why = token.handed(running.root)
    if not held or unsealed(held.partition("=")[2])[0] != digest:
        yield finding("token-stale", _WHERE, why=why or "another one is held")


def names_held_token(running: Running, text: str) -> bool:
    """Return whether a command line names the token that this system holds."""
    named = argument(text, stake.TOKEN) is not None and bool(running.root)
    return named and not list(_token(running, text))
