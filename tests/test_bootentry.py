# SPDX-License-Identifier: MIT
"""Boot loader entries: what is read of one, versions and order as systemd-boot has them, and which is taken."""

from __future__ import annotations

import itertools
import random
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.initramfs import bootentry, kernelname
from safemem.initramfs.bootentry import Entry, Loader
from tests.images import arm64, bzimage, pe

TEXT = b"""# made by kernel-install
title      Debian GNU/Linux 13 (trixie)
version    6.12.5
machine-id\t5afe
sort-key   debian
linux      /old
options    root=LABEL=x quiet
initrd     /ucode.img
initrd \t /a.img /b.img
options    panic=0
unknown    thing
  linux   /new
architecture x64

version
"""


def test_all_that_counts() -> None:
    """Of initrd and options all lines, in their order; of any other key the last."""
    assert bootentry.parse(TEXT, "debian-6.12.5+3-1.conf") == Entry(
        "debian-6.12.5+3-1.conf", "debian-6.12.5", 3, 1, "Debian GNU/Linux 13 (trixie)", "", "debian", "5afe", "x64", "/new", "linux",
        ("/ucode.img", "/a.img", "/b.img"), "root=LABEL=x quiet panic=0",
    )  # fmt: skip
    assert bootentry.parse(TEXT.replace(b"\n", b"\r\n"), "x.conf").kernel == "/new"
    assert bootentry.parse(b"", "x.conf") == Entry("x.conf", "x")


WORD = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="/.-_+"), min_size=1, max_size=20)


@given(st.lists(WORD), st.lists(WORD, max_size=4), WORD, WORD, st.integers(0, 3))
def test_what_is_written_is_read(
    initrds: list[str], options: list[str], kernel: str, version: str, blanks: int
) -> None:
    """However lines are indented and mixed with others, and whatever else stands there."""
    lines = [f"initrd {path}" for path in initrds] + [f"options {word}" for word in options]
    lines += [f"linux {kernel}", f"version {version}", "# linux /no", "efi-x /no", ""]
    text = "\n".join(" " * blanks + line.replace(" ", " " * (blanks + 1), 1) for line in lines)
    entry = bootentry.parse(text.encode(), "x.conf")
    assert (entry.initrds, entry.options, entry.kernel, entry.version) == (
        tuple(initrds),
        " ".join(options),
        kernel,
        version,
    )


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.conf", ("a", -1, 0)), ("a+3.conf", ("a", 3, 0)), ("a+0-3.efi", ("a", 0, 3)), ("a+b+2-1.EFI", ("a+b", 2, 1)),
        ("6.1.0+deb13.conf", ("6.1.0+deb13", -1, 0)), ("a+3-.conf", ("a+3-", -1, 0)), ("+3.conf", ("+3", -1, 0)),
        ("6.1+3-1-amd64.conf", ("6.1+3-1-amd64", -1, 0)),
    ],
)  # fmt: skip
def test_boot_counting(name: str, found: tuple[str, int, int]) -> None:
    """Counters stand at the end of a name, and a name alone is none."""
    assert bootentry.named(name) == found


#: Of UAPI.10, of Debian, Fedora and SUSE; each is newer than the one before.
RISING = (
    "~", "", "^", "a", "b-1", "0", "1~rc1", "1", "1-0", "1^post", "1.0", "5.10.0-21-amd64", "5.10.0-21.1", "6.1.0-9-amd64", "6.1.0-10-amd64",
    "6.1.0-44-amd64", "6.9.7-1-default", "6.11.4-301.fc41.x86_64", "6.11.10-300.fc41.x86_64",
)  # fmt: skip


def test_versions_rise() -> None:
    """Each pair of the list, both ways."""
    for (low, one), (high, other) in itertools.product(enumerate(RISING), repeat=2):
        assert bootentry.compare(one, other) == (low > high) - (low < high), (one, other)
    for one, other in (("1_", "1"), ("1+", "1"), ("011", "11"), ("11α", "11β")):
        assert bootentry.compare(one, other) == 0


@given(*[st.text("019azZ.-~^+_é", max_size=8)] * 3)
def test_versions_have_one_order(one: str, two: str, three: str) -> None:
    """Turned around it is the same; what is older than an older one is older."""
    assert bootentry.compare(one, one) == 0
    assert bootentry.compare(one, two) == -bootentry.compare(two, one)


@pytest.mark.needs("systemd-analyze")
def test_versions_as_systemd_has_them() -> None:
    """The program that has systemd-boot's code says the same of every pair."""
    source = random.Random(10)
    for _ in range(150):
        one, other = ("".join(source.choice("0129aZb-.~^_+") for _ in range(source.randint(0, 7))) for _ in range(2))
        result = subprocess.run(["systemd-analyze", "compare-versions", "--", one, other], capture_output=True)
        assert bootentry.compare(one, other) == {11: 1, 0: 0, 12: -1}[result.returncode], (one, other)


