# SPDX-License-Identifier: MIT
"""What goes into a distribution's own initramfs, and what is found in one."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from safemem.boot.console import KEYS
from safemem.boot.model import FINAL, Failure, Rule, Term
from safemem.cli import initramfs, main
from safemem.initramfs import check, on_failure, packed, proven, uki
from safemem.initramfs.cpio import Archive
from safemem.initramfs.items import PREFIX, BuildError
from safemem.initramfs.makers import GATE, PROOF
from safemem.policy import installed, load
from tests import images
from tests.kit import POLICY, SYSTEMD, archive, base, policy, units, when

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "safemem/initramfs/files"
HOOK = FILES / "initramfs-tools/safemem"
LINE = "run_scripts /scripts/init-top"
#: What initramfs with a shell for an init have of ours.
GATES = {GATE: on_failure.gate(Failure("panic")), PROOF: on_failure.proof(Failure("panic"))}
HOOKS = "var/lib/dracut/hooks/cmdline"
FIRST = {f"{HOOKS}/00-gate.sh": GATES[GATE], f"{HOOKS}/00-proof.sh": GATES[PROOF]}
#: As modules.d/99base/init.sh of dracut begins, in short.
INIT = b"""#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
if [ ! -d /proc/self ]; then
    mount -t proc -o nosuid,noexec,nodev proc /proc > /dev/null || { echo "no /proc"; exit 1; }
fi
command -v getarg > /dev/null || . /lib/dracut-lib.sh
if command -v kmod > /dev/null 2> /dev/null; then
    kmod static-nodes --format=tmpfiles 2> /dev/null \\
        | while read -r type file mode a a a majmin || [ -n "$type" ]; do
            case $type in
                d) mkdir -m "$mode" -p "$file" ;;
                c) mknod -m "$mode" "$file" "$type" "${majmin%:*}" "${majmin#*:}" ;;
            esac
        done
fi
exec 0<> /dev/console 1<> /dev/console 2<> /dev/console # modprobe
[ -f /usr/lib/initrd-release ] && . /usr/lib/initrd-release
getargs 'rd.break=cmdline' && emergency_shell -n cmdline "Break before cmdline"
source_hook cmdline
"$systemdutildir"/systemd-udevd --daemon --resolve-names=never
"""
DRACUT = {**GATES, **FIRST, "init": INIT}
TOOLS = b"#!/bin/sh\nmount\n" + GATES[GATE] + f"{LINE}\n".encode()


def unified(section: bytes, data: bytes) -> bytes:
    """Return a kernel image in the PE format with one section."""
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 0xF0, 0)
    start = 0x200
    table = section.ljust(8, b"\0") + struct.pack("<IIII", len(data), 0x1000, -(-len(data) // 512) * 512, start)
    return (head + coff + bytes(0xF0) + table.ljust(40, b"\0")).ljust(start, b"\0") + data + bytes(-len(data) % 512)


def test_unified_kernel_image() -> None:
    """Its initrd is read, an appended archive with units included; one that is cut off or has none is said to be."""
    data = archive(SYSTEMD) + archive({**base(), **on_failure.unit_files(Failure("panic"))})
    found = check.inside(unified(b".initrd", data))

    assert found is not None and (found.start, found.fault) == ("systemd", "")
    with pytest.raises(packed.Unreadable, match="cut off"):
        check.inside(unified(b".initrd", data)[:-600])
    for broken in (unified(b".text", data), b"MZ" + bytes(600)):
        with pytest.raises(packed.Unreadable, match=r"without an \.initrd section|a program for DOS"):
            check.inside(broken)


def profiles(*initrds: tuple[str, bytes | None]) -> bytes:
    """Return a unified kernel image with a profile for each, None being one without an initrd of its own."""
    parts = [(".linux", b"kernel"), (".initrd", SAFE)]
    for name, data in initrds:
        parts += [(".profile", f"ID={name}\nTITLE=The {name}\n".encode())]
        parts += [] if data is None else [(".initrd", data)]
    return images.pe(parts)


SAFE = archive({**base(), **units()})
BARE = archive({"init": b"#!/bin/sh\n"})
LATE = archive(base())
OWN_INIT = archive({**base(), "init": b"#!/bin/sh\n/usr/lib/safemem/boot; [ $? = 42 ] || exit\n"})
SQUASH = archive({"init": b"#!/bin/sh\n", "squashfs-root.img": b"hsqs" + bytes(4000)})


@pytest.mark.parametrize(
    ("initrds", "profile", "fault"),
    [
        ([("main", None), ("old", BARE)], "old (The old)", None),
        ([("main", BARE), ("old", None)], "main (The main)", None),
        ([("main", None), ("old", LATE)], "old (The old)", "nothing in it starts the boot program"),
        ([("late", LATE), ("bare", BARE), ("main", None)], "bare (The bare)", None),
        ([("main", None), ("none", b"")], "none (The none)", None),
        ([("main", None), ("old", b"junk"), ("bare", BARE)], "bare (The bare)", None),
        ([("main", None), ("old", SAFE)], "main (The main)", ""),
    ],
)  # fmt: skip
def test_the_worst_profile(initrds: list[tuple[str, bytes | None]], profile: str, fault: str | None) -> None:
    """Any profile may be booted, each with its own initrd or the base's: the worst is what is told, by its name."""
    judged = check.judged(profiles(*initrds))

    assert (judged.profile, judged.inside and judged.inside.fault) == (profile, fault)


def test_a_profile_that_cannot_be_read() -> None:
    """Worse than a good one is one of which nobody knows."""
    with pytest.raises(packed.Unreadable, match=r"^profile old \(The old\): byte 0: neither an archive nor a compr"):
        check.judged(profiles(("main", None), ("old", b"junk")))
    with pytest.raises(
        check.NotLookedInto, match=r"^profile old \(The old\): most of this image is in squashfs-root.img"
    ):
        check.judged(profiles(("main", None), ("old", SQUASH)))


def test_the_order_of_sections() -> None:
    """Microcode comes first, padded, and of two sections of one name the first counts."""
    ucode = archive({"kernel/x86/microcode/GenuineIntel.bin": b"u"})[:-1]
    for data in (ucode, gzip.compress(ucode)[:-1] + b"\0\0"):
        made = images.pe([(".ucode", data), (".linux", b"k"), (".initrd", SAFE), (".initrd", BARE)])
        (found,) = uki.initrds(made)
        assert found.data == data + bytes(-len(data) % 4) + SAFE


def ext4(*, blocks: int = 7, log: int = 0, first: int = 1, each: int = 8192, magic: bytes = b"\x53\xef") -> bytes:
    """Return the beginning of an ext4, up to its superblock's mark and revision, in a file of 8000 bytes."""
    block = struct.pack("<14I", 16, blocks, 0, 0, 0, first, log, log, each, each, 16, 0, 0, 0) + magic
    return bytes(1024) + block.ljust(76, b"\0") + struct.pack("<I", 1)


