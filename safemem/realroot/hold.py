# SPDX-License-Identifier: MIT
"""Keep the real root's own udev rules from onlining what the boot decision holds; run by safemem-hold.service.

The initramfs masks what was known when its archive was built. The real root may have other rules, and a
file in /etc/udev/rules.d wins over a mask in /run: over such a file goes a bind mount of /dev/null,
which udev takes for a mask as well (seen on 252 and 257) and which changes nothing on the disk. Runs
before systemd-udevd, on the distribution's interpreter: standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from safemem.boot import files, record
from safemem.boot.console import ALERT, say
from safemem.boot.files import reason
from safemem.boot.hold import ONLINE_WORD, UDEV_RUN, UNITS_RUN, mask
from safemem.boot.model import Note
from safemem.realroot import udevrules

#: What was hidden here, one path a line, a mount marked by `mount `. /run outlives udev and us.
MASKED = "run/safemem/masked"
#: Units that 90-daxctl-device.rules starts for each dax device; daxctl turns it into memory and onlines it.
UNITS = ("daxdev-reconfigure@.service",)
_MOUNT, _UMOUNT = "/usr/bin/mount", "/usr/bin/umount"


def main(argv: list[str]) -> int:
    """Mask what this root has and say what could not be; return 0, or 1 if held memory may come online."""
    root = argv[1] if argv[:1] == ["--root"] and len(argv) == 2 else "/"
    try:
        problems = hold(root)
    except Exception as error:  # whatever it is: nothing was masked for certain
        text = f"this system's udev rules could not be masked, so they may online held memory: {error}"
        problems = [Note("not-masked", text)]
    for text in problems:
        say(root, ALERT, text)
        sys.stderr.write(f"safemem: {text}\n")
    if problems:
        _note(root, problems)
    return 1 if problems else 0


def hold(root: str) -> list[Note]:
    """Mask every rules file that onlines memory, unless the decision onlines all; return what could not be.

    Raises:
        OSError: nothing can be written in /run.
    """
    if _released(root):
        return []
    problems: list[Note] = []
    found = {item.file for item in udevrules.find(root)}
    names = sorted({os.path.basename(path) for path in found} | set(udevrules.KNOWN))
    done = _masked(root)
    for name in names:
        link, own = f"{UDEV_RUN}/{name}", f"etc/udev/rules.d/{name}"
        if os.path.lexists(os.path.join(root, own)):
            line = f"mount {own}"
            failed = [] if line in done else _cover(os.path.join(root, own))
        else:
            line, failed = link, mask(root, [name])
        problems += failed
        if line not in done and not failed:
            done.append(line)
    for unit in UNITS:
        path = os.path.join(root, UNITS_RUN, unit)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if not os.path.lexists(path):
                os.symlink("/dev/null", path)
                done.append(f"{UNITS_RUN}/{unit}")
        except OSError as error:
            text = f"unit {unit} could not be masked: {reason(error, str(error))}"
            problems.append(Note("not-masked", text))
    files.replace(root, MASKED, "".join(f"{line}\n" for line in done))
    # What is in force afterwards is what counts, not what was tried.
    for rule in udevrules.find(root):
        text = f"{rule.file}:{rule.line} still onlines memory, although it was to be masked: {rule.what}"
        problems.append(Note("still-onlines", text))
    return problems


def release(root: str) -> list[str]:
    """Take back what `hold` did; return what could not be, one sentence each."""
    problems, left = [], []
    for line in _masked(root):
        mounted = line.startswith("mount ")
        path = os.path.join(root, line.removeprefix("mount "))
        try:
            if mounted:
                result = subprocess.run([_UMOUNT, path], capture_output=True, text=True)
                if result.returncode:
                    raise OSError(0, result.stderr.strip() or f"umount ended with {result.returncode}")
            elif os.readlink(path) == "/dev/null":
                os.unlink(path)
        except FileNotFoundError:
            pass  # gone already
        except OSError as error:
            left.append(line)
            problems.append(f"{line.removeprefix('mount ')} stays masked: {reason(error, str(error))}")
    if left:
        files.replace(root, MASKED, "".join(f"{line}\n" for line in left))
    elif os.path.lexists(os.path.join(root, MASKED)):
        os.unlink(os.path.join(root, MASKED))
    return problems


def _released(root: str) -> bool:
    """Return whether nothing is held, or nothing was done in a dry run; what cannot be read counts as held."""
    lines = (files.text(root, record.ENV) or "").splitlines()
    if "SAFEMEM_DRY_RUN=yes" in lines:
        return True
    return any(f"SAFEMEM_ARRIVALS={word}" in lines for word in ONLINE_WORD.values())


def _masked(root: str) -> list[str]:
    try:
        with open(os.path.join(root, MASKED), encoding="utf-8") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def _cover(path: str) -> list[Note]:
    """Mount /dev/null over a file; return what went wrong."""
    try:
        result = subprocess.run([_MOUNT, "--bind", "/dev/null", path], capture_output=True, text=True)
    except OSError as error:
        why = f"{_MOUNT}: {error.strerror or error}"
    else:
        if not result.returncode:
            return []
        why = result.stderr.strip() or f"mount ended with {result.returncode}"
    return [Note("not-masked", f"{path} could not be masked, so it may online held memory: {why}")]


def _note(root: str, problems: list[Note]) -> None:
    """Add the problems to this boot's record: `status` and `doctor` read it."""
    try:
        with open(os.path.join(root, record.RECORD), encoding="utf-8") as file:
            document = json.load(file)
        result = document["result"] or {}
        texts, known = result.get("problems", []), result.get("problem_codes", [])
        # A record of version 0.1.0 has no codes.
        old = [Note(code, text) for code, text in zip(known or [""] * len(texts), texts, strict=True)]
        both = (*(note for note in old if note not in problems), *problems)
        changed = {"complete": False, "problems": list(both), "problem_codes": record.codes(both)}
        document["result"] = {**result, **changed}
        files.replace(root, record.RECORD, json.dumps(document, separators=(",", ":")) + "\n")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        say(root, ALERT, f"the record could not be completed: {error}")
