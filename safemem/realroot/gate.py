# SPDX-License-Identifier: MIT
"""The gate before a kexec: whether what is loaded may be started; run by safemem-preflight.service, and by the operator.

`HELP` has what each word does.

Runs on the distribution's interpreter, whatever else is broken: standard library only.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from typing import NamedTuple

from safemem.boot.printable import printable
from safemem.realroot import gatesetup, journal, judge, loaded, maintenance
from safemem.realroot.judge import CANNOT_TELL, COMPATIBLE, INCOMPATIBLE
from safemem.realroot.loaded import File, Loaded, Override

USAGE = "usage: gate [--root DIR] enable|disable|status|kexec|override --reason TEXT|override --cancel"
HELP = f"""{USAGE}

  enable                  put kexec and systemctl kexec behind the gate: what would not come up is refused
  disable                 take them out again; kexec is the distribution's
  status                  say whether they are behind it, what is done where nothing can be told, and what waits
  override --reason TEXT  let the next kernel of this boot be loaded and started against the verdict, once
  override --cancel       take that back
  kexec                   judge what is loaded, and start it or fail; systemd runs it, and no one else has to

Settings: /{judge.SETTINGS}. See also safemem(1).
"""
#: What systemctl kexec would have started, without us in front of it.
TARGET = "safemem-kexec.target"
#: Exit codes, as those of `safemem preflight`.
CODES = {COMPATIBLE: 0, INCOMPATIBLE: 5, CANNOT_TELL: 6}
#: An override that is given with one call.
ENVIRONMENT = "SAFEMEM_PREFLIGHT_OVERRIDE"
WAY_OUT = "`/usr/lib/safemem/gate override --reason TEXT` lets the next kexec go against it"
#: What to do where what is loaded is not known any more.
ANEW = ": load it anew"
#: What must not end up in a journal, or on a console.
_LONGEST = 400


class Answer(NamedTuple):
    """Whether a kexec may go on."""

    passes: bool
    verdict: str
    why: str
    text: str = ""  #: preflight's report
    override: str = ""  #: why it goes on against the verdict
    final: bool = False  #: no override helps
    off: bool = False  #: KHO is off here, so that nothing is handed over


def main(argv: list[str]) -> int:
    """Do what the first word says; return 0, 1 if it cannot be done, 2 for a wrong call, 5 or 6 if a kexec is refused."""
    os.umask(0o022)
    root, words = "/", list(argv)
    if words[:1] == ["--root"] and len(words) > 1:
        root, words = words[1], words[2:]
    if words in (["--help"], ["-h"]):
        sys.stdout.write(HELP)
        return 0
    if words == ["kexec"]:
        return kexec(root)
    if words == ["override", "--cancel"]:
        return _cancel(root)
    if len(words) == 3 and words[:2] == ["override", "--reason"] and words[2].strip():
        return _override(root, words[2])
    if len(words) == 1 and words[0] in gatesetup.VERBS:
        code = gatesetup.run(root, words[0])
        if words[0] == "status":
            sys.stdout.write(_settings(root))
        return code
    sys.stderr.write(f"{USAGE}\n")
    return 2


def weigh(root: str, verdict: judge.Verdict, why_over: str) -> Answer:
    """Return what a verdict comes to, by the operator's settings and by an override; nothing is used up.

    Args:
        root: of the machine.
        verdict: what preflight says.
        why_over: an override that is given otherwise than by `gate override`, or "".
    """
    name, why, text, failed, off = verdict
    passes, because = name == COMPATIBLE, ""
    if name == CANNOT_TELL and not failed:
        try:
            passes = judge.on_cannot_tell(root) == "allow"
            because = f' (refused by `cannot_tell = "refuse"` in /{judge.SETTINGS})'
        except judge.BadSettings as error:
            why = f"{error}: {judge.WRITE}; {why}"
    if passes:
        return Answer(True, name, why, text, off=off)
    try:
        over = " ".join((why_over or loaded.permission(root)).split())[:_LONGEST]
    except (OSError, loaded.Damaged) as error:
        over, why = "", f"{why}; the override cannot be read: {loaded.why_not(error)}"
    return Answer(bool(over), name, why if over else f"{why}{because}", text, over)


def consider(root: str, why_over: str = "") -> tuple[Answer, Loaded | None]:
    """Return whether what is loaded may be started, and what it is as far as it is known."""
    there = loaded.is_loaded(root)
    if there is False:
        why = "no kernel is loaded, and systemd would reboot without a handover: load one with `kexec -s -l` first"
        return Answer(False, CANNOT_TELL, why, final=True), None
    try:
        found = loaded.read(root)
    except (OSError, loaded.Damaged) as error:
        return weigh(root, judge.Verdict(CANNOT_TELL, loaded.why_not(error), ""), why_over), None
    if found is None:
        why = "what is loaded was not loaded by `kexec`, so that nobody knows which kernel it is" + ANEW
        return weigh(root, judge.Verdict(CANNOT_TELL, why, ""), why_over), None
    if found.override:
        return Answer(True, found.verdict, found.why, override=found.override), found
    for file in (found.kernel, *found.initrds):
        changed = _changed(file)
        if changed:
            return weigh(root, judge.Verdict(CANNOT_TELL, changed, ""), why_over), found
    # Anew: sessions, the policy and what they say of each other may have changed since it was loaded.
    paths = tuple(file.path for file in found.initrds)
    return weigh(root, judge.judge(root, found.kernel.path, paths, found.cmdline, found.loader), why_over), found


def _changed(file: File) -> str:
    """Return why a file is not what was loaded, or ""."""
    try:
        return "" if loaded.digest(file.path) == file else f"{file.path} has changed since it was loaded{ANEW}"
    except OSError as error:
        return f"{loaded.why_not(error)}, which was loaded{ANEW}"


def kexec(root: str) -> int:
    """Judge what is loaded, and start it or refuse; what systemd runs when somebody asks it for a kexec."""
    answer, found = consider(root)
    if not answer.passes:
        return refuse(root, answer, "nothing was stopped, and this system goes on")
    kernel = found.kernel.path if found else ""
    problem = record(root, answer, kernel, started=True) if answer.override else ""
    if problem:
        return refuse(root, answer._replace(why=problem, final=True), "nothing was stopped, and this system goes on")
    tell(root, answer)
    words = [os.path.join(root, "usr/bin/systemctl"), "start", "--no-block", "--job-mode=replace-irreversibly", TARGET]
    try:
        code = subprocess.run(words, stdin=subprocess.DEVNULL).returncode
        problem = f"systemctl failed with code {code}" if code else ""
    except OSError as error:
        problem = loaded.why_not(error)
    return _not_started(root, answer, found, problem) if problem else 0


def _not_started(root: str, answer: Answer, found: Loaded | None, problem: str) -> int:
    """Say that there was no kexec after all, and what has become of the override; return 1."""
    so = "nothing was started, and this system goes on"
    if answer.override:
        if found and found.override:
            record(root, answer, found.kernel.path, started=False)
            so += "; the override stays with what is loaded"
        else:
            with contextlib.suppress(OSError):
                loaded.dismiss(root)
            so += "; the override is spent: give it anew"
    text = f"kexec failed: {problem}: {so}"
    sys.stderr.write(f"safemem: {text}\n")
    journal.send(root, entry(answer, text, "3"))
    maintenance.on_consoles(root, f"safemem: {text}\n")
    return 1


def record(root: str, answer: Answer, kernel: str, *, started: bool) -> str:
    """Keep an override for the next boot, then take the permission back; return why that failed, or ""."""
    try:
        boot, now = loaded.boot_id(root), int(time.time())
        why = answer.why[:_LONGEST]
        loaded.keep(root, Override(boot, now, answer.override, answer.verdict, why, kernel, started))
        loaded.use_up(root)
    except OSError as error:
        return f"the override cannot be recorded: {loaded.why_not(error)}"
    return ""


def refuse(root: str, answer: Answer, so: str) -> int:
    """Say on the console and in the journal why there is no kexec; return the exit code."""
    why = printable(answer.why)
    lines = [f"kexec refused: {answer.verdict}: {why}", so if answer.final else f"{so}; {WAY_OUT}"]
    if answer.text:
        sys.stderr.write(answer.text.rstrip("\n") + "\n")
    for line in lines:
        sys.stderr.write(f"safemem: {line}\n")
    journal.send(root, entry(answer, f"{lines[0]}; {lines[1]}", "3"))
    maintenance.on_consoles(root, "".join(f"safemem: {line}\n" for line in lines))
    return CODES.get(answer.verdict) or CODES[CANNOT_TELL]


def tell(root: str, answer: Answer) -> None:
    """Say in the journal, and for what is not compatible on the console as well, that a kexec goes on."""
    why, anew, _ = printable(answer.why).partition(ANEW)
    text = f"kexec goes on{' without a handover' if answer.off else f': {answer.verdict}'}: {why}"
    if answer.verdict == CANNOT_TELL:
        more = " Next time load it by `kexec -s -l`." if anew else ""
        text = f"kexec goes on, though it cannot be told whether it would come up: {why}.{more}"
    if answer.override:
        text = f"kexec forced: {printable(answer.override)} ({answer.verdict}: {printable(answer.why)})"
    quiet = answer.verdict == COMPATIBLE and not answer.off
    journal.send(root, entry(answer, text, "5" if quiet else "4"))
    if not quiet:
        sys.stderr.write(f"safemem: {text}\n")
        maintenance.on_consoles(root, f"safemem: {text}\n")


def entry(answer: Answer, text: str, priority: str) -> dict[str, str]:
    """Return the journal's entry for an answer."""
    return {
        "MESSAGE": text, "PRIORITY": priority, "SYSLOG_IDENTIFIER": "safemem",
        "SAFEMEM_PREFLIGHT": answer.verdict, "SAFEMEM_OVERRIDE": answer.override,
    }  # fmt: skip


