# SPDX-License-Identifier: MIT
"""Put kexec and systemd's kexec.target behind the gate, or take them out again; each as often as one likes.

- `safemem-preflight.target` takes the name kexec.target (`Alias=`), so that `systemctl kexec`, logind and whatever else
  starts that target start the gate first.
- Where there is dpkg, the distribution's kexec is diverted, and a link to ours is in its place: an upgrade of kexec-tools
  leaves both as they are. Its path is diverted under both names that it has had, in /sbin and in /usr/sbin, and to two
  places: while a package moves from one to the other, dpkg removes the old file after it has unpacked the new one.
- Elsewhere nothing keeps a place from the next upgrade, so ours goes to /usr/local/sbin, which PATH has first. Who calls
  /usr/sbin/kexec by its path, as systemd does, goes past it, and the gate then says `cannot tell`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from safemem.realroot.loaded import why_not

VERBS = ("enable", "disable", "status")
UNIT = "safemem-preflight.target"
#: Where systemd looks for the operator's units first.
ALIAS = "etc/systemd/system/kexec.target"
WRAPPER = "usr/lib/safemem/kexec"
#: The distribution's, by both names of one folder, and where each is diverted to; the first is what a link of ours replaces.
PLACES = {"usr/sbin/kexec": "usr/sbin/kexec.distrib", "sbin/kexec": "sbin/kexec.distrib.usr-is-merged"}
_PLACE = "usr/sbin/kexec"
LOCAL = "usr/local/sbin/kexec"


class CannotSet(Exception):
    """The gate cannot be put in place or taken out; the message says why."""


def real(root: str) -> str:
    """Return the path of the distribution's kexec, or "" if there is none."""
    for name in (*PLACES.values(), *PLACES):
        path = os.path.join(root, name)
        if os.access(path, os.X_OK) and not _is_ours(path):
            return path
    return ""


def run(root: str, verb: str) -> int:
    """Do what the verb says and say how it stands; return 0, or 1 if that is not what was asked for, or not in force."""
    try:
        if verb != "status":
            (_enable if verb == "enable" else _disable)(root)
    except (CannotSet, OSError) as error:
        sys.stderr.write(f"safemem: the gate cannot be {verb}d: {why_not(error)}\n")
        return 1
    unit, wrapper = stands(root)
    sys.stdout.write(f"systemctl kexec  {'goes through the gate' if unit else 'goes past the gate'}\n")
    sys.stdout.write(f"kexec            {f'goes through the gate: /{wrapper}' if wrapper else 'goes past the gate'}\n")
    wanted = (False, False) if verb == "disable" else (True, True)
    return 0 if (unit, bool(wrapper)) == wanted else 1


def stands(root: str) -> tuple[bool, str]:
    """Return whether kexec.target is the gate, and where the wrapper stands, or "" if nowhere."""
    try:
        unit = os.path.basename(os.readlink(os.path.join(root, ALIAS))) == UNIT
    except OSError:
        unit = False
    return unit, next((name for name in (*PLACES, LOCAL) if _is_ours(os.path.join(root, name))), "")


def _enable(root: str) -> None:
    if not os.access(os.path.join(root, WRAPPER), os.X_OK):
        raise CannotSet(f"/{WRAPPER} is missing: install the package")
    before = any(stands(root))
    try:
        _systemctl(root, "enable")  # first: of all steps it is the likeliest to fail, and then nothing has changed
        if _has_dpkg(root):
            _divert_all(root)
        else:
            _link(root, LOCAL)
    except (CannotSet, OSError):
        if not before:  # and never what worked until now
            with contextlib.suppress(CannotSet, OSError):
                _disable(root)
        raise


def _divert_all(root: str) -> None:
    # A link can only stand where nothing of the package is any more; it comes at once.
    _divert(root, "--add", "--rename", _packaged(root))
    _link(root, _PLACE)
    for name in PLACES:
        _divert(root, "--add", "--no-rename", name)


def _disable(root: str) -> None:
    """Take every step, whatever fails on the way: first those without which the system would have no kexec."""
    _each(
        lambda: _unlink(root, LOCAL), lambda: _undivert(root) if _has_dpkg(root) else _unlink(root, _PLACE),
        lambda: _release(root),
    )  # fmt: skip


def _each(*steps: Callable[[], None]) -> None:
    """Take every step. Raises CannotSet with what failed."""
    problems = []
    for step in steps:
        try:
            step()
        except (CannotSet, OSError) as error:
            problems.append(why_not(error))
    if problems:
        raise CannotSet("; ".join(dict.fromkeys(problems)))


def _undivert(root: str) -> None:
    """Give the distribution's kexec its place again, or leave ours there: somebody has to stand in it."""
    ours = _is_ours(os.path.join(root, _PLACE))
    _unlink(root, _PLACE)
    try:
        _each(*(partial(_divert, root, "--remove", "--rename", name) for name in PLACES))
    except CannotSet:
        if ours and not os.path.lexists(os.path.join(root, _PLACE)):
            _link(root, _PLACE)
        raise


def _release(root: str) -> None:
    """Give kexec.target back its name, also where systemctl is not there or does not work."""
    try:
        _systemctl(root, "disable")
    except (CannotSet, OSError):
        if stands(root)[0]:
            os.unlink(os.path.join(root, ALIAS))


def _unlink(root: str, name: str) -> None:
    path = os.path.join(root, name)
    if _is_ours(path):
        os.unlink(path)


def _link(root: str, name: str) -> None:
    """Put a link to the wrapper in place in one step; it never replaces what is not ours."""
    path = os.path.join(root, name)
    if _is_ours(path):
        return
    if os.path.lexists(path):
        raise CannotSet(f"/{name} is there already, and is not ours: move it away")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(f"/{WRAPPER}", path)


def _is_ours(path: str) -> bool:
    try:
        return os.readlink(path) == f"/{WRAPPER}"
    except OSError:
        return False


def _has_dpkg(root: str) -> bool:
    # Of a Debian system: dpkg alone is on others too.
    return all(os.path.exists(os.path.join(root, name)) for name in ("usr/bin/dpkg-divert", "var/lib/dpkg/status"))


def _packaged(root: str) -> str:
    """Return the path by which a package brings kexec, or may bring it one day."""
    for name in PLACES:
        words = [os.path.join(root, "usr/bin/dpkg-query"), "--search", f"/{name}"]
        said = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
        if any(line.endswith(f": /{name}") and "diversion" not in line.split(":")[0] for line in said.splitlines()):
            return name
    return _PLACE


def _divert(root: str, *words: str) -> None:
    *options, name = words
    _call(root, "usr/bin/dpkg-divert", "--local", "--quiet", "--divert", f"/{PLACES[name]}", *options, f"/{name}")


def _systemctl(root: str, verb: str) -> None:
    _call(root, "usr/bin/systemctl", "--quiet", verb, UNIT)


def _call(root: str, program: str, *words: str) -> None:
    result = subprocess.run(
        [os.path.join(root, program), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode:
        said = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        raise CannotSet(f"{os.path.basename(program)} failed: {said[-1] if said else f'code {result.returncode}'}")