EXT4 = ext4()


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("squashfs-root.img", b"hsqs", "squashfs"), ("squash-root.img", b"sqsh", "squashfs"), ("squash/root.img", b"hsqs", "squashfs"),
        ("erofs-root.img", bytes(1024) + b"\xe2\xe1\xf5\xe0", "erofs"), ("root.squashfs", b"hsqs", "squashfs"),
        ("any/name", EXT4, "ext4"),
    ],
)  # fmt: skip
def test_what_is_not_looked_into(name: str, head: bytes, kind: str) -> None:
    """An initramfs that is in a file system within it may have safemem there: neither yes nor no is true."""
    image = head.ljust(8000, b"\0")
    with pytest.raises(check.NotLookedInto) as error:
        check.inside(archive({"init": b"#!/bin/sh\n", name: image}))
    assert str(error.value) == (
        f"most of this image is in {name} ({kind}), which is not looked into: whether safemem is in it cannot be told"
    )
    with pytest.raises(check.NotLookedInto, match=r"^a part of this image is in "):
        check.inside(archive({"init": bytes(9000), name: image}))
    # Outside of it, safemem is found as ever; and what a later part takes away is not there.
    found = check.inside(archive({"init": b"#!/bin/sh\n", name: image}) + SAFE)
    assert found is not None and found.start == "systemd"
    assert check.inside(archive({name: image}) + archive({name: b"gone"})) is None


#: What to do about a unified image.
UNIFIED = (
    "{}/linux.efi is a unified kernel image: have what makes it (kernel-install, ukify, mkinitcpio) make it anew, with"
    " `safemem initramfs cpio --systemd` as its last initrd where its maker has no hook of safemem's"
)
AGAIN = "    help: if it is an initrd that should boot, make it again, or copy it again, and look once more"


@pytest.mark.parametrize(
    ("data", "says", "what"),
    [
        (b"", "the file is empty", AGAIN),
        (gzip.compress(b"070701" * 99, mtime=0)[:-9], "the compressed part that begins at byte 0 is cut off", AGAIN),
        (unified(b".text", b"x"), "this is a kernel image without an .initrd section", "    help: name the initrd that it is booted with instead, or have ukify make one image of both"),
        (archive({"root.img": b"hsqs" + bytes(9000)}), "most of this image is in root.img (squashfs), which is not looked into: whether safemem is in it cannot be told", "    help: have the image made without dracut's module `squash`: what is appended behind such an image is not reached"),
    ],
)  # fmt: skip
def test_an_image_that_cannot_be_judged(tmp_path: Path, data: bytes, says: str, what: str) -> None:
    """Why, and what to do about it; a file is never called an image without safemem before it was read."""
    image = tmp_path / "image"
    image.write_bytes(data)
    result = CliRunner().invoke(main, ["initramfs", "check", str(image)])
    assert (result.exit_code, result.stderr) == (6, f"safemem: {image}: {says}\nsafemem: {what}\n")


def test_a_program_of_firmware_among_images(tmp_path: Path) -> None:
    """What boots it reads nothing behind it: nobody's verdict on the first is one on all."""
    files = {"u.efi": images.pe([(".linux", b"k"), (".initrd", SAFE)]), "linux": images.bzimage(b"k" * 99), "other.efi": unified(b".text", b"x"), "a": SAFE, "b": b"junk"}  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for names, says in (
        (("u.efi", "b"), "u.efi is a unified kernel image: give it alone"),
        (("a", "u.efi"), "u.efi is a unified kernel image: give it alone"),
        (("linux", "a"), "linux is a kernel, or another program that firmware starts: leave it out"),
        (("other.efi", "a"), "other.efi is a kernel, or another program that firmware starts: leave it out"),
    ):
        result = CliRunner().invoke(main, ["initramfs", "check", *(str(tmp_path / name) for name in names)])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.endswith(f"\nsafemem: {tmp_path}/{says}\n")
    result = CliRunner().invoke(main, ["initramfs", "check", str(tmp_path / "u.efi"), "--root", str(tmp_path)])
    assert result.exit_code == 0, result.output


def test_an_init_of_ones_own(tmp_path: Path) -> None:
    """The documented line is enough, with the archive's own gate beside it; what comes before it nobody has looked at."""
    page = (ROOT / "docs/initramfs.md").read_text().partition("## An init of your own\n")[2]
    line = page.strip().splitlines()[0].strip()
    assert line.startswith("/usr/lib/safemem/boot") and f"`{line}`" in (ROOT / "README.md").read_text()
    image = tmp_path / "image"
    for init, code, says in (
        (f"#!/bin/sh\n{line}\nexec switch_root\n", 0, "called by /init; what that runs before is not looked at"),
        (f"#!/bin/sh\n# {line}\nexec switch_root\n", 1, "nothing in it starts the boot program"),
    ):  # fmt: skip
        image.write_bytes(archive({**base(), **GATES, "init": init.encode()}))
        result = CliRunner().invoke(main, ["initramfs", "check", str(image), "--root", str(tmp_path)])
        assert (result.exit_code, f"\nstarted   {says}\n" in result.stdout) == (code, True), result.stdout
        start = "\nhelp      have the initrd's /init start it (docs/initramfs.md, `An init of your own`), or, where the initrd"
        assert (start in result.stdout) == bool(code)


def test_short_helps_are_whole() -> None:
    """The list of commands, and the options of each, say all that they say; each command says what it ends with."""
    group = main.get_command(None, "initramfs")  # type: ignore[arg-type]
    assert isinstance(group, click.Group)
    for name, command in group.commands.items():
        assert not command.get_short_help_str(60).endswith("..."), name
        assert all(each.help or each.name == "form" for each in command.params if isinstance(each, click.Option)), name
        assert "\n\nExit code: 0 " in (command.help or ""), name


def test_units_go_into_a_folder_that_is_there(tmp_path: Path) -> None:
    """As files do: a folder that is misspelt is no image."""
    for verb in ("tree", "units"):
        result = CliRunner().invoke(main, ["initramfs", verb, str(tmp_path / "no")])
        assert result.exit_code == 2 and "does not exist" in result.stderr and not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "head",
    [bytes(1080) + b"\x53\xef", bytes(1080) + b"\x53\xef" + b"\xff" * 60, b"\xff" * 1080 + b"\x53\xef" + b"\xff" * 60, ext4(blocks=0),
     ext4(blocks=8), ext4(log=7), ext4(log=2), ext4(first=0), ext4(each=0), ext4(magic=b"\x53\xee"),
     b"\x7fELF" + bytes(range(256)) * 4 + bytes(52) + b"\x53\xef"],
)  # fmt: skip
def test_two_bytes_are_no_file_system(head: bytes) -> None:
    """By chance they stand in one file of 65,536, and an image has hundreds: safemem is not in it, and that is told."""
    image = archive({"init": b"#!/bin/sh\n", "usr/lib/modules/x/a.ko": head.ljust(8000, b"\0")})
    assert check.judged(image) == check.Judged(None)


