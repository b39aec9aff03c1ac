# SPDX-License-Identifier: MIT
"""Which image boots a kernel, on the layouts that distributions have, each as a folder; and where one would be made."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from safemem.cli import main
from safemem.host import machine
from safemem.initramfs import bootplaces, target
from tests.images import bzimage, pe
from tests.kit import make

REL, OLD = "6.12.5-1-default", "6.1.0-44-amd64"
MID = "5afe0000000000000000000000005afe"
EFIVARS = "sys/firmware/efi/efivars/{}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
GRUB, BLS = (
    "menuentry 'x' {\n\tlinux /boot/vmlinuz\n\tinitrd /boot/initrd.img-" + REL + "\n}\n",
    "insmod blscfg\nblscfg\n",
)


def kernel(release: str = REL) -> bytes:
    """Return a kernel with its release in its head."""
    return bzimage(b"kernel", release=release)


def uki(release: str = REL, *, uname: bool = True, more: str = "ID=debian\nVERSION_ID=13\n") -> bytes:
    """Return a unified kernel image."""
    sections = [(".osrel", more.encode()), (".linux", kernel(release)), (".initrd", b"unified")]
    return pe(sections + ([(".uname", release.encode())] if uname else []))


def conf(linux: str, *initrds: str, **more: str) -> bytes:
    """Return a type 1 entry."""
    lines = [f"{key.replace('_', '-')} {value}" for key, value in more.items()]
    return "\n".join(["title x", *lines, f"linux {linux}", *(f"initrd {path}" for path in initrds), ""]).encode()


def var(text: str) -> bytes:
    """Return a file of efivarfs."""
    return b"\6\0\0\0" + text.encode("utf-16-le") + b"\0\0"


class Row(NamedTuple):
    """A layout: its files, and what boots REL."""

    tree: dict[str, bytes]
    files: tuple[str, ...] = ()  #: what the kernel reads, in that order
    entry: str = ""
    doubt: str = ""  #: part of why it cannot be told
    refused: str = ""  #: part of why no image is made there; "" if one is, in the place of the last file
    made: str = ""  #: or here


def bls(
    folder: str, token: str = MID, *, boot: str = "", release: str = REL, initrd: str = "initrd", **more: str
) -> dict[str, bytes]:
    """Return what kernel-install puts on the partition `folder` for one release."""
    more = {"version": release, "machine_id": MID, "sort_key": "debian"} | more
    return {
        f"{folder}/loader/entries/{token}-{release}.conf": conf(f"{boot}/{token}/{release}/linux", f"{boot}/{token}/{release}/{initrd}", **more),
        f"{folder}/{token}/{release}/linux": kernel(release),
        f"{folder}/{token}/{release}/{initrd}": f"{folder} {release}".encode(),
    }  # fmt: skip


HASH = "0123456789abcdef0123456789abcdef01234567"
STALE = {f"boot/initramfs-{REL}.img": b"stale"}
SUSE = f"boot/efi/opensuse-tumbleweed/{REL}"
OSTREE = {
    "boot/loader/entries/ostree-1.conf": conf(f"/ostree/os-{HASH}/vmlinuz-{REL}", f"/ostree/os-{HASH}/initramfs-{REL}.img", version="2"),
    "boot/loader/entries/ostree-2.conf": conf(f"/ostree/os-0/vmlinuz-{OLD}", f"/ostree/os-0/initramfs-{OLD}.img", version="1"),
    f"boot/ostree/os-{HASH}/vmlinuz-{REL}": kernel(), f"boot/ostree/os-{HASH}/initramfs-{REL}.img": b"ostree",
    f"boot/ostree/os-0/vmlinuz-{OLD}": kernel(OLD), f"boot/ostree/os-0/initramfs-{OLD}.img": b"old",
    f"usr/lib/modules/{REL}/initramfs.img": b"source",
}  # fmt: skip
FEDORA = {
    "boot/grub2/grub.cfg": BLS.encode(),
    f"boot/loader/entries/{MID}-{REL}.conf": conf(f"/vmlinuz-{REL}", f"/initramfs-{REL}.img", version=REL),
    f"boot/loader/entries/{MID}-0-rescue.conf": conf(f"/vmlinuz-0-rescue-{MID}", f"/initramfs-0-rescue-{MID}.img", version=f"0-rescue-{MID}"),
    f"boot/vmlinuz-{REL}": kernel(), f"boot/vmlinuz-0-rescue-{MID}": kernel(),
    f"boot/initramfs-{REL}.img": b"fedora", f"boot/initramfs-0-rescue-{MID}.img": b"rescue", f"boot/initramfs-{REL}kdump.img": b"kdump",
}  # fmt: skip
ARCH = {
    "boot/loader/entries/arch.conf": conf("/vmlinuz-linux", "/intel-ucode.img", "/initramfs-linux.img"),
    "boot/loader/entries/arch-fallback.conf": conf("/vmlinuz-linux", "/initramfs-linux-fallback.img"),
    "boot/vmlinuz-linux": kernel(), "boot/intel-ucode.img": b"ucode", "boot/initramfs-linux.img": b"main",
    "boot/initramfs-linux-fallback.img": b"fallback",
}  # fmt: skip
PRESET = b'ALL_kver="/boot/vmlinuz-linux"\nPRESETS=(default)\ndefault_image="/boot/our-image.img"\n'

ROWS = {
    # Without entries: the place, as GRUB's own menu has it.
    "debian": Row({f"boot/initrd.img-{REL}": b"x", "boot/grub/grub.cfg": GRUB.encode()}, (f"boot/initrd.img-{REL}",)),
    "fedora without a menu": Row({f"boot/initramfs-{REL}.img": b"x", f"boot/initramfs-{REL}kdump.img": b"k"}, (f"boot/initramfs-{REL}.img",)),
    "suse with GRUB": Row({f"boot/initrd-{REL}": b"x", f"boot/initrd-{REL}-kdump": b"k"}, (f"boot/initrd-{REL}",)),
    "no image": Row({"boot/grub/grub.cfg": b"insmod gzio\n"}),
    "no image where the menu has it": Row({"boot/grub/grub.cfg": GRUB.encode()}, doubt=f"in its entry `x`, names /boot/initrd.img-{REL}, which is not found", made=f"boot/initrd.img-{REL}"),
    "only a dump kernel's": Row({f"boot/initramfs-{REL}kdump.img": b"k", f"boot/initramfs-0-rescue-{MID}.img": b"r"}),
    "two places, the menu tells": Row({f"boot/initrd.img-{REL}": b"x", **STALE, "boot/grub/grub.cfg": GRUB.encode()}, (f"boot/initrd.img-{REL}",)),
    "two places, nothing tells": Row({f"boot/initrd.img-{REL}": b"x", **STALE}, doubt="are not the same, and nothing says which boots", refused="cannot be told"),
    "two places, the same bytes": Row({f"boot/initrd.img-{REL}": b"stale", **STALE}, (f"boot/initrd.img-{REL}",)),
    "arch with GRUB, by the kernel's head": Row({"boot/vmlinuz-linux": kernel(), "boot/initramfs-linux.img": b"x"}, ("boot/initramfs-linux.img",)),
    "arch with GRUB, by pkgbase": Row({f"usr/lib/modules/{REL}/pkgbase": b"linux-lts\n", "boot/initramfs-linux-lts.img": b"x"}, ("boot/initramfs-linux-lts.img",)),
    "arch, another kernel's": Row({"boot/vmlinuz-linux": kernel(OLD), "boot/initramfs-linux.img": b"x"}),
    "arch, by its preset": Row({"boot/vmlinuz-linux": kernel(), "etc/mkinitcpio.d/linux.preset": PRESET, "boot/our-image.img": b"x"}, ("boot/our-image.img",)),
    "GRUB's menu, microcode first": Row({f"boot/initrd.img-{REL}": b"x", "boot/ucode.img": b"u", "boot/grub/grub.cfg": GRUB.replace("initrd /boot/", "initrd /boot/ucode.img /boot/").encode()}, ("boot/ucode.img", f"boot/initrd.img-{REL}")),
    "GRUB's menu, with a variable that nothing sets": Row({f"boot/initrd.img-{REL}": b"x", "boot/grub/grub.cfg": GRUB.replace("initrd /boot/", "initrd $extra /boot/").encode()}, (f"boot/initrd.img-{REL}",)),
    "GRUB's menu, with what is not there": Row({f"boot/initrd.img-{REL}": b"x", "boot/grub/grub.cfg": GRUB.replace("initrd /boot/", "initrd /extra /boot/").encode()}, doubt="names /extra, which is not found", refused="the menu of GRUB names 2 initrds"),
    "GRUB's menu, two lines": Row({f"boot/initrd.img-{REL}": b"x", "boot/ucode.img": b"u", "boot/grub/grub.cfg": (GRUB + GRUB.replace("initrd /boot/", "initrd /ucode.img /boot/")).encode()}, doubt="are not the same, and nothing says which boots", refused="cannot be told"),
    # Entries of type 1.
    "kernel-install on /boot": Row({**bls("boot"), **STALE}, (f"boot/{MID}/{REL}/initrd",), f"boot/loader/entries/{MID}-{REL}.conf"),
    "kernel-install on /efi": Row({**bls("efi"), **STALE}, (f"efi/{MID}/{REL}/initrd",), f"efi/loader/entries/{MID}-{REL}.conf"),
    "kernel-install on /boot/efi": Row(bls("boot/efi", "debian"), (f"boot/efi/debian/{REL}/initrd",), f"boot/efi/loader/entries/debian-{REL}.conf"),
    "boot counting": Row({key.replace(".conf", "+3-1.conf"): value for key, value in bls("efi").items()}, (f"efi/{MID}/{REL}/initrd",), f"efi/loader/entries/{MID}-{REL}+3-1.conf"),
    "microcode first": Row(ARCH, ("boot/intel-ucode.img", "boot/initramfs-linux.img"), "boot/loader/entries/arch.conf"),
    "names in their order": Row(
        {**bls("boot"), f"boot/loader/entries/{MID}-{REL}.conf": conf(f"/{MID}/{REL}/linux", f"/{MID}/{REL}/b", f"{MID}/{REL}/a"), f"boot/{MID}/{REL}/a": b"a", f"boot/{MID}/{REL}/b": b"b"},
        (f"boot/{MID}/{REL}/b", f"boot/{MID}/{REL}/a"), f"boot/loader/entries/{MID}-{REL}.conf", refused="names 2 initrds",
    ),
    "/boot is no partition": Row({"boot/loader/entries/x.conf": conf("/boot/vmlinuz-x", "/boot/initrd-x"), "boot/vmlinuz-x": kernel(), "boot/initrd-x": b"x"}, ("boot/initrd-x",), "boot/loader/entries/x.conf"),
    "suse, sdbootutil": Row(
        {"boot/efi/loader/entries/opensuse-tumbleweed-6.conf": conf(f"/opensuse-tumbleweed/{REL}/linux-{HASH}", f"/opensuse-tumbleweed/{REL}/initrd-{HASH}", version=f"6@{REL}", sort_key="opensuse"), f"{SUSE}/linux-{HASH}": b"no header", f"{SUSE}/initrd-{HASH}": b"x", **STALE},
        (f"{SUSE}/initrd-{HASH}",), "boot/efi/loader/entries/opensuse-tumbleweed-6.conf", refused="`sdbootutil mkinitrd`",
    ),
    "fedora, GRUB with entries": Row(FEDORA, (f"boot/initramfs-{REL}.img",), f"boot/loader/entries/{MID}-{REL}.conf"),
    "fedora, rescue is saved": Row({**FEDORA, "boot/grub2/grubenv": f"saved_entry={MID}-0-rescue\n".encode()}, doubt="0-rescue.conf is taken next, which is no entry for a usual boot", refused="cannot be told"),
    "GRUB's variable, that GRUB sets itself": Row({**FEDORA, f"boot/loader/entries/{MID}-{REL}.conf": conf(f"/vmlinuz-{REL}", f"/initramfs-{REL}.img $cmdpath")}, doubt="names `$cmdpath`, which only GRUB knows", refused="cannot be told"),
    "GRUB's variable, that no menu shows": Row({**{path: data for path, data in FEDORA.items() if "grub" not in path}, EFIVARS.format("LoaderInfo"): var("GRUB 2.12"), f"boot/loader/entries/{MID}-{REL}.conf": conf(f"/vmlinuz-{REL}", f"/initramfs-{REL}.img $tuned_initrd")}, doubt="names `$tuned_initrd`, which only GRUB knows", refused="cannot be told"),
    "GRUB's variable, set nowhere": Row({**FEDORA, f"boot/loader/entries/{MID}-{REL}.conf": conf(f"/vmlinuz-{REL}", f"/initramfs-{REL}.img $tuned_initrd")}, (f"boot/initramfs-{REL}.img",), f"boot/loader/entries/{MID}-{REL}.conf"),
    "GRUB's variable, empty": Row({**FEDORA, "boot/grub2/grub.cfg": b'set tuned_initrd=""\nblscfg\n', f"boot/loader/entries/{MID}-{REL}.conf": conf(f"/vmlinuz-{REL}", f"/initramfs-{REL}.img $tuned_initrd")}, (f"boot/initramfs-{REL}.img",), f"boot/loader/entries/{MID}-{REL}.conf"),
    "GRUB's variable, in its environment": Row({**FEDORA, "boot/grub2/grubenv": b"tuned_initrd=/tuned.img\n", "boot/tuned.img": b"t", f"boot/loader/entries/{MID}-{REL}.conf": conf(f"/vmlinuz-{REL}", f"/initramfs-{REL}.img $tuned_initrd")}, (f"boot/initramfs-{REL}.img", "boot/tuned.img"), f"boot/loader/entries/{MID}-{REL}.conf", refused="names 2 initrds"),
    "ostree": Row(OSTREE, (f"boot/ostree/os-{HASH}/initramfs-{REL}.img",), "boot/loader/entries/ostree-1.conf", refused="`rpm-ostree initramfs --enable`"),
    "bootc, where the image is built": Row({f"usr/lib/modules/{REL}/initramfs.img": b"x"}, doubt="is what an image is made of", refused="cannot be told"),
    "no initrd line": Row({**bls("boot"), f"boot/loader/entries/{MID}-{REL}.conf": conf(f"/{MID}/{REL}/linux")}, doubt="names no initrd", refused="cannot be told"),
    "initrd by the kernel's own stub": Row({**bls("boot"), f"boot/loader/entries/{MID}-{REL}.conf": conf(f"/{MID}/{REL}/linux", options=f"quiet initrd=\\{MID}\\{REL}\\initrd")}, (f"boot/{MID}/{REL}/initrd",), f"boot/loader/entries/{MID}-{REL}.conf"),
    "an initrd that is not there": Row({key: value for key, value in bls("boot").items() if not key.endswith("/initrd")} | STALE, doubt=f"{MID}-{REL}.conf names /{MID}/{REL}/initrd, which is not there", made=f"boot/{MID}/{REL}/initrd"),
    "early microcode that is not there": Row({key: value for key, value in ARCH.items() if "ucode" not in key}, doubt="names /intel-ucode.img, which is not there", refused="names 1 initrds"),
    "a kernel that is not there": Row({key: value for key, value in bls("boot").items() if not key.endswith("/linux")} | STALE, doubt=f"names /{MID}/{REL}/linux, which is not there", refused="cannot be told"),
    "a path out of its partition": Row({**bls("boot"), f"boot/loader/entries/{MID}-{REL}.conf": conf(f"/{MID}/{REL}/linux", "/../etc/initrd"), "etc/initrd": b"x"}, doubt="leads out of its partition", refused="cannot be told"),
    "an entry of another architecture": Row({**bls("efi"), f"efi/loader/entries/{MID}-{REL}-b.conf": conf(f"/{MID}/{REL}/linux", "/b", architecture="sparc", sort_key="a"), "efi/b": b"b"}, (f"efi/{MID}/{REL}/initrd",), f"efi/loader/entries/{MID}-{REL}.conf"),
    "files of kernel-install without an entry": Row({f"boot/{MID}/{REL}/initrd": b"x", f"boot/{MID}/{REL}/linux": kernel()}, doubt="no boot loader entry names it", refused="cannot be told"),
    "entries of another kernel only": Row({**bls("efi", release=OLD), **STALE}, doubt=f"boot/initramfs-{REL}.img is there, but no boot loader entry is of kernel {REL}", refused="cannot be told"),
    "an entry that tells no release": Row({"boot/loader/entries/arch.conf": conf("/Image", "/initramfs.img"), "boot/Image": b"arm64", "boot/initramfs.img": b"x", **STALE}, doubt="does not say of which kernel it is", refused="cannot be told"),
    # Which of several.
    "two entries of one kernel, the first is taken": Row(
        {**bls("efi"), f"efi/loader/entries/{MID}-{REL}-b.conf": conf(f"/{MID}/{REL}/linux", "/b", sort_key="z", version=REL), "efi/b": b"b"},
        (f"efi/{MID}/{REL}/initrd",), f"efi/loader/entries/{MID}-{REL}.conf",
    ),
    "loader.conf takes the other": Row(
        {**bls("efi"), f"efi/loader/entries/{MID}-{REL}-b.conf": conf(f"/{MID}/{REL}/linux", "/b", sort_key="z"), "efi/b": b"b", "efi/loader/loader.conf": b"timeout 3\ndefault *-b.conf\n"},
        ("efi/b",), f"efi/loader/entries/{MID}-{REL}-b.conf",
    ),
    "firmware takes the other": Row(
        {**bls("efi"), f"efi/loader/entries/{MID}-{REL}-b.conf": conf(f"/{MID}/{REL}/linux", "/b", sort_key="z"), "efi/b": b"b", EFIVARS.format("LoaderEntryDefault"): var(f"{MID}-{REL}-b.conf")},
        ("efi/b",), f"efi/loader/entries/{MID}-{REL}-b.conf",
    ),
    "a bad one is not first": Row(
        {**bls("efi"), f"efi/loader/entries/{MID}-{REL}-b+0-3.conf": conf(f"/{MID}/{REL}/linux", "/b", sort_key="a"), "efi/b": b"b"},
        (f"efi/{MID}/{REL}/initrd",), f"efi/loader/entries/{MID}-{REL}.conf",
    ),
    "two answers, and another kernel is next": Row(
        {**bls("efi"), f"efi/loader/entries/{MID}-{REL}-b.conf": conf(f"/{MID}/{REL}/linux", "/b", sort_key="z"), "efi/b": b"b", **bls("efi", release=OLD, sort_key="a")},
        doubt="are not the same, and nothing says which boots", refused="cannot be told",
    ),
    "two entries with the same bytes": Row(
        {**bls("efi"), f"efi/loader/entries/{MID}-{REL}-b.conf": conf(f"/{MID}/{REL}/linux", "/b", sort_key="z"), "efi/b": f"efi {REL}".encode(), **bls("efi", release=OLD, sort_key="a")},
        (f"efi/{MID}/{REL}/initrd",), f"efi/loader/entries/{MID}-{REL}.conf",
    ),
    "GRUB's menu and an entry": Row({**bls("efi"), f"boot/initrd.img-{REL}": b"other", "boot/grub/grub.cfg": GRUB.encode()}, doubt="are not the same, and nothing says which boots", refused="cannot be told"),
    "loader.conf by an id without its end": Row(
        {**bls("efi"), f"efi/loader/entries/{MID}-{REL}-b.conf": conf(f"/{MID}/{REL}/linux", "/b", sort_key="z"), "efi/b": b"b", "efi/loader/loader.conf": f"default {MID}-{REL}-b\n".encode()},
        (f"efi/{MID}/{REL}/initrd",), f"efi/loader/entries/{MID}-{REL}.conf",
    ),
    "loader.conf by a title": Row(
        {**bls("efi"), f"efi/loader/entries/{MID}-{REL}-b.conf": conf(f"/{MID}/{REL}/linux", "/b", sort_key="z").replace(b"title x", b"title bee"), "efi/b": b"b", EFIVARS.format("LoaderEntryDefault"): var("bee")},
        (f"efi/{MID}/{REL}/initrd",), f"efi/loader/entries/{MID}-{REL}.conf",
    ),
    "loader.conf takes a profile": Row(
        {f"efi/EFI/Linux/b-{REL}.efi": uki(), f"efi/EFI/Linux/a-{REL}.efi": uki(more="ID=debian\nVERSION_ID=12\n"), "efi/loader/loader.conf": f"default a-{REL}.efi@1\n".encode()},
        (f"efi/EFI/Linux/a-{REL}.efi",), f"efi/EFI/Linux/a-{REL}.efi", refused="is a unified kernel image",
    ),
    "an entry, and a menu of GRUB that does not run": Row({**bls("efi"), f"boot/initrd.img-{REL}": b"other", "boot/grub/grub.cfg": GRUB.encode(), EFIVARS.format("LoaderInfo"): var("systemd-boot 257.9")}, (f"efi/{MID}/{REL}/initrd",), f"efi/loader/entries/{MID}-{REL}.conf"),
    "systemd-boot, its partition is not mounted": Row({f"boot/initrd.img-{REL}": b"x", EFIVARS.format("LoaderInfo"): var("systemd-boot 257.9")}, doubt="is its partition mounted?", refused="cannot be told"),
    # Type 2.
    "a unified image": Row({f"efi/EFI/Linux/{MID}-{REL}.efi": uki(), **STALE}, (f"efi/EFI/Linux/{MID}-{REL}.efi",), f"efi/EFI/Linux/{MID}-{REL}.efi", refused="is a unified kernel image"),
    "a unified image on /boot/efi": Row({"boot/efi/EFI/Linux/arch-linux.efi": uki(uname=False)}, ("boot/efi/EFI/Linux/arch-linux.efi",), "boot/efi/EFI/Linux/arch-linux.efi", refused="is a unified kernel image"),
    "a unified image with tries": Row({f"boot/EFI/Linux/x-{REL}+2-1.efi": uki(), f"boot/EFI/Linux/x-{OLD}.efi": uki(OLD)}, (f"boot/EFI/Linux/x-{REL}+2-1.efi",), f"boot/EFI/Linux/x-{REL}+2-1.efi", refused="is a unified kernel image"),
    "an entry that names one": Row({"efi/loader/entries/x.conf": b"title x\nefi /EFI/x.efi\n", "efi/EFI/x.efi": uki()}, ("efi/EFI/x.efi",), "efi/loader/entries/x.conf", refused="is a unified kernel image"),
    "a unified image of another kernel": Row({f"efi/EFI/Linux/{MID}-{OLD}.efi": uki(OLD), **STALE}, doubt="no boot loader entry is of kernel", refused="cannot be told"),
    "started by firmware itself": Row(
        {"efi/EFI/BOOT/BOOTX64.EFI": uki(), f"efi/EFI/Linux/{MID}-{REL}.efi": uki(more="ID=other\n"), **STALE, EFIVARS.format("StubInfo"): var("systemd-stub 257"), EFIVARS.format("LoaderImageIdentifier"): var("\\EFI\\BOOT\\BOOTX64.EFI")},
        ("efi/EFI/BOOT/BOOTX64.EFI",), "efi/EFI/BOOT/BOOTX64.EFI", refused="is a unified kernel image",
    ),
    "started by firmware, of another kernel": Row(
        {"efi/EFI/BOOT/BOOTX64.EFI": uki(OLD), **STALE, EFIVARS.format("StubInfo"): var("systemd-stub 257"), EFIVARS.format("StubImageIdentifier"): var("\\EFI\\BOOT\\BOOTX64.EFI")},
        doubt=f"which is of kernel {OLD}", refused="cannot be told",
    ),
    "started by firmware, from nowhere": Row(
        {**STALE, EFIVARS.format("StubInfo"): var("systemd-stub 257"), EFIVARS.format("LoaderImageIdentifier"): var("\\EFI\\x.efi")},
        doubt="which is on no partition that is mounted", refused="cannot be told",
    ),
    "a loader that has started one": Row(
        {f"efi/EFI/Linux/{MID}-{REL}.efi": uki(), EFIVARS.format("StubInfo"): var("systemd-stub 257"), EFIVARS.format("LoaderInfo"): var("systemd-boot 257")},
        (f"efi/EFI/Linux/{MID}-{REL}.efi",), f"efi/EFI/Linux/{MID}-{REL}.efi", refused="is a unified kernel image",
    ),
    "a unified image that is damaged": Row({f"efi/EFI/Linux/{MID}-{REL}.efi": b"damaged", **STALE}, doubt="lies among unified kernel images and is none", refused="cannot be told"),
    "a file that is none, beside": Row({"efi/EFI/Linux/notes.efi": b"text", **bls("efi")}, (f"efi/{MID}/{REL}/initrd",), f"efi/loader/entries/{MID}-{REL}.conf"),
    "a unified image without a kernel's name": Row({f"efi/EFI/Linux/{MID}-{REL}.efi": pe([(".linux", b"x"), (".initrd", b"x")]), **STALE}, (f"efi/EFI/Linux/{MID}-{REL}.efi",), f"efi/EFI/Linux/{MID}-{REL}.efi", refused="is a unified kernel image"),
    "a preset's unified image that no loader shows": Row({"boot/vmlinuz-linux": kernel(), "etc/mkinitcpio.d/linux.preset": PRESET + b'default_uki="/efi/EFI/arch/linux.efi"\n', "efi/EFI/arch/linux.efi": uki(), "boot/initramfs-linux.img": b"x"}, doubt="is made by a preset of mkinitcpio, and nothing says whether it boots", refused="cannot be told"),
    "no kernel at all in it": Row({"efi/EFI/Linux/shell.efi": pe([(".text", b"x")]), f"boot/initrd.img-{REL}": b"x"}, (f"boot/initrd.img-{REL}",)),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_boots(tmp_path: Path, name: str) -> None:
    """The files that the kernel reads and the entry that names them, or why that cannot be told."""
    row = ROWS[name]
    make(tmp_path, row.tree)
    boots = bootplaces.find(str(tmp_path), REL)

    assert boots.files == tuple(tmp_path / path for path in row.files), boots
    assert boots.doubt or boots.entry == (tmp_path / row.entry if row.entry else None)
    assert bool(boots.doubt) == bool(row.doubt) and row.doubt in boots.doubt.replace(f"{tmp_path}/", ""), boots.doubt
    if boots.files:
        read = b"".join(
            row.tree[path].ljust(-(-len(row.tree[path]) // 4) * 4, b"\0") if boots.aligned else row.tree[path]
            for path in row.files
        )
        assert boots.read().rstrip(b"\0") == read.rstrip(b"\0")


@pytest.mark.parametrize("name", ROWS)
def test_where_an_image_is_made(tmp_path: Path, name: str) -> None:
    """Where the entry has it; or it is refused, with what to do."""
    row = ROWS[name]
    make(tmp_path, row.tree)
    if row.refused:
        with pytest.raises(target.Unplaced, match="`") as caught:
            target.target(str(tmp_path), REL)
        assert row.refused in str(caught.value)
        return
    place = target.target(str(tmp_path), REL)
    assert place.path == tmp_path / (
        row.made or row.files[-1] if row.made or row.files else f"boot/initramfs-{REL}.img"
    )
    draft = tmp_path / "draft"
    assert place.drafted(draft).files == (*(tmp_path / path for path in row.files[:-1]), draft)


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].doubt])
def test_a_doubt_is_said(tmp_path: Path, name: str) -> None:
    """check ends with 6 and says why, and doctor's look at the image judges none."""
    make(tmp_path, {**ROWS[name].tree, f"lib/modules/{REL}/x": b""})
    result = CliRunner().invoke(main, ["initramfs", "check", "--root", str(tmp_path), "--kernel", REL])
    doubt = bootplaces.find(str(tmp_path), REL).doubt

    assert result.exit_code == 6
    assert result.stderr == f"safemem: it cannot be told which image boots kernel {REL}: {doubt}\n"
    assert machine.read_image(str(tmp_path), REL) == machine.Image("", doubt=doubt)


