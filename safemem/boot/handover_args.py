# SPDX-License-Identifier: MIT
"""What to append to the next kernel's command line, right before the kexec: guards, safe region, hold.

Runs in the outgoing system and from the boot archive: standard library only. Scratch areas
move at each cold boot (KASLR), so this has to be computed anew each time. Where too little is known
nothing is printed.
"""

from __future__ import annotations

import sys

from safemem.boot import attempts, files, pagewords, probe, stake
from safemem.boot.cmdline import arguments, boolean, last, sealed, split
from safemem.boot.files import reason
from safemem.boot.ground import UNTOLD, Build, CannotSay, Ground, read_ground, room
from safemem.boot.guard import Guards, Left, best_guards, left_open
from safemem.boot.model import Snapshot
from safemem.boot.ranges import common, size_text, total
from safemem.boot.tuples import NamedTuple

#: What x86 takes as a command line (COMMAND_LINE_SIZE less its end); what is longer the kernel cuts off.
LONGEST = 2047
#: Where no guard can be computed and the token can be named all the same: a kernel without debugfs files has LUO.
_TOKEN_ALONE = "the token alone, no guard and no safe region"
#: Arguments that are written anew; the kernel reads `-` in a name as `_`.
_REPLACED = ("crashkernel", "memhp_default_state", "BOOT_IMAGE")


class NoScratch(CannotSay):
    """No scratch areas can be read, so that nothing can be computed; the message says why."""


class Advice(NamedTuple):
    """What to append, and what it is worth. Sizes in bytes."""

    arguments: tuple[str, ...]
    guards: Guards
    memory: int  #: what firmware says there is
    safe: int  #: in scratch areas
    open: int  #: neither guarded nor scratch
    left: tuple[Left, ...]  #: the same, range by range
    room: int  #: what of all this a kernel that rejects needs to run
    notes: tuple[str, ...]
    by_hand: tuple[str, ...]  #: what whoever appends the arguments has to take out; a whole command has it out already
    cmdline: str  #: of the running kernel
    gone: tuple[str, ...]  #: words of that which the arguments stand for

    @property
    def guarded(self) -> int:
        """Bytes."""
        return self.guards.size


def advise(
    root: str = "/", kernel: str = "", initrd: str = "", built: Build = UNTOLD, named: str = ""
) -> Advice:  # fmt: skip
    """Return the arguments for the next kernel, whose image is the file `kernel` and whose initrd is `initrd`.

    Without them, both are taken to be as large as this boot's. `built` says what is known of that kernel: the boot
    archive cannot unpack an image. `named` is the argument of a token that is to be among them, as `token` returns it.

    Raises:
        NoScratch: its scratch areas cannot be read.
        CannotSay: KHO is off, or the machine's memory or a file cannot be read.
    """
    scratch = probe.scratch_now(root)
    if not scratch:
        kho = probe.read_snapshot(root).facts["kho"]
        why = kho.reason or f"/{kho.source}"
        if kho.value == "off":
            raise CannotSay(
                f"KHO is off ({why}): without it nothing is handed over; boot a kernel that has KHO with kho=on"
            )
        for file in filter(None, (kernel, initrd)):
            try:
                files.size("", file)
            except OSError as error:
                raise CannotSay(f"{file}: {reason(error)}") from None
        raise NoScratch(
            f"no scratch areas can be read (KHO is {kho.value}: {why}): run it as root, with debugfs on /sys/kernel/debug"
        )
    snapshot, ground = read_ground(root, scratch, kernel, initrd, built)
    count = snapshot.facts["boot_attempts"]
    handed = "" if attempts.in_firmware(count) else f"{attempts.ARGUMENT}={attempts.handed_on(root, count)}"
    advice = advise_on(snapshot, ground, kernel, built, handed)
    return with_stake(_with_token(advice, named) if named else advice, *stake.read(root))


