# SPDX-License-Identifier: MIT
"""What the record of a boot tells of its machine that no look at it does: which memory refused to go offline."""

from __future__ import annotations

from safemem.boot import plan
from safemem.host.reader import Record
from safemem.policy.forecast import Tried


def of(record: Record | None, digest: str) -> Tried:
    """Return what a boot on record tells of its machine to the policy of this digest.

    To another policy only what refused for the machine's own sake: there may be more room, or less.
    """
    if record is None:
        return Tried()
    size = record.snapshot.block_size
    blocks = {
        number
        for step in record.decision.steps
        if step.op == "offline" and record.account
        for number in range(step.first, step.last + 1)
    }
    refused = {
        number: share.why
        for share in record.account
        if share.kind == "exposed"
        for number in range(share.start // size, -(-share.end // size))
        if number in blocks
    }
    own = record.decision.policy.digest == digest
    if not own:
        refused = {number: why for number, why in refused.items() if not why.startswith(plan.BELOW)}
        blocks = set(refused)
    return Tried(frozenset(blocks), refused, record.snapshot.room.available, own and record.done is not None)
