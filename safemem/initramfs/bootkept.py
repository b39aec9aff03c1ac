# SPDX-License-Identifier: MIT
"""Where distributions put the image of a kernel release, and what a loader that is not read in full says of it."""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
from pathlib import Path

from safemem.boot import files
from safemem.initramfs import bootentry, grubfiles, kernelname
from safemem.initramfs.boots import spare

#: Where distributions put an image that GRUB's own menu names, below the root.
PLACES = (
    "boot/initrd.img-{}",  # Debian, Ubuntu
    "boot/initramfs-{}.img",  # Fedora, Red Hat; with a preset's name Arch
    "boot/initrd-{}",  # SUSE
)
#: What is there of kernel-install(8) and its like without an entry that names it, or is only what an image is made of.
_UNNAMED = ("efi", "boot", "boot/efi")
_SOURCE = "usr/lib/modules/{}/initramfs.img"
_PRESET = re.compile(r"^\s*(ALL|default)_(kver|image|uki)=(.*)$")
#: Loaders of which only the names of initrds are looked for: their files, and how they name one.
_OTHERS = (
    (("boot/extlinux/extlinux.conf", "boot/syslinux/syslinux.cfg"), r"(?im)^\s*initrd\s+(\S+)|\binitrd=([^\s\"]+)"),
    (("boot/refind_linux.conf",), r"(?m)^[^#\n]*\binitrd=([^\s\"]+)"),
    (("boot/firmware/config.txt", "boot/config.txt"), r"(?m)^\s*initramfs\s+(\S+)"),
    (
        ("boot/limine.conf", "boot/limine/limine.conf", "boot/efi/limine.conf", "boot/efi/limine/limine.conf", "efi/limine.conf"),
        r"(?im)^\s*module_path\s*[:=]\s*(\S+)",
    ),
)  # fmt: skip
_AUTOMATIC = re.compile(r"(?m)^\s*auto_initramfs\s*=\s*1\b")
#: Flatcar's kernels have their initramfs built in.
_BUILT_IN = ("boot/flatcar/vmlinuz-a", "boot/flatcar/vmlinuz-b")
PROXMOX = "etc/kernel/proxmox-boot-uuids"


def kept(root: str, release: str, named: set[str]) -> list[Path]:
    """Return the images that lie where distributions put them for a release: first those that a menu has by name."""
    own = [Path(root, place.format(release)) for place in PLACES]
    other = [Path(root, place.format(name)) for name in _aliases(root, release) for place in PLACES]
    groups = [
        [path for path in dict.fromkeys(paths) if os.path.isfile(path)]
        for paths in (own, other + preset(root, release))
    ]
    return [path for there in groups for path in there if path.name in named] or groups[0] or groups[1]


def unnamed(root: str, release: str) -> str:
    """Return why an image that is there boots nobody, as far as is known, or ""."""
    for partition in _UNNAMED:
        for path in sorted(Path(root, partition).glob(f"*/{_literal(release)}/initrd*")):
            if not spare(release, path.parent.parent.name, path.name):
                return f"{path} is there, but no boot loader entry names it"
    source = Path(root, _SOURCE.format(release))
    if source.exists():
        return f"{source} is what an image is made of, and nothing says where that is"
    built_in = next((path for place in _BUILT_IN if (path := Path(root, place)).exists()), None)
    return f"{built_in} boots with the initramfs that is built into it" if built_in else ""


def elsewhere(root: str, image: Path | None) -> str:
    """Return which loader reads another file than the image that lies where the distribution puts it, or ""."""
    for places, pattern in _OTHERS:
        for place in places:
            path = Path(root, place)
            try:
                names = _named(path, pattern)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                return f"{path}: {files.reason(error)}: what it boots is not known without it"
            if not names and image is None and path.name == "limine.conf" and path.exists():
                return f"{path} is there, and what it boots is not looked at"
            if not names:
                continue
            if image is None:
                return f"{path} names {names[0]}, and for which kernel that is is not looked at"
            if not any(_same(_near(root, path, name), image) for name in names):
                return f"{path} names {', '.join(names)}, which is not {image}"
    return ""


def proxmox(root: str) -> str:
    """Return what to do where proxmox-boot-tool copies what boots to an ESP that is not found, or ""."""
    try:
        used = Path(root, PROXMOX).read_bytes().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"/{PROXMOX}: {files.reason(error)}: whether what boots is a copy on an ESP is not known without it"
    return (
        f"proxmox-boot-tool has the boot loader read copies on an ESP, which is not mounted: mount the ESP that"
        f" /{PROXMOX} names at /boot/efi, and look again"
        if used
        else ""
    )


def _named(path: Path, pattern: str) -> list[str]:
    """Return the initrds that a loader's file names. Raises OSError."""
    text = "\n".join(bootentry.lines(path.read_bytes()))
    found = [next(filter(None, match.groups())) for match in re.finditer(pattern, text)]
    names = [part for name in found for part in name.split(",") if part]
    return names + [each.name for each in sorted(path.parent.glob("initramfs*")) if _AUTOMATIC.search(text)]


def _near(root: str, conf: Path, name: str) -> Path:
    name = re.sub(r"^\w+\([^)]*\):", "", name).partition("#")[0].replace("\\", "/")
    beside = conf.parent / name.lstrip("/")
    return beside if beside.is_file() else grubfiles.locate(root, name)


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)
    except (OSError, ValueError):
        return False


def _aliases(root: str, release: str) -> list[str]:
    """Return by which other names kernel and image of a release go in /boot: Arch and Alpine call them by the package."""
    names = []
    with contextlib.suppress(OSError):
        names += bootentry.lines(Path(root, "usr/lib/modules", release, "pkgbase").read_bytes())[:1]
    for path in sorted(Path(root, "boot").glob("vmlinuz-*")):
        name = path.name.removeprefix("vmlinuz-")
        try:
            if name != release and not spare(release, name) and kernelname.read(path).release == release:
                names.append(name)
        except OSError:
            continue
    return [name for name in dict.fromkeys(names) if name and "/" not in name]


def preset(root: str, release: str, kind: str = "image") -> list[Path]:
    """Return the images that mkinitcpio's presets have for a release, or of kind `uki` the unified ones."""
    found = []
    for path in sorted(Path(root, "etc/mkinitcpio.d").glob("*.preset")):
        words: dict[str, str] = {}
        try:
            for line in bootentry.lines(path.read_bytes()):
                match = _PRESET.match(line)
                if match and (match[1] == "default" or match[2] not in words):
                    words[match[2]] = match[3].strip().strip("\"'")
            kernel = words.get("kver", "")
            said = kernelname.read(Path(root, kernel.lstrip("/"))).release if kernel.startswith("/") else kernel
        except OSError:
            continue
        if said == release and words.get(kind):
            found.append(Path(root, words[kind].lstrip("/")))
    return found


def stubs(line: str) -> list[str]:
    """Return the initrds that a command line has the kernel's own EFI stub read."""
    words = (word.partition("=")[2] for word in line.split() if word.startswith("initrd="))
    return [name for word in words for name in word.split(",") if name]


def _literal(name: str) -> str:
    """Return a pattern that matches one name, whatever is in it."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def places(release: str) -> str:
    """Return where an image is looked for if no entry names one, for a message."""
    return " ".join(place.format(release) for place in PLACES)