#: Everything that is read on the way to an answer.
READ = (
    f"efi/loader/entries/{MID}-{REL}.conf", "efi/loader/loader.conf", "boot/grub/grub.cfg", "boot/grub/grubenv", EFIVARS.format("LoaderInfo"),
    EFIVARS.format("StubInfo"), EFIVARS.format("LoaderImageIdentifier"), EFIVARS.format("LoaderEntryDefault"), "etc/mkinitcpio.d/x.preset",
    f"usr/lib/modules/{REL}/pkgbase", f"efi/EFI/Linux/{MID}-{REL}.efi", "boot/vmlinuz-linux", "etc/kernel/install.conf",
    "etc/kernel/entry-token", "efi/loader/entries.srel", "proc/cmdline", "boot/extlinux/extlinux.conf", "boot/efi/EFI/x/grub.cfg",
)  # fmt: skip
LINES = st.sampled_from([
    b"linux", b"initrd", b"options initrd=", b"efi", b"uki", b"set x=", b"blscfg", b"menuentry x {\n", b"}\n", b"if a; then\n", b"fi\n", b"function f {", b"f\n", b"source ", b"load_env -f ", b"(hd0)", b"chainloader ", b"saved_entry=", b"default_kver=", b"default_image=", b"layout=",
    b"/", b"/a", b"$x", b"..", b"\\", b"\0", b" ", b"\n", b"=", b"'", REL.encode(), b"a" * 300, b"MZ", b"\xff", "systemd-boot".encode("utf-16-le"),
])  # fmt: skip


