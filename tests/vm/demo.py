# SPDX-License-Identifier: MIT
"""Tell the story of a rejected handover with numbers, on real kernels: what is lost without safemem, and with it.

    python -m tests.vm.demo [POLICY]

POLICY is the name of a shipped policy or a file. With VERBOSE=1 in the environment the guests' consoles are shown as well.
"""

from __future__ import annotations

import os
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

from safemem.boot.model import Refused
from safemem.boot.printable import printable
from safemem.policy import load
from safemem.policy.values import near
from tests.vm import harness, kit

POLICIES = harness.REPOSITORY / "policies"
DEFAULT = "maintenance"
MEMFD, BOOT = 256, 1024
PAGES = MEMFD * 256
WIDTH = 80
#: fate of a guest -> how its second kernel ended.
ENDS = {
    "poweroff": "the boot went on, and then a program took all memory that was free",
    "panic": "the kernel panicked before anything could use the memory",
    "reset": "the machine was reset before anything could use the memory",
    "halted": "the machine stands still, and nothing uses the memory",
}


class Outcome(NamedTuple):
    """What became of the guest's pages in one act."""

    before: int
    after: int
    guard: int  #: bytes of the guard that was in force
    fate: str


class Told:
    """Says what happens as the console shows it, with seconds; only with `verbose` the console itself."""

    def __init__(self, verbose: bool, act: str = "") -> None:
        """Begin to count seconds; `act` is the heading of what follows the kexec."""
        self.verbose, self.act = verbose, act
        self.rest, self.kernels, self.lines = "", 0, 0
        self.next = ""  #: said once the console that came before it has been
        self.started = time.monotonic()

    def __call__(self, text: str) -> None:
        """Take the next piece of the console."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in map(printable, (line.rstrip("\r") for line in lines)):
            if line.startswith("Linux version"):
                self.kernels += 1
                self.lines = 0
                if self.act and self.kernels == 2:
                    say()
                    say(self.act, head=True)
                self.event("the outgoing kernel starts" if self.kernels == 1 else "kexec: the next kernel starts")
            self.lines += 1
            if self.verbose:
                print(paint("2", f"  | {line}"), flush=True)
            if self.kernels == 2 and line.startswith("KHO: disabling"):
                self.event(f"it says, in line {self.lines} of its console: ", quoted=line)
            if line.startswith("safemem:"):
                self.event("", quoted=line)
        self.reached()
        if sys.stdout.isatty() and not self.verbose:
            print(f"  {self.seconds():4} s …\r", end="", flush=True)

    def reached(self) -> None:
        """Say what the guest had reached before it fell silent."""
        text, self.next = self.next, ""
        if text:
            self.event(text)

    def seconds(self) -> int:
        """Return how long this guest has been running."""
        return int(time.monotonic() - self.started)

    def event(self, text: str, quoted: str = "") -> None:
        """Say one thing that has happened."""
        first = f"  {self.seconds():4} s  "
        lines = textwrap.wrap(text + quoted, WIDTH, initial_indent=first, subsequent_indent=" " * len(first))
        print(paint("33", "\n".join(lines)) if quoted else "\n".join(lines), flush=True)


def paint(code: str, text: str) -> str:
    """Return `text` in a colour, where there are colours."""
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{code}m{text}\x1b[0m" if coloured else text


def say(text: str = "", *, head: bool = False) -> None:
    """Print a paragraph."""
    print(paint("1", text) if head else textwrap.fill(text, WIDTH, replace_whitespace=False), flush=True)


def chosen(name: str) -> Path:
    """Return the file of a shipped policy or of a path. Raises Refused."""
    for path in (Path(name), POLICIES / f"{name}.toml"):
        if path.is_file():
            return path
    shipped = tuple(sorted(path.stem for path in POLICIES.glob("*.toml") if ".cases." not in path.name))
    raise Refused(f"there is no policy `{name}`{near(name, shipped)}; give a file, or one of {', '.join(shipped)}")


def act(name: str, text: str, told: Told) -> Outcome:
    """Boot one guest twice, by kexec, with the policy `text` or without safemem; count before and after."""
    counts: list[int] = []
    script = harness.shell(
        "demo", MEMFD=MEMFD, BOOT=BOOT, GUARD="yes" if text else "", THEN="decide" if text else "state"
    )
    with tempfile.TemporaryDirectory(prefix="safemem-demo-") as folder:
        memory = Path(folder)

        def count(report: dict[str, str]) -> None:
            if report["checkpoint"] == "1":
                counts.append(pages(memory, report["scratch"]))
                told.event(f"{MEMFD} MiB of a guest are handed over: {counts[0]:,} pages, counted from outside")
            else:
                told.next = "a program asks for all memory that is free"

        options: dict[str, Any] = {
            "boot_mib": BOOT,
            "dimm_mib": 0,
            "memory": memory,
            "checkpoint": count,
            "watch": told,
        }
        result = harness.boot(kit.lost(f"demo-{name}", script, text, **options))
        if not counts or result.fate not in ENDS:
            raise Refused(
                f"the guest did not get so far: it ended as `{result.fate}`; its console is in {harness.LOGS}"
            )
        counts.append(pages(memory, result.report["scratch"]))
    told.reached()
    told.event(f"{ENDS[result.fate]}" + (f": {result.report['filled']} MiB" if "filled" in result.report else ""))
    return Outcome(counts[0], counts[1], int(result.report.get("guard") or 0), result.fate)


def pages(memory: Path, scratch: str) -> int:
    """Return how many pages of the pattern are intact outside of scratch, where copies of what was moved out stay behind."""
    areas = sorted((int(start, 16), int(size, 16)) for start, size in (pair.split(",") for pair in scratch.split()))
    edges = [0, *(edge for start, size in areas for edge in (start, start + size)), 1 << 62]
    return harness.count_at(memory, MEMFD, list(zip(edges[::2], edges[1::2], strict=True)))


def share(part: int, whole: int) -> str:
    """Return a share in per cent, rounded down: what is lost is never rounded away."""
    return f"{part * 1000 // whole / 10:.1f} %"


def verdict(name: str, without: Outcome, kept: Outcome) -> list[str]:
    """Return the table of all three counts, and what it says."""
    rows = [
        ("before the kexec", without.before, without.before, ""),
        ("rejected, without safemem", without.after, without.before, "boots as ever"),
        (
            f"rejected, with `{name}`",
            kept.after,
            kept.before,
            HOW[kept.fate] if kept.guard or kept.fate != "poweroff" else "boots as ever",
        ),
    ]
    wide = max(len(row[0]) for row in rows)
    lines = [f"  {'':<{wide}}  {'pages intact':>12}  {'of all':>8}  the next kernel"]
    for label, count, whole, how in rows:
        lines.append(f"  {label:<{wide}}  {count:>12,}  {share(count, whole):>8}  {how}".rstrip())
    return lines


HOW = {
    "poweroff": "boots in the rest",
    "panic": "panics, says why",
    "reset": "is reset",
    "halted": "halts",
}


def lesson(name: str, kept: Outcome) -> str:
    """Return in words what the policy has done for the guest's memory."""
    lost = kept.before - kept.after
    if kept.fate == "panic":
        return (
            f"`{name}` ends such a boot in a panic: but for {lost:,} pages that the kernel itself booted in, the memory stayed "
            "untouched until the reset, and the console says why. With panic=N on the command line the reset follows by "
            "itself; do not count on the memory after it."
        )
    if kept.fate in ("reset", "halted"):
        return f"`{name}` does not let such a boot go on: nothing but the kernel itself used the memory until then."
    if lost > kept.before // 2:
        return f"`{name}` lets such a boot use all memory: {lost:,} pages of the guest are gone, on purpose."
    return (
        f"The guard kept {kept.guard >> 20} MiB out of the kernel's hands from its first instruction, and `{name}` keeps it "
        f"there until somebody says `safemem release`. The {lost:,} pages that are lost lay outside of it."
    )


