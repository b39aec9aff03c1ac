# SPDX-License-Identifier: MIT
"""The programs that make a distribution's initramfs. Another one is a row here, its function, and a folder in files/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from safemem.initramfs import initscript
from safemem.initramfs.items import PREFIX

#: The line of /init in initramfs-tools that starts everything else; the hook puts the whole gate before it.
INIT_TOP = "run_scripts /scripts/init-top"
GATE, PROOF = f"{PREFIX}/gate.sh", f"{PREFIX}/proof.sh"
#: How the gate begins to run.
_BOOT = f"/{PREFIX}/boot </dev/null"
#: Where settings are that /init of initramfs-tools, and of dracut, reads first, and the bytes of one that are looked at.
_CONF, _CONF_D, _MOST = "conf/", "etc/conf.d/", 1 << 20
#: What initramfs-tools runs scripts by, and loads modules.
_RUNS = ("run_scripts", "load_modules")
HOOKS = ("var/lib/dracut/hooks/cmdline/", "usr/lib/dracut/hooks/cmdline/", "lib/dracut/hooks/cmdline/")
#: The first hooks, and the files of which they are copies.
_FIRST = {"00-gate.sh": GATE, "00-proof.sh": PROOF}


class Files(NamedTuple):
    """What is read of an image."""

    there: Mapping[
        str, bytes
    ]  #: by path; `init` is what the kernel starts, through links, and missing if that is nothing
    systemd: bool = False  #: that is the systemd which is in the image


class Start(NamedTuple):
    """One way in which an initramfs starts the boot program."""

    name: str
    reads: tuple[str, ...]  #: what of the image tells; a path that ends in `/` stands for everything below it
    #: From these files: why something comes before the boot program, "" if nothing does, None if it is not started so.
    fault: Callable[[Files], str | None]
    sure: bool = True  #: nothing of the image's own runs before it that would not be known


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


def _in_init(files: Files) -> str | None:
    """The gate is in /init as a whole, before the line that runs init-top, and nothing before it loads a driver."""
    init, gate = files.there.get("init", b""), files.there.get(GATE, b"")
    if not gate or _BOOT.encode() not in init:
        return None
    first, whole, _ = init.partition(gate)
    if not whole:
        return f"/init has not all of {GATE}" if any(b"init-top" in line for line in init.splitlines()) else None
    text = initscript.text(init)
    if text is None:
        return "/init is no shell script that the kernel can start"
    script = initscript.read(first.decode("utf-8", "replace"))
    if any(item.name in _RUNS or any("init-top" in word for word in item.words) for item in script.commands):
        return f"/init does not run {GATE} before init-top"
    if script.open or first[-1:] != b"\n":
        return f"/init does not run {GATE} in every boot"
    if word := initscript.before(script.commands):
        return f"/init has `{word}` before {GATE}"
    return _settings(files, _CONF)


def _settings(files: Files, folder: str) -> str:
    """Return why files of settings, which /init reads as shell before the gate, do more than set."""
    for path in sorted(files.there):
        if path.startswith(folder):
            script = initscript.read(files.there[path][:_MOST].decode("utf-8", "replace"))
            if word := initscript.before(script.commands):
                return f"{path} has `{word}`, and /init reads it before {GATE}"
    return ""


def _in_hooks(files: Files) -> str | None:
    """The gate is the first hook of the first stage, a look at how that ended the second, and /init is dracut's, which runs them.

    With systemd in the initramfs the units start the boot program: its hooks run beside others of its units.
    """
    found = files.there
    hooks = {path.rpartition("/")[2]: data for path, data in found.items() if path.startswith(HOOKS)}
    if "00-gate.sh" not in hooks:
        return None
    early = next((name for name in sorted(hooks) if name.endswith(".sh") and name not in _FIRST), "~")
    for name, file in _FIRST.items():
        if early < name:
            return f"the hook {early} runs before {name}"
        if not found.get(file) or hooks.get(name) != found[file]:
            return f"the hook {name} is not {file}"
    # modules.d/*base/init.sh of dracut, from 024 to 112; nothing in it loads a driver before.
    commands = initscript.read(initscript.text(found.get("init", b"")) or "").commands
    at = next((at for at, item in enumerate(commands) if item.words == ("source_hook", "cmdline")), -1)
    if at < 0 or commands[at].maybe:
        return (
            "/init is systemd, which runs hooks too late" if files.systemd else "/init does not run the hooks of dracut"
        )
    word = initscript.before(commands[:at])
    return f"/init has `{word}` before the hooks of dracut" if word else _settings(files, _CONF_D)


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
        start=Start("initramfs-tools", ("init", GATE, _CONF), _in_init),
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
        start=Start("dracut", ("init", *HOOKS, GATE, PROOF, _CONF_D), _in_hooks),
    ),
)
