# SPDX-License-Identifier: MIT
"""systemd, from 261 on LUO's client by itself, with safemem beside it: whose turn comes first, and what is left after a rejection.

Seen with 262: PID 1 of the real root takes what was stored for its services, at its start, and lets the device go; one in an
initramfs does not open it. So safemem, which has decided by then, finds it free, and a token beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import debian, distro, harness
from tests.vm.harness import Guest, boot, shell
from tests.vm.kit import ALL, ALL_ONLINE, HELD, policy_text

#: test_token.py has a store that comes back, in each run.
pytestmark = [pytest.mark.vm, pytest.mark.skipif(not ALL, reason="`make nightly` boots these")]


def kexec() -> dict[str, bytes]:
    """Return this machine's kexec, for a root of another release."""
    files = {f"kexec/{Path(path).name}": data for path, data in harness.closure("kexec", "kexec").items()}
    return {**files, "kexec/ld.so": next(data for path, data in files.items() if "/ld-linux" in path)}


def plain(_: Callable[[str], Path], folder: Path) -> Guest:
    """Return a guest with an initramfs of our own: systemd is in the real root alone."""
    early = 'mount -t debugfs d /sys/kernel/debug\n[ "$STAGE" = 1 ] || decide'
    return debian.guest(
        "luo-client", "testing", early, shell("luo-client", TOKEN="", LAST=""), policy=policy_text(),
        files={**debian.STORE, **kexec()}, kernel="current", next_kernel="current", cmdline=debian.NO_UDEV,
    )  # fmt: skip


def whole(deb: Callable[[str], Path], folder: Path) -> Guest:
    """Return a guest with the distribution's initramfs, systemd in it as well, and a token: nothing else says who accepted."""
    tree = distro.Tree(folder / "tree", "testing", "dracut")
    tree.install(deb("testing"))
    (folder / "disk").mkdir()
    text = policy_text().replace("format = 1", "format = 1\nretrieve_token = true")
    more = {"verdict.more": shell("luo-client", TOKEN="yes", LAST="systemd.log_level=debug").encode()}
    tree.put({**debian.STORE, **kexec(), **more})
    tree.run("chmod 755 /kexec/*; ln -s initrd.img-* /boot/initrd.img")
    system = tree.system(folder / "disk", text)
    kernel = folder / "kernel"
    kernel.write_bytes(harness.kernel("no-debugfs").read_bytes())
    return distro.guest("luo-client-dracut", system, kernel="no-debugfs", devices=harness.disk("kernel", kernel))


@pytest.mark.parametrize("made", [plain, whole])
def test_a_store_goes_from_kernel_to_kernel(
    made: Callable[[Callable[[str], Path], Path], Guest], deb: Callable[[str], Path], tmp_path: Path
) -> None:
    """It survives `systemctl kexec`; safemem decides before systemd asks, and after a rejection nothing comes back."""
    other = tmp_path / "other"
    other.write_bytes(harness.kernel("old-kho").read_bytes())
    guest = made(deb, tmp_path)
    result = boot(guest._replace(devices=(*guest.devices, *harness.disk("other", other)), timeout=900))
    report = result.report

    assert result.fate == "poweroff", result.serial[-3000:]
    facts = [json.loads(report[f"record{stage}"])["decision"]["facts"]["handover"] for stage in "23"]
    assert [fact["value"] for fact in facts] == ["accepted", "rejected"]
    assert [report[f"stored{stage}"] for stage in "123"] == ["nothing", "guest:whole", "nothing"]
    assert [report[f"dimm{stage}"].split() for stage in "23"] == [[ALL_ONLINE], [HELD]]
    if made is whole:  # where systemd is told to say everything
        assert "No LUO session 'systemd' found" in report["said3"], report["said3"]
        assert facts[0]["reason"] == "the predecessor's token came through LUO"
