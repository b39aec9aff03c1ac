# SPDX-License-Identifier: MIT
"""What the checks of doctor look at: one machine, read once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safemem.boot import files
from safemem.boot.model import Policy, Snapshot
from safemem.host import standing
from safemem.initramfs import bootplaces, check


class Image(NamedTuple):
    """The image of the next boot, and what it has of safemem."""

    path: str  #: its files and the entry that names them; "" if there is none for the kernel that runs
    inside: check.Inside | None = None
    fault: str = ""  #: why it cannot be read
    doubt: str = ""  #: why it cannot be told which image that is
    files: tuple[Path, ...] = ()


class Machine(NamedTuple):
    """What the checks look at."""

    root: str
    snapshot: Snapshot
    standing: standing.Standing | None
    absent: str  #: why there is no decision
    image: Image

    def text(self, path: str) -> str:
        """Return a file's text, or nothing if it cannot be read."""
        try:
            return (Path(self.root) / path).read_text("utf-8", "replace").strip()
        except OSError:
            return ""

    def value(self, fact: str) -> object:
        """Return a fact's value."""
        return self.snapshot.facts[fact].value

    @property
    def holds(self) -> bool:
        """Whether memory that arrives is to stay offline; without a decision, that is the safe answer."""
        return self.standing is None or self.standing.decision.holds

    def held(self) -> int:
        """Return the bytes that are offline now."""
        return sum(run.number for run in self.snapshot.blocks if run.state == "offline") * self.snapshot.block_size

    @property
    def policy(self) -> Policy | None:
        """The policy that decides at the next boot; None if that is not known."""
        return self.image.inside.built_in if self.image.inside else None


def read_image(root: str, release: str) -> Image:
    """Return the image of the next boot of the machine below `root`."""
    boots = bootplaces.find(root, release)
    if not boots.files:
        return Image("", doubt=boots.doubt)
    try:
        return Image(str(boots), check.inside(boots.read()), files=boots.files)
    except OSError as error:
        return Image(str(boots), fault=files.reason(error), files=boots.files)
    except ValueError as error:
        return Image(str(boots), fault=str(error), files=boots.files)
