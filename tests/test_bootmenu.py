# SPDX-License-Identifier: MIT
"""Which image GRUB's menus have for a kernel, in the shapes that distributions make; and what other loaders say of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from safemem.initramfs import bootplaces, grubfiles, grubmenu, grubscript, target
from tests.images import bzimage, pe
from tests.kit import make

REL, OLD = "6.12.5-1-default", "6.1.0-44-amd64"
EFIVARS = "sys/firmware/efi/efivars/{}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
IMAGE, KERNEL = f"boot/initrd.img-{REL}", f"boot/vmlinuz-{REL}"
#: What grub-mkconfig begins with.
HEAD = """if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function recordfail {
  set recordfail=1
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then insmod all_video; else insmod vga; fi
}
"""
SEARCH = """  load_video
  insmod gzio
  if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
  insmod part_gpt # and the file system
  set root='hd0,gpt2'
  if [ x$feature_platform_search_hint = xy ]; then
    search --no-floppy --fs-uuid --set=root --hint-efi=hd0,gpt2  5afe-5afe
  else
    search --no-floppy --fs-uuid --set=root 5afe-5afe
  fi
  echo  'Loading Linux ...'
"""


def kernel(release: str = REL) -> bytes:
    """Return a kernel with its release in its head."""
    return bzimage(b"kernel", release=release)


def uki(release: str = REL) -> bytes:
    """Return a unified kernel image."""
    return pe(
        [(".osrel", b"ID=x\n"), (".linux", kernel(release)), (".initrd", b"unified"), (".uname", release.encode())]
    )


def entry(title: str, *lines: str, more: str = "--class gnu-linux") -> str:
    """Return a menu's entry as grub-mkconfig writes it."""
    return f"menuentry '{title}' {more} {{\n{SEARCH}" + "".join(f"\t{line}\n" for line in lines) + "}\n"


def var(text: str) -> bytes:
    """Return a file of efivarfs."""
    return b"\6\0\0\0" + text.encode("utf-16-le") + b"\0\0"


def grub(*parts: str, place: str = "boot/grub/grub.cfg") -> dict[str, bytes]:
    """Return a menu, and a kernel and an image that are where Debian has them."""
    return {place: "".join(parts).encode(), KERNEL: kernel(), IMAGE: b"safe"}


class Row(NamedTuple):
    """A machine, and what boots REL."""

    tree: dict[str, bytes]
    files: tuple[str, ...] = (IMAGE,)
    doubt: str = ""
    refused: str = ""
    undone: str = ""  #: part of why nothing of the image may be started


PAIR = (f"linux\t/boot/vmlinuz-{REL} root=UUID=x ro quiet", f"initrd\t/boot/initrd.img-{REL}")
PLAIN = entry("x", *PAIR)
OTHER = entry("old", f"linux /boot/vmlinuz-{OLD} root=UUID=x", f"initrd /boot/initrd.img-{OLD}")
OTHERS = {f"boot/vmlinuz-{OLD}": kernel(OLD), f"boot/initrd.img-{OLD}": b"old"}
RECOVERY = entry("Debian, recovery mode", f"linux\t/boot/vmlinuz-{REL} root=UUID=x ro single", PAIR[1])
LVM = "if [ -f (lvm/vg-boot)/x ]; then set root='lvm/vg-boot'; fi"
CLOUD = f"""menuentry 'Ubuntu' --class ubuntu $menuentry_id_option 'gnulinux-simple-5afe' {{
  recordfail
{SEARCH}  if [ "${{initrdfail}}" = 1 ]; then
    echo  'booting without an initrd failed'
    linux  /boot/vmlinuz-{REL} root=PARTUUID=x ro
    initrd  /boot/initrd.img-{REL}
  else
    linux  /boot/vmlinuz-{REL} root=PARTUUID=x ro panic=-1
  fi
  initrdfail
}}
"""
UKI = "boot/efi/EFI/Linux/x.efi"
STUB = {EFIVARS.format("LoaderInfo"): var("GRUB 2.12"), EFIVARS.format("StubInfo"): var("systemd-stub 257"), EFIVARS.format("StubImageIdentifier"): var("\\EFI\\Linux\\x.efi")}  # fmt: skip
BLS = f"boot/loader/entries/m-{REL}.conf"
BLSCFG = "load_env\ninsmod blscfg\nblscfg\nmenuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {\n\tfwsetup\n}\n"
FEDORA = {BLS: f"title x\nlinux /vmlinuz-{REL}\ninitrd /initramfs-{REL}.img $tuned_initrd\noptions root=x $tuned_params\n".encode(), KERNEL: kernel(), f"boot/initramfs-{REL}.img": b"f"}  # fmt: skip
FED = (f"boot/initramfs-{REL}.img",)
EFISTUB = {f"boot/vmlinuz-{REL}": kernel(), IMAGE: b"source", "boot/efi/EFI/debian/initrd.img": b"copy", "proc/cmdline": b"root=x initrd=\\EFI\\debian\\initrd.img quiet\n"}  # fmt: skip
PROXMOX = {"etc/kernel/proxmox-boot-uuids": b"ABCD-1234\n", KERNEL: kernel(), IMAGE: b"x"}
POP = {"boot/efi/loader/entries/Pop_OS-current.conf": b"title Pop\nlinux /EFI/Pop_OS-1/vmlinuz.efi\ninitrd /EFI/Pop_OS-1/initrd.img\n", "boot/efi/EFI/Pop_OS-1/vmlinuz.efi": kernel(), "boot/efi/EFI/Pop_OS-1/initrd.img": b"x", IMAGE: b"x"}  # fmt: skip