def _override(root: str, why: str) -> int:
    why = " ".join(why.split())[:_LONGEST]
    try:
        loaded.permit(root, why)
    except OSError as error:
        sys.stderr.write(f"safemem: the override cannot be given: {loaded.why_not(error)}\n")
        return 1
    text = f"this boot's next kexec may go against the verdict: {printable(why)}"
    journal.send(root, {"MESSAGE": text, "PRIORITY": "4", "SYSLOG_IDENTIFIER": "safemem"})
    sys.stdout.write(f"{text}\n")
    return 0


def _cancel(root: str) -> int:
    try:
        loaded.use_up(root)
    except OSError as error:
        sys.stderr.write(f"safemem: the override cannot be taken back: {loaded.why_not(error)}\n")
        return 1
    text = "no override waits: the next kexec goes by the verdict"
    journal.send(root, {"MESSAGE": text, "PRIORITY": "5", "SYSLOG_IDENTIFIER": "safemem"})
    sys.stdout.write(f"{text}\n")
    return 0


def _settings(root: str) -> str:
    """Return what is done where nothing can be told, and the override that waits, as lines of `gate status`."""
    try:
        said = judge.on_cannot_tell(root)
        what = f'{"goes on, with a warning" if said == "allow" else "is refused"}: `cannot_tell = "{said}"`'
        there = os.path.exists(os.path.join(root, judge.SETTINGS))
        what += f" in /{judge.SETTINGS}" if there else f", for there is no /{judge.SETTINGS}"
    except judge.BadSettings as error:
        what = f"is refused: {error}: {judge.WRITE}"
    try:
        why = loaded.permission(root)
        waits = (
            f"waits for the next kexec: {printable(why)}; `gate override --cancel` takes it back"
            if why
            else "none waits"
        )
    except (OSError, loaded.Damaged) as error:
        waits = f"none: it cannot be read: {loaded.why_not(error)}"
    return f"cannot tell      {what}\noverride         {waits}\n"
