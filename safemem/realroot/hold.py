# SPDX-License-Identifier: MIT
"""Keep this system from onlining what the boot decision holds; run by safemem-hold.service, and when a rule is added.

The initramfs masks what was known when its archive was built. The real root may have other rules, and a
file in /etc/udev/rules.d wins over a mask in /run: over such a file goes a bind mount of /dev/null,
which udev takes for a mask as well (seen on 252 and 257) and which changes nothing on the disk. Runs
before systemd-udevd, on the distribution's interpreter: standard library only.

Each step is taken whatever becomes of the others, and what fails is a problem: where the rule that decided says
`on_shortfall`, the boot ends so.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from safemem.boot import console, files, record
from safemem.boot import hold as boot
from safemem.boot.console import ALERT, say
from safemem.boot.files import reason
from safemem.boot.hold import ONLINE_WORD, UDEV_RUN, UNITS_RUN, mask
from safemem.boot.model import FINAL, Note
from safemem.boot.printable import printable
from safemem.realroot import alongside, storage, udevrules

#: What was hidden here, one path a line, a mount marked by `mount `. /run outlives udev and us.
MASKED = "run/safemem/masked"
#: What was released by hand in this boot (`safemem.host.reader.releases`), and the range that is everything.
RELEASES = "run/safemem/releases.json"
EVERYTHING = "0x0-0xffffffffffffffff"
#: Units that 90-daxctl-device.rules starts for each dax device; daxctl turns it into memory and onlines it.
UNITS = ("daxdev-reconfigure@.service",)
#: Times that rules are looked for: one that comes while others are masked is masked too.
_ROUNDS = 3
MOUNT, _UMOUNT, _UDEVADM = "/usr/bin/mount", "/usr/bin/umount", "/usr/bin/udevadm"
_CONTROL = "run/udev/control"


def main(argv: list[str]) -> int:
    """Hold for `--root` (default `/`), `--again` where udev runs already; return 0, or 1 if held memory may come online.

    Does not return if the rule that decided ends a boot by panic or reboot where the hold falls short; a halt is the
    unit's, which fails.
    """
    os.umask(0o022)
    words = list(argv)
    again = "--again" in words
    if again:
        words.remove("--again")
    root = words[1] if words[:1] == ["--root"] and len(words) == 2 else "/"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # the hold is worth more than the order of those who change it
            stack.enter_context(storage.locked(os.path.join(root, storage.LOCK)))
        problems = hold(root, again=again)
        for text in problems:
            say(root, ALERT, text)
            sys.stderr.write(f"safemem: {printable(text)}\n")
        if problems:
            _note(root, problems)
    if problems and (action := on_shortfall(root)) in FINAL:
        console.end(root, action, "shortfall", problems[0])
    return 1 if problems else 0


def hold(root: str, *, again: bool = False) -> list[Note]:
    """Stop the kernel, udev and units from onlining what arrives, unless the decision does; return what could not be.

    `again`: udev runs, and is told of what was masked since.
    """
    if not stands(root):
        return []
    problems = _step(boot.hold, root)
    done: list[str] = []
    with contextlib.suppress(OSError):
        done = _masked(root)
    before = list(done)
    alongside.tell_all(root)
    # Those that are known come first, whatever there is to be read.
    left, seen = {*udevrules.KNOWN, *UNITS}, set[str]()
    for _ in range(_ROUNDS):
        lines = {line: name for name in sorted(left) if (line := _line(root, name))}
        new = [line for line in lines if line not in done]
        if new:  # written down before: what is cut off in between can still be taken back
            done += new
            problems += _step(_keep, root, done)
        for line, name in lines.items():
            if line in new:  # as long as it can be read: over a file in /etc lies the mask
                alongside.tell(root, name)
            refused = _step(_hide, root, name, line)
            problems += refused
            if refused and line in new:
                done.remove(line)
        seen |= left
        found: list[udevrules.Onliner] = []
        failed = _step(_look, root, found)
        alongside.tell_unsure(root, found)
        left = {name for item in found if (name := os.path.basename(item.file)).endswith(".rules")} - seen
        if not left:
            break
    problems += failed
    # What is in force afterwards is what counts, not what was tried.
    for rule in found:
        text = f"{rule.file}:{rule.line} still onlines memory, although it was to be masked: {rule.what}"
        problems.append(Note("still-onlines", text))
    if done != before:
        problems += _step(_keep, root, done)
        if again:
            problems += _step(_tell_udev, root)
    return list(dict.fromkeys(problems))


def stands(root: str) -> bool:
    """Return whether something is held; what cannot be read counts as held.

    The record decides, and only a release of everything changes that: what udev goes by has to agree.
    """
    try:
        lines = (files.text(root, record.ENV) or "").splitlines()
        document = _json(root, record.RECORD)
        if "SAFEMEM_DRY_RUN=yes" in lines:
            return document["result"].get("dry_run") is not True and document["result"].get("observed") is not True
        if not any(f"SAFEMEM_ARRIVALS={word}" in lines for word in ONLINE_WORD.values()):
            return True
        return document["decision"]["arrivals"] not in ONLINE_WORD and not _all_released(root)
    except Exception:  # nothing of this may end the hold
        return True


def on_shortfall(root: str) -> str:
    """Return what the rule that decided says of a hold that falls short; "" if that cannot be read."""
    try:
        word = _json(root, record.RECORD)["decision"]["on_shortfall"]
    except Exception:  # the unit's own end is left
        return ""
    return word if isinstance(word, str) else ""


def _all_released(root: str) -> bool:
    # A list: in a text, or a table, the same words would be found as well.
    return any(type(entry["ranges"]) is list and EVERYTHING in entry["ranges"] for entry in _json(root, RELEASES))


def _json(root: str, name: str) -> Any:
    with open(os.path.join(root, name), encoding="utf-8") as file:
        return json.load(file)


def _step(do: Callable[..., list[Note]], root: str, *more: object) -> list[Note]:
    """Return the problems of one step; one that fails in a way that nobody foresaw is a problem, too."""
    try:
        return do(root, *more)
    except Exception as error:
        why = reason(error, "failed") if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        return [Note("not-masked", f"this system could not be kept from onlining held memory: {why}")]


def _line(root: str, name: str) -> str:
    """Return how a rules file or unit is to be masked, as a line of `MASKED`; "" if the operator has done it."""
    line = f"{UNITS_RUN if name in UNITS else UDEV_RUN}/{name}"
    # A link to nowhere is nobody's rule, and over it nothing can be mounted: the mask in /run is for what comes after it.
    own = next(
        (at for at in (f"etc/udev/rules.d/{name}", line) if files.exists(root, at) and not _is_nowhere(root, at)), None
    )
    if own is None:
        return line
    path = os.path.join(root, own)
    if os.path.islink(path) and stat.S_ISCHR(_mode(path)):
        return line if own == line else ""
    return "" if name in UNITS else f"mount {own}"


def _hide(root: str, name: str, line: str) -> list[Note]:
    """Mask one rules file or unit in the way that a line says, if it is not masked yet; return what went wrong."""
    if line.startswith("mount "):
        path = os.path.join(root, line.removeprefix("mount "))
        return [] if stat.S_ISCHR(_mode(path)) else _cover(path)
    if _is_nowhere(root, line):
        os.unlink(os.path.join(root, line))
    if name in UNITS or _is_nowhere(root, f"etc/udev/rules.d/{name}"):
        return _link(root, name, line)
    return mask(root, [name])


def _link(root: str, name: str, line: str) -> list[Note]:
    what = "unit" if name in UNITS else "udev rules file"
    try:
        files.link(root, line, "/dev/null")
    except OSError as error:
        return [Note("not-masked", f"{what} {name} could not be masked: {reason(error, 'cannot be made')}")]
    return []


def _is_nowhere(root: str, path: str) -> bool:
    """Return whether a path is a link to nowhere; what cannot be told is none."""
    try:
        return udevrules.is_nowhere(root, path)
    except OSError:
        return False


def _mode(path: str) -> int:
    """Return the mode of what a path leads to; 0 if it leads nowhere."""
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


def _cover(path: str) -> list[Note]:
    """Mount /dev/null over a file; return what went wrong."""
    why = run(MOUNT, "--bind", "/dev/null", path)
    text = f"{path} could not be masked, so it may online held memory: {why}"
    return [Note("not-masked", text)] if why else []


def _look(root: str, found: list[udevrules.Onliner]) -> list[Note]:
    """Put the rules in `found` that online memory now."""
    found += udevrules.find(root)
    return []


def _keep(root: str, done: list[str]) -> list[Note]:
    """Write down what was hidden, so that a release can take it back."""
    storage.put(root, MASKED, "".join(f"{line}\n" for line in done))
    return []


def _tell_udev(root: str) -> list[Note]:
    """Have udev, which looks at its folders every three seconds and not at what is mounted, read its rules now."""
    if not files.exists(root, _CONTROL):
        return []
    why = run(_UDEVADM, "control", "--reload", "--timeout=10")
    text = f"udev could not be told to read its rules anew, so one that is masked may still online held memory: {why}"
    return [Note("not-masked", text)] if why else []


def run(program: str, *words: str) -> str:
    """Return why a program failed, or nothing."""
    try:
        result = subprocess.run([program, *words], capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program}: {(error.strerror if isinstance(error, OSError) else '') or error}"
    if not result.returncode:
        return ""
    return result.stderr.strip() or f"{os.path.basename(program)} ended with {result.returncode}"


def release(root: str) -> list[str]:
    """Take back what `hold` did; return what could not be, one sentence each."""
    problems, left = [], []
    try:
        lines = _masked(root)
    except OSError as error:
        return [f"{MASKED}: {reason(error)}: what is masked stays so"]
    for line in lines:
        mounted = line.startswith("mount ")
        path = os.path.join(root, line.removeprefix("mount "))
        try:
            if mounted:
                if stat.S_ISCHR(_mode(path)) and (why := run(_UMOUNT, path)):
                    raise OSError(0, why)
            elif os.readlink(path) == "/dev/null":
                os.unlink(path)
        except FileNotFoundError:
            pass  # gone already
        except OSError as error:
            left.append(line)
            problems.append(f"{line.removeprefix('mount ')} stays masked: {reason(error, str(error))}")
    if left:
        storage.put(root, MASKED, "".join(f"{line}\n" for line in left))
    else:
        for name in (MASKED, alongside.KEPT):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(root, name))
    return problems


def _masked(root: str) -> list[str]:
    """Return what was hidden before. Raises OSError, but not if that is nothing."""
    try:
        with open(os.path.join(root, MASKED), encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def _note(root: str, problems: list[Note]) -> None:
    """Add the problems to this boot's record: `status` and `doctor` read it."""
    try:
        document = _json(root, record.RECORD)
        result = document["result"] or {}
        texts, known = result.get("problems", []), result.get("problem_codes", [])
        # A record of version 0.1.0 has no codes.
        old = [Note(code, text) for code, text in zip(known or [""] * len(texts), texts, strict=True)]
        both = (*(note for note in old if note not in problems), *problems)
        changed = {"complete": False, "problems": list(both), "problem_codes": record.codes(both)}
        document["result"] = {**result, **changed}
        storage.put(root, record.RECORD, json.dumps(document, separators=(",", ":")) + "\n")
    except Exception as error:  # whatever is in it
        say(root, ALERT, f"the record could not be completed: {error}")
