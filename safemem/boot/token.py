# SPDX-License-Identifier: MIT
"""A token through the Live Update Orchestrator: whether this kernel accepted a handover, with debugfs or without.

The predecessor puts a session of safemem's with one page of random bytes into LUO, and the SHA-256 of them on the next
kernel's command line (`safemem.realroot.token`, `safemem handover-args --token`). Only a kernel that accepted the
handover has the session, and only that predecessor's has the page. Retrieved where the policy asks for it, and only then.

Numbers and layouts of ioctl: Linux 6.19, include/uapi/linux/liveupdate.h. A session is gone from LUO once it is finished,
and closing one that was retrieved finishes it: of each boot the first look counts, which is kept in `paths.TOKEN_TAKEN`. That it began stands
there before the kernel is asked: a second look that found nothing would call an accepted handover rejected.
"""

from __future__ import annotations

from safemem.boot import files, paths
from safemem.boot.cmdline import arguments, sealed, unsealed
from safemem.boot.files import reason
from safemem.boot.model import UNKNOWN, Fact, Note
from safemem.boot.stake import LINK, SESSION
from safemem.boot.stake import TOKEN as ARGUMENT
from safemem.boot.tuples import NamedTuple

#: Bytes of the page, on every architecture; and the number of its descriptor in the session.
SIZE, NUMBER = 4096, 1

CREATE, RETRIEVE = 0xBA00, 0xBA01
PRESERVE_FD, RETRIEVE_FD, FINISH = 0xBA40, 0xBA41, 0xBA42
_ENOENT = 2


class Answer(NamedTuple):
    """What the token says, and why: `right`; `wrong`, another one came over than the line names, which is of another kexec;
    `missing`, none came over; or, where it says nothing, "".
    """

    said: str
    why: str


# ---- the incoming side


def weigh(answer: Answer, offered: Fact, handover: Fact, shown: str | None) -> Fact:
    """Return the handover with what the token says of it.

    `shown` is what KHO's own files say: the path of an incoming tree, "" if there are no such files, None for anything
    else. Two witnesses that contradict each other are no evidence, and no third one settles it: such a fact has LUO's
    device for its source, also one that was unknown before and that a wrong token speaks against.
    """
    if not answer.said:
        return _with(handover, f"the token says nothing: {answer.why}")
    fact = _weighed(answer, offered, handover, shown)
    against = answer.said != "right" and fact.value == UNKNOWN
    return fact._replace(source=paths.LUO_DEVICE) if against else fact


def _weighed(answer: Answer, offered: Fact, handover: Fact, shown: str | None) -> Fact:
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


def told(cmdline: str, notes: list[Note]) -> str:
    """Return the digest that the command line names; "" if it names none that is whole, or two."""
    values = {value for name, value in arguments(cmdline) if name == ARGUMENT}
    if not values:
        return ""
    why = "two of them say different things: leave that of an earlier kexec out"
    if len(values) == 1:
        try:
            digest, whole = unsealed(values.pop())
            if whole and len(digest) == 64 and not digest.strip("0123456789abcdef"):
                return digest
            why = "it is not 64 hexadecimal digits with a check sum"
        except ValueError as error:
            why = str(error)
    notes.append(Note("token-ignored", f"{ARGUMENT}= on the command line is ignored: {why}"))
    return ""


def recall(root: str, wanted: str) -> Answer:
    """Repeat what the first look of this boot at the token with the SHA-256 `wanted` found; opens no device."""
    there = files.exists(root, paths.TOKEN_TAKEN)
    if there is False:
        return Answer("", "nobody has looked at it in this boot")
    text = files.text(root, paths.TOKEN_TAKEN)
    if text is None:
        return Answer("", f"/{paths.TOKEN_TAKEN} cannot be read: an earlier look in this boot may have taken it")
    said, _, rest = text.partition(" ")
    digest, _, why = rest.partition(" ")
    if said in ("right", "wrong", "missing") and digest == wanted:
        return Answer(said, why)
    return Answer("", "an earlier look in this boot may have taken it")


