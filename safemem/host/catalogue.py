# SPDX-License-Identifier: MIT
"""Every finding that `doctor` knows, by its code: how bad it is, what it says, and what to do about it."""

from __future__ import annotations

from typing import NamedTuple

SEVERITIES = ("severe", "warning", "note")


class Entry(NamedTuple):
    """What is the same each time that a finding is made; `{name}` stands for what the check has seen."""

    severity: str  #: one of SEVERITIES
    message: str
    remedy: str  #: "" where there is nothing to do


class Finding(NamedTuple):
    """One thing that stands in the policy's way."""

    code: str
    severity: str
    message: str
    evidence: str
    remedy: str


def finding(code: str, evidence: str, *, severity: str = "", **seen: object) -> Finding:
    """Return the finding of `code`; `seen` fills its texts, `severity` is given where it is not the usual one."""
    entry = CODES[code]
    return Finding(
        code, severity or entry.severity, entry.message.format(**seen), evidence, entry.remedy.format(**seen)
    )


_MEMHP = "boot with memhp_default_state=offline"
_REBUILD = "rebuild the initrd: `safemem initramfs install`"

#: In the order in which a person would look.
CODES: dict[str, Entry] = {
    # What became of the decision.
    "no-decision": Entry(
        "severe",
        "safemem decided nothing in this boot",
        "put it into the initramfs: `safemem initramfs install`",
    ),
    "onlined-by-others": Entry(
        "severe",
        "{area} was held and somebody onlined it",
        "find who did (the findings below), stop it, and treat what was in that memory as lost",
    ),
    "was-online": Entry(
        "warning",
        "{area} was online in this boot and was taken offline: what was in it may be lost",
        "see `safemem status`: who may have onlined it, or what was released",
    ),
    "not-applied": Entry("warning", "{problem}", "see `safemem status`"),
    "too-late": Entry("warning", "{warning}", f"{_MEMHP}, and with a guard for boot memory"),
    "onlined-before-us": Entry("severe", "{note}", f"{_MEMHP}; what was in that memory may be lost"),
    # What onlines memory by itself.
    "no-blocks": Entry("note", "this kernel shows no memory blocks, so there is nothing to hold", ""),
    "kernel-onlines": Entry(
        "severe",
        "the kernel onlines memory that is plugged in, before udev hears of it",
        f"{_MEMHP}, and let safemem run in the initramfs",
    ),
    "no-memhp-argument": Entry(
        "warning",
        "a DIMM that is there at boot is onlined by the kernel before any program runs",
        "add memhp_default_state=offline to the kernel's command line",
    ),
    "udev-rule": Entry(
        "severe",
        "a udev rule onlines memory: {rule}",
        "mask it: ln -s /dev/null /etc/udev/rules.d/{name}",
    ),
    "real-root-not-masked": Entry(
        "warning",
        "this system's own udev rules were not looked at before udev started",
        "install and enable safemem-hold.service",
    ),
    "no-udev-rule": Entry(
        "warning",
        "udev does not know what to do with blocks that arrive later",
        "install udev/{name} to /usr/lib/udev/rules.d",
    ),
    "daxctl": Entry(
        "severe",
        "daxctl turns a dax device into system RAM and onlines it ([{section}])",
        "remove the section, or keep it from onlining: daxctl-reconfigure-device(1)",
    ),
    "agent": Entry("warning", "{name} is running: {about}", "keep it from onlining memory, or stop it"),
    # The handover, and where hot-added memory went.
    "cannot-tell": Entry(
        "warning",
        "whether a handover was accepted cannot be told on this machine",
        "use a kernel with CONFIG_KEXEC_HANDOVER_DEBUGFS and /proc/config.gz, and let debugfs be mounted",
    ),
    "luo-missing": Entry(
        "warning",
        "liveupdate= asks for LUO, and there is no /dev/liveupdate",
        "boot with kho=on, and a kernel with CONFIG_LIVEUPDATE",
    ),
    "luo-without-kho": Entry(
        "warning",
        "liveupdate= is on and kho= is off: LUO cannot start",
        "add kho=on, or remove liveupdate=",
    ),
    "kernel-zone": Entry(
        "severe",
        "hot-added memory is in a kernel zone: the next live update dies if it preserves a page there",
        'online it movable: `zone = "movable"`, the default of online-all where KHO is on',
    ),
    # What a hold costs, and where it does not work.
    "memmap-cost": Entry(
        "warning",
        "holding {held} costs {cost} of memory map, out of {amount} {source}",
        "boot with memory_hotplug.memmap_on_memory=1",
    ),
    "virtio-mem-stalls": Entry(
        "warning",
        "virtio-mem plugs no more memory while many of its blocks are offline",
        "release what may be used, or let the host ask for less",
    ),
    "dlpar": Entry(
        "severe",
        "ppc64 DLPAR onlines memory whatever the policy says",
        "add no memory by DLPAR while some is held",
    ),
    # The guard.
    "guard-void": Entry(
        "warning", "a guard was asked for and is not in force", "compute it anew before the next kexec"
    ),
    "crash-kernel-in-guard": Entry(
        "severe",
        "a crash kernel was loaded into the guard: that part of it is overwritten",
        "stop kdump's unit on hosts that use a guard",
    ),
    "crash-kernel-allowed": Entry("severe", "{how} would be written into the guard", "{command}"),
    # The next boot.
    "no-initrd": Entry(
        "note",
        "no initrd was found for kernel {release}: whether safemem is in it is not known",
        "`safemem initramfs check IMAGE` looks into one",
    ),
    "initrd-unreadable": Entry("severe", "whether safemem decides at the next boot cannot be told", _REBUILD),
    "initrd-without-safemem": Entry("severe", "the next boot is not safemem's: it is not in the initrd", _REBUILD),
    "initrd-not-first": Entry(
        "severe", "safemem is in the initrd, but it would not decide before everything else", _REBUILD
    ),
    "policy-refused": Entry(
        "severe",
        "the policy of this machine cannot be built into the next initrd",
        f"mend /{{policy}}, then {_REBUILD}",
    ),
    "policy-not-read": Entry(
        "warning",
        "whether the initrd has the policy of /{policy} cannot be told",
        "install safemem anew, with everything that it needs",
    ),
    "initrd-other-policy": Entry("severe", "the initrd has another policy than /{policy}", _REBUILD),
    "old-kexec": Entry(
        "severe",
        "a reboot may load the next kernel with the old system call: it hands nothing over, and the next boot looks"
        " like a cold one",
        "set LOAD_KEXEC=false in /{settings}, and load with `kexec -s -l` (systemctl kexec then takes what is loaded)",
    ),
}
