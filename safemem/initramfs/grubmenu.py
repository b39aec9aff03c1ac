# SPDX-License-Identifier: MIT
"""GRUB's menus of a machine: which kernel each entry boots, with which initrds and words, on each way through its branches."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple

from safemem.boot import files
from safemem.initramfs import grubfiles
from safemem.initramfs.grubrun import Run, State, parsed

#: Where the menus lie, below the root: GRUB's folder; its folders on an ESP, which may only lead there; Proxmox's own.
_MENUS = (
    "boot/grub/grub.cfg", "boot/grub2/grub.cfg", "boot/efi/EFI/*/grub.cfg", "efi/EFI/*/grub.cfg", "boot/EFI/*/grub.cfg",
    "boot/efi/grub/grub.cfg", "efi/grub/grub.cfg",
)  # fmt: skip


class Boot(NamedTuple):
    """One way through an entry."""

    menu: Path
    title: str
    state: State
    taken: bool = False  #: whether it is of the entry that boots next if nobody chooses another
    id: str = ""

    def __str__(self) -> str:
        """Return the menu and the entry's title, for a message."""
        return f"GRUB's menu {self.menu}" + (f", in its entry `{self.title}`," if self.title else "")


class Menu(NamedTuple):
    """One menu."""

    path: Path
    boots: tuple[Boot, ...] = ()
    entries: bool = False  #: whether it reads entries of type 1
    unified: bool = False  #: whether it reads those of type 2
    values: dict[str, str | None] = {}  # noqa: RUF012  (of its variables, None where not known; nobody changes it)

    @property
    def says(self) -> bool:
        """Whether anything in it boots; one on an ESP may only lead to another."""
        return bool(self.boots or self.entries or self.unified)


def menus(root: str, kept: dict[str, str]) -> tuple[list[Menu], str]:
    """Return the menus in which anything boots, and why one of them cannot be read; `kept` is GRUB's environment."""
    found, seen, unread = [], set[tuple[int, int]](), ""
    for path in grubfiles.globbed(root, _MENUS):
        try:
            file = path.stat()
            if (file.st_dev, file.st_ino) in seen or not stat.S_ISREG(file.st_mode):
                continue
            seen.add((file.st_dev, file.st_ino))
            menu = read(root, path, grubfiles.read(path), kept)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            unread = unread or f"{path}: {files.reason(error)}"
            continue
        found += [menu] if menu.says else []
    return found, unread


def read(root: str, path: Path, data: bytes, kept: dict[str, str]) -> Menu:
    """Return what is in the menu `data` of the file `path`."""
    run = Run(root, path, kept)
    top = run.commands(parsed(data), [State()], sure=True, depth=0)
    taken = run.taken()
    boots = [Boot(path, "", state) for state in top if state.kernel]
    for item in run.leaves(run.items):
        before = dict(run.values)
        ways = run.commands(item.body, [State()], sure=True, depth=1)
        boots += [Boot(path, item.title, state, item is taken, item.id) for state in ways if state.kernel]
        run.values = before
    values = {name: run.value(name) for name in run.values}
    return Menu(path, tuple(dict.fromkeys(boots)), run.entries, run.unified, values)
