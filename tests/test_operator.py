# SPDX-License-Identifier: MIT
"""Which policy counts on a machine, and who can have written it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from safemem.cli import policies
from safemem.policy import installed
from tests.kit import POLICY

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

    assert installed.find(str(root)).path == own
    own.unlink()
    assert installed.find(str(root)).path == shipped
    shipped.unlink()
    assert installed.find(str(root)).path.name == installed.DEFAULT


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

    assert installed.find(str(root)) == (own, b"format = 1\n")
    elsewhere.chmod(0o666)
    with pytest.raises(installed.Untrusted, match=f"{elsewhere} has mode 0666"):
        installed.find(str(root))
    elsewhere.unlink()
    with pytest.raises(installed.Untrusted, match="no such file"):
        installed.find(str(root))


@pytest.mark.parametrize("target", ["{root}/real", "../../real", "../safemem/../../real", "./..//../real/.", "next"])
def test_a_link_of_somebody_else_is_refused(root: Path, target: str) -> None:
    """Whoever owns a link on the way chooses the policy, wherever it stands and whatever it leads to."""
    folder, own = root / "real", root / "etc/safemem/policy.toml"
    folder.mkdir()
    shutil.copy(POLICY, folder / "current.toml")
    own.unlink()
    way = root / "etc/safemem/way"
    way.symlink_to(target.format(root=root))
    (root / "etc/safemem/next").symlink_to("../../real")
    own.symlink_to("way/current.toml")

    found = installed.find(str(root))
    assert (found.path, found.data) == (own, POLICY.read_bytes())
    for link in (way, own):
        os.chown(link, 1000, 0, follow_symlinks=False)
        with pytest.raises(installed.Untrusted, match=rf"the link {link} belongs to user 1000: `chown -h root {link}`"):
            installed.find(str(root))
        os.chown(link, 0, 0, follow_symlinks=False)


@pytest.mark.parametrize("place", ["way", "way/inner"])
def test_every_folder_on_the_way_counts(root: Path, place: str) -> None:
    """Also those that a link goes through and leaves again by `..`."""
    own = root / "etc/safemem/policy.toml"
    own.rename(root / "real.toml")
    (root / "way/inner").mkdir(parents=True)
    own.symlink_to("../../way/inner/../../real.toml")
    assert installed.find(str(root)).data == b"format = 1\n"
    (root / place).chmod(0o777)
    with pytest.raises(installed.Untrusted, match=f"the folder {root / place} has mode 0777"):
        installed.find(str(root))
    (root / place).chmod(0o1777)  # where only an owner renames an entry, root's stay
    assert installed.find(str(root)).data == b"format = 1\n"


def test_links_in_a_circle_end(root: Path) -> None:
    """As many links as the kernel follows are followed, one more is refused."""
    own = root / "etc/safemem/policy.toml"
    own.rename(root / "etc/safemem/link0")
    for number in range(installed.LINKS):
        (root / f"etc/safemem/link{number + 1}").symlink_to(f"link{number}")
    assert installed.trusted(root / f"etc/safemem/link{installed.LINKS}").data == b"format = 1\n"
    own.symlink_to(f"link{installed.LINKS}")
    with pytest.raises(installed.Untrusted, match="more than 40 links on the way, so they may lead in a circle"):
        installed.find(str(root))
    (root / "etc/safemem/a").symlink_to("b")
    (root / "etc/safemem/b").symlink_to("a")
    with pytest.raises(installed.Untrusted, match="more than 40 links"):
        installed.trusted(root / "etc/safemem/a")


def swap(root: Path) -> None:
    """Let the link of the policy lead to the other file."""
    (root / "draft").symlink_to("../../other.toml")
    (root / "draft").rename(root / "etc/safemem/policy.toml")


@pytest.mark.parametrize("call", ["lstat", "fstat", "readlink", "open"])
def test_what_was_checked_is_read(root: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the link is moved to somebody else's file, the policy is root's own or none."""
    own = root / "etc/safemem/policy.toml"
    own.rename(root / "mine.toml")
    (root / "other.toml").write_text("format = 2\n")
    os.chown(root / "other.toml", 1000, 0)
    real = getattr(os, call)
    for turn in range(20):
        own.unlink(missing_ok=True)
        own.symlink_to("../../mine.toml")
        turns = iter(range(20))

        def late(*words: object, turn: int = turn, turns: object = turns, **more: object) -> object:
            if next(turns, -1) == turn:  # type: ignore[call-overload]
                swap(root)
            return real(*words, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, late)
            try:
                assert installed.find(str(root)).data == b"format = 1\n"
            except installed.Untrusted as error:
                assert "other.toml belongs to user 1000" in str(error)


def test_the_policy_is_parsed_from_what_was_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is put in its place after the look is not opened again."""
    own, others = root / "etc/safemem/policy.toml", root / "etc/safemem/policies"
    shutil.copy(POLICY, own)
    others.mkdir()
    shutil.copy(POLICY, others / "named.toml")
    look = installed.trusted

    def looked(path: Path) -> installed.Trusted:
        found = look(path)
        path.write_text("format = 9\n")
        return found

    monkeypatch.setattr(installed, "trusted", looked)
    assert policies.operators_policy(None, str(root)).name == "live-update-host"
    assert policies.named_policies(str(root))["named"].policy.name == "live-update-host"
    shutil.copy(POLICY, root / "given.toml")
    assert policies.operators_policy(str(root / "given.toml")).name == "live-update-host"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda own: own.mkdir(), "this is no file"),
        (lambda own: os.mkfifo(own), "this is no file"),
        (lambda own: own.symlink_to("/dev/null"), "has mode 0666|this is no file"),
        (lambda own: own.symlink_to("nowhere"), "no such file or directory"),
        (lambda own: own.symlink_to("policies/x/y"), "no such file or directory"),
    ],
)
def test_what_is_no_file_is_refused(root: Path, make: Callable[[Path], None], message: str) -> None:
    """At once, and without another policy in its place."""
    own = root / "etc/safemem/policy.toml"
    own.unlink()
    make(own)
    with pytest.raises(installed.Untrusted, match=message):
        installed.find(str(root))


def test_a_folder_that_cannot_be_listed_is_no_empty_one(root: Path) -> None:
    """Which policies the command line may name has to be known; a policy that cannot be looked at is there."""
    (root / "etc/safemem/policies").write_text("")
    with pytest.raises(installed.Untrusted, match=r"etc/safemem/policies: not a directory"):
        installed.others(str(root))
    (root / "etc/safemem/policies").unlink()
    assert installed.others(str(root)) == []
    os.rename(root / "etc/safemem", root / "etc/aside")
    (root / "etc/safemem").write_text("")
    with pytest.raises(installed.Untrusted, match=r"policy.toml: not a directory"):
        installed.find(str(root))


def test_no_descriptor_is_left_open(root: Path) -> None:
    """A look that ends well closes what it opened, and so does one that is refused."""
    before = os.listdir("/proc/self/fd")
    installed.find(str(root))
    (root / "etc/safemem/policy.toml").chmod(0o666)
    with pytest.raises(installed.Untrusted):
        installed.find(str(root))
    assert os.listdir("/proc/self/fd") == before
