# SPDX-License-Identifier: MIT
"""Units of an initramfs that are not safemem's and change what it starts, or load a driver of memory before it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from safemem.initramfs.on_failure import GUARDED, UNIT

VENDOR = "usr/lib/systemd/system"
#: Where systemd looks for units before that (systemd.unit(5), src/libsystemd/sd-path), and the other name of it: what a later
#: part of an image puts there wins.
BEFORE = (
    "etc/systemd/system.control", "run/systemd/system.control", "run/systemd/transient", "run/systemd/generator.early",
    "etc/systemd/system", "etc/systemd/system.attached", "run/systemd/system", "run/systemd/system.attached",
    "run/systemd/generator", "usr/local/lib/systemd/system", "lib/systemd/system",
)  # fmt: skip
FOLDERS = (*BEFORE, VENDOR)
OURS = (UNIT, *(f"{unit}.d/50-safemem.conf" for unit in GUARDED))
#: Settings that change nothing of what a service starts, or whether: Fedora has a drop-in of TimeoutStopFailureMode= for all.
_HARMLESS = re.compile(
    r"Description|Documentation|TimeoutStop(Sec|FailureMode)|TimeoutAbortSec|Standard(Output|Error)|Syslog\w+|Log\w+|\w+Accounting|TasksMax"
)
#: Modules that bring memory (drivers/virtio, drivers/dax, drivers/hv, drivers/xen), as modprobe takes their names.
_DRIVER = r"(?:virtio[-_]mem|(?:\w+[-_])?kmem|dax|(?:\w+[-_])?dax|dax[-_]\w+|hv[-_]balloon|xen[-_]balloon)"
#: What in a command loads one of them, both words in any order; a command has as many bytes as somebody likes.
_LOADS = (
    (re.compile(r"\b(?:modprobe|insmod|kmod)\b"), re.compile(rf"(?<![\w-]){_DRIVER}(?![\w-])")),
    (re.compile(r"\budevadm\b"), re.compile(r"\btrigger\b")),
    (re.compile(r"\budevd\b|/sys/devices/system/memory"),),
)
_INSTANCE = re.compile(rf"modprobe@{_DRIVER}\.service")


def _settings(data: bytes) -> Iterator[tuple[str, str]]:
    text = data.decode("utf-8", "replace").replace("\\\n", " ")
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and key[:1] not in ("#", ";", "["):
            yield key.strip(), value.strip()


def _dropped(unit: str) -> tuple[str, ...]:
    """Return the folders of drop-ins that all units of its kind, or whose name begins alike, have (systemd.unit(5))."""
    stem, _, kind = unit.rpartition(".")
    parts = stem.split("-")
    return (f"{kind}.d", *("-".join(parts[:number]) + f"-.{kind}.d" for number in range(1, len(parts))))


def _units(found: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Yield the files in folders of units, by path and by path below the folder."""
    for path in sorted(found):
        folder = next((folder for folder in FOLDERS if path.startswith(f"{folder}/")), "")
        if folder:
            yield path, path[len(folder) + 1 :]


def changed(found: Mapping[str, bytes]) -> str:
    """Return the path of what may change our unit, or what waits for it, or ""."""
    for path, name in _units(found):
        folder, _, file = name.rpartition("/")
        if (name in OURS and not path.startswith(f"{VENDOR}/")) or folder == f"{UNIT}.d":
            return path
        if not file.endswith(".conf") or name in OURS:
            continue
        settings = list(_settings(found[path]))
        if folder in _dropped(UNIT) and any(not _HARMLESS.fullmatch(key) for key, _ in settings):
            return path
        waits = any(folder in (f"{unit}.d", *_dropped(unit)) for unit in GUARDED)
        # Dependencies cannot be taken back by a drop-in, assertions can.
        if waits and any(key.startswith("Assert") and not value for key, value in settings):
            return path
    return ""


def _loads(command: str) -> bool:
    return any(all(part.search(command) for part in parts) for parts in _LOADS)


def early(found: Mapping[str, bytes]) -> str:
    """Return the path of a unit that loads a driver of memory, or lets udev do it, and does not wait for ours; or ""."""
    whole: dict[str, list[tuple[str, str]]] = {}
    loads: dict[str, str] = {}
    for path, name in _units(found):
        settings = list(_settings(found[path]))
        unit = name.partition("/")[0].removesuffix(".d")
        # The link of one that is wanted, or the name where it is wanted.
        if _INSTANCE.search(name) or any(_INSTANCE.search(value) for key, value in settings if key != "After"):
            return path
        if "/" in name and not name.partition("/")[0].endswith(".d"):
            continue
        whole.setdefault(unit, []).extend(settings)
        if any(key.startswith("Exec") and _loads(value) for key, value in settings):
            loads.setdefault(unit, path)
    for unit, path in loads.items():
        if unit in GUARDED:
            continue
        alone = any(
            key == "DefaultDependencies" and value in ("no", "false", "off", "0", "n", "f")
            for key, value in whole[unit]
        )
        after = {name for key, value in whole[unit] if key == "After" for name in value.split()}
        if alone and not after & {UNIT, *GUARDED}:
            return path
    return ""
