# SPDX-License-Identifier: MIT
"""Read the machine once into a `Snapshot`, and say where each fact was read.

Every path hangs off `root`. Nothing here raises on what a kernel shows or does not show: what
cannot be read is the fact `unknown`, with the reason kept. The kernel log is never read; it is
no evidence (older kernels print `disabling KHO revival` after a harmless kexec).
"""

from __future__ import annotations

from safemem.boot import attempts, crashkernel, devices, files, guards, memory, paths, stake, virt, zeropage
from safemem.boot.asked import ARGUMENT
from safemem.boot.cmdline import arguments, boolean, last, unsealed
from safemem.boot.files import reason
from safemem.boot.model import FACTS, UNKNOWN, Fact, Note, Snapshot
from safemem.boot.ranges import Range, parse_range

#: The last menu of every configuration that Kconfig writes (Linux 5.2 and later).
_CONFIG_END = b"# end of Kernel hacking"
_BUSY, _IO = 16, 5

#: `safemem.safe=`; with a check sum it was written by handover-args.
_SAFE = stake.SAFE
_TOKEN = stake.TOKEN
#: Codes of notes that say that nobody knows what there is to hold; the last is of a look afterwards (`apply`).
_UNSEEN = ("cmdline-unreadable", "guard-unknown", "blocks-unreadable", "block-unreadable", "not-looked-at")
#: What nobody but handover-args writes, for the command line of a kexec that hands over.
_FOR_A_KEXEC = (ARGUMENT, attempts.ARGUMENT, stake.ARGUMENT, _TOKEN)


def read_snapshot(root: str = "/", *, open_luo: bool = False, token: bool = False) -> Snapshot:
    """Return what the machine under `root` shows now. Writes nothing but what `token` says, mounts nothing.

    `open_luo` opens and closes `/dev/liveupdate`, which makes the kernel deserialise every
    session and has one owner at a time: only where the policy asks for it. `token` opens it too, where the command line
    names a token, takes safemem's own session out of LUO, and writes down what it found: the boot program's alone. Without
    it, what the boot program wrote down is repeated.
    """
    notes: list[Note] = []
    cmdline = command_line(root)
    if cmdline is None:
        text = f"{paths.CMDLINE} cannot be read: kernel arguments are unknown"
        notes.append(Note("cmdline-unreadable", text))
    # Split once.
    pairs = None if cmdline is None else arguments(cmdline)
    asked = None if pairs is None else last(pairs)
    config = _Config(root)
    offered = zeropage.offered(root)
    handover = _handover(root, offered, asked, config)
    preserved, safe = stake.told(pairs), _cmdline_safe(asked or {}, notes)
    if (
        cmdline is not None
        and _TOKEN in (asked or {})
        and (token or files.exists(root, paths.TOKEN_TAKEN) is not False)
    ):
        from safemem.boot import token as through_luo  # only where the policy asks for it, and there may be one

        wanted = through_luo.told(cmdline, notes)
        if wanted:
            answer = through_luo.look(root, wanted) if token else through_luo.recall(root, wanted)
            handover = through_luo.weigh(answer, offered, handover, _kho_shows(root))
            if answer.said == "wrong":
                # The line was written for another kexec, and so was what else it says of memory.
                preserved = Fact(UNKNOWN, paths.LUO_DEVICE, answer.why)
                notes += (
                    [Note("safe-ignored", f"safemem.safe= on the command line is ignored: {answer.why}")]
                    if safe
                    else []
                )
                safe = ()
            # What LUO answered to whoever opened it is a fact as well. It deserialises once, and repeats an error.
            open_luo = open_luo or token
    kho = _kho(root, asked, config)
    size, blocks, unread = memory.blocks(root)
    guard, crash, reserved, gigantic = guards.read(root, asked, size, blocks)
    if guard.value == UNKNOWN:
        notes.append(
            Note("guard-unknown", f"whether a guard is in force cannot be told: {guard.source}: {guard.reason}")
        )
    if reserved and handover.value == UNKNOWN:
        handover = handover._replace(reason=f"{handover.reason}; it was not accepted: the guard is in force")
    if handover.value == "accepted" and (reserved or (crash.value == UNKNOWN and crashkernel.may_be_reserved(root))):
        # While an accepted handover is set up, no kernel can reserve a crash range (seen on 7.2 and 7.3, x86 and arm64).
        # Gigantic pages it may have: since 7.3 they come from every GiB that holds nothing preserved.
        state = "is" if reserved else "may be"
        what = "the token" if handover.source == paths.LUO_DEVICE else "an incoming tree"
        text = f"{handover.source} shows {what}, and the guard that only a rejection leaves {state} in force"
        handover = Fact(UNKNOWN, handover.source, text)
    bus, masters = devices.read(root)
    arch = _line(root, paths.ARCH)
    facts = {
        "handover": handover,
        "luo": _luo(root, asked, open_luo),
        "kho": kho,
        "auto_online": auto_online(root),
        "arch": arch,
        "kernel": _line(root, paths.RELEASE),
        "virt": virt.read(root, str(arch.value)),
        "product": _product(root),
        "machine_class": _named(root, paths.MACHINE_CLASS),
        "numa_nodes": memory.node_count(root),
        **_incoming(root, handover),
        "boot_attempts": attempts.read(root, asked or {}),
        "guard": guard,
        **bus,
        "preserved": preserved,
    }
    return Snapshot(
        facts=facts,
        block_size=size,
        blocks=blocks,
        scratch=_scratch(root, notes) if handover.value == "accepted" else (),
        cmdline=cmdline or "",
        cmdline_safe=safe,
        guard=reserved,
        overrides=overrides(asked or {}),
        notes=(*notes, *unread),
        # Where token and debugfs contradict each other, a third opinion settles nothing.
        witness=""
        if (handover.value, handover.source) == (UNKNOWN, paths.LUO_DEVICE)
        else crashkernel.witness(root, asked or {}, kho, offered),
        gigantic=gigantic,
        masters=masters,
    )


