# SPDX-License-Identifier: MIT
"""The programs that make a distribution's initramfs. Another one is a row here, its function, and a folder in files/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from safemem.initramfs.items import PREFIX

#: The line of /init in initramfs-tools that starts everything else, and ours, which the hook puts before it.
INIT_TOP = "run_scripts /scripts/init-top"
GATE = f". /{PREFIX}/gate.sh"
_HOOKS = ("var/lib/dracut/hooks/cmdline/", "usr/lib/dracut/hooks/cmdline/", "lib/dracut/hooks/cmdline/")
_FIRST = "00-gate.sh"


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
    """The gate is a line of /init, before the one that runs init-top."""
    lines = [line.strip() for line in found.get("init", b"").decode("utf-8", "replace").splitlines()]
    if GATE not in lines:
        return None
    first = INIT_TOP in lines and lines.index(GATE) < lines.index(INIT_TOP)
    return "" if first else f"/init does not run {PREFIX}/gate.sh before init-top"


def _in_hooks(found: Mapping[str, bytes]) -> str | None:
    """The gate is the first hook of the first stage; with systemd in the initramfs the units start the boot program."""
    hooks = sorted(path.rpartition("/")[2] for path in found if path.startswith(_HOOKS) and path.endswith(".sh"))
    if _FIRST not in hooks:
        return None
    return "" if hooks[0] == _FIRST else f"the hook {hooks[0]} runs before it"


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
        start=Start("initramfs-tools", ("init",), _in_init),
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
        start=Start("dracut", _HOOKS, _in_hooks),
    ),
)
