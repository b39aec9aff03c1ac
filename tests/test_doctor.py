# SPDX-License-Identifier: MIT
"""Doctor: a healthy machine is healthy, and each thing that would defeat the policy is found by itself."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from click.testing import CliRunner

from safemem.boot import main as boot
from safemem.boot import paths, record
from safemem.boot.model import Rule, Term
from safemem.cli import main
from safemem.host import catalogue, doctor, guardchecks, nextboot, onlinechecks
from safemem.initramfs.cpio import Archive
from safemem.policy import compiler, load
from tests import images
from tests.fakes import make_root, pass_on, rejecting
from tests.kit import guarded, install, policy, proof, rule, when

POLICIES = Path(__file__).parent.parent / "policies"


#: The policy of `healthy` as its machine has it for the shipped default, with which the image is compared.
DEFAULT = """\
format = 1
name = "test"

[safe_region]
sources = ["kho-scratch", "cmdline"]

[[rule]]
name = "never"
when = { arch = "vax" }
action = "halt"

[otherwise]
action = "online-safe"

[on_failure]
action = "panic"
"""


def healthy(base: Path, **options: object) -> Path:
    """Return a machine on which a lost handover is held, with our udev rule, and nothing is wrong."""
    cmdline = str(options.pop("cmdline", "kho=on liveupdate=on memhp_default_state=offline"))
    root = make_root(base, offered=True, online="", cmdline=cmdline, **options)  # type: ignore[arg-type]
    (root / "usr/lib/udev/rules.d").mkdir(parents=True)
    (root / "usr/lib/udev/rules.d/60-safemem.rules").touch()
    put("usr/share/safemem/policies/live-update-host.toml", DEFAULT)(root)
    (root / "proc/meminfo").write_text("MemTotal: 1000000 kB\nMemAvailable: 900000 kB\n")
    # The fake root's own areas would not hold the memory map of what is held.
    for name, text in (("scratch_phys", "0x10000000\n"), ("scratch_len", "0x8000000\n")):
        (root / f"sys/kernel/debug/kho/out/{name}").write_text(text)
    install(root, otherwise=Rule("otherwise", "online-safe"))
    (root / "run/safemem").mkdir(parents=True)
    (root / "run/safemem/masked").touch()
    assert boot.main(["--root", str(root)]) == 0
    pack(root, (root / boot.POLICY).read_bytes())
    return root


def pack(
    root: Path,
    policy: bytes | None,
    init: bytes = b"#!/bin/sh\n/usr/lib/safemem/boot; [ $? = 42 ] || exit\n",
    *,
    proved: bool = True,
    more: dict[str, bytes] | None = None,
) -> None:
    """Make the initrd of the next boot, with safemem and `policy` in it or without; `proved`: it says so."""
    out = io.BytesIO()
    archive = Archive(out)
    archive.file("init", init, 0o755)
    for path, data in (more or {}).items():
        archive.file(path, data)
    if policy is not None:
        archive.file(boot.POLICY, policy)
        archive.file("usr/lib/safemem/boot", b"#!/bin/sh\n", 0o755)
        for path, data in proof(policy).items() if proved and policy != b"{}" else ():
            archive.file(path, data)
    archive.close()
    (root / "boot").mkdir(exist_ok=True)
    release = (root / "proc/sys/kernel/osrelease").read_text().strip()
    (root / f"boot/initrd.img-{release}").write_bytes(gzip.compress(out.getvalue()))


def put(path: str, text: str) -> Callable[[Path], None]:
    """Return a change: the file with `text`."""

    def change(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    return change


def undone(root: Path) -> None:
    """Have GRUB's menu start another program in place of /init."""
    release = (root / "proc/sys/kernel/osrelease").read_text().strip()
    put(
        "boot/grub/grub.cfg",
        f"menuentry x {{\n linux /vmlinuz-{release} rdinit=/x\n initrd /initrd.img-{release}\n}}\n",
    )(root)


def result(**more: object) -> Callable[[Path], None]:
    """Return a change: what came of the decision, as the record has it."""

    def change(root: Path) -> None:
        document = json.loads((root / record.RECORD).read_text())
        document["result"].update(more)
        (root / record.RECORD).write_text(json.dumps(document))

    return change


def decides(*rules: Rule, **more: Any) -> Callable[[Path], None]:
    """Return a change: the policy of the next boot has these rules first."""
    data = compiler.dump(policy(*rules, otherwise="online-safe", failure="halt", **more))
    return lambda root: pack(root, data)


def kernel_zone(root: Path) -> None:
    """Plug a block by virtio-mem that is online in zone Normal, and was released."""
    for path, text in (
        ("sys/devices/system/memory/memory50/state", "online\n"), ("sys/devices/system/memory/memory50/valid_zones", "Normal\n"),
        ("proc/iomem", "190000000-197ffffff : System RAM (virtio_mem)\n"),
        ("run/safemem/releases.json", '[{"time": 1, "reason": "x", "ranges": ["0x190000000-0x197ffffff"], "state": "done"}]'),
    ):  # fmt: skip
        put(path, text)(root)


def s390(root: Path) -> None:
    """Make it a machine that shows nothing of what started its kernel."""
    shutil.rmtree(root / paths.BOOT_PARAMS_FOLDER)
    (root / paths.ARCH).write_text("s390x\n")


FAULTS: list[tuple[str, str, Callable[[Path], None]]] = [
    ("no-decision", "severe", lambda root: (root / "run/safemem/decision.json").unlink()),
    ("onlined-by-others", "severe", put("sys/devices/system/memory/memory35/state", "online\n")),
    ("kernel-onlines", "severe", put("sys/devices/system/memory/auto_online_blocks", "online\n")),
    ("no-memhp-argument", "warning", put("proc/cmdline", "kho=on liveupdate=on\n")),
    ("udev-rule", "severe", put("usr/lib/udev/rules.d/41-x.rules", 'SUBSYSTEM=="memory", ATTR{state}="online"\n')),
    ("no-udev-rule", "warning", lambda root: (root / "usr/lib/udev/rules.d/60-safemem.rules").unlink()),
    ("daxctl", "severe", put("etc/daxctl.conf.d/a.conf", "[reconfigure-device x]\nmode = system-ram\n")),
    ("agent", "warning", put("proc/77/comm", "qemu-ga\n")),
    ("luo-missing", "warning", lambda root: os.rename(root / "sys/class/misc/liveupdate/dev", root / "gone")),
    ("memmap-cost", "warning", put("proc/meminfo", "MemTotal: 100000 kB\nMemAvailable: 90000 kB\n")),
    ("virtio-mem-stalls", "warning", put("proc/iomem", "100000000-13fffffff : System RAM (virtio_mem)\n")),
    ("dlpar", "severe", put("proc/sys/kernel/arch", "ppc64le\n")),
    ("initrd-without-safemem", "severe", lambda root: pack(root, None)),
    ("initrd-not-first", "severe", lambda root: pack(root, (root / boot.POLICY).read_bytes(), b"#!/bin/sh\n")),
    ("entry-undoes", "severe", undone),
    ("policy-refused", "severe", put("etc/safemem/policy.toml", "format = 2\n")),
    ("initrd-other-policy", "severe", put("etc/safemem/policy.toml", (POLICIES / "minimal.toml").read_text())),
    ("initrd-not-looked-into", "severe", lambda root: pack(root, None, more={"squashfs-root.img": b"hsqs" + bytes(2000)})),
    ("initrd-unreadable", "severe", lambda root: pack(root, b"{}")),
    ("cannot-tell", "warning", lambda root: shutil.rmtree(root / "sys/kernel/debug")),
    ("no-handover-here", "severe", s390),
    ("kernel-zone", "severe", kernel_zone),
    ("not-applied", "warning", result(problems=["a block refused"], problem_codes=["failed"])),
    ("real-root-not-masked", "warning", lambda root: (root / "run/safemem/masked").unlink()),
    ("no-initrd", "note", lambda root: shutil.rmtree(root / "boot")),
    ("initrd-not-told", "warning", put("boot/efi/loader/entries/x.conf", "title x\nversion 1.0.0\nlinux /vmlinuz-1.0.0\n")),
    ("old-kexec", "severe", put("etc/init.d/kexec-load", '\t/sbin/kexec -l "$KERNEL_IMAGE" --append="$REAL_APPEND"\n')),
    ("initrd-unproven", "severe", lambda root: pack(root, (root / boot.POLICY).read_bytes(), proved=False)),
    ("only-observes", "warning", decides(rule("halt", name="a", when=when("handover", Term("is", "lost"))), observe=True)),
    ("accepts-errors", "note", decides(rule("halt", name="a", when=when("arch", Term("is", "vax"))), accept_errors=("reboot-loop",))),
    ("panic-resets", "warning", put("proc/cmdline", "kho=on liveupdate=on memhp_default_state=offline panic=-1\n")),
    ("panic-resets", "warning", put("proc/sys/kernel/panic", "10\n")),
    ("fact-unknown", "warning", decides(rule("halt", name="often", when=when("boot_attempts", Term("<", 3))))),
    *(
        ("clears-free-memory", "warning", put("proc/cmdline", f"kho=on memhp_default_state=offline {word}\n"))
        for word in ("init_on_free=1", "page_poison=on")
    ),
    ("hugetlb-cma", "warning", put("proc/cmdline", "kho=on memhp_default_state=offline hugetlb_cma=0:1G,1:1G\n")),
]  # fmt: skip