def advise_on(snapshot: Snapshot, ground: Ground, kernel: str = "", built: Build = UNTOLD, handed: str = "") -> Advice:
    """Return the arguments for a kernel that finds `ground`; `handed` counts its boots.

    Raises:
        CannotSay: no guard would work.
    """
    from safemem.boot import asked

    guards = best_guards(ground)
    words_now = pagewords.read(split(snapshot.cmdline)[0])
    notes = [*_notes(snapshot.cmdline), *ground.notes]
    by_hand = [*_crash_words(snapshot.cmdline), *stake.old_words(snapshot.cmdline)]
    gone: tuple[str, ...] = ()
    words = [f"crashkernel={guards.range.size}@{guards.range.start:#x}"]
    own = tuple((item.node, item.own) for item in guards.pages if item.own)
    if guards.page:
        gone, new = pagewords.merged(words_now, guards.page, guards.asked)
        words += new
        if gone:
            stand = ", ".join(f"`{word}`" for word in gone)
            by_hand.append(
                f"take {stand} out of the next command line: what they ask for is in the arguments that are printed, and"
                " the kernel ignores a size that is given twice"
            )
    notes += small_pages(words_now.pools, ground, guards)
    if ground.no_page:
        notes.append(f"only one range can be guarded, without gigantic pages: {ground.no_page}")
    notes += _without_pages(guards, built) if ground.page else []
    value = asked.write(asked.Asked(guards.range, guards.page, guards.asked if guards.page else (), own))
    safe = ",".join(str(area) for area in ground.scratch)
    words += [
        f"{asked.ARGUMENT}={value}",
        f"safemem.safe={sealed(safe)}",
        "memhp_default_state=offline",
        *([handed] if handed else []),
    ]
    if built.kho is False:
        # Its unpacker knows nothing of scratch areas and puts the image anywhere: into the guard in 2 of 3 boots of a
        # 7.3.4 without KHO. Where kexec loads it is scratch. A kernel with KHO keeps its randomisation within scratch.
        words.append("nokaslr")
        notes.append(f"{kernel} has no KHO: nokaslr keeps its image out of the guard, and its addresses are not random")
    elif built.kho is None:
        notes.append("should the next kernel have no KHO, append nokaslr too: its image could be put inside the guard")
    left = left_open(ground, guards)
    return Advice(
        arguments=tuple(words),
        guards=guards,
        memory=total(ground.ram),
        safe=total(common(ground.ram, ground.scratch)),
        open=total(item.range for item in left),
        left=left,
        room=room(ground),
        notes=tuple(notes),
        by_hand=tuple(by_hand),
        cmdline=snapshot.cmdline,
        gone=gone,
    )


def with_stake(advice: Advice, value: str, why: str) -> Advice:
    """Return the advice with the argument that says whether anything is preserved; after it nothing may be."""
    words = list(advice.arguments)
    values = {name: text for name, _, text in (word.partition("=") for word in words)}
    place = words.index(f"{stake.SAFE}={values[stake.SAFE]}")
    words.insert(place + 1, stake.argument(value, values[stake.SAFE], values.get(stake.TOKEN, "")))
    return advice._replace(arguments=tuple(words), notes=(*advice.notes, _stake_note(value, why)))


def _stake_note(value: str, why: str) -> str:
    return {
        "yes": f"preserved is `yes`: {why}",
        "no": f"preserved is `no`: {why}; compute the arguments anew should anything be preserved before the kexec",
    }.get(value, f"preserved is `unknown`, which the next kernel takes for `yes`: {why}")


def _notes(cmdline: str) -> list[str]:
    """Return what on the command line, if the next kernel has it too, is at odds with a guard."""
    names = last(arguments(cmdline))
    notes = []
    if "crashkernel" in names and "safemem.guard" not in names:
        notes.append("only one crashkernel= counts, and the guard needs it: the next kernel reserves nothing for kdump")
    if split(cmdline)[1]:
        notes.append("put what is printed before the `--` of the next command line: behind it hugepages= is init's")
    # dma_contiguous_reserve, and before 7.3 hugetlb_cma_reserve, come before arch_reserve_crashkernel in setup_arch.
    for name in ("cma", "hugetlb_cma"):
        if names.get(name, "0") not in ("0", ""):
            notes.append(
                f"{name}= is reserved before the guard and may lie where the guard should: boot once without it"
            )
    if boolean(names.get("init_on_free")):
        notes.append("init_on_free=1 zeroes all memory that is not guarded at boot, and a guard when it is given back")
    if boolean(names.get("page_poison")):
        notes.append(
            "page_poison= overwrites all memory that is not guarded at boot, and a guard when it is given back"
        )
    return notes


def _crash_words(cmdline: str) -> list[str]:
    found = [f"`{word}`" for word in split(cmdline)[0] if word.lstrip('"').startswith("crashkernel=")]
    return [f"take {', '.join(found)} out of the next command line: only one crashkernel= counts"] if found else []


def small_pages(pools: dict[int, pagewords.Pool], ground: Ground, guards: Guards) -> list[str]:
    """Return whether huge pages that are no guard leave a kernel that rejects too little: it takes them while it starts."""
    beside, needed = total(ground.ram) - guards.takes, room(ground)
    return [
        f"hugepages= asks for {size_text(pool.number * size)} in pages of {size_text(size)}, and a kernel that rejects has"
        f" {size_text(beside)} beside the guards, of which it needs {size_text(needed)} to run: ask for at"
        f" most {max(0, beside - needed) // size} on the next command line, and for the others after the boot"
        for size, pool in pools.items()
        if size < 1 << 30 and pool.number * size > max(0, beside - needed)
    ]


