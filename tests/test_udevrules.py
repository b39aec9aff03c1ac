# SPDX-License-Identifier: MIT
"""udev rules: what is read, what counts as onlining memory, and what hides what."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safemem.realroot import udevrules
from tests.vm.kit import VENDOR

ROOT = Path(__file__).resolve().parent.parent

#: Rules that online memory, in our words, by what domain and manuals say the vendors' do.
ONLINING = {
    "hot-added memory at once": 'SUBSYSTEM=="memory", ACTION=="add", ATTR{state}=="offline", ATTR{state}="online"',
    "in a zone": 'SUBSYSTEM=="memory", ATTR{state}="online_movable"',
    "a variable decides": 'ENV{.state}="online"\nSUBSYSTEM=="memory", ATTR{state}="$env{.state}"',
    "split over lines": 'SUBSYSTEM=="memory", \\\n# a comment in between\n  ACTION=="add", \\\n  ATTR{state}="online"',
    "a shell writes": 'SUBSYSTEM=="memory", RUN+="/bin/sh -c \'echo online_movable > /sys$devpath/state\'"',
    "a program": 'SUBSYSTEM=="memory", PROGRAM=="/usr/bin/chmem -e all"',
    "a unit for dax": 'SUBSYSTEM=="dax", TAG+="systemd", ENV{SYSTEMD_WANTS}="daxdev-reconfigure@$env{DEVNAME}.service"',
    "daxctl itself": 'SUBSYSTEM=="dax", RUN{program}+="/usr/bin/daxctl online-memory"',
    "escaped": 'SUBSYSTEM=="memory", ATTR{state}=e"onl\\ine"',
    "read with case ignored": 'SUBSYSTEM==i"MEMORY", KERNEL=="memory*", ATTR{state}="online"',
    "the other attribute": 'KERNEL=="memory[0-9]*", ATTR{online}="1"',
    "an import": 'SUBSYSTEM=="memory", IMPORT{program}="/usr/sbin/chmem -e 0x100000000-0x13fffffff"',
    "after a form feed": 'SUBSYSTEM=="memory", \x0c ATTR{state}="online"',
    "not to be read": 'SUBSYSTEM=="memory", ATTR{state}?="online"',
    "no subsystem named": 'KERNEL=="memory*", ATTR{state}="online"',
    "for every device": 'ACTION=="add", ATTR{online}="1"',
    "the other attribute, behind a jump": 'SUBSYSTEM!="memory", GOTO="end"\nACTION=="add", ATTR{online}="1"\nLABEL="end"',
    "the other attribute, in other words": 'SUBSYSTEM=="memory", ATTR{online}="Y"',
    "of another device": 'SUBSYSTEM=="acpi", ATTR{[memory/memory32]state}="online"',
    "of another device, one word": 'ACTION=="add", ATTR{[memory/memory32]online}="1"',
    "of a node's block": 'SUBSYSTEM=="node", ATTR{memory32/state}="online_kernel"',
    "of whichever block": 'SUBSYSTEM=="node", ATTR{*/state}="online"',
    "of the board's device": 'SUBSYSTEM=="acpi", ATTR{physical_node/online}="1"',
    "the kernel's own onlining": 'SUBSYSTEM=="cpu", ATTR{../../memory/auto_online_blocks}="online"',
    "once and for all": 'SUBSYSTEM=="memory", ATTR{state}:="online"',
    "a script by any name": 'SUBSYSTEM=="memory", ACTION=="add", RUN+="/usr/local/bin/new-block.sh $env{DEVPATH}"',
    "a script by any name, as a condition": 'SUBSYSTEM=="memory", PROGRAM=="/opt/agent/x %k"',
    "a script by any name, at last": 'SUBSYSTEM=="memory", RUN{program}+="agent"',
    "a script behind a jump": 'SUBSYSTEM!="memory", GOTO="end"\nRUN+="/opt/x"\nLABEL="end"',
    "a script behind a jump for memory": 'SUBSYSTEM=="memory", GOTO="mine"\nGOTO="end"\nLABEL="mine"\nRUN+="/opt/x"\nLABEL="end"',
    "a script by a mark": 'SUBSYSTEM=="memory", TAG+="mine"\nTAG=="mine", RUN+="/opt/x"',
    "a script by a variable": 'SUBSYSTEM=="memory", ENV{MINE}="1"\nENV{MINE}=="1", RUN+="/opt/x"',
    "a mark that both have": 'SUBSYSTEM=="memory", TAG+="x"\nSUBSYSTEM=="block", TAG+="x"\nTAG=="x", RUN+="/opt/x"',
    "a shell that looks up what it runs": 'SUBSYSTEM=="memory", RUN+="/bin/sh -c \'echo $$(/opt/x) > /run/x\'"',
    "a script, the subsystem as a variable": 'ENV{SUBSYSTEM}=="memory", RUN+="/opt/x"',
    "a shell": 'SUBSYSTEM=="memory", RUN+="/bin/sh -c \'echo 1 > /sys$devpath/online\'"',
    "a shell for every device": 'RUN+="/bin/sh -c \'echo 1 > /sys$devpath/online\'"',
    "a shell that is told where": 'SUBSYSTEM=="memory", RUN+="/bin/sh -c \'echo 1 > $env{WHERE}\'"',
    "a shell that looks and writes": 'SUBSYSTEM=="memory", RUN+="/bin/sh -c \'test -e /x && cat /x >/proc/1/root/sys/x\'"',
    "a shell with a pipe": 'SUBSYSTEM=="memory", RUN+="/bin/sh -c \'echo 1 | tee /x\'"',
    "a unit of any name": 'SUBSYSTEM=="memory", ENV{SYSTEMD_WANTS}+="agent@%k.service"',
    "a unit for dax by the new rule": 'SUBSYSTEM=="dax", TAG+="systemd", PROGRAM="/usr/bin/systemd-escape -p --template=x@.service $env{DEVNAME}", ENV{SYSTEMD_WANTS}="%c"',
    "imported": 'SUBSYSTEM=="memory", IMPORT{program}="/opt/x"',
    "part of a subsystem's name": 'SUBSYSTEM=="mem*", ATTR{state}="online"',
    "a class of characters": 'SUBSYSTEM=="[m]emory", ATTR{state}="online"',
    "alternatives": 'SUBSYSTEM=="cpu|memory", ATTR{online}="1"',
    "not another subsystem": 'SUBSYSTEM!="cpu", ATTR{online}="1"',
    "not in capitals": 'SUBSYSTEM!="MEMORY", ATTR{state}="online"',
    "by its path": 'DEVPATH=="/devices/system/memory/*", ATTR{online}="1"',
    "escaped as numbers": 'SUBSYSTEM=="memory", ATTR{state}=e"\\x6f\\156line"',
    "a value made up": 'SUBSYSTEM=="memory", ATTR{state}="on%c{1}"',
    "behind a jump that is refused": 'SUBSYSTEM!="cpu", NONSENSE=="1", GOTO="end"\nATTR{online}="1"\nLABEL="end"',
    "behind a jump to nowhere": 'SUBSYSTEM!="cpu", GOTO="nowhere"\nATTR{online}="1"',
    "behind a jump that goes back": 'LABEL="end"\nSUBSYSTEM!="cpu", GOTO="end"\nATTR{online}="1"',
    "after a label": 'SUBSYSTEM=="memory", GOTO="in"\nSUBSYSTEM!="cpu", GOTO="end"\nLABEL="in"\nATTR{online}="1"\nLABEL="end"',
    "put together from two lines": 'SUBSYSTEM=="memory", ATTR{state}="on\\\n    line_movable"',
    "two backslashes, then nothing": 'SUBSYSTEM=="memory", \\\\\n\nATTR{state}="online"',
    "commas of all kinds": ',,SUBSYSTEM=="memory",, ,ATTR{state}="online" , ',
    "a quote behind a backslash": 'SUBSYSTEM=="memory", ENV{X}="a\\\\", ENV{Y}=", ATTR{state}="online", ENV{Z}="1"',
    "an assignment with both marks": 'SUBSYSTEM=="memory", ATTR{state}=ie"online"',
    "yes in another word": 'SUBSYSTEM=="memory", ATTR{online}="enabled"',
    "of a block whose name a program finds": 'SUBSYSTEM=="cpu", PROGRAM="/x", ATTR{../../memory%c/state}="online"',
    "of what a program finds": 'SUBSYSTEM=="acpi", PROGRAM="/x", ATTR{$result/state}="online"',
    "of the bus": 'SUBSYSTEM=="module", ATTR{[subsystem/memory]auto_online_blocks}="online_kernel"',
    "a variable that names a program": 'ENV{DO}="/usr/bin/chmem -e all"\nSUBSYSTEM=="node", RUN+="$env{DO}"',
    "a variable that names it shortly": 'ENV{DO}="/usr/bin/chmem -e all"\nSUBSYSTEM=="node", RUN+="%E{DO}"',
    "an older kind of program": 'SUBSYSTEM=="memory", RUN{fail_event_on_error}+="/usr/bin/chmem -e all"',
    "a loop for a node": 'SUBSYSTEM=="node", RUN+="/bin/sh -c \'for b in /sys$devpath/memory*/state; do echo online > $$b; done\'"',
    "by a pipe": 'SUBSYSTEM=="container", RUN+="/bin/sh -c \'echo online_movable | tee /sys/bus/memory/devices/*/state\'"',
    "a copy": 'SUBSYSTEM=="cxl", RUN+="/bin/dd if=/run/x of=/sys/devices/system/memory/auto_online_blocks"',
    "for a driver": 'SUBSYSTEM=="drivers", KERNEL=="virtio_mem", RUN+="/bin/sh -c \'chmem --enable 4G\'"',
    "whatever is below a container": 'SUBSYSTEM=="container", RUN+="/bin/sh -c \'for f in $(find /sys$devpath/ -name online); do echo 1 > $$f; done\'"',
    "of a board's device by a shell": 'SUBSYSTEM=="acpi", RUN+="/bin/sh -c \'echo online > /sys$devpath/physical_node/state\'"',
    "for a region": 'SUBSYSTEM=="vmbus", RUN+="/usr/bin/daxctl reconfigure-device --mode=system-ram all"',
    "a unit by a template of a program's": 'SUBSYSTEM=="dax", PROGRAM="/bin/systemd-escape --template=foo@.service %k", ENV{SYSTEMD_WANTS}+="$result"',
    "a unit with a made-up name": 'SUBSYSTEM=="memory", ENV{SYSTEMD_WANTS}+="%c{2}.service"',
    "only where something is": 'SUBSYSTEM=="memory", TEST=="/run/x", CONST{virt}=="kvm", SYSCTL{kernel/x}=="1", ATTR{state}="online"',
    "after an import": 'SUBSYSTEM=="memory", IMPORT{cmdline}="hot", IMPORT{file}="/run/x", IMPORT{db}="y", IMPORT{parent}="Z*", ENV{hot}=="1", ATTR{state}="online"',
    "as RHEL has it": 'SUBSYSTEM!="memory", ACTION!="add", GOTO="end"\nPROGRAM="/bin/uname -p", RESULT=="s390*", GOTO="end"\nENV{.state}="online"\nATTR{state}=="offline", ATTR{state}="$env{.state}"\nLABEL="end"',
    "as Ubuntu has it": 'SUBSYSTEM=="memory", ACTION=="add", DEVPATH=="/devices/system/memory/memory[0-9]*", TEST=="state", ATTR{state}!="online", ATTR{state}="online"',
}  # fmt: skip
HARMLESS = {
    "a network's target": 'SUBSYSTEM=="net", ACTION=="add", TAG+="systemd", ENV{SYSTEMD_WANTS}+="network-online.target"',
    "a network's wait": 'SUBSYSTEM=="net", KERNEL=="eth*", ENV{SYSTEMD_WANTS}+="systemd-networkd-wait-online@lan0.service"',
    "a disk's unit by its name": 'SUBSYSTEM=="block", ENV{SYSTEMD_WANTS}+="raid-online@%k.service"',
    "a file system of pmem": 'SUBSYSTEM=="block", KERNEL=="pmem*", ENV{SYSTEMD_WANTS}+="mnt-dax.mount"',
    "a card's unit": 'SUBSYSTEM=="block", ENV{SYSTEMD_WANTS}+="memory-card-import@%k.service"',
    "a user's unit": 'SUBSYSTEM=="sound", ENV{SYSTEMD_USER_WANTS}+="pipewire-onlines.service"',
    "a comment behind a disk's rule": 'SUBSYSTEM=="block", SYMLINK+="x" # set memory card state',
    "quotes in quotes for a network": 'SUBSYSTEM=="net", RUN+="/bin/sh -c "ip link set up; echo online""',
    "a state below /run": 'ACTION=="add", RUN+="/bin/sh -c \'STATE=/run/net/x; echo online > $$STATE\'"',
    "only whose it is": 'SUBSYSTEM=="memory", RUN+="/bin/chgrp mem /sys%p/state", RUN+="/bin/chmod g+w /sys%p/state"',
    "only logs, to a file of its own": 'SUBSYSTEM=="memory", RUN+="/bin/sh -c \'echo %k >> /tmp/memory-$env{ACTION}.log\'"',
    "an old way to tell udev": 'SUBSYSTEM=="memory", RUN+="socket:@/org/kernel/udev/monitor"',
    "kdump's early unit": 'SUBSYSTEM=="memory", TAG+="systemd", ENV{SYSTEMD_WANTS}+="kdump-early.service"',
    "only looks": 'SUBSYSTEM=="memory", ATTR{state}=="online", TAG+="seen"',
    "a comment": '# SUBSYSTEM=="memory", ATTR{state}="online"',
    "takes off": 'SUBSYSTEM=="memory", ATTR{state}="offline"',
    "another device's state": 'SUBSYSTEM=="power_supply", ATTR{state}="online"',
    "processors": 'SUBSYSTEM=="cpu", ACTION=="add", ATTR{online}="1"',
    "processors behind a jump": 'SUBSYSTEM!="cpu", GOTO="end"\nACTION=="add", ATTR{online}="1"\nLABEL="end"',
    "processors by name": 'KERNEL=="cpu[0-9]*", ATTR{online}="1"',
    "everything but memory": 'SUBSYSTEM=="memory", GOTO="end"\nATTR{online}="1"\nLABEL="end"',
    "switched off": 'SUBSYSTEM=="*", GOTO="end"\nSUBSYSTEM=="memory", ATTR{state}="online"\nLABEL="end"',
    "a disk's state": 'SUBSYSTEM=="scsi", RUN+="/bin/sh -c \'echo running > /sys$devpath/state\'"',
    "a script for disks": 'SUBSYSTEM=="block", RUN+="/opt/x"',
    "a unit for disks": 'SUBSYSTEM=="block", ENV{SYSTEMD_WANTS}+="x.service"',
    "a script by a disk's mark": 'SUBSYSTEM=="block", TAG+="mine"\nTAG=="mine", RUN+="/opt/x"',
    "taken back": 'SUBSYSTEM=="memory", RUN-="/opt/x"',
    "built in": 'SUBSYSTEM=="memory", RUN{builtin}+="kmod load"',
    "when it goes": 'SUBSYSTEM=="memory", ACTION=="remove", RUN+="/opt/x"',
    "only logs": 'SUBSYSTEM=="memory", RUN+="/bin/sh -c \'echo $devpath >> /var/log/blocks 2>&1\'"',
    "only says": 'SUBSYSTEM=="memory", RUN+="/usr/bin/logger new block %k"',
    "kdump of Debian and Ubuntu": 'SUBSYSTEM=="memory", ACTION=="offline", PROGRAM="/usr/sbin/kdump-config try-reload"',
    "kdump of RHEL 7": 'SUBSYSTEM=="memory", ACTION=="online", PROGRAM="/bin/systemctl try-restart kdump.service"',
    "kdump of Fedora": 'SUBSYSTEM=="cpu", ACTION=="online", GOTO="reload"\nSUBSYSTEM=="memory", ACTION=="online", GOTO="reload"\nGOTO="end"\nLABEL="reload"\nRUN+="/bin/sh -c \'/usr/bin/systemctl is-active kdump.service || exit 0; /usr/bin/systemd-run --quiet --no-block /usr/lib/udev/kdump-udev-throttler\'"\nLABEL="end"',
    "only counts": 'SUBSYSTEM=="memory", RUN+="/bin/sh -c \'grep -c online /sys/devices/system/memory/memory*/state >/run/x\'"',
    "kernel's word is offline": 'SUBSYSTEM=="cpu", ATTR{../../memory/auto_online_blocks}="offline"',
    "takes off by program": 'SUBSYSTEM=="node", RUN+="/usr/bin/chmem -d 4G"',
    "lists": 'SUBSYSTEM=="dax", ACTION=="remove", RUN+="/usr/bin/daxctl list"',
    "looks into memory for another device": 'SUBSYSTEM=="cpu", RUN+="/bin/sh -c \'cat /sys/devices/system/memory/block_size_bytes >/run/x\'"',
    "a disk's state by another way": 'ACTION=="add", SUBSYSTEM=="scsi", ATTR{state}=="offline", RUN+="/bin/sh -c \'echo running > /sys$devpath/state\'"',
    "a disk's timeout": 'ACTION=="add", SUBSYSTEMS=="scsi", ATTRS{vendor}=="VMware*", RUN+="/bin/sh -c \'echo 180 >/sys$DEVPATH/device/timeout\'"',
    "processors by a shell": 'SUBSYSTEM=="cpu", ACTION=="add", RUN+="/bin/sh -c \'echo 1 > /sys$devpath/online\'"',
    "every device's state, in a disk's word": 'ACTION=="add", RUN+="/bin/sh -c \'echo running > /sys$devpath/state\'"',
    "logs with the date": 'SUBSYSTEM=="memory", RUN+="/bin/sh -c \'echo $$(date) `hostname` $devpath >> /var/log/x; cat /sys$devpath/state >> /var/log/x\'"',
    "takes off by a shell": 'SUBSYSTEM=="memory", RUN+="/bin/sh -c \'[ -e /run/x ] && echo offline > /sys$devpath/state\'"',
    "wants kdump": 'SUBSYSTEM=="memory", ENV{SYSTEMD_WANTS}+="kdump.service"',
    "daxctl, told not to": 'SUBSYSTEM=="dax", RUN+="/usr/bin/daxctl reconfigure-device --mode=system-ram --no-online %k"',
    "replays": 'SUBSYSTEM=="memory", RUN+="udevadm trigger --subsystem-match=dax"',
    "builtin by the older word": 'SUBSYSTEM=="memory", IMPORT{program}="path_id"',
    "memory of the firmware's tables": 'ACTION=="remove", GOTO="end"\nSUBSYSTEM!="dmi", GOTO="end"\nIMPORT{program}="dmi_memory_id"\nLABEL="end"',
    "commas and comments": ',# x\nSUBSYSTEM=="memory",, ATTR{online}=="1", TAG+="seen",',
    "volumes and arrays": 'SUBSYSTEM=="block", PROGRAM="/sbin/mdadm --x", ENV{SYSTEMD_WANTS}+="mdmonitor.service", RUN+="/usr/bin/systemd-run --no-block /sbin/vgchange -aay"',
    "systemd's device nodes": 'SUBSYSTEM=="mem", KERNEL=="mem|kmem|port", GROUP="kmem", MODE="0640"',
}  # fmt: skip


def test_every_known_file(tmp_path: Path) -> None:
    """Each file that is masked by name is a test input, here and in guests, and is found by what it does as well."""
    folder = tmp_path / "usr/lib/udev/rules.d"
    folder.mkdir(parents=True)
    for name, text in VENDOR.items():
        (folder / name).write_text(text)

    assert tuple(sorted(VENDOR)) == udevrules.KNOWN
    assert [os.path.basename(item.file) for item in udevrules.find(str(tmp_path))] == sorted(VENDOR)


@settings(max_examples=500, deadline=None)
@given(
    before=st.text(), after=st.text(), text=st.sampled_from([text for text in ONLINING.values() if "\n" not in text])
)
def test_no_text_hides_a_rule(before: str, after: str, text: str) -> None:
    """Whatever stands around it, a rule that onlines memory is found; reading never raises."""
    udevrules.parse(before)
    whole = f"{before}\n\n{text}\n{after}"
    assert any(udevrules.onlines(rule) for rule in udevrules.parse(whole))


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\n\r\0\\#"), min_size=1), max_size=5))
def test_nothing_is_dropped(lines: list[str]) -> None:
    """Every line that says something is a rule: what was not understood of it is its rest."""
    rules = udevrules.parse("\n".join(lines))
    assert [rule.line for rule in rules] == [n for n, line in enumerate(lines, 1) if line.strip()]
    assert all(rule.items or rule.rest for rule in rules)
    assert all(
        rule.rest == line.strip() for rule, line in zip(rules, filter(str.strip, lines), strict=True) if not rule.items
    )


def test_what_is_no_file(tmp_path: Path) -> None:
    """A FIFO does not stop the reader; what cannot be read may online memory; a link to nowhere does not, nor a mask."""
    folder = tmp_path / "etc/udev/rules.d"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "10-fifo.rules")
    (folder / "20-gone.rules").symlink_to("20-gone.rules.d/nothing")
    (folder / "25-loop.rules").symlink_to("25-loop.rules")
    (folder / "30-null.rules").symlink_to("/dev/null")
    found = udevrules.find(str(tmp_path))

    assert [(item.file[-13:], item.what) for item in found] == [
        (name, "cannot be read, so it may online memory") for name in ("10-fifo.rules",)
    ]


@pytest.mark.parametrize("text", ONLINING.values(), ids=ONLINING)
def test_onlining_rules_are_found(tmp_path: Path, text: str) -> None:
    """Each way to online memory is found, on the line where its rule begins."""
    folder = tmp_path / "usr/lib/udev/rules.d"
    folder.mkdir(parents=True)
    (folder / "50-x.rules").write_text(f"# first line\n{text}\n")
    found = udevrules.find(str(tmp_path))

    assert {item.file for item in found} == {"usr/lib/udev/rules.d/50-x.rules"}
    assert len(found) == 1
    # A rule begins on its first line, wherever the word that counts is.
    before = "" if "\\\n" in text else text[: max(text.find(found[0].what), 0)]
    assert found[0].line == 2 + before.count("\n")
    assert "50-x.rules" in udevrules.masks(str(tmp_path))


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_harmless_rules_are_not(tmp_path: Path, text: str) -> None:
    """Nothing is masked that does not online memory."""
    (tmp_path / "etc/udev/rules.d").mkdir(parents=True)
    (tmp_path / "etc/udev/rules.d/50-x.rules").write_text(text)

    assert udevrules.find(str(tmp_path)) == []


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in it is not known, which is not nothing; a folder that is not there is."""
    real = os.listdir

    def listdir(path: Path) -> list[str]:
        if str(path).endswith("etc/udev/rules.d"):
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    found = udevrules.find(str(tmp_path))
    assert [(item.file, item.what) for item in found] == [
        ("etc/udev/rules.d", "cannot be listed, so a rule in it may online memory")
    ]
    assert udevrules.masks(str(tmp_path)) == udevrules.KNOWN


