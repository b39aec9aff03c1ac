# SPDX-License-Identifier: MIT
"""Every finding that `check` knows, by its code: how bad it is, and what it is about."""

from __future__ import annotations

#: code -> (level, what it is about), in the order in which they are checked.
CODES = {
    "invalid-policy": ("error", "The file is a policy."),
    "too-many-states": ("error", "Every state that the policy tells apart can be looked at."),
    "unreachable-rule": ("error", "Every rule decides some state."),
    "exposes-handover": ("error", "A handover that was offered and not accepted never ends in online-all by accident."),
    "unknown-permissive": ("error", "Not knowing a fact is never more permissive than knowing it at its worst."),
    "reboot-loop": ("error", "No reboot finds the state that it was decided in again."),
    "unsafe-block": ("error", "online-safe never onlines a block that reaches outside the safe region."),
    "named-region": (
        "warning",
        "After a lost handover no memory comes online because the policy says that it is safe.",
    ),
    "unknown-milder": ("warning", "Not knowing a fact ends in no milder words of the same action than knowing it."),
    "failure-loop": ("warning", "A failure that lasts does not reboot for ever."),
    "useless-region": ("warning", "A range that memory comes online in holds at least one whole memory block."),
    "useless-limit": ("warning", "A limit limits, and leaves room to run."),
    "odd-edge": ("warning", "A range ends where a memory block ends, not one byte into the next."),
    "exact-release": ("warning", "A release without wildcard is one that a kernel can call itself."),
    "idle-word": ("warning", "A word of the policy changes something."),
    "idle-acceptance": ("warning", "`accept_data_exposure` stands only where it is needed."),
    "idle-accept-errors": ("warning", "`accept_errors` names only errors that the policy has."),
    "same-as-next": ("warning", "A rule differs from the one after it."),
    "observes": ("warning", "What a policy decides is done, and not only recorded."),
    "quiesces-accepted": ("warning", "No device is stopped that an accepted handover may have preserved."),
    "tight-limit": ("note", "A limit can be met beside what the host itself runs in."),
    "held-everywhere": ("note", "An exception holds memory after a clean boot only where that is meant."),
    "held-anyway": ("note", "A zone is given to memory that no exception holds."),
    "loosened-by-cmdline": ("note", "The command line loosens an outcome only where the policy lets it."),
    "trusts-guard": ("note", "Evidence that is no proof counts as an accepted handover only where the policy says so."),
    "predecessors-word": (
        "note",
        "A lost handover ends milder by the predecessor's word, that nothing was preserved, only where a rule names it.",
    ),
    "only-otherwise": ("note", "States that no rule asks for are decided by `otherwise`."),
}
#: The errors that `accept_errors` may name: not that a policy is none, nor one behind which any other could hide.
ERRORS = tuple(
    code for code, (level, _) in CODES.items() if level == "error" and code not in ("invalid-policy", "too-many-states")
)
