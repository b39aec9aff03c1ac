# SPDX-License-Identifier: MIT
"""The programs that make a distribution's initramfs. Another one is a row here, its function, and a folder in files/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from safemem.initramfs.items import PREFIX

#: The line of /init in initramfs-tools that starts everything else; the hook puts the whole gate before it.
INIT_TOP = "run_scripts /scripts/init-top"
GATE, PROOF = f"{PREFIX}/gate.sh", f"{PREFIX}/proof.sh"
#: How the gate begins to run.
_BOOT = f"/{PREFIX}/boot </dev/null"
#: What the gate keeps its status in: an init with that has at least a part of the gate.
_VARIABLE = b"SAFEMEM_STATUS"
HOOKS = ("var/lib/dracut/hooks/cmdline/", "usr/lib/dracut/hooks/cmdline/", "lib/dracut/hooks/cmdline/")
#: The first hooks, and the files of which they are copies.
_FIRST = {"00-gate.sh": GATE, "00-proof.sh": PROOF}


class Start(NamedTuple):
    """One way in which an initramfs starts the boot program."""

    name: str
    reads: tuple[str, ...]  #: what of the image tells; a path that ends in `/` stands for everything below it
    #: From these files: why something comes before the boot program, "" if nothing does, None if it is not started so.
    fault: Callable[[Mapping[str, bytes]], str | None]


class Maker(NamedTuple):
    """A program that makes an initramfs, and where it looks for hooks; paths below the root."""

    name: str
    program: str
    command: tuple[str, ...]  #: what makes `{image}` for the kernel `{release}`
    after: str  #: folder of programs that run once a new image is in place, where the command does not do that; or ""
    hook: str  #: where ours is put
    packaged: str  #: what is there if the distribution's package has put it
    source: str  #: as shipped
    mark: str  #: beside a hook that is not the package's, where the place alone does not say so
    start: Start


def _in_init(found: Mapping[str, bytes]) -> str | None:
    """The gate is in /init as a whole, before the line that runs init-top.

    The archive brings the gate's file in any case: an init that calls the program in words of its own is its owner's.
    """
    init, gate = found.get("init", b""), found.get(GATE, b"")
    if not gate or _BOOT.encode() not in init:
        return None
    if INIT_TOP.encode() not in init and _VARIABLE not in init:
        return None
    before, whole, _ = init.partition(gate)
    if not whole:
        return f"/init has not all of {GATE}"
    late = INIT_TOP in [line.strip() for line in before.decode("utf-8", "replace").splitlines()]
    return f"/init does not run {GATE} before init-top" if late else ""


def _in_hooks(found: Mapping[str, bytes]) -> str | None:
    """The gate is the first hook of the first stage, and a look at how that ended the second.

    With systemd in the initramfs the units start the boot program, and there are no such hooks.
    """
    hooks = {path.rpartition("/")[2]: data for path, data in found.items() if path.startswith(HOOKS)}
    if "00-gate.sh" not in hooks:
        return None
    early = next((name for name in sorted(hooks) if name.endswith(".sh") and name not in _FIRST), "~")
    for name, file in _FIRST.items():
        if early < name:
            return f"the hook {early} runs before {name}"
        if not found.get(file) or hooks.get(name) != found[file]:
            return f"the hook {name} is not {file}"
    return ""


_DRACUT = "usr/lib/dracut/modules.d/50safemem/module-setup.sh"
MAKERS = (
    Maker(
        name="initramfs-tools",
        program="usr/sbin/mkinitramfs",
        command=("mkinitramfs", "-o", "{image}", "{release}"),
        # As update-initramfs does: boot loaders copy the image from there.
        after="etc/initramfs/post-update.d",
        hook="etc/initramfs-tools/hooks/safemem",
        packaged="usr/share/initramfs-tools/hooks/safemem",
        source="initramfs-tools/safemem",
        mark="",
        start=Start("initramfs-tools", ("init", GATE), _in_init),
    ),
    Maker(
        name="dracut",
        program="usr/bin/dracut",
        command=("dracut", "--force", "{image}", "{release}"),
        after="",
        # dracut looks for modules in one place only.
        hook=_DRACUT,
        packaged=_DRACUT,
        source="dracut/module-setup.sh",
        mark="installed-by-hand",
        start=Start("dracut", (*HOOKS, GATE, PROOF), _in_hooks),
    ),
)
