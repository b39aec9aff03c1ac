# SPDX-License-Identifier: MIT
"""What boots one kernel release, as a value; and the one of several answers."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from safemem.boot import files
from safemem.initramfs import bootoptions

#: No boot that anybody means by `the next boot`: rescue images, dump kernels', fallbacks.
_SPARE = re.compile(r"rescue|kdump|fallback|\.old|^recovery-", re.IGNORECASE)


class Boots(NamedTuple):
    """What boots one kernel release, as far as files tell."""

    files: tuple[Path, ...] = ()  #: read one behind the other; of a unified kernel image, that
    entry: Path | None = None  #: what names them; None where that is the place alone, or a menu
    doubt: str = ""  #: why it cannot be told; there are no files then
    unified: bool = False
    aligned: bool = False  #: whether what reads them begins each at a multiple of 4 bytes
    copies: tuple[Path, ...] = ()  #: where the distribution keeps an image that it copies for the entry
    meant: tuple[Path, ...] = ()  #: with a doubt: the files that an entry names, of which only initrds are not there
    options: str = ""  #: words that the kernel is given

    def __str__(self) -> str:
        """Return the files and what names them, for a message."""
        names = ", ".join(map(str, self.files))
        return f"{names}, named by {self.entry}" if self.entry and self.entry not in self.files else names

    @property
    def undone(self) -> str:
        """By which word of its command line nothing of the image may be started, and why; or ""."""
        word, why = next(bootoptions.undone(self.options), ("", ""))
        return f"`{word}` on its command line: {why}" if word else ""

    def read(self) -> bytes:
        """Return the bytes that the kernel gets. Raises OSError."""
        data = b""
        for path in self.files:
            # GRUB, and systemd-boot since version 257 (systemd pull request 35489), begin each file at a multiple of 4 bytes;
            # the kernel's EFI stub, and systemd-boot before that, right behind the last.
            data += bytes(-len(data) % 4 if self.aligned else 0) + path.read_bytes()
        return data


def one(answers: list[Boots]) -> Boots:
    """Return the one answer; of several that are the same bytes, the first, with the words that are worst."""
    answers = list(dict.fromkeys(answers))
    first = answers[0]
    doubtful = next((each for each in answers if each.doubt), None)
    if doubtful:
        return doubtful
    same: list[Path] = []
    try:
        seen = _digest(first) if any(other.files != first.files for other in answers) else b""
        for other in answers[1:]:
            if other.files == first.files and other.aligned == first.aligned:
                continue
            if _digest(other) != seen:
                return Boots(doubt=f"{first} and {other} are not the same, and nothing says which boots")
            same += [path for path in other.files if path not in (*first.files, *same)]
    except OSError as error:
        return Boots(doubt=f"{error.filename}: {files.reason(error)}")
    options = next((each.options for each in answers if each.undone), first.options)
    return first._replace(copies=(*first.copies, *same), options=options)


def _digest(boots: Boots) -> bytes:
    return hashlib.sha256(boots.read()).digest()


def spare(release: str, *names: str) -> bool:
    """Return whether a name is of no usual boot; what stands in the release's own name counts for nothing."""
    return any(_SPARE.search(name.replace(release, "")) for name in names)
