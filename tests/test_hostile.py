# SPDX-License-Identifier: MIT
"""What others supply, on its way to a terminal and through every reader: escapes, lines that are forged, damage of any kind."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safemem.boot import main as boot
from safemem.boot import paths, record
from safemem.boot.model import Rule
from safemem.boot.printable import printable
from safemem.cli import main
from safemem.host import doctor, history, incidents, metrics, previous, reader, standing, watch
from safemem.host.incidents import Counts
from safemem.realroot import hold as realroot
from safemem.realroot import maintenance
from tests import kit
from tests.fakes import make_root
from tests.kit import install

#: Clears a screen, forges a line, turns text around, hides it, ends a string of the terminal.
EVIL = "x\x1b[2J\x1b]0;t\x07\r\nsafemem: forged\n<0>safemem: panic: forged\x9b1m\u202e\u2066\u200b\x7f\x00\u2028"
FORGED = ("safemem: forged", "<0>safemem", "forged")
_ALLOWED = "\n\t"


def held(base: Path) -> Path:
    """Return a machine on which a lost handover was held, with everything beside it that commands read."""
    root = make_root(base, offered=True)
    install(
        root,
        otherwise=Rule("otherwise", "online-safe", message="handover lost", enter="maintenance", if_onlined="offline"),
    )
    assert boot.main(["--root", str(root)]) == 0
    (root / "sys/devices/system/memory/memory35/state").write_text("online\n")
    watch.look(str(root), Counts())
    entry = {"time": 5, "reason": "why", "ranges": ["0x100000000-0x107ffffff"], "state": "partly", "forced": False}
    (root / standing.RELEASES).write_text(json.dumps([entry]))
    CliRunner().invoke(main, ["keep", "--root", str(root)])
    history.write(str(root), "releases.json", json.dumps([entry]))
    (root / history.BOOT_ID).write_text("00000002-1111-4222-8333-444455556666\n")
    (root / "sys/fs/pstore").mkdir(parents=True)
    (root / "sys/fs/pstore/dmesg-x-1").write_text(
        "<8>safemem: end action=panic code=decided\n<8>safemem: panic: lost\n"
    )
    os.utime(root / "sys/fs/pstore/dmesg-x-1", (4e9, 4e9))
    return root


def leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value in a document."""
    yield way
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*way, key))


def changed(document: Any, way: tuple[Any, ...], value: Any, *, drop: bool = False) -> Any:
    """Return the document with another value at the end of a way, or without it."""
    if not way:
        return value
    new = copy.deepcopy(document)
    at = new
    for key in way[:-1]:
        at = at[key]
    if drop:
        del at[way[-1]]
    else:
        at[way[-1]] = value
    return new


def poisoned(value: Any) -> Any:
    """Return a document with `EVIL` in each of its free texts."""
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return value + EVIL if isinstance(value, str) and " " in value else value


def run(root: Path, *words: str) -> Result:
    """Run a command on the machine."""
    return CliRunner().invoke(main, [*words, "--root", str(root)])


