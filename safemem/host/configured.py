# SPDX-License-Identifier: MIT
"""Files of this machine that online memory, and are neither udev rules nor units: each kind with how it is read.

What counts is what would happen at the next boot or the next time that such a thing runs: what runs now is
`safemem.host.suspects`.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safemem.boot.cmdline import argument
from safemem.realroot import onlining, programs

#: tmpfiles.d(5), modprobe.d(5) and system-generators: of one name the first folder's counts.
_TMPFILES = ("etc/tmpfiles.d", "run/tmpfiles.d", "usr/local/lib/tmpfiles.d", "usr/lib/tmpfiles.d")
_MODPROBE = ("etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")
_GENERATORS = tuple(
    f"{folder}/systemd/system-generators" for folder in ("run", "etc", "usr/local/lib", "usr/lib", "lib")
)
_RC_LOCAL = ("etc/rc.local", "etc/rc.d/rc.local", "etc/init.d/boot.local", "etc/rc.d/boot.local")
_INIT = ("etc/init.d", "etc/rc.d/init.d")
_ETC_LIB = ("etc", "usr/lib")
_DISPATCHER = ("", "/pre-up.d", "/pre-down.d", "/no-wait.d")
_NETWORKD = (
    "routable",
    "configured",
    "configuring",
    "degraded",
    "degraded-carrier",
    "carrier",
    "no-carrier",
    "off",
    "dormant",
)
#: Folders whose scripts are read in by another one: whether they may be executed does not matter.
_READ_IN = ("etc/profile.d", "etc/dhcp/dhclient-enter-hooks.d", "etc/dhcp/dhclient-exit-hooks.d")
#: Scripts of each login.
_LOGIN = ("etc/profile", "etc/bash.bashrc", "etc/bashrc", "root/.profile", "root/.bash_profile", "root/.bashrc")
#: Other files with commands in them: a file or a folder, how names end there, and what stands before a command in a line.
_COMMANDS = (
    ("etc/cloud/cloud.cfg", "", r"(?:-\s+)*(?:(?:runcmd|bootcmd|content):\s*\|?)?"),
    ("etc/cloud/cloud.cfg.d", ".cfg", r"(?:-\s+)*(?:(?:runcmd|bootcmd|content):\s*\|?)?"),
    ("var/lib/cloud/instance/user-data.txt", "", r"(?:-\s+)*(?:(?:runcmd|bootcmd|content):\s*\|?)?"),
    ("etc/network/interfaces", "", r"(?:pre-|post-)?(?:up|down)\s"),
    ("etc/network/interfaces.d", "", r"(?:pre-|post-)?(?:up|down)\s"),
    ("etc/acpi/events", "", r"action\s*="),
    ("etc/supervisor/conf.d", ".conf", r"command\s*="),
    ("etc/supervisord.d", ".ini", r"command\s*="),
    ("var/spool/cron/atjobs", "", ""),
)
#: Folders of scripts that something runs at boot or by the clock, and how the names of those that count end.
_SCRIPTS = (
    ("etc/local.d", ".start"),
    ("etc/cron.hourly", ""),
    ("etc/cron.daily", ""),
    ("etc/cron.weekly", ""),
    ("etc/cron.monthly", ""),
    ("etc/rc.d", ""),
    ("etc/acpi", ".sh"),
    ("etc/network/if-pre-up.d", ""),
    ("etc/network/if-up.d", ""),
    *((f"{base}/NetworkManager/dispatcher.d{part}", "") for base in _ETC_LIB for part in _DISPATCHER),
    *((f"{base}/networkd-dispatcher/{state}.d", "") for base in _ETC_LIB for state in _NETWORKD),
    ("etc/dhcp/dhclient-enter-hooks.d", ""),
    ("etc/dhcp/dhclient-exit-hooks.d", ""),
    ("etc/libvirt/hooks", ""),
    ("etc/systemd/system-sleep", ""),
    ("var/lib/cloud/instance/scripts", ""),
    ("etc/profile.d", ".sh"),
    ("usr/lib/systemd/system-sleep", ""),
    ("var/lib/cloud/scripts/per-boot", ""),
    ("var/lib/cloud/scripts/per-instance", ""),
)
_CRONTABS = ("etc/crontab", "etc/anacrontab")
_CRON_FOLDERS = (
    ("etc/cron.d", True),
    ("var/spool/cron/crontabs", False),
    ("var/spool/cron/tabs", False),
    ("var/spool/cron", False),
)
_WHEN = re.compile(r"\s*(?:@\w+|(?:[\d*,/\w~-]+\s+){4}[\d*,/\w~-]+)\s+")
_TUNED = ("etc/tuned", "etc/tuned/profiles", "usr/lib/tuned", "usr/lib/tuned/profiles")
_SYSFS = ("etc/sysfs.conf", "etc/sysfs.d")
_SPECIFIER = re.compile(r"%(?!%)\w")
_FIELD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\'[^\']*\'|\S+)')
_CODES = {"n": "\n", "t": "\t", "r": "\r", "s": " "}


class Onliner(NamedTuple):
    """Something that onlines memory."""

    code: str  #: of the finding in `safemem.host.catalogue`
    where: str  #: the file, and the line after a colon
    what: str  #: what does it, as it is written
    owner: str  #: what to mask, or the kind of file
    sure: bool  #: it onlines memory, and something runs it
    idle: bool = False  #: nothing runs it as things are


class Unread(NamedTuple):
    """What could not be looked at."""

    where: str
    why: str


def find(root: str, scripts: programs.Scripts | None = None) -> Iterator[Onliner | Unread]:
    """Return what onlines memory below `root`, by the configuration that is there, and what could not be looked at."""
    scripts = scripts or programs.Scripts(root)
    for look in (_tmpfiles, _rc_local, _init, _scripts, _cron, _modprobe, _sysfs, _tuned, _helpers, _commands):
        try:
            yield from look(scripts)
        except OSError as error:
            yield Unread(
                str(error.filename or look.__name__.strip("_")).removeprefix(f"{root.rstrip('/')}/"), _reason(error)
            )


def _reason(error: OSError) -> str:
    return (error.strerror or "cannot be read").lower()


def names(root: str, folder: str) -> list[str]:
    """Return what is in a folder, in order; nothing if there is no such folder. Raises OSError."""
    try:
        return sorted(os.listdir(Path(root) / folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def first(root: str, folders: tuple[str, ...], suffix: str) -> list[str]:
    """Return the files that are in force in folders of which an earlier one hides the later, without those masked."""
    found: dict[str, str] = {}
    for folder in folders:
        for name in names(root, folder):
            if name.endswith(suffix):
                found.setdefault(name, f"{folder}/{name}")
    return [found[name] for name in sorted(found) if not _is_mask(root, found[name])]


def _is_mask(root: str, path: str) -> bool:
    full = Path(root) / path
    return full.is_symlink() and os.readlink(full) == "/dev/null"


def _tmpfiles(scripts: programs.Scripts) -> Iterator[Onliner]:
    root = scripts.root
    for path in first(root, _TMPFILES, ".conf"):
        for number, line in enumerate((programs.read(root, path) or "").splitlines(), 1):
            if sign := tmpfiles_line(line):
                yield Onliner("tmpfiles-online", f"{path}:{number}", sign.what, os.path.basename(path), sign.sure)


def tmpfiles_line(line: str) -> onlining.Sign | None:
    """Return what a line of tmpfiles.d(5) writes to memory's files, if that onlines memory."""
    fields: list[str] = []
    place = 0
    while len(fields) < 6 and (match := _FIELD.match(line, place)):
        fields.append(match[1].strip("'\""))
        place = match.end()
    if len(fields) < 6 or line.lstrip().startswith("#") or fields[0][:1] not in ("w", "f", "F"):
        return None
    kind, path = fields[0], _unescaped(fields[1]).replace("%%", "%")
    if not onlining.is_memory(path):
        return None
    text = line[place:].strip()
    value: bool | None = None
    if "~" in kind:
        try:
            text = base64.b64decode(text, validate=True).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            return None  # tmpfiles refuses the line
    elif "^" not in kind:  # the name of a credential
        text = _unescaped(text)
    if "^" not in kind and not _SPECIFIER.search(text):
        value = onlining.in_value(text.strip())
    return None if value is False else onlining.Sign(1, " ".join(line.split())[:120], sure=value is True)


