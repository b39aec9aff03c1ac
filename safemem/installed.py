# SPDX-License-Identifier: MIT
"""Whether safemem is in the initrd of the next boot, and with which policy."""

import fnmatch
from pathlib import Path

from safemem import compiled, initrd, policy

#: Where distributions put an initrd, below the root, for one kernel release.
PLACES = (
    "boot/initrd.img-{}",  # Debian, Ubuntu
    "boot/initramfs-{}.img",  # Fedora, Red Hat
    "boot/initrd-{}",  # SUSE
    "boot/*/{}/initrd*",  # kernel-install(8), by machine id
    "efi/*/{}/initrd*",
)
AUTHORED = "etc/safemem/policy.toml"
_COMPILED = "usr/lib/safemem/policy.json"


class Unreadable(Exception):
    """An image or a policy cannot be read; the message says which, and why."""


def find(root: str, release: str) -> "Path | None":
    """Return the initrd that is there for one kernel release, or None."""
    for place in PLACES:
        # A release is no pattern, whatever is in it.
        pattern = place.format("".join(f"[{char}]" if char in "*?[" else char for char in release))
        for path in sorted(Path(root).glob(pattern)):
            if path.is_file() and not fnmatch.fnmatch(path.name, "*.old*"):
                return path
    return None


def digest(image: Path) -> "str | None":
    """Return the digest of the policy that is built into an initrd; None if safemem is not in it.

    Raises:
        Unreadable: the image is damaged, or packed in a way that cannot be unpacked here.
    """
    try:
        found = initrd.find(image.read_bytes(), [_COMPILED])
        return compiled.load(found[_COMPILED], _COMPILED).digest if _COMPILED in found else None
    except OSError as error:
        raise Unreadable(f"{image}: {(error.strerror or 'cannot be read').lower()}") from None
    except ValueError as error:
        raise Unreadable(f"{image}: {error}") from None


def authored(root: str) -> "str | None":
    """Return the digest that the policy in /etc has once it is compiled; None if there is none.

    Raises:
        Unreadable: it cannot be read, or is not valid.
    """
    path = Path(root) / AUTHORED
    try:
        return compiled.load(compiled.dump(policy.load(path).policy), str(path)).digest
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    except policy.PolicyError as error:
        raise Unreadable(str(error).splitlines()[0]) from None