def command_line(root: str) -> str | None:
    """Return this kernel's command line; None if it cannot be read to its end."""
    try:
        return files.line(root, paths.CMDLINE)
    except OSError:
        return None


def unseen(notes: tuple[Note, ...]) -> tuple[Note, ...]:
    """Return those that say what could not be looked at: it may be otherwise than a decision takes it to be."""
    return tuple(note for note in notes if note.code in _UNSEEN)


def overrides(asked: dict[str, str]) -> tuple[str, ...]:
    """Return what the command line asks for that only some policies allow: `off`, `dry-run`, `policy=NAME`.

    `asked` are the kernel's arguments by name.
    """
    found = ["off"] if asked.get("safemem") == "off" else []
    if "safemem.dry_run" in asked:
        found.append("dry-run")
    name = asked.get("safemem.policy")
    if name is not None:
        found.append(f"policy={name}")
    return tuple(found)


def _line(root: str, path: str) -> Fact:
    try:
        text = files.line(root, path)
    except OSError as error:
        return Fact(UNKNOWN, path, reason(error))
    return Fact(text, path) if text else Fact(UNKNOWN, path, "it is empty")


def configured(root: str, option: str) -> tuple[bool | None, str]:
    """Return whether the running kernel has `option` built in, None if that cannot be read, and where that is written."""
    config = _Config(root)
    return config.value(option), config.source


