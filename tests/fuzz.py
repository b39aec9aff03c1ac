# SPDX-License-Identifier: MIT
"""Every parser of the project as a fuzz target: bytes in, and out comes a value or the parser's own error.

    python -m tests.fuzz SECONDS [TARGET...]
    python -m tests.fuzz keep TARGET NAME FILE

With atheris installed that is a search guided by coverage, one process a target; without, what is in tests/corpus is
changed at random. What a target raises beyond its own errors, or takes seconds for, fails, and the input is printed. A
corpus is a file of the target's name, a line an input: its name, and its bytes packed, in hexadecimal. What failed once
stays there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import random
import subprocess
import sys
import tempfile
import time
import tomllib
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from safemem.boot import (
    asked,
    attempts,
    cmdline,
    compiled,
    conditions,
    console,
    engine,
    fdt,
    memory,
    pagewords,
    paths,
    plainjson,
    probe,
    ranges,
    stake,
    token,
)
from safemem.boot import record as record_files
from safemem.boot.model import FACTS, UNKNOWN, Condition, Fact, Refused, Term
from safemem.boot.printable import printable
from safemem.host import configured, history, incidents, previous, reader, standing
from safemem.initramfs import (
    bootentry,
    bootkept,
    bootoptions,
    check,
    grubmenu,
    grubrun,
    grubscript,
    initscript,
    kernelname,
    packed,
    proven,
    uki,
    unpack,
    variants,
)
from safemem.initramfs.store import NoKernel
from safemem.outgoing import config, expected, image, nextkernel, nextline, preflight, profile, running
from safemem.outgoing.kernel import Kernel, Speaks
from safemem.policy import casefile, cases, compiler, imagined, load, missing, pieces, places
from safemem.realroot import alongside, maintenance, onlining, runs, shelltext, udevrules, units
from tests.fakes import machine, make_root, outgoing, pci
from tests.kit import policy

CORPUS = Path(__file__).resolve().parent / "corpus"
#: Seconds of processor time and bytes of Python's memory that one small input may take.
SECONDS, BYTES = 2.0, 128 << 20
#: Inputs are not longer; a target that unpacks is bounded by itself.
LONGEST = 1 << 16


class Target(NamedTuple):
    """One parser, or a few that read the same."""

    run: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]  #: its own
    covers: tuple[Callable[..., object], ...]


@functools.cache
def _root() -> Path:
    """Return a machine with an accepted handover, made once a process; targets replace its files."""
    folder = Path(tempfile.mkdtemp(prefix="safemem-fuzz-"))
    root = make_root(folder, offered=True, kho_in=True, crash="01000000-24ffffff", offline="32-33", online="0-1")
    pci(root, virtual=True)
    efi = root / paths.ATTEMPTS
    efi.parent.mkdir(parents=True)
    efi.write_bytes(bytes(8))
    return root


def _with(name: str, data: bytes, call: Callable[[str], object]) -> object:
    """Call with the root of a machine in which the file `name` holds `data`, and put back what was there."""
    file = _root() / name
    before = file.read_bytes() if file.exists() else None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    try:
        return call(str(_root()))
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _machine(root: str) -> None:
    """Read the machine, decide, and read back what a capture of it says."""
    snapshot = probe.read_snapshot(root)
    engine.decide(policy(otherwise="online-safe"), snapshot)
    assert reader.snapshot_from_text(reader.capture_text(snapshot), "capture").facts == snapshot.facts


#: What a target that takes a whole machine may replace; the first byte of the input chooses.
KERNEL = (
    paths.CMDLINE, paths.IOMEM, paths.BLOCK_SIZE, paths.AUTO_ONLINE, paths.CRASH_SIZE, paths.RELEASE, paths.ARCH, paths.ATTEMPTS,
    paths.DMI_VENDOR, paths.CPUINFO, paths.HYPERVISOR, paths.CONFIG[0], paths.LOAD_LIMIT, f"{paths.MEMORY}/memory32/state",
    f"{paths.SETUP_DATA}/1/type", f"{paths.KHO[1]}/in/fdt", f"{paths.KHO[1]}/in/sub_fdts/kexec-metadata",
    f"{paths.KHO[1]}/out/scratch_phys", f"{paths.KHO[1]}/out/scratch_len", paths.BOOT_PARAMS, paths.MEMINFO, paths.BOOT_VERSION,
    f"{paths.PCI_DEVICES}/0000:00:04.0/config", f"{paths.PCI_DEVICES}/0000:00:04.0/vendor",
)  # fmt: skip


def _kernel(data: bytes) -> None:
    _with(KERNEL[data[0] % len(KERNEL)] if data else KERNEL[0], data[1:], _machine)


def _cmdline(data: bytes) -> None:
    text = _text(data)
    for _, value in cmdline.arguments(text):
        cmdline.boolean(value)
        assert cmdline.unsealed(cmdline.sealed(value.replace(";", ""))) == (value.replace(";", ""), True)
        with contextlib.suppress(ValueError):
            cmdline.unsealed(value)
    words = pagewords.read(cmdline.split(text)[0])
    for pool in words.pools.values():
        pagewords.spread(pool, {0: 3, 1: 5})
    pagewords.merged(words, 1 << 30, ((0, 1),))
    cmdline.argument(text, "safemem.guard")
    attempts.read("/nowhere", dict(cmdline.arguments(text)))
    probe.overrides(dict(cmdline.arguments(text)))
    assert stake.told(cmdline.arguments(text)).value in FACTS["preserved"][1]
    stake.old_words(text)
    assert len(token.told(text, [])) in (0, 64)
    _with(paths.CMDLINE, data, _machine)


def _amounts(data: bytes) -> None:
    text = _text(data)
    for parse in (ranges.parse_size, ranges.parse_range, cmdline.memparse, functools.partial(ranges.parse_limit, whole=1 << 50)):  # fmt: skip
        try:
            found = parse(text)
        except ValueError:
            continue
        if isinstance(found, ranges.Range):
            assert ranges.parse_range(str(found)) == found
        else:
            assert ranges.size_text(found)
    body = text.partition(";crc32=")[0]
    for guard in (text, f"{body};crc32={zlib.crc32(body.encode('utf-8', 'surrogateescape')):08x}"):
        try:
            asked.parse(guard)
        except ValueError:
            continue


def _facts(data: bytes) -> None:
    text = _text(data)
    bound, _, release = text.partition(" ")
    assert conditions.order_key(release) is None or conditions.order_key(release) == conditions.order_key(release)
    for op in ("is", "glob", *((">=", "<") if conditions.is_version(bound) else ())):
        for value in (release, UNKNOWN, 7, (release,)):
            conditions.matches(Condition("kernel", ((Term(op, bound),),)), Fact(value, ""))


def _said(data: bytes) -> None:
    """What others wrote is said in lines that the kernel takes, without a character that a terminal obeys."""
    for line in (*console.lines(_text(data)), printable(_text(data))):
        assert line.isprintable() or not line
    assert all(len(line.encode()) <= console.LONGEST for line in console.lines(_text(data)))


def _body(data: bytes) -> None:
    """A compiled policy whose digest fits: what a reader says that trusts no digest."""
    body = plainjson.loads(_text(data))
    document = {"format": 1, "policy": body}
    try:
        text = compiled.canonical({**document, "digest": compiled.digest(document)})
    except TypeError:  # JSON of ours has no fractions
        return
    compiled.load(text + b"\n", "p")


def _toml(data: bytes) -> None:
    found = load.parse(data, "p")
    assert compiled.load(compiler.dump(found.policy), "p") == found.policy


def _places(data: bytes) -> None:
    text = _text(data)
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError):
        return
    places.find(text)


def _cases(data: bytes) -> None:
    file = _root() / "x.cases.toml"
    file.write_bytes(data)
    (_root() / "p.toml").write_bytes(corpus("policy")["plain.toml"])
    missing.missing(cases.run(file))


def _udev(data: bytes) -> None:
    for rule in udevrules.parse(_text(data)):
        udevrules.onlines(rule)


def _onlining(data: bytes) -> None:
    text = _text(data)
    for about in (False, True):
        onlining.in_script(text, about=about)
    onlining.is_about_memory(text)
    onlining.in_value(text)
    shelltext.started(text)
    shelltext.commands_of(shelltext.located(text, "opt/x"))
    assert shelltext.opened(shelltext.closed(text)) == shelltext.opened(text)
    onlining.speaks(text)
    shelltext.unresolved(text)
    onlining.is_shell(text)
    runs.units_started(text)
    configured.commands_in(text, "up")
    for line in text.splitlines():
        onlining.is_memory(line)
        onlining.in_programs(line)
        configured.tmpfiles_line(line)
    units.lines(text)
    alongside.kept(alongside.write(alongside.kept(text)))


def _reader(data: bytes) -> None:
    text = _text(data)
    for read in (reader.snapshot_from_text, reader.record_from_text, reader.state_from_text):
        try:
            read(text, "f")
        except reader.Invalid:
            continue


def _counted(data: bytes) -> None:
    for read, name in ((reader.releases, "releases.json"), (reader.counts, "watch.json")):
        try:
            _with(f"run/{name}", data, lambda root, read=read, name=name: read(f"{root}/run/{name}"))  # type: ignore[misc]
        except reader.Invalid:
            continue


def _standing(data: bytes) -> None:
    for name in (record_files.RECORD, standing.RELEASES, incidents.COUNTS):
        try:
            _with(name, data, standing.read)
        except standing.NoDecision:
            continue
    _with(record_files.RECORD, data, maintenance.text)
    _with(record_files.RECORD, data, lambda root: attempts.handed_on(root, Fact(1, "test")))


def _previous(data: bytes) -> None:
    boot = f"{history.FOLDER}/20260101T000000Z-00000000-0000-4000-8000-000000000000"
    for name in ("decision.json", "releases.json"):
        _with(f"{boot}/{name}", data, previous.read)
    _with(f"{previous.PSTORE}/dmesg-efi-1", data, previous.last_words)


def _memory(data: bytes) -> None:
    _with(paths.IOMEM, data, memory.iomem)
    _with(paths.BOOT_PARAMS, data, memory.initrd_size)
    _with(paths.BOOT_PARAMS, data, memory.firmware_memory)


def _init(data: bytes) -> None:
    script = initscript.read(initscript.text(data) or _text(data))
    initscript.before(script.commands)
    for at in range(min(len(script.commands), 100)):
        initscript.looks(script.commands[at:], 42)


def _image(data: bytes) -> None:
    uki.unstarts(_text(data))
    check.inside(data)
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        nextkernel.build(file.name)


#: What a kernel shows of what it would hand over; the first byte of the input chooses.
OUTGOING = (
    paths.NOTES,
    *(f"{paths.KHO[1]}/{name}" for name in ("out/fdt", "out/sub_fdts/LUO", "out/sub_fdts/memblock")),
)
_NEXT = Kernel(
    "/nowhere", "bzImage", arch="x86_64", release="7.3.4", page_size=4096, kho=Fact("yes", ""), luo=Fact("yes", ""), config={},
    speaks=Speaks(frozenset({"kho-v4"}), frozenset({"luo-v5"})),
)  # fmt: skip


def _images(path: str) -> tuple[Kernel, ...]:
    return (_NEXT._replace(path=path),)


@functools.cache
def _sender() -> running.Running:
    """Return a kernel that hands over, with room for a guard."""
    return running.read(str(outgoing(machine(Path(tempfile.mkdtemp(prefix="safemem-fuzz-"))), "ab" * 20)), _images)


def _outgoing(data: bytes) -> None:
    name = OUTGOING[data[0] % len(OUTGOING)] if data else OUTGOING[0]
    _with(
        name, data[1:], lambda root: preflight.examine(running.read(root, _images), preflight.Asked((_NEXT,), "kho=on"))
    )


def _nextline(data: bytes) -> None:
    """Whatever the next command line is, without an initrd nobody knows whether the kexec will come up."""
    text = _text(data)
    decided = expected.Policies(policy(otherwise="online-safe", allow_cmdline_override=True))
    report = preflight.examine(_sender(), preflight.Asked((_NEXT,), text, policies=decided))
    assert report.verdict != "compatible"
    with contextlib.suppress(ValueError):
        nextline.safe_region(text)


def _kernel_image(data: bytes) -> None:
    """A kernel image: no version comes out that does not stand in what went in, or was packed in it."""
    for kernel in image.read_bytes(data, "k", "/nowhere"):
        assert kernel.release and kernel.form
        assert kernel.kho.value != "yes" or kernel.speaks.tree
    config.options(_text(data))


def _grub_menu(data: bytes) -> None:
    """Whatever a menu holds, its ways end, each with a kernel; a word that is found in a line stands in it."""
    text = _text(data)
    grubscript.parse(text)
    menu = grubmenu.read("/nowhere", Path("/nowhere/boot/grub/grub.cfg"), data, {})
    assert all(boot.state.kernel for boot in menu.boots) and grubrun.parsed(data) is not None
    assert all(name in text for name in bootkept.stubs(text))
    assert all(why for _, why in bootoptions.undone(text))


def _boot_entry(data: bytes) -> None:
    """Whatever entries hold, one order of them comes out, and of those in it one is taken."""
    head, _, rest = data.partition(b"\n")
    name = _text(head).replace("/", "-") or "x"
    entries = [
        bootentry.parse(data, f"{name}.conf"),
        bootentry.parse(rest, "a+3-1.conf"),
        bootentry.unified("b.efi", data),
    ]
    said, block = bootentry.settings(data), bootentry.environment(data)
    loader = bootentry.Loader(bootentry.variable(data), (said.get("preferred", ""),), (*block.values(),))
    order = bootentry.ordered(entries)
    assert sorted(map(repr, order)) == sorted(map(repr, bootentry.by_name(entries))) == sorted(map(repr, entries))
    assert bootentry.ordered(order) == order and bootentry.taken(order, loader) in entries
    kernelname.look(data)


TARGETS = {
    "fdt": Target(fdt.parse, (fdt.FdtError,), (fdt.parse,)),
    "kernel": Target(_kernel, (), (probe.read_snapshot,)),
    "cmdline": Target(_cmdline, (), (cmdline.split, cmdline.arguments, cmdline.argument, cmdline.boolean, cmdline.sealed, cmdline.unsealed, stake.old_words, token.told)),
    "amounts": Target(
        _amounts, (), (ranges.parse_size, ranges.parse_limit, ranges.parse_range, cmdline.memparse, asked.parse)
    ),
    "facts": Target(_facts, (), (conditions.is_version, conditions.matches)),
    "said": Target(_said, (), (console.lines, printable)),
    "json": Target(lambda data: plainjson.loads(_text(data)), (ValueError, RecursionError), (plainjson.loads,)),
    "compiled": Target(lambda data: compiled.load(data, "p"), (compiled.Invalid,), (compiled.load,)),
    "names": Target(lambda data: compiled.names(data, "p"), (compiled.Invalid,), (compiled.names,)),
    "proven": Target(lambda data: proven.load(data, "p"), (compiled.Invalid,), (proven.load,)),
    "compiled-body": Target(_body, (compiled.Invalid, ValueError, RecursionError), (compiled.load,)),
    "policy": Target(_toml, (load.PolicyError,), (load.parse, load.decode, load.toml)),
    "places": Target(_places, (), (places.find,)),
    "boot-entry": Target(_boot_entry, (), (bootentry.lines, bootentry.parse, bootentry.settings, bootentry.variable, bootentry.environment, kernelname.look)),
    "grub-menu": Target(_grub_menu, (), (grubscript.parse, grubrun.parsed, bootoptions.undone, bootkept.stubs)),
    "cases": Target(_cases, (load.PolicyError, OSError, Refused), (casefile.read, cases.run, pieces.find, missing.missing)),
    "imagined": Target(lambda data: imagined.imagine(_text(data)), (imagined.Unclear,), (imagined.imagine,)),
    "udev": Target(_udev, (), (udevrules.parse,)),
    "onlining": Target(_onlining, (), (onlining.in_script, onlining.is_about_memory, onlining.in_value, onlining.speaks, onlining.is_shell, runs.units_started, configured.commands_in, shelltext.started, shelltext.words_of, shelltext.lines_of, shelltext.statements, shelltext.commands_of, shelltext.located, shelltext.unresolved, shelltext.closed, shelltext.opened, units.lines, alongside.kept)),
    "image": Target(_image, (packed.Unreadable, compiled.Invalid), (check.inside, check.judged, unpack.find, unpack.look, unpack.unpack, uki.initrds, uki.unstarts, variants.refused, variants.refused_within, variants.untold, variants.pieces, packed.lzo_blocks, packed.pieces, packed.whole, nextkernel.build)),
    "init": Target(_init, (), (initscript.text, initscript.read)),
    "kernel-image": Target(_kernel_image, (NoKernel,), (image.read_bytes, config.options)),
    "record": Target(_reader, (), (reader.snapshot_from_text, reader.record_from_text, reader.state_from_text)),
    "counts": Target(_counted, (), (reader.releases, reader.counts)),
    "standing": Target(_standing, (), (standing.read, maintenance.text, attempts.handed_on)),
    "previous": Target(_previous, (), (previous.read, previous.last_words)),
    "outgoing": Target(_outgoing, (), (running.read,)),
    "nextline": Target(_nextline, (), (nextline.safe_region,)),
    "profile": Target(lambda data: profile.parse(data, "p"), (load.PolicyError,), (profile.parse,)),
    "memory": Target(_memory, (ValueError,), (memory.iomem, memory.firmware_memory)),
}  # fmt: skip


class Failed(Exception):
    """A target did not keep its word; the message has the input."""


def one(name: str, data: bytes) -> None:
    """Give `data` to a target. Raises Failed."""
    target = TARGETS[name]
    started = time.process_time()
    try:
        target.run(data)
    except target.errors:
        pass
    except Exception as error:
        raise Failed(f"{name}: {type(error).__name__}: {error}: {data!r}") from error
    took = time.process_time() - started
    if took > SECONDS:
        raise Failed(f"{name}: {took:.1f} s: {data!r}")


def corpus(name: str) -> dict[str, bytes]:
    """Return the inputs that are kept for a target, by name."""
    file = CORPUS / f"{name}.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    return {line.split()[0]: zlib.decompress(bytes.fromhex(line.split()[1])) for line in lines}


def keep(name: str, label: str, data: bytes) -> None:
    """Put one more input into the corpus of a target, or another one in its place."""
    kept = corpus(name) | {label: data}
    lines = [f"{key} {zlib.compress(kept[key], 9).hex()}\n" for key in sorted(kept)]
    (CORPUS / f"{name}.txt").write_text("".join(lines))


#: Bytes that parsers here trip over.
WORDS = (
    b"", b"\0", b"\xff", b"-", b"-1", b"0", b"1e999", b"0x", b"1" * 5000, b"9" * 19, b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0",
    b"\n", b"\r", b" ", b"\t", b'"', b"'", b"\\", b"\\u0000", b"\\ud800", b"\x1b[2J", b"[", b"]", b"{", b"}", b"[" * 3000, b'{"a":' * 2000,
    b"null", b"true", b"1.5", b"NaN", b"{}", b"[]", b'""', b"=", b",", b"#", b"..", b"*", b"?", b"%", b"\xe2\x80\xae", b"unknown",
    "²".encode(), "٣".encode(),
)  # fmt: skip


def mutated(source: random.Random, seeds: list[bytes]) -> bytes:
    """Return one of `seeds`, changed in a few places."""
    data = bytearray(source.choice(seeds))
    for _ in range(source.choice((1, 1, 2, 3, 8))):
        at = source.randrange(len(data) + 1)
        end = min(len(data), at + source.choice((0, 1, 1, 2, 4, 8, 40)))
        kind = source.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << source.randrange(8)
        elif kind == 1:
            data[at:end] = source.choice(WORDS)
        elif kind == 2:
            data[at:end] = source.randbytes(end - at)
        elif kind == 3:
            data[at:at] = data[at:end] * source.choice((1, 2, 100))
        elif kind == 4:
            other = source.choice(seeds)
            start = source.randrange(len(other) + 1)
            data[at:end] = other[start : start + source.choice((4, 40, 400))]
        else:
            del data[at : end if source.randrange(4) else len(data)]
    return bytes(data[:LONGEST])


def inputs(name: str, seed: int) -> Iterator[bytes]:
    """Yield the corpus, then changes of it without end."""
    seeds = list(corpus(name).values())
    yield from seeds
    source = random.Random(f"{name} {seed}")
    while True:
        yield mutated(source, seeds)


def search(name: str, seconds: float, seed: int) -> int:
    """Give a target inputs for so long; return how many. Raises Failed."""
    end, count = time.monotonic() + seconds, 0
    for data in inputs(name, seed):
        if count >= len(corpus(name)) and time.monotonic() > end:
            break
        one(name, data)
        count += 1
    return count


def largest(name: str, seed: int) -> int:
    """Return the most bytes of Python's memory that a target took for any of a hundred inputs."""
    tracemalloc.start()
    try:
        for _, data in zip(range(100), inputs(name, seed), strict=False):
            one(name, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main(words: list[str]) -> int:
    """Search all targets, or those that are named, for so many seconds together, and say the counts; or keep an input."""
    if words[0] == "keep":
        keep(words[1], words[2], Path(words[3]).read_bytes())
        return 0
    names = words[1:] or list(TARGETS)
    seconds, bad = float(words[0]) / len(names), 0
    guided = importlib.util.find_spec("atheris") is not None
    for name in names:
        if guided:
            print(f"{name}, guided", flush=True)
            bad += subprocess.run([sys.executable, "-m", "tests.guided", str(seconds), name]).returncode != 0
            continue
        seed = random.randrange(1 << 32)
        try:
            print(f"{name}: {search(name, seconds, seed):,} inputs from seed {seed}", flush=True)
        except Failed as error:
            bad += 1
            print(f"{error}\n  seed {seed}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
