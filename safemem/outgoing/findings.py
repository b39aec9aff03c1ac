# SPDX-License-Identifier: MIT
"""Every finding of preflight by its code: how bad it is, what it says, what to do; and the verdict that follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

#: The worst first. `unknown` is what was to be looked at and could not be.
SEVERITIES = ("error", "unknown", "warning", "note")
COMPATIBLE, INCOMPATIBLE, CANNOT_TELL = VERDICTS = ("compatible", "incompatible", "cannot tell")


class Entry(NamedTuple):
    """What is the same each time that a finding is made; `{name}` stands for what the check has seen."""

    severity: str  #: one of SEVERITIES
    message: str
    remedy: str = ""  #: "" where there is nothing to do


class Finding(NamedTuple):
    """One thing that was found out about the kexec."""

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


def verdict(found: Iterable[Finding]) -> str:
    """Return one of VERDICTS: any error decides, and then anything that is not known."""
    severities = {item.severity for item in found}
    return INCOMPATIBLE if "error" in severities else CANNOT_TELL if "unknown" in severities else COMPATIBLE


_OTHER = "choose a kernel that speaks what this one does, or end what is preserved and boot through the firmware"
_ANEW = "compute the arguments anew right before the kexec: `safemem handover-args`"
AS_ROOT = "run it as root, with debugfs on /sys/kernel/debug"
REBUILD = "rebuild the initrd: `safemem initramfs install`"

#: In the order in which a person would look.
CODES: dict[str, Entry] = {
    # This kernel.
    "kho-off": Entry("error", "this kernel hands nothing over: KHO is off", "boot a kernel that has KHO with kho=on"),
    "kho-untold": Entry("unknown", "whether this kernel hands anything over cannot be told", AS_ROOT),
    "other-file": Entry(
        "warning",
        "the file that should be the running kernel is another one: it was replaced since",
        "with --running, name the file this kernel was booted from; or reboot once",
    ),
    "running-on-word": Entry(
        "warning",
        "that the running kernel is {path} is taken as said: nothing here shows it",
        "run it on the machine itself, where /sys/kernel/notes tells",
    ),
    "running-differs": Entry(
        "unknown", "{path} is no image of the kernel that runs", "with --running, name the file this kernel was booted from"
    ),
    "at-stake": Entry("note", "something is preserved"),
    "stake-untold": Entry("note", "whether anything is preserved cannot be told, and counts as yes", AS_ROOT),
    "kernel-zone": Entry(
        "error",
        "hot-added memory is in a kernel zone: with preserved pages in it the next kernel dies before its first line",
        "online hot-added memory as movable, which policies do by default, and boot through the firmware once",
    ),
    "zone-untold": Entry(
        "unknown",
        "the zone of hot-added memory cannot be told: with preserved pages in a kernel zone the next kernel dies",
        "look at valid_zones of its blocks in /sys/devices/system/memory",
    ),
    "scratch-untold": Entry("unknown", "the scratch areas, from which the next kernel starts, cannot be read", AS_ROOT),
    "scratch-small": Entry(
        "error",
        "the scratch areas do not hold the next kernel and its initrd: {need} of {have}",
        "boot with larger areas: `safemem layout` prints the argument",
    ),
    "scratch-tight": Entry(
        "warning",
        "the scratch areas may be too small for a kernel that accepts: it may need {need}, and they have {have}",
        "boot with larger areas: `safemem layout` prints the argument",
    ),
    # The two kernels.
    "agreed": Entry("note", "the next kernel accepts what this one hands over"),
    "other-arch": Entry("error", "the next kernel is for another architecture", "choose the image for this machine"),
    "page-size": Entry("error", "the next kernel has pages of another size, and takes no handover", _OTHER),
    "no-kho": Entry("error", "the next kernel cannot read a handover: everything preserved is lost", _OTHER),
    "kho-differs": Entry("error", "the next kernel rejects the handover: everything preserved is lost", _OTHER),
    "luo-differs": Entry("error", "the next kernel panics by itself on what LUO hands over", _OTHER),
    "features-differ": Entry("error", "the next kernel lacks features that what is handed over requires", _OTHER),
    "pairing-untold": Entry(
        "unknown",
        "whether the next kernel takes the handover cannot be told",
        "{help}",
    ),
    "no-luo": Entry("error", "the next kernel has no LUO: every session is lost", _OTHER),
    # Seen on 7.3.4: EIO on every open.
    "handler-missing": Entry(
        "error",
        "the next kernel has no handler `{name}`: handed such a file, it opens /dev/liveupdate to nobody, and no session comes back",
        _OTHER,
    ),
    "producer-missing": Entry("error", "the next kernel does not know `{name}`: what it preserved is lost", _OTHER),
    "handlers-untold": Entry(
        "unknown",
        "which files sessions may hold cannot be told, as {what} not found",
        "{help}",
    ),
    "in-module": Entry("note", "files of `{name}` are restored by a module: it has to be loaded before they are asked for"),
    "image-untold": Entry("note", "not known from the image"),
    "several-profiles": Entry(
        "note", "the unified image has several profiles, and the first is looked at", "give --cmdline and --initrd"
    ),
    "cmdline-of-image": Entry(
        "warning",
        "the command line in the unified image was looked at, and kexec(8) passes another one or none",
        "give the same line to both, with --cmdline and --command-line",
    ),
    # How it is loaded.
    "old-loader": Entry("error", "kexec_load(2) hands nothing over", "load it with `kexec -s`"),
    "stale-handover": Entry(
        "error",
        "kexec_load(2) after a handover passes that of the kernel before on: the next one may accept what nobody offered",
        "load it with `kexec -s`",
    ),
    # The next command line.
    "no-cmdline": Entry(
        "unknown", "the next command line is not known: kho= and the guard stand there", "give it with --cmdline"
    ),
    "cmdline-dropped": Entry(
        "error", "the next kernel drops the command line that it is given, and takes the one that is built in",
        "choose a kernel that is built without {option}",
    ),
    "word-undoes": Entry("error", "`{word}`: {why}", "take it out"),
    "built-in-untold": Entry(
        "unknown", "whether the next kernel takes a command line of its own cannot be told: its configuration was not found",
        "keep the `config` file beside the image",
    ),
    "quote-open": Entry("error", "a quotation mark is not closed: what comes behind it is one argument", "close it"),
    "cmdline-long": Entry(
        "error", "the next command line has {size} bytes, and the kernel takes {most}", "take words out of it"
    ),
    "kho-not-asked": Entry(
        "error", "KHO is off in the next kernel: what is preserved stays reserved and is lost", "put kho=on on its command line"
    ),
    "kho-ask-untold": Entry(
        "unknown", "whether KHO is on in the next kernel cannot be told", "put kho=on on its command line"
    ),
    "luo-not-asked": Entry(
        "error", "LUO is off in the next kernel: every session is lost", "put liveupdate=on on its command line"
    ),
    "memhp-online": Entry(
        "warning",
        "the next kernel may online memory that is hot-added before any program runs",
        "put memhp_default_state=offline on its command line",
    ),
    "safemem-off": Entry("warning", "{word}: the next boot may do nothing of what is decided", "take it out"),
    "no-guard": Entry(
        "warning",
        "no guard: a next kernel that rejects the handover all the same may overwrite boot memory",
        "append what `safemem handover-args` prints",
    ),
    "guard-bad": Entry("error", "the guard cannot be read: {why}", _ANEW),
    "guard-not-asked": Entry("error", "the guard is told of, and not what reserves it: {missing}", _ANEW),
    "guard-stale": Entry(
        "error", "the guard lies where memory is not free: its reservation fails, which passes for an acceptance", _ANEW
    ),
    "guard-other": Entry("note", "the guard is another than would be computed now", _ANEW),
    "guard-untold": Entry("note", "whether the guard fits this machine cannot be told: {why}"),
    "guard-defeated": Entry("error", "`{word}` is reserved before the guard, and may lie inside it", "take it out"),
    "guard-overwritten": Entry(
        "warning", "`{word}`: the next kernel writes over all memory that is not guarded", "take it out"
    ),
    "guard-pages": Entry("warning", "huge pages leave a kernel that rejects too little: {note}", "ask for fewer pages on the next command line"),
    "no-kdump": Entry("note", "crashkernel= is the guard's: the next kernel reserves nothing for kdump"),
    "no-safe": Entry(
        "warning",
        "no safe region is told: should the handover fail, nothing says which memory may be used",
        "append what `safemem handover-args` prints",
    ),
    "safe-bad": Entry("error", "the safe region is ignored: {why}", _ANEW),
    "safe-unsealed": Entry("warning", "the safe region has no check sum: a line that was cut off is not found out", _ANEW),
    "safe-stale": Entry("error", "the safe region is not this kernel's scratch: preserved memory may lie in it", _ANEW),
    "word-bad": Entry("warning", "the word on what is preserved will not be taken: {why}", _ANEW),
    "word-stale": Entry("error", "the next command line says that nothing is preserved, and {what}", _ANEW),
    "token-stale": Entry("error", "the token on the next command line is not the one that is held: {why}", _ANEW),
    "panic-resets": Entry(
        "warning",
        "a panic resets the machine, and with it goes what it was to keep",
        "take panic= out, or set it to 0",
    ),
    # The next initrd.
    "no-initrd": Entry(
        "unknown", "no initrd was looked at: whether safemem decides in the next boot is not known", "give it with --initrd"
    ),
    "initrd-unreadable": Entry("error", "the initrd cannot be read as the kernel reads it: {why}", REBUILD),
    "initrd-not-looked-into": Entry(
        "unknown", "whether safemem is in the next initrd cannot be told: {why}",
        "have it made without dracut's module `squash`: what is appended behind such an image is not reached",
    ),
    "initrd-none": Entry("error", "the initrd is none: {why}", "{help}"),
    "initrd-without-safemem": Entry("error", "safemem is not in the next initrd: nothing decides there", REBUILD),
    "initrd-policy-unfit": Entry("error", "the policy in the initrd cannot be used: {why}", REBUILD),
    "initrd-not-first": Entry("error", "safemem is in the initrd and would not be started first: {why}", REBUILD),
    "initrd-other-policy": Entry("error", "the initrd has another policy than is meant: {why}", REBUILD),
    "initrd-unproven": Entry("warning", "the initrd does not say what was proved of its policy: {why}", REBUILD),
    "policy-not-named": Entry(
        "warning", "safemem.policy={name} names no policy of the initrd: the one that is built in decides", REBUILD
    ),
    "only-observes": Entry("warning", "the policy only observes: nothing of what it decides is done", "have it decide: without `observe`"),
    # What the policy makes of it.
    "reads-unknown": Entry(
        "note",
        "the next kernel has no files that show whether it accepted: the handover reads as `unknown`",
        "build it with CONFIG_KEXEC_HANDOVER_DEBUGFS, or have the policy take a token: retrieve_token",
    ),
    "reads-untold": Entry(
        "unknown",
        "whether the next kernel can show that it accepted cannot be told: its configuration was not found",
        "keep the `config` file beside the image",
    ),
    "policy-ends": Entry(
        "error",
        "the next boot ends in {action} by rule `{rule}`, though the handover is accepted: it reads as `{state}`",
        "`safemem simulate` shows why; change the policy, or what the next kernel can show",
    ),
    "policy-holds": Entry(
        "error",
        "the next boot ends in {action} by rule `{rule}`, and not in {wanted} as after an accepted handover",
        "`safemem simulate` shows why; change the policy, or what the next kernel can show",
    ),
    "policy-loose": Entry(
        "error", "should the handover fail, rule `{rule}` onlines all memory all the same: it reads as `{state}`",
        "`safemem check` proves a policy",
    ),
    "lost-unseen": Entry(
        "error",
        "if the handover is lost, the next boot takes it for a cold boot and onlines all memory: nothing on its command line"
        " says that a handover is to come",
        "append what `safemem handover-args` prints",
    ),
    # The profile.
    "profile-kernel": Entry("error", "the profile `{name}` does not allow the next kernel", "allow it: `safemem preflight --kernel IMAGE --write-profile FILE`"),
    "profile-versions": Entry("error", "the next kernel speaks other versions than the profile says: {why}", "allow it: `safemem preflight --kernel IMAGE --write-profile FILE`"),
    "profile-policy": Entry("error", "the profile `{name}` does not allow the policy of the next boot", "allow it: `safemem preflight --kernel IMAGE --policy POLICY --write-profile FILE`"),
}  # fmt: skip