class _Config:
    """The running kernel's configuration, read when first asked for: most boots never need it."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._lines: frozenset[str] | None = None
        self.source = ""

    def value(self, option: str) -> bool | None:
        """Return whether `option` is built in; None if no configuration can be read to its end."""
        if not self.source:
            self._read()
        return None if self._lines is None else f"{option}=y" in self._lines

    def _read(self) -> None:
        release = files.word(self._root, paths.RELEASE) or "?"
        self.source = "no configuration"
        for path in (place.format(release) for place in paths.CONFIG):
            try:
                data = files.read(self._root, path)
            except (OSError, ValueError):  # a release with a NUL is no path
                continue
            data = _gunzip(data) if path.endswith(".gz") else data
            # Cut off, it would say of every option that is lost that it is not built in.
            if b"CONFIG_" in data and (path.endswith(".gz") or _CONFIG_END in data[-512:]):
                self._lines = frozenset(data.decode("utf-8", "replace").splitlines())
                self.source = path
                return


def _gunzip(data: bytes) -> bytes:
    """Return what gzip `data` holds; nothing if that is damaged, cut off or above `files.LIMIT`, or zlib is not there."""
    try:
        import zlib  # only where there is something to unpack
    except ImportError:
        return b""
    stream = zlib.decompressobj(31)
    try:
        found = stream.decompress(data, files.LIMIT)
    except zlib.error:
        return b""
    return found if stream.eof else b""


# ---- handover


def _kho_path(root: str, part: str) -> str | None:
    for base in paths.KHO:
        if files.exists(root, f"{base}/{part}"):
            return f"{base}/{part}"
    return None


def _hidden(root: str, part: str) -> str | None:
    """Return a place of KHO of which nobody can tell whether it is there, or None."""
    return next((f"{base}/{part}" for base in paths.KHO if files.exists(root, f"{base}/{part}") is None), None)


def _debugfs(root: str) -> str | None:
    """Return why debugfs cannot be used, or None if it can."""
    try:
        return None if files.names(root, paths.DEBUGFS) else f"nothing is mounted at {paths.DEBUGFS}"
    except OSError as error:
        return f"{paths.DEBUGFS}: {reason(error)}"


def _handover(root: str, offered: Fact, asked: dict[str, str] | None, config: _Config) -> Fact:
    """Compare what was offered with what was accepted, and with what the command line lets expect."""
    if offered.value == UNKNOWN:
        return offered
    tree = _kho_path(root, "in/fdt")
    if offered.value == "no":
        return _nothing_offered(root, offered, asked, tree)
    hidden = _hidden(root, "in/fdt") or _hidden(root, "in") or _hidden(root, "out")
    if hidden:
        return Fact(UNKNOWN, hidden, "offered, but whether it was accepted may not be looked at")
    folder, out = _kho_path(root, "in"), _kho_path(root, "out")
    if folder and not (tree and out):
        lacks = "tree" if out else "outgoing side beside it"
        return Fact(UNKNOWN, folder, f"it has no {lacks}, which no known kernel shows")
    if tree:
        return Fact("accepted", tree, "the kernel shows the incoming tree")
    if out:
        return Fact("rejected", out, "offered, KHO is on, and no incoming tree is shown")
    if files.exists(root, paths.LUO_CLASS) is not False:
        return Fact(
            UNKNOWN, paths.LUO_CLASS, "offered to a kernel with KHO on that has no files to show whether it accepted"
        )
    built_in = config.value("CONFIG_KEXEC_HANDOVER")
    if built_in is None:
        return Fact(
            UNKNOWN, paths.DEBUGFS, _debugfs(root) or "offered, no kho folder, and no kernel configuration to consult"
        )
    if not built_in:
        return Fact("unsupported", config.source, "offered to a kernel without CONFIG_KEXEC_HANDOVER")
    if not config.value("CONFIG_KEXEC_HANDOVER_DEBUGFS"):
        return Fact(UNKNOWN, config.source, "offered to a kernel that has no debugfs files to show whether it accepted")
    trouble = _debugfs(root)
    if trouble or asked is None:
        return Fact(UNKNOWN, paths.DEBUGFS, trouble or "the command line cannot be read")
    if _kho_asked(asked, config):
        return Fact("rejected", "command line", "offered and KHO asked for, but it did not start")
    return Fact(
        "orphaned", "command line", "offered, but KHO is off: preserved memory stays reserved and cannot be claimed"
    )


def _kho_shows(root: str) -> str | None:
    """Return the incoming tree that KHO's own files show, "" if it has no such files, None for anything else."""
    tree, out = _kho_path(root, "in/fdt"), _kho_path(root, "out")
    if tree and out:
        return tree
    return "" if not (out or _kho_path(root, "in") or _hidden(root, "in") or _hidden(root, "out")) else None