@pytest.mark.needs("mke2fs")
@pytest.mark.parametrize(
    "words", ["-t ext2", "-t ext4", "-t ext4 -b 4096", "-t ext3 -b 2048 -r 0", "-t ext4 -O 64bit -g 256"]
)
def test_what_mke2fs_makes(tmp_path: Path, words: str) -> None:
    """A file system as its program writes it, of any size of blocks, is not looked into."""
    image = tmp_path / "root.img"
    subprocess.run(["mke2fs", "-q", "-F", *words.split(), image, "2048"], check=True, capture_output=True)
    with pytest.raises(check.NotLookedInto, match=r"^most of this image is in root.img \(ext4\)"):
        check.inside(archive({"init": b"#!/bin/sh\n", "root.img": image.read_bytes()}))


def test_exit_of_check(tmp_path: Path) -> None:
    """The command tells 'no' from 'cannot tell', and names what it did not look at beside a unified image."""

    def run(data: bytes) -> tuple[int, str]:
        (tmp_path / "linux.efi").write_bytes(data)
        (tmp_path / "etc/safemem").mkdir(parents=True, exist_ok=True)
        (tmp_path / "etc/safemem/policy.toml").write_bytes(POLICY.read_bytes())
        outcome = CliRunner().invoke(main, ["initramfs", "check", str(tmp_path / "linux.efi"), "--root", str(tmp_path)])
        return outcome.exit_code, outcome.output

    assert run(SAFE)[0] == 0
    code, text = run(SQUASH)
    assert code == 6 and "most of this image is in squashfs-root.img (squashfs), which is not looked into" in text
    code, text = run(profiles(("main", None), ("old", BARE)))
    assert (
        code == 1
        and text
        == f"{tmp_path}/linux.efi: profile old (The old): safemem is not in it\nhelp      {UNIFIED.format(tmp_path)}\n"
    )
    code, text = run(profiles(("main", None), ("old", LATE)))
    assert code == 1 and "\nprofile   old (The old), the worst of 2\n" in text
    assert text.endswith(f"\nhelp      {UNIFIED.format(tmp_path)}\n")
    code, text = run(profiles(("main", None), ("old", SAFE)))
    assert code == 0 and "\nprofiles  2, all alike\n" in text and "profile " not in text
    code, text = run(profiles(("main", None), ("old", OWN_INIT)))
    assert code == 0 and [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("profile   ")] == [
        "systemd",
        "init",
    ]
    code, text = run(profiles(("main", LATE)))
    assert code == 1 and "\nprofile   main (The main)\n" in text
    extra = tmp_path / "linux.efi.extra.d"
    extra.mkdir()
    (extra / "a.addon.efi").write_bytes(images.pe([(".cmdline", b"quiet")]))
    code, text = run(images.pe([(".linux", b"k"), (".initrd", SAFE)]))
    assert code == 0 and f"addon     {extra}/a.addon.efi: .cmdline, which is not looked at" in text
    (extra / "b.addon.efi").write_bytes(images.pe([(".initrd", BARE)]))
    code, text = run(images.pe([(".linux", b"k"), (".initrd", SAFE)]))
    assert code == 6 and f"its addon {extra}/b.addon.efi brings an initrd, which is not looked into" in text


def test_an_entry_without_its_folder() -> None:
    """The kernel makes no folders by itself: what lies in one that is not there is dropped, and that is said."""
    out = io.BytesIO()
    cpio = Archive(out)
    for path, data in {**base(), **units()}.items():
        cpio._entry(path, 0o100644, data)
    cpio.close()
    judged = check.judged(out.getvalue())

    assert judged == check.Judged(
        None,
        "",
        "usr/lib/safemem/policy.json is in an archive, and the kernel drops it: "
        "its folder is not there by then, or something else is in its place",
    )


def test_a_merged_usr() -> None:
    """Where /lib is a link, what is found by both names is one file; what comes below /lib later goes through it."""
    out = io.BytesIO()
    cpio = Archive(out)
    cpio.symlink("lib", "usr/lib")
    cpio.close()
    found = check.inside(out.getvalue() + SAFE)
    assert found is not None and (found.start, found.fault) == ("systemd", "")
    over = unit_only("lib/systemd/system/safemem-decide.service")
    found = check.inside(SAFE + out.getvalue() + over)
    assert found is not None and "does not start /usr/lib/safemem/boot" in found.fault


def unit_only(path: str) -> bytes:
    """Return an archive with one empty file, and no folder for it."""
    out = io.BytesIO()
    cpio = Archive(out)
    cpio._entry(path, 0o100644, b"")
    cpio.close()
    return out.getvalue()


UNIT = "systemd/system/safemem-decide.service"


def linked(files: Mapping[str, bytes | str | None]) -> bytes:
    """Return an archive with these files; text is where a symbolic link leads, None is nothing."""
    out = io.BytesIO()
    cpio = Archive(out)
    for path, data in files.items():
        if isinstance(data, bytes):
            cpio.file(path, data)
        elif data is not None:
            cpio.symlink(path, data)
    cpio.close()
    return out.getvalue()


def test_nothing_inside() -> None:
    """An image without safemem."""
    assert check.inside(archive({"init": b"#!/bin/sh\n"})) is None


@pytest.mark.parametrize(
    ("files", "start", "fault"),
    [
        (units(), "systemd", ""),
        ({**GATES, "init": TOOLS}, "initramfs-tools", ""),
        ({**GATES, "init": TOOLS.replace(b"sleep", b"slee")}, "initramfs-tools", "/init has not all of usr/lib/safemem/gate.sh"),
        ({**GATES, "init": f"#!/bin/sh\n{LINE}\n".encode() + TOOLS}, "initramfs-tools", "/init does not run usr/lib/safemem/gate.sh before init-top"),
        ({**GATES, "init": f"mount\n. /usr/lib/safemem/gate.sh\n{LINE}\n".encode()}, "", "nothing in it starts the boot program"),
        ({**DRACUT, f"{HOOKS}/01-x.sh": b"", f"{HOOKS}/00-b": b""}, "dracut", ""),
        ({**DRACUT, f"{HOOKS}/00-a.sh": b""}, "dracut", "the hook 00-a.sh runs before 00-gate.sh"),
        ({**DRACUT, f"{HOOKS}/00-k.sh": b""}, "dracut", "the hook 00-k.sh runs before 00-proof.sh"),
        ({**DRACUT, f"{HOOKS}/00-proof.sh": None}, "dracut", "the hook 00-proof.sh is not usr/lib/safemem/proof.sh"),
        ({**DRACUT, f"{HOOKS}/00-gate.sh": b""}, "dracut", "the hook 00-gate.sh is not usr/lib/safemem/gate.sh"),
        ({path: data for path, data in units().items() if "udevd" not in path}, "systemd", "systemd-udevd.service.d/50-safemem.conf is missing"),
        ({"init": b"#!/bin/sh\n/usr/lib/safemem/boot; [ $? = 42 ] || exit\n"}, "init", ""),
        ({"init": b"#!/bin/sh\n/usr/lib/safemem/boot || exit 142\n"}, "init", "/init does not look for status 42, which alone lets a boot go on"),
        ({**units(), "usr/lib/systemd/systemd": None, "init": b"#!/bin/sh\n"}, "", "nothing in it starts the boot program"),
        ({"init": b"#!/bin/sh\n"}, "", "nothing in it starts the boot program"),
        ({**units(), f"{PREFIX}/boot": None}, "systemd", "usr/lib/safemem/boot is missing"),
        ({**units(), f"{PREFIX}/boot": b""}, "systemd", "usr/lib/safemem/boot is missing or empty"),
        ({**units(), "init": b"#!/bin/sh\n"}, "systemd", "/init is not systemd"),
        ({**units(), "init": "/usr/lib/systemd/systemd"}, "systemd", ""),
        ({**units(), f"etc/{UNIT}": b""}, "systemd", f"etc/{UNIT} may change"),
        ({**units(), f"run/{UNIT}.d/x.conf": b"[Unit]\nConditionPathExists=/x\n"}, "systemd", "x.conf may change"),
        ({**units(), f"usr/lib/{UNIT}.d/x.conf": b"[Service]\nExecStart=\n"}, "systemd", "x.conf may change"),
        ({**units(), f"lib/{UNIT}": b""}, "systemd", f"lib/{UNIT} may change"),
        ({**units(), f"usr/lib/{UNIT}": b""}, "systemd", "does not start /usr/lib/safemem/boot"),
        ({**units(), f"usr/lib/{UNIT}": b"[Service]\nExecStart=/bin/true\n"}, "systemd", "does not start /usr/lib/safemem/boot"),
        ({**units(), "etc/systemd/system/sysinit.target.d/50-safemem.conf": b""}, "systemd", "50-safemem.conf may change"),
        ({**units(), "usr/lib/systemd/system/sysinit.target.d/50-safemem.conf": b"\n"}, "systemd", "does not wait for"),
    ],
)  # fmt: skip
def test_inside(files: Mapping[str, bytes | str | None], start: str, fault: str) -> None:
    """How it is started, and what would let something come before it."""
    found = check.inside(linked({**base(), **files}))

    assert found is not None
    assert (found.policy, found.digest) == ("live-update-host", load.read(POLICY).digest)
    assert found.start == start
    assert fault in found.fault if fault else found.fault == ""


