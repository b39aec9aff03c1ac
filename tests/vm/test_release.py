# SPDX-License-Identifier: MIT
"""A release that is cut short: by a power cut, which the next boot tells, or by a signal, after which it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm import debian, harness
from tests.vm.kit import COMMAND, SAFEMEM, SHARE, initrd, policy_text, span

pytestmark = pytest.mark.vm

#: Blocks of a DIMM of 4 GiB: enough of them to be stopped among.
FIRST, LAST = 32, 63
#: The disk that outlives the guest over /var/lib of the share, then the command.
DISK = f"""
mount -t debugfs d /sys/kernel/debug
{COMMAND}
mount -t ext4 "$(disk var)" /host/var/lib || report disk failed
"""
#: A hold and a guard after a lost handover, and its record on the disk, as the unit would have it.
HOLD = f"""
[ "$stage" = 2 ] || mount -t debugfs d /sys/kernel/debug
[ "$stage" = 2 ] || guard
[ "$stage" = 2 ] || handover "{harness.CMDLINE} $crashkernel safemem.guard=$first-$last"
decide
{DISK}
safemem status --keep; report kept $code
state() {{ read -r state <"/sys/devices/system/memory/memory$1/state"; echo "$state"; }}
left() {{ read -r size </sys/kernel/kexec_crash_size; echo "$size"; }}
whole=$(left)
report whole "$whole"
"""
#: What watches comes first, once the release has said that it begins.
RELEASE = f"env PYTHONDONTWRITEBYTECODE=1 nice -n 10 {SAFEMEM} release"
BEGUN = "until grep -q begun /run/safemem/releases.json; do sleep 0.1; done"
#: Where a release is stopped, in the guest's shell.
AMONG_BLOCKS = '[ "$(state 40)" = online ]'
IN_THE_GUARD = '[ "$(left)" != "$whole" ] && [ "$(left)" ]'
EVERYTHING = "0x0-0xffffffffffffffff"


def disk(path: Path) -> tuple[str, ...]:
    """Return QEMU's arguments for the disk that outlives guests."""
    return (*SHARE, *harness.disk("var", path, writable=True))


def next_boot(name: str, var: Path) -> dict[str, str]:
    """Boot again from cold, and return what `status` says of the boot before."""
    script = f"""
    decide
    {DISK}
    safemem status; report now $code; report_file text /tmp/out
    safemem status --previous; report previous $code; report_file previous_text /tmp/out
    """
    result = harness.run(name, initrd(script, policy_text("online-safe")), devices=disk(var), timeout=120, dimm_mib=0)
    assert result.fate == "poweroff", result.serial[-2000:]
    return result.report


@pytest.mark.parametrize(
    ("name", "ranges", "where"),
    [("part", span(FIRST, 55), AMONG_BLOCKS), ("guard", "", IN_THE_GUARD), ("whole", "", AMONG_BLOCKS)],
)
def test_power_cut(tmp_path: Path, name: str, ranges: str, where: str) -> None:
    """The machine dies in the middle of a release; the next boot says what was being given back, why, and that it is not known how far."""
    var = debian.blank(tmp_path / "var", 64)
    script = f"""{HOLD}
    chroot /host {RELEASE} {ranges} --reason "guests moved away" &
    {BEGUN}; until {where}; do :; done
    kill -STOP $!
    sleep 1
    report guard "$(left)"
    report blocks "$(blocks {FIRST} {LAST})"
    report checkpoint 1
    sleep 1000
    """
    cut = harness.run(
        f"release-{name}", initrd(script, policy_text("online-safe"), next_kernel="current"), kernel_name="old-kho",
        next_kernel="current", devices=disk(var), dimm_mib=4 * harness.GIB, timeout=150, checkpoint=lambda _: harness.CUT,
    )  # fmt: skip
    report = cut.report
    states = {run.split("*")[0] for run in report["blocks"].split()}
    print(f"cut with {report['guard']} of {report['whole']} bytes of guard and {report['blocks']}")

    assert cut.fate == "killed", cut.serial[-2000:]
    assert report["kept"] == "4"
    # In the middle, or this shows nothing.
    if where == IN_THE_GUARD:
        assert 0 < int(report["guard"]) < int(report["whole"]) and states == {"offline"}
    else:
        assert states == {"online", "offline"}
        assert report["guard"] == (report["whole"] if ranges else "0")

    after = next_boot(f"release-{name}-next", var)
    said = ranges or EVERYTHING
    assert after["now"] == "0"
    assert (
        f"before    in the boot before, a release of {said} was begun and not finished: guests moved away"
        in after["text"].splitlines()
    )
    assert after["previous"] == "4"
    lines = after["previous_text"].splitlines()
    assert lines[0] == "online-safe  handover lost, says the test"
    assert [line for line in lines if line.startswith(f"released  {said} (begun, not finished) at ")]


@pytest.mark.parametrize("where", [IN_THE_GUARD, AMONG_BLOCKS], ids=["guard", "blocks"])
def test_interrupted_and_resumed(tmp_path: Path, where: str) -> None:
    """SIGINT ends a release in between, and it says so; the same command finishes, and the next boot has nothing to tell."""
    var = debian.blank(tmp_path / "var", 64)
    # The shell ignores SIGINT for what it runs behind its back, so the release is in front.
    script = f"""{HOLD}
    {{ {BEGUN}; release=$(pidof safemem); until {where}; do :; done; kill -INT $release; }} &
    chroot /host {RELEASE} --reason "guests moved away" >/tmp/out 2>&1
    report interrupted $?
    report_file said /tmp/out
    report guard "$(left)"
    report blocks "$(blocks {FIRST} {LAST})"
    safemem status; report between $code; report_file between_text /tmp/out
    safemem release --reason "guests moved away"; report resumed $code; report_file resumed_text /tmp/out
    report guard_after "$(left)"
    report blocks_after "$(blocks {FIRST} {LAST})"
    safemem status; report after $code; report_file after_text /tmp/out
    """
    result = harness.run(
        "release-interrupted", initrd(script, policy_text("online-safe"), next_kernel="current"),
        kernel_name="old-kho", next_kernel="current", devices=disk(var), dimm_mib=4 * harness.GIB, timeout=150,
    )  # fmt: skip
    report = result.report
    print(f"interrupted with {report['guard']} of {report['whole']} bytes of guard and {report['blocks']}")

    assert result.fate == "poweroff", result.serial[-2000:]
    assert report["interrupted"] == "64"
    assert "interrupted: released in part; the same command goes on from there" in report["said"]
    assert "offline" in report["blocks"]
    if where == IN_THE_GUARD:
        assert 0 < int(report["guard"]) < int(report["whole"])
    else:
        assert "online" in report["blocks"].replace("offline", "")
    assert report["between"] == "4"
    assert f"released  {EVERYTHING} (in part) at " in report["between_text"]
    assert (report["resumed"], report["guard_after"]) == ("0", "0"), report["resumed_text"]
    assert report["blocks_after"].split() == [f"online*{LAST + 1 - FIRST}"]
    assert report["after"] == "0", report["after_text"]
    after = next_boot("release-interrupted-next", var)
    assert "before    " not in after["text"]
