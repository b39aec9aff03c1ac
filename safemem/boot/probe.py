# SPDX-License-Identifier: MIT
"""Read the machine once into a `Snapshot`: the only module that knows a kernel path to read.

Every path hangs off `root`. Nothing here raises on what a kernel shows or does not show: what
cannot be read is the fact `unknown`, with the reason kept. The kernel log is never read; it is
no evidence (older kernels print `disabling KHO revival` after a harmless kexec).
"""

from __future__ import annotations

import os

from safemem.boot.fdt import FdtError, parse
from safemem.boot.model import UNKNOWN, Blocks, Fact, Range, Snapshot, merge_ranges, parse_range, size_text

# KHO is announced to move from debugfs to sysfs and "scratch" to become "bootmem" (Linux 7.4);
# each name is listed oldest last, the first that exists counts.
KHO = ("sys/kernel/kho", "sys/kernel/debug/kho")
SCRATCH_PHYS = ("bootmem_phys", "scratch_phys")
SCRATCH_LEN = ("bootmem_len", "scratch_len")
DEBUGFS = "sys/kernel/debug"
SETUP_DATA = "sys/kernel/boot_params/setup_data"
BOOT_PARAMS = "sys/kernel/boot_params/data"
#: Offsets in the x86 zero page (Documentation/arch/x86/zero-page.rst): entries, table; 20 bytes each.
_E820_COUNT, _E820_TABLE, _E820_RAM, _RAMDISK_SIZE = 0x1E8, 0x2D0, 1, 0x21C
SETUP_KEXEC_KHO = 10  # arch/x86/include/uapi/asm/setup_data.h
CHOSEN = "proc/device-tree/chosen"
MEMORY = "sys/devices/system/memory"
NODES = "sys/devices/system/node"
AUTO_ONLINE = "sys/devices/system/memory/auto_online_blocks"
CRASH_SIZE = "sys/kernel/kexec_crash_size"
EFI = "sys/firmware/efi"
EFIVARS = "sys/firmware/efi/efivars"
#: Ours; the kernel shows a variable as NAME-GUID of its vendor.
ATTEMPTS = f"{EFIVARS}/SafememBootAttempts-8dd086fa-d2ca-4504-b0ce-17eb3fb081c5"
LOAD_LIMIT = "proc/sys/kernel/kexec_load_limit_panic"
IOMEM = "proc/iomem"
UPTIME = "proc/uptime"
LUO_DEVICE = "dev/liveupdate"
LUO_CLASS = "sys/class/misc/liveupdate"
#: No file read here is larger; a longer one is cut, which its parser then refuses.
_LIMIT = 1 << 20

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
    notes: list[str] = []
    cmdline = _text(root, "proc/cmdline")
    if cmdline is None:
        notes.append("proc/cmdline cannot be read: kernel arguments are unknown")
    config = _Config(root)
    facts = {"handover": _handover(root, cmdline, config)}
    facts["luo"] = _luo(root, cmdline, open_luo)
    facts["kho"] = _kho(root, cmdline, config)
    facts["auto_online"] = auto_online(root)
    facts["arch"] = _line(root, "proc/sys/kernel/arch")
    facts["kernel"] = _line(root, "proc/sys/kernel/osrelease")
    facts["virt"] = _virt(root)
    facts.update(_incoming(root, facts["handover"]))
    facts["boot_attempts"] = _attempts(root, cmdline)
    facts["guard"], guard = _guard(root, cmdline)
    handover = facts["handover"]
    if guard and handover.value == UNKNOWN:
        facts["handover"] = handover._replace(reason=f"{handover.reason}; it was not accepted: the guard is in force")
    size, blocks = _blocks(root, notes)
    return Snapshot(
        facts=facts,
        block_size=size,
        blocks=blocks,
        scratch=_scratch(root, notes) if facts["handover"].value == "accepted" else (),
        cmdline=cmdline or "",
        cmdline_safe=_cmdline_safe(cmdline, notes),
        guard=guard,
        overrides=_overrides(cmdline),
        notes=tuple(notes),
        witness=_witness(root, cmdline, facts),
    )


