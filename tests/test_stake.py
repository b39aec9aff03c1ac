# SPDX-License-Identifier: MIT
"""What is at stake: what the outgoing system says of it, and what of that the next kernel's boot program believes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from safemem.boot import handover_args, paths, probe, stake
from safemem.boot.cmdline import arguments
from safemem.boot.model import UNKNOWN
from tests.fakes import machine, make_root

OUT = f"{paths.KHO[1]}/{paths.PRODUCERS}"
GUEST, OWN = "anon_inode:[luo_session] guest", "anon_inode:[luo_session] safemem"
AREAS, TOKEN = "0x1000-0x1fff;crc32=12345678", f"{'ab' * 32};crc32=12345678"
MOUNTS = (
    "22 27 0:21 / /proc rw,relatime shared:5 - proc proc {}\n30 22 0:30 / /proc/sys/fs/binfmt_misc rw - autofs x rw\n"
)


def idle(root: Path) -> Path:
    """Give the root processes and an outgoing tree as an idle host has them."""
    process(root, 1, "/dev/null", "socket:[4711]", "anon_inode:[eventpoll]")
    process(root, 7)
    process(root, 77, "/dev/null", OWN)
    (root / paths.TOKEN_HELD).parent.mkdir(parents=True, exist_ok=True)
    (root / paths.TOKEN_HELD).write_text(f"{'ab' * 32} 77\n")
    process(root, 42, "/dev/liveupdate", "/tmp/anon_inode:[luo_session] x", threads=(42, 43))
    (root / paths.NAMESPACES).mkdir(parents=True)
    (root / paths.NAMESPACES / "pid").symlink_to("pid:[4026531836]")
    (root / paths.MOUNTS).write_text(MOUNTS.format("rw"))
    for name in ("LUO", "kexec-metadata"):
        (root / OUT / name).parent.mkdir(parents=True, exist_ok=True)
        (root / OUT / name).write_bytes(b"")
    return root


def process(root: Path, number: int, *targets: str, threads: tuple[int, ...] = ()) -> None:
    """Give the root a process whose descriptors lead there; the last of its threads has them, as others may have none."""
    for thread in threads or (number,):
        (root / f"proc/{number}/task/{thread}/fd").mkdir(parents=True)
    for index, target in enumerate(targets):
        (root / f"proc/{number}/task/{thread}/fd/{index}").symlink_to(target)


def link(root: Path, target: str) -> None:
    """Give the token's holder one more descriptor."""
    (root / "proc/77/task/77/fd/2").symlink_to(target)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return an idle host."""
    return idle(machine(tmp_path))


def test_an_idle_host(root: Path) -> None:
    """The token's session, LUO's own data and a path that is called like a session are nothing that could be lost."""
    assert stake.read(str(root))[0] == "no"


@pytest.mark.parametrize(
    ("damage", "value", "why"),
    [
        (lambda root: process(root, 99, "/dev/null", GUEST), "yes", "process 99 holds session `guest`"),
        (lambda root: process(root, 99, GUEST, threads=(99, 100)), "yes", "process 99 holds session `guest`"),
        (lambda root: process(root, 99, f"{OWN}-2"), "yes", "session `safemem-2`"),
        (lambda root: process(root, 99, "anon_inode:[luo_session]"), "yes", "session `?`"),
        (lambda root: process(root, 99, OWN), "yes", "process 99 holds session `safemem`, and no token"),
        (lambda root: link(root, f"{OWN} "), "yes", "process 77 holds session `safemem `"),
        (lambda root: link(root, OWN.replace("] ", "]  ")), "yes", "process 77 holds session ` safemem`"),
        (lambda root: link(root, GUEST), "yes", "process 77 holds session `guest`"),
        (lambda root: (root / paths.TOKEN_HELD).unlink(), "yes", "process 77 holds session `safemem`, and no token"),
        (lambda root: (root / paths.TOKEN_HELD).write_text(f"{'ab' * 32} 7\n"), "yes", "process 77 holds session `safemem`"),
        (lambda root: (root / paths.TOKEN_HELD).write_text(f"{'ab' * 32} 77"), "yes", "process 77 holds session `safemem`"),
        (lambda root: (root / paths.TOKEN_HELD).write_text("77\n"), "yes", "process 77 holds session `safemem`"),
        (lambda root: process(root, 99, "anon_inode:[luo_session] a\x1b[1m"), "yes", "session `a\\x1b[1m`"),
        (lambda root: (root / OUT / "memblock").write_bytes(b""), "yes", f"{OUT}/memblock is there"),
        (lambda root: shutil.rmtree(root / OUT), UNKNOWN, f"{OUT}: not there"),
        (lambda root: [path.unlink() for path in (root / OUT).iterdir()], UNKNOWN, f"{OUT}: it is empty"),
        (lambda root: shutil.rmtree(root / "proc/1"), UNKNOWN, "process 1 is not shown"),
        (lambda root: shutil.rmtree(root / "proc"), UNKNOWN, "proc: no such file or directory"),
        (lambda root: shutil.rmtree(root / paths.NAMESPACES), UNKNOWN, "proc/self: no such file or directory"),
        (lambda root: (root / paths.MOUNTS).unlink(), UNKNOWN, "proc/self: no such file or directory"),
        (lambda root: (root / paths.MOUNTS).write_text(MOUNTS.format("rw,hidepid=invisible")), UNKNOWN, "with hidepid"),
        (lambda root: (root / paths.MOUNTS).write_text(MOUNTS.format("rw")[:-1]), UNKNOWN, "it is cut off"),
        (lambda root: (root / paths.MOUNTS).write_text(MOUNTS.replace("proc proc {}", "tmpfs x rw")), UNKNOWN, "no proc file system"),
        (lambda root: (root / paths.MOUNTS).write_text(MOUNTS.format("rw") + "31 22 0:9 / /proc/99 rw - tmpfs x rw\n"),
         UNKNOWN, "something is mounted at /proc/99"),
        (lambda root: [(root / paths.NAMESPACES / "pid").unlink(), (root / paths.NAMESPACES / "pid").symlink_to("pid:[4026532199]")],
         UNKNOWN, "not the first pid namespace"),
        (lambda root: (root / paths.NAMESPACES / "pid").unlink(), "no", ""),
        (lambda root: shutil.rmtree(root / "proc/7/task"), "no", ""),
        (lambda root: shutil.rmtree(root / "proc/42/task/43"), "no", ""),
    ],
)  # fmt: skip
def test_what_the_outgoing_system_shows(root: Path, damage: Callable[[Path], object], value: str, why: str) -> None:
    """A session or another producer's data is at stake; what cannot be looked at may be; a process that ended is gone."""
    damage(root)
    found = stake.read(str(root))

    assert (found[0], why in found[1]) == (value, True), found