CALL = "/usr/lib/safemem/boot; [ $? = 42 ] || exit\n"
WITHOUT = {path: data for path, data in units().items() if path != "init"}
SYSTEM, ETC = "usr/lib/systemd/system", "etc/systemd/system"
WAITS = f"etc/{UNIT.rpartition('/')[0]}/sysinit.target.wants"
NO = b"[Unit]\nDefaultDependencies=no\n"
#: What a kernel starts of an image, whose parts come one behind the other: files, what starts the boot program, and why not.
STARTED: dict[str, tuple[list[Mapping[str, bytes | str | None]], str, str]] = {
    # /init as the kernel finds it.
    "systemd: no /init": ([WITHOUT], "systemd", "there is no /init, without which the kernel starts nothing of it"),
    "systemd: a link to nothing": ([{**WITHOUT, "init": "usr/lib/systemd/systemd-x"}], "systemd", "there is no /init, without which the kernel starts nothing of it"),
    "systemd: a link in a circle": ([{**WITHOUT, "init": "sbin/init", "sbin/init": "../init"}], "systemd", "there is no /init, without which the kernel starts nothing of it"),
    "systemd: a folder": ([{**WITHOUT, "init/x": b""}], "systemd", "there is no /init, without which the kernel starts nothing of it"),
    "systemd: an empty /init": ([{**WITHOUT, "init": b""}], "systemd", "/init is empty"),
    "systemd: busybox": ([{**WITHOUT, "init": b"\x7fELF busybox"}], "systemd", "/init is not systemd"),
    "systemd: a link to busybox": ([{**WITHOUT, "init": "bin/busybox", "bin/busybox": b"\x7fELF"}], "systemd", "/init is not systemd"),
    "systemd: a file with its path": ([{**WITHOUT, "init": b"/usr/lib/systemd/systemd"}], "systemd", "/init is not systemd"),
    "systemd: a later /init": ([units(), {"init": b"\x7fELF u-root"}], "systemd", "/init is not systemd"),
    "systemd: a later systemd": ([{**WITHOUT, "init": "usr/lib/systemd/systemd"}, {"usr/lib/systemd/systemd": b"\x7fELF 2"}], "systemd", ""),
    "systemd: mkosi": ([{**WITHOUT, "init": "usr/lib/systemd/systemd"}], "systemd", ""),
    "systemd: mkinitcpio": ([{**WITHOUT, "init": "/usr/lib/systemd/systemd"}], "systemd", ""),
    "systemd: Buildroot": ([{**WITHOUT, "init": "/sbin/init", "sbin/init": "../lib/systemd/systemd", "lib": "usr/lib"}], "systemd", ""),
    "systemd: folders that are links": ([{**WITHOUT, "sbin": "usr/sbin", "usr/sbin/init": "../lib/systemd/systemd", "init": "sbin/init"}], "systemd", ""),
    "systemd: not merged": ([{**WITHOUT, "usr/lib/systemd/systemd": None, "lib/systemd/systemd": b"\x7fELF", "init": "/lib/systemd/systemd"}], "systemd", ""),
    # Hooks of dracut, and who runs them.
    "dracut": ([DRACUT], "dracut", ""),
    "dracut: no /init": ([{**GATES, **FIRST}], "dracut", "there is no /init, without which the kernel starts nothing of it"),
    "dracut: a later script": ([DRACUT, {"init": b"#!/bin/sh\nmodprobe virtio_mem\nexec switch_root\n"}], "dracut", "/init does not run the hooks of dracut"),
    "dracut: a later program": ([DRACUT, {"init": b"\x7fELF u-root"}], "dracut", "/init does not run the hooks of dracut"),
    "dracut: systemd, and no units": ([DRACUT, SYSTEMD], "dracut", "/init is systemd, which runs hooks too late"),
    "dracut: systemd as well": ([WITHOUT, DRACUT], "dracut", ""),
    "dracut: in a comment": ([{**DRACUT, "init": INIT.replace(b"source_hook", b"# source_hook")}], "dracut", "/init does not run the hooks of dracut"),
    "dracut: another stage": ([{**DRACUT, "init": INIT.replace(b"source_hook cmdline", b"source_hook mount")}], "dracut", "/init does not run the hooks of dracut"),
    "dracut: sometimes": ([{**DRACUT, "init": INIT.replace(b"source_hook", b"[ $x ] && source_hook")}], "dracut", "/init does not run the hooks of dracut"),
    "dracut: udev first": ([{**DRACUT, "init": INIT.replace(b"source_hook", b"/usr/lib/systemd/systemd-udevd --daemon\nsource_hook")}], "dracut", "/init has `systemd-udevd` before the hooks of dracut"),
    # initramfs-tools.
    "initramfs-tools: modprobe first": ([{**GATES, "init": b"#!/bin/sh\nmodprobe -a virtio_mem\n" + TOOLS}], "initramfs-tools", "/init has `modprobe` before usr/lib/safemem/gate.sh"),
    "initramfs-tools: exec first": ([{**GATES, "init": b"#!/bin/sh\nif [ -x /override ]; then exec /override; fi\n" + TOOLS}], "initramfs-tools", "/init has `exec` before usr/lib/safemem/gate.sh"),
    "initramfs-tools: exec of a log": ([{**GATES, "init": b'#!/bin/sh\nif [ "$l" ]; then\nexec >"$l" 2>&1\nfi\n' + TOOLS}], "initramfs-tools", ""),
    **{f"initramfs-tools: {text}": ([{**GATES, "init": f"#!/bin/sh\n{text}\n".encode() + TOOLS}], "initramfs-tools", "/init does not run usr/lib/safemem/gate.sh before init-top")
       for text in (f"{LINE} # x", 'run_scripts "/scripts/init-top"', f"maybe_break top && {LINE}", "load_modules", "run_scripts\t/scripts/init-top", ". /scripts/init-top/ORDER", f"{{ {LINE}; }}")},
    **{f"initramfs-tools: {text!r}": ([{**GATES, "init": f"#!/bin/sh\n{text}".encode() + TOOLS}], "initramfs-tools", "/init does not run usr/lib/safemem/gate.sh in every boot")
       for text in ("if false; then\n", "f() {\n", ": <<EOF\n", "case x in y)\n", "x='\n", "(\n", "while false; do\n")},
    "initramfs-tools: settings": ([{**GATES, "init": TOOLS, "conf/conf.d/resume": b"RESUME=none\n", "conf/arch.conf": b"DPKG_ARCH=amd64\n", "conf/modules": b"virtio_mem\n"}], "initramfs-tools", ""),
    "initramfs-tools: settings that load": ([{**GATES, "init": TOOLS}, {"conf/conf.d/x": b"modprobe virtio_mem\n"}], "initramfs-tools", "conf/conf.d/x has `modprobe`, and /init reads it before usr/lib/safemem/gate.sh"),
    "dracut: settings": ([{**DRACUT, "etc/conf.d/systemd.conf": b'systemdutildir="/usr/lib/systemd"\n'}], "dracut", ""),
    "dracut: settings that load": ([DRACUT, {"etc/conf.d/x.conf": b"insmod /x.ko\n"}], "dracut", "etc/conf.d/x.conf has `insmod`, and /init reads it before usr/lib/safemem/gate.sh"),
    "initramfs-tools: no shell": ([{**GATES, "init": TOOLS.replace(b"#!/bin/sh", b"#!/usr/bin/python3")}], "initramfs-tools", "/init is no shell script that the kernel can start"),
    "initramfs-tools: a later program": ([{**GATES, "init": TOOLS}, {"init": b"\x7fELF"}], "", "nothing in it starts the boot program"),
    # An init of one's own.
    **{f"init: {text!r}": ([{"init": f"#!/bin/sh\n{text}".encode()}], start, fault) for text, start, fault in (
        (CALL, "init", ""),
        (f"mount -t proc proc /proc\nexec >/dev/console 2>&1\n{CALL}modprobe x\nexec switch_root /r /init\n", "init", ""),
        ("/usr/lib/safemem/boot </dev/null || status=$?\ncase $status in\n0) ;;\n42) ;;\n*) halt ;;\nesac\n", "init", ""),
        ("/usr/lib/safemem/boot\nif [ \"$?\" -ne 42 ]; then\nexit\nfi\n", "init", ""),
        ("/usr/lib/safemem/boot; s=$?; echo $s; test \"$s\" = 42 || exit\n", "init", ""),
        (GATES[GATE].decode(), "init", ""),
        (f"# {CALL}modprobe virtio_mem\n", "", "nothing in it starts the boot program"),
        (f"echo {CALL}", "", "nothing in it starts the boot program"),
        (f": '{CALL}'\n", "", "nothing in it starts the boot program"),
        (f"cat <<EOF\n{CALL}EOF\n", "", "nothing in it starts the boot program"),
        (f"modprobe virtio_mem\n{CALL}", "init", "/init has `modprobe` before it calls /usr/lib/safemem/boot"),
        (f"mount x && busybox insmod /x.ko\n{CALL}", "init", "/init has `insmod` before it calls /usr/lib/safemem/boot"),
        (f"sh -c 'modprobe x'\n{CALL}", "init", "/init has `modprobe` before it calls /usr/lib/safemem/boot"),
        (f"/sbin/udevd --daemon\n{CALL}", "init", "/init has `udevd` before it calls /usr/lib/safemem/boot"),
        (f"udevadm trigger\n{CALL}", "init", "/init has `udevadm trigger` before it calls /usr/lib/safemem/boot"),
        (f"exec /sbin/init\n{CALL}", "init", "/init has `exec` before it calls /usr/lib/safemem/boot"),
        (f"echo online >/sys/devices/system/memory/auto_online_blocks\n{CALL}", "init", "/init has `/sys/devices/system/memory` before it calls /usr/lib/safemem/boot"),
        (f"if [ $x ]; then\n{CALL}fi\n", "init", "/init calls /usr/lib/safemem/boot only under a condition, or in a function"),
        (f"[ -x /usr/lib/safemem/boot ] && {CALL}", "init", "/init calls /usr/lib/safemem/boot only under a condition, or in a function"),
        (f"decide() {{\n{CALL}}}\n", "init", "/init calls /usr/lib/safemem/boot only under a condition, or in a function"),
        *((f"/usr/lib/safemem/boot{rest}\n", "init", "/init does not look for status 42, which alone lets a boot go on") for rest in (
            "", " || true\nsleep 42", "; sleep 42", " || exit 142", "; [ $? = 42 ]", "; [ $? = 42 ] || true", "; echo; [ $? = 42 ] || exit",
            " & [ $? = 42 ] || exit", " | cat; [ $? = 42 ] || exit", "; [ $? = 0 ] || exit # 42", "; case $? in 0) ;; *) sleep 42;; esac",
        )),
    )},
    "init: a program": ([{"init": b"\x7fELF /usr/lib/safemem/boot 42"}], "init", "/init is no shell script: whether it calls /usr/lib/safemem/boot first cannot be told"),
    "init: a link to a script": ([{"init": "sbin/init", "sbin/init": b"#!/bin/sh\n" + CALL.encode()}], "init", ""),
    # What other units and drop-ins do.
    "drop-in: of all services": ([units(), {f"{SYSTEM}/service.d/10-x.conf": b"[Unit]\nConditionKernelCommandLine=foo\n"}], "systemd", f"{SYSTEM}/service.d/10-x.conf may change what safemem-decide.service does"),
    "drop-in: of all services, from /etc": ([units(), {f"{ETC}/service.d/10-x.conf": b"[Service]\nExecStart=\nExecStart=/bin/true\n"}], "systemd", f"{ETC}/service.d/10-x.conf may change what safemem-decide.service does"),
    "drop-in: Fedora's": ([units(), {f"{SYSTEM}/service.d/10-timeout-abort.conf": b"# see\n[Service]\nTimeoutStopFailureMode=abort\n"}], "systemd", ""),
    "drop-in: no file of that kind": ([units(), {f"{SYSTEM}/service.d/README": b"ExecStart=\n"}], "systemd", ""),
    "drop-in: by prefix": ([units(), {f"{SYSTEM}/safemem-.service.d/10-x.conf": b"[Service]\nExecStart=\n"}], "systemd", f"{SYSTEM}/safemem-.service.d/10-x.conf may change what safemem-decide.service does"),
    "drop-in: assertions": ([units(), {f"{ETC}/systemd-udevd.service.d/60.conf": b"[Unit]\nAssertFileNotEmpty=\n"}], "systemd", f"{ETC}/systemd-udevd.service.d/60.conf may change what safemem-decide.service does"),
    "drop-in: Debian's of udev": ([units(), {f"{SYSTEM}/systemd-udevd.service.d/syscall-architecture.conf": b"[Service]\nSystemCallArchitectures=native\n"}], "systemd", ""),
    **{f"unit: {folder}": ([units(), {f"{folder}/safemem-decide.service": what}], "systemd", f"{folder}/safemem-decide.service may change what safemem-decide.service does")
       for folder, what in ((f"{ETC}.control", b""), ("run/systemd/transient", b""), ("run/systemd/generator.early", b""), (ETC, "/dev/null"), (f"{ETC}.attached", b""), ("usr/local/lib/systemd/system", b""))},
    "early: modprobe": ([units(), {f"{SYSTEM}/m.service": NO + b"[Service]\nExecStart=/sbin/modprobe -a loop virtio_mem\n", f"{WAITS}/m.service": f"/{SYSTEM}/m.service"}], "systemd", f"{SYSTEM}/m.service may load a driver before safemem-decide.service"),
    "early: by a shell": ([units(), {f"{ETC}/m.service": NO + b"[Service]\nExecStart=/bin/sh -c 'insmod /x/dax_hmem.ko'\n"}], "systemd", f"{ETC}/m.service may load a driver before safemem-decide.service"),
    "early: a drop-in": ([units(), {f"{SYSTEM}/j.service": NO, f"{SYSTEM}/j.service.d/a.conf": b"[Service]\nExecStartPre=modprobe kmem\n"}], "systemd", f"{SYSTEM}/j.service.d/a.conf may load a driver before safemem-decide.service"),
    "early: udev": ([units(), {f"{SYSTEM}/m.service": NO + b"[Service]\nExecStart=/bin/udevadm trigger\n"}], "systemd", f"{SYSTEM}/m.service may load a driver before safemem-decide.service"),
    "early: an instance": ([units(), {f"{WAITS}/modprobe@virtio_mem.service": f"/{SYSTEM}/modprobe@.service"}], "systemd", f"{WAITS}/modprobe@virtio_mem.service may load a driver before safemem-decide.service"),
    "early: wants an instance": ([units(), {f"{SYSTEM}/a.mount": b"[Unit]\nWants=modprobe@dax.service\n"}], "systemd", f"{SYSTEM}/a.mount may load a driver before safemem-decide.service"),
    "early: after ours": ([units(), {f"{SYSTEM}/m.service": NO + b"After=safemem-decide.service\n[Service]\nExecStart=/sbin/modprobe virtio_mem\n"}], "systemd", ""),
    "early: after sysinit": ([units(), {f"{SYSTEM}/m.service": b"[Service]\nExecStart=/sbin/modprobe virtio_mem\n"}], "systemd", ""),
    "early: other modules": ([units(), {f"{SYSTEM}/multipathd.service": NO + b"[Service]\nExecStartPre=-/sbin/modprobe -a scsi_dh_alua dm-multipath\n", f"{SYSTEM}/modprobe@.service": NO + b"[Service]\nExecStart=-/sbin/modprobe -abq %i\n",
        f"{SYSTEM}/sys-kernel-config.mount": b"[Unit]\nWants=modprobe@configfs.service\n"}], "systemd", ""),
    # The program itself.
    "boot: a link": ([units(), {f"{PREFIX}/boot": "/bin/true", "bin/true": b"#!/bin/sh\n"}], "systemd", "usr/lib/safemem/boot is a link, and safemem makes none"),
    "boot: a link to nothing": ([units(), {f"{PREFIX}/boot": "/nowhere"}], "systemd", "usr/lib/safemem/boot is a link, and safemem makes none"),
    "boot: a program": ([units(), {f"{PREFIX}/boot": b"\x7fELF true"}], "systemd", "usr/lib/safemem/boot is not the wrapper that safemem puts there"),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTED)