def _unescaped(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        word = match[1]
        if word[0] == "x" and len(word) == 3:
            return chr(int(word[1:], 16))
        return chr(int(word, 8) & 0xFF) if len(word) == 3 else _CODES.get(word, word)

    return re.sub(r"\\(x[0-9a-fA-F]{2}|[0-7]{3}|.)", one, text.strip("'\""))


def _script(scripts: programs.Scripts, path: str, kind: str, *, idle: bool = False) -> Iterator[Onliner]:
    """Return what a script onlines, with those that it starts."""
    does = programs.onlines(scripts, f"/{path}", about=False)
    if does is not None:
        yield Onliner("script-onlines", does.where or path, does.what, kind, does.sure, idle)


def _is_program(root: str, path: str) -> bool:
    found = programs.resolve(root, path)
    return found is not None and bool((Path(root) / found).stat().st_mode & 0o111)


def _rc_local(scripts: programs.Scripts) -> Iterator[Onliner]:
    root = scripts.root
    for path in _RC_LOCAL:
        # systemd-rc-local-generator and others start it where it may be executed.
        yield from _script(scripts, path, path, idle=not _is_program(root, path))


def _init(scripts: programs.Scripts) -> Iterator[Onliner]:
    root = scripts.root
    started = {
        name[3:]
        for level in ("S", *"0123456")
        for folder in (f"etc/rc{level}.d", f"etc/rc.d/rc{level}.d")
        for name in names(root, folder)
        if re.match(r"S\d\d", name)
    }
    started |= {name for level in ("sysinit", "boot", "default") for name in names(root, f"etc/runlevels/{level}")}
    for folder in _INIT:
        for name in names(root, folder):
            if f"{folder}/{name}" not in _RC_LOCAL:
                yield from _script(scripts, f"{folder}/{name}", f"{folder}/{name}", idle=name not in started)


def _scripts(scripts: programs.Scripts) -> Iterator[Onliner]:
    root = scripts.root
    for folder, suffix in _SCRIPTS:
        for name in names(root, folder):
            path = f"{folder}/{name}"
            if name.endswith(suffix) and path not in _RC_LOCAL:
                idle = folder not in _READ_IN and not _is_program(root, path)
                yield from _script(scripts, path, path, idle=idle)
    for path in _LOGIN:
        yield from _script(scripts, path, path)
    for path in first(root, _GENERATORS, ""):
        yield from _script(scripts, path, path, idle=not _is_program(root, path))


def _cron(scripts: programs.Scripts) -> Iterator[Onliner]:
    root = scripts.root
    tables = [(path, True) for path in _CRONTABS]
    for folder, with_user in _CRON_FOLDERS:
        tables += [(f"{folder}/{name}", with_user) for name in names(root, folder)]
    for path, with_user in tables:
        for number, line in enumerate((programs.read(root, path) or "").splitlines(), 1):
            when = _WHEN.match(line)
            if line.lstrip().startswith("#") or (when is None and "anacron" not in path):
                continue
            command = line[when.end() :] if when else line.partition("\t")[2] or line
            if with_user and when:
                command = command.partition(" ")[2] if " " in command.strip() else command.partition("\t")[2]
            does = programs.onlines(scripts, command, about=False)
            if does is not None:
                what = does.what if not does.where else f"{does.what} ({does.where})"
                yield Onliner("script-onlines", f"{path}:{number}", what, path, does.sure)


def _modprobe(scripts: programs.Scripts) -> Iterator[Onliner]:
    root = scripts.root
    for path in first(root, _MODPROBE, ".conf"):
        text = re.sub(r"\\\n", " ", programs.read(root, path) or "")
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split(None, 2)
            if len(words) == 3 and words[0] in ("install", "remove"):
                does = programs.onlines(scripts, words[2], about=False)
                if does is not None:
                    yield Onliner(
                        "settings-online", f"{path}:{number}", f"{words[0]} {words[1]}: {does.what}", path, does.sure
                    )


def _sysfs(scripts: programs.Scripts) -> Iterator[Onliner]:
    """Look into what sysfsutils sets at boot: `path = value`, below /sys."""
    root = scripts.root
    paths = [_SYSFS[0], *(f"{_SYSFS[1]}/{name}" for name in names(root, _SYSFS[1]) if name.endswith(".conf"))]
    for path in paths:
        yield from _assignments(root, path, "/sys/")


def _assignments(root: str, path: str, base: str) -> Iterator[Onliner]:
    for number, line in enumerate((programs.read(root, path) or "").splitlines(), 1):
        key, equals, value = line.partition("=")
        name = key.strip()
        if not equals or not name or name[0] in "#;[":
            continue
        target = name if name.startswith(base) else f"{base}{name}"
        if onlining.is_memory(target) and onlining.in_value(value) is not False:
            sure = onlining.in_value(value) is True
            yield Onliner("settings-online", f"{path}:{number}", " ".join(line.split())[:120], path, sure)


def _tuned(scripts: programs.Scripts) -> Iterator[Onliner]:
    """Look into the profile of tuned that is active, and those that it takes in."""
    root = scripts.root
    named = (programs.read(root, f"etc/tuned/{name}_profile") or "" for name in ("active", "post_loaded"))
    todo, seen = " ".join(named).split(), set[str]()
    while todo:
        profile = todo.pop(0)
        folder = next((f"{at}/{profile}" for at in _TUNED if names(root, f"{at}/{profile}")), None)
        if profile in seen or folder is None or "/" in profile:
            continue
        seen.add(profile)
        for name in names(root, folder):
            if name == "tuned.conf":
                text = programs.read(root, f"{folder}/{name}") or ""
                todo += re.split(r"[,\s]+", " ".join(re.findall(r"(?m)^\s*include\s*=\s*(.*)$", text)).strip())
                yield from _assignments(root, f"{folder}/{name}", "/")
                for script in re.findall(r"(?m)^\s*script\s*=\s*(\S+)$", text):
                    if not script.endswith(".sh") or "/" in script.replace("${i:PROFILE_DIR}/", ""):
                        path = script.replace("${i:PROFILE_DIR}", folder).lstrip("/")
                        yield from _script(scripts, path, path)
            elif name.endswith(".sh"):
                yield from _script(scripts, f"{folder}/{name}", f"{folder}/{name}")


def _helpers(scripts: programs.Scripts) -> Iterator[Onliner]:
    """Look at what takes udev's or systemd's place: a helper of the kernel's, busybox's mdev, init's own table."""
    root = scripts.root
    helper = (programs.read(root, "sys/kernel/uevent_helper") or "").strip()
    if helper:
        yield Onliner(
            "settings-online",
            "sys/kernel/uevent_helper",
            f"the kernel starts {helper} for each device",
            helper,
            sure=False,
        )
    for number, line in enumerate((programs.read(root, "etc/inittab") or "").splitlines(), 1):
        fields = line.split(":", 3)
        does = programs.onlines(scripts, fields[3], about=False) if len(fields) == 4 and line[:1] != "#" else None
        if does is not None:
            yield Onliner("script-onlines", f"etc/inittab:{number}", does.what, "etc/inittab", does.sure)
    for number, line in enumerate((programs.read(root, "etc/mdev.conf") or "").splitlines(), 1):
        place = re.search(r"\s[@$*]\s*(\S.*)$", line)
        if place and not line.lstrip().startswith("#"):
            about = bool(re.search(r"memory", line[: place.start()]))
            does = programs.onlines(scripts, place[1], about=about)
            if does is not None:
                yield Onliner("script-onlines", f"etc/mdev.conf:{number}", does.what, "etc/mdev.conf", does.sure)


def _commands(scripts: programs.Scripts) -> Iterator[Onliner | Unread]:
    """Look at files that have commands in them among other settings, each as one script."""
    root = scripts.root
    for place, suffix, before in _COMMANDS:
        inside = [f"{place}/{name}" for name in names(root, place) if name.endswith(suffix)]
        for path in inside or [place]:
            text = programs.read(root, path)
            if text is None:
                if (Path(root) / path).is_file():
                    yield Unread(path, "is no text that can be read")
                continue
            does = programs.onlines(scripts, commands_in(text, before), about=False)
            if does is not None:
                where = f"{path}:{does.line}"
                what = f"{does.what} ({does.where})" if does.where else does.what
                yield Onliner("script-onlines", where, what, path, does.sure)
    told = argument((programs.read(root, "proc/cmdline") or "").strip(), "systemd.run")
    does = programs.onlines(scripts, told, about=False) if told else None
    if does is not None:
        yield Onliner("script-onlines", "proc/cmdline", f"systemd.run={does.what}", "systemd.run", does.sure)


def commands_in(text: str, before: str) -> str:
    """Return a file's commands, each on its own line: what comes after `before`, a pattern; lists of words as words."""
    lines = []
    for line in text.splitlines():
        match = re.match(rf"\s*{before}", line)
        command = line[match.end() :].strip() if match else ""
        if command.startswith("[") and command.endswith("]"):
            command = command[1:-1].replace(",", " ")
        lines.append(command)
    return "\n".join(lines)
