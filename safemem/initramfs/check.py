# SPDX-License-Identifier: MIT
"""safemem in a distribution's own initramfs: the units for one with systemd, and what a built image has of it."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import NamedTuple

from safemem.boot import compiled
from safemem.boot.model import Failure
from safemem.initramfs import unpack
from safemem.initramfs.build import POLICIES, PREFIX, BuildError, shipped

UNIT = "safemem-decide.service"
#: Units of an initramfs that may load a driver or let one act: none starts unless ours has succeeded.
GUARDED = ("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-modules-load.service", "sysinit.target")
#: A wrapper that hangs itself is told to stop after this; onlining terabytes takes minutes.
_TIMEOUT = "1h"
#: What systemd does when the unit fails, which is when even the wrapper could not be started. An older systemd
#: (252) does not know halt and keeps the line before.
_ON_FAILURE = {
    "panic": "OnFailure=safemem-panic.service",
    "reboot": "FailureAction=reboot-immediate",
    "halt": "FailureAction=poweroff-immediate\nFailureAction=halt-immediate",
}
_LINE = "run_scripts /scripts/init-top"
#: Where an initramfs has systemd; an archive that was appended may bring our units to one without.
_SYSTEMD = ("usr/lib/systemd/systemd", "lib/systemd/systemd")
_GATE = f". /{PREFIX}/gate.sh"
#: Where distributions put an image, below the root, for one kernel release.
PLACES = (
    "boot/initrd.img-{}",  # Debian, Ubuntu
    "boot/initramfs-{}.img",  # Fedora, Red Hat
    "boot/initrd-{}",  # SUSE
    "boot/*/{}/initrd*",  # kernel-install(8), by machine id
    "efi/*/{}/initrd*",
)


class Inside(NamedTuple):
    """What an image has of safemem."""

    digest: str  #: of the policy that is built in
    policy: str  #: its name
    start: str  #: what starts the boot program: `systemd`, `initramfs-tools`, `dracut`, `init`; "" if nothing does
    fault: str  #: why it would not be started before everything else, or ""
    named: dict[str, str] = {}  # noqa: RUF012  (name -> digest of what the command line may choose; nobody changes it)


def units(failure: Failure) -> dict[str, bytes]:
    """Return the units for an initramfs with systemd, by path below its folder of units."""
    text = shipped(UNIT).decode()
    for mark, value in (("@ON_FAILURE@", _ON_FAILURE[failure.action]), ("@TIMEOUT@", _TIMEOUT)):
        if text.count(mark) != 1:
            raise BuildError(f"{UNIT} has no {mark} to replace")
        text = text.replace(mark, value)
    found = {UNIT: text.encode(), "safemem-panic.service": shipped("safemem-panic.service")}
    for unit in GUARDED:
        found[f"{unit}.d/50-safemem.conf"] = (
            f"# SPDX-License-Identifier: MIT\n[Unit]\nRequires={UNIT}\nAfter={UNIT}\n".encode()
        )
    return found


def unit_files(failure: Failure) -> dict[str, bytes]:
    """Return the units as files of an initrd. Theirs is the folder that every systemd looks into."""
    return {f"usr/lib/systemd/system/{path}": data for path, data in units(failure).items()}


def find(root: str, release: str) -> Path | None:
    """Return the image that is there for one kernel release, or None."""
    for place in PLACES:
        # A release is no pattern, whatever is in it.
        pattern = place.format("".join(f"[{char}]" if char in "*?[" else char for char in release))
        for path in sorted(Path(root).glob(pattern)):
            if path.is_file() and not fnmatch.fnmatch(path.name, "*.old*"):
                return path
    return None


def inside(data: bytes) -> Inside | None:
    """Return what the image `data` has of safemem, or None if nothing.

    Raises:
        unpack.Unreadable: the image cannot be read.
        compiled.Invalid: the policy in it is not one that this version can use.
    """
    systemd = [
        f"usr/lib/systemd/system/{UNIT}",
        *(f"usr/lib/systemd/system/{unit}.d/50-safemem.conf" for unit in GUARDED),
    ]
    hooks = ("var/lib/dracut/hooks/cmdline/", "usr/lib/dracut/hooks/cmdline/", "lib/dracut/hooks/cmdline/")
    names = [
        f"{PREFIX}/policy.json",
        f"{PREFIX}/boot",
        f"{PREFIX}/gate.sh",
        "init",
        f"{POLICIES}/",
        *_SYSTEMD,
        *systemd,
        *hooks,
    ]
    found = unpack.find(data, names)
    if f"{PREFIX}/policy.json" not in found:
        return None
    policy = compiled.load(found[f"{PREFIX}/policy.json"], f"{PREFIX}/policy.json in the image")
    lines = [line.strip() for line in found.get("init", b"").decode("utf-8", "replace").splitlines()]
    first = sorted(path.rpartition("/")[2] for path in found if path.startswith(hooks) and path.endswith(".sh"))
    start, fault = "", ""
    if systemd[0] in found and any(path in found for path in _SYSTEMD):
        start = "systemd"
        missing = [path for path in systemd if path not in found]
        fault = f"{missing[0]} is missing" if missing else ""
    elif _GATE in lines:
        start = "initramfs-tools"
        if _LINE not in lines or lines.index(_GATE) > lines.index(_LINE):
            fault = f"/init does not run {PREFIX}/gate.sh before init-top"
    elif "00-gate.sh" in first:
        start = "dracut"
        fault = f"the hook {first[0]} runs before it" if first[0] != "00-gate.sh" else ""
    elif f"/{PREFIX}/boot".encode() in found.get("init", b""):
        start = "init"  # somebody's own: what it does first is theirs to know
    else:
        fault = "nothing in it starts the boot program"
    if f"{PREFIX}/boot" not in found:
        fault = f"{PREFIX}/boot is missing"
    named = {
        path.removeprefix(f"{POLICIES}/").removesuffix(".json"): compiled.load(data, f"{path} in the image").digest
        for path, data in sorted(found.items())
        if path.startswith(f"{POLICIES}/")
    }
    return Inside(policy.digest, policy.name, start, fault, named)