def test_what_a_kernel_starts(name: str) -> None:
    """/init through its links, as the last part of an image has it, is what starts the boot program first, or something else is said."""
    parts, start, fault = STARTED[name]
    found = check.inside(b"".join(map(linked, [base(), *parts])))
    assert found is not None and (found.start, found.fault) == (start, fault)


@pytest.mark.parametrize(
    ("cmdline", "fault"),
    [
        ("quiet init=/bin/sh", ""), ("rdinit=/init", ""), ("rdinit=/usr/lib/systemd/systemd", ""), ("rdinit=/x rdinit=/init", ""),
        ("rdinit=/bin/sh", "rdinit=/bin/sh on its command line: that is not systemd"),
        ("quiet rdinit=/usr/bin/sh ro", "rdinit=/usr/bin/sh on its command line: that is not systemd"),
        ("rd.systemd.mask=systemd-tmpfiles-setup.service rd.systemd.unit=initrd.target systemd.mask=safemem-decide.service", ""),
        ("rd.systemd.mask=safemem-decide.service", "rd.systemd.mask=safemem-decide.service on its command line: systemd may not start safemem-decide.service"),
        ("rd.systemd.unit=emergency.target", "rd.systemd.unit=emergency.target on its command line: systemd may not start safemem-decide.service"),
        ("rdinit=/none", "rdinit=/none on its command line: there is no /none, without which the kernel starts nothing of it"),
        ("rdinit=", "rdinit= on its command line: there is no /, without which the kernel starts nothing of it"),
    ],
)  # fmt: skip
def test_rdinit_of_a_unified_image(cmdline: str, fault: str) -> None:
    """The kernel starts what its command line names in place of /init; init= is for later."""
    more: dict[str, bytes | str | None] = {"bin": "usr/bin", "usr/bin/sh": b"\x7fELF sh"}
    parts = [(".cmdline", cmdline.encode() + b"\0"), (".linux", b"k"), (".initrd", SAFE + linked(more))]
    judged = check.judged(images.pe(parts))
    assert judged.inside is not None and judged.inside.fault == fault
    # Of a profile, its own counts; the base's otherwise.
    other = [(".profile", b"ID=main\n"), (".profile", b"ID=other\n"), (".cmdline", b"quiet")]
    judged = check.judged(images.pe(parts + other))
    assert judged.inside is not None and (judged.profile, judged.inside.fault) == ("main", fault)


