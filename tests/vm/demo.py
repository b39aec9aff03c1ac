# SPDX-License-Identifier: MIT
"""Show, on a real kernel, what happens when the next kernel rejects what it was handed.

    python -m tests.vm.demo [POLICY]

The console is shown as it comes; safemem's own lines stand out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from safemem.policy.load import PolicyError
from tests.vm import harness
from tests.vm.kit import lost

SCRIPT = """
mount -t debugfs d /sys/kernel/debug
[ "$STAGE" = 2 ] || handover "$CMDLINE"
/usr/lib/safemem/boot
state
"""
ENDS = {
    "poweroff": "the boot went on, and the guest's init shut it down",
    "panic": "the kernel panicked, and the machine was reset",
    "reset": "the machine was reset",
    "halted": "the machine stands still",
}


class Console:
    """Prints the console as it comes: kernel lines dim, what matters bright."""

    def __init__(self, colour: bool) -> None:
        self.colour, self.rest = colour, ""

    def __call__(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.show(line.rstrip("\r"))

    def show(self, line: str) -> None:
        """Print one line."""
        if line.startswith("Linux version"):
            self.paint("1", f"── {'the next' if 'stage' in vars(self) else 'the outgoing'} kernel " + "─" * 48)
            self.stage = 2
        if line.startswith("safemem:"):
            self.paint("1;97;44", f" {line} ")
        elif re.match(r"KHO:|luo:|Kernel panic", line):
            self.paint("33", line)
        else:
            self.paint("2", line)

    def paint(self, code: str, line: str) -> None:
        """Print `line` in a colour, if there are colours."""
        print(f"\x1b[{code}m{line}\x1b[0m" if self.colour else line, flush=True)


def main(words: list[str]) -> int:
    """Boot, show, and say how it ended."""
    path = Path(words[0] if words else harness.REPOSITORY / "policies/live-update-host.toml")
    console = Console(sys.stdout.isatty())
    try:
        machine = lost("demo", SCRIPT, path.read_text(), watch=console)
    except (OSError, PolicyError, FileNotFoundError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 3
    result = harness.boot(machine)
    for log, _ in harness.LOGGED:
        log.unlink()
    console.paint("1", "── the end " + "─" * 60)
    print(f"policy {path.name}: {ENDS.get(result.fate, result.fate)} after {result.seconds:.0f} s")
    if "dimm" in result.report:
        print(f"hot-added memory, 8 blocks of 128 MiB: {result.report['dimm']}")
    return 0 if result.fate in ENDS else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
