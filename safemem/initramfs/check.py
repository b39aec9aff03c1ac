# SPDX-License-Identifier: MIT
"""What a built image has of safemem: which policies, and whether the boot program is started before everything else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from safemem.boot import compiled
from safemem.boot.model import Policy
from safemem.initramfs import proven, uki, unpack
from safemem.initramfs.items import POLICIES, PREFIX
from safemem.initramfs.makers import MAKERS, Start
from safemem.initramfs.on_failure import GOES_ON, GUARDED, UNIT
from safemem.initramfs.packed import Unreadable
from safemem.initramfs.proven import Proven

#: Where an initramfs has systemd; an archive that was appended may bring our units to one without.
_SYSTEMD = ("usr/lib/systemd/systemd", "lib/systemd/systemd")
_OURS = (UNIT, *(f"{unit}.d/50-safemem.conf" for unit in GUARDED))
_VENDOR = "usr/lib/systemd/system"
#: Where systemd looks for units before that, and the other name of it: what a later part of an image puts there wins.
_BEFORE = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "lib/systemd/system")
_OVER = tuple(f"{folder}/{name}" for folder in _BEFORE for name in _OURS)
#: Folders of what changes our unit, or one that waits for it.
_DROP_INS = tuple(f"{folder}/{UNIT}.d/" for folder in (*_BEFORE, _VENDOR))


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

    help = "have the image made without dracut's module `squash`, or append the archive of `safemem initramfs cpio`"


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


def _by_systemd(found: Mapping[str, bytes]) -> str | None:
    """A unit starts it, and those that may load a driver require that unit."""
    units = [f"{_VENDOR}/{name}" for name in _OURS]
    if units[0] not in found or not any(path in found for path in _SYSTEMD):
        return None
    init = found.get("init", b"")
    if init and not init.startswith(b"\x7fELF") and not init.endswith(b"systemd/systemd"):
        return "/init is not systemd"
    missing = next((path for path in units if path not in found), "")
    if missing:
        return f"{missing} is missing"
    changed = next((path for path in found if path in _OVER or path.startswith(_DROP_INS)), "")
    if changed:
        return f"{changed} may change what {UNIT} does"
    starts, *waits = (found[path].decode("utf-8", "replace").splitlines() for path in units)
    if [line for line in starts if line.startswith(("ExecStart=", "Condition", "Assert"))] != [
        f"ExecStart=/{PREFIX}/boot"
    ]:
        return f"{units[0]} does not start /{PREFIX}/boot, or not always"
    for path, lines in zip(units[1:], waits, strict=True):
        if f"After={UNIT}" not in lines or not {f"Requires={UNIT}", f"Wants={UNIT}"} & {*lines}:
            return f"{path} does not wait for {UNIT}"
    return ""


def _by_init(found: Mapping[str, bytes]) -> str | None:
    """An init of somebody's own calls it: what that does first is theirs to know."""
    init = b"\n".join(line for line in found.get("init", b"").split(b"\n") if not line.lstrip().startswith(b"#"))
    if f"/{PREFIX}/boot".encode() not in init:
        return None
    asked = re.search(rb"\b%d\b" % GOES_ON, init)
    return "" if asked else f"/init does not look for status {GOES_ON}, which alone lets a boot go on"


#: The first that an image has counts.
STARTS = (
    Start("systemd", ("init", *_SYSTEMD, *(f"{_VENDOR}/{name}" for name in _OURS), *_OVER, *_DROP_INS), _by_systemd),
    *(maker.start for maker in MAKERS),
    Start("init", ("init",), _by_init),
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
    seen: dict[int, Judged | Unreadable] = {}
    for item in uki.initrds(data):
        known = seen.get(id(item.data))
        if known is None:
            try:
                known = _one(item.data)
            except Unreadable as error:
                known = type(error)(f"profile {item.called}: {error}" if item.profile else str(error))
            seen[id(item.data)] = known
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


def _one(data: bytes) -> Judged:
    own = f"{PREFIX}/policy.json"
    reads = (path for start in STARTS for path in start.reads)
    found, made = unpack.look(data, {own, f"{PREFIX}/boot", f"{POLICIES}/", proven.PATH, *reads})
    if own not in found:
        if inner := made.inner():
            rest = made.bytes - inner[0].size
            share = "most" if inner[0].size > rest else "a part"
            raise NotLookedInto(
                f"{share} of this image is in {inner[0].path} ({inner[0].kind}), which is not looked into: "
                "whether safemem is in it cannot be told"
            )
        return Judged(None, why=made.dropped_why(own) if data else "it has no .initrd section")
    return Judged(_inside(found))


def _inside(found: Mapping[str, bytes]) -> Inside:
    policy = compiled.load(found[f"{PREFIX}/policy.json"], f"{PREFIX}/policy.json in the image")
    start, fault = _started(found)
    others = {
        path.removeprefix(f"{POLICIES}/").removesuffix(".json"): compiled.load(data, f"{path} in the image")
        for path, data in sorted(found.items())
        if path.startswith(f"{POLICIES}/")
    }
    named = {name: other.digest for name, other in others.items()}
    said = proven.load(found[proven.PATH], f"{proven.PATH} in the image") if proven.PATH in found else None
    return Inside(policy.digest, policy.name, start, fault, policy, named, said, others)


def _started(found: Mapping[str, bytes]) -> tuple[str, str]:
    """Return what starts the boot program, and why it would not be started before everything else."""
    missing = "" if found.get(f"{PREFIX}/boot") else f"{PREFIX}/boot is missing or empty"
    for start in STARTS:
        fault = start.fault(found)
        if fault is not None:
            return start.name, missing or fault
    return "", missing or UNSTARTED


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
