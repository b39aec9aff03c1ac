# SPDX-License-Identifier: MIT
"""What a built image has of safemem: which policies, and whether the boot program is started before everything else."""

from __future__ import annotations

from typing import NamedTuple

from safemem.boot import compiled
from safemem.boot.cmdline import argument
from safemem.boot.model import Policy
from safemem.initramfs import initscript, proven, uki, unpack
from safemem.initramfs.dropins import FOLDERS, OURS, VENDOR, changed, early
from safemem.initramfs.items import POLICIES, PREFIX
from safemem.initramfs.makers import GATE, INIT_TOP, MAKERS, Files, Start
from safemem.initramfs.on_failure import GOES_ON, UNIT
from safemem.initramfs.packed import Unreadable
from safemem.initramfs.proven import Proven
from safemem.initramfs.rootfs import LINK

#: Where an initramfs has systemd; an archive that was appended may bring our units to one without.
_SYSTEMD = ("usr/lib/systemd/systemd", "lib/systemd/systemd")


class Inside(NamedTuple):
    """What an image has of safemem."""

    digest: str  #: of the policy that is built in
    policy: str  #: its name
    start: str  #: what starts the boot program: the name of one of STARTS; "" if nothing does
    fault: str  #: why it would not be started before everything else, or ""
    built_in: Policy  #: the policy itself
    named: dict[str, str] = {}  # noqa: RUF012  (name -> digest of what the command line may choose; nobody changes it)
    proven: Proven | None = None  #: what was proved before it was built; None if it does not say
    others: dict[str, Policy] = {}  # noqa: RUF012  (name -> the policy that `named` has the digest of)


class NotLookedInto(Unreadable):
    """Safemem is not in what is read of an image, and the image has a file system in it that is not looked into."""

    help = "have the image made without dracut's module `squash`: what is appended behind such an image is not reached"


class Judged(NamedTuple):
    """An image, of a unified one with profiles the worst of them."""

    inside: Inside | None  #: None if safemem is not in it
    profile: str = ""  #: the one, as a message calls it; "" if there are none
    why: str = ""  #: safemem is not in it although the archive has its policy
    every: tuple[tuple[str, Inside | None], ...] = ()  #: what each profile has, as a message calls it

    @property
    def where(self) -> str:
        """The profile as the beginning of a sentence's rest, or ""."""
        return f"profile {self.profile}: " if self.profile else ""


class Wanted(NamedTuple):
    """The operator's policies."""

    digest: str
    named: dict[str, str]  #: name -> digest of those that the kernel command line may choose
    policy: str = ""  #: the name of the first
    file: str = ""  #: where that is


def _by_systemd(files: Files) -> str | None:
    """A unit starts it, and those that may load a driver require that unit."""
    found = files.there
    units = [f"{VENDOR}/{name}" for name in OURS]
    if units[0] not in found or not any(path in found for path in _SYSTEMD):
        return None
    if not files.systemd:
        return "/init is not systemd"
    missing = next((path for path in units if path not in found), "")
    if missing:
        return f"{missing} is missing"
    if path := changed(found):
        return f"{path} may change what {UNIT} does"
    if path := early(found):
        return f"{path} may load a driver before {UNIT}"
    starts, *waits = (found[path].decode("utf-8", "replace").splitlines() for path in units)
    if [line for line in starts if line.startswith(("ExecStart=", "Condition", "Assert"))] != [
        f"ExecStart=/{PREFIX}/boot"
    ]:
        return f"{units[0]} does not start /{PREFIX}/boot, or not always"
    for path, lines in zip(units[1:], waits, strict=True):
        if f"After={UNIT}" not in lines or not {f"Requires={UNIT}", f"Wants={UNIT}"} & {*lines}:
            return f"{path} does not wait for {UNIT}"
    return ""


