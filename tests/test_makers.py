# SPDX-License-Identifier: MIT
"""Images made by the distribution's own command, here one that makes what the test has put aside for it."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from safemem.boot import compiled
from safemem.cli import main
from safemem.initramfs import bootplaces, check, makers, proven
from safemem.initramfs import build as image_of
from safemem.initramfs.items import shipped
from safemem.policy import compiler, load
from tests.images import pe
from tests.kit import POLICY, archive, base, proof, units

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter another root")
MINIMAL = POLICY.with_name("minimal.toml")
OWN = tuple(compiler.dump(load.read(path)) for path in (POLICY, MINIMAL))
KERNEL = "9.9.9"
OLD = b"the old image"
MAKERS = {"initramfs-tools": ("usr/sbin/mkinitramfs", "$2"), "dracut": ("usr/bin/dracut", "$2")}
HOOKS = {
    "initramfs-tools": "etc/initramfs-tools/hooks/safemem",
    "dracut": "usr/lib/dracut/modules.d/50safemem/module-setup.sh",
}


pytestmark = pytest.mark.needs("busybox")


@pytest.fixture(params=MAKERS)
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a system with one maker, which copies /next to where it is told, if the hook is there /with."""
    program, target = MAKERS[request.param]
    for folder in ("bin", "usr/bin", "usr/sbin", "proc", "sys", "dev", "boot", f"lib/modules/{KERNEL}", "etc/safemem"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", tmp_path / "bin/busybox")
    for name in ("sh", "cp", "run-parts"):
        (tmp_path / "bin" / name).symlink_to("busybox")
    (tmp_path / "usr/bin/safemem").write_text("#!/bin/sh\n")
    (tmp_path / "usr/bin/safemem").chmod(0o755)
    (tmp_path / "etc/debian_version").touch()
    shutil.copy(POLICY, tmp_path / "etc/safemem/policy.toml")
    maker = tmp_path / program
    maker.write_text(f'#!/bin/sh\nif [ -x /{HOOKS[request.param]} ]; then from=/with; else from=/without; fi\n[ ! -e $from ] || cp $from "{target}"\n')  # fmt: skip
    maker.chmod(0o755)
    shutil.copytree(
        POLICY.parent, tmp_path / "etc/safemem/policies", ignore=lambda _, names: set(names) - {"minimal.toml"}
    )
    (tmp_path / "with").write_bytes(archive(full()))
    (tmp_path / "without").write_bytes(archive({"init": b"#!/bin/sh\n"}))
    image(tmp_path).write_bytes(OLD)
    image(tmp_path).chmod(0o640)
    return tmp_path


def full() -> dict[str, bytes]:
    """Return what is in an image that is as it should be."""
    own, minimal = OWN
    return {**base(), **units(), **image_of.policies({"minimal": minimal}), **proof(own, minimal)}


def image(root: Path) -> Path:
    """Return the image's place."""
    return root / f"boot/initrd.img-{KERNEL}"


def safemem(root: Path, *words: str) -> Result:
    """Run `safemem initramfs`."""
    return CliRunner().invoke(main, ["initramfs", *words, "--root", str(root)])


def maker(root: Path) -> str:
    """Return the name of the maker that this root has."""
    return next(name for name, (program, _) in MAKERS.items() if (root / program).exists())


def untouched(root: Path) -> bool:
    """Return whether everything is as it was: the image, no draft beside it, no hook."""
    left = [path for path in (root / "boot").iterdir() if path != image(root)]
    return image(root).read_bytes() == OLD and not left and not any((root / path).exists() for path in HOOKS.values())


def test_install_check_remove(root: Path) -> None:
    """The image is replaced, keeps its mode, is what check wants to see, and goes back to what it was."""
    assert safemem(root, "check", "--kernel", KERNEL).exit_code == 6  # what is there is no image at all
    result = safemem(root, "install")

    assert result.exit_code == 0, result.output
    assert image(root).read_bytes() == (root / "with").read_bytes()
    assert image(root).stat().st_mode & 0o777 == 0o640
    assert os.access(root / HOOKS[maker(root)], os.X_OK)
    found = safemem(root, "check", "--kernel", KERNEL)
    assert found.exit_code == 0 and "by systemd, before everything else" in found.output, found.output
    assert "\nproven    by 0.9: 5 checks over 36 states, 0 accepted\n" in found.output
    document = json.loads(safemem(root, "check", "--kernel", KERNEL, "--format", "json").output)
    assert document["inside"]["proven"]["policies"][0] == {
        "digest": document["inside"]["digest"], "states": 36, "accepted": [],
    }  # fmt: skip
    assert document["good"] and document["inside"]["digest"] == document["operator"]["digest"]

    result = safemem(root, "remove", f"--{maker(root)}", "--kernel", KERNEL)
    assert result.exit_code == 0, result.output
    assert image(root).read_bytes() == (root / "without").read_bytes()
    assert not (root / HOOKS[maker(root)]).exists()
    assert safemem(root, "check", "--kernel", KERNEL).exit_code == 1


def test_the_only_kernel_is_the_one_that_is_meant(root: Path) -> None:
    """In a chroot another kernel runs; of several that are installed, one has to be named."""
    assert safemem(root, "install").exit_code == 0
    assert safemem(root, "check").stdout.startswith(f"{image(root)}: policy `live-update-host`")

    for name in ("8.8.8", "7.7.7"):
        (root / "lib/modules" / name).mkdir()
    shutil.copy(image(root), root / "boot/initrd.img-8.8.8")
    result = safemem(root, "check")
    there = f"{root}/lib/modules has kernels 7.7.7, 8.8.8, {KERNEL}"
    assert result.exit_code == 6
    assert result.stderr == (
        f"safemem: {root}: which kernel is meant is not known: {there}: name one of 8.8.8, {KERNEL} by --kernel, or an IMAGE\n"
    )
    for name in ("7.7.7", "5"):
        result = safemem(root, "check", "--kernel", name)
        assert (result.exit_code, result.stderr) == (6, (
            f"safemem: {root}: there is no image for kernel {name}: no boot loader entry names one, and none is at"
            f" boot/initrd.img-{name}, boot/initramfs-{name}.img, boot/initrd-{name}; {there}\n"
        ))  # fmt: skip
    for name in ("7.7.7", "8.8.8"):
        (root / "lib/modules" / name).rmdir()
    image(root).unlink()
    assert f"there is no image for kernel {KERNEL}: no boot loader" in safemem(root, "check").stderr
    entry(root, f"/m/{KERNEL}/initrd")
    assert safemem(root, "check", "--kernel", "5").stderr.endswith(f"; {root}/lib/modules has kernel {KERNEL}\n")


def test_the_policy_that_an_image_is_compared_with_is_named(root: Path) -> None:
    """Without one in /etc/safemem it is the shipped default, and that is said."""
    shutil.rmtree(root / "etc/safemem/policies")
    (root / "with").write_bytes(archive({**base(), **units()}))
    own = safemem(root, "check", str(root / "with"))
    assert f"\npolicy    as in {root}/etc/safemem/policy.toml\n" in own.stdout

    (root / "etc/safemem/policy.toml").unlink()
    result = safemem(root, "check", str(root / "with"))
    assert (result.exit_code, "/etc/safemem" in result.stdout) == (0, False)
    assert f"\npolicy    as in {POLICY}\n" in result.stdout


#: Runs with SIGKILL; `make nightly` has more.
KILLS = int(os.environ.get("SAFEMEM_KILLS", "10"))


def test_killed(root: Path) -> None:
    """Killed at any moment, the image in place is the old one or all of the new one, and the next install works."""
    words = [str(Path(sys.executable).parent / "safemem"), "initramfs", "install", "--root", str(root)]
    new = (root / "with").read_bytes()
    maker_script = root / MAKERS[maker(root)][0]
    # Slow, and in two halves, so that what is under way is there to be killed.
    slow = maker_script.read_text().replace(
        'cp $from "$2"', '{ head -c 3000 $from; sleep 0.1; tail -c +3001 $from; } >"$2"'
    )
    assert slow != maker_script.read_text()
    maker_script.write_text(slow)
    for name in ("head", "sleep", "tail"):
        (root / "bin" / name).symlink_to("busybox")
    begin = time.monotonic()
    subprocess.run(words, check=True, capture_output=True)
    whole = time.monotonic() - begin
    assert image(root).read_bytes() == new
    choose = random.Random(KILLS)
    seen = set()
    for number in range(KILLS):
        image(root).write_bytes(OLD)
        if number % 2:
            safemem(root, "remove")
            image(root).write_bytes(OLD)
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(choose.uniform(0, whole * 1.1))
        # Alone, which leaves the maker at work, or with all of its family.
        process.kill() if number % 3 else os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        left = image(root).read_bytes()
        seen.add(left == new)
        assert left in (OLD, new)
        hook = root / HOOKS[maker(root)]
        assert not hook.exists() or (hook.read_bytes().endswith(b"\n") and len(hook.read_bytes()) > 800)
        again = subprocess.run(words, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert image(root).read_bytes() == new
        assert not list((root / "boot").glob(".safemem-*"))
    print(f"{KILLS} installs killed within {whole:.1f} s, of which some had replaced the image: {True in seen}")


def test_two_at_once(root: Path) -> None:
    """Who comes while another one is at work is told so, and does nothing."""
    lock = os.open(root / "boot", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    result = safemem(root, "install")
    os.close(lock)

    assert result.exit_code == 1 and "another `safemem initramfs` is making an image there" in result.output
    assert untouched(root)


def test_on_disk_before_in_place(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure finds an image whose bytes were on the disk before it got its name."""
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def keep(fd: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2])
        fsync(fd)

    def put(self: Path, target: Path) -> Path:
        calls.append(f"-> {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", keep)
    monkeypatch.setattr(Path, "rename", put)
    assert safemem(root, "install").exit_code == 0

    name = image(root).name
    assert calls[calls.index(name) :] == [name, f"-> {name}", "boot"]


def test_another_policy(root: Path) -> None:
    """An image that is older than the policy in /etc is said to be, and is not put into place either."""
    text = POLICY.read_text().replace('name = "live-update-host"', 'name = "other"')
    (root / "etc/safemem/policy.toml").write_text(text)
    result = safemem(root, "install")

    assert (
        result.exit_code == 1
        and "its policy is `live-update-host` (digest" in result.output
        and "stays as it was" in result.output
    )
    assert untouched(root)
    found = safemem(root, "check", str(root / "with"))
    assert found.exit_code == 1 and "\nhelp      have it made anew: `safemem initramfs install`\n" in found.output
    assert f", not `other` of {root}/etc/safemem/policy.toml (digest " in found.output


def test_a_policy_that_check_condemns(root: Path) -> None:
    """Nothing is made with it: each error is told with its place and what to do, of the named ones as well."""
    bad = POLICY.parent.parent / "tests/bad"
    shutil.copy(bad / "exposes-handover.toml", root / "etc/safemem/policy.toml")
    shutil.copy(bad / "reboot-loop.toml", root / "etc/safemem/policies/loop.toml")
    result = safemem(root, "install")

    assert result.exit_code == 3, result.output
    assert untouched(root)
    own, named = root / "etc/safemem/policy.toml", root / "etc/safemem/policies/loop.toml"
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"safemem: {own}:7:1: error: a handover that was lost ends in online-all")
    assert lines[0].endswith("[exposes-handover]")
    assert lines[1:3] == [
        f"safemem:     try: safemem simulate {own} --set handover=lost",
        "safemem:     help: use online-safe or panic, or say `accept_data_exposure = true` if no guest's memory matters here",
    ]
    assert lines[3] == (
        f'safemem: {own}: not built, because of 1 error: mend the policy, or write `accept_errors = ["exposes-handover"]` at'
        " its top, which the image and the record will say"
    )
    assert lines[4].startswith(f"safemem: {named}:9:1: error: ") and "[reboot-loop]" in lines[4]


def test_an_image_whose_proof_is_for_another_policy(root: Path) -> None:
    """It is said, for one that the command line names too, and the image is not good."""
    own, minimal = OWN
    for proofs, other in (((minimal,), own), ((own,), minimal)):
        (root / "with").write_bytes(archive({**full(), **proof(*proofs)}))
        result = safemem(root, "check", str(root / "with"))
        digest = compiled.load(other, "p").digest[:12]
        assert result.exit_code == 1
        assert f"\nproven    its proof is for another policy than the one with digest {digest}\n" in result.output


def test_another_named_policy(root: Path) -> None:
    """What the kernel command line may choose has to be the operator's as well."""
    assert safemem(root, "install").exit_code == 0
    mine = root / "etc/safemem/policies/minimal.toml"
    text = mine.read_text()
    for change in (text.replace("name =", 'name = "x" #', 1), None):
        mine.write_text(change) if change else mine.unlink()
        found = safemem(root, "check", "--kernel", KERNEL)
        assert found.exit_code == 1
        assert "its policy for safemem.policy=minimal is not the operator's" in found.output, found.output
    mine.write_text(text)
    mine.chmod(0o666)
    assert safemem(root, "check", "--kernel", KERNEL).exit_code == 3


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "has made no image (exit status 0)"),
        (b"070701 half of one", "cannot be read"),
        (archive({"init": b""}), "safemem is not in it"),
        (archive(base()), "nothing in it starts the boot program"),
        (
            archive({**base(), **units(), proven.PATH: b"{}"}),
            "usr/lib/safemem/proven in the image: what was proved is damaged",
        ),
        (
            archive({path: data for path, data in full().items() if path != proven.PATH}),
            "it does not say which checks its policy has passed",
        ),
    ],
)
def test_not_good_enough(root: Path, content: bytes | None, fault: str) -> None:
    """Nothing that is not known to be good takes the place of what works."""
    (root / "with").unlink()
    if content is not None:
        (root / "with").write_bytes(content)
    result = safemem(root, "install")

    assert result.exit_code == 1 and fault in result.output, result.output
    assert "stays as it was" in result.output
    assert untouched(root)


def test_remove_fails(root: Path) -> None:
    """The hook stays where the image could not be made without it."""
    assert safemem(root, "install").exit_code == 0
    (root / "without").unlink()
    result = safemem(root, "remove")

    assert result.exit_code == 1 and "has made no image" in result.output
    assert image(root).read_bytes() == (root / "with").read_bytes()
    assert (root / HOOKS[maker(root)]).exists()


def test_the_packages_hook(root: Path) -> None:
    """What the package has brought is used, and is not taken away."""
    name = maker(root)
    place = root / ("usr/share/initramfs-tools/hooks/safemem" if name == "initramfs-tools" else HOOKS["dracut"])
    place.parent.mkdir(parents=True)
    place.write_text("#!/bin/sh\n")
    place.chmod(0o755)
    (root / "without").write_bytes((root / "with").read_bytes())  # made by that hook

    assert safemem(root, "install").exit_code == 0
    assert name == "dracut" or not (root / HOOKS[name]).exists()
    result = safemem(root, "remove")
    assert result.exit_code == 1 and "remove the package" in result.output
    assert place.exists()


def test_what_is_missing(root: Path) -> None:
    """No command for the hook to call, no such maker, two makers, an unknown kernel: said, and nothing is done."""
    other = next(name for name in MAKERS if name != maker(root))
    assert f"no {MAKERS[other][0]} in" in safemem(root, "install", f"--{other}").output
    assert f"there is {KERNEL}" in safemem(root, "install", "--kernel", "1.0").output
    (root / MAKERS[other][0]).write_text("")
    assert "say which" in safemem(root, "install").output
    (root / "usr/bin/safemem").unlink()
    assert "the hook calls `safemem`" in safemem(root, "install", f"--{maker(root)}").output
    assert untouched(root)


@pytest.mark.parametrize("row", makers.MAKERS, ids=lambda row: row.name)
def test_a_maker_is_a_row(row: makers.Maker) -> None:
    """Its hook is shipped in a folder of its own, its name is an option, and what starts safemem in its image is looked for."""
    words = [word.format(image="IMAGE", release="RELEASE") for word in row.command]

    assert row.source.split("/")[0] == row.name and shipped(row.source).startswith(b"#!")
    assert words[0] == row.program.rpartition("/")[2] and {"IMAGE", "RELEASE"} < set(words)
    assert row.start in check.STARTS
    for verb in ("install", "remove"):
        assert f"--{row.name}" in CliRunner().invoke(main, ["initramfs", verb, "--help"]).output


def test_find_where_no_image_is(root: Path) -> None:
    """The first image of a kernel goes where the distribution keeps them."""
    image(root).unlink()
    assert safemem(root, "install").exit_code == 0
    assert bootplaces.find(str(root), KERNEL).files == (image(root),)


def entry(root: Path, *initrds: str) -> None:
    """Give the kernel an entry of the boot loader."""
    (root / "efi/loader/entries").mkdir(parents=True)
    lines = ["title x", f"linux /m/{KERNEL}/linux", *(f"initrd {path}" for path in initrds), ""]
    (root / f"efi/loader/entries/m-{KERNEL}.conf").write_text("\n".join(lines))
    (root / f"efi/m/{KERNEL}").mkdir(parents=True)
    (root / f"efi/m/{KERNEL}/linux").write_bytes(b"kernel")


def test_where_the_entry_has_it(root: Path) -> None:
    """The image goes where the boot loader reads it, and so does what kernel-install copies it from."""
    name = image(root).name
    place = root / f"efi/m/{KERNEL}/{name}"
    entry(root, "/ucode.img", f"/m/{KERNEL}/{name}")
    (root / "efi/ucode.img").write_bytes(archive({"kernel/x86/microcode/x.bin": b"x"}))
    place.write_bytes(OLD)
    stale = root / f"boot/initramfs-{KERNEL}.img"
    stale.write_bytes(b"another image")

    result = safemem(root, "install")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{place}: made by {maker(root)}")
    assert place.read_bytes() == image(root).read_bytes() == (root / "with").read_bytes()
    assert stale.read_bytes() == b"another image"
    found = safemem(root, "check")
    named = f"{root}/efi/ucode.img, {place}, named by {root}/efi/loader/entries/m-{KERNEL}.conf"
    assert found.exit_code == 0 and found.stdout.startswith(f"{named}: policy `live-update-host`")
    document = json.loads(safemem(root, "check", "--format", "json").output)
    assert document["files"] == [f"{root}/efi/ucode.img", str(place)] and document["entry"].endswith(f"m-{KERNEL}.conf")

    assert safemem(root, "remove").exit_code == 0
    assert place.read_bytes() == image(root).read_bytes() == (root / "without").read_bytes()


def test_an_image_that_its_entry_waits_for(root: Path) -> None:
    """It is made there; until then it cannot be told what boots, and whatever lies in /boot counts for nothing."""
    entry(root, f"/m/{KERNEL}/initrd")
    place = root / f"efi/m/{KERNEL}/initrd"
    found = safemem(root, "check", "--kernel", KERNEL)
    assert found.exit_code == 6 and f"names /m/{KERNEL}/initrd, which is not there" in found.stderr

    assert safemem(root, "install").exit_code == 0
    assert place.read_bytes() == (root / "with").read_bytes() and image(root).read_bytes() == OLD
    assert safemem(root, "check", "--kernel", KERNEL).exit_code == 0


def test_all_that_the_kernel_reads_is_looked_at(root: Path) -> None:
    """An image that is good by itself is not used where another initrd of the entry undoes it."""
    entry(root, f"/m/{KERNEL}/initrd", "/late-ucode.img")
    (root / f"efi/m/{KERNEL}/initrd").write_bytes(OLD)
    (root / "efi/late-ucode.img").write_bytes(archive({"usr/lib/safemem/policy.json": OWN[1]}))
    result = safemem(root, "install")

    assert result.exit_code == 1 and "is not used: its policy is `minimal` (digest" in result.output, result.output
    assert (root / f"efi/m/{KERNEL}/initrd").read_bytes() == OLD and untouched(root)


@pytest.mark.parametrize("verb", ["install", "remove"])
@pytest.mark.parametrize("kind", ["no entry", "unified", "unknown", "two"])
def test_no_image_that_nothing_boots(root: Path, verb: str, kind: str) -> None:
    """It is said what to do instead, and nothing is touched, the hook included."""
    entry(root, f"/m/{KERNEL}/initrd")
    conf = root / f"efi/loader/entries/m-{KERNEL}.conf"
    if kind == "no entry":
        conf.write_text("title x\nversion 1.0.0\nlinux /m/1.0.0/linux\n")
    elif kind == "unified":
        conf.write_text("title x\nefi /uki.efi\n")
        (root / "efi/uki.efi").write_bytes(pe([(".uname", KERNEL.encode()), (".linux", b""), (".initrd", b"")]))
    elif kind == "unknown":
        (root / f"efi/m/{KERNEL}/linux").unlink()
    elif kind == "two":
        conf.write_text(conf.read_text() + f"initrd /m/{KERNEL}/other\n")
        (root / f"efi/m/{KERNEL}/other").write_bytes(b"")
        (root / f"efi/m/{KERNEL}/initrd").write_bytes(b"")
    hook = root / HOOKS[maker(root)]
    if verb == "remove":
        hook.parent.mkdir(parents=True, exist_ok=True)
        hook.write_text("#!/bin/sh\n")
        (hook.parent / "installed-by-hand").touch()
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    result = safemem(root, verb)

    assert result.exit_code == 1 and "`" in result.stderr, result.output
    if kind == "unified":
        assert ("make it anew, without safemem: " in result.stderr) == (verb == "remove")
        assert ("with `safemem initramfs cpio --systemd`" in result.stderr) == (verb == "install")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


HOOK = "etc/initramfs/post-update.d/zz-copy"


def after(root: Path, text: str) -> None:
    """Put a program in place that runs once an image is new."""
    hook = root / HOOK
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{text}\n")
    hook.chmod(0o755)


@pytest.mark.parametrize("root", ["initramfs-tools"], indirect=True)
def test_a_copy_of_another_name(root: Path) -> None:
    """What kernelstub copies to the ESP is made anew as well: it would put the old one back."""
    place = root / "boot/efi/EFI/Pop_OS-1/initrd.img"
    place.parent.mkdir(parents=True)
    place.write_bytes(OLD)
    (root / "boot/efi/loader/entries").mkdir(parents=True)
    (root / "boot/efi/loader/entries/Pop_OS-current.conf").write_text(
        f"title Pop\nversion {KERNEL}\nlinux /EFI/Pop_OS-1/vmlinuz-{KERNEL}\ninitrd /EFI/Pop_OS-1/initrd.img\n"
    )
    (place.parent / f"vmlinuz-{KERNEL}").write_bytes(b"kernel")
    after(root, f"cp /boot/initrd.img-{KERNEL} /boot/efi/EFI/Pop_OS-1/initrd.img")
    result = safemem(root, "install")

    assert result.exit_code == 0, result.stderr
    assert place.read_bytes() == image(root).read_bytes() == (root / "with").read_bytes()
    assert (root / HOOKS["initramfs-tools"]).exists()


@pytest.mark.parametrize("root", ["initramfs-tools"], indirect=True)
@pytest.mark.parametrize("fault", ["fails", "puts another in its place"])
def test_what_runs_behind_it(root: Path, fault: str) -> None:
    """The image is new, so the hook stays, that the next one has safemem too; what to do is said."""
    after(root, "echo no space left >&2; exit 1" if fault == "fails" else f"cp /without /boot/initrd.img-{KERNEL}")
    result = safemem(root, "install")

    assert result.exit_code == 1
    assert (root / HOOKS["initramfs-tools"]).exists()
    if fault == "fails":
        assert image(root).read_bytes() == (root / "with").read_bytes()
        said, _, help_ = result.stderr.partition(": no space left")  # and what run-parts adds
        assert said == (
            f"safemem: {image(root)} is new and good, and the hook stays, but /etc/initramfs/post-update.d failed"
        )
        again = f"`run-parts --arg={KERNEL} --arg=/boot/initrd.img-{KERNEL} /etc/initramfs/post-update.d`"
        assert help_.endswith(f": mend that and run {again}\n")
    else:
        assert "has put another image in place of the new one: safemem is not in it" in result.stderr
    after(root, "exit 1")
    result = safemem(root, "remove")
    assert result.exit_code == 1 and not (root / HOOKS["initramfs-tools"]).exists()
    assert image(root).read_bytes() == (root / "without").read_bytes()


def test_a_word_of_the_command_line(root: Path) -> None:
    """Where the boot loader has the kernel start something else, no image is good, and none is made."""
    (root / "boot/grub").mkdir()
    menu = f"menuentry x {{\n linux /vmlinuz-{KERNEL} WORD\n initrd /initrd.img-{KERNEL}\n}}\n"
    for word, code in (("quiet", 0), ("rdinit=/bin/sh", 1)):
        (root / "boot/grub/grub.cfg").write_text(menu.replace("WORD", word))
        image(root).write_bytes((root / "with").read_bytes())
        found = safemem(root, "check", "--kernel", KERNEL)
        assert found.exit_code == code, found.output
        assert json.loads(safemem(root, "check", "--kernel", KERNEL, "--format", "json").output)["good"] is not bool(
            code
        )
        result = safemem(root, "install")
        assert result.exit_code == code
    why = (
        "`rdinit=/bin/sh` on its command line: the kernel starts that in place of /init, and with it nothing of safemem"
    )
    assert f"\nundone    by {why}\n" in found.output
    assert result.stderr == f"safemem: an image with safemem would not be started as such: {why}\n"