def test_what_is_seen_counts_for_more_than_what_is_not(root: Path) -> None:
    """A session is `yes`, whatever else cannot be looked at."""
    shutil.rmtree(root / OUT)
    process(root, 99, GUEST)

    assert stake.read(str(root))[0] == "yes"


def test_descriptors_that_nobody_may_look_at(root: Path) -> None:
    """A folder that is refused may hold a session; a file in its place stands for one, as root is refused nothing."""
    shutil.rmtree(root / "proc/42/task/43/fd")
    (root / "proc/42/task/43/fd").write_text("")

    assert stake.read(str(root)) == (UNKNOWN, "proc/42/task/43/fd: not a directory")


# ---- what the next kernel reads


def told(line: str) -> tuple[str, str]:
    """Return the fact of a kernel with this command line, and its reason."""
    fact = stake.told(arguments(line))
    assert fact.source == "command line"
    return str(fact.value), fact.reason


@pytest.mark.parametrize("value", ["yes", "no", UNKNOWN])
@pytest.mark.parametrize(("safe", "page"), [("", TOKEN), (AREAS, ""), (AREAS, TOKEN)])
def test_a_word_that_is_whole(value: str, safe: str, page: str) -> None:
    """What was sealed together is believed, wherever on the line it stands, and is called the predecessor's word."""
    beside = {stake.SAFE: safe, stake.TOKEN: page}
    words = [stake.argument(value, safe, page), *(f"{name}={text}" for name, text in beside.items() if text)]
    for line in (" ".join(words), " ".join(["kho=on", *reversed(words), "-- init"]), " ".join(["--", *words, *words])):
        assert told(line) == (value, "the predecessor's word")