MEMORY = "/sys/devices/system/memory"
LOOP = f"#!/bin/sh\nfor b in {MEMORY}/memory*/state; do\n\techo online > $b\ndone\n"
UNIT = f"[Unit]\nDescription=x\n[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo online_movable > {MEMORY}/auto_online_blocks'\n[Install]\nWantedBy=sysinit.target\n"
HV = "sys/bus/vmbus/devices/1eccfd72-4b41-45ef-b73a-4a6e44c12924/class_id"


def also(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return a change: all of these."""

    def change(root: Path) -> None:
        for each in changes:
            each(root)

    return change


def link(path: str, target: str) -> Callable[[Path], None]:
    """Return a change: the link."""

    def change(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)

    return change


def runs(path: str, text: str) -> Callable[[Path], None]:
    """Return a change: the program."""
    return also(put(path, text), lambda root: (root / path).chmod(0o755))


#: What onlines memory and is no udev rule: the finding, how bad it is, where it is seen, the change.
ONLINERS: dict[str, tuple[str, str, str, Callable[[Path], None]]] = {
    "a unit": ("unit-onlines", "severe", "etc/systemd/system/x.service:5", also(put("etc/systemd/system/x.service", UNIT), link("etc/systemd/system/sysinit.target.wants/x.service", "../x.service"))),
    "a unit that nothing starts": ("unit-onlines", "warning", "etc/systemd/system/x.service:5", put("etc/systemd/system/x.service", UNIT)),
    "a unit by an alias": ("unit-onlines", "severe", "usr/lib/systemd/system/x.service:5", also(put("usr/lib/systemd/system/x.service", UNIT), link("etc/systemd/system/y.service", "/usr/lib/systemd/system/x.service"), link("etc/systemd/system/multi-user.target.wants/y.service", "/etc/systemd/system/y.service"))),
    "a unit that another wants": ("unit-onlines", "severe", "usr/lib/systemd/system/x.service:5", also(put("usr/lib/systemd/system/x.service", UNIT), put("usr/lib/systemd/system/basic.target", "[Unit]\nWants=a.service x.service\n"))),
    "a unit by a timer": ("unit-onlines", "severe", "usr/lib/systemd/system/x.service:5", also(put("usr/lib/systemd/system/x.service", UNIT), put("usr/lib/systemd/system/x.timer", "[Timer]\nOnBootSec=1\n"), link("etc/systemd/system/timers.target.wants/x.timer", "/usr/lib/systemd/system/x.timer"))),
    "a unit that udev starts for a disk": ("udev-rule", "severe", "usr/lib/udev/rules.d/50-x.rules:1; usr/lib/systemd/system/x@.service:5", also(put("usr/lib/systemd/system/x@.service", UNIT), put("usr/lib/udev/rules.d/50-x.rules", 'SUBSYSTEM=="block", ENV{SYSTEMD_WANTS}+="x@%k.service"\n'))),
    "a unit by D-Bus": ("unit-onlines", "severe", "usr/lib/systemd/system/x.service:5", also(put("usr/lib/systemd/system/x.service", UNIT), put("usr/share/dbus-1/system-services/org.x.service", "[D-BUS Service]\nSystemdService=x.service\n"))),
    "an instance": ("unit-onlines", "severe", "usr/lib/systemd/system/x@.service:5", also(put("usr/lib/systemd/system/x@.service", UNIT), link("etc/systemd/system/multi-user.target.wants/x@1.service", "/usr/lib/systemd/system/x@.service"))),
    "a drop-in": ("unit-onlines", "severe", "etc/systemd/system/ssh.service.d/x.conf:2", also(put("usr/lib/systemd/system/ssh.service", "[Service]\nExecStart=/usr/sbin/sshd -D\n"), put("etc/systemd/system/ssh.service.d/x.conf", "[Service]\nExecStartPre=-/usr/bin/chmem -e all\n"), link("etc/systemd/system/multi-user.target.wants/ssh.service", "/usr/lib/systemd/system/ssh.service"))),
    "a unit with a script": ("unit-onlines", "severe", "etc/systemd/system/x.service:2", also(runs("usr/local/sbin/up", LOOP), put("etc/systemd/system/x.service", "[Service]\nExecStart=/usr/local/sbin/up\n"), link("etc/systemd/system/a.target.requires/x.service", "../x.service"))),
    "a unit with variables": ("unit-onlines", "severe", "etc/systemd/system/x.service:4", also(put("etc/default/x", f"FILE={MEMORY}/auto_online_blocks\n"), put("etc/systemd/system/x.service", "[Service]\nEnvironment='WORD=online' A=b\nEnvironmentFile=-/etc/default/x\nExecStart=/bin/sh -c 'echo $$WORD > ${FILE}'\n"), link("etc/systemd/system/a.target.wants/x.service", "../x.service"))),
    "a unit with a script in Python": ("unit-onlines", "severe", "etc/systemd/system/x.service:2", also(put("opt/x.py", f"for p in glob('{MEMORY}/memory*/state'):\n    open(p, 'w').write('online')\n"), put("etc/systemd/system/x.service", "[Service]\nExecStart=/usr/bin/python3 -u /opt/x.py\n"), link("etc/systemd/system/a.target.wants/x.service", "../x.service"))),
    "a unit of a generator": ("unit-onlines", "severe", "run/systemd/generator/x.service:5", also(put("run/systemd/generator/x.service", UNIT), link("run/systemd/generator/basic.target.wants/x.service", "../x.service"))),
    "a unit whose output is a file": ("unit-onlines", "severe", "etc/systemd/system/x.service:2", also(put("etc/systemd/system/x.service", f"[Service]\nExecStart=/bin/echo online\nStandardOutput=truncate:{MEMORY}/auto_online_blocks\n"), link("etc/systemd/system/a.target.wants/x.service", "../x.service"))),
    "a unit in a folder": ("unit-onlines", "severe", "etc/systemd/system/x.service:3", also(put("etc/systemd/system/x.service", f"[Service]\nWorkingDirectory={MEMORY}\nExecStart=/bin/sh -c 'echo online > auto_online_blocks'\n"), link("etc/systemd/system/a.target.wants/x.service", "../x.service"))),
    "a socket": ("unit-onlines", "severe", "etc/systemd/system/x.socket:3", also(put("etc/systemd/system/x.socket", "[Socket]\nListenStream=/run/x\nExecStartPost=/usr/bin/chmem -e all\n"), link("etc/systemd/system/sockets.target.wants/x.socket", "../x.socket"))),
    "a user's unit": ("unit-onlines", "severe", "etc/systemd/user/x.service:5", also(put("etc/systemd/user/x.service", UNIT), link("etc/systemd/user/default.target.wants/x.service", "../x.service"))),
    "a unit that rc.local starts": ("unit-onlines", "severe", "usr/lib/systemd/system/x.service:5", also(put("usr/lib/systemd/system/x.service", UNIT), runs("etc/rc.local", "#!/bin/sh\nsystemctl start x\n"))),
    "a unit that cron starts": ("unit-onlines", "severe", "usr/lib/systemd/system/x.service:5", also(put("usr/lib/systemd/system/x.service", UNIT), put("etc/cron.d/x", "@reboot root /usr/bin/systemctl --no-block start x.service\n"))),
    "a unit that a script of another's starts": ("unit-onlines", "severe", "usr/lib/systemd/system/x.service:5", also(put("usr/lib/systemd/system/x.service", UNIT), runs("opt/y", "#!/bin/sh\nsystemctl restart x\n"), put("usr/lib/systemd/system/y.service", "[Service]\nExecStartPost=/opt/y\n"))),
    "a unit and a link to nowhere": ("unit-onlines", "warning", "usr/lib/systemd/system/x.service:5", also(put("usr/lib/systemd/system/x.service", UNIT), link("etc/systemd/system/foo.target.wants", "/nowhere"))),
    "a generator": ("script-onlines", "severe", "usr/lib/systemd/system-generators/x:3", runs("usr/lib/systemd/system-generators/x", LOOP)),
    "a line of tmpfiles": ("tmpfiles-online", "severe", "etc/tmpfiles.d/x.conf:2", put("etc/tmpfiles.d/x.conf", f"# x\nw {MEMORY}/auto_online_blocks - - - - online_movable\n")),
    "a line with a glob": ("tmpfiles-online", "severe", "usr/lib/tmpfiles.d/x.conf:1", put("usr/lib/tmpfiles.d/x.conf", f"w!+ {MEMORY}/memory*/state\t-\t-\t-\t-\tonline\n")),
    "a line in quotes": ("tmpfiles-online", "severe", "run/tmpfiles.d/x.conf:1", put("run/tmpfiles.d/x.conf", f'"w" "{MEMORY}/memory1/\\x6fnline" - - - - \\x31\\n\n')),
    "a line in base64": ("tmpfiles-online", "severe", "etc/tmpfiles.d/x.conf:1", put("etc/tmpfiles.d/x.conf", f"f~ {MEMORY}/auto_online_blocks - - - - b25saW5l\n")),
    "a line that is made up": ("tmpfiles-online", "warning", "etc/tmpfiles.d/x.conf:1", put("etc/tmpfiles.d/x.conf", f"w^ {MEMORY}/auto_online_blocks - - - - word\n")),
    "rc.local": ("script-onlines", "severe", "etc/rc.local:3", runs("etc/rc.local", LOOP)),
    "rc.local that may not run": ("script-onlines", "warning", "etc/rc.local:3", put("etc/rc.local", LOOP)),
    "a script of init's": ("script-onlines", "severe", "etc/init.d/x:3", also(runs("etc/init.d/x", LOOP), link("etc/rc2.d/S01x", "../init.d/x"))),
    "a local script of OpenRC's": ("script-onlines", "severe", "etc/local.d/x.start:3", runs("etc/local.d/x.start", LOOP)),
    "a table of cron's": ("script-onlines", "severe", "etc/cron.d/x:2", put("etc/cron.d/x", "SHELL=/bin/sh\n@reboot root /usr/bin/chmem -e all\n")),
    "a user's table": ("script-onlines", "severe", "var/spool/cron/crontabs/root:1", put("var/spool/cron/crontabs/root", f"*/5 * * * 1-5 echo online > {MEMORY}/memory40/state\n")),
    "a script of each hour": ("script-onlines", "severe", "etc/cron.hourly/x:3", runs("etc/cron.hourly/x", LOOP)),
    "init's own table": ("script-onlines", "severe", "etc/inittab:1", put("etc/inittab", "mem:2345:once:/usr/bin/chmem -e all\n")),
    "a script of Slackware's": ("script-onlines", "severe", "etc/rc.d/rc.mem:3", runs("etc/rc.d/rc.mem", LOOP)),
    "a script of each login": ("script-onlines", "severe", "etc/profile.d/x.sh:3", put("etc/profile.d/x.sh", LOOP)),
    "a script of cloud-init": ("script-onlines", "severe", "var/lib/cloud/scripts/per-boot/x:3", runs("var/lib/cloud/scripts/per-boot/x", LOOP)),
    "cloud-init's own configuration": ("script-onlines", "severe", "etc/cloud/cloud.cfg.d/x.cfg:3", put("etc/cloud/cloud.cfg.d/x.cfg", f"#cloud-config\nbootcmd:\n  - echo online > {MEMORY}/auto_online_blocks\n")),
    "cloud-init's own, as words": ("script-onlines", "severe", "etc/cloud/cloud.cfg.d/x.cfg:2", put("etc/cloud/cloud.cfg.d/x.cfg", "runcmd:\n - [ chmem, -e, 4g ]\n")),
    "what an instance was given": ("script-onlines", "severe", "var/lib/cloud/instance/user-data.txt:4", put("var/lib/cloud/instance/user-data.txt", LOOP.replace("#!/bin/sh\n", "#!/bin/sh\ntrue\n"))),
    "a script of an instance's": ("script-onlines", "severe", "var/lib/cloud/instance/scripts/x:3", runs("var/lib/cloud/instance/scripts/x", LOOP)),
    "a dispatcher before a network is up": ("script-onlines", "severe", "etc/NetworkManager/dispatcher.d/pre-up.d/x:3", runs("etc/NetworkManager/dispatcher.d/pre-up.d/x", LOOP)),
    "a vendor's dispatcher": ("script-onlines", "severe", "usr/lib/NetworkManager/dispatcher.d/x:3", runs("usr/lib/NetworkManager/dispatcher.d/x", LOOP)),
    "networkd's dispatcher": ("script-onlines", "severe", "usr/lib/networkd-dispatcher/configured.d/x:3", runs("usr/lib/networkd-dispatcher/configured.d/x", LOOP)),
    "an interface": ("script-onlines", "severe", "etc/network/interfaces:3", put("etc/network/interfaces", "auto eth0\niface eth0 inet dhcp\n  post-up chmem -e 4g\n")),
    "a hook of dhclient's": ("script-onlines", "severe", "etc/dhcp/dhclient-exit-hooks.d/x:3", put("etc/dhcp/dhclient-exit-hooks.d/x", LOOP)),
    "a table of SUSE's cron": ("script-onlines", "severe", "var/spool/cron/tabs/root:1", put("var/spool/cron/tabs/root", "0~30 3 * * * chmem -e 4g\n")),
    "an event of acpid's": ("script-onlines", "severe", "etc/acpi/events/x:2", put("etc/acpi/events/x", "event=PNP0C80.*\naction=/usr/bin/chmem -e 4g\n")),
    "a command line that runs": ("script-onlines", "severe", "proc/cmdline", put("proc/cmdline", 'kho=on liveupdate=on memhp_default_state=offline systemd.run="/usr/bin/chmem -e 4g"\n')),
    "a shell that somebody logs in to": ("script-onlines", "severe", "root/.bashrc:1", put("root/.bashrc", "chmem -e 4g\n")),
    "a script that tuned's profile names": ("script-onlines", "severe", "opt/x:3", also(runs("opt/x", LOOP), put("etc/tuned/post_loaded_profile", "mine\n"), put("etc/tuned/mine/tuned.conf", "[script]\nscript=/opt/x\n"))),
    "a library that is not found": ("not-looked-at", "warning", "opt/x: speaks of memory and reads in $LIB/mem.sh, which is not found", also(runs("opt/x", f"#!/bin/sh\n. $LIB/mem.sh\nfor b in {MEMORY}/memory*; do up $b; done\n"), runs("etc/rc.local", "#!/bin/sh\n/opt/x\n"))),
    "modprobe": ("settings-online", "severe", "etc/modprobe.d/x.conf:1", put("etc/modprobe.d/x.conf", "install virtio_mem /sbin/modprobe --ignore-install virtio_mem; /usr/bin/chmem -e all\n")),
    "sysfsutils": ("settings-online", "severe", "etc/sysfs.d/x.conf:1", put("etc/sysfs.d/x.conf", "devices/system/memory/auto_online_blocks = online\n")),
    "tuned's profile": ("settings-online", "severe", "etc/tuned/mine/tuned.conf:4", also(put("etc/tuned/active_profile", "mine\n"), put("etc/tuned/mine/tuned.conf", f"[main]\ninclude=none\n[sysfs]\n{MEMORY}/memory*/state=online\n"))),
    "a helper of the kernel's": ("settings-online", "warning", "sys/kernel/uevent_helper", put("sys/kernel/uevent_helper", "/sbin/hotplug\n")),
    "mdev": ("script-onlines", "severe", "etc/mdev.conf:1", put("etc/mdev.conf", "$SUBSYSTEM=memory;.* root:root 600 @/bin/sh -c 'echo online > /sys$DEVPATH/state'\n")),
    "a script for memory in a rule": ("udev-rule", "severe", "usr/lib/udev/rules.d/50-x.rules:1; usr/local/bin/x.sh:3: echo online > $b", also(runs("usr/local/bin/x.sh", LOOP), put("usr/lib/udev/rules.d/50-x.rules", 'SUBSYSTEM=="memory", RUN+="/usr/local/bin/x.sh"\n'))),
    "a program for memory that is not there": ("udev-program", "warning", "usr/lib/udev/rules.d/50-x.rules:1; there is no /x here, so what it does is not known", put("usr/lib/udev/rules.d/50-x.rules", 'SUBSYSTEM=="memory", RUN+="/x"\n')),
    "Kata's agent": ("agent", "warning", "proc/77/comm", put("proc/77/comm", "kata-agent\n")),
    "NVIDIA's, whose name is cut": ("agent", "warning", "proc/77/comm", put("proc/77/comm", "nvidia-persiste\n")),
    "an agent that does not run": ("agent-installed", "note", "usr/bin/kata-agent", put("usr/bin/kata-agent", "")),
    "hv_balloon, loaded": ("hv-balloon-stalls", "warning", "sys/module/hv_balloon", put("sys/module/hv_balloon/parameters/hot_add", "Y\n")),
    "hv_balloon's bus": ("hv-balloon-stalls", "warning", "sys/bus/vmbus/drivers/hv_balloon", put("sys/bus/vmbus/drivers/hv_balloon/bind", "")),
    "dynamic memory on Hyper-V": ("hv-balloon-stalls", "warning", HV, put(HV, "{525074DC-8985-46E2-8057-A307DC18A502}\n")),
}  # fmt: skip
#: What looks much like that, and is in nobody's way.
HARMLESS: dict[str, Callable[[Path], None]] = {
    "a unit that is masked": also(put("usr/lib/systemd/system/x.service", UNIT), link("etc/systemd/system/x.service", "/dev/null"), link("etc/systemd/system/sysinit.target.wants/x.service", "../x.service")),
    "a unit that keeps memory": put("etc/systemd/system/x.service", UNIT.replace("online_movable", "offline")),
    "a unit that looks": put("etc/systemd/system/x.service", f"[Service]\nExecStart=/bin/sh -c 'cat {MEMORY}/memory*/state > /run/x'\n"),
    "a unit that a drop-in empties": also(put("usr/lib/systemd/system/x.service", UNIT), put("etc/systemd/system/x.service.d/y.conf", "[Service]\nExecStart=\nExecStart=/bin/true\n")),
    "a comment in a unit": put("etc/systemd/system/x.service", f"[Service]\n# ExecStart=/usr/bin/chmem -e all\n; echo online > {MEMORY}/memory1/state\nExecStart=/bin/true\n"),
    "tmpfiles, masked": also(put("usr/lib/tmpfiles.d/x.conf", f"w {MEMORY}/auto_online_blocks - - - - online\n"), link("etc/tmpfiles.d/x.conf", "/dev/null")),
    "tmpfiles, replaced": also(put("usr/lib/tmpfiles.d/x.conf", f"w {MEMORY}/auto_online_blocks - - - - online\n"), put("etc/tmpfiles.d/x.conf", f"w {MEMORY}/auto_online_blocks - - - - offline\n")),
    "tmpfiles, another file": put("etc/tmpfiles.d/x.conf", f"w /sys/devices/system/cpu/cpu1/online - - - - 1\nd {MEMORY} - - - - online\nr! /run/memory/state\nw /sys/kernel/mm/ksm/run - - - - 1\n"),
    "tmpfiles, a comment": put("etc/tmpfiles.d/x.conf", f"# w {MEMORY}/auto_online_blocks - - - - online\n"),
    "tmpfiles, no such file": put("etc/tmpfiles.d/x.conf.bak", f"w {MEMORY}/auto_online_blocks - - - - online\n"),
    "rc.local that starts others": runs("etc/rc.local", "#!/bin/sh -e\n/usr/local/bin/start\nexit 0\n"),
    "processors in rc.local": runs("etc/rc.local", LOOP.replace("memory", "cpu").replace("state", "online").replace("echo online", "echo 1")),
    "a script of init's that looks": runs("etc/init.d/x", LOOP.replace("echo online > $b", "cat $b")),
    "cron that counts": put("etc/cron.d/x", f"0 3 * * * root grep -c online {MEMORY}/memory*/state > /var/lib/x\n# @reboot root chmem -e all\n"),
    "cloud-init that looks": put("etc/cloud/cloud.cfg.d/x.cfg", f"bootcmd:\n - cat {MEMORY}/memory*/state\nwrite_files:\n - path: /etc/x\n   content: online\n"),
    "interfaces that come up": put("etc/network/interfaces", "auto eth0\niface eth0 inet dhcp\n  up echo online > /run/eth0\n  # up chmem -e 4g\n"),
    "modprobe's options": put("etc/modprobe.d/x.conf", "options memory_hotplug memmap_on_memory=1\nblacklist virtio_mem\ninstall foo /bin/true\n"),
    "sysfsutils for processors": put("etc/sysfs.conf", "devices/system/cpu/cpu1/online = 1\nmode devices/system/memory/auto_online_blocks = 0600\n"),
    "tuned's profile that is not active": also(put("etc/tuned/active_profile", "other\n"), put("etc/tuned/mine/tuned.conf", f"[sysfs]\n{MEMORY}/auto_online_blocks=online\n")),
    "no helper of the kernel's": put("sys/kernel/uevent_helper", "\n"),
    "a rule that logs": put("usr/lib/udev/rules.d/50-x.rules", 'SUBSYSTEM=="memory", RUN+="/usr/bin/logger block %k"\n'),
    "a rule with a script that logs": also(runs("usr/local/bin/x.sh", '#!/bin/sh\necho "$(date) $1" >> /var/log/blocks\n'), put("usr/lib/udev/rules.d/50-x.rules", 'SUBSYSTEM=="memory", RUN+="/usr/local/bin/x.sh %k"\n')),
    "a rule for a disk's state": put("usr/lib/udev/rules.d/50-x.rules", 'SUBSYSTEM=="scsi", RUN+="/bin/sh -c \'echo running > /sys$devpath/state\'"\n'),
    "a rule that leads nowhere": link("etc/udev/rules.d/50-x.rules", "/opt/gone.rules"),
    "another agent": put("proc/77/comm", "kata-agentd\n"),
    "a tool that is installed": also(put("usr/bin/daxctl", ""), put("usr/bin/chmem", "")),
    "hv_balloon that adds nothing": also(put("sys/module/hv_balloon/parameters/hot_add", "N\n"), put(HV, "{525074dc-8985-46e2-8057-a307dc18a502}\n")),
    "another device of Hyper-V's": put(HV, "{f912ad6d-2b17-48ea-bd65-f927a61c7684}\n"),
    "Hyper-V by its name": put("sys/class/dmi/id/sys_vendor", "Microsoft Corporation\n"),
    "the argument as others write it": put("proc/cmdline", 'kho=on liveupdate=on "memhp-default_state=offline"\n'),
    "the argument, and one that is none": put("proc/cmdline", "kho=on liveupdate=on memhp_default_state=offline memhp-default-state=nonsense\n"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "severity", "seen", "change"), ONLINERS.values(), ids=ONLINERS)
def test_each_onliner_is_found(
    tmp_path: Path, code: str, severity: str, seen: str, change: Callable[[Path], None]
) -> None:
    """One finding, where it is, and what to do; never that nothing stands in the way."""
    root = healthy(tmp_path)
    change(root)
    found, *rest = doctor.examine(str(root))
    assert (found.code, found.severity, found.evidence.removeprefix(f"{root}/")) == (code, severity, seen)
    # A unit is found by itself as well as by the rule that wants it.
    assert {item.code for item in rest} <= ({"unit-onlines"} if code == "udev-rule" else set())
    assert all(item.severity == severity for item in rest)
    assert found.remedy and "{" not in found.remedy
    assert "nothing stands" not in CliRunner().invoke(main, ["doctor", "--root", str(root)]).stdout


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_looks_like_an_onliner_is_none(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """No false word about what only looks, is masked, or is another device's."""
    root = healthy(tmp_path)
    change(root)
    result = CliRunner().invoke(main, ["doctor", "--root", str(root)])
    assert (result.stdout.splitlines()[0], result.exit_code) == ("nothing stands in the policy's way", 0)


def test_hv_balloon_waits_for_nobody_where_nothing_is_held(tmp_path: Path) -> None:
    """Where arrivals come online there is nothing to say."""
    root = healthy(tmp_path)
    put("sys/module/hv_balloon/parameters/hot_add", "Y\n")(root)
    document = json.loads((root / record.RECORD).read_text())
    document["decision"].update(arrivals="movable", action="online-all")
    (root / record.RECORD).write_text(json.dumps(document))
    assert "hv-balloon-stalls" not in codes(root)


def test_what_cannot_be_looked_at_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be listed may hold anything."""
    root, real = healthy(tmp_path), os.listdir

    def listdir(path: Any) -> list[str]:
        if str(path).endswith("etc/cron.d"):
            raise OSError(5, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    (found,) = doctor.examine(str(root))
    assert (found.code, found.evidence) == ("not-looked-at", "etc/cron.d: input/output error")
    assert found.message == "whether /etc/cron.d onlines memory is not known: it cannot be read"


def test_what_a_mask_takes_along(tmp_path: Path) -> None:
    """Processors in the same file stay off now: that is said, with the line, and the policy is in nobody's way."""
    root = healthy(tmp_path)
    put("run/safemem/masked-besides", 'usr/lib/udev/rules.d/80-x.rules\t3\tSUBSYSTEM=="cpu"\nnonsense\n')(root)
    (found,) = doctor.examine(str(root))
    assert (found.code, found.severity) == ("masked-besides", "note")
    assert found.message == (
        "/usr/lib/udev/rules.d/80-x.rules is masked because of memory, and with it rules for other devices:"
        ' SUBSYSTEM=="cpu" at line 3'
    )


def test_a_profile_without_safemem(tmp_path: Path) -> None:
    """Of a unified image the worst profile is judged, by its name; an addon that brings an initrd leaves open what boots."""
    root = healthy(tmp_path)
    image = root / "boot/initrd.img-7.3.4"
    parts = [
        (".linux", b"kernel"),
        (".initrd", image.read_bytes()),
        (".profile", b"ID=main"),
        (".profile", b"ID=old\nTITLE=Old one"),
    ]
    image.write_bytes(images.pe([*parts, (".initrd", gzip.compress(b"070701" + b"0" * 104))]))
    found = [item for item in doctor.examine(str(root)) if item.code.startswith("initrd")]
    assert [item.code for item in found] == ["initrd-unreadable"] and "profile old (Old one): byte 0" in found[
        0
    ].evidence
    pack(root, None)
    bare = image.read_bytes()
    image.write_bytes(images.pe([*parts, (".initrd", bare)]))
    (found_one,) = [item for item in doctor.examine(str(root)) if item.code.startswith("initrd")]
    assert (found_one.code, found_one.evidence) == ("initrd-without-safemem", f"{image}: profile old (Old one)")
    image.write_bytes(images.pe(parts[:3]))
    assert not [item for item in doctor.examine(str(root)) if item.code.startswith("initrd")]
    addon = root / "boot/initrd.img-7.3.4.extra.d/x.addon.efi"
    addon.parent.mkdir()
    addon.write_bytes(images.pe([(".initrd", bare)]))
    (found_one,) = [item for item in doctor.examine(str(root)) if item.code.startswith("initrd")]
    assert found_one.code == "initrd-unreadable" and "brings an initrd, which is not looked into" in found_one.evidence


def test_healthy(tmp_path: Path) -> None:
    """Nothing is found where nothing is wrong."""
    root = healthy(tmp_path)
    result = CliRunner().invoke(main, ["doctor", "--root", str(root)])

    assert (result.stdout, result.exit_code) == (
        "nothing stands in the policy's way\n"
        "the policy of the next boot was proven by 0.9: 5 checks over 36 states, 0 accepted\n",
        0,
    )
    document = json.loads(CliRunner().invoke(main, ["doctor", "--root", str(root), "--format", "json"]).stdout)
    assert document == {
        "schema": 1, "kind": "doctor", "exit_code": 0, "findings": [],
        "proven": "by 0.9: 5 checks over 36 states, 0 accepted",
    }  # fmt: skip


def test_a_token_is_a_way_to_tell(tmp_path: Path) -> None:
    """Where no files show what was accepted, the remedy names the policy's word and the service, as they are called."""
    root = healthy(tmp_path)
    shutil.rmtree(root / "sys/kernel/debug")
    (remedy,) = [item.remedy for item in doctor.examine(str(root)) if item.code == "cannot-tell"]
    words = remedy.replace("`", " ").replace(",", " ").split()
    assert {"CONFIG_KEXEC_HANDOVER_DEBUGFS", "handover-args"} < set(words)
    assert set(words) & set(load.read(POLICIES / "live-update-host.toml")._fields) == {"retrieve_token"}
    assert set(words) & set(os.listdir(POLICIES.parent / "systemd")) == {"safemem-token.service"}


#: Faults of a policy: the image has another one than the machine.
OTHERS = ("only-observes", "accepts-errors", "fact-unknown")


@pytest.mark.parametrize(
    ("code", "severity", "change"), FAULTS, ids=[f"{code}-{number}" for number, (code, _, _) in enumerate(FAULTS)]
)
def test_each_fault_is_found_by_itself(
    tmp_path: Path, code: str, severity: str, change: Callable[[Path], None]
) -> None:
    """One fault, its finding with evidence and remedy; only what is severe sets the exit code."""
    if code == "initrd-other-policy" and os.geteuid():
        pytest.skip("only root's policies are compared")
    root = healthy(tmp_path)
    change(root)
    if code == "luo-missing":
        (root / "sys/class/misc/liveupdate").rmdir()
    found = doctor.examine(str(root))

    assert (code, severity) in [(item.code, item.severity) for item in found]
    assert all(item.evidence and item.remedy for item in found)
    result = CliRunner().invoke(main, ["doctor", "--root", str(root), "--format", "json"])
    assert result.exit_code == (1 if any(item.severity == "severe" for item in found) else 0)
    assert json.loads(result.stdout)["findings"][0]["severity"] == found[0].severity
    # Nothing else is blamed for it.
    beside = {"luo-missing": "luo-without-kho"} | dict.fromkeys(OTHERS, "initrd-other-policy")
    assert {item.code for item in found} <= {code, beside.get(code, code)}


def test_a_panic_that_resets_counts_only_where_the_policy_can_panic(tmp_path: Path) -> None:
    """By a rule, after a shortfall, or if safemem fails; a policy that is not known may."""
    root = healthy(tmp_path, cmdline="kho=on liveupdate=on memhp_default_state=offline panic=10")
    for rules, ends in (([], False), ([rule("panic", name="a", when=when("kho", Term("is", "on")))], True),
                        ([rule(name="a", when=when("kho", Term("is", "on")), on_shortfall="panic")], True)):  # fmt: skip
        decides(*(rules or [rule("halt", name="a", when=when("kho", Term("is", "on")))]))(root)
        assert [item.evidence for item in doctor.examine(str(root)) if item.code == "panic-resets"] == (
            ["panic=10 on the command line"] if ends else []
        )
    shutil.rmtree(root / "boot")
    assert "panic-resets" in [item.code for item in doctor.examine(str(root))]
    put("proc/cmdline", "kho=on panic=0\n")(root)
    assert "panic-resets" not in [item.code for item in doctor.examine(str(root))]


def test_a_kernel_without_kho(tmp_path: Path) -> None:
    """It is said, and so are the rules that ask for what it can never tell."""
    root = healthy(tmp_path)
    shutil.rmtree(root / "sys/kernel/debug")
    pass_on(root, (1, bytes(20)))
    (root / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_X=y\n"))
    node = rule("halt", name="by name", when=when("nodes", Term("has", "x")))
    decides(node)(root)
    found = {item.code: item for item in doctor.examine(str(root))}

    assert (found["no-kho"].severity, found["no-kho"].evidence) == (
        "warning",
        "proc/config.gz: CONFIG_KEXEC_HANDOVER is not set",
    )
    assert (
        found["fact-unknown"].message
        == "nothing on this machine tells `nodes`, so these rules do not decide here: `by name`"
    )


def test_facts_that_will_be_known_or_need_not_be_are_no_finding(tmp_path: Path) -> None:
    """What only an accepted handover tells, and a rule that asks for `unknown` as well."""
    root = healthy(tmp_path)
    decides(
        rule("halt", name="a", when=when("previous_kernel", Term("glob", "6.*"))),
        rule("halt", name="b", when=when("boot_attempts", Term("<", 3), Term("is", "unknown"))),
    )(root)
    assert [item for item in doctor.examine(str(root)) if item.code == "fact-unknown"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's policies are compared")
def test_a_policy_that_check_condemns(tmp_path: Path) -> None:
    """The first error with its place, and how many more there are; not where the image says that it was proved."""
    root = healthy(tmp_path)
    mine = root / "etc/safemem/policy.toml"
    put("etc/safemem/policy.toml", (POLICIES.parent / "tests/bad/reboot-loop.toml").read_text())(root)
    found = {item.code: item for item in doctor.examine(str(root))}
    assert found["policy-condemned"].severity == "severe"
    assert found["policy-condemned"].evidence.startswith("/etc/safemem/policy.toml:9:1: handover none ends in reboot")
    assert found["policy-condemned"].message == "/etc/safemem/policy.toml has errors with which no image is built"

    pack(root, compiler.dump(load.read(mine)))
    assert "policy-condemned" not in {item.code for item in doctor.examine(str(root))}


def test_the_predecessors_word_is_no_property_of_a_machine(tmp_path: Path) -> None:
    """Each kexec gives it or does not: that this one did not says nothing of the next."""
    root = healthy(tmp_path)
    for fact, missed in (("preserved", False), ("boot_attempts", True)):
        decides(rule("online-all", name="idle", when=when(fact, Term("is", "no" if fact == "preserved" else 1))))(root)
        assert ("fact-unknown" in [item.code for item in doctor.examine(str(root))]) == missed


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's policies are compared")
def test_before_there_is_an_image_the_operators_policy_counts(tmp_path: Path) -> None:
    """For what it asks for and how it may end; this one asks for a count of boots, which nothing here keeps."""
    root = healthy(tmp_path, cmdline="kho=on liveupdate=on memhp_default_state=offline panic=5")
    shutil.rmtree(root / "boot")
    text = (POLICIES / "reboot-bounded.toml").read_text()
    put("etc/safemem/policy.toml", text.replace('handover = "lost"', 'handover = "lost", boot_attempts = "<3"'))(root)
    found = {item.code: item for item in doctor.examine(str(root))}
    assert found["fact-unknown"].message.startswith("nothing on this machine tells `boot_attempts`, so these rules ")
    assert "panic-resets" in found

    text = (POLICIES / "minimal.toml").read_text().replace('"panic"', '"halt"')
    put("etc/safemem/policy.toml", text)(root)
    assert not {"fact-unknown", "panic-resets"} & {item.code for item in doctor.examine(str(root))}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's policies are compared")
def test_policies_that_the_command_line_may_name(tmp_path: Path) -> None:
    """They are looked at as the first one is: read, compared with the image, and proved."""
    root = healthy(tmp_path)
    bad = (POLICIES.parent / "tests/bad/reboot-loop.toml").read_text()
    for name, text in (("a", "format = 2\n"), ("b", bad)):
        put(f"etc/safemem/policies/{name}.toml", text)(root)
    texts = [item.message for item in doctor.examine(str(root))]

    assert "the initrd has another policy than /etc/safemem/policies/b.toml" in texts
    assert "/etc/safemem/policies/b.toml has errors with which no image is built" in texts
    refused = [item for item in doctor.examine(str(root)) if item.code == "policy-refused"]
    assert [item.remedy.split(",")[0] for item in refused] == ["mend /etc/safemem/policies/a.toml"]


def test_who_is_not_root_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the files that cannot be read."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = {item.code: item for item in doctor.examine("/")}
    assert found["not-root"].evidence == "user 1000"
    assert found["not-root"].message.startswith("this report is not whole: only root can read /sys/kernel/debug, ")
    assert found["not-root"].message.endswith("/proc/iomem")


def test_a_lost_handover_that_left_boot_memory_open(tmp_path: Path) -> None:
    """Boot memory that was online before the decision is a warning, with what would have kept it."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=Rule("otherwise", "online-safe"))
    assert boot.main(["--root", str(root)]) == 0
    found = {item.code: item for item in doctor.examine(str(root))}
    assert found["too-late"].severity == "warning"
    assert found["too-late"].remedy == "boot with memhp_default_state=offline, and with a guard for boot memory"


def test_arguments_that_contradict_each_other(tmp_path: Path) -> None:
    """LUO without KHO cannot start."""
    root = healthy(tmp_path, cmdline="kho=off liveupdate=on memhp_default_state=offline", luo=False)
    found = {item.code: item.severity for item in doctor.examine(str(root))}
    assert (found["luo-without-kho"], found["luo-missing"]) == ("warning", "warning")


def test_a_machine_without_memory_blocks(tmp_path: Path) -> None:
    """There is nothing to hold, which is a note."""
    root = healthy(tmp_path)
    shutil.rmtree(root / "sys/devices/system/memory")
    assert "no-blocks" in [item.code for item in doctor.examine(str(root)) if item.severity == "note"]


def test_memory_that_was_online_before_us(tmp_path: Path) -> None:
    """Hot-added memory that the kernel onlined before safemem ran is told from boot memory by firmware's map."""
    for name, count, says in (
        ("told", 1, "0x100000000-0x13fffffff (1 GiB) was hot-added and online before safemem ran: boot with memhp_default_state=offline"),
        ("untold", 0, "whether hot-added memory was online before safemem ran cannot be told: sys/kernel/boot_params/data: sys/kernel/boot_params/data holds no memory map"),
    ):  # fmt: skip
        root = make_root(tmp_path / name, offered=True, online="0-7,32-39", offline="")
        (root / "sys/devices/system/memory/auto_online_blocks").write_text("online\n")
        page = bytearray(4096)
        page[0x1E8] = count
        page[0x2D0 : 0x2D0 + 20] = (0).to_bytes(8, "little") + (1 << 30).to_bytes(8, "little") + b"\1\0\0\0"
        (root / "sys/kernel/boot_params/data").write_bytes(page)
        install(root, otherwise=Rule("otherwise", "online-safe"))
        assert boot.main(["--root", str(root)]) == 0
        found = {item.code: item for item in doctor.examine(str(root))}
        assert (found["onlined-before-us"].severity, found["onlined-before-us"].message) == ("severe", says)


def test_a_guard_that_could_be_overwritten(tmp_path: Path) -> None:
    """While a guard is held, a crash kernel that is loaded, or could be, is severe."""
    root = healthy(
        tmp_path,
        cmdline="kho=on liveupdate=on memhp_default_state=offline safemem.guard=0x1000000-0x24ffffff",
        crash="01000000-24ffffff",
    )
    (root / "proc/sys/kernel/kexec_load_limit_panic").write_text("0\n")
    assert [item.code for item in doctor.examine(str(root))] == []
    (root / "proc/sys/kernel/kexec_load_limit_panic").write_text("-1\n")
    (root / "sys/kernel/kexec_crash_loaded").write_text("1\n")
    assert [item.code for item in doctor.examine(str(root))] == ["crash-kernel-in-guard", "crash-kernel-allowed"]


def test_kdump_where_the_kernel_cannot_forbid_it(tmp_path: Path) -> None:
    """Before Linux 6.3 a kdump unit that is there and not masked is severe; what online-all left to kdump is its own."""
    root = guarded(tmp_path / "a", "online-safe")
    (root / paths.LOAD_LIMIT).unlink()
    put("usr/lib/systemd/system/kdump-tools.service", "")(root)
    found = [item for item in doctor.examine(str(root)) if item.code == "crash-kernel-allowed"]
    assert [item.message for item in found] == [
        "kdump-tools.service loads a crash kernel, which would be written into the guard"
    ]
    assert [item.remedy for item in found] == ["systemctl mask kdump-tools.service"]
    put("etc/systemd/system/kdump-tools.service", "")(root)
    (remedy,) = [item.remedy for item in doctor.examine(str(root)) if item.code == "crash-kernel-allowed"]
    assert remedy.startswith("systemctl disable --now kdump-tools.service; if something else starts it, mv /etc/")
    (root / "etc/systemd/system/kdump-tools.service").unlink()
    assert boot.main(["--root", str(root)]) == 0
    assert not [item for item in doctor.examine(str(root)) if item.code == "crash-kernel-allowed"]

    root = guarded(tmp_path / "b", "online-all", "256MiB")
    assert boot.main(["--root", str(root)]) == 0
    put("sys/kernel/kexec_crash_loaded", "1\n")(root)
    assert not [item for item in doctor.examine(str(root)) if "crash-kernel" in item.code]


def test_a_kexec_that_hands_nothing_over_is_found_only_where_it_would_be_used(tmp_path: Path) -> None:
    """Debian's kexec-load counts when it is switched on and loads with the old system call."""
    root = healthy(tmp_path)
    put("etc/init.d/kexec-load", "/sbin/kexec -s -l /vmlinuz\n")(root)
    assert doctor.examine(str(root)) == []
    put("etc/init.d/kexec-load", "/sbin/kexec -l /vmlinuz\n")(root)
    put("etc/default/kexec", '# LOAD_KEXEC=true\nLOAD_KEXEC="false"\n')(root)
    assert doctor.examine(str(root)) == []


def test_the_map_of_held_memory_against_the_safe_region(tmp_path: Path) -> None:
    """1 GiB held costs 16 MiB of map: little of 1 GiB in use, all of 16 MiB of scratch."""
    root = healthy(tmp_path)
    put("sys/kernel/debug/kho/out/scratch_len", "0x1000000\n")(root)
    (found,) = doctor.examine(str(root))
    assert found.message == "holding 1 GiB costs 16 MiB of memory map, out of 16 MiB of safe region"


def test_a_policy_that_cannot_be_read_for_lack_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the language needs may be broken: that is a finding, and the others are made all the same."""
    root = healthy(tmp_path)
    put("etc/safemem/policy.toml", (POLICIES / "minimal.toml").read_text())(root)
    monkeypatch.setitem(sys.modules, "safemem.policy.load", None)
    monkeypatch.delattr("safemem.policy.load", raising=False)
    (found,) = doctor.examine(str(root))
    assert (found.code, found.severity) == ("policy-not-read", "warning")
    assert found.message == "whether the initrd has the policy of /etc/safemem/policy.toml cannot be told"


def test_a_warning_is_found_by_its_code(tmp_path: Path) -> None:
    """Another sentence is the same finding; the same sentence under another code is none."""
    root = healthy(tmp_path)
    for code, found in (("too-late", ["too-late"]), ("state-unknown", [])):
        document = json.loads((root / record.RECORD).read_text())
        document["decision"].update(warnings=["what was online before the decision stays so"], warning_codes=[code])
        (root / record.RECORD).write_text(json.dumps(document))
        assert [item.code for item in doctor.examine(str(root))] == found


def yielded() -> list[tuple[str, set[str]]]:
    """Return each code that a check yields, with the names of the values that it gives."""
    trees = [
        ast.parse(Path(str(module.__file__)).read_text()) for module in (doctor, guardchecks, nextboot, onlinechecks)
    ]
    found = []
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "finding":
            code = node.args[0]
            assert isinstance(code, ast.Constant), "a check names its finding"
            names = {word.arg for word in node.keywords if word.arg} - {"severity"}
            spread = any(word.arg is None for word in node.keywords)
            found.append((str(code.value), names | ({"*"} if spread else set())))
    return found


def test_the_catalogue_is_whole() -> None:
    """Each finding that a check makes is in it, with a text for each value, and none is in it that no check makes."""
    assert {code for code, _ in yielded()} == set(catalogue.CODES)
    for code, given in yielded():
        entry = catalogue.CODES[code]
        asked = {name for text in (entry.message, entry.remedy) for _, name, _, _ in Formatter().parse(text) if name}
        assert given == asked or ("*" in given and given - {"*"} < asked), code
    for code, entry in catalogue.CODES.items():
        assert entry.severity in catalogue.SEVERITIES and (entry.remedy or entry.severity == "note"), code


GUARD = "kho=on liveupdate=on memhp_default_state=offline safemem.guard="


def codes(root: Path) -> list[str]:
    """Return the codes of what is found."""
    return [item.code for item in doctor.examine(str(root))]


def test_a_guard_that_is_not_in_force(tmp_path: Path) -> None:
    """Said of the boot as it began: what was released since is not missing."""
    assert codes(healthy(tmp_path / "void", cmdline=f"{GUARD}0x1000000-0x24ffffff")) == ["guard-void"]
    root = healthy(tmp_path / "part", cmdline=f"{GUARD}0x1000000-0x24ffffff", crash="01000000-14ffffff")
    (root / "proc/sys/kernel/kexec_load_limit_panic").write_text("0\n")
    assert codes(root) == ["guard-part"]
    root = healthy(tmp_path / "whole", cmdline=f"{GUARD}0x1000000-0x24ffffff", crash="01000000-24ffffff")
    assert CliRunner().invoke(main, ["release", "--reason", "x", "--root", str(root)]).exit_code in (0, 64)
    assert (root / "sys/kernel/kexec_crash_size").read_text() == "0"
    (root / "proc/iomem").write_text("00001000-0009fbff : System RAM\n00100000-3ffdefff : System RAM\n")
    assert not {"guard-void", "guard-part"} & set(codes(root))


def with_pages(base: Path, **given: Any) -> Path:
    """Return a machine whose guard has gigantic pages, and nothing else that doctor would say of it."""
    root = rejecting(base, {0: (4, 5), 1: (6, 7)}, {0: 2, 1: 2}, **given)
    (root / "proc/sys/kernel/kexec_load_limit_panic").write_text("0\n")
    install(root, otherwise=Rule("otherwise", "online-safe"), sources=("none",))
    assert boot.main(["--root", str(root)]) == 0
    return root


def about_pages(root: Path) -> dict[str, str]:
    """Return the evidence of what is found of guards."""
    known = ("guard-", "page", "hugetlb-cma", "sysctl-pool")
    return {item.code: item.evidence for item in doctor.examine(str(root)) if item.code.startswith(known)}


def test_gigantic_pages_in_programs_reach(tmp_path: Path) -> None:
    """Each with what shows it, and who."""
    root = with_pages(tmp_path / "well")
    assert about_pages(root) == {}
    (root / "sys/kernel/mm/hugepages/hugepages-1048576kB/resv_hugepages").write_text("3\n")
    assert set(about_pages(root)) == {"guard-let-go", "pages-not-reserved"}

    root = with_pages(tmp_path / "mapped", mapped=(5,))
    put("proc/7/status", "Name:\tgreedy\nHugetlbPages:\t 1048576 kB\n")(root)
    found = about_pages(root)
    assert set(found) == {"guard-part", "page-mapped"}
    assert found["page-mapped"] == f"greedy, which has mapped 1 GiB of huge pages ({root}/proc/7/status)"
    assert "1 of 2 on node 0" in found["guard-part"]


def test_a_node_that_the_kernel_does_not_have(tmp_path: Path) -> None:
    """As with numa=off: the kernel ignores all of hugepages=."""
    root = rejecting(tmp_path, {0: ()}, {0: 2, 7: 2})
    install(root, otherwise=Rule("otherwise", "online-safe"), sources=("none",))
    assert boot.main(["--root", str(root)]) == 0
    found = about_pages(root)
    assert found["guard-node-missing"] == "sys/devices/system/node/node7 does not exist" and "guard-part" in found


def test_a_pool_that_is_set_at_each_boot(tmp_path: Path) -> None:
    """Only where pages of the usual size are gigantic ones."""
    root = healthy(tmp_path)
    put("etc/sysctl.d/50-x.conf", "# vm.nr_hugepages = 3\n-vm/nr_hugepages = 8\n")(root)
    assert codes(root) == []
    put("proc/cmdline", "kho=on memhp_default_state=offline default_hugepagesz=1G\n")(root)
    (found,) = doctor.examine(str(root))
    assert (found.code, found.evidence) == ("sysctl-pool", "etc/sysctl.d/50-x.conf:2")


RULE = 'SUBSYSTEM=="memory", ATTR{state}="online"\n'
LINE = f"w {MEMORY}/auto_online_blocks - - - - online\n"
#: What is found, the change, and the command that takes it out of the way.
COMMANDS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a rule of a package's": ("udev-rule", put("usr/lib/udev/rules.d/41-x.rules", RULE), "mkdir -p /etc/udev/rules.d && ln -s /dev/null /etc/udev/rules.d/41-x.rules"),
    "a rule in /run": ("udev-rule", also(put("run/udev/rules.d/41-x.rules", RULE), put("etc/udev/rules.d/README", "")), "ln -s /dev/null /etc/udev/rules.d/41-x.rules"),
    "a rule in /etc": ("udev-rule", put("etc/udev/rules.d/41-x.rules", RULE), "mv /etc/udev/rules.d/41-x.rules /etc/udev/rules.d/41-x.rules.off"),
    "a rule behind a link to nowhere": ("udev-rule", also(put("usr/lib/udev/rules.d/41-x.rules", RULE), link("etc/udev/rules.d/41-x.rules", "/opt/gone")), "ln -sf /dev/null /etc/udev/rules.d/41-x.rules"),
    "a name with a blank": ("udev-rule", put("etc/udev/rules.d/4 x.rules", RULE), "mv '/etc/udev/rules.d/4 x.rules' '/etc/udev/rules.d/4 x.rules.off'"),
    "a program": ("udev-program", put("etc/udev/rules.d/41-x.rules", 'SUBSYSTEM=="memory", RUN+="/x"\n'), "mv /etc/udev/rules.d/41-x.rules /etc/udev/rules.d/41-x.rules.off"),
    "tmpfiles of a package's": ("tmpfiles-online", put("usr/lib/tmpfiles.d/x.conf", LINE), "mkdir -p /etc/tmpfiles.d && ln -s /dev/null /etc/tmpfiles.d/x.conf"),
    "tmpfiles in /etc": ("tmpfiles-online", put("etc/tmpfiles.d/x.conf", LINE), "mv /etc/tmpfiles.d/x.conf /etc/tmpfiles.d/x.conf.off"),
    "modprobe of a package's": ("settings-online", put("usr/lib/modprobe.d/x.conf", "install x /usr/bin/chmem -e all\n"), "mkdir -p /etc/modprobe.d && ln -s /dev/null /etc/modprobe.d/x.conf"),
    "modprobe in /etc": ("settings-online", put("etc/modprobe.d/x.conf", "install x /usr/bin/chmem -e all\n"), "the line in /etc/modprobe.d/x.conf"),
    "the kernel's helper": ("settings-online", put("sys/kernel/uevent_helper", "/sbin/hotplug\n"), "echo >/sys/kernel/uevent_helper, and take away what has written it there"),
    "a unit of a package's": ("unit-onlines", put("usr/lib/systemd/system/x.service", UNIT), "systemctl mask x.service"),
    "a unit in /etc": ("unit-onlines", put("etc/systemd/system/x.service", UNIT), "systemctl disable --now x.service; if something else starts it, mv /etc/systemd/system/x.service /etc/systemd/system/x.service.off"),
    "a template in /etc": ("unit-onlines", put("etc/systemd/system/x@.service", UNIT), "systemctl disable x@.service; if something else starts it, mv /etc/systemd/system/x@.service /etc/systemd/system/x@.service.off"),
    "a unit by an alias": ("unit-onlines", also(put("usr/lib/systemd/system/x.service", UNIT), link("etc/systemd/system/y.service", "/usr/lib/systemd/system/x.service"), link("etc/systemd/system/a.target.wants/y.service", "/etc/systemd/system/y.service")), "systemctl mask x.service"),
    "a unit that comes before /etc": ("unit-onlines", put("run/systemd/transient/x.service", UNIT), "find what makes /run/systemd/transient/x.service, and have it make none"),
    "a drop-in in /etc": ("unit-onlines", also(put("usr/lib/systemd/system/x.service", "[Service]\nExecStart=/bin/true\n"), put("etc/systemd/system/x.service.d/y.conf", "[Service]\nExecStartPre=/usr/bin/chmem -e all\n")), "mv /etc/systemd/system/x.service.d/y.conf /etc/systemd/system/x.service.d/y.conf.off"),
    "a drop-in of a package's": ("unit-onlines", also(put("usr/lib/systemd/system/x.service", "[Service]\nExecStart=/bin/true\n"), put("usr/lib/systemd/system/x.service.d/y.conf", "[Service]\nExecStartPre=/usr/bin/chmem -e all\n")), "mkdir -p /etc/systemd/system/x.service.d && ln -s /dev/null /etc/systemd/system/x.service.d/y.conf"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "change", "command"), COMMANDS.values(), ids=COMMANDS)
def test_a_remedy_can_be_pasted(tmp_path: Path, code: str, change: Callable[[Path], None], command: str) -> None:
    """What lies in /etc gets another name, for no mask is made over a file; what lies elsewhere gets a mask in /etc."""
    root = healthy(tmp_path)
    change(root)
    (found,) = [item for item in doctor.examine(str(root)) if item.code == code]
    assert found.remedy.endswith(f": {command}"), found.remedy
    if command.startswith(("mv ", "ln ", "mkdir ")):
        inside = re.sub(r"(?<= '|..)(?=/(?:etc|run|usr)/)", str(root), command)
        assert subprocess.run(["sh", "-c", inside], capture_output=True, text=True).stderr == ""
        assert code not in codes(root)


def test_a_folder_of_rules_that_cannot_be_listed(tmp_path: Path) -> None:
    """No mask helps there: whoever looks has to make it readable."""
    root = healthy(tmp_path)
    link("etc/udev/rules.d", "rules.d")(root)
    found, *rest = doctor.examine(str(root))
    assert {item.code for item in rest} <= {"not-looked-at"}
    assert (found.code, found.severity, found.evidence) == ("not-looked-at", "severe", "etc/udev/rules.d")
    assert found.remedy.endswith(": ls -la /etc/udev/rules.d")


def test_files_are_named_in_one_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the machine itself names them, whatever leads to it from here."""
    root = healthy(tmp_path)
    for change in (
        put("etc/daxctl.conf.d/a.conf", "[reconfigure-device x]\nmode = system-ram\n"), put("etc/daxctl.conf.d/b.conf", "junk"),
        put("etc/udev/rules.d/41-x.rules", RULE), runs("etc/rc.local", LOOP), put("proc/77/comm", "qemu-ga\n"), put("var/spool/cron/root", "@reboot /usr/bin/chmem -e all\n"),
        lambda root: pack(root, None), lambda root: (root / "run/safemem/decision.json").unlink(),
    ):  # fmt: skip
        change(root)
    monkeypatch.chdir(root.parent)
    text, *others = (
        CliRunner().invoke(main, ["doctor", "--root", name]).stdout
        for name in (str(root), root.name, f"./{root.name}//")
    )
    assert f"{root.name}/" not in text and others == [text, text]
    for name in ("proc/77/comm", "etc/daxctl.conf.d/a.conf", "etc/daxctl.conf.d/b.conf", "etc/udev/rules.d/41-x.rules", "etc/rc.local", "var/spool/cron/root", "boot/initrd.img-7.3.4"):  # fmt: skip
        assert not re.search(rf"(?<![/\w.-]){name}", text) and f"/{name}" in text, name


@pytest.mark.parametrize("what", ["nothing", "a file"])
def test_a_root_that_is_none(tmp_path: Path, what: str) -> None:
    """A mistake in usage, as for `initramfs`."""
    root = tmp_path / "root"
    if what == "a file":
        root.touch()
    result = CliRunner().invoke(main, ["doctor", "--root", str(root)])
    assert (result.exit_code, result.stdout) == (2, "") and "--root" in result.stderr


def test_a_tree_that_does_not_run(tmp_path: Path) -> None:
    """Nothing is said of a boot that never was; the only kernel that is installed is the one that boots next."""
    put("lib/modules/9.9.9/x", "")(tmp_path)
    found = {item.code: item for item in doctor.examine(str(tmp_path))}
    assert "no-decision" not in found
    assert (found["not-booted"].severity, found["not-booted"].evidence) == (
        "warning", "there is no proc/cmdline and no proc/sys/kernel/osrelease"
    )  # fmt: skip
    assert found["no-initrd"].message == "no initrd was found for kernel 9.9.9: whether safemem is in it is not known"
    put("lib/modules/8.8.8/x", "")(tmp_path)
    told = {item.code: item.evidence for item in doctor.examine(str(tmp_path))}
    assert told["initrd-not-told"] == "no kernel runs here, and lib/modules has kernels 8.8.8, 9.9.9"
    put("proc/cmdline", "quiet\n")(tmp_path)
    assert "no-decision" in codes(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's policies are compared")
def test_what_to_do_about_an_image(tmp_path: Path) -> None:
    """Made by `install`, unless that would refuse; where it is good, a boot is what is missing."""

    def remedies(root: Path) -> dict[str, str]:
        return {item.code: item.remedy for item in doctor.examine(str(root))}

    root = healthy(tmp_path)
    (root / "run/safemem/decision.json").unlink()
    image = root / "boot/initrd.img-7.3.4"
    assert remedies(root) == {"no-decision": f"have the next boot decide: reboot, for safemem is in {image}"}
    pack(root, (root / boot.POLICY).read_bytes(), b"#!/bin/sh\n")
    start = (
        "have the initrd's /init start it (docs/initramfs.md, `An init of your own`), or, where the initrd has systemd"
    )
    assert remedies(root)["no-decision"].startswith(f"have the next boot decide: {start}")
    assert f": `safemem initramfs install`; or {start}" in remedies(root)["initrd-not-first"]
    pack(root, None)
    assert remedies(root) == {
        "no-decision": "have the next boot decide: `safemem initramfs install`",
        "initrd-without-safemem": "have the image made anew: `safemem initramfs install`",
    }
    unified = root / "efi/EFI/Linux/x.efi"
    unified.parent.mkdir(parents=True)
    unified.write_bytes(images.pe([(".uname", b"7.3.4"), (".linux", b"k"), (".initrd", image.read_bytes())]))
    assert remedies(root)["initrd-without-safemem"] == (
        f"have the image made anew: {unified} is a unified kernel image: have what makes it (kernel-install, ukify, mkinitcpio)"
        " make it anew, with `safemem initramfs cpio --systemd` as its last initrd where its maker has no hook of safemem's"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's policies are compared")
def test_the_image_is_compared_as_check_does(tmp_path: Path) -> None:
    """Without a policy in /etc/safemem with the shipped default, by both."""
    root = healthy(tmp_path)
    other = load.read(POLICIES / "minimal.toml")
    pack(root, compiler.dump(other))
    (found,) = doctor.examine(str(root))
    default, image = root / "usr/share/safemem/policies/live-update-host.toml", root / "boot/initrd.img-7.3.4"
    own = load.read(default).digest
    assert (found.code, found.message) == (
        "initrd-other-policy", "the initrd has another policy than /usr/share/safemem/policies/live-update-host.toml"
    )  # fmt: skip
    text = f"its policy is `minimal` (digest {other.digest[:12]}), not `test` of {{}} (digest {own[:12]})"
    assert found.evidence == f"{image}: " + text.format("/usr/share/safemem/policies/live-update-host.toml")
    result = CliRunner().invoke(main, ["initramfs", "check", "--root", str(root), str(image)])
    assert result.exit_code == 1 and f"\npolicy    {text.format(default)}\n" in result.stdout


def test_evidence_names_what_was_read(tmp_path: Path) -> None:
    """The file and its value, not the fact."""
    root = healthy(tmp_path)
    for change in (
        put("proc/sys/kernel/arch", "ppc64le\n"), put("proc/iomem", "100000000-13fffffff : System RAM (virtio_mem)\n"), put("proc/meminfo", "MemTotal: 100000 kB\n"),
        put("proc/cmdline", "kho=off liveupdate=on memhp_default_state=offline\n"),
    ):  # fmt: skip
        change(root)
    seen = {item.code: item.evidence for item in doctor.examine(str(root))}
    assert seen["dlpar"] == "proc/sys/kernel/arch reads `ppc64le`"
    assert seen["virtio-mem-stalls"] == "sys/devices/system/memory/memory32/state reads `offline`"
    assert seen["memmap-cost"].startswith("there is no sys/module/memory_hotplug")
    assert seen["luo-without-kho"] == "proc/cmdline has kho=off and liveupdate=on"
