# SPDX-License-Identifier: MIT
"""`doctor` in a real Debian root: it finds what is planted there, and nothing once its remedies are followed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from safemem.initramfs.cpio import Archive
from tests.kit import contents
from tests.vm import debian
from tests.vm.harness import boot, shell
from tests.vm.kit import HELD, SITE, archive, policy_text

pytestmark = pytest.mark.vm


def test_faults_are_found_and_remedied(deb: Callable[[str], Path], tmp_path: Path) -> None:
    """After a lost handover: an initrd in which nothing starts safemem, Debian's own kexec-load and a rule that came later; then none of them."""
    text = policy_text("online-safe")
    started = io.BytesIO()
    with_init = Archive(started)
    with_init.file("init", b"#!/bin/sh\n/usr/lib/safemem/boot; [ $? = 42 ] || exit\n", 0o755)
    with_init.close()
    files = {
        **contents(deb("bookworm"), tmp_path),
        "etc/systemd/system/sysinit.target.d/safemem.conf": b"[Unit]\nWants=safemem-hold.service\n",
        "etc/safemem/policy.toml": text.encode(),
        "initrd.unstarted": archive(text),
        "initrd.good": started.getvalue() + archive(text),
        "verdict.d/late": SITE.encode(),
    }
    guest = debian.guest(
        "doctor", "bookworm", shell("hand-over"), shell("doctor"), policy=text, files=files, packages=("kexec-tools",),
        kernel="old-kho", next_kernel="current",
    )  # fmt: skip
    result = boot(guest)
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