def arguments(cmdline: str) -> list[tuple[str, str]]:
    """Return the kernel's arguments in order, as the kernel splits them: quotes hold, `--` ends."""
    words, word, quoted = [], "", False
    for char in cmdline + " ":
        if char == '"':
            quoted = not quoted
        elif char.isspace() and not quoted:
            if word == "--":
                break
            if word:
                words.append(word)
            word = ""
        else:
            word += char
    if quoted and word.strip():
        words.append(word.strip())
    return [(key, value) for key, _, value in (item.partition("=") for item in words)]


def argument(cmdline: str | None, name: str) -> str | None:
    """Return the value of the last argument `name`, or None if it is not there."""
    found = [value for key, value in arguments(cmdline or "") if key == name]
    return found[-1] if found else None


# ---- reading


def _path(root: str, path: str) -> str:
    return os.path.join(root, path)


def _bytes(path: str) -> bytes:
    """Return the file's content, at most `_LIMIT` bytes. Raises OSError."""
    # O_NONBLOCK: a FIFO in place of a file must not hang the boot.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        parts = []
        left = _LIMIT
        while left and (part := os.read(fd, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _text(root: str, path: str) -> str | None:
    try:
        return _bytes(_path(root, path)).decode("utf-8", "replace").rstrip("\n\0")
    except OSError:
        return None


def _line(root: str, path: str) -> Fact:
    try:
        text = _bytes(_path(root, path)).decode("utf-8", "replace").strip()
    except OSError as error:
        return Fact(UNKNOWN, path, _reason(error))
    return Fact(text, path) if text else Fact(UNKNOWN, path, "it is empty")


def _reason(error: OSError) -> str:
    return (error.strerror or "cannot be read").lower()


def _exists(path: str) -> bool | None:
    """Return whether `path` exists; None if that cannot be told."""
    try:
        os.lstat(path)
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None


def _kernel_bool(text: str | None) -> bool | None:
    """Return what `kstrtobool` makes of an argument; None for nothing or nonsense, which the kernel ignores."""
    if text is None:
        return None
    head = text[:2].lower()
    if head[:1] in ("y", "t", "1") or head == "on":
        return True
    if head[:1] in ("n", "f", "0") or head == "of":
        return False
    return None


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
        release = _text(self._root, "proc/sys/kernel/osrelease") or "?"
        self.source = "no configuration"
        for path in ("proc/config.gz", f"boot/config-{release}", f"usr/lib/modules/{release}/config"):
            try:
                data = _bytes(_path(self._root, path))
                if path.endswith(".gz"):
                    import zlib  # only where there is something to unpack

                    data = zlib.decompressobj(31).decompress(data, _LIMIT)
            except (OSError, ValueError, ImportError):
                continue
            except Exception as error:  # zlib.error is no ValueError
                if type(error).__name__ != "error":
                    raise
                continue
            if b"CONFIG_" in data:
                self._lines = frozenset(data.decode("utf-8", "replace").splitlines())
                self.source = path
                return


# ---- facts


def _kho_dir(root: str, part: str) -> str | None:
    for base in KHO:
        if _exists(_path(root, f"{base}/{part}")):
            return f"{base}/{part}"
    return None


def _debugfs(root: str) -> str | None:
    """Return why debugfs cannot be used, or None if it can."""
    try:
        return None if os.listdir(_path(root, DEBUGFS)) else f"nothing is mounted at {DEBUGFS}"
    except OSError as error:
        return f"{DEBUGFS}: {_reason(error)}"


def _offered(root: str) -> Fact:
    """Return whether the predecessor left a handover: `yes`, `no` or unknown."""
    seen = []
    try:
        os.listdir(_path(root, "sys/kernel/boot_params"))
        seen.append("sys/kernel/boot_params")
        for entry in os.listdir(_path(root, SETUP_DATA)):
            if int(_bytes(_path(root, f"{SETUP_DATA}/{entry}/type")), 16) == SETUP_KEXEC_KHO:
                return Fact("yes", f"{SETUP_DATA}/{entry}/type")
    except FileNotFoundError:
        # No boot_params: not x86. No setup_data: nothing was passed, which is an answer.
        pass
    except OSError as error:
        return Fact(UNKNOWN, error.filename or SETUP_DATA, _reason(error))
    except ValueError:
        return Fact(UNKNOWN, SETUP_DATA, "an entry's type is not a number")
    try:
        names = os.listdir(_path(root, CHOSEN))
        seen.append(CHOSEN)
        if "linux,kho-fdt" in names:
            return Fact("yes", f"{CHOSEN}/linux,kho-fdt")
    except FileNotFoundError:
        pass
    except OSError as error:
        return Fact(UNKNOWN, CHOSEN, _reason(error))
    if seen:
        return Fact("no", seen[0])
    return Fact(UNKNOWN, SETUP_DATA, f"neither sys/kernel/boot_params nor {CHOSEN} exists")


def _handover(root: str, cmdline: str | None, config: _Config) -> Fact:
    """Compare what was offered with what was accepted."""
    offered = _offered(root)
    if offered.value == UNKNOWN:
        return offered
    if offered.value == "no":
        return Fact("none", offered.source, "no handover was offered")
    tree = _kho_dir(root, "in/fdt")
    if tree:
        return Fact("accepted", tree, "the kernel shows the incoming tree")
    if _kho_dir(root, "in"):
        return Fact(UNKNOWN, _kho_dir(root, "in") or "", "it has no tree, which no known kernel shows")
    if any(_exists(_path(root, f"{base}/in")) is None for base in KHO):
        return Fact(UNKNOWN, DEBUGFS, "offered, but whether it was accepted may not be looked at")
    out = _kho_dir(root, "out")
    if out:
        return Fact("rejected", out, "offered, KHO is on, and no incoming tree is shown")
    built_in = config.value("CONFIG_KEXEC_HANDOVER")
    if built_in is None:
        return Fact(
            UNKNOWN, DEBUGFS, _debugfs(root) or "offered, no kho folder, and no kernel configuration to consult"
        )
    if not built_in:
        return Fact("unsupported", config.source, "offered to a kernel without CONFIG_KEXEC_HANDOVER")
    if not config.value("CONFIG_KEXEC_HANDOVER_DEBUGFS"):
        return Fact(UNKNOWN, config.source, "offered to a kernel that has no debugfs files to show whether it accepted")
    trouble = _debugfs(root)
    if trouble or cmdline is None:
        return Fact(UNKNOWN, DEBUGFS, trouble or "the command line cannot be read")
    if _kho_asked(cmdline, config):
        return Fact("rejected", "command line", "offered and KHO asked for, but it did not start")
    return Fact(
        "orphaned", "command line", "offered, but KHO is off: preserved memory stays reserved and cannot be claimed"
    )


def _kho_asked(cmdline: str, config: _Config) -> bool:
    asked = _kernel_bool(argument(cmdline, "kho"))
    return bool(config.value("CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT")) if asked is None else asked


def _kho(root: str, cmdline: str | None, config: _Config) -> Fact:
    """Return whether KHO is on in this kernel: it decides which zone is safe for the next live update."""
    for path in (_kho_dir(root, "out"), LUO_CLASS):
        if path and _exists(_path(root, path)):
            return Fact("on", path)
    if config.value("CONFIG_KEXEC_HANDOVER") is False:
        return Fact("off", config.source, "not built in")
    if cmdline is not None and _kernel_bool(argument(cmdline, "kho")) is False:
        return Fact("off", "command line", "kho= is off")
    if config.value("CONFIG_KEXEC_HANDOVER_DEBUGFS") and not _debugfs(root):
        return Fact("off", DEBUGFS, "no kho folder")
    return Fact(UNKNOWN, DEBUGFS, _debugfs(root) or "no kho folder, and no kernel configuration to consult")


def _luo(root: str, cmdline: str | None, open_it: bool) -> Fact:
    device = _path(root, LUO_DEVICE)
    here = any(_exists(_path(root, path)) for path in (LUO_CLASS, LUO_DEVICE))
    if here and open_it:
        try:
            os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        except BlockingIOError as error:
            return Fact(UNKNOWN, LUO_DEVICE, _reason(error))
        except OSError as error:
            # EBUSY: somebody owns it, which is no failure. EIO: sessions did not deserialise.
            return Fact({16: "busy", 5: "failed"}.get(error.errno or 0, UNKNOWN), LUO_DEVICE, _reason(error))
        return Fact("ready", LUO_DEVICE, "opened and closed")
    if here:
        return Fact("ready", LUO_CLASS, "the device is there; not opened")
    if cmdline is None or (
        _exists(_path(root, "sys/class/misc")) is not True and _exists(_path(root, "sys/class")) is not True
    ):
        return Fact(UNKNOWN, LUO_CLASS, "the command line or sys/class cannot be read")
    if _kernel_bool(argument(cmdline, "liveupdate")):
        return Fact("missing", LUO_CLASS, "liveupdate= asks for it, but there is no device")
    return Fact("off", "command line", "not asked for, no device")


def auto_online(root: str) -> Fact:
    """Return what the kernel does with memory that is added now."""
    fact = _line(root, AUTO_ONLINE)
    if fact.value in ("offline", "online", "online_movable", "online_kernel", UNKNOWN):
        return fact
    return Fact(UNKNOWN, AUTO_ONLINE, f"value `{fact.value}` is not known")


def _virt(root: str) -> Fact:
    vendor, product = (_text(root, f"sys/class/dmi/id/{name}") or "" for name in ("sys_vendor", "product_name"))
    for prefix, name in _VENDORS:
        # Microsoft and Google sell hardware too; their product name tells.
        real = (prefix == "Microsoft Corporation" and product != "Virtual Machine") or (
            prefix == "Google" and "Compute Engine" not in product
        )
        if vendor.startswith(prefix) and not real:
            return Fact(name, "sys/class/dmi/id/sys_vendor")
    xen = _text(root, "sys/hypervisor/type")
    if xen:
        return Fact(xen, "sys/hypervisor/type")
    cpu = _text(root, "proc/cpuinfo")
    if cpu and "hypervisor" in cpu[:8192].split():
        return Fact("vm-other", "proc/cpuinfo", "the processor reports a hypervisor of unknown make")
    if vendor or (cpu and "flags" in cpu[:8192].split()):
        return Fact("none", "sys/class/dmi/id/sys_vendor" if vendor else "proc/cpuinfo")
    return Fact(UNKNOWN, "sys/class/dmi/id/sys_vendor", "neither DMI nor the processor tells")


def _incoming(root: str, handover: Fact) -> dict[str, Fact]:
    """Return what only an accepted handover tells: its producers and where it came from."""
    if handover.value != "accepted":
        absent = Fact(UNKNOWN, handover.source, f"handover is {handover.value}, so no incoming tree can be read")
        return {"nodes": absent, "previous_kernel": absent, "kexec_count": absent}
    tree = handover.source
    try:
        nodes = Fact(tuple(sorted(child.name for child in parse(_bytes(_path(root, tree))).children)), tree)
    except OSError as error:
        nodes = Fact(UNKNOWN, tree, _reason(error))
    except FdtError as error:
        nodes = Fact(UNKNOWN, tree, str(error))
    # `u32 version; char previous_release[65]; u32 kexec_count`, packed (7.1 and later). The blob
    # of LUO beside it is freed at start-up and shows other data afterwards: never read that one.
    path = tree.replace("in/fdt", "in/sub_fdts/kexec-metadata")
    try:
        data = _bytes(_path(root, path))
    except OSError as error:
        absent = Fact(UNKNOWN, path, _reason(error))
        return {"nodes": nodes, "previous_kernel": absent, "kexec_count": absent}
    release = data[4:69].split(b"\0")[0].decode("ascii", "replace")
    if len(data) < 73 or data[:4] != b"\1\0\0\0" or not release:
        absent = Fact(UNKNOWN, path, "its layout is not the one of version 1")
        return {"nodes": nodes, "previous_kernel": absent, "kexec_count": absent}
    count = int.from_bytes(data[69:73], "little")
    return {"nodes": nodes, "previous_kernel": Fact(release, path), "kexec_count": Fact(count, path)}


def _attempts(root: str, cmdline: str | None) -> Fact:
    """Return how many boots in a row, right before this one, did not online all memory, as far as anything kept count."""
    trouble = "there are no EFI variables"
    try:
        if _exists(_path(root, EFI)):
            trouble = f"{EFIVARS} is empty: it is not mounted"
            if os.listdir(_path(root, EFIVARS)):
                data = _bytes(_path(root, ATTEMPTS))
                # Four bytes of attributes, then the count (Documentation/filesystems/efivarfs.rst).
                if len(data) == 8:
                    return Fact(int.from_bytes(data[4:], "little"), ATTEMPTS)
                return Fact(UNKNOWN, ATTEMPTS, f"it has {len(data)} bytes, not 8")
    except FileNotFoundError:
        return Fact(0, ATTEMPTS, "it does not exist")
    except OSError as error:
        trouble = f"{EFIVARS}: {_reason(error)}"
    text = argument(cmdline, "safemem.attempts")
    if text is None:
        return Fact(
            UNKNOWN, "command line", f"nothing keeps count: {trouble}, and no safemem.attempts= from handover-args"
        )
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        return Fact(UNKNOWN, "command line", f"safemem.attempts=: `{text}` is not a number")
    return Fact(int(text), "command line", "the predecessor's count")


def firmware_memory(root: str) -> tuple[Range, ...]:
    """Return the memory that firmware gave at boot, from the x86 zero page: what was hot-added is not in it.

    Raises:
        OSError: it cannot be read, as on everything that is not x86.
        ValueError: it holds no memory map.
    """
    data = _bytes(_path(root, BOOT_PARAMS))
    found = []
    for index in range(data[_E820_COUNT] if len(data) == 4096 else 0):
        at = _E820_TABLE + 20 * index
        start, size, kind = (
            int.from_bytes(data[at + low : at + high], "little") for low, high in ((0, 8), (8, 16), (16, 20))
        )
        if kind == _E820_RAM and size:
            found.append(Range(start, start + size))
    if not found:
        raise ValueError(f"{BOOT_PARAMS} holds no memory map")
    return merge_ranges(tuple(found))


def initrd_size(root: str) -> int:
    """Return the bytes of the initrd as it was loaded, from the x86 zero page; 0 if that cannot be read."""
    try:
        data = _bytes(_path(root, BOOT_PARAMS))
    except OSError:
        return 0
    return int.from_bytes(data[_RAMDISK_SIZE : _RAMDISK_SIZE + 4], "little")


def onlined_early(root: str, snapshot: Snapshot) -> list[str]:
    """Return, in a boot that has not decided yet, which hot-added memory the kernel has onlined already.

    INVARIANT: a block of which firmware's map knows one byte is boot memory.
    """
    online = [run for run in snapshot.blocks if run.state == "online"]
    if not online:
        return []
    try:
        ram = firmware_memory(root)
    except (OSError, ValueError) as error:
        if snapshot.facts["auto_online"].value == "offline":
            return []
        why = _reason(error) if isinstance(error, OSError) else str(error)
        return [f"whether hot-added memory was online before safemem ran cannot be told: {BOOT_PARAMS}: {why}"]
    size, late = snapshot.block_size, []
    for run in online:
        for number in range(run.first, run.last + 1):
            area = Range(number * size, (number + 1) * size)
            if not any(area.start < part.end and part.start < area.end for part in ram):
                late.append(area)
    return [
        f"{area} ({size_text(area.end - area.start)}) was hot-added and online before safemem ran: boot with memhp_default_state=offline"
        for area in merge_ranges(tuple(late))
    ]


def scratch_now(root: str) -> tuple[Range, ...]:
    """Return this kernel's own scratch areas: what the next kernel may use, and no safe region of this one."""
    return _scratch(root, [])


def _scratch(root: str, notes: list[str]) -> tuple[Range, ...]:
    columns = []
    for names in (SCRATCH_PHYS, SCRATCH_LEN):
        path = next((found for name in names if (found := _kho_dir(root, f"out/{name}"))), None)
        text = _text(root, path) if path else None
        try:
            columns.append([int(word, 16) for word in (text or "").split()])
        except ValueError:
            columns.append([])
    starts, sizes = columns
    if not starts or len(starts) != len(sizes):
        notes.append("the scratch areas of the accepted handover cannot be read")
        return ()
    return tuple(sorted(Range(start, start + size) for start, size in zip(starts, sizes, strict=True) if size > 0))


def _overrides(cmdline: str | None) -> tuple[str, ...]:
    """Return what the command line asks for that only some policies allow."""
    found = ["off"] if argument(cmdline, "safemem") == "off" else []
    if argument(cmdline, "safemem.dry_run") is not None:
        found.append("dry-run")
    name = argument(cmdline, "safemem.policy")
    if name is not None:
        found.append(f"policy={name}")
    return tuple(found)


def _cmdline_safe(cmdline: str | None, notes: list[str]) -> tuple[Range, ...]:
    """Return `safemem.safe=START-END[,…][;crc32=HEX]`; nothing at all if any part of it is wrong."""
    text = argument(cmdline, "safemem.safe")
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
        notes.append(f"safemem.safe= on the command line is ignored: {error}")
        return ()
    if not separator:
        notes.append("safemem.safe= has no check sum: its ranges are taken as they are written")
    return found


def _guard(root: str, cmdline: str | None) -> tuple[Fact, Range | None]:
    """Return the state of our guard and the memory it reserves now.

    Only `safemem.guard=` makes a crash kernel reservation ours; without it the reservation is
    kdump's and none of our business.
    """
    if cmdline is None:
        return Fact(UNKNOWN, "proc/cmdline", "the command line cannot be read"), None
    text = argument(cmdline, "safemem.guard")
    if text is None:
        return Fact("none", "command line", "no safemem.guard="), None
    try:
        asked = parse_range(text)
    except ValueError as error:
        return Fact("void", "command line", f"safemem.guard=: {error}"), None
    size = _line(root, CRASH_SIZE)
    if size.value == "0":
        return Fact("void", CRASH_SIZE, f"{asked} was asked for and is not reserved"), None
    iomem = _text(root, IOMEM)
    if iomem is None:
        return Fact(UNKNOWN, IOMEM, "cannot be read"), None
    found = []
    for line in iomem.splitlines():
        span, _, name = line.partition(" : ")
        if name.strip() == "Crash kernel":
            try:
                start, _, last = span.strip().partition("-")
                found.append(Range(int(start, 16), int(last, 16) + 1))
            except ValueError:
                return Fact(UNKNOWN, IOMEM, f"line `{line.strip()}` cannot be understood"), None
    if not found:
        return Fact("void", IOMEM, f"{asked} was asked for and is not reserved"), None
    if any(area == Range(0, 1) for area in found):
        return Fact(UNKNOWN, IOMEM, "it shows addresses to root only"), None
    for area in found:
        # Given back from the end, a guard keeps its start.
        if area.start == asked.start and area.end <= asked.end:
            return Fact("held", IOMEM, f"{area} is reserved"), area
    return Fact("void", IOMEM, f"{asked} was asked for, but {found[0]} is reserved and is not ours"), None


def _witness(root: str, cmdline: str | None, facts: dict[str, Fact]) -> str:
    """Return how a guard that is not in force shows that the handover was accepted, or nothing if it does not.

    While an accepted handover is set up, the early allocator is in scratch areas only, and a `crashkernel=` outside
    fails (seen on 7.2 and 7.3). The same happens with `kho=off`; so KHO has to be on for certain.
    """
    text, asked = argument(cmdline, "safemem.guard"), argument(cmdline, "crashkernel")
    if not text or not asked or facts["kho"].value != "on" or _offered(root).value != "yes":
        return ""
    if _text(root, CRASH_SIZE) != "0":  # something else is reserved, or this kernel never reserves
        return ""
    size, at, start = asked.partition("@")
    try:
        guard = parse_range(text)
        if not at or Range(_memparse(start), _memparse(start) + _memparse(size)) != guard:
            return ""
    except ValueError:
        return ""
    return f"a handover was offered, and the guard {guard} was asked for and could not be reserved"


def _memparse(text: str) -> int:
    """Return what the kernel's memparse makes of a number with a unit such as 576M. Raises ValueError."""
    shift = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1:].upper(), 0)
    return int(text[:-1] if shift else text, 0) << shift