def _by_init(files: Files) -> str | None:
    """An init of somebody's own calls it: what that does first is theirs to know, but for what is plainly wrong."""
    init, program = files.there.get("init", b""), f"/{PREFIX}/boot"
    # With the line of initramfs-tools it is theirs, and judged as such.
    if program.encode() not in init or files.systemd or (GATE in files.there and INIT_TOP.encode() in init):
        return None
    text = initscript.text(init)
    if text is None:
        return f"/init is no shell script: whether it calls {program} first cannot be told"
    commands = initscript.read(text).commands
    at = next((at for at, item in enumerate(commands) if item.words[:1] == (program,)), -1)
    if at < 0:
        return None
    if word := initscript.before(commands[:at]):
        return f"/init has `{word}` before it calls {program}"
    if commands[at].maybe:
        return f"/init calls {program} only under a condition, or in a function"
    if commands[at].after not in ("&", "|", "&&") and initscript.looks(commands[at + 1 :], GOES_ON):
        return ""
    return f"/init does not look for status {GOES_ON}, which alone lets a boot go on"


#: The first that an image has counts, of those that are in order.
STARTS = (
    Start("systemd", ("init", *_SYSTEMD, *(f"{folder}/" for folder in FOLDERS)), _by_systemd),
    *(maker.start for maker in MAKERS),
    Start("init", ("init",), _by_init, sure=False),
)


def inside(data: bytes) -> Inside | None:
    """Return what the image `data` has of safemem, or None if nothing; of several profiles the worst one has.

    Raises:
        packed.Unreadable: the image cannot be read.
        compiled.Invalid: the policy in it is not one that this version can use.
    """
    return judged(data).inside


def judged(data: bytes, wanted: Wanted | None = None) -> Judged:
    """Return what an image has of safemem: a boot loader may choose any profile of a unified one, so the worst counts.

    `wanted` are the operator's policies, if they are known. Raises as `inside` does, with the profile in the message.
    """
    every: list[Judged] = []
    untold: list[Unreadable] = []
    seen: dict[tuple[int, str], Judged | Unreadable] = {}
    for item in uki.initrds(data):
        known = seen.get((id(item.data), item.cmdline))
        if known is None:
            try:
                known = _one(item.data, item.cmdline, profile=bool(item.profile))
            except Unreadable as error:
                known = type(error)(f"profile {item.called}: {error}" if item.profile else str(error))
            seen[id(item.data), item.cmdline] = known
        if isinstance(known, Judged):
            every.append(known._replace(profile=item.called))
        else:
            untold.append(known)
    names = tuple((item.profile, item.inside) for item in every if item.profile)
    worst = max(every, key=lambda item: _badness(item.inside, wanted, every[0].inside), default=None)
    # That one cannot be told is worse than anything but what is known to be wrong.
    if worst is None or (untold and _badness(worst.inside, wanted, None) < _FAULTY):
        raise untold[0]
    return worst._replace(every=names)


_FAULTY = 4
#: The fault of an image in which safemem is, and nothing that starts it; and what to do about that.
UNSTARTED = "nothing in it starts the boot program"
START_IT = (
    "have the initrd's /init start it (docs/initramfs.md, `An init of your own`), or, where the initrd has systemd, append"
    " what `safemem initramfs cpio --systemd` writes"
)


def _badness(found: Inside | None, wanted: Wanted | None, first: Inside | None) -> int:
    """Return how bad a profile is: without safemem, not started first, of another policy, not proved, only observing."""
    if found is None:
        return _FAULTY + 1
    if found.fault:
        return _FAULTY
    # Where nobody says which policy is meant, all profiles should have one.
    other = differs(found, wanted) if wanted else first is not None and found.digest != first.digest
    return 3 if other else 2 if unproven(found) else 1 if found.built_in.observe else 0