def test_a_link_to_nowhere_hides_nothing(tmp_path: Path) -> None:
    """The file of that name in a later folder counts: udev of systemd 262 reads it, 252 and 257 do not."""
    for folder in ("etc/udev/rules.d", "usr/lib/udev/rules.d"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/udev/rules.d/40-x.rules").symlink_to("nowhere")
    (tmp_path / "usr/lib/udev/rules.d/40-x.rules").write_text(ONLINING["in a zone"])
    assert "usr/lib/udev/rules.d/40-x.rules" in [item.file for item in udevrules.find(str(tmp_path))]


def test_a_mask_hides_the_file(tmp_path: Path) -> None:
    """A file of the same name in an earlier folder, or a link to /dev/null, replaces it."""
    for folder in ("usr/lib/udev/rules.d", "run/udev/rules.d"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "usr/lib/udev/rules.d/40-x.rules").write_text(ONLINING["in a zone"])
    assert len(udevrules.find(str(tmp_path))) == 1
    (tmp_path / "run/udev/rules.d/40-x.rules").symlink_to("/dev/null")
    assert udevrules.find(str(tmp_path)) == []


def test_our_own_rules_are_understood() -> None:
    """Our file is read to the last character, and does what it is for."""
    rules = udevrules.parse((ROOT / "udev/60-safemem.rules").read_text())

    assert [rule.rest for rule in rules] == [""] * len(rules)
    assert sum(udevrules.onlines(rule) is not None for rule in rules) == 1
    if shutil.which("udevadm"):
        version = int(subprocess.run(["udevadm", "--version"], capture_output=True, text=True, check=True).stdout)
        if version >= 254:  # Debian 12 has 252; `verify` came with 254
            subprocess.run(["udevadm", "verify", ROOT / "udev/60-safemem.rules"], check=True)


#: Programs for memory that packages of Debian bring: all that may be found in them.
OWN = ("90-daxctl-device.rules",)


def test_the_machine_s_own_rules_are_read() -> None:
    """Every rule that this machine has is understood, and none is masked without a cause: the parser meets the real world."""
    folder = Path("/usr/lib/udev/rules.d")
    if not folder.is_dir():
        pytest.skip("this machine has no udev rules")
    for path in sorted(folder.glob("*.rules")):
        assert [rule for rule in udevrules.parse(path.read_text("utf-8", "replace")) if rule.rest] == [], path
        assert path.name in OWN or udevrules.onliners(udevrules.parse(path.read_text("utf-8", "replace"))) == [], path


#: Scripts that a rule for memory runs, and what is found in them; the last line of each is the one.
SCRIPTS = {
    "by the device's path": ("#!/bin/sh\necho online > /sys$DEVPATH/state\n", True),
    "by its argument": ('#!/bin/bash\nset -e\nprintf online_movable > "/sys$1/state"\n', True),
    "in a loop": ("for b in /sys/devices/system/memory/memory*/state; do\n  echo online > $b\n", True),
    "by a program": ("#!/bin/sh\nexec chmem -e all\n", True),
    "in Python": ("#!/usr/bin/python3\nimport sys\nopen(f'/sys{sys.argv[1]}/state', 'w').write('online')\n", True),
    "by systemd-cat": ("#!/bin/sh\nsystemd-cat -t m chmem -e all\n", True),
    "by a function": ('#!/bin/sh\nwr() { echo "$1" > "$2"; }\nwr online /sys$DEVPATH/state\n', False),
    "what it writes is not known": ("#!/bin/sh\necho $WORD > /sys$DEVPATH/state\n", False),
    "by another program that is not there": ('#!/bin/sh\n/opt/agent/tell "$DEVPATH"\n', False),
}
QUIET = {
    "kdump of SUSE": '#!/bin/bash\nKEXEC=/sbin/kexec\nload() {\n  echo "$CMDLINE" > "$(mktemp)"\n  $KEXEC -p "$KERNEL" --initrd="$INITRD"\n}\nload\n',
    "by way of a file": "#!/bin/sh\nT=$(mktemp)\ngrep -c online /sys/devices/system/memory/memory*/state | tee $T\nsed -i s/a/b/ $T\nmv $T /run/blocks\n",
    "tells a monitor": '#!/bin/sh\ncase "$1" in\nadd|change) curl -s -d "block=$2" http://mon/ || true ;;\nesac\n',
    "logs": '#!/bin/sh\nlogger "new block $1"\necho "$(date) $1" >> /var/log/blocks\n',
    "counts": "#!/bin/sh\ngrep -l online /sys/devices/system/memory/memory*/state | wc -l > /run/blocks\n",
    "takes off": "#!/bin/sh\necho offline > /sys$DEVPATH/state\n",
    "reloads kdump": "#!/bin/sh\nsystemctl try-restart kdump.service\n",
    "another file of the kernel's": "#!/bin/sh\necho 1 > $fadump_registered\necho 1 > /sys/kernel/fadump/registered\n",
    "only speaks of it": "#!/bin/sh\n# echo online > /sys/devices/system/memory/memory32/state\nlogger seen\n",
}
RUNS = 'SUBSYSTEM=="memory", ACTION=="add", RUN+="/usr/local/bin/new-block $env{DEVPATH}"\n'


def with_script(root: Path, text: str | bytes, rule: str = RUNS) -> list[udevrules.Onliner]:
    """Return what is found where a rule runs this script."""
    for folder in ("etc/udev/rules.d", "usr/local/bin"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "etc/udev/rules.d/50-x.rules").write_text(rule)
    (root / "usr/local/bin/new-block").write_bytes(text if isinstance(text, bytes) else text.encode())
    return udevrules.find(str(root))


@pytest.mark.parametrize(("text", "sure"), SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_is_read(tmp_path: Path, text: str, sure: bool) -> None:
    """What it does counts, with its file and line; where that is not known, it may."""
    (found,) = with_script(tmp_path, text)
    assert (found.what, found.sure) == ('RUN+="/usr/local/bin/new-block $env{DEVPATH}"', sure)
    line = text.count("\n")
    assert found.why.startswith(f"usr/local/bin/new-block:{line}: ") or "there is no /opt/agent/tell here" in found.why


@pytest.mark.parametrize("text", QUIET.values(), ids=QUIET)
def test_a_script_that_only_logs_is_not_touched(tmp_path: Path, text: str) -> None:
    """Neither masked nor reported, by whichever way it is named."""
    assert with_script(tmp_path, text) == []
    (tmp_path / "usr/lib/udev").mkdir(parents=True)
    (tmp_path / "usr/lib/udev/mine").symlink_to("/usr/local/bin/new-block")
    assert with_script(tmp_path, text, RUNS.replace("/usr/local/bin/new-block", "mine")) == []
    assert (
        with_script(
            tmp_path,
            text,
            RUNS.replace("/usr/local/bin/new-block", "/bin/sh -c '/usr/local/bin/new-block'").replace(
                " $env{DEVPATH}", ""
            ),
        )
        == []
    )


def test_what_is_no_script_may_online(tmp_path: Path) -> None:
    """For memory alone, and it says why; for other devices it is nobody's business."""
    (found,) = with_script(tmp_path, b"\x7fELF\0\0")
    assert (found.sure, found.why) == (
        False,
        "usr/local/bin/new-block is no script that can be read, so what it does is not known",
    )
    (tmp_path / "usr/local/bin/new-block").unlink()
    (found,) = udevrules.find(str(tmp_path))
    assert (found.sure, found.why) == (False, "there is no /usr/local/bin/new-block here, so what it does is not known")
    assert with_script(tmp_path, b"\x7fELF\0\0", RUNS.replace("memory", "node")) == []


@pytest.mark.parametrize(
    "text",
    [
        "#!/usr/bin/python3\nimport lib\nlib.handle()\n",
        '#!/usr/bin/python3\np = q()\np.write_text("online_" + x)\n',
        '#!/bin/sh\nmemagent online "$DEVPATH"\n',
        '#!/bin/sh\n/usr/sbin/memagent online "$DEVPATH"\n',
        '#!/bin/sh\nif true; then exec memagent "$@"; fi\n',
        '#!/bin/sh\ntimeout 10s memagent "$DEVPATH"\n',
        '#!/bin/sh\nx="$(memagent $DEVPATH)"\n',
        "#!/bin/sh\nfind /sys$DEVPATH -name x -exec memagent {} \\;\n",
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_what_a_script_starts_is_known_or_may(tmp_path: Path, text: str, there: bool) -> None:
    """For memory alone: only a shell's script of which every command is known does nothing of the kind."""
    (tmp_path / "usr/sbin").mkdir(parents=True)
    if there:
        (tmp_path / "usr/sbin/memagent").write_bytes(b"\x7fELF\0")
    (found,) = with_script(tmp_path, text)
    assert not found.sure and "what it does is not known" in found.why
    assert with_script(tmp_path, text, RUNS.replace("memory", "block")) == []


def test_a_folder_is_no_file_of_rules(tmp_path: Path) -> None:
    """udev reads no rules from it, and nothing can be mounted over it; one of that name elsewhere counts."""
    (tmp_path / "etc/udev/rules.d/d.rules").mkdir(parents=True)
    assert udevrules.find(str(tmp_path)) == []
    (tmp_path / "usr/lib/udev/rules.d").mkdir(parents=True)
    (tmp_path / "usr/lib/udev/rules.d/d.rules").write_text(ONLINING["in a zone"])
    assert [item.file for item in udevrules.find(str(tmp_path))] == ["usr/lib/udev/rules.d/d.rules"]


def test_a_unit_s_name_counts_where_nobody_can_read_it(tmp_path: Path) -> None:
    """For memory's devices, and then it only may; one that is there is read."""
    rule = 'SUBSYSTEM=="%s", ENV{SYSTEMD_WANTS}+="memory-log.service"\n'
    assert [item.sure for item in with_script(tmp_path, "", rule % "memory|block")] == [False]
    assert [item.sure for item in with_script(tmp_path, "", rule % "memory")] == [False]
    (tmp_path / "usr/lib/systemd/system").mkdir(parents=True)
    unit = tmp_path / "usr/lib/systemd/system/memory-log.service"
    unit.write_text("[Service]\nExecStart=/usr/bin/logger x\n")
    assert with_script(tmp_path, "", rule % "memory") == []
    unit.write_text("[Service]\nExecStart=/usr/bin/chmem -e all\n")
    assert [item.sure for item in with_script(tmp_path, "", rule % "block")] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "".join(f'SUBSYSTEM=="net", GOTO="l{i}"\nLABEL="l{i}"\n' for i in range(12000)),
        "".join(f'SUBSYSTEM=="memory", ENV{{SYSTEMD_WANTS}}+="u{i % 9}.service"\n' for i in range(3000)),
        'SUBSYSTEM=="memory", \\\n' * 60000,
    ],
    ids=["jumps", "units", "continued"],
)
def test_it_takes_no_time(tmp_path: Path, text: str) -> None:
    """Whoever may write a rule cannot keep the hold at work with it: no boot goes on before it has ended."""
    for number in range(9):
        (tmp_path / "etc/systemd/system").mkdir(parents=True, exist_ok=True)
        unit = "[Service]\nExecStart=/usr/local/bin/new-block\n"
        (tmp_path / f"etc/systemd/system/u{number}.service").write_text(unit)
    begin = time.process_time()
    with_script(tmp_path, 'for i in $(ls /opt); do cat "$i"; done\n' * 2000, text)
    assert time.process_time() - begin < 6


def test_a_script_for_another_device_counts_by_what_is_in_it(tmp_path: Path) -> None:
    """A node's, a container's, any device's: where it speaks of memory; a disk's own state is the disk's."""
    for subsystem in ("node", "cpu", "cxl", "acpi", "container", "virtio", "module", "block"):
        rule = RUNS.replace("memory", subsystem)
        (found,) = with_script(tmp_path, SCRIPTS["in a loop"][0], rule)
        assert found.sure and found.why == "usr/local/bin/new-block:2: echo online > $b"
        assert with_script(tmp_path, "#!/bin/sh\necho running > /sys$DEVPATH/state\n", rule) == []


def test_what_only_may_does_not_cost_a_disk_its_rules(tmp_path: Path) -> None:
    """It is found for doctor, and not for whoever masks."""
    text = "#!/bin/sh\necho $WORD > /sys/devices/system/memory/auto_online_blocks\n"
    assert with_script(tmp_path, text, RUNS.replace("memory", "block")) == []
    assert [item.sure for item in udevrules.find(str(tmp_path), every=True)] == [False]
    assert "50-x.rules" not in udevrules.masks(str(tmp_path))
    assert [item.sure for item in with_script(tmp_path, text)] == [False]


def test_scripts_are_followed(tmp_path: Path) -> None:
    """One that starts another, or reads it in; one that starts itself ends."""
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/lib.sh").write_text("online() {\n  echo online > /sys$1/state\n}\n/usr/local/bin/new-block\n")
    for way in (
        ". /opt/lib.sh",
        "exec /opt/lib.sh $1",
        "if true; then timeout 5 sh /opt/lib.sh; fi",
        "X=1 /opt/lib.sh | cat",
    ):
        (found,) = with_script(tmp_path, f"#!/bin/sh\n{way}\n")
        assert (found.sure, found.why) == (True, "opt/lib.sh:2: echo online > /sys$1/state"), way


@pytest.mark.parametrize(
    ("unit", "sure"),
    [
        ("[Service]\nExecStart=/bin/sh -c 'echo online > /sys/bus/memory/devices/%i/state'\n", True),
        ("[Service]\nExecStart=/usr/bin/logger new block %I\n", None),
        ("[Service]\nExecStart=/opt/agent %I\n", False),
        (None, False),
    ],
)
def test_a_unit_that_a_rule_wants_is_read(tmp_path: Path, unit: str | None, sure: bool | None) -> None:
    """Its commands count, its drop-ins too; one that is not there may online what it is started for."""
    rule = 'SUBSYSTEM=="memory", TAG+="systemd", ENV{SYSTEMD_WANTS}+="new@%k.service"\n'
    (tmp_path / "usr/lib/systemd/system/new@.service.d").mkdir(parents=True)
    if unit is not None:
        (tmp_path / "usr/lib/systemd/system/new@.service").write_text(unit)
    started = 'SUBSYSTEM=="memory", RUN+="/usr/bin/systemctl --no-block start new@%k"\n'
    for way in (rule, started):
        assert [item.sure for item in with_script(tmp_path, "", way)] == ([] if sure is None else [sure])
    (tmp_path / "usr/lib/systemd/system/loop.service").write_text("[Service]\nExecStart=/bin/systemctl restart loop\n")
    assert with_script(tmp_path, "", rule.replace("new@%k", "loop")) == []
    drop_in = tmp_path / "usr/lib/systemd/system/new@.service.d/x.conf"
    drop_in.write_text("[Service]\nExecStart=\nExecStart=/usr/bin/chmem -e all\n")
    assert [item.sure for item in with_script(tmp_path, "", rule.replace("memory", "block"))] == [True] * (
        unit is not None
    )


def test_what_is_read_of_debian(tmp_path: Path) -> None:
    """In reduced words, what Debian 12, 13 and testing bring for memory and dax: one file onlines, and no other."""
    folder = tmp_path / "usr/lib/udev/rules.d"
    folder.mkdir(parents=True)
    (tmp_path / "usr/sbin").mkdir()
    (tmp_path / "usr/sbin/kdump-config").write_text("#!/bin/sh\nregister() {\n\techo 1 > $sys_fadump_registered\n}\n")
    for name, text in {
        "50-kdump-tools.rules": HARMLESS["kdump of Debian and Ubuntu"],
        "70-memory.rules": HARMLESS["memory of the firmware's tables"],
        "99-vmware-scsi-udev.rules": HARMLESS["a disk's timeout"],
        "90-daxctl-device.rules": 'ACTION=="add", SUBSYSTEM=="dax",\\\n  RUN+="/usr/bin/daxctl -C $env{DEVNAME}"\n',
    }.items():
        (folder / name).write_text(text)
    assert [(item.file, item.line, item.sure) for item in udevrules.find(str(tmp_path))] == [
        ("usr/lib/udev/rules.d/90-daxctl-device.rules", 1, True)
    ]
    new = ONLINING["a unit for dax by the new rule"].replace("x@", "daxdev-reconfigure@")
    (folder / "90-daxctl-device.rules").write_text(new)
    assert [item.what for item in udevrules.find(str(tmp_path))] == ['ENV{SYSTEMD_WANTS}="%c"']