def test_addons(tmp_path: Path) -> None:
    """They lie beside an image by its name with and without the count of tries, and may bring what starts in its place."""
    image = tmp_path / "foo+3-0.efi"
    for name in ("foo+3-0.efi.extra.d", "foo.efi.extra.d"):
        (tmp_path / name).mkdir()
    plain, counted = (tmp_path / f"{name}.extra.d/x.addon.efi" for name in ("foo.efi", "foo+3-0.efi"))
    plain.write_bytes(images.pe([(".initrd", BARE)]))
    assert uki.untold(uki.addons(image)) == (
        f"its addon {plain} brings an initrd, which is not looked into: what is started first cannot be told"
    )
    assert uki.addons(tmp_path / "foo+2.efi") == uki.addons(tmp_path / "foo.efi") == uki.addons(image)
    for line, why in (
        (
            b"quiet rdinit=/bin/sh\0",
            f"its addon {counted} brings rdinit=/bin/sh, which the kernel starts in place of /init",
        ),
        (
            b"rd.systemd.unit=rescue.target",
            f"its addon {counted} brings rd.systemd.unit=rescue.target, by which systemd may not start safemem",
        ),
        (b"quiet init=/bin/sh rdinit=/init", ""),
    ):
        plain.unlink(missing_ok=True)
        counted.write_bytes(images.pe([(".cmdline", line)]))
        assert uki.untold(uki.addons(image)) == why
        assert uki.addons(tmp_path / "foo.efi") == ()


