# SPDX-License-Identifier: MIT
"""`preflight` on a real kernel: what it shows of itself, crossed with each of the kernels that could come next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit import archive, base, units
from tests.vm.harness import REPOSITORY, boot, kernel, shell
from tests.vm.kit import COMMAND, SHARE, guest, policy_text

pytestmark = pytest.mark.vm

#: The next kernel -> the code, the outcome and the error that follows, if any.
NEXT = {
    "current": (0, "accepted", None),
    "old-kho": (5, "rejected", "kho-differs"),
    "old-luo": (5, "panic", "luo-differs"),
    "no-kho": (5, "unsupported", "no-kho"),
    # Accepted, and nothing shows it: the shipped policy would end that boot.
    "no-debugfs": (5, "accepted", "policy-ends"),
}


def test_every_kernel_after_current(tmp_path: Path) -> None:
    """The verdict on each, with the versions that this kernel really writes; another file, a session held."""
    (tmp_path / "initrd").write_bytes(archive({**base(), **units()}))
    images = {name: str(kernel(name)) for name in NEXT}
    values = {"KERNELS": " ".join(images.values()), "RUNNING": images["current"], "INITRD": str(tmp_path / "initrd")}
    script = f"mount -t debugfs d /sys/kernel/debug\n{COMMAND}{shell('preflight', TREE=str(REPOSITORY), **values)}"
    result = boot(guest("preflight", script, policy_text("online-safe"), devices=SHARE, timeout=400))
    report = result.report

    assert result.fate == "poweroff", result.serial[-2000:]
    print(report["text"])
    said: dict[str, dict[str, Any]] = {
        key.removeprefix("said_"): json.loads(text) for key, text in report.items() if key.startswith("said_")
    }

    def errors(name: str) -> list[str]:
        return [item["code"] for item in said[name]["findings"] if item["severity"] == "error"]

    for name, (code, outcome, error) in NEXT.items():
        found = said[name]
        assert (report[f"code_{name}"], found["prediction"]["outcome"]) == (str(code), outcome), found
        assert errors(name) == ([error] if error else []), found["findings"]
    now = said["current"]["running"]
    assert now["proven"] and (now["kho"], now["luo"], now["preserved"]) == ("yes", "yes", "no")
    assert set(now["nodes"]) == {"kexec-metadata", "LUO"}
    assert (now["speaks"]["tree"], now["speaks"]["luo"], now["speaks"]["handlers"]) == (
        ["kho-v4"],
        ["luo-v5"],
        ["memfd-v2"],
    )
    assert said["current"]["endings"][0]["action"] == "online-all"
    assert report["code_other"] == "6" and "running-differs" in [item["code"] for item in said["other"]["findings"]]
    # The arguments are of before: they say that nothing is preserved.
    lines = report["text"].splitlines()
    assert [line for line in lines if line.startswith(("error", "unknown"))] == [
        "error: the next command line says that nothing is preserved, and something is [word-stale]"
    ]
    assert (report["code_held"], lines[-1]) == ("5", "incompatible") and "holds session `guest`" in report["text"]
