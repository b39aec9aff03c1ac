# SPDX-License-Identifier: MIT
"""The operator's policy: where it is, and that nobody but root can have written it.

Those in OTHERS are built in as well, for the kernel command line to name. No folder of drop-ins: of rules
the first that matches decides, so what a drop-in means would depend on where in the order its rules land,
and a policy has to be read from top to bottom.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from safemem.boot.files import LIMIT, reason
from safemem.boot.model import Refused

POLICY = "etc/safemem/policy.toml"
OTHERS = "etc/safemem/policies"
DEFAULT = "live-update-host.toml"


#: As many links as the kernel follows on one path (MAXSYMLINKS).
LINKS = 40
_ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Untrusted(Refused):
    """The policy cannot be used; the message says which file it is and what to do."""

    kind = "invalid"


class Trusted(NamedTuple):
    """A file that only root can have written, as it was when that was looked at."""

    path: Path
    data: bytes  #: of a file beyond the size of any policy only the beginning


def find(root: str = "/") -> Trusted:
    """Return the policy that counts on this machine: the operator's, or the shipped default where there is none.

    Raises:
        Untrusted: somebody but root can write it, or there is none at all.
    """
    own = Path(root) / POLICY
    try:
        os.lstat(own)
    except FileNotFoundError:
        pass
    except OSError as error:  # no reason to take another one
        raise Untrusted(f"{own}: {reason(error)}") from None
    else:
        return trusted(own)
    for folder in _shipped(root):
        if (folder / DEFAULT).is_file():
            return trusted(folder / DEFAULT)
    raise Untrusted(f"there is no policy: neither {own} nor the shipped {DEFAULT}")


def _shipped(root: str) -> tuple[Path, ...]:
    """Return where the policies that we ship can lie: as the distribution's package has them, the wheel, a checkout."""
    package = Path(__file__).resolve().parent.parent
    return Path(root) / "usr/share/safemem/policies", package / "policies", package.parent / "policies"


def shipped(root: str = "/") -> dict[str, Path]:
    """Return the policies that come with safemem, by name: of the first folder that has any."""
    for folder in _shipped(root):
        found = {path.stem: path for path in sorted(folder.glob("*.toml")) if not path.name.endswith(".cases.toml")}
        if found:
            return found
    return {}


def others(root: str = "/") -> list[Trusted]:
    """Return the policies that `safemem.policy=NAME` may name; the name is the file's, without `.toml`.

    Raises:
        Untrusted: somebody but root can write one of them, or it cannot be told which there are.
    """
    folder = Path(root) / OTHERS
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".toml"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Untrusted(f"{folder}: {reason(error)}") from None
    return [trusted(folder / name) for name in names]


def trusted(path: Path) -> Trusted:
    """Return what is in the file at `path`, if only root can write it, and every folder and link that leads to it.

    Raises:
        Untrusted: somebody else can, or it cannot be told.
    """
    held: list[int] = []
    try:
        return Trusted(path, _read(path, held))
    except OSError as error:
        raise Untrusted(f"{path}: {reason(error)}") from None
    finally:
        for descriptor in held:
            os.close(descriptor)


def _read(path: Path, held: list[int]) -> bytes:
    """Walk to `path` from descriptor to descriptor, so that what is read is what was checked; `held` gets them all.

    INVARIANT: nothing is opened by a name that was looked at before; whoever moves a link moves it too late.
    """

    def enter(name: str, flags: int, *, below: int | None = None) -> os.stat_result:
        held.append(os.open(name, flags, dir_fd=below))
        return os.fstat(held[-1])

    left, links = [*reversed((Path.cwd() / path).parts[1:])], 0
    _check(path, "/", enter("/", _ENTRY))
    place, folder = "/", held[-1]
    while left:
        name = left.pop()
        here = os.path.normpath(os.path.join(place, name))
        state = enter(name, _ENTRY, below=folder)
        if stat.S_ISREG(state.st_mode) and not left:
            state = enter(name, _READ, below=folder)
        _check(path, here, state)
        if not stat.S_ISLNK(state.st_mode):
            place, folder = here, held[-1]
            continue
        links += 1
        if links > LINKS:
            raise Untrusted(f"{path}: there are more than {LINKS} links on the way, so they may lead in a circle")
        target = os.readlink("", dir_fd=held[-1])
        left += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        if target.startswith("/"):
            place, folder = "/", held[0]
    if not stat.S_ISREG(os.fstat(folder).st_mode):
        raise Untrusted(f"{path}: this is no file")
    with open(folder, "rb", closefd=False) as file:
        return file.read(LIMIT + 1)


def _check(path: Path, place: str, state: os.stat_result) -> None:
    """Refuse an entry on the way to `path` that is somebody else's, or that others can write."""
    link = stat.S_ISLNK(state.st_mode)
    what = "link" if link else "folder" if stat.S_ISDIR(state.st_mode) else "file"
    if state.st_uid != 0:
        raise Untrusted(
            f"{path}: refused, because the {what} {place} belongs to user {state.st_uid}:"
            f" `chown {'-h ' if link else ''}root {place}`"
        )
    # With an access control list the bits of the group are its mask: they show it too. A link has no mode of its own.
    loose = state.st_mode & 0o022 and not link and not (what == "folder" and state.st_mode & stat.S_ISVTX)
    if loose:
        raise Untrusted(
            f"{path}: refused, because the {what} {place} has mode {stat.S_IMODE(state.st_mode):04o}, so others than root"
            f" can write it: `chmod go-w {place}`"
        )