#: What ordinary machines have: no doubt, and an image is made.
ORDINARY = {
    "Debian": Row({**grub(HEAD, entry("Debian", *PAIR), "submenu 'Advanced options' $menuentry_id_option 'adv' {\n", entry("Debian, with Linux", *PAIR), RECOVERY, OTHER, "}\n"), **OTHERS}),
    "Debian, /boot is a partition": Row(grub(HEAD, entry("Debian", *(line.replace("/boot/", "/") for line in PAIR)))),
    "Ubuntu": Row(grub(HEAD, entry("Ubuntu", "recordfail", 'gfxmode $linux_gfx_mode', LVM, PAIR[0] + " $vt_handoff", PAIR[1]), "submenu 'Advanced' {\n", RECOVERY, "}\n", "if [ -f  ${config_directory}/custom.cfg ]; then\n  source ${config_directory}/custom.cfg\nelif [ -z \"${config_directory}\" -a -f  $prefix/custom.cfg ]; then\n  source $prefix/custom.cfg\nfi\n")),
    "Ubuntu, booted once by next_entry": Row({**grub(HEAD, OTHER, entry("Ubuntu", *PAIR)), **OTHERS, "boot/grub/grubenv": b"# GRUB Environment Block\nnext_entry=1\n####"}),
    "Fedora": Row({**FEDORA, "boot/grub2/grub.cfg": BLSCFG.encode(), "boot/grub2/grubenv": b"saved_entry=x\nkernelopts=root=x\n", "boot/efi/EFI/fedora/grub.cfg": b"search --no-floppy --fs-uuid --set=dev 5afe\nset prefix=($dev)/grub2\nexport $prefix\nconfigfile $prefix/grub.cfg\n"}, FED),
    "Alma, an entry's variable that nothing sets": Row({**FEDORA, "boot/grub2/grub.cfg": BLSCFG.encode(), EFIVARS.format("LoaderInfo"): var("GRUB 2.06")}, FED),
    "RHEL 8, menu on the ESP": Row({**FEDORA, "boot/efi/EFI/redhat/grub.cfg": ('set tuned_params=""\nset tuned_initrd=""\n' + BLSCFG).encode()}, FED),
    "SUSE": Row({"boot/grub2/grub.cfg": (HEAD.replace('"0"', '"${saved_entry}"') + entry("openSUSE", "set gfxpayload=keep", "savedefault", f"linux /boot/vmlinuz-{REL} root=UUID=x ${{extra_cmdline}} splash=silent", f"initrd /boot/initrd-{REL}", more="--hotkey=1 --class opensuse $menuentry_id_option 'gnulinux-simple'") + 'if [ -f "/.snapshots/grub-snapshot.cfg" ]; then\n  source "/.snapshots/grub-snapshot.cfg"\nfi\n').encode(), KERNEL: kernel(), f"boot/initrd-{REL}": b"s"}, (f"boot/initrd-{REL}",)),
    "RHEL 7": Row({"boot/grub2/grub.cfg": ('set tuned_params=""\nset tuned_initrd=""\n' + entry("CentOS", f"linux16 /vmlinuz-{REL} root=x $tuned_params", f"initrd16 /initramfs-{REL}.img $tuned_initrd") + entry("CentOS (0-rescue-5afe)", "linux16 /vmlinuz-0-rescue-5afe root=x", "initrd16 /initramfs-0-rescue-5afe.img")).encode(), KERNEL: kernel(), f"boot/initramfs-{REL}.img": b"7", "boot/vmlinuz-0-rescue-5afe": kernel(), "boot/initramfs-0-rescue-5afe.img": b"r"}, FED),
    "RHEL 7, a variable that nothing sets": Row({"boot/grub2/grub.cfg": entry("CentOS", f"linux16 /vmlinuz-{REL} $tuned_params", f"initrd16 /initramfs-{REL}.img $tuned_initrd").encode(), KERNEL: kernel(), f"boot/initramfs-{REL}.img": b"7"}, FED),
    "Xen": Row(grub(HEAD, PLAIN, entry("Xen", "if [ \"$grub_platform\" = pc ]; then xen_rm_opts=; else xen_rm_opts=no-real-mode; fi", "multiboot2 /boot/xen-4.17.gz placeholder ${xen_rm_opts}", f"module2 /boot/vmlinuz-{REL} placeholder root=x ro", f"module2 --nounzip /boot/initrd.img-{REL}", "module2 /boot/xenpolicy-4.17"))),
    "Xen alone": Row(grub(entry("Xen", "multiboot2 /boot/xen.gz", f"module2 /boot/vmlinuz-{REL} placeholder", f"module2 --nounzip /boot/initrd.img-{REL}"))),
    "Azure Linux": Row(grub("set bootprefix=/boot\nload_env -f $bootprefix/mariner.cfg\nmenuentry 'Azure' {\n\tlinux $bootprefix/$mariner_linux root=x\n\tif [ -f $bootprefix/$mariner_initrd ]; then\n\t\tinitrd $bootprefix/$mariner_initrd\n\tfi\n}\n", place="boot/grub2/grub.cfg") | {"boot/mariner.cfg": f"mariner_linux=vmlinuz-{REL}\nmariner_initrd=initrd.img-{REL}\n".encode()}),
    "Gentoo": Row({"boot/grub/grub.cfg": entry("Gentoo", f"linux /vmlinuz-{REL} root=x", f"initrd /initramfs-genkernel-x86_64-{REL}").encode(), KERNEL: kernel(), f"boot/initramfs-genkernel-x86_64-{REL}": b"g"}, (f"boot/initramfs-genkernel-x86_64-{REL}",)),
    "Alpine": Row({"boot/grub/grub.cfg": entry("Alpine", "linux /vmlinuz-lts", "initrd /initramfs-lts").encode(), "boot/vmlinuz-lts": kernel(), "boot/initramfs-lts": b"a"}, ("boot/initramfs-lts",)),
    "NixOS": Row({"boot/grub/grub.cfg": b'menuentry "NixOS" {\nsearch --set=drive1 --fs-uuid X\n  linux ($drive1)//kernels/k-bzImage init=/nix/store/x/init\n  initrd ($drive1)//kernels/i-initrd\n}\n', "boot/kernels/k-bzImage": kernel(), "boot/kernels/i-initrd": b"n"}, ("boot/kernels/i-initrd",)),
    "btrfs": Row(grub(entry("x", *(line.replace("/boot/", "/@/boot/") for line in PAIR)))),
    "ZFS": Row(grub(entry("x", f'linux "/BOOT/ubuntu_1@/vmlinuz-{REL}" root=ZFS=x', f'initrd "/BOOT/ubuntu_1@/initrd.img-{REL}"'))),
    "btrfs, an entry": Row({**{key: data.replace(b" /", b" /root/boot/") for key, data in FEDORA.items() if key == BLS}, **{key: data for key, data in FEDORA.items() if key != BLS}, "boot/grub2/grub.cfg": BLSCFG.encode()}, FED),
    "microcode by GRUB's stock names": Row({**grub(entry("x", PAIR[0], f"initrd /boot/intel-uc.img /boot/amd-uc.img /boot/initrd.img-{REL}")), "boot/intel-uc.img": b"uuuu", "boot/amd-uc.img": b"u"}, ("boot/intel-uc.img", "boot/amd-uc.img", IMAGE)),
    "os-prober's entry": Row({**grub(PLAIN, entry("other", PAIR[0], f"initrd /boot/amd-ucode.img /boot/initrd.img-{REL}"))}),
    "os-prober's entry, with what is here too": Row({**grub(PLAIN, entry("other", PAIR[0], "initrd /boot/a.img", more="$menuentry_id_option 'osprober-gnulinux-simple-1'")), "boot/a.img": b"a"}),
    "Windows beside": Row(grub(HEAD, PLAIN, entry("Windows", "chainloader /EFI/Microsoft/Boot/bootmgfw.efi"), entry("y", "chainloader +1"))),
    "a memory test": Row({**grub(HEAD, PLAIN, entry("Memory test", "linux /boot/memtest86+x64.efi")), "boot/memtest86+x64.efi": pe([(".text", b"x")])}),
    "ZFSBootMenu": Row({KERNEL: kernel(), IMAGE: b"x", "boot/efi/EFI/zbm/vmlinuz.EFI": uki("6.6.8_1"), EFIVARS.format("StubInfo"): var("systemd-stub 250"), EFIVARS.format("LoaderImageIdentifier"): var("\\EFI\\zbm\\vmlinuz.EFI")}),
    "Proxmox, its ESP at /boot/efi": Row({**PROXMOX, f"boot/efi/loader/entries/proxmox-{REL}.conf": f"title P\nlinux /EFI/proxmox/{REL}/vmlinuz-{REL}\ninitrd /EFI/proxmox/{REL}/initrd.img-{REL}\n".encode(), f"boot/efi/EFI/proxmox/{REL}/vmlinuz-{REL}": kernel(), f"boot/efi/EFI/proxmox/{REL}/initrd.img-{REL}": b"x", EFIVARS.format("LoaderInfo"): var("systemd-boot 257")}, (f"boot/efi/EFI/proxmox/{REL}/initrd.img-{REL}",)),
    "Proxmox's GRUB, its ESP at /boot/efi": Row({**PROXMOX, "boot/efi/grub/grub.cfg": entry("P", f"linux /vmlinuz-{REL}", f"initrd /initrd.img-{REL}").encode(), f"boot/efi/vmlinuz-{REL}": kernel(), f"boot/efi/initrd.img-{REL}": b"esp"}, (f"boot/efi/initrd.img-{REL}",)),
    "Pop!_OS": Row(POP, ("boot/efi/EFI/Pop_OS-1/initrd.img",)),
    "EFISTUB": Row(EFISTUB, ("boot/efi/EFI/debian/initrd.img",)),
    "extlinux": Row({**PROXMOX, "etc/kernel/proxmox-boot-uuids": b"", "boot/extlinux/extlinux.conf": f"default l0\nlabel l0\n linux /vmlinuz-{REL}\n initrd /initrd.img-{REL}\n".encode()}),
    "Raspberry Pi": Row({KERNEL: kernel(), IMAGE: b"x", "boot/firmware/config.txt": b"[all]\nkernel=vmlinuz\ninitramfs initrd.img followkernel\n", "boot/firmware/initrd.img": b"x"}),
    "two initrd words in an order": Row({**grub(entry("x", PAIR[0], f"initrd /boot/ucode.img \\\n   /boot/initrd.img-{REL}")), "boot/ucode.img": b"u"}, ("boot/ucode.img", IMAGE)),
    "a release with `rescue` in it": Row({"boot/grub/grub.cfg": entry("x", "linux /vmlinuz-rescue", "initrd /initramfs-rescue").replace("rescue", REL).encode(), KERNEL: kernel(), f"boot/initramfs-{REL}": b"x"}, (f"boot/initramfs-{REL}",)),
}  # fmt: skip