def entry(name: str, **more: object) -> Entry:
    """Return an entry with the id in its name."""
    found, left, done = bootentry.named(name)
    return Entry(name, found, left, done)._replace(**more)  # type: ignore[arg-type]


#: In the order that UAPI.1 has for them.
SORTED = (
    entry("z.conf", sort_key="arch", version="1"), entry("c.conf", sort_key="debian", machine_id="1", version="6.10"),
    entry("d+1-2.conf", sort_key="debian", machine_id="1", version="6.9"), entry("a.conf", sort_key="debian", machine_id="2", version="7"),
    entry("y-6.10.conf"), entry("y-6.9.conf"), entry("x+3.conf", title="a title"), entry("x+2-1.conf"), entry("u+1.efi"), entry("arch.conf"), entry("arch-fallback.conf"),
    entry("b+0-3.conf", sort_key="arch", version="9"), entry("zz+0-1.conf"),
)  # fmt: skip


def test_order() -> None:
    """By sort key, machine and version, newest first; those without a key behind, bad ones last."""
    for seed in range(20):
        mixed = list(SORTED)
        random.Random(seed).shuffle(mixed)
        assert bootentry.ordered(mixed) == list(SORTED)
    names = [
        each.name for each in bootentry.by_name([entry(f"m-{version}.conf") for version in ("6.9", "6.10", "0-rescue")])
    ]
    assert names == ["m-6.10.conf", "m-6.9.conf", "m-0-rescue.conf"]


@pytest.mark.parametrize(
    ("loader", "name"),
    [
        (Loader(), "z.conf"),
        (Loader(default=("", "y-*")), "y-6.10.conf"),
        (Loader(default=("nothing-*", "Y-6.9.CONF")), "y-6.9.conf"),
        (Loader(default=("d.conf",)), "d+1-2.conf"),
        (Loader(default=("b.conf",)), "b+0-3.conf"),
        (Loader(preferred=("b.conf",)), "z.conf"),
        (Loader(preferred=("b.conf", "x.conf"), default=("a.conf",)), "x+3.conf"),
        (Loader(oneshot="a.conf", preferred=("x.conf",), default=("y-*",)), "a.conf"),
        (Loader(default=("@saved",), saved="arch.conf"), "arch.conf"),
        (Loader(default=("@saved",)), "z.conf"),
        # Without the end of its name GRUB alone knows an entry; systemd-boot takes the first then.
        (Loader(default=("y-6.9",)), "z.conf"),
        (Loader(default=("y-6.9",), grub=True), "y-6.9.conf"),
        (Loader(default=("a title",)), "z.conf"),
        (Loader(default=("a title",), grub=True), "x+3.conf"),
        (Loader(default=("y-*",), grub=True), "z.conf"),
        (Loader(default=("u.efi@1",)), "u+1.efi"),
        (Loader(default=("a.conf@1",)), "z.conf"),
    ],
)
def test_which_is_taken(loader: Loader, name: str) -> None:
    """What is told for one boot, what is preferred unless it is bad, the default, the first."""
    taken = bootentry.taken(list(SORTED), loader)
    assert taken is not None and taken.name == name
    assert bootentry.taken([], loader) is None


def test_what_else_is_read() -> None:
    """loader.conf, a variable of firmware, GRUB's environment, a unified image's system."""
    assert bootentry.settings(b"# x\ntimeout\t3\ndefault a\ndefault  b c\n") == {"timeout": "3", "default": "b c"}
    assert bootentry.variable(b"\6\0\0\0a\0.\0\0\0b\0") == "a."
    assert bootentry.environment(b"# GRUB Environment Block\nsaved_entry=a=b\n####") == {"saved_entry": "a=b"}
    found = bootentry.unified("a+2.efi", b'ID=debian\nVERSION_ID="13"\nPRETTY_NAME=x\n')
    assert (found.id, found.left, found.sort_key, found.version, found.title) == ("a", 2, "debian", "13", "x")


def test_a_kernels_name() -> None:
    """In the head of a bzImage, in `.uname`, in the head of the kernel inside; other kernels do not say it."""
    assert kernelname.look(bzimage(b"x", release="6.1.0-44-amd64")) == kernelname.Named("6.1.0-44-amd64")
    inner = pe([(".osrel", b"ID=x\n"), (".linux", bzimage(b"x", release="6.1.0")), (".initrd", b"")])
    assert kernelname.look(inner) == kernelname.Named("6.1.0", unified=True, program=True, os_release=b"ID=x\n")
    assert kernelname.look(pe([(".linux", arm64(b"x")), (".uname", b"6.2\0")])).release == "6.2"
    assert kernelname.look(pe([(".text", b"x")])) == kernelname.Named(program=True)
    assert kernelname.look(arm64(b"x")) == kernelname.look(b"") == kernelname.look(b"MZ") == kernelname.Named()
