# SPDX-License-Identifier: MIT
"""Say why this boot is in maintenance, on every console and at every login; run by safemem-maintenance.service.

Runs on the distribution's interpreter, whatever else is broken: standard library only.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from safemem.boot import account, record
from safemem.boot.files import reason
from safemem.boot.printable import printable
from safemem.realroot import storage

ISSUE, MOTD = "run/issue.d/safemem.issue", "run/motd.d/safemem"
CONSOLES = "sys/class/tty/console/active"
#: What the operator can do, and what it means.
WAYS = (
    ("safemem status", "what was decided and why, what is held, what was too late"),
    ("safemem release --reason TEXT", "give held memory to this system: whatever it preserves is lost"),
    ("systemctl isolate multi-user.target", "go on to the usual target; held memory stays held"),
    ("systemctl reboot", "start over without a handover: everything that was preserved is lost"),
)


def main(argv: list[str]) -> int:
    """Write the message for `--root` (default `/`); return 0, or 1 if it could not be written everywhere."""
    os.umask(0o022)
    root = argv[1] if argv[:1] == ["--root"] and len(argv) == 2 else "/"
    problems = announce(root, "\n".join(text(root)) + "\n")
    for problem in problems:
        sys.stderr.write(f"safemem: {problem}\n")
    return 1 if problems else 0


def text(root: str) -> list[str]:
    """Return the message: the reason, then the ways forward. A record that cannot be read is said, never an error."""
    try:
        with open(os.path.join(root, record.RECORD), encoding="utf-8") as file:
            document = json.load(file)
        decision = document["decision"]
        handover = decision["facts"]["handover"]
        why = [
            f"{decision['action']}: {decision['message']}",
            f"rule `{decision['rule']}` of policy `{decision['policy']['name']}`, digest {decision['policy']['digest'][:12]}",
            f"handover {handover['value']}: {handover['reason'] or handover['source']}",
            f"memory when this was decided: {_memory(document)}",
        ]
    except Exception as error:  # whatever is in it
        why = [f"the record of the decision cannot be read: {error}"]
    return ["", "MAINTENANCE", *(f"  {printable(line)}" for line in why), "", *ways(), ""]


def _memory(document: Any) -> str:
    """Return how much memory is of which kind, as the record of this boot says."""
    if "totals" not in document:
        return "not known, the record was not completed"
    return account.totals_text({**dict.fromkeys(account.KINDS, 0), **document["totals"]})


def ways() -> list[str]:
    """Return the ways forward, one a line."""
    width = max(len(command) for command, _ in WAYS)
    return [f"  {command:<{width}}  {meaning}" for command, meaning in WAYS]


def announce(root: str, message: str) -> list[str]:
    """Put the message before each login prompt, after each login and on every console; return what did not work."""
    problems = []
    for path, data in ((ISSUE, message.replace("\\", "\\\\")), (MOTD, message)):  # getty(8) has escapes
        try:
            storage.put(root, path, data)
        except OSError as error:
            problems.append(f"/{path}: {reason(error, 'cannot be written')}")
    return [*problems, *on_consoles(root, message)]


def on_consoles(root: str, message: str) -> list[str]:
    """Write the message to every console of the kernel; return what did not work."""
    problems = []
    try:
        with open(os.path.join(root, CONSOLES), encoding="utf-8") as file:
            consoles = file.read().split()
    except OSError as error:
        return [f"/{CONSOLES}: {reason(error)}"]
    for name in consoles:
        try:
            # A console that nobody reads must not hold up the boot.
            fd = os.open(os.path.join(root, "dev", name), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                os.write(fd, message.replace("\n", "\r\n").encode("utf-8", "replace"))
            finally:
                os.close(fd)
        except OSError as error:
            problems.append(f"/dev/{name}: {reason(error, 'cannot be written')}")
    return problems
