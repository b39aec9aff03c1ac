# SPDX-License-Identifier: MIT
"""Read the machine once into a `Snapshot`, and say where each fact was read.

Every path hangs off `root`. Nothing here raises on what a kernel shows or does not show: what
cannot be read is the fact `unknown`, with the reason kept. The kernel log is never read; it is
no evidence (older kernels print `disabling KHO revival` after a harmless kexec).
"""

from __future__ import annotations

from safemem.boot import attempts, crashkernel, files, memory, paths
from safemem.boot.cmdline import arguments, boolean
from safemem.boot.files import reason
from safemem.boot.model import UNKNOWN, Fact, Note, Snapshot
from safemem.boot.ranges import Range, parse_range

SETUP_KEXEC_KHO = 10  # arch/x86/include/uapi/asm/setup_data.h
_BUSY, _IO = 16, 5

# DMI system vendor -> what systemd-detect-virt calls it.
_VENDORS = (
    ("QEMU", "qemu"), ("KVM", "kvm"), ("VMware", "vmware"), ("Xen", "xen"), ("Amazon EC2", "amazon"),
    ("Google", "google"), ("innotek GmbH", "oracle"), ("Microsoft Corporation", "microsoft"),
)  # fmt: skip


def read_snapshot(root: str = "/", *, open_luo: bool = False) -> Snapshot:
    """Return what the machine under `root` shows now. Writes nothing, mounts nothing.

    `open_luo` opens and closes `/dev/liveupdate`, which makes the kernel deserialise every
    session and has one owner at a time: only where the policy asks for it.
    """
    notes: list[Note] = []
    cmdline = files.text(root, paths.CMDLINE)
    if cmdline is None:
        text = f"{paths.CMDLINE} cannot be read: kernel arguments are unknown"
        notes.append(Note("cmdline-unreadable", text))
    # Split once; of arguments with one name the last counts.
    asked = None if cmdline is None else dict(arguments(cmdline))
    config = _Config(root)
    offered = _offered(root)
    handover = _handover(root, offered, asked, config)
    kho = _kho(root, asked, config)
    guard, reserved = crashkernel.guard(root, asked)
    if reserved and handover.value == UNKNOWN:
        handover = handover._replace(reason=f"{handover.reason}; it was not accepted: the guard is in force")
    facts = {
        "handover": handover,
        "luo": _luo(root, asked, open_luo),
        "kho": kho,
        "auto_online": auto_online(root),
        "arch": _line(root, paths.ARCH),
        "kernel": _line(root, paths.RELEASE),
        "virt": _virt(root),
        **_incoming(root, handover),
        "boot_attempts": attempts.read(root, asked or {}),
        "guard": guard,
    }
    size, blocks, unread = memory.blocks(root)
    return Snapshot(
        facts=facts,
        block_size=size,
        blocks=blocks,
        scratch=_scratch(root, notes) if handover.value == "accepted" else (),
        cmdline=cmdline or "",
        cmdline_safe=_cmdline_safe(asked or {}, notes),
        guard=reserved,
        overrides=_overrides(asked or {}),
        notes=(*notes, *unread),
        witness=crashkernel.witness(root, asked or {}, kho, offered),
    )


def _line(root: str, path: str) -> Fact:
    try:
        text = files.read(root, path).decode("utf-8", "replace").strip()
    except OSError as error:
        return Fact(UNKNOWN, path, reason(error))
    return Fact(text, path) if text else Fact(UNKNOWN, path, "it is empty")