def assert_fit(result: Result) -> None:
    """Check that what a command said is fit for a terminal, and that no line of it is somebody else's."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    for text in (result.stdout, result.stderr):
        bad = {char for char in text if not char.isprintable() and char not in _ALLOWED}
        assert not bad, (bad, text)
        assert not [line for line in text.split("\n") if line.startswith(FORGED)], text


TEXTS = (
    (["status"], ("run/safemem/decision.json", "run/safemem/releases.json", "run/safemem/watch.json")),
    (["previous"], ("history/decision.json", "history/releases.json", "sys/fs/pstore/dmesg-x-1")),
    (["doctor"], ("run/safemem/decision.json",)),
    (["release", "--reason", "x", "0x0-0xfff"], ("run/safemem/decision.json",)),
    (["watch"], ("run/safemem/decision.json",)),
)


@pytest.mark.parametrize(("words", "names"), TEXTS, ids=[words[0] for words, _ in TEXTS])
def test_nothing_reaches_a_terminal_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], names: tuple[str, ...]
) -> None:
    """Whatever record, releases, counts, history, pstore, command line, rules and processes hold, each line is ours."""
    root = held(tmp_path)
    monkeypatch.setattr(watch, "run", lambda *_: None)
    (root / "etc/udev/rules.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/udev/rules.d/x\n<0>safemem: forged\x1b[2J.rules").write_text(f'SUBSYSTEM=="memory", RUN+="{EVIL}"')
    (root / paths.AUTO_ONLINE).write_text("online\x1b[2J\n")
    (root / "proc/iomem").write_bytes(b"00001000-0009fbff : \x1b[2J\nx\x1b]0;\x07\n")
    folder = history.previous(str(root)) or ""
    for name in names:
        path = Path(folder, name[8:]) if name.startswith("history") else root / name
        if path.suffix == ".json":
            document = json.loads(path.read_text())
            documents = [poisoned(document)]
            if "decision" in document:
                for way in leaves(document):
                    if isinstance(value_at(document, way), str):
                        documents.append(changed(document, way, EVIL))
            kept = path.read_text()
            for bad in documents:
                path.write_text(json.dumps(bad))
                assert_fit(run(root, *words))
                if words[0] in ("status", "previous", "doctor"):
                    said = run(root, *words, "--format", "json")
                    assert not said.stdout or json.loads(said.stdout)
            path.write_text(kept)
        else:
            path.write_text(path.read_text().replace("lost", EVIL.replace("\n", "\x0b")))
            os.utime(path, (4e9, 4e9))
            assert_fit(run(root, *words))


def value_at(document: Any, way: tuple[Any, ...]) -> Any:
    """Return what is at the end of a way."""
    for key in way:
        document = document[key]
    return document


@pytest.mark.parametrize("options", [[], ["--explain"], ["--matrix"]], ids=["plain", "explain", "matrix"])
def test_a_foreign_capture(tmp_path: Path, options: list[str]) -> None:
    """`simulate` shows sources, reasons, notes and names of a capture without obeying them, each text in turn."""
    root = held(tmp_path)
    document = json.loads(reader.capture_text(standing.read(str(root)).then))
    path = tmp_path / "capture.json"
    for way in leaves(document):
        if isinstance(value_at(document, way), str):
            path.write_text(json.dumps(changed(document, way, EVIL)))
            words = ["simulate", str(kit.POLICY), "--state", str(path), *options]
            assert_fit(CliRunner().invoke(main, words))
            if not options:
                said = CliRunner().invoke(main, [*words, "--format", "json"])
                assert not said.stdout or json.loads(said.stdout)


@pytest.mark.parametrize(
    "words",
    [
        ["check", "{}.toml"], ["check", "{}"], ["check", "keys.toml"], ["diff", "{}.toml", "good.toml"],
        ["diff", "good.toml", "{}looser.toml"], ["test", "{}/a.cases.toml"], ["test", "--threshold", "100", "{}/a.cases.toml"],
        ["compile", "good.toml", "-o", "{}.json"], ["schema", "-o", "nowhere/{}"], ["simulate", "good.toml", "--set", "handover={}"],
        ["release", "{}", "--reason", "x"], ["status", "--root", "{}"], ["initramfs", "check", "{}.img"], ["initramfs", "check", "named.img"],
    ],
    ids=lambda words: " ".join(words).format("x"),
)  # fmt: skip
def test_names_of_files_and_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """A policy, a case or an image from elsewhere says nothing in our name, whatever it and its files are called."""
    monkeypatch.chdir(tmp_path)
    name = EVIL.replace("/", "").replace("\0", "")
    good = kit.POLICY.read_text()
    for file, text in (
        ("good.toml", good),
        ("keys.toml", f"{json.dumps(name)} = 1\n{good}"),
        (f"{name}.toml", good),
        (f"{name}looser.toml", good.replace('action = "panic"', 'action = "online-all"', 1)),
        (f"{name}/good.toml", good),
        (
            f"{name}/a.cases.toml",
            kit.POLICY.with_suffix(".cases.toml").read_text().replace(kit.POLICY.name, "good.toml"),
        ),
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    (tmp_path / f"{name}.img").write_bytes(kit.archive(kit.base()))
    named = {**kit.base(), f"usr/lib/safemem/policies/{name}.json": kit.base()["usr/lib/safemem/policy.json"]}
    (tmp_path / "named.img").write_bytes(kit.archive(named))

    found = CliRunner().invoke(main, [word.format(name) for word in words], color=True)
    assert not isinstance(found.exception, Exception) or isinstance(found.exception, SystemExit)
    text = re.sub(r"\x1b\[[0-9;]*m", "", found.output)  # what we colour
    assert not [char for char in text if not char.isprintable() and char not in _ALLOWED]
    assert not [line for line in text.splitlines() if line.startswith(FORGED)]


def test_what_is_said_at_the_login(tmp_path: Path) -> None:
    """The message of maintenance is shown before anybody has logged in: a policy's words are words in it."""
    root = held(tmp_path)
    document = json.loads((root / record.RECORD).read_text())
    document["decision"] |= {"message": EVIL, "rule": EVIL}
    (root / record.RECORD).write_text(json.dumps(document))
    for line in maintenance.text(str(root)):
        assert line.isprintable()


