# SPDX-License-Identifier: MIT
"""The boot program, `release`, `watch` and the hold killed at any point: nothing is looser, what is said is true, a second run finishes.

A kill comes at a call of the program's own, drawn among all that it makes, and not at a time: each call is as likely.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from safemem.boot import gigantic, hold, paths, record
from safemem.boot import main as boot
from safemem.boot.model import Rule, Term
from safemem.boot.ranges import Range
from safemem.cli import main
from safemem.host import history, reader, standing, watch
from safemem.host.incidents import COUNTS, Counts
from safemem.realroot import hold as realroot
from safemem.realroot import udevrules
from tests import pool
from tests.fakes import BLOCK, make_root, rejecting
from tests.kit import GUARD, install, rule, when

#: Kills of each kind; `make nightly` wants more.
KILLS = int(os.environ.get("SAFEMEM_KILLS", "10"))
MEMORY = "sys/devices/system/memory"
#: Runs a program on a kernel that does at once what it is told, and kills it at call number KILL; -1 says how many there are.
DRIVER = """
import os, signal, sys
kill, code = int(sys.argv[1]), sys.argv[2]
sys.argv = ["safemem", *sys.argv[3:]]
from safemem.boot import files
from safemem.cli import main
from safemem.cli import release, status, watch as _
from safemem.host import watch
from safemem.realroot import hold
from tests import pool
pool.patch(setattr)
calls = 0
def count(event, _values):
    global calls
    if pool.busy:
        return
    if event == "open" or event.startswith(("os.", "fcntl.", "shutil.")):
        calls += 1
        if calls == kill:
            os.kill(os.getpid(), signal.SIGKILL)
put, put_one = files.Folder.put, files.put
def at_once(self, name, data):
    count("open", ())
    put(self, name, data.replace(b"online_movable", b"online") + b"\\n")
def one_at_once(root, name, data, **more):
    count("open", ())
    put_one(root, name, data + "\\n" * name.endswith("/state"), **more)
files.Folder.put, files.put = at_once, one_at_once
sys.addaudithook(count)
try:
    exec(code)
finally:
    if kill < 0:
        print(calls, file=sys.stderr)
"""
RELEASE = "main()"
WATCH = "watch.look(sys.argv[1], watch.Counts())"
HOLD = "sys.exit(hold.main(sys.argv[1:]))"
BOOT = "from safemem.boot.main import main as boot; sys.exit(boot(sys.argv[1:]))"


def held(base: Path) -> Path:
    """Return a machine on which a lost handover was held; blocks 40 and 41, once there, are safe."""
    base.mkdir()
    root = make_root(base, offered=True)
    for number in range(32, 40):  # as it is once they are online
        (root / f"{MEMORY}/memory{number}/valid_zones").write_text("Movable\n")
    (root / "proc/meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n")
    last = rule("online-safe", message="handover lost", if_onlined="offline")
    install(root, otherwise=last, sources=(Range(40 * BLOCK, 42 * BLOCK),))
    assert boot.main(["--root", str(root)]) == 0
    assert realroot.main(["--root", str(root)]) == 0
    CliRunner().invoke(main, ["keep", "--root", str(root)])
    return root


def undecided(base: Path) -> Path:
    """Return a machine with a guard on which a lost handover is to be held, and counted; blocks 32 and 33 are safe."""
    base.mkdir()
    root = make_root(base, offered=True, **GUARD)
    for number in (32, 33):  # as it is once they are online
        (root / f"{MEMORY}/memory{number}/valid_zones").write_text("Movable\n")
    (root / paths.EFIVARS).mkdir(parents=True)
    (root / paths.EFIVARS / "Timeout-x").write_bytes(bytes(6))
    never = Rule("often", "panic", when=when("boot_attempts", Term(">", 9)))
    install(root, never, otherwise=rule("online-safe"), sources=(Range(32 * BLOCK, 34 * BLOCK),))
    return root


def with_pages(base: Path) -> Path:
    """Return a machine whose guard has gigantic pages: three of node 0, two of node 1, of which one is the operator's own."""
    base.mkdir()
    root = rejecting(base, {0: (2, 4, 5), 1: (6, 7)}, {0: 3, 1: 2}, {1: 1}, reserved=False)
    for number in range(16, 24):  # GiB 2 is there
        (root / f"{MEMORY}/memory{number}").mkdir()
        (root / f"{MEMORY}/memory{number}/state").write_text("online\n")
        (root / f"sys/devices/system/node/node0/memory{number}").mkdir()
    for number in range(80, 88):
        (root / f"{MEMORY}/memory{number}/valid_zones").write_text("Movable\n")
    install(root, otherwise=rule("online-safe"), sources=("none",))
    assert boot.main(["--root", str(root)]) == 0
    assert pools(root) == {0: (3, 3), 1: (2, 2)}
    CliRunner().invoke(main, ["keep", "--root", str(root)])
    return root