class _Config:
    """The running kernel's configuration, read when first asked for: most boots never need it."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._lines: frozenset[str] | None = None
        self.source = ""

    def value(self, option: str) -> bool | None:
        """Return whether `option` is built in; None if no configuration can be read."""
        if not self.source:
            self._read()
        return None if self._lines is None else f"{option}=y" in self._lines

    def _read(self) -> None:
        release = files.text(self._root, paths.RELEASE) or "?"
        self.source = "no configuration"
        for path in (place.format(release) for place in paths.CONFIG):
            try:
                data = files.read(self._root, path)
            except (OSError, ValueError):  # a release with a NUL is no path
                continue
            data = _gunzip(data) if path.endswith(".gz") else data
            if b"CONFIG_" in data:
                self._lines = frozenset(data.decode("utf-8", "replace").splitlines())
                self.source = path
                return


def _gunzip(data: bytes) -> bytes:
    """Return what gzip `data` holds, at most `files.LIMIT` bytes; nothing if it is damaged, or zlib is not there."""
    try:
        import zlib  # only where there is something to unpack
    except ImportError:
        return b""
    try:
        return zlib.decompressobj(31).decompress(data, files.LIMIT)
    except zlib.error:
        return b""


# ---- handover


def _kho_path(root: str, part: str) -> str | None:
    for base in paths.KHO:
        if files.exists(root, f"{base}/{part}"):
            return f"{base}/{part}"
    return None


def _debugfs(root: str) -> str | None:
    """Return why debugfs cannot be used, or None if it can."""
    try:
        return None if files.names(root, paths.DEBUGFS) else f"nothing is mounted at {paths.DEBUGFS}"
    except OSError as error:
        return f"{paths.DEBUGFS}: {reason(error)}"


def _offered(root: str) -> Fact:
    """Return whether the predecessor left a handover: `yes`, `no` or unknown."""
    seen = []
    try:
        files.names(root, paths.BOOT_PARAMS_FOLDER)
        seen.append(paths.BOOT_PARAMS_FOLDER)
        for entry in files.names(root, paths.SETUP_DATA):
            if int(files.read(root, f"{paths.SETUP_DATA}/{entry}/type"), 16) == SETUP_KEXEC_KHO:
                return Fact("yes", f"{paths.SETUP_DATA}/{entry}/type")
    except FileNotFoundError:
        # No boot_params: not x86. No setup_data: nothing was passed, which is an answer.
        pass
    except OSError as error:
        return Fact(UNKNOWN, error.filename or paths.SETUP_DATA, reason(error))
    except ValueError:
        return Fact(UNKNOWN, paths.SETUP_DATA, "an entry's type is not a number")
    try:
        names = files.names(root, paths.CHOSEN)
        seen.append(paths.CHOSEN)
        if paths.CHOSEN_KHO in names:
            return Fact("yes", f"{paths.CHOSEN}/{paths.CHOSEN_KHO}")
    except FileNotFoundError:
        pass
    except OSError as error:
        return Fact(UNKNOWN, paths.CHOSEN, reason(error))
    if seen:
        return Fact("no", seen[0])
    return Fact(UNKNOWN, paths.SETUP_DATA, f"neither {paths.BOOT_PARAMS_FOLDER} nor {paths.CHOSEN} exists")


def _handover(root: str, offered: Fact, asked: dict[str, str] | None, config: _Config) -> Fact:
    """Compare what was offered with what was accepted."""
    if offered.value == UNKNOWN:
        return offered
    if offered.value == "no":
        return Fact("none", offered.source, "no handover was offered")
    tree = _kho_path(root, "in/fdt")
    if tree:
        return Fact("accepted", tree, "the kernel shows the incoming tree")
    folder = _kho_path(root, "in")
    if folder:
        return Fact(UNKNOWN, folder, "it has no tree, which no known kernel shows")
    if any(files.exists(root, f"{base}/in") is None for base in paths.KHO):
        return Fact(UNKNOWN, paths.DEBUGFS, "offered, but whether it was accepted may not be looked at")
    out = _kho_path(root, "out")
    if out:
        return Fact("rejected", out, "offered, KHO is on, and no incoming tree is shown")
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


def _kho_asked(asked: dict[str, str], config: _Config) -> bool:
    wanted = boolean(asked.get("kho"))
    return bool(config.value("CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT")) if wanted is None else wanted


def _kho(root: str, asked: dict[str, str] | None, config: _Config) -> Fact:
    """Return whether KHO is on in this kernel: it decides which zone is safe for the next live update."""
    for path in (_kho_path(root, "out"), paths.LUO_CLASS):
        if path and files.exists(root, path):
            return Fact("on", path)
    if config.value("CONFIG_KEXEC_HANDOVER") is False:
        return Fact("off", config.source, "not built in")
    if asked is not None and boolean(asked.get("kho")) is False:
        return Fact("off", "command line", "kho= is off")
    if config.value("CONFIG_KEXEC_HANDOVER_DEBUGFS") and not _debugfs(root):
        return Fact("off", paths.DEBUGFS, "no kho folder")
    return Fact(UNKNOWN, paths.DEBUGFS, _debugfs(root) or "no kho folder, and no kernel configuration to consult")


def _luo(root: str, asked: dict[str, str] | None, open_it: bool) -> Fact:
    here = any(files.exists(root, path) for path in (paths.LUO_CLASS, paths.LUO_DEVICE))
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
    if asked is None or not any(files.exists(root, path) for path in paths.CLASSES):
        return Fact(UNKNOWN, paths.LUO_CLASS, "the command line or sys/class cannot be read")
    if boolean(asked.get("liveupdate")):
        return Fact("missing", paths.LUO_CLASS, "liveupdate= asks for it, but there is no device")
    return Fact("off", "command line", "not asked for, no device")


def auto_online(root: str) -> Fact:
    """Return what the kernel does with memory that is added now."""
    fact = _line(root, paths.AUTO_ONLINE)
    if fact.value in ("offline", "online", "online_movable", "online_kernel", UNKNOWN):
        return fact
    return Fact(UNKNOWN, paths.AUTO_ONLINE, f"value `{fact.value}` is not known")


def _virt(root: str) -> Fact:
    vendor, product = (files.text(root, path) or "" for path in (paths.DMI_VENDOR, paths.DMI_PRODUCT))
    for prefix, name in _VENDORS:
        # Microsoft and Google sell hardware too; their product name tells.
        real = (prefix == "Microsoft Corporation" and product != "Virtual Machine") or (
            prefix == "Google" and "Compute Engine" not in product
        )
        if vendor.startswith(prefix) and not real:
            return Fact(name, paths.DMI_VENDOR)
    xen = files.text(root, paths.HYPERVISOR)
    if xen:
        return Fact(xen, paths.HYPERVISOR)
    cpu = files.text(root, paths.CPUINFO)
    if cpu and "hypervisor" in cpu[:8192].split():
        return Fact("vm-other", paths.CPUINFO, "the processor reports a hypervisor of unknown make")
    if vendor or (cpu and "flags" in cpu[:8192].split()):
        return Fact("none", paths.DMI_VENDOR if vendor else paths.CPUINFO)
    return Fact(UNKNOWN, paths.DMI_VENDOR, "neither DMI nor the processor tells")


def _incoming(root: str, handover: Fact) -> dict[str, Fact]:
    """Return what only an accepted handover tells: its producers and where it came from."""
    if handover.value != "accepted":
        absent = Fact(UNKNOWN, handover.source, f"handover is {handover.value}, so no incoming tree can be read")
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
        text = files.text(root, path) if path else None
        try:
            columns.append([int(word, 16) for word in (text or "").split()])
        except ValueError:
            columns.append([])
    starts, sizes = columns
    if not starts or len(starts) != len(sizes):
        notes.append(Note("scratch-unreadable", "the scratch areas of the accepted handover cannot be read"))
        return ()
    return tuple(sorted(Range(start, start + size) for start, size in zip(starts, sizes, strict=True) if size > 0))


def _overrides(asked: dict[str, str]) -> tuple[str, ...]:
    """Return what the command line asks for that only some policies allow."""
    found = ["off"] if asked.get("safemem") == "off" else []
    if "safemem.dry_run" in asked:
        found.append("dry-run")
    name = asked.get("safemem.policy")
    if name is not None:
        found.append(f"policy={name}")
    return tuple(found)


def _cmdline_safe(asked: dict[str, str], notes: list[Note]) -> tuple[Range, ...]:
    """Return `safemem.safe=START-END[,…][;crc32=HEX]`; nothing at all if any part of it is wrong."""
    text = asked.get("safemem.safe")
    if text is None:
        return ()
    ranges, separator, checksum = text.partition(";")
    try:
        if separator:
            import binascii  # only where there is a check sum

            if checksum.lower() != f"crc32={binascii.crc32(ranges.encode()):08x}":
                raise ValueError(f"check sum of `{text}` does not match: the command line may have been cut off")
        found = tuple(parse_range(item) for item in ranges.split(","))
    except ValueError as error:
        notes.append(Note("safe-ignored", f"safemem.safe= on the command line is ignored: {error}"))
        return ()
    if not separator:
        notes.append(Note("safe-unchecked", "safemem.safe= has no check sum: its ranges are taken as they are written"))
    return found
