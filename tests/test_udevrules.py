# SPDX-License-Identifier: MIT
"""udev rules: what is read, what counts as onlining memory, and what hides what."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safemem.realroot import udevrules
from tests.vm.kit import VENDOR

ROOT = Path(__file__).resolve().parent.parent

#: Rules that online memory, in our words, by what domain and manuals say the vendors' do.
ONLINING = {
    "hot-added memory at once": 'SUBSYSTEM=="memory", ACTION=="add", ATTR{state}=="offline", ATTR{state}="online"',
    "in a zone": 'SUBSYSTEM=="memory", ATTR{state}="online_movable"',
    "a variable decides": 'ENV{.state}="online"\nSUBSYSTEM=="memory", ATTR{state}="$env{.state}"',
    "split over lines": 'SUBSYSTEM=="memory", \\\n# a comment in between\n  ACTION=="add", \\\n  ATTR{state}="online"',
    "a shell writes": 'SUBSYSTEM=="memory", RUN+="/bin/sh -c \'echo online_movable > /sys$devpath/state\'"',
    "a program": 'SUBSYSTEM=="memory", PROGRAM=="/usr/bin/chmem -e all"',
    "a unit for dax": 'SUBSYSTEM=="dax", TAG+="systemd", ENV{SYSTEMD_WANTS}="daxdev-reconfigure@$env{DEVNAME}.service"',
    "daxctl itself": 'SUBSYSTEM=="dax", RUN{program}+="/usr/bin/daxctl online-memory"',
    "escaped": 'SUBSYSTEM=="memory", ATTR{state}=e"onl\\ine"',
    "read with case ignored": 'SUBSYSTEM==i"MEMORY", KERNEL=="memory*", ATTR{state}="online"',
    "the other attribute": 'KERNEL=="memory[0-9]*", ATTR{online}="1"',
    "an import": 'SUBSYSTEM=="memory", IMPORT{program}="/usr/sbin/chmem -e 0x100000000-0x13fffffff"',
    "after a form feed": 'SUBSYSTEM=="memory", \x0c ATTR{state}="online"',
    "not to be read": 'SUBSYSTEM=="memory", ATTR{state}?="online"',
    "no subsystem named": 'KERNEL=="memory*", ATTR{state}="online"',
}  # fmt: skip
HARMLESS = {
    "only looks": 'SUBSYSTEM=="memory", ATTR{state}=="online", TAG+="seen"',
    "a comment": '# SUBSYSTEM=="memory", ATTR{state}="online"',
    "takes off": 'SUBSYSTEM=="memory", ATTR{state}="offline"',
    "another device's state": 'SUBSYSTEM=="power_supply", ATTR{state}="online"',
    "processors": 'SUBSYSTEM=="cpu", ACTION=="add", ATTR{online}="1"',
}


def test_every_known_file(tmp_path: Path) -> None:
    """Each file that is masked by name is a test input, here and in guests, and is found by what it does as well."""
    folder = tmp_path / "usr/lib/udev/rules.d"
    folder.mkdir(parents=True)
    for name, text in VENDOR.items():
        (folder / name).write_text(text)

    assert tuple(sorted(VENDOR)) == udevrules.KNOWN
    assert [os.path.basename(item.file) for item in udevrules.find(str(tmp_path))] == sorted(VENDOR)


@settings(max_examples=500, deadline=None)
@given(
    before=st.text(), after=st.text(), text=st.sampled_from([text for text in ONLINING.values() if "\n" not in text])
)
def test_no_text_hides_a_rule(before: str, after: str, text: str) -> None:
    """Whatever stands around it, a rule that onlines memory is found; reading never raises."""
    udevrules.parse(before)
    whole = f"{before}\n\n{text}\n{after}"
    assert any(udevrules.onlines(rule) for rule in udevrules.parse(whole))


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\n\r\0\\#"), min_size=1), max_size=5))
def test_nothing_is_dropped(lines: list[str]) -> None:
    """Every line that says something is a rule: what was not understood of it is its rest."""
    rules = udevrules.parse("\n".join(lines))
    assert [rule.line for rule in rules] == [n for n, line in enumerate(lines, 1) if line.strip()]
    assert all(rule.items or rule.rest for rule in rules)
    assert all(
        rule.rest == line.strip() for rule, line in zip(rules, filter(str.strip, lines), strict=True) if not rule.items
    )


def test_what_is_no_file(tmp_path: Path) -> None:
    """A FIFO does not stop the reader; what cannot be read may online memory; /dev/null is a mask."""
    folder = tmp_path / "etc/udev/rules.d"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "10-fifo.rules")
    (folder / "20-gone.rules").symlink_to("nowhere")
    (folder / "30-null.rules").symlink_to("/dev/null")
    found = udevrules.find(str(tmp_path))

    assert [(item.file[-13:], item.what) for item in found] == [
        (name, "cannot be read, so it may online memory") for name in ("10-fifo.rules", "20-gone.rules")
    ]


@pytest.mark.parametrize("text", ONLINING.values(), ids=ONLINING)
def test_onlining_rules_are_found(tmp_path: Path, text: str) -> None:
    """Each way to online memory is found, on the line where its rule begins."""
    folder = tmp_path / "usr/lib/udev/rules.d"
    folder.mkdir(parents=True)
    (folder / "50-x.rules").write_text(f"# first line\n{text}\n")
    found = udevrules.find(str(tmp_path))

    assert [item.file for item in found] == ["usr/lib/udev/rules.d/50-x.rules"]
    assert found[0].line == (3 if "variable" in text or ".state" in text else 2)
    assert "50-x.rules" in udevrules.masks(str(tmp_path))


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_harmless_rules_are_not(tmp_path: Path, text: str) -> None:
    """Nothing is masked that does not online memory."""
    (tmp_path / "etc/udev/rules.d").mkdir(parents=True)
    (tmp_path / "etc/udev/rules.d/50-x.rules").write_text(text)

    assert udevrules.find(str(tmp_path)) == []


def test_a_mask_hides_the_file(tmp_path: Path) -> None:
    """A file of the same name in an earlier folder, or a link to /dev/null, replaces it."""
    for folder in ("usr/lib/udev/rules.d", "run/udev/rules.d"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "usr/lib/udev/rules.d/40-x.rules").write_text(ONLINING["in a zone"])
    assert len(udevrules.find(str(tmp_path))) == 1
    (tmp_path / "run/udev/rules.d/40-x.rules").symlink_to("/dev/null")
    assert udevrules.find(str(tmp_path)) == []


def test_our_own_rules_are_understood() -> None:
    """Our file is read to the last character, and does what it is for."""
    rules = udevrules.parse((ROOT / "udev/60-safemem.rules").read_text())

    assert [rule.rest for rule in rules] == [""] * len(rules)
    assert sum(udevrules.onlines(rule) is not None for rule in rules) == 1
    if shutil.which("udevadm"):
        version = int(subprocess.run(["udevadm", "--version"], capture_output=True, text=True, check=True).stdout)
        if version >= 254:  # Debian 12 has 252; `verify` came with 254
            subprocess.run(["udevadm", "verify", ROOT / "udev/60-safemem.rules"], check=True)


def test_the_machine_s_own_rules_are_read() -> None:
    """Every rule that this machine has is understood: the parser meets the real world."""
    folder = Path("/usr/lib/udev/rules.d")
    if not folder.is_dir():
        pytest.skip("this machine has no udev rules")
    for path in sorted(folder.glob("*.rules")):
        assert [rule for rule in udevrules.parse(path.read_text("utf-8", "replace")) if rule.rest] == [], path