def test_a_word_that_is_forged_or_cut() -> None:
    """Nothing but the whole word beside its own region counts: neither any part of it, nor another value."""
    safe = f"{stake.SAFE}={AREAS}"
    word = stake.argument("no", AREAS, "")
    assert told(f"{safe} {word}")[0] == "no"

    for length in range(len(stake.ARGUMENT) + 1, len(word)):
        assert told(f"{safe} {word[:length]}")[0] == UNKNOWN, word[:length]
    for line, why in (
        (f"{safe} {stake.ARGUMENT}=no", "has no check sum"),
        (f"{safe} {stake.argument('yes', AREAS, '').replace('=yes', '=no')}", "does not match"),
        (word, "stands alone"),
        (stake.argument("no", "", ""), "stands alone"),
        (f"{safe[:-1]}9 {word}", "does not match"),
        (f"{safe} {stake.argument('no', '', '')}", "does not match"),
        (f"{safe} {word}0", "does not match"),
        (f"{safe} {stake.ARGUMENT}=none;crc32=00000000", "is not yes, no or unknown"),
        (f"{safe} {stake.ARGUMENT}", "is not yes, no or unknown"),
        (safe, "no safemem.preserved= from handover-args"),
    ):
        value, reason = told(line)
        assert (value, why in reason) == (UNKNOWN, True), (line, reason)


def test_a_word_of_an_earlier_kexec() -> None:
    """An old word counts neither beside a new one, before or behind `--`, nor beside another region or token than its own."""
    safe, page = f"{stake.SAFE}={AREAS}", f"{stake.TOKEN}={TOKEN}"
    old, new = stake.argument("no", AREAS, TOKEN), stake.argument("yes", AREAS, TOKEN)
    other = f"{stake.TOKEN}={TOKEN[:-1]}0"
    assert [told(f"{safe} {page} {word}")[0] for word in (old, new)] == ["no", "yes"]

    for line, why in (
        (f"{safe} {page} {new} {old}", f"{stake.ARGUMENT}= stands there more than once"),
        (f"{safe} {page} {new} -- init {old}", f"{stake.ARGUMENT}= stands there more than once"),
        (f"{safe} {page} {old} {stake.ARGUMENT}=no", f"{stake.ARGUMENT}= stands there more than once"),
        (f"{safe} {other} {page} {old}", f"{stake.TOKEN}= stands there more than once"),
        (f"{safe[:-1]}9 {safe} {page} {old}", f"{stake.SAFE}= stands there more than once"),
        # A kernel that accepts has its predecessor's scratch, so the token alone tells one kexec from the next.
        (f"{safe} {other} {old}", "does not match"),
        (f"{safe} {old}", "does not match"),
        (f"{safe} {page} {stake.argument('no', AREAS, '')}", "does not match"),
    ):
        value, reason = told(line)
        assert (value, why in reason) == (UNKNOWN, True), (line, reason)


def test_a_word_of_an_earlier_kexec_on_a_machine(tmp_path: Path) -> None:
    """The boot program sees every word of the line, not the last one alone."""
    safe = f"{stake.SAFE}={AREAS}"
    words = {value: stake.argument(value, AREAS, "") for value in ("yes", "no")}
    for line, value in ((f"{safe} {words['no']}", "no"), (f"{safe} {words['yes']} -- {words['no']}", UNKNOWN)):
        root = make_root(tmp_path / value, offered=True, cmdline=line)
        assert probe.read_snapshot(str(root)).facts["preserved"].value == value


