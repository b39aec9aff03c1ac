# SPDX-License-Identifier: MIT
"""What is at stake: whether anything is preserved when the outgoing system computes the next command line.

A kernel with KHO on hands over at every `kexec -s`, with nothing in it as well; only the outgoing system knows. It says so in
`safemem.preserved=`, which the next kernel's boot program reads: the predecessor's word, which nothing there confirms.

Its check sum covers `safemem.safe=` and `safemem.token=` beside it too. So what is cut off is found out, and a word that was
kept beside other arguments than its own: two words that differ, another scratch, another token, of which each holder has its own.
Not found out: a whole line that is used again with its token; and without a token, an old word beside the scratch it was
written for, which a kernel that accepts takes over from its predecessor. Nor is a word that somebody forges with its sum.
"""

from __future__ import annotations

from safemem.boot import files, paths
from safemem.boot.cmdline import arguments
from safemem.boot.files import reason
from safemem.boot.model import FACTS, UNKNOWN, Fact
from safemem.boot.printable import printable

ARGUMENT = "safemem.preserved"
SAFE = "safemem.safe"
TOKEN = "safemem.token"
#: How the link of a descriptor begins that is a session of LUO's; the session's name comes after it (seen on 7.3).
LINK = "anon_inode:[luo_session]"
#: The session with safemem's own token, of which the kernel has one at a time: nothing is lost with it. Whoever else holds
#: a session of that name may have anything in it.
SESSION = "safemem"
#: Producers whose data is there with nothing preserved (seen on 7.2 and 7.3): what LUO has in its own, its sessions tell.
_ALWAYS = ("LUO", "kexec-metadata")
#: The first pid namespace, as its link shows it (PID_NS_INIT_INO in include/uapi/linux/nsfs.h).
_FIRST = "pid:[4026531836]"
#: How often processes that have come since are looked for.
_ROUNDS = 8


# ---- the outgoing side


def read(root: str) -> tuple[str, str]:
    """Return whether anything is preserved now, `yes`, `no` or `unknown`, and why.

    A session that nobody holds is closed, and one in systemd's store is held by process 1. Not seen, and no reason for
    `unknown`: a descriptor that is on its way through a socket, or handed from one process to another while this looks.
    """
    found = (_held(root), _hidden(root), _produced(root))
    for value in ("yes", UNKNOWN):
        for answer, why in found:
            if answer == value:
                return answer, why
    return "no", "nobody holds a session, and no other producer has data in the outgoing tree"


def _held(root: str) -> tuple[str, str]:
    """Return whether any process holds a session other than safemem's own."""
    seen: set[str] = set()
    trouble = ""
    own = holder(root)
    for _ in range(_ROUNDS):
        try:
            new = [name for name in files.names(root, paths.PROC) if name.isdecimal() and name not in seen]
        except OSError as error:
            return UNKNOWN, f"{paths.PROC}: {reason(error)}"
        if not new:
            break
        for number in new:
            seen.add(number)
            session, why = _sessions(root, f"{paths.PROC}/{number}/task", number == own)
            if session:
                other = ", and no token of safemem's is known to be its" if session == SESSION else ""
                return "yes", f"process {number} holds session `{printable(session)}`{other}"
            trouble = trouble or why
    else:
        trouble = trouble or f"{paths.PROC}: processes come faster than they can be looked at"
    if not trouble and "1" not in seen:
        trouble = f"{paths.PROC}: process 1 is not shown"
    return (UNKNOWN, trouble) if trouble else ("no", "")


def holder(root: str) -> str:
    """Return the number of the process that holds safemem's token; "" if nothing says so."""
    try:
        words = files.line(root, paths.TOKEN_HELD).split()
    except OSError:
        return ""
    return words[1] if len(words) == 2 else ""


def _sessions(root: str, tasks: str, holder: bool) -> tuple[str, str]:
    """Return the name of a session that the threads in the folder `tasks` hold, "" if none, and what could not be looked at.

    The session with the token does not count where they are its `holder`.
    Threads may have descriptors of their own, and the first one may have ended before the others.
    """
    trouble = ""
    try:
        threads = files.names(root, tasks)
    except (FileNotFoundError, ProcessLookupError):
        return "", ""  # it has ended
    except OSError as error:
        return "", f"{tasks}: {reason(error)}"
    for thread in threads:
        at = f"{tasks}/{thread}/fd"
        try:
            with files.Folder(root, at) as folder:
                for name in folder.names():
                    try:
                        target = folder.target(name)
                    except FileNotFoundError:
                        continue  # closed since
                    if target.startswith(LINK) and not (holder and target == f"{LINK} {SESSION}"):
                        return target[len(LINK) + 1 :] or "?", ""
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            trouble = trouble or f"{at}: {reason(error)}"
    return "", trouble


