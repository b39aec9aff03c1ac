# SPDX-License-Identifier: MIT
"""What the checks of doctor look at: one machine, read once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safemem.boot import files
from safemem.boot.model import UNKNOWN, Policy, Snapshot
from safemem.host import standing
from safemem.initramfs import bootplaces, check, install, uki


class Image(NamedTuple):
    """The image of the next boot, and what it has of safemem."""

    path: str  #: its files and the entry that names them; "" if there is none for the kernel that runs
    inside: check.Inside | None = None
    fault: str = ""  #: why it cannot be read
    doubt: str = ""  #: why it cannot be told which image that is
    files: tuple[Path, ...] = ()
    profile: str = ""  #: of a unified image with profiles: the worst, which is judged
    hidden: str = ""  #: safemem may be in what is not looked into
    why: str = ""  #: safemem is not in it although its files are in the archive
    release: str = UNKNOWN  #: of the kernel that it boots
    undone: str = ""  #: by which word of the kernel's command line nothing of it may be started

    @property
    def called(self) -> str:
        """The image, and the profile of it that is judged."""
        return f"{self.path}: profile {self.profile}" if self.profile else str(self.path)


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


def next_image(root: str, running: str) -> Image:
    """Return the image of the next boot: of the kernel that runs or, where none does, of the only one that is installed."""
    if running != UNKNOWN:
        return read_image(root, running)._replace(release=running)
    there = install.installed(root)
    if len(there) == 1:
        return read_image(root, there[0])._replace(release=there[0])
    known = f"kernels {', '.join(there)}" if there else "no kernel"
    return Image("", doubt=f"no kernel runs here, and lib/modules has {known}")


def read_image(root: str, release: str) -> Image:
    """Return the image of the next boot of the machine below `root`."""
    boots = bootplaces.find(root, release)
    if not boots.files:
        return Image("", doubt=boots.doubt)
    try:
        data = boots.read()
        judged = check.judged(data)
        beside = [item for path in boots.files for item in uki.addons(path)] if data.startswith(b"MZ") else []
        untold = uki.untold(tuple(beside))
        return Image(
            str(boots),
            judged.inside,
            untold,
            boots.doubt,
            boots.files,
            judged.profile,
            why=judged.why,
            undone=boots.undone,
        )
    except OSError as error:
        return Image(str(boots), fault=files.reason(error), files=boots.files)
    except check.NotLookedInto as error:
        return Image(str(boots), hidden=str(error), files=boots.files)
    except ValueError as error:
        return Image(str(boots), fault=str(error), files=boots.files)
