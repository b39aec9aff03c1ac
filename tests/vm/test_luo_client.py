# SPDX-License-Identifier: MIT
"""systemd, from 261 on LUO's client by itself, with safemem beside it: whose turn comes first, and what is left after a rejection."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import distro, harness
from tests.vm.harness import HERE, boot, shell
from tests.vm.kit import ALL_ONLINE, HELD, policy_text

pytestmark = pytest.mark.vm

_STORE = b"""[Service]
Type=notify
NotifyAccess=all
FileDescriptorStoreMax=4
FileDescriptorStorePreserve=yes
ExecStart=/usr/bin/python3 -IS /store.py
"""


def test_systemd_and_luo(deb: Callable[[str], Path], tmp_path: Path) -> None:
    """A store survives `systemctl kexec`; safemem decides before systemd is asked, and after a rejection nothing comes back."""
    tree = distro.Tree(tmp_path / "tree", "testing", "dracut")
    tree.install(deb("testing"))
    kexec = {f"kexec/{Path(path).name}": data for path, data in harness.closure("kexec", "kexec").items()}
    kexec["kexec/ld.so"] = next(data for path, data in kexec.items() if "/ld-linux" in path)
    files = {"etc/systemd/system/store.service": _STORE, "store.py": (HERE / "guest/store.py").read_bytes()}
    (tmp_path / "disk").mkdir()
    tree.put(kexec)
    tree.run("chmod 755 /kexec/*")
    more = {"verdict.more": shell("luo-client").encode()}
    system = tree.system(tmp_path / "disk", policy_text(), {**files, **more})
    other = tmp_path / "other"
    other.write_bytes(harness._sectors(harness.kernel("old-kho").read_bytes()))
    result = boot(distro.guest("luo-client", system, devices=harness.disk("other", other)))
    report = result.report

    for key in sorted(report):
        if not key.startswith(("record", "journal", "status_text", "kmsg")):
            print(key, "=", report[key])
    for stage in "123":
        print(
            [
                line
                for line in report.get(f"journal{stage}", "").splitlines()
                if re.search("liveupdate|LUO|luo|fd store|safemem-decide|safemem: done", line)
            ]
        )
    assert result.fate == "poweroff", result.serial[-3000:]
    facts = [json.loads(report[f"record{stage}"])["decision"]["facts"]["handover"]["value"] for stage in "123"]
    assert facts == ["none", "accepted", "rejected"]
    assert [report[f"stored{stage}"] for stage in "123"] == ["nothing", "guest:whole", "nothing"]
    assert [report[f"dimm{stage}"].split() for stage in "123"] == [[ALL_ONLINE], [ALL_ONLINE], [HELD]]
    raise AssertionError
