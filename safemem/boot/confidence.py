# SPDX-License-Identifier: MIT
"""How sure handover, guard and safe region are, by where each was read; a pure function of the facts.

`proven`: the running kernel shows it of itself. `evidence`: nothing else that is known fits. `word`: somebody has written
it, the predecessor on the command line or the operator in the policy, and nothing here confirms it.
"""

from __future__ import annotations

from safemem.boot import paths
from safemem.boot.model import CONFIDENT, UNKNOWN, Fact

_PROVEN, _EVIDENCE, _WORD = "proven", "evidence", "word"
#: A value of `handover` -> how sure it can be, the usual first; the other one where what tells is in `_WEAK`.
HANDOVER = {
    "none": (_PROVEN,),
    "lost": (_WORD,),
    "accepted": (_PROVEN, _EVIDENCE),
    "rejected": (_PROVEN, _EVIDENCE),
    "orphaned": (_EVIDENCE,),
    "unsupported": (_PROVEN,),
    UNKNOWN: (UNKNOWN,),
}
#: Sources by which something else may be so all the same: a guard that is not in force may have been computed badly, KHO
#: may not start for another reason, and who held a token that did not come may have ended before the kexec.
_WEAK = {"accepted": ("guard",), "rejected": ("command line", paths.LUO_DEVICE)}
#: Why a region is no more than a word, and not the predecessor's.
OPERATORS = "the policy's own ranges"
#: A source of the safe region -> how sure its ranges are; that of `kho-scratch` is the handover's.
_REGION = {
    "none": (_PROVEN, "it is empty"),
    "cmdline": (_WORD, "the predecessor's, on the command line"),
    "policy": (_WORD, OPERATORS),
    "unresolved": (UNKNOWN, "no safe region is known"),
}


def of(facts: dict[str, Fact], region_source: str) -> dict[str, Fact]:
    """Return the three facts that say how sure others are; `region_source` is what the engine took the region from."""
    handover, region = _handover(facts["handover"]), facts["safe_region"]
    guard = facts.get("guard", Fact(UNKNOWN, ""))
    value, why = _REGION.get(region_source, (str(handover.value), "as sure as the handover"))
    if region.value == "unresolved":
        value, why = _REGION["unresolved"]
    return {
        CONFIDENT["handover"]: handover,
        CONFIDENT["guard"]: Fact(UNKNOWN if guard.value == UNKNOWN else _PROVEN, guard.source),
        CONFIDENT["safe_region"]: Fact(value, region.source, why),
    }


def _handover(fact: Fact) -> Fact:
    usual, *other = HANDOVER.get(str(fact.value), (UNKNOWN,))
    return Fact(other[0] if fact.source in _WEAK.get(str(fact.value), ()) else usual, fact.source)