@given(st.dictionaries(st.sampled_from(READ), st.lists(LINES, max_size=12).map(b"".join), max_size=6), st.booleans())
def test_an_answer_whatever_is_there(tree: dict[str, bytes], image: bool) -> None:
    """No bytes raise anything; an answer has files that are there or a doubt, and an image is made in a place or refused."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), {**tree, "efi/a": b"x", **({f"boot/initrd.img-{REL}": b"x"} if image else {})})
        boots = bootplaces.find(folder, REL)
        assert not (boots.files and boots.doubt) and all(map(os.path.isfile, boots.files))
        assert boots.files or boots.doubt or not image
        with contextlib.suppress(target.Unplaced):
            assert target.target(folder, REL).path.is_relative_to(folder)


def test_a_release_is_no_pattern(tmp_path: Path) -> None:
    """Whatever is in its name."""
    make(tmp_path, {"boot/initrd.img-x": b"x", "boot/m/x/initrd": b"x"})
    assert bootplaces.find(str(tmp_path), "[a-z]") == bootplaces.Boots()


def test_two_names_of_one_partition(tmp_path: Path) -> None:
    """An ESP that is also reached by another path has each entry once."""
    make(tmp_path, bls("boot"))
    (tmp_path / "efi").symlink_to("boot")
    assert bootplaces.find(str(tmp_path), REL).files == (tmp_path / f"efi/{MID}/{REL}/initrd",)


def test_what_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ESP that only root reads is said, and no image elsewhere is taken instead."""
    make(tmp_path, {f"boot/initrd.img-{REL}": b"x", "boot/efi/loader/entries/x.conf": conf("/x")})
    listdir = os.listdir

    def refuse(path: Path) -> list[str]:
        if "boot/efi/loader" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    seen = f"{tmp_path}/boot/efi/loader/entries: permission denied: what boots is not known without it"
    assert bootplaces.find(str(tmp_path), REL) == bootplaces.Boots(doubt=seen)


