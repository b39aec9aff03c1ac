# SPDX-License-Identifier: MIT
"""What the kernel that runs would hand over, as it tells itself, and as the file does from which it was booted.

Reads only. What cannot be read is unknown, with the reason. Which versions are written the outgoing tree shows; which files
can be preserved nothing but the kernel's own image does, so that is looked for and compared by its build ID.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from safemem.boot import files, memory, paths, probe, stake
from safemem.boot.model import UNKNOWN, Blocks, Fact, Refused, Snapshot
from safemem.boot.ranges import Range, common, merge_ranges, total
from safemem.outgoing import outtree
from safemem.outgoing.kernel import Kernel, Speaks
from safemem.outgoing.prediction import Outgoing
from safemem.realroot import buildid

#: Where distributions keep the image of a release.
IMAGES = ("boot/vmlinuz-{}", "usr/lib/modules/{}/vmlinuz", "lib/modules/{}/vmlinuz", "boot/vmlinux-{}", "boot/Image-{}")
#: Reads an image, of a unified one each profile. Raises Refused.
Reader = Callable[[str], tuple[Kernel, ...]]
#: The kernel's own name for architectures whose pages are 4 KiB whatever is configured.
_SMALL_PAGES = ("x86_64", "i686", "i586", "i386")
_ARM64_PAGES = {f"CONFIG_ARM64_{size}K_PAGES": size << 10 for size in (4, 16, 64)}


class Running(NamedTuple):
    """The kernel that runs and what it would hand over."""

    outgoing: Outgoing
    snapshot: Snapshot
    root: str = ""  #: "" if it is known from a capture only
    at_stake: Fact = Fact(UNKNOWN, "")  #: whether anything is preserved: `yes`, `no`, `unknown`
    scratch: tuple[Range, ...] = ()  #: its scratch areas, from which the next kernel starts
    tree: str = ""  #: where the outgoing tree was read
    nodes: tuple[str, ...] = ()  #: of the tree: who has data in it
    build_id: str = ""  #: hex digits
    image: Kernel | None = None  #: the file from which it was booted, as far as that is known
    image_fault: str = ""  #: why it is not
    replaced: str = ""  #: a file that should be it, and is another kernel
    in_kernel_zone: tuple[str, ...] = ()  #: hot-added memory that preserved pages may lie in

    @property
    def proven(self) -> bool:
        """Whether the file is known to be the kernel that runs."""
        return self.image is not None and self.build_id in self.image.build_ids


def read(root: str, images: Reader, named: str = "") -> Running:
    """Return what the kernel of the machine below `root` would hand over.

    Args:
        images: reads the image of a kernel.
        named: the file from which it was booted; "" looks where distributions keep it.

    Raises:
        Refused: the file that was named cannot be read.
    """
    snapshot = probe.read_snapshot(root)
    snapshot = snapshot._replace(room=memory.room(root))
    build_id, _ = buildid.running(root)
    image, fault, replaced = _image(root, _text(snapshot, "kernel"), build_id, images, named)
    found = _described(snapshot, image, named)
    tree = outtree.read(root)
    shown = tree.speaks
    speaks = found.outgoing.speaks
    # What the kernel shows is what it writes; the file tells the rest.
    speaks = speaks._replace(
        tree=shown.tree or speaks.tree,
        luo=shown.luo or speaks.luo,
        luo_nodes=shown.luo_nodes if shown.luo else speaks.luo_nodes,
    )
    outgoing = found.outgoing._replace(speaks=speaks, sure=bool(shown.tree), preserves=shown.producers)
    page_size = _page_size(root, outgoing.arch) or outgoing.page_size
    running = found._replace(
        outgoing=outgoing._replace(page_size=page_size),
        root=root,
        at_stake=_stake(root),
        scratch=probe.scratch_now(root),
        tree=tree.at,
        nodes=tree.nodes,
        build_id=build_id,
        image=image,
        image_fault=fault,
        replaced=replaced,
        in_kernel_zone=_in_kernel_zone(root, snapshot),
    )
    return running._replace(outgoing=running.outgoing._replace(sure=running.outgoing.sure or running.proven))


def of_capture(snapshot: Snapshot, images: Reader, named: str = "") -> Running:
    """Return what a capture tells of the kernel that ran; `named` is the file from which it was booted. Raises Refused."""
    image = images(named)[0] if named else None
    found = _described(snapshot, image, named)
    why = "" if image else "a capture does not tell from which file the kernel was booted"
    return found._replace(at_stake=Fact(UNKNOWN, "capture", "a capture does not tell"), image=image, image_fault=why)


def hot_added(snapshot: Snapshot, run: Blocks) -> bool:
    """Return whether these blocks came after the boot, or will come so in the next one."""
    if run.driver in ("virtio-mem", "kmem"):
        return True
    span = Range(run.first * snapshot.block_size, (run.last + 1) * snapshot.block_size)
    firmware = snapshot.room.firmware
    return bool(firmware) and not total(common((span,), firmware))


def _described(snapshot: Snapshot, image: Kernel | None, named: str) -> Running:
    """Return the kernel that runs by the facts of a snapshot and the file from which it was booted."""
    kho, luo = snapshot.facts["kho"], snapshot.facts["luo"]
    outgoing = Outgoing(
        "this kernel",
        _text(snapshot, "arch"),
        image.page_size if image else 0,
        _text(snapshot, "kernel"),
        _as(kho, {"on": "yes", "off": "no"}),
        _as(luo, {"ready": "yes", "failed": "yes", "busy": "yes", "off": "no", "missing": "no"}),
        image.speaks if image else Speaks(),
    )
    if outgoing.arch in _SMALL_PAGES:
        outgoing = outgoing._replace(page_size=4096)
    return Running(outgoing, snapshot)


def _as(fact: Fact, words: dict[str, str]) -> Fact:
    return fact._replace(value=words.get(str(fact.value), UNKNOWN))


def _text(snapshot: Snapshot, name: str) -> str:
    value = snapshot.facts[name].value
    return "" if value == UNKNOWN else str(value)


def _stake(root: str) -> Fact:
    value, why = stake.read(root)
    return Fact(value, f"/{paths.PROC}", why)


# ---- the file


def _image(root: str, release: str, build_id: str, images: Reader, named: str) -> tuple[Kernel | None, str, str]:
    """Return the image of the kernel that runs, or why there is none, and a file that should be it and is not."""
    if named:
        return images(named)[0], "", ""
    if not build_id:
        return None, f"/{paths.NOTES} shows no build ID by which a file could be known", ""
    replaced, fault = "", f"no file of release {release or 'unknown'} is there"
    for place in IMAGES:
        path = os.path.join(root, place.format(release))
        if not release or "\0" in path or "/" in release or not os.path.isfile(path):
            continue
        try:
            found = images(path)
        except Refused as error:
            fault = str(error)
            continue
        for kernel in found:
            if build_id in kernel.build_ids:
                return kernel, "", ""
        if any(kernel.build_ids for kernel in found):
            replaced = replaced or path
            fault = f"{path} has another build ID than the kernel that runs"
        else:
            fault = f"{path} shows no build ID"
    return None, fault, replaced


def _page_size(root: str, arch: str) -> int:
    """Return the bytes of a page; 0 if nothing tells."""
    if arch in _SMALL_PAGES:
        return 4096
    for option, size in _ARM64_PAGES.items():
        if probe.configured(root, option)[0]:
            return size
    return os.sysconf("SC_PAGE_SIZE") if os.path.realpath(root) == "/" else 0


# ---- memory


def _in_kernel_zone(root: str, snapshot: Snapshot) -> tuple[str, ...]:
    """Return the hot-added memory that is online outside the movable zone: a kernel does not survive preserved pages there.

    Seen on 7.2 and 7.3: the next kernel's early boot does not know of that memory, and dies before its first line.
    """
    found = []
    for run in snapshot.blocks:
        if run.state != "online" or not hot_added(snapshot, run):
            continue
        for number in range(run.first, run.last + 1):
            zones = files.word(root, f"{paths.MEMORY}/memory{number}/valid_zones").split()
            if zones and zones[0] != "Movable":
                found.append(Range(number * snapshot.block_size, (number + 1) * snapshot.block_size))
    return tuple(str(area) for area in merge_ranges(tuple(found)))
