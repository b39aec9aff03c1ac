# SPDX-License-Identifier: MIT
"""Why a command could not do what it was asked, in the format that a program asked for."""

from __future__ import annotations

import json

from safemem.boot import record
from safemem.boot.printable import printable


def document(form: str, command: str, code: int, lines: tuple[str, ...]) -> str:
    """Return `lines`, each of which says one thing that is wrong, as `json`, `sarif` or `junit`."""
    if form == "json":
        body = {"schema": record.SCHEMA, "kind": "error", "command": command, "exit_code": code, "errors": list(lines)}
        return json.dumps(body, indent=1)
    from safemem.render import findings  # pydantic: for policies only

    if form == "sarif":
        return findings.sarif([], lines)
    said = [printable(line) for line in lines]  # XML has no form for some characters
    return findings.junit(f"safemem {command}", [findings.Case(command, line, line) for line in said])
