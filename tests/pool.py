# SPDX-License-Identifier: MIT
"""What a kernel makes of each write to its pools of gigantic pages, on a fake root: as 7.2 and 7.3 do.

A page that nobody has reserved goes when its node is told to have fewer, the one with the highest address first; one
that is reserved stays as a surplus, and goes with its reservation.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safemem.boot import files
from tests.fakes import GIB, MIB

NAME = "hugepages-1048576kB"
NODES, ALL, FILES, FLAGS = (
    "sys/devices/system/node",
    f"sys/kernel/mm/hugepages/{NAME}",
    "run/safemem/pages",
    "proc/kpageflags",
)
#: The kernel is at work: who counts a program's calls does not count its own.
busy = False


def patch(put_in: Callable[[Any, str, Any], None]) -> None:
    """Have a kernel behind `safemem.boot.files`; `put_in` is setattr, or a fixture's that undoes it."""
    real = files.put, files.shorten, files.remove, files.set_aside

    def put(root: str, name: str, data: str, **more: bool) -> None:
        real[0](root, name, data, **more)
        if name.endswith("/nr_hugepages"):
            told(root, int(name.split("/node")[-1].split("/")[0]), int(data))

    def shorten(root: str, name: str, size: int) -> None:
        real[1](root, name, size)
        told(root)

    def remove(root: str, name: str) -> None:
        real[2](root, name)
        told(root)

    def set_aside(root: str, name: str, size: int) -> None:
        node = int(name.rpartition("node")[2])
        others = sum(pages for other, pages in reserved(root).items() if other != node)
        if others + size // GIB > word(root, f"{ALL}/free_hugepages"):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        real[3](root, name, size)
        told(root)

    for name, fake in (("put", put), ("shorten", shorten), ("remove", remove), ("set_aside", set_aside)):
        put_in(files, name, fake)


def patch_states(put_in: Callable[[Any, str, Any], None]) -> None:
    """Have blocks take a state at once, with the end of line that the kernel shows."""
    put, put_one = files.Folder.put, files.put

    def several(self: files.Folder, name: str, data: bytes) -> None:
        put(self, name, data.replace(b"online_movable", b"online") + b"\n")

    def one(root: str, name: str, data: str, **more: bool) -> None:
        put_one(root, name, data + "\n" * name.endswith("/state"), **more)

    put_in(files.Folder, "put", several)
    put_in(files, "put", one)


def word(root: str, name: str) -> int:
    """Return the number in a file; 0 if there is none."""
    path = Path(root) / name
    return int(path.read_text()) if path.exists() else 0


def reserved(root: str) -> dict[int, int]:
    """Return how many pages each node's file reserves."""
    return {int(path.name[4:]): path.stat().st_size // GIB for path in (Path(root) / FILES).glob("node*")}


def places(root: str, node: int) -> tuple[list[int], list[int]]:
    """Return at which GiB a node has pages, as its blocks and the flags say: free ones, and those that a program has mapped."""
    found: tuple[list[int], list[int]] = ([], [])
    with open(Path(root) / FLAGS, "rb") as file:
        for number in range(64):
            file.seek(number * GIB // 4096 * 8)
            flags = int.from_bytes(file.read(8), "little")
            if flags & 0x28000 == 0x28000 and (Path(root) / f"{NODES}/node{node}/memory{number * 8}").exists():
                found[bool(flags & 0x800)].append(number)
    return found


def told(root: str, node: int = -1, number: int = 0) -> None:
    """Settle all pools, after node `node` was told to have `number` pages."""
    global busy
    busy = True
    kept, sums = reserved(root), {"nr_hugepages": 0, "free_hugepages": 0, "surplus_hugepages": 0}
    for folder in sorted((Path(root) / NODES).glob(f"node*/hugepages/{NAME}")):
        this = int(folder.parent.parent.name[4:])
        free, mapped = places(root, this)
        there = len(free) + len(mapped)
        wanted = number if this == node else there - word(root, f"{folder}/surplus_hugepages")
        stays = min(there, max(wanted, kept.get(this, 0) + len(mapped)))
        for place in free[stays - len(mapped) :]:
            _clear(root, place)
        values = {
            "nr_hugepages": stays,
            "free_hugepages": stays - len(mapped),
            "surplus_hugepages": max(0, stays - wanted),
        }
        for name, value in values.items():
            (folder / name).write_text(f"{value}\n")
            sums[name] += value
    for name, value in {**sums, "resv_hugepages": sum(kept.values())}.items():
        (Path(root) / ALL / name).write_text(f"{value}\n")
    busy = False


def _clear(root: str, place: int) -> None:
    with open(Path(root) / FLAGS, "r+b") as file:
        for where in (0, 2 * MIB):
            file.seek((place * GIB + where) // 4096 * 8)
            file.write(bytes(8))