def _nothing_offered(root: str, offered: Fact, asked: dict[str, str] | None, tree: str | None) -> Fact:
    """Return `none`, or `lost` if this boot was to have a handover, or unknown if the evidence is not of one mind."""
    shown = tree or _kho_path(root, "in") or _hidden(root, "in")
    if shown:
        return Fact(UNKNOWN, shown, f"{offered.source} has no handover, and KHO shows one or may not be looked at")
    if asked is None:
        return Fact(UNKNOWN, paths.CMDLINE, "none was offered; whether one was to come cannot be told without it")
    expected = next((name for name in _FOR_A_KEXEC if name in asked), "")
    if not expected and ";" in asked.get(_SAFE, ""):
        expected = _SAFE
    if expected:
        text = f"{expected}= is for a kexec with a handover, and {offered.source} has none: it was lost on the way"
        return Fact("lost", "command line", text)
    return Fact("none", offered.source, "no handover was offered")


def _kho_asked(asked: dict[str, str], config: _Config) -> bool:
    wanted = boolean(asked.get("kho"))
    return bool(config.value("CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT")) if wanted is None else wanted


def _kho(root: str, asked: dict[str, str] | None, config: _Config) -> Fact:
    """Return whether KHO is on in this kernel: it decides which zone is safe for the next live update."""
    for path in (_kho_path(root, "out"), paths.LUO_CLASS):
        if path and files.exists(root, path):
            return Fact("on", path)
    hidden = _hidden(root, "out") or (paths.LUO_CLASS if files.exists(root, paths.LUO_CLASS) is None else "")
    if hidden:
        return Fact(UNKNOWN, hidden, "whether it is there cannot be told")
    if config.value("CONFIG_KEXEC_HANDOVER") is False:
        return Fact("off", config.source, "not built in")
    if asked is not None and boolean(asked.get("kho")) is False:
        return Fact("off", "command line", "kho= is off")
    if config.value("CONFIG_KEXEC_HANDOVER_DEBUGFS") and not _debugfs(root):
        return Fact("off", paths.DEBUGFS, "no kho folder")
    return Fact(UNKNOWN, paths.DEBUGFS, _debugfs(root) or "no kho folder, and no kernel configuration to consult")


def _luo(root: str, asked: dict[str, str] | None, open_it: bool) -> Fact:
    marks = [files.exists(root, path) for path in (paths.LUO_CLASS, paths.LUO_DEVICE)]
    here = True in marks
    if marks == [False, True]:
        return Fact(
            UNKNOWN, paths.LUO_DEVICE, f"it is there, and {paths.LUO_CLASS} is not: another kernel may have left it"
        )
    if here and open_it:
        try:
            files.open_and_close(root, paths.LUO_DEVICE)
        except BlockingIOError as error:
            return Fact(UNKNOWN, paths.LUO_DEVICE, reason(error))
        except OSError as error:
            # EBUSY: somebody owns it, which is no failure. EIO: sessions did not deserialise.
            state = {_BUSY: "busy", _IO: "failed"}.get(error.errno or 0, UNKNOWN)
            return Fact(state, paths.LUO_DEVICE, reason(error))
        return Fact("ready", paths.LUO_DEVICE, "opened and closed")
    if here:
        return Fact("ready", paths.LUO_CLASS, "the device is there; not opened")
    if asked is None or None in marks or not any(files.exists(root, path) for path in paths.CLASSES):
        return Fact(UNKNOWN, paths.LUO_CLASS, "the command line, sys/class or the device cannot be looked at")
    if boolean(asked.get("liveupdate")):
        return Fact("missing", paths.LUO_CLASS, "liveupdate= asks for it, but there is no device")
    return Fact("off", "command line", "not asked for, no device")


def auto_online(root: str) -> Fact:
    """Return what the kernel does with memory that is added now."""
    try:
        value = files.read(root, paths.AUTO_ONLINE).decode("utf-8", "replace").strip()
    except OSError as error:
        return Fact(UNKNOWN, paths.AUTO_ONLINE, reason(error))
    if value in FACTS["auto_online"][1]:
        return Fact(value, paths.AUTO_ONLINE)
    return Fact(UNKNOWN, paths.AUTO_ONLINE, f"value `{value}` is not known")


def _product(root: str) -> Fact:
    """Return what firmware calls the machine; one without DMI has a device tree."""
    model = files.word(root, paths.DT_MODEL).rstrip("\0")
    if model.isprintable() and model and files.exists(root, paths.DMI_PRODUCT) is False:
        return Fact(model, paths.DT_MODEL)
    return _named(root, paths.DMI_PRODUCT)