def test_images_that_have_none() -> None:
    """A program of firmware without one, and a stub that has only the path of its initrd, are called so."""
    assert check.judged(profiles(("none", b""))).why == "it has no .initrd section"
    parts = [
        (".linux", b"\\EFI\\nixos\\k.efi"),
        (".linuxh", bytes(32)),
        (".initrd", b"\\EFI\\nixos\\i.efi"),
        (".initrdh", bytes(32)),
    ]
    with pytest.raises(packed.Unreadable) as error:
        check.judged(images.pe(parts))
    assert str(error.value) == (
        r"this is a stub of Lanzaboote, and its initrd is the file \EFI\nixos\i.efi on the ESP: look into that"
    )


def test_how_it_is_started_in_words() -> None:
    """Of an init of one's own nobody has looked at what runs before."""
    own, known = check.inside(archive({**base(), "init": b"#!/bin/sh\n" + CALL.encode()})), check.inside(SAFE)
    assert own is not None and check.started(own) == "called by /init; what that runs before is not looked at"
    assert known is not None and check.started(known) == "by systemd, before everything else"


@pytest.mark.parametrize(
    ("action", "line"),
    [("panic", "OnFailure=safemem-panic.service"), ("reboot", "FailureAction=reboot-immediate"),
     ("halt", "FailureAction=halt-immediate")],
)  # fmt: skip
def test_unit(action: str, line: str) -> None:
    """The unit ends the boot as the policy says, is no unit that may fail or be skipped, and comes before udev."""
    text = units(action)["usr/lib/systemd/system/safemem-decide.service"].decode()
    lines = [item for item in text.splitlines() if not item.startswith("#")]

    assert line in lines and "@" not in text
    assert "ExecStart=/usr/lib/safemem/boot" in lines and "SuccessExitStatus=42" in lines
    assert "ExecStartPost=/bin/sh -c '[ -s /run/safemem/passed ]'" in lines
    for name in on_failure.GUARDED:
        drop = units(action)[f"usr/lib/systemd/system/{name}.d/50-safemem.conf"].decode().splitlines()
        assert {"Requires=safemem-decide.service", "AssertFileNotEmpty=/run/safemem/passed"} < set(drop)
    assert not [item for item in lines if item.startswith("Condition")]
    before = {name for item in lines if item.startswith("Before=") for name in item.removeprefix("Before=").split()}
    assert {*on_failure.GUARDED, "dracut-cmdline.service", "dracut-pre-udev.service"} <= before


def test_every_action_has_its_means() -> None:
    """What the language can say for `on_failure` ends a boot in shell and in units too."""
    assert set(on_failure.UNIT_LINES) == set(KEYS) == set(FINAL)
    for action in FINAL:
        assert (
            on_failure.gate(Failure(action))
            and on_failure.proof(Failure(action))
            and on_failure.units(Failure(action))
            and on_failure.wrapper(Failure(action))
        )


def test_scripts_that_lost_a_mark() -> None:
    """A value that finds no place is no script with somebody else's `on_failure` in it."""
    assert on_failure.with_value(b"A='x'\n  B='y'\n", "s", "B", "it's") == b"A='x'\n  B='it'\\''s'\n"
    for script in (b"A='x'\n", b"B='x'\nB='y'\n", b"B=x\n"):
        with pytest.raises(BuildError, match="s has no line B='…' to replace, or more than one"):
            on_failure.with_value(script, "s", "B", "")


@pytest.mark.needs("systemd-analyze")
def test_units_verify(tmp_path: Path) -> None:
    """systemd itself understands every line."""
    for path, data in on_failure.units(Failure("reboot")).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data.replace(b"/usr/lib/safemem/boot", b"/bin/true"))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "safemem-decide.service", tmp_path / "safemem-panic.service"],
        capture_output=True, text=True,
    )  # fmt: skip

    assert not [line for line in result.stderr.splitlines() if "safemem-" in line], result.stderr


