# SPDX-License-Identifier: MIT
"""What an action means for each range of memory: the steps of a decision. Pure; no file, no clock."""

from __future__ import annotations

from safemem.boot.model import UNKNOWN, Blocks, Override, Pages, Plan, Room, Rule, Snapshot, Step
from safemem.boot.ranges import Range, cut, joined, merge_ranges, parse_size, whole_blocks

#: Bytes that stay available for the first programs of a real root; what grows with the machine comes on top.
FLOOR = 128 << 20
#: Why a block never goes offline, in words.
KEPT = {
    "kernel": "kernel text or data",
    "hole": "it has a hole: not all of it is memory",
    "guard": "a guard keeps a part of it, which nothing can move",
}
#: How the reason of a block begins that stays online for want of room: another floor may let it go.
BELOW = "below the floor"
_EVERYTHING = (Range(0, 1 << 64),)
_LATE = "was online before the decision"


def steps(
    rule: Rule, snapshot: Snapshot, region: tuple[Range, ...], zone: str, memory: tuple[Override, ...], keep: str
) -> tuple[Step, ...]:
    """Return what `rule` does to guard and blocks, the guard first.

    Args:
        region: the safe region, ascending.
        zone: for what comes online.
        memory: the exceptions, the rule's before the policy's.
        keep: size that is left of a guard for kdump when it is given back; "" is nothing.
    """
    return (
        *_guard_steps(rule, snapshot, keep),
        *_page_steps(rule, snapshot),
        *_block_steps(rule, snapshot, region, zone, memory),
    )


def held(action: str, snapshot: Snapshot, region: tuple[Range, ...], memory: tuple[Override, ...]) -> tuple[Range, ...]:
    """Return what `action` holds of the snapshot's blocks wherever they are offline, online now or not."""
    offline = tuple(run._replace(state="offline") for run in snapshot.blocks)
    found = _block_steps(Rule("", action), snapshot._replace(blocks=offline), region, "auto", memory)
    return tuple(Range(step.start, step.end) for step in found if step.op == "hold")


def _guard_steps(rule: Rule, snapshot: Snapshot, keep: str) -> tuple[Step, ...]:
    if snapshot.guard is None:
        return ()
    if rule.action == "online-all":
        return release_guard(snapshot.guard, keep, f"{rule.name}: all memory may be used")
    return (Step("keep-guard", *snapshot.guard, why="reserved since the first instruction of this boot"),)


def _page_steps(rule: Rule, snapshot: Snapshot) -> tuple[Step, ...]:
    if rule.action == "online-all":
        return release_pages(snapshot.gigantic)
    return tuple(
        Step(
            "keep-guard",
            *area,
            why=f"gigantic pages of node {item.node}, set aside before there was an allocator",
            node=item.node,
        )
        for item in snapshot.gigantic
        for area in item.ranges
    )


def release_pages(pages: tuple[Pages, ...]) -> tuple[Step, ...]:
    """Return the steps that give gigantic pages back, but for the operator's own: which those are the kernel chooses."""
    return tuple(
        Step(
            "release-guard", *area, node=item.node,
            why=f"gigantic pages of node {item.node}"
            + (f", of which {item.own} stay: hugepages= asks for them" if item.own else ""),
        )
        for item in pages
        for area in item.ranges
        if item.number > item.own
    )  # fmt: skip


def release_guard(guard: Range, keep: str, why: str = "") -> tuple[Step, ...]:
    """Return the steps that give a guard back, but for its first `keep` bytes, which kdump gets."""
    edge = min(guard.end, guard.start + (parse_size(keep) if keep else 0))
    kept = (Step("keep-guard", guard.start, edge, why="left to kdump"),) if keep else ()
    return (*kept, *((Step("release-guard", edge, guard.end, why=why),) if edge < guard.end else ()))


def _block_steps(
    rule: Rule, snapshot: Snapshot, region: tuple[Range, ...], zone: str, memory: tuple[Override, ...]
) -> tuple[Step, ...]:
    size = snapshot.block_size
    area = {"online-all": _EVERYTHING, "online-safe": region}.get(rule.action, ())
    pieces, guarded = [], snapshot.guarded
    # A block with a gigantic page must not be tried (`fixed`), and of these it is not known which block that is.
    if any(not item.placed for item in snapshot.gigantic):
        rule = rule._replace(boot_memory="leave")
    for run in _cut(snapshot.blocks, memory, size, guarded):
        about = [item for item in memory if _about(item, run, size)]
        # A hold counts wherever it stands; of zones, the first.
        exception = next((item for item in about if item.hold), about[0] if about else None)
        for piece, inside in split(run, size, area):
            op, why, late = _fate(rule, piece, inside, exception, size, guarded)
            onto = ((exception.zone if exception else "") or zone) if op == "online" else ""
            pieces.append((piece.first, piece.last + 1, (op, onto, why, late)))
    # Runs are split by node and driver, a plan need not be.
    return tuple(
        Step(op, first * size, end * size, first, end - 1, onto, why, late)
        for first, end, (op, onto, why, late) in joined(pieces)
    )