_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_STATES = {b"online\n": "online", b"offline\n": "offline", b"going-offline\n": "going-offline"}


def _blocks(root: str, notes: list[str]) -> tuple[int, tuple[Blocks, ...]]:
    base = _path(root, MEMORY)
    try:
        size = int(_bytes(f"{base}/block_size_bytes"), 16)
        if size <= 0:
            raise ValueError
        names = os.listdir(base)
    except OSError as error:
        notes.append(f"memory blocks cannot be read: {MEMORY}: {_reason(error)}")
        return 0, ()
    except ValueError:
        notes.append(f"memory blocks cannot be read: {MEMORY}/block_size_bytes is not a size")
        return 0, ()
    node_of, added_by = _nodes(root), _drivers(root)
    folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        runs = _runs(folder, names, node_of, notes)
    finally:
        os.close(folder)
    return size, tuple(piece for run in runs for piece in _by_driver(run, size, added_by))


def states(root: str) -> tuple[Blocks, ...]:
    """Return the blocks as they are now, with their states only: what has changed since they were read whole."""
    base = _path(root, MEMORY)
    try:
        folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ()
    try:
        return _runs(folder, os.listdir(folder), {}, [])
    finally:
        os.close(folder)


def resources(root: str) -> list[tuple[Range, str]]:
    """Return what lies where in physical memory, in /proc/iomem's order and words; nothing if it hides addresses."""
    found = []
    for line in (_text(root, IOMEM) or "").splitlines():
        span, _, name = line.partition(" : ")
        start, _, last = span.strip().partition("-")
        try:
            found.append((Range(int(start, 16), int(last, 16) + 1), name.strip()))
        except ValueError:
            continue
    # Whoever may not see addresses sees zeros.
    return [item for item in found if item[0].end > 1]