def test_a_command_line_that_cannot_be_read(tmp_path: Path) -> None:
    """Then nobody knows what the predecessor said."""
    root = make_root(tmp_path)
    (root / paths.CMDLINE).unlink()

    assert probe.read_snapshot(str(root)).facts["preserved"].value == UNKNOWN


# ---- from one to the other


@pytest.mark.parametrize(("held", "expected"), [((), "no"), ((GUEST,), "yes")])
def test_what_is_printed_is_read_back(root: Path, tmp_path: Path, held: tuple[str, ...], expected: str) -> None:
    """The arguments of an idle host say that nothing is preserved, with a session they do not, and notes say why."""
    process(root, 99, *held)
    advice = handover_args.advise(str(root))
    after = make_root(tmp_path / "next", offered=True, cmdline=" ".join(advice.arguments))
    facts = probe.read_snapshot(str(after)).facts

    assert (facts["preserved"].value, facts["handover"].value) == (expected, "rejected")
    assert any(note.startswith(f"preserved is `{expected}`: ") for note in advice.notes)
    # Whatever part of the line is lost, no word is left that nothing was preserved.
    line = " ".join(advice.arguments)
    end = line.index(stake.ARGUMENT) + len(stake.ARGUMENT) + len("=no;crc32=01234567")
    for length in range(0, end, 7):
        assert stake.told(arguments(line[:length])).value == UNKNOWN


def test_a_token_is_sealed_with_the_word(root: Path) -> None:
    """What two live updates from one scratch print differs by the token, and the word of one is none for the other."""
    lines = [
        handover_args.advise(str(root), named=f"{stake.TOKEN}={text * 64};crc32=12345678").arguments
        for text in ("a", "b")
    ]
    first, second = ({word.partition("=")[0]: word for word in line} for line in lines)
    assert [told(" ".join(line)) for line in lines] == [("no", "the predecessor's word")] * 2
    assert first[stake.SAFE] == second[stake.SAFE]

    assert told(" ".join({**second, stake.ARGUMENT: first[stake.ARGUMENT]}.values()))[0] == UNKNOWN
    # A part that is lost takes the word with it.
    line = " ".join(lines[0])
    for length in range(0, len(line), 7):
        assert told(line[:length])[0] == UNKNOWN


@pytest.mark.parametrize("between", ["", "-- init "])
def test_an_old_word_that_has_to_be_taken_out_by_hand(root: Path, between: str) -> None:
    """Whoever appends what is printed is told to take out what this kernel was told, wherever it stands."""
    assert not any(stake.ARGUMENT in text for text in handover_args.advise(str(root)).by_hand)
    old, safe = stake.argument("no", AREAS, ""), f"{stake.SAFE}={AREAS}"
    (root / paths.CMDLINE).write_text(f"kho=on {between}{safe} {old} liveupdate=on\n")

    (text,) = (text for text in handover_args.advise(str(root)).by_hand if stake.ARGUMENT in text)
    assert text.startswith(f"take `{safe}`, `{old}` out of the next command line")


def test_the_next_command_line_has_no_old_word(root: Path) -> None:
    """A whole command line takes the word that this kernel was told out, and puts the new one in."""
    old = stake.argument("no", "", "")
    (root / paths.CMDLINE).write_text(f"kho=on {old} liveupdate=on\n")
    process(root, 99, GUEST)
    line = handover_args.next_cmdline(handover_args.advise(str(root)))

    assert old not in line and line.count(stake.ARGUMENT) == 1
    assert told(line)[0] == "yes"


def test_a_word_without_a_handover(tmp_path: Path) -> None:
    """Only handover-args writes it, for a kexec that hands over: without an offer the handover was lost."""
    root = make_root(tmp_path, cmdline=stake.argument("no", "", ""))

    assert probe.read_snapshot(str(root)).facts["handover"].value == "lost"