def _without_pages(guards: Guards, built: Build) -> list[str]:
    """Return why nodes have no gigantic pages, or only the operator's, and what helps."""
    bare = [item for item in guards.pages if item.why_not]
    notes = [
        f"no gigantic pages{' but those of hugepages=' if item.own else ''} guard node {item.node}: {item.why_not}"
        for item in bare
    ]
    if bare and built.spares_scratch is None:
        notes.append(
            "if the next kernel is Linux 7.3 or later, `safemem handover-args --kernel IMAGE` sees that, and guards more"
        )
    if len(bare) > 1:
        notes.append("with the scratch sizes that `safemem layout` prints, only one node has such scratch")
    return notes


def explained(advice: Advice) -> tuple[str, ...]:
    """Return for each node what is guarded by what, and the arithmetic; one line each."""
    guards, lines = advice.guards, []
    for what, amount in (("guarded", advice.guarded), ("scratch", advice.safe), ("open", advice.open)):
        lines.append(
            f"{what:<8} {size_text(amount):>10}  {amount / advice.memory:.1%} of the memory that firmware gives"
        )
    lines.append(
        f"room     {size_text(advice.room):>10}  of scratch and open memory is what a kernel that rejects needs"
    )
    where = f" on node {guards.node}" if len(guards.pages) > 1 else ""
    lines.append(f"range    {size_text(guards.range.size):>10}  {guards.range} by crashkernel={where}")
    for item in guards.pages:
        if not item.number:
            continue
        own = f", {item.own} of them the operator's own" if item.own else ""
        amount, where = total(item.ranges), ", ".join(str(area) for area in item.ranges) or "which, cannot be told"
        lines.append(
            f"pages    {size_text(amount):>10}  {where} by hugepages={item.node}:{item.number} on node {item.node}{own}"
        )
        if amount < item.number * guards.page:
            less = size_text(item.number * guards.page - amount)
            lines.append(
                f"         {less:>10}  of pages on node {item.node} that may lie partly in scratch, or may not be there"
            )
    for left in advice.left:
        node = f" on node {left.node}" if left.node >= 0 and len(guards.pages) > 1 else ""
        lines.append(f"open     {size_text(left.range.size):>10}  {left.range}{node}: {left.why}")
    return tuple(lines)


# ---- the whole command


def kexec_command(advice: Advice, kernel: str, initrd: str) -> str:
    """Return the command that loads the next kernel, for a shell: this kernel's command line with the advice in it.

    Raises:
        CannotSay: this kernel's command line cannot be reused with a guard.
    """
    words = ["kexec", "-s", "-l", kernel, *([f"--initrd={initrd}"] if initrd else [])]
    return " ".join(_quoted(word) for word in (*words, f"--command-line={next_cmdline(advice)}"))


def systemctl_command(advice: Advice) -> str:
    """Return the command by which systemd 261 and later loads the next kernel and boots it. Raises as `kexec_command`."""
    return " ".join(_quoted(word) for word in ("systemctl", "kexec", f"--kernel-cmdline={next_cmdline(advice)}"))


def next_cmdline(advice: Advice) -> str:
    """Return this kernel's command line with what the advice replaces taken out, and the advice put in.

    Raises:
        CannotSay: something on it would undo the guard, or it becomes too long.
    """
    kept, init = _kept(advice.cmdline)
    kept = [word for word in kept if word not in advice.gone]
    for word in (*kept, *init):
        name, _, value = word.replace('"', "").partition("=")
        if name.replace("-", "_") in ("cma", "hugetlb_cma") and value not in ("", "0"):
            raise CannotSay(
                f"`{word}` on the command line is reserved before the guard, and may be put inside it: boot once without it"
            )
        if "crashkernel=" in word:
            # The kernel looks for this text anywhere in the line, even inside another word.
            raise CannotSay(f"`{word}` on the command line would be read as a crashkernel= of its own")
    text = " ".join([*kept, *advice.arguments, *init])
    if len(text.encode()) > LONGEST:
        raise CannotSay(f"the next command line would have {len(text.encode())} bytes, and the kernel takes {LONGEST}")
    return text


def _kept(cmdline: str) -> tuple[list[str], list[str]]:
    """Return the words to keep, as they are written, and those for init, from `--` on."""
    words, init, quoted = split(cmdline)
    if quoted:
        raise CannotSay("a quotation mark on this kernel's command line is not closed: what is appended would be lost")
    kept = []
    for word in words:
        name = word.lstrip('"').partition("=")[0].replace("-", "_")
        if name not in _REPLACED and not _of_this_boot(name):
            kept.append(word)
    # An old one of ours would count there too, and as the last one.
    return kept, [word for word in init if not _of_this_boot(word.lstrip('"').partition("=")[0].replace("-", "_"))]


