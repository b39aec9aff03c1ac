# SPDX-License-Identifier: MIT
"""Commands that keep a file from being read: a mask in /etc, or for what lies in /etc itself, or before it, another name.

udev(7), tmpfiles.d(5) and modprobe.d(5) read of files of one name that in the first folder, /etc before /run and /usr; so does
systemd with units and drop-ins, but for what it makes itself (systemd.unit(5), Unit File Load Path). `ln` and `systemctl mask`
make no mask over a file, and refuse.
"""

from __future__ import annotations

import os
import shlex

_UNITS = "etc/systemd/system"
#: Folders of units that come before /etc.
_BEFORE = (
    "etc/systemd/system.control/",
    "run/systemd/system.control/",
    "run/systemd/transient/",
    "run/systemd/generator.early/",
)


def masked(root: str, path: str, folder: str) -> str:
    """Return the command by which a mask in `folder` hides the file at `path`, both relative to `root`."""
    mask = f"{folder}/{os.path.basename(path)}"
    if path == mask:
        return _away(path)
    there = os.path.join(root, folder)
    make = "" if os.path.isdir(there) else f"mkdir -p {shlex.quote(f'/{folder}')} && "
    # What is there already hides nothing: it is a link to nowhere.
    over = "-sf" if os.path.lexists(os.path.join(root, mask)) else "-s"
    return f"{make}ln {over} /dev/null {shlex.quote(f'/{mask}')}"


def unit(root: str, path: str) -> str:
    """Return the command that keeps systemd from a unit, or from the drop-in of one, by its file."""
    folder, name = os.path.split(path)
    if folder.endswith(".d"):
        return masked(root, path, f"{_UNITS}/{os.path.basename(folder)}")
    if path.startswith(_BEFORE):
        return f"find what makes /{path}, and have it make none"
    if path == f"{_UNITS}/{name}":
        # Of a template there is nothing to stop.
        now = "" if name.rpartition(".")[0].endswith("@") else " --now"
        return f"systemctl disable{now} {shlex.quote(name)}; if something else starts it, {_away(path)}"
    if os.path.lexists(os.path.join(root, _UNITS, name)):
        return f"{_away(path)}, for there is /{_UNITS}/{name} already"
    return f"systemctl mask {shlex.quote(name)}"


def _away(path: str) -> str:
    """Return the command by which a file gets a name that nobody reads."""
    return f"mv {shlex.quote(f'/{path}')} {shlex.quote(f'/{path}.off')}"