def _one(data: bytes, cmdline: str = "", *, profile: bool = False) -> Judged:
    """Return what is in one initrd; of a unified image's command line, the kernel takes what to start."""
    own, boot = f"{PREFIX}/policy.json", f"{PREFIX}/boot"
    asked = argument(cmdline, "rdinit")
    called = "init" if asked is None else asked.strip("/")
    reads = {path for start in STARTS for path in start.reads}
    found, made = unpack.look(
        data, {own, boot, f"{POLICIES}/", proven.PATH, *reads, called}, followed={called, boot, *_SYSTEMD}
    )
    if own not in found:
        if inner := made.inner():
            rest = made.bytes - inner[0].size
            share = "most" if inner[0].size > rest else "a part"
            raise NotLookedInto(
                f"{share} of this image is in {inner[0].path} ({inner[0].kind}), which is not looked into: "
                "whether safemem is in it cannot be told"
            )
        empty = "it has no .initrd section" if profile else "the file is empty"
        return Judged(None, why=made.dropped_why(own) if data else empty)
    there = {path: data for path, data in found.items() if path != "init"}
    if called in found:
        there["init"] = found[called]
    init, systemd = made.rootfs.node(called, follow=True), [made.rootfs.node(path, follow=True) for path in _SYSTEMD]
    same = any(there.get(path) and there[path] == there.get("init") for path in _SYSTEMD)
    inside = _inside(Files(there, "init" in there and (init in systemd or same)), f"/{called}")
    node = made.rootfs.node(boot, follow=False)
    if node is not None and node.kind == LINK:
        inside = inside._replace(fault=f"{boot} is a link, and safemem makes none")
    elif not there.get(boot, b"").startswith(b"#!"):
        wrong = "is not the wrapper that safemem puts there" if there.get(boot) else "is missing or empty"
        inside = inside._replace(fault=f"{boot} {wrong}")
    if inside.fault and called != "init":
        inside = inside._replace(fault=f"rdinit={asked} on its command line: {inside.fault.replace('/init ', 'that ')}")
    if inside.start == "systemd" and not inside.fault and (word := uki.unstarts(cmdline)):
        inside = inside._replace(fault=f"{word} on its command line: systemd may not start {UNIT}")
    return Judged(inside)


def _inside(files: Files, called: str) -> Inside:
    found = files.there
    policy = compiled.load(found[f"{PREFIX}/policy.json"], f"{PREFIX}/policy.json in the image")
    start, fault = _started(files, called)
    others = {
        path.removeprefix(f"{POLICIES}/").removesuffix(".json"): compiled.load(data, f"{path} in the image")
        for path, data in sorted(found.items())
        if path.startswith(f"{POLICIES}/")
    }
    named = {name: other.digest for name, other in others.items()}
    said = proven.load(found[proven.PATH], f"{proven.PATH} in the image") if proven.PATH in found else None
    return Inside(policy.digest, policy.name, start, fault, policy, named, said, others)


def _started(files: Files, called: str) -> tuple[str, str]:
    """Return what starts the boot program, and why it would not be started before everything else."""
    found = [(start.name, fault) for start in STARTS if (fault := start.fault(files)) is not None]
    name, fault = next((each for each in found if not each[1]), (found or [("", UNSTARTED)])[0])
    if found and "init" not in files.there:
        # init/main.c: the kernel then mounts the root itself, and nothing of the initramfs runs.
        fault = f"there is no {called}, without which the kernel starts nothing of it"
    elif found and not files.there["init"] and not files.systemd:
        fault = f"{called} is empty"
    return name, fault


def started(found: Inside) -> str:
    """Return by what the boot program is started, in one line."""
    sure = next((start.sure for start in STARTS if start.name == found.start), True)
    return (
        f"by {found.start}, before everything else"
        if sure
        else "called by /init; what that runs before is not looked at"
    )


def differs(found: Inside, wanted: Wanted) -> str:
    """Return in which policy an image differs from the operator's, or ""."""
    if found.digest != wanted.digest:
        meant = f"`{wanted.policy}` of {wanted.file}" if wanted.file else "the one that is meant"
        return f"its policy is `{found.policy}` (digest {found.digest[:12]}), not {meant} (digest {wanted.digest[:12]})"
    for name in sorted({*found.named, *wanted.named}):
        if found.named.get(name) != wanted.named.get(name):
            return f"its policy for safemem.policy={name} is not the operator's"
    return ""


def unproven(found: Inside) -> str:
    """Return for which of its policies an image does not say what was proved, or ""."""
    return proven.missing(found.proven, (found.digest, *found.named.values()))


def proof_text(found: Inside) -> str:
    """Return what was proved of the policy that is built in, in one line."""
    return proven.text(found.proven, found.digest) if found.proven else unproven(found)


def wrong(found: Inside, wanted: Wanted) -> str:
    """Return the first thing for which an image has to be made anew, or ""."""
    return found.fault or differs(found, wanted) or unproven(found)