def _fate(
    rule: Rule, piece: Blocks, inside: bool, exception: Override | None, size: int, guarded: tuple[Range, ...]
) -> tuple[str, str, bool]:
    """Return what becomes of blocks in one state, all `inside` the area that the action onlines or all outside: op, why, late."""
    excepted = exception is not None and exception.hold
    safe = rule.action == "online-safe"
    if piece.state == "offline":
        if not inside:
            return "hold", "outside the safe region" if safe else "", False
        return ("hold", "an exception says so", False) if excepted else ("online", "safe region" if safe else "", False)
    if piece.state != "online":
        return "hold", f"state is {piece.state}", False
    if inside and not excepted:
        return "keep", "", False
    taken = rule.boot_memory == "offline" and not _guarded(piece, size, guarded)
    return "offline" if taken else "keep", _LATE, True


def _guarded(piece: Blocks, size: int, guarded: tuple[Range, ...]) -> bool:
    """Return whether all of `piece` lies in a guard: it is online by name only, and reserved pages keep it so."""
    return any(area.start <= piece.first * size and (piece.last + 1) * size <= area.end for area in guarded)


def _reach(override: Override, size: int) -> Range:
    """Return the blocks that an override's range is about, as the range of their numbers.

    INVARIANT: a block is held if the range touches it by one byte, and gets a zone only if it lies wholly inside.
    """
    area = override.range or Range(0, 0)
    return Range(area.start // size, -(-area.end // size)) if override.hold else whole_blocks(area, size)


def _about(override: Override, run: Blocks, size: int) -> bool:
    """Return whether the override is about every block of `run`, which was cut at its edges.

    INVARIANT: a block whose node or driver is not known is held by every override that holds one.
    """
    if override.range is not None:
        reach = _reach(override, size)
        return reach.start <= run.first and run.last < reach.end
    if override.node >= 0:
        return run.node == override.node or (override.hold and run.node < 0)
    return run.driver == override.driver or (override.hold and run.driver == UNKNOWN)


def _cut(
    blocks: tuple[Blocks, ...], memory: tuple[Override, ...], size: int, guarded: tuple[Range, ...]
) -> list[Blocks]:
    """Return the runs cut at the edges of the overrides' ranges, and of the blocks that lie wholly in a guard."""
    reaches = [_reach(item, size) for item in memory if item.range and blocks]
    reaches += [whole_blocks(area, size) for area in guarded if blocks]
    edges = sorted({edge for reach in reaches for edge in reach})
    runs = []
    for run in blocks:
        at = run.first
        for edge in edges:
            if at < edge <= run.last:
                runs.append(run._replace(first=at, last=edge - 1))
                at = edge
        runs.append(run._replace(first=at))
    return runs


def floor(plan: Plan, room: Room) -> int:
    """Return the bytes that taking memory offline leaves available."""
    blocks = sum(step.size for step in plan.steps if step.first >= 0)
    return parse_size(plan.floor) if plan.floor else FLOOR + 4 * room.initrd + blocks // 64


def fixed(step: Step, room: Room, guarded: tuple[Range, ...]) -> dict[int, str]:
    """Return which blocks of a step never go offline, and why, as far as that is known before it is tried: keys of KEPT.

    Of a block with a gigantic page it must not be tried either: the kernel would dissolve one that is not reserved.
    """
    size = step.size // (step.last + 1 - step.first)
    found: dict[int, str] = {}
    if room.ram:
        ram = [whole_blocks(area, size) for area in merge_ranges(room.ram)]
        for first, end, index in cut(step.first, step.last + 1, ram):
            found.update(dict.fromkeys(range(first, end) if index < 0 else (), "hole"))
    for area in guarded:
        found.update(dict.fromkeys(touched(step, area), "guard"))
    for area in room.kernel:
        found.update(dict.fromkeys(touched(step, area), "kernel"))
    return found


def touched(step: Step, area: Range) -> range:
    """Return the numbers of those blocks of a step of which `area` has a part."""
    size = step.size // (step.last + 1 - step.first)
    return range(max(step.first, area.start // size), min(step.last + 1, -(-area.end // size)))


def split(run: Blocks, size: int, region: tuple[Range, ...]) -> list[tuple[Blocks, bool]]:
    """Return `run` cut where it enters and leaves `region`; True for blocks wholly inside.

    INVARIANT: a block that reaches outside by even one byte counts as outside.
    """
    inside = [whole_blocks(area, size) for area in region] if size else []
    return [
        (run._replace(first=first, last=end - 1), index >= 0)
        for first, end, index in cut(run.first, run.last + 1, inside)
    ]
