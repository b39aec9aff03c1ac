# SPDX-License-Identifier: MIT
"""Give back what the hold took, so that an observed machine is what Linux without safemem makes of it."""

from __future__ import annotations

from safemem.boot import apply, files, paths
from safemem.boot.cmdline import argument
from safemem.boot.files import reason
from safemem.boot.hold import ONLINE_WORD, let_arrive
from safemem.boot.memory import states
from safemem.boot.model import UNKNOWN, Note, Plan, Snapshot, Step
from safemem.boot.plan import release_guard
from safemem.boot.record import Done


def give_back(root: str, snapshot: Snapshot) -> Done:
    """Give the guards back, let memory arrive as it did before the hold, online what has arrived offline, and return what came of it.

    Without `memhp_default_state=offline`, which is there for safemem, the kernel's own word counts; a kernel that says
    `offline` by itself leaves memory to udev, and so do we.

    Args:
        snapshot: with `auto_online_blocks` as it was before the hold.
    """
    before, guard = (
        str(snapshot.facts["auto_online"].value),
        release_guard(snapshot.guard, "") if snapshot.guard else (),
    )
    guards = (
        apply.carry_out(Plan(guard, give_back=snapshot.gigantic), root) if snapshot.guard or snapshot.gigantic else None
    )
    kept = guards.problems if guards else ()
    asked = before in ("offline", UNKNOWN) and argument(snapshot.cmdline, "memhp_default_state") == "offline"
    zone = {word: zone for zone, word in ONLINE_WORD.items()}.get("online" if asked else before)
    if zone is None:
        text = f"{paths.AUTO_ONLINE} could not be read before the hold: it reads `offline` now"
        lost = (Note("auto-online-not-set", text),) if before == UNKNOWN else ()
        return Done(observed=True, complete=not (lost or kept), problems=(*kept, *lost))
    # First what is to arrive: nothing falls in between.
    problems = [*kept, *let_arrive(root, zone)]
    try:
        blocks, size = states(root), int(files.line(root, paths.BLOCK_SIZE), 16)
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        text = f"whether memory is offline that this boot should have online cannot be told: {why}"
        return Done(observed=True, problems=(*problems, Note("not-looked-at", text)))
    steps = tuple(
        Step("online", run.first * size, (run.last + 1) * size, run.first, run.last, zone)
        for run in blocks
        if run.state == "offline"
    )
    result = apply.carry_out(Plan(steps), root)
    problems += result.problems
    return Done(
        complete=not problems,
        bytes_onlined=result.onlined,
        bytes_wanted=result.wanted,
        problems=tuple(problems),
        observed=True,
    )
