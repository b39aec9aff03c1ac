# SPDX-License-Identifier: MIT
"""The decision as one entry of systemd's journal, with fields to search for."""

from __future__ import annotations

from safemem.host.standing import Standing
from safemem.realroot.journal import SOCKET as SOCKET
from safemem.realroot.journal import send as send

#: `journalctl MESSAGE_ID=…` lists the decisions of all boots.
DECISION = "5ac2c1e3bb1b4cd0a0c1ee0f8f5be0ae"
#: Of syslog(3): notice, warning; anything else is an error.
_PRIORITY = {"open": "5", "held": "4"}
#: Of a decision that is only recorded, on purpose.
_RECORDED = "5"


def fields(found: Standing, exit_code: int) -> dict[str, str]:
    """Return the entry for the decision that stands; `exit_code` is what `status` ends with."""
    decision = found.decision
    return {
        "MESSAGE": f"{decision.action}: {decision.message}",
        "MESSAGE_ID": DECISION,
        "PRIORITY": _PRIORITY.get(found.verdict, "3") if found.mode == "enforce" else _RECORDED,
        "SYSLOG_IDENTIFIER": "safemem",
        "SAFEMEM_MODE": found.mode,
        "SAFEMEM_ACTION": decision.action,
        "SAFEMEM_RULE": decision.rule.name,
        "SAFEMEM_POLICY": decision.policy.name,
        "SAFEMEM_DIGEST": decision.policy.digest,
        "SAFEMEM_HANDOVER": str(found.then.facts["handover"].value),
        "SAFEMEM_EXIT_CODE": str(exit_code),
    }


def warning(text: str) -> dict[str, str]:
    """Return an entry that says `text`."""
    return {"MESSAGE": text, "PRIORITY": "4", "SYSLOG_IDENTIFIER": "safemem"}
