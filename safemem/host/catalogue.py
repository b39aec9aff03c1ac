# SPDX-License-Identifier: MIT
"""Every finding that `doctor` knows, by its code: how bad it is, what it says, and what to do about it."""

from __future__ import annotations

from typing import NamedTuple

from safemem.initramfs import check

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
_REBUILD = "have the image made anew: {rebuild}"

#: In the order in which a person would look.
CODES: dict[str, Entry] = {
    # What became of the decision.
    "no-decision": Entry(
        "severe",
        "safemem decided nothing in this boot",
        "have the next boot decide: {how}",
    ),
    "not-booted": Entry(
        "warning",
        "whether safemem has decided cannot be told: this is no running system, for it has no /proc",
        "what would happen at its next boot is below; ask for the rest where it runs",
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
        "keep udev from reading it: {command}",
    ),
    "udev-program": Entry(
        "warning",
        "a udev rule runs what may online memory: {rule}",
        "read what it does; if it onlines memory, keep udev from reading it: {command}",
    ),
    "masked-besides": Entry(
        "note",
        "{file} is masked because of memory, and with it rules for other devices: {others}",
        "put those into a rules file of their own, and udev reads them again",
    ),
    "unit-onlines": Entry(
        "severe",
        "unit {owner} {verb} memory{when}: {what}",
        "keep systemd from starting it: {command}",
    ),
    "tmpfiles-online": Entry(
        "severe",
        "systemd-tmpfiles {verb} memory at boot: {what}",
        "take the line out, or keep systemd-tmpfiles from reading the file: {command}",
    ),
    "script-onlines": Entry(
        "severe",
        "{owner} {verb} memory{when}: {what}",
        "take the line out, or have nothing start {owner}",
    ),
    "settings-online": Entry(
        "severe",
        "a setting {verb} memory: {what}",
        "take it out: {how}",
    ),
    "not-looked-at": Entry(
        "warning",
        "whether {path} onlines memory is not known: it cannot be read",
        "see why root cannot read it, and mend that, or look into it by hand: {command}",
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
    "agent-installed": Entry(
        "note", "{name} is installed, and onlines memory once it runs: {about}", "keep it from running, or from memory"
    ),
    # The handover, and where hot-added memory went.
    "cannot-tell": Entry(
        "warning",
        "whether a handover was accepted cannot be told on this machine",
        "use a kernel with CONFIG_KEXEC_HANDOVER_DEBUGFS and /proc/config.gz, and let debugfs be mounted; or have a token"
        " tell: `retrieve_token = true` in the policy, safemem-token.service before the kexec, and `safemem handover-args"
        " --token`",
    ),
    "no-handover-here": Entry(
        "severe",
        "no kernel of {arch} hands memory over, and none shows that nothing was handed to it: a policy that ends a boot with"
        " `handover` unknown ends each boot",
        "take safemem out of the initramfs: `safemem initramfs remove`; or use a policy that goes on, such as `minimal`"
        " (docs/machines.md)",
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
    "hv-balloon-stalls": Entry(
        "warning",
        "hv_balloon waits for each piece of memory that Hyper-V adds to come online, up to 5 seconds, and while memory is"
        " held none does: what is added is no use, and the host adds it at a crawl",
        "release what may be used, or keep Hyper-V from adding memory: hv_balloon.hot_add=0, or no dynamic memory",
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
    "guard-part": Entry(
        "warning",
        "a guard was asked for and only a part of it is in force: what the rest was to keep may be lost",
        "see `safemem handover-args --explain` before the next kexec: what the next kernel needs has to stay free",
    ),
    "guard-node-missing": Entry(
        "warning",
        "hugepages= asks for pages on node {node}, which this kernel does not have: it ignores the whole argument",
        "keep numa=off and numa=fake= off the next command line, and compute the guard anew before each kexec",
    ),
    "guard-let-go": Entry(
        "severe",
        "{area} was guarded by gigantic pages, and programs could map them or they are gone",
        "find who did (`safemem status`), and treat what was in that memory as lost",
    ),
    "pages-not-reserved": Entry(
        "severe",
        "any program can map gigantic pages that guard {size}, and the kernel clears a page that is mapped",
        "start safemem-watch.service, which reserves them anew",
    ),
    "page-mapped": Entry(
        "warning",
        "a program has mapped gigantic pages of the guard on node {node}, {number} of them: what was in them is lost",
        "start what maps gigantic pages later, not from the initramfs: the operator's own are there after a release",
    ),
    "clears-free-memory": Entry(
        "warning",
        "with {name} the kernel {what} all memory that no guard keeps, as soon as it boots: after a lost handover"
        " taking boot memory offline saves nothing, and a release of a guard wipes it",
        "leave {name} off the command line of hosts that hand memory over",
    ),
    "hugetlb-cma": Entry(
        "warning",
        "with hugetlb_cma= the kernel sets no gigantic pages aside at boot: the guard has its crash range only",
        "ask for gigantic pages by hugepages=NODE:NUMBER instead",
    ),
    "sysctl-pool": Entry(
        "warning",
        "{key} changes the pool of gigantic pages at each boot, guard included, as they are of the default size here",
        "ask for pages by hugepages= on the command line, which `handover-args` keeps, and remove the line",
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
    "initrd-not-told": Entry(
        "warning",
        "it cannot be told which image boots kernel {release}: whether safemem is in it is not known",
        "look at the boot loader's entries, and `safemem initramfs check IMAGE...` at the files that it reads",
    ),
    "initrd-unreadable": Entry("severe", "whether safemem decides at the next boot cannot be told", _REBUILD),
    "initrd-not-looked-into": Entry(
        "severe",
        "whether safemem decides at the next boot cannot be told: its initrd holds a file system that is not looked into",
        check.NotLookedInto.help,
    ),
    "initrd-without-safemem": Entry("severe", "the next boot is not safemem's: it is not in the initrd", _REBUILD),
    "initrd-not-first": Entry(
        "severe", "safemem is in the initrd, but it would not decide before everything else", _REBUILD
    ),
    "entry-undoes": Entry(
        "severe",
        "a word that the boot loader gives the next kernel keeps safemem from being started",
        "take the word out of the boot loader's entry, or out of what makes it (/etc/default/grub, /etc/kernel/cmdline)",
    ),
    "initrd-unproven": Entry("severe", "the image of the next boot does not say that its policy was proved", _REBUILD),
    "accepts-errors": Entry(
        "note",
        "the policy of the next boot has errors that it accepts by name",
        "`safemem check` shows them as notes; mend them, and take them out of `accept_errors`",
    ),
    "only-observes": Entry(
        "warning",
        "the policy of the next boot only observes: after a lost handover nothing is held",
        "take `observe` out of the policy once its decisions are what you want, and make the image anew",
    ),
    "policy-condemned": Entry(
        "severe",
        "{policy} has errors with which no image is built",
        "`safemem check` shows all of them, with a state and what to do",
    ),
    "policy-refused": Entry(
        "severe",
        "the policy of this machine cannot be built into the next initrd",
        f"mend {{policy}}, then {_REBUILD}",
    ),
    "policy-not-read": Entry(
        "warning",
        "whether the initrd has the policy of {policy} cannot be told",
        "install safemem anew, with everything that it needs",
    ),
    "initrd-other-policy": Entry("severe", "the initrd has another policy than {policy}", _REBUILD),
    "panic-resets": Entry(
        "warning",
        "a panic resets this machine, and what the policy keeps in memory by a panic is lost",
        "take panic= from the kernel's command line, and set kernel.panic=0 in /etc/sysctl.d",
    ),
    "no-kho": Entry(
        "warning",
        "this kernel has no KHO: it can neither accept a handover nor make one",
        "use Linux 6.16 or later with CONFIG_KEXEC_HANDOVER and CONFIG_KEXEC_HANDOVER_DEBUGFS",
    ),
    "fact-unknown": Entry(
        "warning",
        "nothing on this machine tells `{fact}`, so these rules do not decide here: {rules}",
        "add a rule that asks for `unknown`, or ask for something else",
    ),
    "old-kexec": Entry(
        "severe",
        "a reboot may load the next kernel with the old system call: it hands nothing over, and the next boot looks"
        " like a cold one",
        "set LOAD_KEXEC=false in /{settings}, and load with `kexec -s -l` (systemctl kexec then takes what is loaded)",
    ),
    # What is missing from this report.
    "not-root": Entry(
        "warning",
        "this report is not whole: only root can read {hidden}",
        "run it as root, or what it says of handover, drivers' memory, guard and image is a guess",
    ),
}
