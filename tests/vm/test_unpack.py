# SPDX-License-Identifier: MIT
"""The reader of initrds against the kernel itself: of every image both have the same files, and both stop or neither does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from safemem.initramfs import unpack
from tests.vm import unpacked
from tests.vm.kit import ALL

pytestmark = [pytest.mark.vm, pytest.mark.needs("lz4", "lzop", "zstd")]

#: Images in one guest, and seeds of `make test`, each of them a guest.
IMAGES = 6
SEEDS = range(400 if ALL else 36)
CHUNKS = 6


def agree(name: str, initrd: bytes) -> None:
    """Check that a kernel and the reader make the same of an initrd."""
    seen = unpacked.boot(initrd, name)
    tree, made = unpacked.read(initrd)
    stops = isinstance(made.fault, unpack.Stops)
    assert made.fault is None or stops or isinstance(made.fault, unpack.CutOff), made.fault
    if "init" not in tree:
        assert seen.tree is None and "Kernel panic" in seen.serial, name
        return
    assert seen.tree is not None, f"{name}: {made.fault}: {seen.serial[-300:]}"
    assert bool(seen.stopped) == stops, f"{name}: the kernel says `{seen.stopped}`, the reader `{made.fault}`"
    if made.fault is None or tree == seen.tree:
        assert seen.tree == tree, f"{name}: {sorted(set(seen.tree.items()) ^ set(tree.items()))[:6]}"
    else:
        # What a decompressor hands over before it fails is its own affair.
        assert {path: value for path, value in seen.tree.items() if path in tree} == tree, name


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_by_chance(chunk: int, record_property: Callable[[str, object], None]) -> None:
    """Images by chance: entries of all kinds in archives packed in all ways, with what the kernel skips, drops or stops at."""
    seeds = [seed for seed in SEEDS if seed % CHUNKS == chunk]
    wrong = []
    for seed in seeds:
        try:
            agree(f"unpack-{seed}", unpacked.chance(seed, IMAGES))
        except AssertionError as error:
            wrong.append(f"{seed}: {str(error)[:600]}")
    record_property("says", f"unpacked: {len(seeds) * IMAGES} images in {len(seeds)} guests, {len(wrong)} read otherwise than by the kernel")
    assert not wrong, "\n".join(wrong)
