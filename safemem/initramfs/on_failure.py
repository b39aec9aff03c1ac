# SPDX-License-Identifier: MIT
"""What each `on_failure` is where nobody can ask the boot program: in shell, and in units of systemd.

The keys of sysrq are the program's own (`safemem.boot.console`). An action that is added to the policy language is a
row there and one here.
"""

from __future__ import annotations

import re

from safemem.boot.console import KEYS
from safemem.boot.model import Failure, Policy
from safemem.initramfs.items import BuildError, shipped

#: What a failure ends in where nothing is in force: nothing. No policy says it.
GO_ON = "continue"
UNIT = "safemem-decide.service"
_PANIC = "safemem-panic.service"
#: Units of an initramfs that may load a driver or let one act: none starts unless ours has succeeded.
GUARDED = ("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-modules-load.service", "sysinit.target")
#: A wrapper that hangs itself is told to stop after this; onlining terabytes takes minutes.
_TIMEOUT = "1h"
#: The status with which the wrapper lets a boot go on.
GOES_ON = 42
#: Bytes of `on_failure.message` on the console: a line with more than 1,024 is refused there as a whole
#: (kernel/printk/printk.c, devkmsg_write), and the wrapper adds its own words.
_MESSAGE_MAX = 700

#: What the unit says for each action, for when even the wrapper cannot be started.
UNIT_LINES = {
    "panic": f"OnFailure={_PANIC}",
    "reboot": "FailureAction=reboot-immediate",
    # systemd 252 does not know halt and keeps the line before.
    "halt": "FailureAction=poweroff-immediate\nFailureAction=halt-immediate",
}


def of(policy: Policy, *named: Policy) -> Failure:
    """Return what a failure of safemem ends in: the policy's `on_failure`, or no end if it only observes.

    INVARIANT: where the command line may name a policy that acts, that one's `on_failure` counts: which of the two
    decides, nobody knows of a program that has failed.
    """
    acts = next((each for each in (policy, *named) if not each.observe), None)
    return acts.on_failure if acts else policy.on_failure._replace(action=GO_ON)


def gate(failure: Failure) -> bytes:
    """Return what goes into an init that is a shell script; it knows `on_failure` too, for a wrapper that is not there."""
    return _ending("gate.sh", failure)


def proof(failure: Failure) -> bytes:
    """Return what is sourced after a gate that is a file of its own, and may be cut off or missing."""
    return _ending("proof.sh", failure)


def _ending(name: str, failure: Failure) -> bytes:
    script = with_value(shipped(name), name, "ACTION", failure.action)
    return with_value(script, name, "KEYS", _keys(failure))


def _keys(failure: Failure) -> str:
    return "" if failure.action == GO_ON else " ".join(KEYS[failure.action])


def wrapper(failure: Failure, root: str = "") -> bytes:
    """Return the wrapper for one `on_failure`; `root` is for fake roots."""
    script = shipped("boot.sh")
    for name, value in (
        ("ROOT", root),
        ("ON_FAILURE", failure.action),
        ("KEYS", _keys(failure)),
        ("MESSAGE", _short(failure.message or "safemem could not decide")),
        ("DEADLINE", str(failure.deadline)),
    ):
        script = with_value(script, "boot.sh", name, value)
    return script


def _short(message: str) -> str:
    data = message.encode()
    return message if len(data) <= _MESSAGE_MAX else data[: _MESSAGE_MAX - 3].decode(errors="ignore") + "…"


def with_value(script: bytes, where: str, name: str, value: str) -> bytes:
    """Return a shell script with `value` on its one line NAME='…', whatever is in it.

    Raises:
        BuildError: there is no such line, or more than one; `where` names the script.
    """
    quoted = "'" + value.replace("'", "'\\''") + "'"
    # A value of ours is one line, and so is what it stands for.
    text, found = re.subn(f"^( *{name}=)'.*'$", lambda line: f"{line[1]}{quoted}", script.decode(), flags=re.M)
    if found != 1:
        raise BuildError(f"{where} has no line {name}='…' to replace, or more than one")
    return text.encode()


def units(failure: Failure) -> dict[str, bytes]:
    """Return the units for an initramfs with systemd, by path below its folder of units."""
    text = shipped(UNIT).decode()
    values = (
        ("@ON_FAILURE@", "" if failure.action == GO_ON else UNIT_LINES[failure.action]),
        ("@TIMEOUT@", _TIMEOUT),
        ("@GOES_ON@", str(GOES_ON)),
    )
    for mark, value in values:
        if text.count(mark) != 1:
            raise BuildError(f"{UNIT} has no {mark} to replace, or more than one")
        text = text.replace(mark, value)
    # The assertion is for a wrapper that seemed to succeed, and needs no shell.
    needs, proof = (
        ("Wants", "") if failure.action == GO_ON else ("Requires", "AssertFileNotEmpty=/run/safemem/passed\n")
    )
    guarded = f"# SPDX-License-Identifier: MIT\n[Unit]\n{needs}={UNIT}\nAfter={UNIT}\n{proof}"
    # In this order: of an archive that is cut off, what is left stops the boot for want of the rest.
    found = {f"{unit}.d/50-safemem.conf": guarded.encode() for unit in reversed(GUARDED)}
    return {**found, _PANIC: shipped(_PANIC), UNIT: text.encode()}


def unit_files(failure: Failure) -> dict[str, bytes]:
    """Return the units as files of an initrd. Theirs is the folder that every systemd looks into."""
    return {f"usr/lib/systemd/system/{path}": data for path, data in units(failure).items()}
