# SPDX-License-Identifier: MIT
"""The compiled form of a policy, written at a desk; `safemem.boot.compiled` reads it."""

from __future__ import annotations

from safemem.boot import compiled
from safemem.boot.model import Policy, Term
from safemem.boot.ranges import Range


def dump(policy: Policy) -> bytes:
    """Return the compiled form of `policy`; its own `digest` is ignored and computed anew."""
    words = {key: plain(value) for key, value in policy._asdict().items() if key != "digest"}
    body: dict[str, object] = {"format": compiled.FORMAT, "policy": words}
    return compiled.canonical({"digest": compiled.digest(body), **body}) + b"\n"


def plain(value: object) -> object:
    """Return a value of a policy as JSON has it: a table for a named tuple, text for a range, a pair for a term."""
    if isinstance(value, Range):
        return str(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict") and not isinstance(value, Term):
        return {key: plain(item) for key, item in value._asdict().items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value
