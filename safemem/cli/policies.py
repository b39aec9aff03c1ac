# SPDX-License-Identifier: MIT
"""The policies that a command is given or that count on a machine; what is wrong with one is a Refused."""

from __future__ import annotations

from pathlib import Path

from safemem.boot.model import Policy
from safemem.cli.common import reading
from safemem.policy import installed, load


def load_policy(path: str) -> Policy:
    """Return the policy at `path`."""
    return load_authored(path).policy


def load_authored(path: str) -> load.Authored:
    """Return the policy at `path` with the places of its rules."""
    with reading(path):
        return load.authored(Path(path))


def operators_policy(given: str | None, root: str = "/") -> Policy:
    """Return the policy that was named, or the operator's; neither if others than root can write it."""
    return _parsed(installed.trusted(Path(given)) if given else installed.find(root))


def named_policies(root: str = "/") -> dict[str, Policy]:
    """Return the policies that the command line may name, by name."""
    return {file.path.stem: _parsed(file) for file in installed.others(root)}


def _parsed(file: installed.Trusted) -> Policy:
    """Return what was read when the file was looked at: by its name there may be another one by now."""
    return load.parse(file.data, str(file.path)).policy
