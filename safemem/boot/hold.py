# SPDX-License-Identifier: MIT
"""Keep memory that arrives from coming online: the kernel's own onlining, udev's rules, units."""

from __future__ import annotations

from safemem.boot import files, paths
from safemem.boot.files import reason
from safemem.boot.memory import can_hotplug
from safemem.boot.model import Note

UDEV_RUN = "run/udev/rules.d"
UDEV_ETC = "etc/udev/rules.d"
#: Every initramfs with udev has it (systemd's Initrd Interface).
INITRD = "etc/initrd-release"
UNITS_RUN = "run/systemd/system"
_MASK = "/dev/null"
#: What the kernel calls each zone in `state` and in `auto_online_blocks`.
ONLINE_WORD = {"movable": "online_movable", "kernel": "online_kernel", "auto": "online"}


def hold(root: str) -> list[Note]:
    """Stop the kernel from onlining what arrives.

    Returns what could not be held, one sentence each; a kernel without memory blocks cannot hot-add memory.
    """
    return _auto_online(root, "offline")


def let_arrive(root: str, zone: str) -> list[Note]:
    """Have the kernel online what arrives, in `zone`; return what could not be set, one sentence each."""
    return _auto_online(root, ONLINE_WORD[zone])


def _auto_online(root: str, value: str) -> list[Note]:
    failed = files.attempt(root, paths.AUTO_ONLINE, value)
    now = files.word(root, paths.AUTO_ONLINE)
    if now == value or not can_hotplug(root):
        return []
    why = failed or f"it reads `{now or 'nothing'}` after it was written"
    return [Note("auto-online-not-set", f"{paths.AUTO_ONLINE} could not be set to {value}: {why}")]


def unhold(root: str, value: str) -> None:
    """Give `auto_online_blocks` the value back that it had before `hold`."""
    if value in ONLINE_WORD.values():
        files.attempt(root, paths.AUTO_ONLINE, value)


def mask(root: str, names: list[str]) -> list[Note]:
    """Hide udev rules files that online memory and units (`.service`), here and in the real root: /run outlives switch-root.

    Returns what could not be hidden, one sentence each.
    """
    problems = []
    for name in names:
        try:
            files.link(root, _link(name), _MASK)
            _mask_own(root, name)
        except OSError as error:
            what, may = (
                ("unit", "load a crash kernel into the guard")
                if name.endswith(".service")
                else ("udev rules file", "online held memory")
            )
            text = f"{what} {name} could not be masked, so it may {may}: {reason(error, 'cannot be made')}"
            problems.append(Note("not-masked", text))
    return problems


def _mask_own(root: str, name: str) -> None:
    """Mask a rules file of that name in /etc, which wins over /run, in an initramfs: a disk's is not ours to change."""
    own = f"{UDEV_ETC}/{name}"
    if files.exists(root, own) is False or files.link_target(root, own) == _MASK:
        return
    if not files.exists(root, INITRD):
        raise OSError(0, f"{own} wins over a mask in {UDEV_RUN}")
    files.remove(root, own)
    files.link(root, own, _MASK)


def unmask(root: str, names: tuple[str, ...]) -> None:
    """Take back what `mask` did; a file that is not our link stays. The real root has more to take back."""
    for name in names:
        if files.link_target(root, _link(name)) == _MASK:
            try:
                files.remove(root, _link(name))
            except OSError:
                pass  # gone already


def _link(name: str) -> str:
    return f"{UNITS_RUN if name.endswith('.service') else UDEV_RUN}/{name}"