def crash_size(root: str) -> int:
    """Return the bytes reserved for a crash kernel or a guard; 0 if that cannot be read."""
    text = _text(root, CRASH_SIZE) or ""
    return int(text) if text.isdecimal() else 0


def crash_kernel_forbidden(root: str) -> bool:
    """Return whether no crash kernel can be loaded in the rest of this boot: the limit can only be lowered."""
    return _text(root, LOAD_LIMIT) == "0"


def uptime(root: str) -> int:
    """Return the seconds since this kernel started, rounded up; -1 if that cannot be read."""
    words = (_text(root, UPTIME) or "").split()
    whole, _, part = words[0].partition(".") if words else ("", "", "")
    return int(whole) + (int(part or 0) > 0) if whole.isdecimal() and (part or "0").isdecimal() else -1


def _drivers(root: str) -> list[tuple[int, int, str]]:
    """Return who added which memory, as first byte, end and driver, from the names in /proc/iomem.

    A driver of its own writes `System RAM (virtio_mem)` or `System RAM (kmem)`; what firmware and
    ACPI add is plain `System RAM`.
    """
    found = []
    for area, name in resources(root):
        if name.startswith("System RAM"):
            driver = {"": "dimm", "(virtio_mem)": "virtio-mem", "(kmem)": "kmem"}.get(name[10:].strip(), UNKNOWN)
            found.append((area.start, area.end, driver))
    return sorted(found)