def crash_range_as_large_as_told(root: Path) -> None:
    """Show the crash range in /proc/iomem as large as it is: the kernel does so itself."""
    size, resources = int((root / paths.CRASH_SIZE).read_text()), root / paths.IOMEM
    lines = [line for line in resources.read_text().splitlines() if "Crash kernel" not in line]
    at = 0x1000000
    resources.write_text("\n".join([*lines, *([f"  {at:08x}-{at + size - 1:08x} : Crash kernel"] if size else []), ""]))


def pools(root: Path) -> dict[int, tuple[int, int]]:
    """Return how many gigantic pages each node has, and how many its file reserves."""
    return {
        node: (pool.word(str(root), f"{pool.NODES}/node{node}/hugepages/{pool.NAME}/nr_hugepages"), pool.reserved(str(root)).get(node, 0))
        for node in (0, 1)
    }  # fmt: skip


def run(kill: int, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program until it is killed."""
    return subprocess.run([sys.executable, "-c", DRIVER, str(kill), code, *words], capture_output=True, text=True)


def kills(base: Path, name: str, code: str, *words: str) -> list[int]:
    """Return the calls at which a program is killed: drawn from all that it makes on such a machine."""
    root = prepared(base / "whole", name)
    counted = run(-1, code, *(str(root) if word == "ROOT" else word for word in words))
    whole = int(counted.stderr.split()[-1])
    assert whole > 20, counted.stderr
    draw = random.Random(name)
    return [draw.randint(1, whole) for _ in range(KILLS)]


def prepared(base: Path, name: str) -> Path:
    """Return a machine on which something is to be done."""
    if "pages" in name:
        return with_pages(base)
    root = undecided(base) if name == "boot" else held(base)
    if name == "watch":
        for number, state in ((35, "online"), (40, "offline"), (50, "offline")):
            (root / f"{MEMORY}/memory{number}").mkdir(exist_ok=True)
            (root / f"{MEMORY}/memory{number}/state").write_text(f"{state}\n")
    if name == "hold":
        (root / "usr/lib/udev/rules.d").mkdir(parents=True)
        (root / "usr/lib/udev/rules.d/55-own.rules").write_text('SUBSYSTEM=="memory", ATTR{state}="online"\n')
        (root / paths.AUTO_ONLINE).write_text("online\n")
    return root


def online(root: Path) -> set[int]:
    """Return which of the blocks that were hot-added are online."""
    states = {int(path.parent.name[6:]): path.read_text().strip() for path in (root / MEMORY).glob("memory*/state")}
    return {number for number, state in states.items() if number >= 32 and state == "online"}


def status(root: Path) -> tuple[int, dict[str, Any]]:
    """Return what `status` says."""
    result = CliRunner().invoke(main, ["status", "--format", "json", "--root", str(root)])
    assert result.stdout, result.output
    return result.exit_code, json.loads(result.stdout)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the fake kernel do in this process as well what it is told."""
    pool.patch(monkeypatch.setattr)
    pool.patch_states(monkeypatch.setattr)


def assert_held(root: Path) -> None:
    """Check that nothing that arrives comes online."""
    assert (root / paths.AUTO_ONLINE).read_text().strip() == "offline"
    assert "SAFEMEM_ARRIVALS=hold" in (root / record.ENV).read_text().splitlines()
    for name in udevrules.KNOWN:
        assert (root / hold.UDEV_RUN / name).is_symlink()


def test_boot(tmp_path: Path) -> None:
    """A boot that is cut short holds what it was to hold, does not say that it has finished, and counts for the next one."""
    for number, kill in enumerate(kills(tmp_path, "boot", BOOT, "--root", "ROOT")):
        root = undecided(tmp_path / str(number))
        assert run(kill, BOOT, "--root", str(root)).returncode == -signal.SIGKILL, kill
        assert online(root) <= {32, 33}, kill
        assert (root / paths.CRASH_SIZE).read_text() == f"{256 << 20}\n", kill
        env = root / record.ENV
        assert not env.exists() or "SAFEMEM_FINISHED=yes" not in env.read_text().splitlines(), kill
        count = root / paths.ATTEMPTS
        assert not count.exists() or count.read_bytes() == b"\7\0\0\0\1\0\0\0", kill

        assert boot.main(["--root", str(root)]) == 0
        assert (online(root), count.read_bytes()[4]) in (({32, 33}, 1), ({32, 33}, 2)), kill
        assert status(root)[0] == 4, kill


@pytest.mark.parametrize("name", ["everything", "a part"])
def test_release(tmp_path: Path, name: str) -> None:
    """No block is online that no release on the disk names; status says what is held; the same command finishes."""
    part = ["0x100000000-0x11fffffff"] if name == "a part" else []
    words = ["release", *part, "--reason", "guests are gone", "--root"]
    for number, kill in enumerate(kills(tmp_path, name, RELEASE, *words, "ROOT")):
        root = held(tmp_path / str(number))
        assert run(kill, RELEASE, *words, str(root)).returncode == -signal.SIGKILL, kill
        path = root / standing.RELEASES
        known = reader.releases(str(path)) if path.exists() else ()
        code, document = status(root)
        assert document["onlined_by_others"] == [], kill
        assert {item["range"] for item in document["held"]} | set() == set(
            map(str, spans(set(range(32, 40)) - online(root)))
        )
        if online(root):
            folder = history.current(str(root)) or ""
            assert reader.releases(os.path.join(folder, "releases.json"))[0].reason == "guests are gone", kill
        if not known or part:
            assert_held(root)
            assert online(root) <= ({32, 33, 34, 35} if known else set()) and code == 4, kill
        # What udev and the kernel go by is loosened by no part of a release but the whole, and again by nobody.
        assert realroot.main(["--root", str(root)]) == 0

        again = CliRunner().invoke(main, [*words, str(root)])
        assert again.exit_code == 0 or (part and "nothing is held wholly inside" in again.stderr), (kill, again.output)
        assert online(root) == ({32, 33, 34, 35} if part else set(range(32, 40))), kill
        assert status(root)[0] == (4 if part else 0), kill
        assert udevrules.find(str(root)) == []


def spans(numbers: set[int]) -> list[Range]:
    """Return blocks as ranges."""
    found: list[Range] = []
    for number in sorted(numbers):
        if found and found[-1].end == number * BLOCK:
            found[-1] = Range(found[-1].start, (number + 1) * BLOCK)
        else:
            found.append(Range(number * BLOCK, (number + 1) * BLOCK))
    return found


def test_watch(tmp_path: Path) -> None:
    """What was onlined is counted once and taken off, safe memory comes online, nothing else does."""
    for number, kill in enumerate(kills(tmp_path, "watch", WATCH, "ROOT")):
        root = prepared(tmp_path / str(number), "watch")
        assert run(kill, WATCH, str(root)).returncode == -signal.SIGKILL, kill
        assert_held(root)
        assert online(root) <= {35, 40}, kill
        path = root / COUNTS
        before = reader.counts(str(path)) if path.exists() else Counts()
        code, document = status(root)
        assert (35 in online(root)) == bool(document["onlined_by_others"]), kill
        assert code == (64 if 35 in online(root) else 4), kill
        # Taken off again, but not forgotten.
        assert 35 in online(root) or before.incidents == 1, kill

        after = watch.look(str(root), before).counts
        assert (after.incidents, after.onlined, online(root)) == (1, BLOCK, {40}), kill
        assert [item["range"] for item in status(root)[1]["taken_offline"]] == [str(Range(35 * BLOCK, 36 * BLOCK))], (
            kill
        )


@pytest.mark.parametrize("name", ["all pages", "pages of a node"])
def test_release_of_gigantic_pages(tmp_path: Path, name: str) -> None:
    """No page goes that no release on the disk names, none of the others is in programs' reach, and the same command finishes."""
    part = ["--node", "1"] if name == "pages of a node" else []
    words = ["release", *part, "--reason", "guests are gone", "--root"]
    own = {0: 0, 1: 1}
    for number, kill in enumerate(kills(tmp_path, name, RELEASE, *words, "ROOT")):
        root = with_pages(tmp_path / str(number))
        assert run(kill, RELEASE, *words, str(root)).returncode == -signal.SIGKILL, kill
        crash_range_as_large_as_told(root)
        document = status(root)[1]
        assert document["let_go"] == [] and document["onlined_by_others"] == [], kill
        folder = history.current(str(root)) or ""
        path = Path(folder) / "releases.json"
        known = reader.releases(str(path)) if folder and path.exists() else ()
        there = pools(root)
        assert known or there == {0: (3, 3), 1: (2, 2)}, kill
        for node in (0, 1):
            asked = any(node in item.nodes for item in known)
            assert asked or there[node] == ((3, 3), (2, 2))[node], kill
            assert there[node][0] >= own[node], kill
        if part:
            assert gigantic.kept(str(root), standing.read(str(root)).now.gigantic), kill

        again = CliRunner().invoke(main, [*words, str(root)])
        assert again.exit_code == 0 or (part and "nothing that is held on node 1" in again.stderr), (kill, again.output)
        assert pools(root) == ({0: (3, 3), 1: (1, 1)} if part else {0: (0, 0), 1: (1, 0)}), kill
        assert status(root)[0] == (4 if part else 0), kill


def test_hold(tmp_path: Path) -> None:
    """The hold of the real root, killed, is as tight as it was; the second one is whole, and a release takes all of it back."""
    for number, kill in enumerate(kills(tmp_path, "hold", HOLD, "--root", "ROOT")):
        root = prepared(tmp_path / str(number), "hold")
        assert run(kill, HOLD, "--root", str(root)).returncode == -signal.SIGKILL, kill
        assert status(root)[0] == 4
        assert realroot.main(["--root", str(root)]) == 0
        assert_held(root)
        assert udevrules.find(str(root)) == []
        assert CliRunner().invoke(main, ["release", "--reason", "x", "--root", str(root)]).exit_code == 0
        assert not list((root / hold.UDEV_RUN).iterdir()), kill
