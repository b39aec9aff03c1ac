# SPDX-License-Identifier: MIT
"""What preflight said in the boot before of the kernel that was to come: whether that one runs, and whether it was forced.

`safemem.preflight=` on the command line names the image that was judged, by build ID (`safemem.realroot.loading`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from safemem.boot.cmdline import argument
from safemem.host import history
from safemem.realroot import buildid, loaded
from safemem.realroot.kexecline import ARGUMENT
from safemem.realroot.loaded import Override

_ID = re.compile(r"[0-9a-f]{8,128}")
#: What is told beside the IDs; and what stands for them if they could not be told.
FLAGS, UNTOLD = ("overridden", "cannot-tell"), "unknown"


class Judged(NamedTuple):
    """What the command line says of the kexec that brought this kernel, and what runs."""

    told: tuple[str, ...]  #: build IDs of the image that was judged, of some images with those of its vDSOs; shortened
    flags: tuple[str, ...]  #: of FLAGS
    running: str  #: the build ID of this kernel, or ""
    problem: str  #: why the two cannot be compared, or ""
    override: Override | None  #: why that kexec was against the verdict, if that is on record

    @property
    def same(self) -> bool | None:
        """Whether the kernel that runs is the one that was judged; None if that cannot be told."""
        if self.problem or not self.told:
            return None
        return any(self.running.startswith(item) for item in self.told)

    @property
    def forced(self) -> bool:
        """Whether the kexec was against the verdict."""
        return "overridden" in self.flags or self.override is not None


def read(root: str, cmdline: str) -> Judged | None:
    """Return what is known of the verdict on this boot's kernel; None if nothing was said, and nothing was forced."""
    word = argument(cmdline, ARGUMENT)
    ids, *flags = (word or "").split(",")
    override, problem = _override(root, overridden="overridden" in flags)
    if word is None:
        return Judged((), (), "", problem, override) if override or problem else None
    told = () if ids == UNTOLD else tuple(ids.split("+"))
    if not all(_ID.fullmatch(item) for item in told) or set(flags) - set(FLAGS):
        return Judged(
            (), (), "", f"{ARGUMENT}= on the command line is ignored: `{word}` is not what kexec was given", override
        )
    running, why = buildid.running(root)
    if not told:
        why = "the build ID of the image that was judged could not be told"
    return Judged(told, tuple(flags), running, why or problem, override)


def _override(root: str, *, overridden: bool) -> tuple[Override | None, str]:
    """Return the override that ended the boot before, and "" ; or None and why it cannot be read, if it cannot."""
    try:
        before = history.previous(root)
        found = loaded.kept(root, history.boot_of(before)) if before else None
        # A boot before without a record: of a policy that is not installed, or whose disk was full.
        if found and not (found.started or overridden):
            return None, ""  # it was loaded, and never started
        return found or (loaded.newest(root) if overridden else None), ""
    except (OSError, loaded.Damaged) as error:
        return None, f"the override of the boot before cannot be read: {loaded.why_not(error)}" if overridden else ""
