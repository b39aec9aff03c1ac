# SPDX-License-Identifier: MIT
"""A token through the Live Update Orchestrator: whether this kernel accepted a handover, with debugfs or without.

The predecessor puts a session of safemem's with one page of random bytes into LUO, and the SHA-256 of them on the next
kernel's command line (`safemem.realroot.token`, `safemem handover-args --token`). Only a kernel that accepted the
handover has the session, and only that predecessor's has the page. Retrieved where the policy asks for it, and only then.

Numbers and layouts of ioctl: Linux 6.19, include/uapi/linux/liveupdate.h. A session is gone from LUO once it is finished,
and closing one that was retrieved finishes it: of each boot the first look counts, which is kept in `TAKEN`.
"""

from __future__ import annotations

from safemem.boot import files, paths
from safemem.boot.cmdline import arguments, sealed, unsealed
from safemem.boot.files import reason
from safemem.boot.model import UNKNOWN, Fact, Note
from safemem.boot.tuples import NamedTuple

#: On the kernel's command line: the SHA-256 of the page, with a check sum.
ARGUMENT = "safemem.token"
SESSION = "safemem"
#: Bytes of the page, on every architecture; and the number of its descriptor in the session.
SIZE, NUMBER = 4096, 1
#: Who holds this kernel's token for the next one: `DIGEST PID`.
HELD = "run/safemem/token"
#: What the first look of this boot found: `right`, `wrong` or `none`, the digest that was asked for, and why.
TAKEN = "run/safemem/token-taken"
_LINK = "anon_inode:[luo_session]"

CREATE, RETRIEVE = 0xBA00, 0xBA01
PRESERVE_FD, RETRIEVE_FD, FINISH = 0xBA40, 0xBA41, 0xBA42
_ENOENT = 2


class Answer(NamedTuple):
    """What the token says: `right`, `wrong` or, where it says nothing, "" ; and why."""

    said: str
    why: str


# ---- the incoming side


def weigh(
    root: str, cmdline: str, offered: Fact, handover: Fact, shown: str | None, notes: list[Note]
) -> Fact:  # fmt: skip
    """Return the handover after the token was asked, which is taken out of LUO.

    `shown` is what KHO's own files say: the path of an incoming tree, "" if there are no such files, None for anything
    else. Two witnesses that contradict each other are no evidence.
    """
    told = _told(cmdline, notes)
    if not told:
        return handover
    answer = look(root, told)
    if not answer.said:
        return _with(handover, f"the token says nothing: {answer.why}")
    right = answer.said == "right"
    if right and offered.value == "no":
        return Fact(UNKNOWN, paths.LUO_DEVICE, f"{offered.source} has no handover, and {answer.why}")
    if offered.value == "no" or (offered.value == UNKNOWN and not right):
        return _with(handover, answer.why)
    agreed = "accepted" if right else "rejected"
    if handover.value == UNKNOWN and shown is not None and (right or not shown):
        return Fact(agreed, shown or paths.LUO_DEVICE, answer.why)
    if handover.value == UNKNOWN or handover.value == agreed or not (right or handover.value == "accepted"):
        return _with(handover, answer.why)
    return Fact(UNKNOWN, paths.LUO_DEVICE, f"{answer.why}; {handover.source} says {handover.value}: {handover.reason}")


def _with(fact: Fact, more: str) -> Fact:
    return fact._replace(reason=f"{fact.reason}; {more}" if fact.reason else more)


def _told(cmdline: str, notes: list[Note]) -> str:
    """Return the digest that the command line names; "" if it names none that is whole, or two."""
    values = {value for name, value in arguments(cmdline) if name == ARGUMENT}
    if not values:
        return ""
    why = "two of them say different things: leave that of an earlier kexec out"
    if len(values) == 1:
        try:
            told, whole = unsealed(values.pop())
            if whole and len(told) == 64 and not told.strip("0123456789abcdef"):
                return told
            why = "it is not 64 hexadecimal digits with a check sum"
        except ValueError as error:
            why = str(error)
    notes.append(Note("token-ignored", f"{ARGUMENT}= on the command line is ignored: {why}"))
    return ""


