# SPDX-License-Identifier: MIT
"""What an image says of its policies: which checks they had passed when they were built in.

A small text beside the policies with its own digest, as the compiled policy has: it finds damage, not forgery.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from safemem.boot import compiled
from safemem.initramfs.items import PREFIX

PATH = f"{PREFIX}/proven"


class Proof(NamedTuple):
    """What was proved of one policy."""

    digest: str  #: of the policy
    states: int  #: that were looked at
    accepted: tuple[str, ...]  #: codes of errors that it has, and accepts


class Proven(NamedTuple):
    """What was proved of the policies in an image."""

    version: str  #: of the safemem that did
    checks: tuple[str, ...]  #: codes of the errors that were looked for
    policies: tuple[Proof, ...]

    def of(self, digest: str) -> Proof | None:
        """Return what was proved of the policy with this digest."""
        return next((proof for proof in self.policies if proof.digest == digest), None)


def dump(proven: Proven) -> bytes:
    """Return the file that `load` reads."""
    body: dict[str, object] = {
        "version": proven.version,
        "checks": list(proven.checks),
        "policies": [{**proof._asdict(), "accepted": list(proof.accepted)} for proof in proven.policies],
    }
    return compiled.canonical({**body, "digest": compiled.digest(body)}) + b"\n"


def load(data: bytes, where: str) -> Proven:
    """Return what `dump` made `data` of, read from `where`. Raises compiled.Invalid for everything else."""
    try:
        document = json.loads(data.decode("ascii"))
        proofs = tuple(
            Proof(_text(item["digest"]), _number(item["states"]), _texts(item["accepted"]))
            for item in document["policies"]
        )
        found = Proven(_text(document["version"]), _texts(document["checks"]), proofs)
        if dump(found) == data:
            return found
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise compiled.Invalid(f"{where}: what was proved is damaged or was edited")


def missing(found: Proven | None, digests: Iterable[str]) -> str:
    """Return for which of the policies in an image there is no proof, or ""."""
    if found is None:
        return "it does not say which checks its policy has passed"
    for digest in digests:
        if found.of(digest) is None:
            return f"its proof is for another policy than the one with digest {digest[:12]}"
    return ""


def text(found: Proven, digest: str) -> str:
    """Return what was proved of the policy with this digest, in one line."""
    proof = found.of(digest) or Proof(digest, 0, ())
    accepted = f"{len(proof.accepted)} accepted{''.join(f', {code}' for code in proof.accepted)}"
    return f"by {found.version}: {len(found.checks)} checks over {proof.states:,} states, {accepted}"


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise TypeError
    return value


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(_text(item) for item in value)
