# SPDX-License-Identifier: MIT
"""The policies that a command is given or that count on a machine; what is wrong with one is a Refused."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import click

from safemem.boot.model import Policy, Refused
from safemem.cli.common import InputError, reading
from safemem.initramfs import proven
from safemem.policy import installed, load, prove
from safemem.policy.catalogue import ERRORS
from safemem.policy.space import Space
from safemem.render import findings
from safemem.render.text import plural

#: From so many states on, whoever is at a terminal sees how far a proof is.
_LONG = 200_000


class Named(NamedTuple):
    """A policy, the places of its rules, and the name of its file for messages."""

    file: str
    authored: load.Authored

    @property
    def policy(self) -> Policy:
        """The policy itself."""
        return self.authored.policy


def load_policy(path: str) -> Policy:
    """Return the policy at `path`, on standard input for `-`, or the shipped one of that name."""
    return find_policy(path).policy


def find_policy(path: str) -> Named:
    """Return the policy at `path` with its places; `-` is standard input, a name alone one that is shipped."""
    if path == "-":
        return Named(path, load.parse(sys.stdin.buffer.read(load.MAX_SIZE + 1), path))
    place = shipped(path) or path
    with reading(place):
        return Named(place, load.authored(Path(place)))


def shipped(name: str) -> str:
    """Return where the policy is that is shipped under `name`, or "" where that is the name of a file, or of nothing."""
    if "/" in name or name.endswith(".toml") or os.path.lexists(name):
        return ""
    there = installed.shipped()
    if name not in there:
        raise InputError(f"{name}: there is no such file, and of policies that are shipped only {', '.join(there)}")
    return str(there[name])


def operators_policy(given: str | None, root: str = "/") -> Policy:
    """Return the policy that was named, or the operator's; neither if others than root can write it."""
    return operators(given, root).policy


def operators(given: str | None, root: str = "/") -> Named:
    """Return the policy that was named, or the operator's, with its places."""
    return _parsed(installed.trusted(Path(given)) if given else installed.find(root))


def named_policies(root: str = "/") -> dict[str, Named]:
    """Return the policies that the command line may name, by name."""
    return {file.path.stem: _parsed(file) for file in installed.others(root)}


def _parsed(file: installed.Trusted) -> Named:
    """Return what was read when the file was looked at: by its name there may be another one by now."""
    return Named(str(file.path), load.parse(file.data, str(file.path)))


def examine(chosen: Named) -> findings.Checked:
    """Return what is found out about a policy in every state."""
    proved = prove.prove(chosen.policy, lambda space: _bar(chosen.file, space))
    found = [findings.Located(chosen.file, *chosen.authored.place(item.rule, item.key), item) for item in proved.found]
    found.sort(key=lambda item: (item.line, item.column))
    return findings.Checked(chosen.file, chosen.policy.name, proved.states, tuple(found))


@contextlib.contextmanager
def _bar(path: str, space: Space) -> Iterator[Callable[[int], None]]:
    hidden = not sys.stderr.isatty() or space.size < _LONG
    label = f"{path}: {space.size:,} states"
    with click.progressbar(length=space.size, label=label, file=sys.stderr, hidden=hidden) as bar:
        yield lambda done: bar.update(done - bar.pos)


class Unproven(Refused):
    """A policy has errors that it does not accept; the lines are those of `check`, and what to do."""

    kind = "invalid"


def proof(chosen: Named, named: Mapping[str, Named] = {}) -> bytes:
    """Return what an image says of the policies that are built in, once each is proved.

    Raises:
        Unproven: one has an error that it does not accept.
    """
    lines: list[str] = []
    proofs: dict[str, proven.Proof] = {}
    for each in (chosen, *named.values()):
        result = examine(each)
        bad = [item for item in result.found if item.finding.level == "error"]
        for item in bad:
            lines += findings.lines(item)
        if bad:
            codes = ", ".join(f'"{code}"' for code in dict.fromkeys(item.finding.code for item in bad))
            lines.append(
                f"{each.file}: not built, because of {plural(len(bad), 'error')}: mend the policy, or write"
                f" `accept_errors = [{codes}]` at its top, which the image and the record will say"
            )
        digest = each.policy.digest
        has = {item.finding.code for item in result.found if findings.is_accepted(item.finding)}
        accepted = tuple(code for code in each.policy.accept_errors if code in has)
        proofs[digest] = proven.Proof(digest, result.states, accepted)
    if lines:
        raise Unproven("\n".join(lines))
    return proven.dump(proven.Proven(version("safemem"), ERRORS, tuple(proofs.values())))