def _hidden(root: str) -> tuple[str, str]:
    """Return unknown if there may be processes that are not shown."""
    try:
        spaces = files.names(root, paths.NAMESPACES)
        mounts = files.line(root, paths.MOUNTS).splitlines()
    except OSError as error:
        return UNKNOWN, f"{paths.PROC}/self: {reason(error)}"
    # A kernel may be built without pid namespaces.
    if "pid" in spaces and files.link_target(root, f"{paths.NAMESPACES}/pid") != _FIRST:
        return UNKNOWN, "this is not the first pid namespace: it does not show all processes"
    shown = ""
    for line in mounts:
        # Documentation/filesystems/proc.rst: `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [FIELDS] - TYPE SOURCE OPTIONS`
        before, _, after = line.partition(" - ")
        place = before.split(" ")[4:5]
        if place == ["/proc"]:
            shown = after
        elif place and place[0].startswith("/proc/") and place[0][6:7].isdecimal():
            return UNKNOWN, f"something is mounted at {printable(place[0])}"
    kind, _, options = shown.partition(" ")
    if kind != "proc":
        return UNKNOWN, f"/{paths.PROC} is no proc file system"
    if "hidepid=" in options:
        return UNKNOWN, f"/{paths.PROC} is mounted with hidepid: it does not show all processes"
    return "no", ""


def _produced(root: str) -> tuple[str, str]:
    """Return whether a producer other than LUO has data in the outgoing tree."""
    why = f"{paths.KHO[-1]}/{paths.PRODUCERS}: not there"
    for at in (f"{base}/{paths.PRODUCERS}" for base in paths.KHO):
        try:
            names = files.names(root, at)
        except FileNotFoundError:
            continue
        except OSError as error:
            return UNKNOWN, f"{at}: {reason(error)}"
        others = sorted(name for name in names if name not in _ALWAYS)
        if others:
            return "yes", f"{at}/{printable(others[0])} is there"
        # Since Linux 7.1 each kernel with KHO has data of its own there; before, LUO has if it is on.
        return ("no", "") if names else (UNKNOWN, f"{at}: it is empty")
    return UNKNOWN, why


def argument(said: str, safe: str, token: str) -> str:
    """Return the argument for the next kernel, whose `safemem.safe=` and `safemem.token=` have these values, or "" for none."""
    return f"{ARGUMENT}={_sealed(said, safe, token)}"


def old_words(cmdline: str) -> list[str]:
    """Return what whoever appends to this command line has to take out of it: two words that differ leave it unknown."""
    words = [f"`{name}={value}`" for name, value in arguments(cmdline) if name in (ARGUMENT, SAFE)]
    if not words:
        return []
    return [
        f"take {', '.join(words)} out of the next command line, behind a `--` as well: they are of an earlier kexec"
    ]


def _sealed(value: str, safe: str, token: str) -> str:
    import binascii  # only where there is something to check

    return f"{value};crc32={binascii.crc32(f'preserved={value},safe={safe},token={token}'.encode()):08x}"


# ---- the incoming side


def told(found: list[tuple[str, str]] | None) -> Fact:
    """Return what the predecessor says of it; `found` are the kernel's arguments in order, None if they cannot be read."""
    if found is None:
        return Fact(UNKNOWN, paths.CMDLINE, "it cannot be read")
    texts, safe, token = ({value for key, value in found if key == name} for name in (ARGUMENT, SAFE, TOKEN))
    if not texts:
        return Fact(UNKNOWN, "command line", f"no {ARGUMENT}= from handover-args")
    for name, values in ((ARGUMENT, texts), (SAFE, safe), (TOKEN, token)):
        if len(values) > 1:
            why = f"{name}= stands there more than once, with different values: leave that of an earlier kexec out"
            return Fact(UNKNOWN, "command line", why)
    text = texts.pop()
    value, seal, _ = text.partition(";")
    if value not in FACTS["preserved"][1]:
        return Fact(UNKNOWN, "command line", f"{ARGUMENT}=: `{text}` is not yes, no or unknown")
    if not seal:
        return Fact(
            UNKNOWN, "command line", f"{ARGUMENT}= has no check sum: anybody may have written it, or it is cut off"
        )
    beside = [values.pop() if values else "" for values in (safe, token)]
    if beside == ["", ""]:
        why = f"{ARGUMENT}= stands alone, without {SAFE}= and {TOKEN}=: nothing shows that it is of this kexec"
        return Fact(UNKNOWN, "command line", why)
    if text != _sealed(value, *beside):
        why = (
            f"{ARGUMENT}=: the check sum of `{text}` does not match it, {SAFE}= and {TOKEN}=: it is cut off, or from other"
            " arguments"
        )
        return Fact(UNKNOWN, "command line", why)
    return Fact(value, "command line", "the predecessor's word")