def look(root: str, wanted: str) -> Answer:
    """Take the token out of LUO, and say whether its SHA-256 is `wanted`; a second look repeats the first."""
    if files.exists(root, paths.TOKEN_TAKEN) is not False:
        return recall(root, wanted)
    try:
        with files.device(root, paths.LUO_DEVICE) as device:
            return _retrieve(root, device, wanted)
    except OSError as error:
        return Answer("", f"{paths.LUO_DEVICE}: {reason(error)}")


def _retrieve(root: str, device: files.Device, wanted: str) -> Answer:
    """Return what the session holds. Raises OSError: the kernel says neither that it is there nor that it is not."""
    # Whatever comes of it, the next look may find none.
    trouble = _keep(root, wanted, Answer("none", "a look at it was not finished"))
    if trouble:
        return Answer("", f"it is not asked for, because a later look could not know: /{paths.TOKEN_TAKEN}: {trouble}")
    try:
        session = retrieve(device)
    except OSError as error:
        if error.errno != _ENOENT:
            _forget(root)  # it was not taken, so the next look may
            raise
        answer = Answer("missing", "LUO has no session of safemem's: none came over")
        _keep(root, wanted, answer)
        return answer
    with session:
        try:
            with session.made(RETRIEVE_FD, fd_argument()) as page:
                data = page.content(SIZE)
        except OSError as error:
            if error.errno != _ENOENT:
                raise
            data = None
        if data is None:
            answer = Answer("wrong", "LUO has a session of safemem's name that holds no token")
        elif sha256_of(data) != wanted:
            answer = Answer("wrong", "the token in LUO is another than the command line names")
        else:
            answer = Answer("right", "the predecessor's token came through LUO")
        _keep(root, wanted, answer)  # where it cannot be written, a second look says nothing
        try:
            session.ask(FINISH, argument(8))
        except OSError:
            pass  # closing it does the same
    return answer


def _keep(root: str, wanted: str, answer: Answer) -> str:
    """Write down what a look found; return why that failed, or ""."""
    try:
        files.replace(root, paths.TOKEN_TAKEN, f"{answer.said} {wanted} {answer.why}\n")
    except OSError as error:
        return reason(error, "cannot be written")
    return ""


def _forget(root: str) -> None:
    try:
        files.remove(root, paths.TOKEN_TAKEN)
    except OSError:
        pass  # then no later look asks


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
        words = files.read(root, paths.TOKEN_HELD).decode("ascii", "replace").split()
    except OSError as error:
        why = "nobody holds a token" if error.errno == _ENOENT else f"{paths.TOKEN_HELD}: {reason(error)}"
        return "", f"{why}: {start}"
    if len(words) != 2 or len(words[0]) != 64 or words[0].strip("0123456789abcdef") or not words[1].isdecimal():
        return "", f"/{paths.TOKEN_HELD} is damaged: stop safemem-token.service, and {start}"
    digest, pid = words
    try:
        found = holds(root, pid)
    except OSError as error:
        return "", f"/{paths.DESCRIPTORS.format(pid)}: {reason(error)}: run it as root"
    if not found:
        return "", f"process {pid}, which /{paths.TOKEN_HELD} names, holds no LUO session of safemem's: {start}"
    return f"{ARGUMENT}={sealed(digest)}", ""


def holds(root: str, pid: str) -> bool:
    """Return whether the process `pid` holds a LUO session of safemem's. Raises OSError: nobody may look."""
    folder = paths.DESCRIPTORS.format(pid)
    try:
        links = [files.link_target(root, f"{folder}/{name}") for name in files.names(root, folder)]
    except FileNotFoundError:
        return False
    # Kernels show the session's name, or none at all.
    return bool({LINK, f"{LINK} {SESSION}"} & set(links))
