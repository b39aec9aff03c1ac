# SPDX-License-Identifier: MIT
"""`doctor` in a real Debian root: it finds what is planted there, and nothing once its remedies are followed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from safemem.initramfs.cpio import Archive
from tests.kit import build_deb, contents
from tests.vm import debian, harness
from tests.vm.kit import HELD, SITE, archive, policy_text

pytestmark = pytest.mark.vm


def test_faults_are_found_and_remedied(tmp_path: Path) -> None:
    """After a lost handover: an initrd in which nothing starts safemem, Debian's own kexec-load and a rule that came later; then none of them."""
    text = policy_text("online-safe")
    started = io.BytesIO()
    with_init = Archive(started)
    with_init.file("init", b"#!/bin/sh\n/usr/lib/safemem/boot || exit\n", 0o755)
    with_init.close()
    script = """
    mv /initrd.unstarted "/boot/initrd.img-$(uname -r)"
    safemem doctor --format json >/tmp/first; report first_code $?; report_file first /tmp/first
    safemem doctor >/tmp/text; report_file text /tmp/text
    mv /initrd.good "/boot/initrd.img-$(uname -r)"
    sed -i s/^LOAD_KEXEC=true/LOAD_KEXEC=false/ /etc/default/kexec
    ln -sf /dev/null /etc/udev/rules.d/41-late.rules
    safemem doctor --format json >/tmp/second; report second_code $?; report_file second /tmp/second
    report dimm "$(blocks 32 39)"
    """
    early = f"[ \"$stage\" = 2 ] || handover '{harness.CMDLINE}'\ndecide\n"
    files = {
        **contents(build_deb("bookworm", tmp_path), tmp_path),
        "etc/systemd/system/sysinit.target.d/safemem.conf": b"[Unit]\nWants=safemem-hold.service\n",
        "etc/safemem/policy.toml": text.encode(),
        "initrd.unstarted": archive(text),
        "initrd.good": started.getvalue() + archive(text),
        "verdict.d/late": SITE.encode(),
    }
    image = debian.initrd(
        early, f"cp /verdict.d/late /usr/lib/udev/rules.d/41-late.rules\n{script}", policy=text, files=files, next_kernel="current"
    )  # fmt: skip
    result = debian.run(
        "doctor", "bookworm", image, packages=("kexec-tools",), kernel_name="old-kho", next_kernel="current"
    )
    report = result.report

    assert result.fate == "poweroff", result.serial[-3000:]
    first, second = (
        {item["code"]: item for item in json.loads(report[key])["findings"]} for key in ("first", "second")
    )
    print(report["text"])
    print(report["second"])
    assert report["first_code"] == "1"
    assert {"initrd-not-first", "old-kexec", "udev-rule"} <= set(first)
    assert first["udev-rule"]["evidence"].endswith("41-late.rules:1")
    assert (report["second_code"], {item["severity"] for item in second.values()} & {"severe"}) == ("0", set()), second
    assert report["dimm"].split() == [HELD]