def look(root: str, told: str) -> Answer:
    """Take the token out of LUO, and say whether it is the page whose SHA-256 is `told`; a second look repeats the first."""
    before = files.text(root, TAKEN)
    said, _, rest = (before or "").partition(" ")
    digest, _, why = rest.partition(" ")
    if said in ("right", "wrong") and digest == told:
        return Answer(said, why)
    if before is not None:
        return Answer("", "an earlier look in this boot may have taken it")
    try:
        with files.device(root, paths.LUO_DEVICE) as device:
            return _retrieve(root, device, told)
    except OSError as error:
        return Answer("", f"{paths.LUO_DEVICE}: {reason(error)}")


def _retrieve(root: str, device: files.Device, told: str) -> Answer:
    """Return what the session holds. Raises OSError: the kernel says neither that it is there nor that it is not."""
    try:
        session = retrieve(device)
    except OSError as error:
        if error.errno != _ENOENT:
            raise
        return _keep(root, told, Answer("wrong", "LUO has no session of safemem's: none came over"))
    with session:
        # Whatever comes of it, the next look finds none.
        _keep(root, told, Answer("none", "a look at it was not finished"))
        try:
            with session.made(RETRIEVE_FD, fd_argument()) as page:
                data = page.content(SIZE)
        except OSError as error:
            if error.errno != _ENOENT:
                raise
            data = None
        if data is None:
            answer = Answer("wrong", "LUO has a session of safemem's name that holds no token")
        elif sha256_of(data) != told:
            answer = Answer("wrong", "the token in LUO is another than the command line names")
        else:
            answer = Answer("right", "the predecessor's token came through LUO")
        _keep(root, told, answer)
        try:
            session.ask(FINISH, argument(8))
        except OSError:
            pass  # closing it does the same
    return answer


def _keep(root: str, told: str, answer: Answer) -> Answer:
    try:
        files.replace(root, TAKEN, f"{answer.said} {told} {answer.why}\n")
    except OSError:
        pass  # a second look would not know
    return answer


def retrieve(device: files.Device) -> files.Device:
    """Return the session of safemem's that came over. Raises OSError, ENOENT if none did."""
    return device.made(RETRIEVE, session_argument())


def argument(size: int, body: bytes = b"") -> bytes:
    """Return an ioctl's argument of `size` bytes, which begins with its size."""
    return (size.to_bytes(4, "little") + body).ljust(size, b"\0")


def session_argument() -> bytes:
    """Return `u32 size; s32 fd; u8 name[64]`."""
    return argument(72, bytes(4) + SESSION.encode())


def fd_argument(fd: int = 0) -> bytes:
    """Return `u32 size; s32 fd; u64 token`."""
    return argument(16, fd.to_bytes(4, "little") + NUMBER.to_bytes(8, "little"))


def sha256_of(page: bytes) -> str:
    """Return the digest that stands on the command line."""
    from safemem.boot.compiled import sha256

    return str(sha256(page).hexdigest())


# ---- the outgoing side


def handed(root: str) -> tuple[str, str]:
    """Return the argument for the next kernel's command line, and "" ; or "" and why there is none to give.

    A digest whose token nobody holds would have the next boot say that a handover was rejected.
    """
    start = "start safemem-token.service, which holds one until the kexec"
    try:
        words = files.read(root, HELD).decode("ascii", "replace").split()
    except OSError as error:
        why = "nobody holds a token" if error.errno == _ENOENT else f"{HELD}: {reason(error)}"
        return "", f"{why}: {start}"
    if len(words) != 2 or len(words[0]) != 64 or words[0].strip("0123456789abcdef") or not words[1].isdecimal():
        return "", f"/{HELD} is damaged: stop safemem-token.service, and {start}"
    digest, pid = words
    folder = paths.DESCRIPTORS.format(pid)
    try:
        links = [files.link_target(root, f"{folder}/{name}") for name in files.names(root, folder)]
    except FileNotFoundError:
        links = []
    except OSError as error:
        return "", f"/{folder}: {reason(error)}: run it as root"
    # Kernels show the session's name, or none at all.
    if not {_LINK, f"{_LINK} {SESSION}"} & set(links):
        return "", f"process {pid}, which /{HELD} names, holds no LUO session of safemem's: {start}"
    return f"{ARGUMENT}={sealed(digest)}", ""