@given(st.text())
def test_printable(text: str) -> None:
    """One line, nothing that is not shown, what was fit already as it was, and the rest as Python would write it."""
    made = printable(text)
    assert made.isprintable()
    assert made == text or not text.isprintable()
    assert all(printable(char) in (char, repr(char)[1:-1]) for char in text)


# ---- Readers

#: Values that have broken a reader, or could.
ABSURD: list[Any] = [None, True, -1, 0, 1 << 63, 1 << 64, 1 << 4000, 1.5, "", "x", "\ud800", [], {}, [[]], [None], {"x": 1}, "9" * 5000,
          "0x0-0x" + "f" * 16, "0x" + "f" * 4000, "unknown", "online-all", "1e999", "NaN"]  # fmt: skip
RAW = [
    "",
    "1e999",
    "-1e999",
    "[" * 50_000,
    '{"a":' * 50_000,
    "NaN",
    "null",
    "[]",
    "{}",
    '"',
    "\ufeff{}",
    "9" * 5000,
    "\x00",
]
CODES = {0, 1, 3, 4, 5, 6, 64}
FILES = {
    "record": "run/safemem/decision.json",
    "releases": "run/safemem/releases.json",
    "counts": "run/safemem/watch.json",
    "kept": "decision.json",
    "kept releases": "releases.json",
    "endings": "endings.json",
}
COMMANDS = (["status"], ["status", "--format", "json"], ["previous"], ["previous", "--format", "json"], ["keep"],
            ["release", "--reason", "x", "0x0-0xfff"])  # fmt: skip