def main(words: list[str]) -> int:
    """Tell all three acts and the verdict."""
    try:
        path = chosen(words[0] if words else DEFAULT)
        text = path.read_text()
        load.parse(text.encode(), str(path))
        for kernel in ("old-kho", "current"):
            harness.kernel(kernel)
        play(path.stem, text, verbose=os.environ.get("VERBOSE", "") not in ("", "0"))
        for log, _ in harness.LOGGED:
            log.unlink(missing_ok=True)
    except KeyboardInterrupt:
        print("\ndemo: stopped; no guest is left running", file=sys.stderr)
        return 130
    except (OSError, Refused) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 3
    return 0


def play(name: str, text: str, verbose: bool) -> None:
    """Boot the guests and say what they show."""
    say("What a rejected handover costs", head=True)
    say(
        f"Two virtual machines of {BOOT} MiB, one after the other, on real kernels. In each, {MEMFD} MiB of a guest's memory "
        "are handed over by KHO to a kernel that expects another version of it. The pages are counted in the "
        "machine's memory, from outside."
    )
    say()
    say("Act 1: a guest's memory is handed over", head=True)
    without = act("without", "", Told(verbose, "Act 2: the next kernel rejects it, and there is no safemem"))
    say(f"          {without.after:,} of {without.before:,} pages are intact: {share(without.after, without.before)}.")
    say()
    say(f"Act 3: the same with safemem: a guard, and the policy `{name}`", head=True)
    kept = act("with", text, Told(verbose))
    say(f"          {kept.after:,} of {kept.before:,} pages are intact: {share(kept.after, kept.before)}.")
    say()
    say("Verdict", head=True)
    print("\n".join(verdict(name, without, kept)))
    say()
    say(lesson(name, kept))
    say()
    say("Next", head=True)
    other = "live-update-host" if name != "live-update-host" else "maintenance"
    print(f"  make vm-demo POLICY={other}")
    print("  make vm-demo VERBOSE=1      the same, with the kernels' consoles")
    print("  make run                    what the default policy would do on this machine")
    print("  docs/pages.md               more machines, with and without quarantine")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