def _named(root: str, path: str) -> Fact:
    """Return a name, which is one line of text."""
    fact = _line(root, path)
    return fact if str(fact.value).isprintable() else Fact(UNKNOWN, path, "it is not one line of text")


def _incoming(root: str, handover: Fact) -> dict[str, Fact]:
    """Return what only an accepted handover tells: its producers and where it came from."""
    if handover.value != "accepted":
        absent = Fact(UNKNOWN, handover.source, f"handover is {handover.value}, so no incoming tree can be read")
        return {"nodes": absent, "previous_kernel": absent, "kexec_count": absent}
    if handover.source == paths.LUO_DEVICE:
        absent = Fact(UNKNOWN, paths.DEBUGFS, "this kernel has no files that show the incoming tree")
        return {"nodes": absent, "previous_kernel": absent, "kexec_count": absent}
    from safemem.boot.fdt import FdtError, parse  # only where there is a tree

    tree = handover.source
    try:
        nodes = Fact(tuple(sorted(child.name for child in parse(files.read(root, tree)).children)), tree)
    except OSError as error:
        nodes = Fact(UNKNOWN, tree, reason(error))
    except FdtError as error:
        nodes = Fact(UNKNOWN, tree, str(error))
    # `u32 version; char previous_release[65]; u32 kexec_count`, packed (7.1 and later). The blob
    # of LUO beside it is freed at start-up and shows other data afterwards: never read that one.
    path = tree.replace("in/fdt", "in/sub_fdts/kexec-metadata")
    try:
        data = files.read(root, path)
    except OSError as error:
        absent = Fact(UNKNOWN, path, reason(error))
        return {"nodes": nodes, "previous_kernel": absent, "kexec_count": absent}
    release = data[4:69].split(b"\0")[0].decode("ascii", "replace")
    if len(data) < 73 or data[:4] != b"\1\0\0\0" or not release:
        absent = Fact(UNKNOWN, path, "its layout is not the one of version 1")
        return {"nodes": nodes, "previous_kernel": absent, "kexec_count": absent}
    count = int.from_bytes(data[69:73], "little")
    return {"nodes": nodes, "previous_kernel": Fact(release, path), "kexec_count": Fact(count, path)}


# ---- memory that is named


def scratch_now(root: str) -> tuple[Range, ...]:
    """Return this kernel's own scratch areas: what the next kernel may use, and no safe region of this one."""
    return _scratch(root, [])


def _scratch(root: str, notes: list[Note]) -> tuple[Range, ...]:
    columns = []
    for names in (paths.SCRATCH_PHYS, paths.SCRATCH_LEN):
        path = next((found for name in names if (found := _kho_path(root, f"out/{name}"))), None)
        try:
            columns.append([int(word, 16) for word in files.line(root, path).split()] if path else [])
        except (OSError, ValueError):
            columns.append([])
    starts, sizes = columns
    whole = len(starts) == len(sizes) and all(a >= 0 and b >= 0 and a + b <= 1 << 64 for a, b in zip(starts, sizes))  # noqa: B905
    if not starts or not whole:
        notes.append(Note("scratch-unreadable", "the scratch areas of the accepted handover cannot be read"))
        return ()
    return tuple(sorted(Range(start, start + size) for start, size in zip(starts, sizes, strict=True) if size > 0))


def _cmdline_safe(asked: dict[str, str], notes: list[Note]) -> tuple[Range, ...]:
    """Return `safemem.safe=START-END[,…][;crc32=HEX]`; nothing at all if any part of it is wrong."""
    text = asked.get(_SAFE)
    if text is None:
        return ()
    try:
        ranges, whole = unsealed(text)
        found = tuple(parse_range(item) for item in ranges.split(","))
    except ValueError as error:
        notes.append(Note("safe-ignored", f"safemem.safe= on the command line is ignored: {error}"))
        return ()
    if not whole:
        notes.append(Note("safe-unchecked", "safemem.safe= has no check sum: its ranges are taken as they are written"))
    return found
