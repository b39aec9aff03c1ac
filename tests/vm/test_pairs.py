# SPDX-License-Identifier: MIT
"""Every kernel hands over to every other one, and what is foretold from their images is what comes."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from safemem.outgoing import image
from safemem.outgoing.kernel import Kernel
from safemem.outgoing.pairs import Pair
from safemem.outgoing.prediction import of_image, predict
from tests.vm import harness, variants
from tests.vm.harness import Guest, boot, shell
from tests.vm.kit import ALL

pytestmark = pytest.mark.vm

BUILT = ("current", "old-kho", "old-luo", "no-debugfs", "no-kho")
#: Nightly the variants too, with all the others.
NAMES = (*BUILT, *(variants.VARIANTS if ALL else ()))
#: Where LUO's version is another, but not the tree's, the kernel panics: a walk ends there. By construction, not as foretold.
LUO = {"old-luo": 4, "new-luo": 6}
TREE = {"old-kho": 3, "no-kho": 0}
#: A kernel without the handler of a file that it is handed opens /dev/liveupdate to nobody, and can preserve nothing itself.
HANDLERS = {"new-luo": 3, "features": 0}
#: What the next kernel says when LUO's data is of another version.
PANIC = "Kernel panic - not syncing: The incoming tree failed to initialize properly"


#: Many boots: no line that nobody reads, no calibration, and the kernel where it was built to be.
QUICK = "quiet lpj=4000000 nokaslr"
#: Steps of a walk before the last: few, so that walks run side by side.
LONG = 4


def panics(first: str, second: str) -> bool:
    """Return whether a pair ends in the next kernel's own panic."""
    return TREE.get(first, 4) == TREE.get(second, 4) and LUO.get(first, 5) != LUO.get(second, 5)


def ends(first: str, second: str) -> bool:
    """Return whether a walk has to end with a pair: the next kernel panics, or cannot preserve anything."""
    same = all(kind.get(first, 0) == kind.get(second, 0) for kind in (TREE, LUO))
    return panics(first, second) or (same and first != "no-kho" and HANDLERS.get(first, 2) != HANDLERS.get(second, 2))


def walks() -> list[list[str]]:
    """Return walks that take every ordered pair once between them; where one has to end, that is the last of it."""
    pairs = [(first, second) for first in NAMES for second in NAMES]
    last = [pair for pair in pairs if ends(*pair)]
    left = [pair for pair in pairs if not ends(*pair)]
    found = [list(pair) for pair in last]
    for walk in found:
        while len(walk) < 2 + LONG and (before := [pair for pair in left if pair[1] == walk[0]]):
            # From where most is left to come from: so few pairs are left over.
            chosen = max(before, key=lambda pair: sum(other[1] == pair[0] for other in left))
            left.remove(chosen)
            walk.insert(0, chosen[0])
    while left:
        walk = list(left.pop(0))
        while after := next((pair for pair in left if pair[0] == walk[-1]), None):
            left.remove(after)
            walk.append(after[1])
        found.append(walk)
    return found


WALKS = walks()


@functools.cache
def kernel(name: str) -> Kernel:
    """Return a kernel as `safemem kernel` reads it."""
    return image.read(str(variants.get(name)))[0]


def saw(report: str) -> str:
    """Return what has become of a handover, from what the next kernel shows of it (guest/pairs.sh)."""
    offered, accepted, shown, got = report.split(" ", 3)
    if got == "256":  # pages of the memfd, each intact
        return "all of it"
    if "Input/output error" in got:
        return "the tree, but no file"
    if offered == "no":
        return "none"
    if shown == "no" and "open /dev/liveupdate" in got:
        return "unsupported"
    return "accepted" if accepted == "yes" else "rejected"


def test_no_pair_is_left_out() -> None:
    """The walks have each ordered pair once."""
    taken = [pair for walk in WALKS for pair in zip(walk, walk[1:], strict=False)]

    assert sorted(taken) == sorted((first, second) for first in NAMES for second in NAMES)


@pytest.mark.parametrize("walk", WALKS, ids="-".join)
def test_each_pair(walk: list[str], tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """What is foretold comes, for each step of a walk: the outcome, and whether the memfd arrives."""
    for name in {*walk}:
        shutil.copy(variants.get(name), tmp_path / name)
    initrd = harness.image(shell("pairs", ROUTE=" ".join(walk), QUICK=QUICK))
    (tmp_path / "initrd").write_bytes(initrd)
    share = ("-virtfs", f"local,path={tmp_path},mount_tag=kernels,security_model=none,readonly=on,multidevs=remap")
    guest = Guest(
        f"pairs-{walk[0]}-{walk[-2]}-{walk[-1]}", initrd, QUICK, str(tmp_path / walk[0]), boot_mib=768, dimm_mib=0, devices=share
    )  # fmt: skip
    result = boot(guest._replace(timeout=60 + 20 * len(walk)))
    assert "failed" not in result.report, result.serial[-3000:]

    for number, (first, second) in enumerate(zip(walk, walk[1:], strict=False), 2):
        pair = Pair(first, second, predict(of_image(kernel(first)), kernel(second)))
        came = saw(result.report[f"saw{number}"]) if f"saw{number}" in result.report else "panic"
        record_property("says", f"{first:10} to {second:10}: {pair.verdict}, {pair.prediction.outcome}; came: {came}")
        assert (came == "all of it") == (pair.verdict == "compatible"), pair
        arrives = {"all of it": "accepted", "the tree, but no file": "accepted"}
        assert pair.prediction.outcome == arrives.get(came, came), pair
        assert bool(pair.prediction.lost) == (came == "the tree, but no file"), pair
    ends_so = result.fate == "panic" and PANIC in result.serial
    assert ends_so == panics(*walk[-2:]) and (ends_so or result.fate == "poweroff"), result.serial[-3000:]
