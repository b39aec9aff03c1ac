# SPDX-License-Identifier: MIT
"""The policies that count on a machine: the operator's, and those that the kernel command line may name."""

from __future__ import annotations

from pathlib import Path

from safemem.boot.model import Policy
from safemem.cli.common import InputError, load_policy
from safemem.policy import installed


def operators_policy(given: str | None, root: str = "/") -> Policy:
    """Return the policy that was named, or the operator's. Raises InputError, also if others than root can write it."""
    try:
        path = installed.trusted(Path(given)) if given else installed.find(root)
    except installed.Untrusted as error:
        raise InputError(str(error)) from None
    return load_policy(str(path))


def named_policies(root: str = "/") -> dict[str, Policy]:
    """Return the policies that the command line may name, by name. Raises InputError."""
    try:
        return {path.stem: load_policy(str(path)) for path in installed.others(root)}
    except installed.Untrusted as error:
        raise InputError(str(error)) from None