def hook(tmp_path: Path, init: str) -> subprocess.CompletedProcess[str]:
    """Run the hook of initramfs-tools on a tree with this /init, with a `safemem` that only notes its words."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/safemem").write_text('#!/bin/sh\necho "$*" >"$DESTDIR/called"\n')
    (tmp_path / f"tree/{GATE}").parent.mkdir(parents=True)
    (tmp_path / f"tree/{GATE}").write_bytes(GATES[GATE])
    (tmp_path / "bin/safemem").chmod(0o755)
    (tmp_path / "tree/init").write_text(init)
    (tmp_path / "tree/init").chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "DESTDIR": str(tmp_path / "tree")}
    return subprocess.run(["sh", HOOK], env=env, capture_output=True, text=True)


def test_hook(tmp_path: Path) -> None:
    """All of the gate stands right before the line that runs init-top, and `inside` finds it there."""
    odd = "  a\\b 'c' \t\n%s\n"
    result = hook(tmp_path, f"#!/bin/sh\n{odd}{LINE}\nload_modules\n")
    init = (tmp_path / "tree/init").read_bytes()

    assert result.returncode == 0, result.stderr
    assert init.decode() == f"#!/bin/sh\n{odd}{GATES[GATE].decode()}{LINE}\nload_modules\n"
    assert os.access(tmp_path / "tree/init", os.X_OK) and not (tmp_path / "tree/init.safemem").exists()
    assert (tmp_path / "tree/called").read_text() == f"initramfs tree {tmp_path / 'tree'}\n"
    found = check.inside(archive({**base(), **GATES, "init": init}))
    assert found is not None and (found.start, found.fault) == ("initramfs-tools", "")


@pytest.mark.parametrize("init", ["load_modules\n", f"{LINE}\n{LINE}\n"])
def test_hook_fails_on_an_init_it_does_not_know(tmp_path: Path, init: str) -> None:
    """No image rather than one without the gate."""
    result = hook(tmp_path, init)

    assert result.returncode == 1
    assert "this initramfs-tools is not known" in result.stderr
    assert (tmp_path / "tree/init").read_text() == init


#: What the wrapper ends with, and what becomes of the boot.
WRAPPERS = {
    None: False,
    "exit 42": True,
    "": False,
    "exit 0": False,
    "exit 4": False,
    "exit 1": False,
    "kill -9 $$": False,
}


def moved(folder: Path, data: bytes) -> str:
    """Return a gate whose files are in `folder`, with each key on a line of its own, that stops instead of sleeping."""
    text = data.decode()
    for path in ("/usr/lib/safemem/boot", "/run/safemem/passed", "/dev/kmsg", "/proc/sysrq-trigger"):
        text = text.replace(path, f"{folder}/{path.rpartition('/')[2]}")
    return text.replace(f">{folder}/sysrq", f">>{folder}/sysrq").replace("sleep 3600 2>&-", "echo stops; exit 9")


def put_wrapper(folder: Path, script: str | None) -> None:
    """Put a wrapper where the moved gate looks for one."""
    (folder / "boot").unlink(missing_ok=True)
    if script is not None:
        (folder / "boot").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "boot").chmod(0o755)


@pytest.mark.parametrize("words", ["", "set -e;", "set -u;"])
@pytest.mark.parametrize(("action", "keys"), [("panic", "c b"), ("reboot", "b c"), ("halt", "")])
def test_gate(tmp_path: Path, action: str, keys: str, words: str) -> None:
    """Returns to the init that it is in if the wrapper ended with 42; otherwise writes the keys and never returns."""
    (tmp_path / "gate.sh").write_text(moved(tmp_path, on_failure.gate(Failure(action))))
    trigger = tmp_path / "sysrq-trigger"
    for wrapper, on in WRAPPERS.items():
        put_wrapper(tmp_path, wrapper)
        trigger.unlink(missing_ok=True)
        made = subprocess.run(
            ["sh", "-c", f"{words} . {tmp_path}/gate.sh; echo goes on"], capture_output=True, text=True
        )
        assert (made.returncode, made.stdout) == ((0, "goes on\n") if on else (9, "stops\n")), wrapper
        assert (trigger.read_text().split() if trigger.exists() else []) == ([] if on else keys.split())


SHELLS = [pytest.param(name, marks=pytest.mark.needs(name.split()[0])) for name in ("dash", "busybox sh", "bash")]


@pytest.mark.parametrize("name", SHELLS)
def test_an_init_that_is_cut_off(tmp_path: Path, name: str) -> None:
    """The gate in /init of initramfs-tools, cut off at every byte: whatever is left goes on to init-top only if all of it is there."""
    init = f"run_scripts() {{ echo goes on; }}\n{moved(tmp_path, GATES[GATE])}{LINE}\n"
    put_wrapper(tmp_path, "")
    script = tmp_path / "init"
    for at in range(0, len(init), 3):
        script.write_text(init[:at])
        assert subprocess.run([*name.split(), script], capture_output=True).stdout in (b"", b"stops\n"), init[:at]
    put_wrapper(tmp_path, "exit 42")
    script.write_text(init)
    assert subprocess.run([*name.split(), script], capture_output=True).stdout == b"goes on\n"


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize("cut", ["gate", "proof"])
def test_hooks_that_are_cut_off(tmp_path: Path, name: str, cut: str) -> None:
    """dracut sources its hooks: with either of the two first ones cut off at every byte, no boot goes on without a decision."""
    texts = {"gate": moved(tmp_path, GATES[GATE]), "proof": moved(tmp_path, GATES[PROOF])}
    put_wrapper(tmp_path, "")
    words = [*name.split(), "-c", f". {tmp_path}/gate.sh; . {tmp_path}/proof.sh; echo goes on"]
    for at in range(0, len(texts[cut]) - 1, 3):
        for hook, text in texts.items():
            (tmp_path / f"{hook}.sh").write_text(text[:at] if hook == cut else text)
        result = subprocess.run(words, capture_output=True, text=True)
        assert "goes on" not in result.stdout, texts[cut][:at]
    for hook, text in texts.items():
        (tmp_path / f"{hook}.sh").write_text(text)
    put_wrapper(tmp_path, f"echo yes >{tmp_path}/passed; exit 42")
    assert subprocess.run(words, capture_output=True, text=True).stdout == "goes on\n"


def test_tree_and_units(tmp_path: Path) -> None:
    """The commands that the hooks call: files and units, with the operator's policy."""
    mine = tmp_path / "policy.toml"
    text = POLICY.read_text().replace('action = "panic"', 'action = "reboot"')
    mine.write_text(text.replace("\nname", '\naccept_errors = ["reboot-loop"]\nname', 1))
    if os.geteuid():
        pytest.skip("only root's policies are taken: run this as root")
    if operator_refuses(mine):
        pytest.skip(f"{tmp_path} can be written by others")
    (tmp_path / "tree/usr/lib/systemd/system").mkdir(parents=True)
    runner = CliRunner()
    made = runner.invoke(main, ["initramfs", "tree", str(tmp_path / "tree"), "--policy", str(mine)])
    also = runner.invoke(main, ["initramfs", "units", str(tmp_path / "tree/usr/lib/systemd/system"), "--policy", str(mine)])  # fmt: skip

    assert (made.exit_code, also.exit_code) == (0, 0), made.output + also.output
    files = {str(path.relative_to(tmp_path / "tree")): path.read_bytes() for path in (tmp_path / "tree").rglob("*") if path.is_file()}  # fmt: skip
    assert (tmp_path / "tree/usr/lib/safemem/boot").stat().st_mode & 0o777 == 0o755
    found = check.inside(archive({**files, **SYSTEMD}))
    assert found is not None and (found.start, found.fault, found.digest) == ("systemd", "", load.read(mine).digest)
    assert found.proven is not None and found.proven.policies == (proven.Proof(found.digest, 96, ("reboot-loop",)),)

    mine.chmod(0o664)
    refused = runner.invoke(main, ["initramfs", "tree", str(tmp_path / "tree"), "--policy", str(mine)])
    assert refused.exit_code == 3
    assert f"refused, because the file {mine} has mode 0664" in refused.output


def operator_refuses(file: Path) -> bool:
    """Return whether `file` could be written by others for a reason that is not ours."""
    try:
        installed.trusted(file)
    except installed.Untrusted:
        return True
    return False


def test_an_image_carries_the_machine_class_if_a_rule_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file that the running system has, as only root can have written it; that there is none is said."""
    asks = policy(Rule("compute", "online-all", when("machine_class", Term("is", "compute"))), otherwise="panic")
    (tmp_path / "etc/safemem").mkdir(parents=True)

    assert initramfs.machine_class([policy(otherwise="panic"), asks], str(tmp_path)) == {}
    assert "rule `compute` asks for machine_class, which this image leaves unknown" in capsys.readouterr().err
    file = tmp_path / "etc/safemem/machine-class"
    file.write_text("compute\n")
    assert initramfs.machine_class([policy(otherwise="panic"), asks], str(tmp_path)) == {
        "etc/safemem/machine-class": b"compute\n"
    }
    assert initramfs.machine_class([policy(otherwise="panic")], str(tmp_path)) == {}
    file.chmod(0o666)
    with pytest.raises(installed.Untrusted):
        initramfs.machine_class([asks], str(tmp_path))