#: What is not as it looks.
ROWS = {
    "without its initrd first": Row(grub(HEAD, CLOUD), (), f"in its entry `Ubuntu`, boots /boot/vmlinuz-{REL} without an initrd"),
    "no initrd at all": Row(grub(entry("x", PAIR[0])), (), "without an initrd"),
    "an initrd under a condition": Row(grub(entry("x", PAIR[0], 'if [ "$a" = 1 ]; then', PAIR[1], "fi")), (), "without an initrd"),
    "a function without one": Row(grub("function go {\n linux /boot/vmlinuz-" + REL + "\n}\n", entry("x", "go")), (), "without an initrd"),
    "an initrd before the kernel": Row(grub(entry("x", PAIR[1], PAIR[0])), (), "without an initrd"),
    "a menu of another kernel only": Row({**grub(OTHER), **OTHERS}, (), f"{IMAGE} is there, but no entry of GRUB's menu boot/grub/grub.cfg is of kernel {REL}"),
    "another image for it": Row({**grub(entry("x", f"linux /vmlinuz-{REL}", "initrd /custom.img")), "boot/custom.img": b"c"}, ("boot/custom.img",)),
    "another image in the entry that is taken": Row({**grub(HEAD, entry("y", PAIR[0], "initrd /custom.img"), PLAIN), "boot/custom.img": b"c"}, ("boot/custom.img",)),
    "another image, taken by its title": Row({**grub("set default='a>y'\n", PLAIN, "submenu a {\n", entry("z", *PAIR), entry("y", PAIR[0], "initrd /custom.img"), "}\n"), "boot/custom.img": b"c"}, ("boot/custom.img",)),
    "another image, taken by its id": Row({**grub('set default="${saved_entry}"\n', PLAIN, entry("z", PAIR[0], "initrd /custom.img", more="--id me")), "boot/custom.img": b"c", "boot/grub/grubenv": b"saved_entry=me\n"}, ("boot/custom.img",)),
    "two images, and another kernel is taken": Row({**grub(HEAD, OTHER, PLAIN, entry("y", PAIR[0], "initrd /custom.img")), **OTHERS, "boot/custom.img": b"c"}, (), "are not the same, and nothing says which boots"),
    "an image by a variable": Row({**grub("set img=/z.img\n", entry("x", PAIR[0], "initrd $img")), "boot/z.img": b"z"}, ("boot/z.img",)),
    "an image by a variable with two values": Row({**grub("if [ $a = b ]; then set img=/z.img; else set img=/y.img; fi\n", entry("x", PAIR[0], "initrd $img")), "boot/z.img": b"z"}, (), "which only GRUB knows the content of"),
    "an image by a variable that may be empty": Row({**grub("if [ $a = b ]; then set img=/z.img; fi\n", entry("x", PAIR[0], PAIR[1] + " $img")), "boot/z.img": b"z"}, (), "which only GRUB knows the content of"),
    "the last initrd line counts": Row({**grub(entry("x", *PAIR, "initrd /boot/m.img")), "boot/m.img": b"m"}, ("boot/m.img",)),
    "all on one line": Row({**grub(f"menuentry 'x' {{ linux /boot/vmlinuz-{REL}; initrd /boot/m.img;}}\n"), "boot/m.img": b"m"}, ("boot/m.img",)),
    "a menu that is sourced": Row({**grub(HEAD, PLAIN, "if [ -f ${config_directory}/custom.cfg ]; then\n source ${config_directory}/custom.cfg\nfi\n"), "boot/o.img": b"o", "boot/grub/custom.cfg": f"set default=mine\nmenuentry mine --id mine {{\n linux /boot/vmlinuz-{REL}\n initrd /boot/o.img\n}}\n".encode()}, ("boot/o.img",)),
    "what only a loop knows": Row(grub("for k in /boot/vmlinuz-*; do\n menuentry \"$k\" {\n  linux $k\n  initrd /boot/x\n }\ndone\n"), (), "names its kernel by a variable"),
    "booted before its initrd": Row(grub(entry("x", PAIR[0], "boot", PAIR[1])), (), "without an initrd"),
    "a script in a word": Row({**grub(entry("x", f"eval 'linux /boot/vmlinuz-{REL}; initrd /boot/e'")), "boot/e": b"e"}, ("boot/e",)),
    "a script in a word that only GRUB knows": Row(grub("set default=0\n", entry("x", "eval $1"), PLAIN), (), "is taken next and leads to what is not read"),
    "which one is taken hangs on a variable": Row({**grub("if [ $a = b ]; then set default=1; fi\n", PLAIN, entry("y", PAIR[0], "initrd /e")), "boot/e": b"e"}, (), "are not the same, and nothing says which boots"),
    "a loop beside": Row(grub(HEAD, PLAIN, "for k in /mnt/*; do\n menuentry \"$k\" {\n  linux $k\n }\ndone\n")),
    "another menu is taken next": Row(grub(HEAD, entry("x", "configfile /other/grub.cfg"), PLAIN), (), "is taken next and leads to what is not read"),
    "an archive of GRUB's own": Row(grub(entry("x", PAIR[0], PAIR[1] + " newc:init:/boot/x")), (), "names newc:init:/boot/x"),
    "what is not there": Row(grub(entry("x", PAIR[0], "initrd /boot/gone.img")), (), "names /boot/gone.img, which is not found", ""),
    "a unified image that GRUB has started": Row({**grub(PLAIN), UKI: uki(), **STUB}, (UKI,), refused="is a unified kernel image"),
    "a unified image that GRUB has started, of another kernel": Row({**grub(PLAIN), UKI: uki(OLD), **STUB}),
    "a unified image that its entry chainloads": Row({**grub(entry("x", "chainloader /EFI/Linux/x.efi rdinit=/x")), "boot/EFI/Linux/x.efi": uki()}, ("boot/EFI/Linux/x.efi",), refused="is a unified kernel image", undone="rdinit=/x"),
    "a unified image by the command uki": Row({**grub(entry("x", "uki /EFI/Linux/x.efi")), "boot/EFI/Linux/x.efi": uki()}, ("boot/EFI/Linux/x.efi",), refused="is a unified kernel image"),
    "unified images by blsuki": Row({**grub("blsuki\n"), UKI: uki(), EFIVARS.format("LoaderInfo"): var("GRUB 2.14")}, (UKI,), refused="is a unified kernel image"),
    "a unified image that GRUB does not show": Row({**FEDORA, "boot/grub2/grub.cfg": BLSCFG.encode(), UKI: uki(), EFIVARS.format("LoaderInfo"): var("GRUB 2.12")}, FED),
    "a menu of GRUB and an entry of nobody's": Row({**grub(PLAIN), "efi/loader/entries/m.conf": f"linux /vmlinuz-{REL}\ninitrd /i\n".encode(), "efi/i": b"i", f"efi/vmlinuz-{REL}": kernel()}, (), "are not the same, and nothing says which boots"),
    "two menus that differ": Row({**grub(PLAIN), "boot/grub2/grub.cfg": entry("y", PAIR[0], "initrd /boot/y").encode(), "boot/y": b"y"}, (), "are not the same, and nothing says which boots"),
    "a stale menu beside the entries": Row({**FEDORA, BLS: FEDORA[BLS].replace(b"initramfs", b"other"), f"boot/other-{REL}.img": b"o", "boot/grub2/grub.cfg": BLSCFG.encode(), "boot/grub/grub.cfg": OTHER.encode(), **OTHERS}, (f"boot/other-{REL}.img",)),
    "a stale menu with it beside the entries": Row({**FEDORA, "boot/grub2/grub.cfg": BLSCFG.encode(), "boot/grub/grub.cfg": PLAIN.encode(), IMAGE: b"i"}, (), "are not the same, and nothing says which boots"),
    "GRUB reads entries on the ESP, a menu is left over": Row({**FEDORA, "boot/efi/EFI/opensuse/grub.cfg": b"blscfg\n", "boot/grub2/grub.cfg": PLAIN.encode(), IMAGE: b"i", EFIVARS.format("LoaderInfo"): var("GRUB2 2.12")}, (), "are not the same, and nothing says which boots"),
    "Proxmox, its ESP is not mounted": Row({**PROXMOX, EFIVARS.format("LoaderInfo"): var("systemd-boot 252")}, (), "mount the ESP that /etc/kernel/proxmox-boot-uuids names at /boot/efi", "proxmox-boot-tool"),
    "Proxmox's GRUB, its ESP is not mounted": Row({**PROXMOX, "boot/grub/grub.cfg": PLAIN.encode()}, (), "mount the ESP"),
    "EFISTUB, its ESP is not mounted": Row({key: data for key, data in EFISTUB.items() if "efi" not in key}, (), "is on no partition that is mounted"),
    "EFISTUB, another kernel runs": Row({**EFISTUB, "proc/sys/kernel/osrelease": OLD.encode()}, (), f"firmware starts kernel {OLD} itself"),
    "extlinux names another": Row({KERNEL: kernel(), IMAGE: b"x", "boot/initrd-b": b"b", "boot/extlinux/extlinux.conf": f"label l0\n linux /boot/vmlinuz-{REL}\n initrd /boot/initrd-b\n".encode()}, (), "extlinux.conf names /boot/initrd-b, which is not"),
    "rEFInd is told another": Row({KERNEL: kernel(), IMAGE: b"x", "boot/mine.img": b"m", "boot/refind_linux.conf": b'"Boot" "root=x initrd=boot\\mine.img"\n', EFIVARS.format("LoaderInfo"): var("rEFInd 0.14.2")}, (), "which is not"),
    "Raspberry Pi, its copy is another": Row({KERNEL: kernel(), IMAGE: b"x", "boot/firmware/config.txt": b"auto_initramfs=1\n", "boot/firmware/initramfs8": b"o"}, (), "config.txt names initramfs8, which is not"),
    "Limine": Row({"boot/limine.conf": b"/Arch\nprotocol: linux\nmodule_path: boot():/m/initramfs\n", "boot/m/initramfs": b"x"}, (), "limine.conf names boot():/m/initramfs"),
    "a loader that is not known": Row({EFIVARS.format("LoaderInfo"): var("Limine 9")}, (), "Limine 9 is the boot loader here"),
    "Flatcar": Row({"boot/flatcar/vmlinuz-a": kernel()}, (), "boots with the initramfs that is built into it"),
    "another loader's file that cannot be read": Row({f"boot/initrd.img-{REL}": b"x", "boot/config.txt/x": b""}, (), "boot/config.txt: "),
    "extlinux's that cannot be read": Row({f"boot/initrd.img-{REL}": b"x", "boot/extlinux/extlinux.conf/x": b""}, (), "extlinux.conf: "),
    "a word of the menu": Row(grub(entry("x", PAIR[0] + " rdinit=/bin/sh", PAIR[1])), undone="`rdinit=/bin/sh` on its command line"),
    "a word that changes nothing": Row(grub(entry("x", PAIR[0] + " rdinit=/init init=/bin/sh", PAIR[1]))),
    "a word of the entry": Row({**FEDORA, BLS: FEDORA[BLS].replace(b"root=x", b"rd.break noinitrd"), "boot/grub2/grub.cfg": BLSCFG.encode()}, FED, undone="`rd.break` on its command line"),
    "a stop before the root file system": Row(grub(entry("x", PAIR[0] + " break=top", PAIR[1])), undone="`break=top` on its command line"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_boots(tmp_path: Path, name: str) -> None:
    """The pair of a kernel and its initrds decides, on each way through an entry; or it is said why that cannot be told."""
    row = ROWS[name]
    make(tmp_path, row.tree)
    boots = bootplaces.find(str(tmp_path), REL)
    assert boots.files == tuple(tmp_path / path for path in row.files), boots
    assert bool(boots.doubt) == bool(row.doubt) and row.doubt in boots.doubt.replace(f"{tmp_path}/", ""), boots.doubt
    assert bool(boots.undone) == bool(row.undone) and row.undone in boots.undone
    if row.refused or (row.doubt and not boots.meant):
        with pytest.raises(target.Unplaced) as caught:
            target.target(str(tmp_path), REL)
        assert row.refused in str(caught.value)


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_machines(tmp_path: Path, name: str) -> None:
    """There is no doubt which image boots, nothing undoes it, and the next one is made in its place."""
    row = ORDINARY[name]
    make(tmp_path, row.tree)
    boots = bootplaces.find(str(tmp_path), REL)
    assert (boots.files, boots.doubt, boots.undone) == (tuple(tmp_path / path for path in row.files), "", ""), boots
    assert target.target(str(tmp_path), REL).path == tmp_path / row.files[-1]


def test_a_copy_is_known_by_its_bytes(tmp_path: Path) -> None:
    """kernelstub copies under another name; what has other bytes and another name is none."""
    make(tmp_path, POP)
    assert target.target(str(tmp_path), REL).copies == (tmp_path / IMAGE,)
    (tmp_path / IMAGE).write_bytes(b"another")
    assert target.target(str(tmp_path), REL).copies == ()


def test_links(tmp_path: Path) -> None:
    """An image is read through a link and made where it leads, unless that is another kernel's."""
    make(
        tmp_path,
        {
            **grub(entry("x", PAIR[0], "initrd /boot/initrd.img")),
            f"boot/initrd.img-{OLD}": b"old",
            f"lib/modules/{OLD}/x": b"",
        },
    )
    (tmp_path / "boot/initrd.img").symlink_to(f"initrd.img-{REL}")
    assert bootplaces.find(str(tmp_path), REL).read() == b"safe"
    assert target.target(str(tmp_path), REL).path == tmp_path / IMAGE
    (tmp_path / "boot/initrd.img").unlink()
    (tmp_path / "initrd.img").symlink_to(f"/boot/initrd.img-{REL}")  # below another root it leads elsewhere
    (tmp_path / "boot/grub/grub.cfg").write_text(entry("x", PAIR[0], "initrd /initrd.img"))
    assert bootplaces.find(str(tmp_path), REL).files == (tmp_path / IMAGE,)
    (tmp_path / "boot/grub/grub.cfg").write_text(entry("x", PAIR[0], "initrd /boot/initrd.img"))
    (tmp_path / "boot/initrd.img").symlink_to(f"/boot/initrd.img-{OLD}")
    with pytest.raises(target.Unplaced, match=f"boots with initrd.img-{OLD}, the image of kernel {OLD}"):
        target.target(str(tmp_path), REL)


@pytest.mark.parametrize(
    "place", ["boot/loader/entries/dead.conf", "boot/efi/EFI/Linux/dead.efi", "boot/grub/grub.cfg"]
)
def test_links_to_nothing(tmp_path: Path, place: str) -> None:
    """They are no entry and no menu."""
    make(tmp_path, {**FEDORA, "boot/grub2/grub.cfg": BLSCFG.encode()})
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).symlink_to("/nowhere")
    assert bootplaces.find(str(tmp_path), REL).files == (tmp_path / FED[0],)


@pytest.mark.parametrize(
    ("loader", "aligned"),
    [("systemd-boot 256.7", False), ("systemd-boot 257.9-1~deb13u1", True), ("systemd-boot v258", True), ("", False)],
)
def test_systemd_boot_pads(tmp_path: Path, loader: str, aligned: bool) -> None:
    """Since version 257 it begins each initrd at a multiple of 4 bytes."""
    tree = {f"efi/loader/entries/{REL}.conf": f"linux /vmlinuz-{REL}\ninitrd /a\ninitrd /b\n".encode(), f"efi/vmlinuz-{REL}": kernel(), "efi/a": b"12345", "efi/b": b"x"}  # fmt: skip
    make(tmp_path, {**tree, **({EFIVARS.format("LoaderInfo"): var(loader)} if loader else {})})
    assert bootplaces.find(str(tmp_path), REL).read() == (b"12345\0\0\0x" if aligned else b"12345x")


def test_a_menu_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and no image is taken instead."""
    make(tmp_path, grub(PLAIN))

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(grubfiles, "read", refuse)
    assert bootplaces.find(str(tmp_path), REL).doubt.startswith(f"{tmp_path}/boot/grub/grub.cfg: permission denied: ")


def test_words_and_blocks() -> None:
    """Quotes, variables, comments, braces and ends of lines as GRUB takes them apart."""
    script = "a 'b c' \"d $e\"f ${g}h # i\nj {k;l}\nif m; then n; elif o; then p; else q; fi"
    first, second, third = grubscript.parse(script)
    words = [grubscript.expand(word, {"e": "1 2", "g": "3 4"}.get) for word in first.words]
    assert words == [["a"], ["b c"], ["d 1 2f"], ["3", "4h"]]
    assert (second.name, [each.name for each in second.block]) == ("j", ["k", "l"])
    assert [([each.name for each in asked], [each.name for each in body]) for asked, body in third.branches] == [
        (["m"], ["n"]), (["o"], ["p"]), ([], ["q"]),
    ]  # fmt: skip
    assert grubscript.expand(first.words[2], lambda _: None) == ["d \0f"]


@pytest.mark.parametrize(
    "text", ["{" * 5000, "if " * 5000, "if a; then " * 5000, "'", '"', "\\", "$", "${", "function f { f; f; f; }\nf\n", "menuentry x { if a; then linux b; fi; " * 40]
)  # fmt: skip
def test_what_is_no_menu(tmp_path: Path, text: str) -> None:
    """It ends, whatever it is."""
    assert grubmenu.read(str(tmp_path), tmp_path / "grub.cfg", text.encode(), {}).path == tmp_path / "grub.cfg"
    assert os.path.isdir(tmp_path)
