# SPDX-License-Identifier: MIT
"""`preflight` on a real kernel: what it shows of itself, crossed with each kernel that could come next, and what came."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from safemem.initramfs.cpio import Archive
from safemem.outgoing import image, prediction
from tests.kit import units
from tests.vm.harness import REPOSITORY, boot, kernel, shell
from tests.vm.kit import COMMAND, SHARE, decided, guest, policy_text

pytestmark = pytest.mark.vm

#: The next kernel -> the code, the outcome and the error that follows, if any.
NEXT = {
    "current": (0, "accepted", None),
    "old-kho": (5, "rejected", "kho-differs"),
    "old-luo": (5, "panic", "luo-differs"),
    "no-kho": (5, "unsupported", "no-kho"),
    # Accepted, and nothing shows it: the policy would hold memory in that boot.
    "no-debugfs": (5, "accepted", "policy-holds"),
}

#: Without an init: the guest has one of its own.
OURS = {path: data for path, data in units("reboot").items() if path != "init"}


def test_every_kernel_after_current(tmp_path: Path) -> None:
    """The verdict on each, by what this kernel really writes; another file, a session held; and the kexec ends as foretold."""
    images = {name: str(kernel(name)) for name in NEXT}
    values = {"KERNELS": " ".join(images.values()), "RUNNING": images["current"], "INITRD": str(tmp_path / "initrd")}
    judge = f"mount -t debugfs d /sys/kernel/debug\n{COMMAND}{shell('preflight', TREE=str(REPOSITORY), **values)}"
    script = f'if [ "$STAGE" = 1 ]; then\n{judge}fi\nmount -t debugfs d /sys/kernel/debug\ndecide\n'
    machine = guest(
        "preflight", script, policy_text("online-safe"), files=units("reboot"), devices=SHARE, next_kernel="current",
        timeout=400,
    )  # fmt: skip
    # The guest's own init is a script that runs the boot program by itself; an image that is judged has systemd to do so.
    init = io.BytesIO()
    part = Archive(init)
    part.symlink("init", "usr/lib/systemd/systemd")
    part.close()
    (tmp_path / "initrd").write_bytes(machine.initrd + bytes(-len(machine.initrd) % 4) + init.getvalue())
    result = boot(machine)
    report = result.report

    assert result.fate == "poweroff", result.serial[-2000:]
    print(report["said_stale"])
    said: dict[str, dict[str, Any]] = {
        name: json.loads(report[f"said_{name}"]) for name in (*NEXT, "other", "held")
    }  # fmt: skip

    def codes(name: str, severity: str = "error") -> list[str]:
        return [item["code"] for item in said[name]["findings"] if item["severity"] == severity]

    for name, (code, outcome, error) in NEXT.items():
        found = said[name]
        assert (report[f"code_{name}"], found["prediction"]["outcome"]) == (str(code), outcome), found
        assert codes(name) == ([error] if error else []), found["findings"]
    now = said["current"]["running"]
    assert now["proven"] and (now["kho"], now["luo"], now["preserved"]) == ("yes", "yes", "no")
    assert set(now["nodes"]) == {"kexec-metadata", "LUO"}
    assert (now["speaks"]["tree"], now["speaks"]["luo"], now["speaks"]["handlers"]) == (
        ["kho-v4"],
        ["luo-v5"],
        ["memfd-v2"],
    )
    assert (report["code_other"], codes("other"), codes("other", "unknown")) == ("6", [], ["running-differs"])
    # The arguments are of before: they say that nothing is preserved.
    lines = report["said_stale"].splitlines()
    assert [line for line in lines if line.startswith(("error", "unknown"))] == [
        "error: the next command line says that nothing is preserved, and something is [word-stale]"
    ]
    assert (report["code_stale"], lines[-1]) == ("5", "incompatible") and "holds session `guest`" in report[
        "said_stale"
    ]
    # What was foretold of the kexec that was done, and what came.
    assert (report["code_held"], said["held"]["verdict"]) == ("0", "compatible")
    foretold, came = said["held"]["endings"][0], decided(result)
    assert foretold["expected"] and foretold["state"] == "accepted"
    assert (foretold["reads"], foretold["action"], foretold["rule"]) == (
        came["facts"]["handover"]["value"], came["action"], came["rule"],
    )  # fmt: skip


KERNELS = ("current", "old-kho", "old-luo", "no-kho", "no-debugfs")
#: What becomes of a handover from the one on the left to each of KERNELS, as guests have shown it.
PAIRS = {
    "current": ("accepted", "rejected", "panic", "unsupported", "accepted"),
    "old-kho": ("rejected", "accepted", "rejected", "unsupported", "rejected"),
    "old-luo": ("panic", "rejected", "accepted", "unsupported", "panic"),
    "no-kho": ("none",) * 5,
    "no-debugfs": ("accepted", "rejected", "panic", "unsupported", "accepted"),
}


def test_every_pair() -> None:
    """What both images speak foretells what comes of each pair."""
    read = {name: image.read(str(kernel(name)))[0] for name in KERNELS}
    found = {
        a: tuple(prediction.predict(prediction.of_image(read[a]), read[b]).outcome for b in KERNELS) for a in KERNELS
    }

    assert found == PAIRS
