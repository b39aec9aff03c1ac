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

from safemem.boot.files import reason
from safemem.boot.model import Refused

POLICY = "etc/safemem/policy.toml"
OTHERS = "etc/safemem/policies"
DEFAULT = "live-update-host.toml"


class Untrusted(Refused):
    """The policy cannot be used; the message says which file it is and what to do."""

    kind = "invalid"


def find(root: str = "/") -> Path:
    """Return the policy that counts on this machine: the operator's, or the shipped default where there is none.

    Raises:
        Untrusted: somebody but root can write it, or there is none at all.
    """
    own = Path(root) / POLICY
    if os.path.lexists(own):
        return trusted(own)
    for folder in _shipped(root):
        if (folder / DEFAULT).is_file():
            return trusted(folder / DEFAULT)
    raise Untrusted(f"there is no policy: neither {own} nor the shipped {DEFAULT}")


def _shipped(root: str) -> tuple[Path, ...]:
    """Return where the policies that we ship can lie: as the distribution's package has them, the wheel, a checkout."""
    package = Path(__file__).resolve().parent.parent
    return Path(root) / "usr/share/safemem/policies", package / "policies", package.parent / "policies"


def others(root: str = "/") -> list[Path]:
    """Return the policies that `safemem.policy=NAME` may name; the name is the file's, without `.toml`.

    Raises:
        Untrusted: somebody but root can write one of them.
    """
    return [trusted(path) for path in sorted((Path(root) / OTHERS).glob("*.toml"))]


def trusted(path: Path) -> Path:
    """Return `path` if only root can write it, and the folders that lead to it.

    Raises:
        Untrusted: somebody else can, or it cannot be told.
    """
    try:
        real = Path(os.path.realpath(path, strict=True))
        for place in (real, *real.parents):
            state = place.stat()
            what = "folder" if stat.S_ISDIR(state.st_mode) else "file"
            # With an access control list the bits of the group are its mask: they show it too.
            loose = state.st_mode & 0o022 and not (what == "folder" and state.st_mode & stat.S_ISVTX)
            if state.st_uid != 0:
                raise Untrusted(
                    f"{path}: refused, because the {what} {place} belongs to user {state.st_uid}: `chown root {place}`"
                )
            if loose:
                raise Untrusted(
                    f"{path}: refused, because the {what} {place} has mode {stat.S_IMODE(state.st_mode):04o}, so others "
                    f"than root can write it: `chmod go-w {place}`"
                )
    except OSError as error:
        raise Untrusted(f"{path}: {reason(error)}") from None
    return path