def _of_this_boot(name: str) -> bool:
    """Return whether an argument of safemem's was meant for this boot alone; a stricter policy is for the next one too."""
    return name.startswith("safemem.") and name != "safemem.policy"


def _quoted(word: str) -> str:
    """Return `word` for a shell; like shlex.quote, which the boot archive does not carry."""
    if word and all(char.isalnum() or char in "@%+=:,./-_" for char in word) and word.isascii():
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


def token(root: str) -> str:
    """Return the argument that names the token which this system holds for the next kernel.

    Raises:
        CannotSay: nobody holds one.
    """
    from safemem.boot.token import handed  # only where it is asked for

    text, why = handed(root)
    if not text:
        raise CannotSay(f"no token to name: {why}")
    return text


def _with_token(advice: Advice, text: str) -> Advice:
    """Return the advice with the argument of a token in it."""
    return advice._replace(
        arguments=(*advice.arguments, text),
        by_hand=(*advice.by_hand, *_other_tokens(advice.cmdline)),
    )  # fmt: skip


def _other_tokens(cmdline: str) -> list[str]:
    words = split(cmdline)[0]
    old = [f"`{word}`" for word in words if word.partition("=")[0].replace("-", "_") == stake.TOKEN]
    return [f"take {', '.join(old)} out of the next command line: two tokens prove nothing"] if old else []


class Alone(NamedTuple):
    """What can be appended where nothing can be computed and a token is named all the same."""

    arguments: tuple[str, ...]
    notes: tuple[str, ...]
    by_hand: tuple[str, ...]


def token_alone(root: str, named: str, why: NoScratch, *, command: bool = False, explain: bool = False) -> Alone:
    """Return the token with the hold and the word on what is preserved: a kernel without debugfs files has LUO.

    Raises:
        NoScratch: a whole `command` is asked for.
    """
    if command:
        raise NoScratch(
            f"{why}; `--token` without --kexec-command and --systemctl-command prints the token alone, with no guard"
        )
    value, known = stake.read(root)
    notes = [f"{_TOKEN_ALONE}: {why}", _stake_note(value, known)]
    if explain:
        notes.append("there is nothing to explain: without scratch areas no guard is computed")
    arguments = (stake.argument(value, "", named.partition("=")[2]), "memhp_default_state=offline", named)
    cmdline = probe.command_line(root) or ""
    return Alone(arguments, tuple(notes), (*stake.old_words(cmdline), *_other_tokens(cmdline)))


_USAGE = """\
usage: handover-args [--root DIR] [--kernel IMAGE [--initrd FILE] [--kexec-command]] [--systemctl-command] [--token]
                     [--explain]"""


def main(argv: list[str]) -> int:
    """Print the arguments on one line; return 0, 1 if there are none to give, or 2 for a call that is wrong."""
    options = {"--root": "/", "--kernel": "", "--initrd": ""}
    flags = {"--kexec-command": False, "--systemctl-command": False, "--explain": False, "--token": False}
    words = list(argv)
    while words:
        word = words.pop(0)
        if word in options and words:
            options[word] = words.pop(0)
        elif word in flags:
            flags[word] = True
        else:
            sys.stderr.write(f"{_USAGE}\n")
            return 2
    root, kernel, initrd = options.values()
    whole, systemctl, explain, with_it = flags.values()
    if whole and (systemctl or not kernel):
        why = "and --systemctl-command exclude each other" if systemctl else "needs --kernel"
        sys.stderr.write(f"safemem: --kexec-command {why}\n{_USAGE}\n")
        return 2
    try:
        named = token(root) if with_it else ""
        try:
            advice = advise(root, kernel, initrd, named=named)
        except NoScratch as error:
            if not named:
                raise
            alone = token_alone(root, named, error, command=whole or systemctl, explain=explain)
            for note in (*alone.notes, *alone.by_hand):
                sys.stderr.write(f"safemem: {note}\n")
            sys.stdout.write(f"{' '.join(alone.arguments)}\n")
            return 0
        text = " ".join(advice.arguments)
        if whole:
            text = kexec_command(advice, kernel, initrd)
        elif systemctl:
            text = systemctl_command(advice)
    except CannotSay as error:
        sys.stderr.write(f"safemem: {error}\n")
        return 1
    for note in (*advice.notes, *(() if whole or systemctl else advice.by_hand)):
        sys.stderr.write(f"safemem: {note}\n")
    sys.stdout.write(f"{text}\n")
    for line in explained(advice) if explain else ():
        sys.stderr.write(f"  {line}\n")
    return 0