def _by_driver(run: Blocks, size: int, added_by: list[tuple[int, int, str]]) -> list[Blocks]:
    """Return `run` cut by who added its blocks; a block that two added, or nobody known, is nobody's."""
    pieces: list[Blocks] = []
    at = run.first
    for start, end, driver in added_by:
        first, last = max(at, -(-start // size)), min(run.last, end // size - 1)
        if first > last:
            continue
        if at < first:
            pieces.append(run._replace(first=at, last=first - 1))
        pieces.append(run._replace(first=first, last=last, driver=driver))
        at = last + 1
    if at <= run.last:
        pieces.append(run._replace(first=at))
    return pieces


def _runs(folder: int, names: list[str], node_of: dict[int, int], notes: list[str]) -> tuple[Blocks, ...]:
    runs: list[list[int | str]] = []
    for number in sorted([int(name[6:]) for name in names if name[:6] == "memory" and name[6:].isdecimal()]):
        try:
            state = _state(f"memory{number}/state", folder)
        except FileNotFoundError:
            notes.append(f"block {number} disappeared while it was read")
            continue
        except OSError as error:
            notes.append(f"state of block {number} cannot be read: {_reason(error)}")
            state = UNKNOWN
        node = node_of.get(number, -1)
        if runs and runs[-1][1] == number - 1 and runs[-1][2] == state and runs[-1][3] == node:
            runs[-1][1] = number
        else:
            runs.append([number, number, state, node])
    return tuple(Blocks(*run) for run in runs)  # type: ignore[arg-type]


def _state(path: str, folder: int) -> str:
    # One open, one read, no walk from the root: this runs once for every block of the machine.
    fd = os.open(path, _FLAGS, dir_fd=folder)
    try:
        data = os.read(fd, 64)
    finally:
        os.close(fd)
    return _STATES.get(data, UNKNOWN)


def _nodes(root: str) -> dict[int, int]:
    """Return each block's NUMA node, from the nodes' own lists: one listing a node, not one a block."""
    found = {}
    try:
        for node in os.listdir(_path(root, NODES)):
            if node[:4] == "node" and node[4:].isdecimal():
                for name in os.listdir(_path(root, f"{NODES}/{node}")):
                    if name[:6] == "memory" and name[6:].isdecimal():
                        found[int(name[6:])] = int(node[4:])
    except OSError:
        pass  # nodes are for display and overrides; a machine without NUMA has none
    return found