def test_how_files_stand_behind_each_other(tmp_path: Path) -> None:
    """GRUB begins each at a multiple of 4 bytes; systemd-boot and the kernel's own stub do not."""
    make(tmp_path, {"a": b"12345", "b": b"x"})
    paths = (tmp_path / "a", tmp_path / "b")
    assert bootplaces.Boots(paths).read() == b"12345x"
    assert bootplaces.Boots(paths, aligned=True).read() == b"12345\0\0\0x"
    assert bootplaces.Boots(paths, tmp_path / "c").__str__() == f"{tmp_path}/a, {tmp_path}/b, named by {tmp_path}/c"


@pytest.mark.parametrize(
    ("tree", "layout"),
    [
        ({"etc/kernel/install.conf": b"layout=bls\n"}, "bls"),
        ({"etc/kernel/install.conf": b"initrd_generator=dracut\nlayout='uki'\n"}, "uki"),
        ({"usr/lib/kernel/install.conf": b"layout=uki\n", "etc/kernel/install.conf.d/x.conf": b"layout=bls\n"}, "bls"),
        ({"etc/kernel/install.conf": b"layout=other\n", "usr/lib/kernel/install.conf": b"layout=uki\n"}, ""),
        ({"efi/loader/entries.srel": b"type1\n", "etc/kernel/install.conf": b"layout=auto\n"}, "bls"),
        ({"etc/machine-id": f"{MID}\n".encode(), f"boot/{MID}/x": b""}, "bls"),
        ({"etc/machine-id": f"{MID}\n".encode(), "etc/kernel/entry-token": b"debian\n", f"boot/{MID}/x": b""}, ""),
        (
            {"etc/machine-id": f"{MID}\n".encode(), "etc/kernel/entry-token": b"debian\n", "boot/efi/debian/x": b""},
            "bls",
        ),
        ({"etc/kernel/install.conf": b"#layout=bls\n"}, ""),
    ],
)
def test_the_first_image_of_a_kernel(tmp_path: Path, tree: dict[str, bytes], layout: str) -> None:
    """Where kernel-install makes entries, it has to make this one too; otherwise the distribution's name is taken."""
    make(tmp_path, {**tree, "etc/debian_version": b"13"})
    if not layout:
        assert target.target(str(tmp_path), REL).path == tmp_path / f"boot/initrd.img-{REL}"
    else:
        with pytest.raises(
            target.Unplaced, match=f"layout={layout}.*`kernel-install add {REL} /lib/modules/{REL}/vmlinuz`"
        ):
            target.target(str(tmp_path), REL)


def test_an_archive_that_kernel_install_has_added(tmp_path: Path) -> None:
    """An image that is made beside it would not be the policy that counts: the later file wins."""
    entry = {
        f"efi/loader/entries/{MID}-{REL}.conf": conf(
            f"/{MID}/{REL}/linux", f"/{MID}/{REL}/initrd", f"/{MID}/{REL}/{target.APPENDED}"
        )
    }
    make(tmp_path, {**bls("efi"), **entry, f"efi/{MID}/{REL}/{target.APPENDED}": b"x"})
    with pytest.raises(target.Unplaced, match="`kernel-install add"):
        target.target(str(tmp_path), REL)
