# SPDX-License-Identifier: MIT
"""The kernel's own selftests of memory hotplug and live update end the same with safemem and without, test by test."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from tests.vm import build_kernels, selftests
from tests.vm.harness import CACHE, Result, boot, closure, shell
from tests.vm.kit import ALL_ONLINE, HELD, guest, policy_text

pytestmark = [pytest.mark.vm, pytest.mark.needs("bash")]

#: safemem opens /dev/liveupdate itself, before the selftests do.
_ONLINE = policy_text("panic").replace("format = 1", "format = 1\nopen_luo = true")
_HOLD = policy_text("online-safe", sources='"cmdline"').replace('["none", "accepted"]', '"orphaned"')


def results(text: str) -> list[str]:
    """Return what a selftest said, without what differs from run to run: processes, and which blocks are busy.

    Of mem-on-off-test.sh any block will do that goes offline, so the tries say nothing, and whose block comes back neither.
    """
    taken = re.findall(r"^online->offline (memory\d+)\n-> Success$", text, re.M)
    text = re.sub(r"^(online->offline memory\d+|-> \w+)\n", "", re.sub(r"PID: \d+", "PID", text), flags=re.M)
    lines = text.splitlines()
    last = max((number for number, line in enumerate(lines) if "online all hot-pluggable" in line), default=len(lines))
    back = [f"offline->online {name}" for name in taken]
    return ["offline->online a block" if number > last and line in back else line for number, line in enumerate(lines)]


def source(base: Path) -> Path:
    """Return the selftests' part of the kernel's source, in a folder below `base`."""
    build_kernels.install_packages()
    return build_kernels.unpack(build_kernels.download(base), base, selftests.SOURCES)


def run(name: str, text: str, arguments: str = "") -> Result:
    """Return what became of a guest that ran the selftests, with the policy `text` or without safemem."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="safemem-selftests-", dir=CACHE) as scratch:
        programs = selftests.build(lambda: source(Path(scratch)))
    files = {**closure("bash", "bin/bash"), **{f"selftests/{name}": data for name, data in programs.items()}}
    script = shell("selftests", KEXEC=" ".join(name for name in selftests.KEXEC if name in programs), NEXT=arguments)
    made = guest(f"selftests-{name}", script, text, files=files, next_kernel="current", timeout=300)
    result = boot(made._replace(cmdline=arguments))
    assert result.fate == "poweroff" and result.report["done"] == "2"
    return result


@pytest.mark.parametrize("held", [False, True], ids=["online-all", "held"])
def test_same_results(held: bool) -> None:
    """Whether safemem or the kernel onlines all memory, or safemem or the kernel none, no selftest can tell.

    A held block is no locked one: mem-on-off-test.sh onlines what it finds offline, as root may, with safemem and without.
    """
    name, text, arguments = ("held", _HOLD, "") if held else ("online", _ONLINE, "memhp_default_state=online_movable")
    mine, plain = run(name, text), run(f"{name}-without", "", arguments)

    dimm = HELD if held else ALL_ONLINE
    assert mine.report["returned"] == "0" and "returned" not in plain.report
    assert mine.report["dimm"].split() == plain.report["dimm"].split() == [dimm]
    assert mine.report["after"].split() == plain.report["after"].split() == [ALL_ONLINE]
    suites = sorted(key for key, value in plain.report.items() if re.search(r"^exit \d+\n\Z", value, re.M))
    assert {"liveupdate", "liveupdate-2", "luo_kexec_simple-1", "luo_kexec_simple-2", "luo_multi_session-1", "luo_multi_session-2", "hotplug-2", "hotplug-10"} <= {*suites}  # fmt: skip
    for suite in suites:
        assert results(mine.report[suite]) == results(plain.report[suite]), suite
        assert mine.report[suite].endswith("exit 0\n"), suite
    tested = {suite: len(re.findall(r"^ok \d+ ", mine.report[suite], re.M)) for suite in suites}
    assert all(tested[suite] >= 7 for suite in ("liveupdate", "liveupdate-2"))
    assert ("offline->online memory32" in mine.report["hotplug-2"].splitlines()) == held
    print(f"{len(suites)} suites, of these with numbered tests: {tested}")
