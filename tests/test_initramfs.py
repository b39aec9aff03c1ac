# SPDX-License-Identifier: MIT
"""What goes into a distribution's own initramfs, and what is found in one."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
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
from tests.kit import POLICY, archive, base, policy, units, when

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "safemem/initramfs/files"
HOOK = FILES / "initramfs-tools/safemem"
LINE = "run_scripts /scripts/init-top"
#: What initramfs with a shell for an init have of ours.
GATES = {GATE: on_failure.gate(Failure("panic")), PROOF: on_failure.proof(Failure("panic"))}
HOOKS = "var/lib/dracut/hooks/cmdline"
FIRST = {f"{HOOKS}/00-gate.sh": GATES[GATE], f"{HOOKS}/00-proof.sh": GATES[PROOF]}
TOOLS = b"mount\n" + GATES[GATE] + f"{LINE}\n".encode()


def unified(section: bytes, data: bytes) -> bytes:
    """Return a kernel image in the PE format with one section."""
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 0xF0, 0)
    start = 0x200
    table = section.ljust(8, b"\0") + struct.pack("<IIII", len(data), 0x1000, -(-len(data) // 512) * 512, start)
    return (head + coff + bytes(0xF0) + table.ljust(40, b"\0")).ljust(start, b"\0") + data + bytes(-len(data) % 512)


def test_unified_kernel_image() -> None:
    """Its initrd is read, an appended archive with units included; one that is cut off or has none is said to be."""
    data = archive({"usr/lib/systemd/systemd": b""}) + archive({**base(), **on_failure.unit_files(Failure("panic"))})
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
INIT = archive({**base(), "init": b"#!/bin/sh\n/usr/lib/safemem/boot; [ $? = 42 ] || exit\n"})
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


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("squashfs-root.img", b"hsqs", "squashfs"), ("squash-root.img", b"sqsh", "squashfs"), ("squash/root.img", b"hsqs", "squashfs"),
        ("erofs-root.img", bytes(1024) + b"\xe2\xe1\xf5\xe0", "erofs"), ("root.squashfs", b"hsqs", "squashfs"),
        ("any/name", bytes(1080) + b"\x53\xef", "ext4"),
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
        (archive({"root.img": b"hsqs" + bytes(9000)}), "most of this image is in root.img (squashfs), which is not looked into: whether safemem is in it cannot be told", "    help: have the image made without dracut's module `squash`, or append the archive of `safemem initramfs cpio`"),
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
        (f"#!/bin/sh\n{line}\nexec switch_root\n", 0, "by an /init that safemem does not know: what it does before that is not looked at"),
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
    code, text = run(profiles(("main", None), ("old", INIT)))
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


def test_nothing_inside() -> None:
    """An image without safemem."""
    assert check.inside(archive({"init": b"#!/bin/sh\n"})) is None


@pytest.mark.parametrize(
    ("files", "start", "fault"),
    [
        (units(), "systemd", ""),
        ({**GATES, "init": TOOLS}, "initramfs-tools", ""),
        ({**GATES, "init": TOOLS.replace(b"sleep", b"slee")}, "initramfs-tools", "/init has not all of usr/lib/safemem/gate.sh"),
        ({**GATES, "init": f"{LINE}\n".encode() + TOOLS}, "initramfs-tools", "/init does not run usr/lib/safemem/gate.sh before init-top"),
        ({**GATES, "init": f"mount\n. /usr/lib/safemem/gate.sh\n{LINE}\n".encode()}, "", "nothing in it starts the boot program"),
        ({**GATES, **FIRST, f"{HOOKS}/01-x.sh": b"", f"{HOOKS}/00-b": b""}, "dracut", ""),
        ({**GATES, **FIRST, f"{HOOKS}/00-a.sh": b""}, "dracut", "the hook 00-a.sh runs before 00-gate.sh"),
        ({**GATES, **FIRST, f"{HOOKS}/00-k.sh": b""}, "dracut", "the hook 00-k.sh runs before 00-proof.sh"),
        ({**GATES, **FIRST, f"{HOOKS}/00-proof.sh": None}, "dracut", "the hook 00-proof.sh is not usr/lib/safemem/proof.sh"),
        ({**GATES, **FIRST, f"{HOOKS}/00-gate.sh": b""}, "dracut", "the hook 00-gate.sh is not usr/lib/safemem/gate.sh"),
        ({path: data for path, data in units().items() if "udevd" not in path}, "systemd", "systemd-udevd.service.d/50-safemem.conf is missing"),
        ({"init": b"#!/bin/sh\n/usr/lib/safemem/boot; [ $? = 42 ] || exit\n"}, "init", ""),
        ({"init": b"#!/bin/sh\n/usr/lib/safemem/boot || exit 142\n"}, "init", "/init does not look for status 42, which alone lets a boot go on"),
        ({**units(), "usr/lib/systemd/systemd": None, "init": b"#!/bin/sh\n"}, "", "nothing in it starts the boot program"),
        ({"init": b"#!/bin/sh\n"}, "", "nothing in it starts the boot program"),
        ({**units(), f"{PREFIX}/boot": None}, "systemd", "usr/lib/safemem/boot is missing"),
        ({**units(), f"{PREFIX}/boot": b""}, "systemd", "usr/lib/safemem/boot is missing or empty"),
        ({**units(), "init": b"#!/bin/sh\n"}, "systemd", "/init is not systemd"),
        ({**units(), "init": b"/usr/lib/systemd/systemd"}, "systemd", ""),
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
def test_inside(files: dict[str, bytes | None], start: str, fault: str) -> None:
    """How it is started, and what would let something come before it."""
    everything = {path: data for path, data in {**base(), **files}.items() if data is not None}
    found = check.inside(archive(everything))

    assert found is not None
    assert (found.policy, found.digest) == ("live-update-host", load.read(POLICY).digest)
    assert found.start == start
    assert fault in found.fault if fault else found.fault == ""


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
    found = check.inside(archive({**files, "usr/lib/systemd/systemd": b""}))
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
