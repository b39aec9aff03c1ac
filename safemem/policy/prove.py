# SPDX-License-Identifier: MIT
"""The proof of one policy: what is wrong with it in any state, less what the policy accepts by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

from safemem.boot.model import Policy
from safemem.policy import invariants
from safemem.policy.catalogue import CODES
from safemem.policy.invariants import Finding
from safemem.policy.space import Outcomes, Space, TooLarge

#: Gets the states that are to be looked at, and gives what is told how many have been.
Shown = Callable[[Space], AbstractContextManager[Callable[[int], None]]]


class Proved(NamedTuple):
    """What was found out about a policy."""

    states: int  #: that were looked at; 0 if there are too many of them
    found: tuple[Finding, ...]  #: an error that the policy accepts is a note


@contextlib.contextmanager
def _quietly(_: Space) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


def prove(policy: Policy, shown: Shown = _quietly) -> Proved:
    """Return what is wrong with `policy`; that it cannot be proved is an error like any other."""
    try:
        space = Space(policy)
        with shown(space) as progress:
            outcomes = Outcomes(space, policy, progress)
    except TooLarge as error:
        advice = "ask for fewer facts or values: nobody could review so many states either"
        return Proved(0, _less_accepted(policy, [_finding("too-many-states", "", 0, str(error), advice)]))
    return Proved(len(outcomes.of), _less_accepted(policy, invariants.check(policy, outcomes)))


def _less_accepted(policy: Policy, found: list[Finding]) -> tuple[Finding, ...]:
    there = {finding.code for finding in found}
    idle = (
        _finding(
            "idle-accept-errors", "accept_errors", index,
            f"`{code}` is accepted, and this policy has no such error", "remove it, so that it does not hide what a later edit does",
        )
        for index, code in enumerate(policy.accept_errors) if code not in there
    )  # fmt: skip
    return (*(_accepted(policy, finding) for finding in found), *idle)


def _accepted(policy: Policy, finding: Finding) -> Finding:
    if finding.level != "error" or finding.code not in policy.accept_errors:
        return finding
    return finding._replace(level="note", message=f"{finding.message} (accepted by accept_errors)")


def _finding(code: str, rule: str, key: str | int, message: str, advice: str) -> Finding:
    return Finding(code, CODES[code][0], rule, key, message, advice, {})