def assert_told(root: Path, *, all_of_them: bool) -> None:
    """Check that every command ends with a code of its own, whatever a file holds."""
    for words in COMMANDS if all_of_them else COMMANDS[:4]:
        result = run(root, *words)
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exc_info)
        assert result.exit_code in CODES, words
    with contextlib.suppress(standing.NoDecision):
        watch.look(str(root), Counts())
    with contextlib.suppress(standing.NoDecision):
        metrics.text(standing.read(str(root))).encode()
    assert maintenance.text(str(root)) and realroot.main(["--root", str(root)]) in (0, 1)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a machine whose files are damaged in turn."""
    return held(tmp_path_factory.mktemp("machine"))


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_reader_raises_but_its_own_error(machine: Path, data: st.DataObject) -> None:
    """Records, releases, counts and what is kept of boots, changed at any depth: a code that says so, never a traceback."""
    name = data.draw(st.sampled_from(list(FILES)))
    folder = history.previous(str(machine)) or ""
    path = machine / FILES[name] if FILES[name].startswith("run") else Path(folder, FILES[name])
    kept = {
        item: item.read_bytes()
        for item in [*(machine / "run/safemem").iterdir(), *Path(folder).iterdir()]
        if item.is_file()
    }
    try:
        document = json.loads(path.read_text())
        if data.draw(st.integers(0, 9)) == 0:
            path.write_text(data.draw(st.sampled_from(RAW) | st.text()), encoding="utf-8", errors="surrogatepass")
        else:
            for _ in range(data.draw(st.integers(1, 3))):
                way = data.draw(st.sampled_from(list(leaves(document))))
                drop = bool(way) and data.draw(st.booleans())
                document = changed(document, way, data.draw(st.sampled_from(ABSURD)), drop=drop)
            path.write_text(json.dumps(document))
        assert_told(machine, all_of_them=data.draw(st.integers(0, 4)) == 0)
    finally:
        for item, content in kept.items():
            item.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_each_absurd_value_in_each_place(machine: Path, name: str) -> None:
    """Every value of every file is made absurd once, and left out once."""
    folder = history.previous(str(machine)) or ""
    path = machine / FILES[name] if FILES[name].startswith("run") else Path(folder, FILES[name])
    kept = path.read_bytes()
    document = json.loads(kept)
    draw = random.Random(name)
    try:
        for way in leaves(document):
            path.write_text(json.dumps(changed(document, way, draw.choice(ABSURD))))
            for words in (["status"], ["previous"]):
                result = run(machine, *words)
                assert result.exit_code in CODES and "Traceback" not in result.output, (way, result.exc_info)
    finally:
        path.write_bytes(kept)


def test_a_fraction_in_each_word(machine: Path) -> None:
    """No word of a rule is a number with a point, and what says so knows no such number."""
    path = machine / record.RECORD
    kept = path.read_bytes()
    document = json.loads(kept)
    try:
        for way in leaves(document["decision"]):
            path.write_text(json.dumps(changed(document, ("decision", *way), 1.5)))
            result = run(machine, "status")
            assert result.exit_code in CODES and isinstance(result.exception, SystemExit), (way, result.exc_info)
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize("text", RAW)
def test_raw_damage(machine: Path, text: str) -> None:
    """What is not even JSON as we write it."""
    folder = history.previous(str(machine)) or ""
    for name in FILES.values():
        path = machine / name if name.startswith("run") else Path(folder, name)
        kept = path.read_bytes()
        path.write_text(text)
        try:
            assert_told(machine, all_of_them=False)
        finally:
            path.write_bytes(kept)


def test_what_a_platform_kept(tmp_path: Path) -> None:
    """Parts with numbers of any length, times beyond any calendar, bytes of any kind."""
    root = make_root(tmp_path)
    folder = root / "sys/fs/pstore"
    folder.mkdir(parents=True)
    for name, data in {
        "dmesg-1": f"Panic#1 Part{'9' * 4400}\n<8>safemem: end action=panic code=x\n".encode(),
        "dmesg-2": b"\xff\xfe\x00safemem: end action=panic code=x\n",
        "dmesg-3": b"".join(bytes([n]) for n in range(256)) * 99,
        "console-x": string.printable.encode(),
    }.items():
        (folder / name).write_bytes(data)
        os.utime(folder / name, (8e10, 8e10))
    result = run(root, "previous")
    assert result.exit_code == 5 and isinstance(result.exception, SystemExit)
    assert previous.last_words(str(root)) is not None
    for seconds in (1 << 62, -(1 << 62)):
        assert "s after 1970" in _utc(seconds)


def _utc(seconds: float) -> str:
    from safemem.render.text import utc

    return utc(seconds)


@pytest.mark.parametrize("text", ["MemTotal:\n", "MemTotal: x kB\n", "MemTotal: " + "9" * 5000 + " kB\n", ":\n", ""])
def test_doctor_without_a_number(tmp_path: Path, text: str) -> None:
    """A file of the kernel's that says nothing costs its finding, not the others'."""
    root = held(tmp_path)
    (root / "proc/meminfo").write_text(text)
    assert doctor.examine(str(root))


def test_counts_of_any_kind(tmp_path: Path) -> None:
    """`watch` begins anew with counts that it cannot read, and works on."""
    root = held(tmp_path)
    for text in RAW:
        (root / incidents.COUNTS).write_text(text)
        with pytest.raises(reader.Invalid):
            reader.counts(str(root / incidents.COUNTS))
        watch.look(str(root), Counts())
