# SPDX-License-Identifier: MIT
"""Which policy counts on a machine, and who can have written it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safemem.policy import installed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files that are root's")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a root with an operator's policy."""
    (tmp_path / "etc/safemem").mkdir(parents=True)
    (tmp_path / "etc/safemem/policy.toml").write_text("format = 1\n")
    return tmp_path


def test_the_operators_policy_comes_first(root: Path) -> None:
    """Then the one that the package ships, below the same root, then our own copy."""
    own = root / "etc/safemem/policy.toml"
    shipped = root / "usr/share/safemem/policies/live-update-host.toml"
    shipped.parent.mkdir(parents=True)
    shipped.write_text("format = 1\n")

    assert installed.find(str(root)) == own
    own.unlink()
    assert installed.find(str(root)) == shipped
    shipped.unlink()
    assert installed.find(str(root)).name == installed.DEFAULT


@pytest.mark.parametrize(
    ("place", "mode"), [("policy.toml", 0o664), ("policy.toml", 0o646), (".", 0o777), ("..", 0o775)]
)
def test_what_others_can_write_is_refused(root: Path, place: str, mode: int) -> None:
    """The file, and every folder that leads to it: who can write there can put another file in its place."""
    target = Path(os.path.normpath(root / "etc/safemem" / place))
    target.chmod(mode)

    with pytest.raises(installed.Untrusted, match=rf"{target} has mode {mode:04o}.*`chmod go-w {target}`"):
        installed.find(str(root))


@pytest.mark.parametrize("place", ["policy.toml", "."])
def test_what_belongs_to_somebody_else_is_refused(root: Path, place: str) -> None:
    """An owner can always write."""
    target = Path(os.path.normpath(root / "etc/safemem" / place))
    os.chown(target, 1000, 0)

    with pytest.raises(installed.Untrusted, match=rf"{target} belongs to user 1000: `chown root {target}`"):
        installed.find(str(root))


def test_a_link_counts_as_what_it_leads_to(root: Path, tmp_path: Path) -> None:
    """A link of root's to a file that anybody can write is refused; one that leads nowhere is no reason to fall back."""
    own = root / "etc/safemem/policy.toml"
    elsewhere = tmp_path / "elsewhere"
    own.rename(elsewhere)
    own.symlink_to(elsewhere)

    assert installed.find(str(root)) == own
    elsewhere.chmod(0o666)
    with pytest.raises(installed.Untrusted, match=f"{elsewhere} has mode 0666"):
        installed.find(str(root))
    elsewhere.unlink()
    with pytest.raises(installed.Untrusted, match="no such file"):
        installed.find(str(root))
