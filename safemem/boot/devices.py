# SPDX-License-Identifier: MIT
"""PCI functions that may write to memory though no driver owns them, whether an IOMMU is there, and how they are stopped.

At a kexec the kernel clears bus mastering of devices that it shuts down. What was preserved, what its driver has left on
and what firmware uses goes on writing to where its former owner told it to. Layout of the configuration: include/uapi/linux/pci_regs.h.
"""

from __future__ import annotations

from safemem.boot import files, paths
from safemem.boot.files import reason
from safemem.boot.model import UNKNOWN, Device, Fact, Note
from safemem.boot.tuples import NamedTuple

#: Bytes of a function's configuration that are read: up to the type of its header. Each word of it is asked of the hardware.
_HEAD = 16
_COMMAND, _MASTER = 4, 0x4
_CLASS, _BRIDGE = 11, 6
_TYPE, _TYPE_BITS, _TYPE_BRIDGE = 14, 0x7F, 1
_ONES = 0xFFFF
_HEX = frozenset("0123456789abcdef")
_CUT_OFF = "its configuration is cut off"

#: Code of a problem: of a function that was to be stopped, nobody knows that it is.
NOT_QUIESCED = "not-quiesced"
#: How a problem begins where the bus cannot be looked at.
UNSEEN = "which PCI functions may write to memory cannot be told"
#: Code of a note: a function that was to be stopped has an owner.
OWNED = "device-owned"


class Bus(NamedTuple):
    """What a look at the bus has found."""

    masters: tuple[Device, ...]  #: bus mastering on, no driver, no bridge; ascending
    unread: tuple[str, ...]  #: what could not be looked at, and why, one text each
    source: str


class Stopped(NamedTuple):
    """What became of functions that were to be stopped."""

    addresses: tuple[str, ...] = ()  #: of those whose bus mastering is off now
    problems: tuple[Note, ...] = ()  #: of those that may still write, with NOT_QUIESCED
    owned: tuple[Note, ...] = ()  #: of those that a driver has taken meanwhile, with OWNED; they are left alone


def read(root: str) -> tuple[dict[str, Fact], tuple[Device, ...]]:
    """Return the facts `bus_masters` and `iommu`, and the functions that the first one is about."""
    bus = look(root)
    why = bus.unread[0] if bus.unread else ""
    if len(bus.unread) > 1:
        why = f"{why}; and {len(bus.unread) - 1} more"
    # `some` is true whatever else there is.
    value = "some" if bus.masters else UNKNOWN if bus.unread else "none"
    return {"bus_masters": Fact(value, bus.source, why), "iommu": _iommu(root)}, bus.masters


def look(root: str) -> Bus:
    """Return which functions may write to memory now. Raises nothing."""
    at = paths.PCI_DEVICES
    try:
        with files.Folder(root, at) as folder:
            names = sorted(folder.names())
            found, unread = [], []
            for name in filter(is_address, names):
                try:
                    device = _master(root, folder, name)
                except OSError as error:
                    unread.append(f"{at}/{name}: {reason(error)}")
                else:
                    found += [device] if device else []
            if not all(map(is_address, names)):
                unread.append(f"{at}: what is there is not named as PCI functions are")
            # An empty one is what something that is mounted over it looks like.
            return Bus(tuple(found), tuple(unread) if names else (f"{at} is empty",), at)
    except FileNotFoundError:
        return _no_bus(root)
    except OSError as error:
        return Bus((), (f"{at}: {reason(error)}",), at)


def _no_bus(root: str) -> Bus:
    """Return what it means that there is no such folder: a kernel or machine without PCI, if its other buses are shown."""
    try:
        shown = files.names(root, paths.BUSES)
    except OSError as error:
        return Bus((), (f"{paths.BUSES}: {reason(error)}",), paths.BUSES)
    if not shown or "pci" in shown:
        return Bus((), (f"{paths.PCI_DEVICES} is not there" if shown else f"{paths.BUSES} is empty",), paths.BUSES)
    return Bus((), (), paths.BUSES)


def _master(root: str, folder: files.Folder, name: str) -> Device | None:
    """Return the function `name` if it may write to memory and no driver owns it. Raises OSError."""
    head = folder.read(f"{name}/config", _HEAD)
    if len(head) < _HEAD:
        raise OSError(0, _CUT_OFF)
    command, bridge = _word(head, _COMMAND), head[_TYPE] & _TYPE_BITS == _TYPE_BRIDGE or head[_CLASS] == _BRIDGE
    # All ones is what is read where no function is there any more.
    gone = command == _word(head, 0) == _ONES
    if gone or bridge or not command & _MASTER or _owned(root, name):
        return None
    return Device(name, *_identity(root, name, head))


def is_address(name: str) -> bool:
    """Return whether `name` has the form of a PCI function's address, such as `0000:00:03.0`."""
    domain, _, rest = name.partition(":")
    bus, _, rest = rest.partition(":")
    slot, _, function = rest.partition(".")
    parts = (domain, bus, slot, function)
    lengths = 4 <= len(domain) <= 8 and (len(bus), len(slot), len(function)) == (2, 2, 1)
    return lengths and all(char in _HEX for part in parts for char in part) and slot < "20" and function < "8"


def _word(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 2], "little")


def _owned(root: str, address: str) -> bool:
    """Return whether a driver owns the function. Raises OSError if that cannot be told."""
    owned = files.exists(root, f"{paths.PCI_DEVICES}/{address}/driver")
    if owned is None:
        raise OSError(0, "whether a driver owns it cannot be told")
    return owned


def _identity(root: str, address: str, head: bytes) -> tuple[int, int]:
    """Return vendor and device. Raises OSError if they cannot be read."""
    vendor, device = _word(head, 0), _word(head, 2)
    if vendor != _ONES:
        return vendor, device
    # A virtual function answers all ones for both (PCI Express, Single Root I/O Virtualization); the kernel knows them.
    folder = f"{paths.PCI_DEVICES}/{address}"
    try:
        vendor, device = (int(files.line(root, f"{folder}/{name}"), 16) for name in ("vendor", "device"))
    except ValueError:
        raise OSError(0, "its vendor and device are no numbers") from None
    if not (0 <= vendor <= _ONES and 0 <= device <= _ONES):
        raise OSError(0, "its vendor and device are no numbers of 16 bits")
    return vendor, device


# ---- the IOMMU


def _iommu(root: str) -> Fact:
    """Return whether the kernel uses an IOMMU: it lists each one, and what is behind it in groups."""
    units, unit_reason = _entries(root, paths.IOMMU_CLASS, paths.CLASSES[1])
    groups, group_reason = _entries(root, paths.IOMMU_GROUPS, paths.KERNEL)
    if units is None:
        return Fact(UNKNOWN, paths.IOMMU_CLASS, unit_reason)
    if groups is None:
        return Fact(UNKNOWN, paths.IOMMU_GROUPS, group_reason)
    if units and groups:
        if _passed(root):
            text = "each group of functions is of type identity: what is in it reaches all memory"
            return Fact("off", paths.IOMMU_GROUPS, text)
        return Fact("on", paths.IOMMU_GROUPS, f"{groups} groups of functions")
    if units or groups:
        lacks, has = (paths.IOMMU_GROUPS, paths.IOMMU_CLASS) if units else (paths.IOMMU_CLASS, paths.IOMMU_GROUPS)
        return Fact(UNKNOWN, lacks, f"it is empty, and {has} is not")
    return Fact("off", paths.IOMMU_CLASS)


def _passed(root: str) -> bool:
    """Return whether the IOMMU lets everything through, as with `iommu=pt`; older kernels do not say it."""
    try:
        names = files.names(root, paths.IOMMU_GROUPS)
    except OSError:
        return False
    return all(files.word(root, f"{paths.IOMMU_GROUPS}/{name}/type") == "identity" for name in names)


def _entries(root: str, path: str, above: str) -> tuple[int | None, str]:
    """Return how many entries a folder has, 0 if the folder `above` has none of that name; or None, and why."""
    try:
        return len(files.names(root, path)), ""
    except FileNotFoundError:
        try:
            return (0, "") if files.names(root, above) else (None, f"{above} is empty")
        except OSError as error:
            return None, f"{above}: {reason(error)}"
    except OSError as error:
        return None, reason(error)


# ---- stopping them


def quiesce(root: str, wanted: tuple[Device, ...]) -> Stopped:
    """Clear bus mastering of the functions `wanted`, then look at the whole bus again.

    What the first look could not see counts as one that may write. Bridges and functions with a driver are left alone.
    """
    stopped, problems, owned = [], [], []
    for device in wanted:
        try:
            if _stop(root, device):
                stopped.append(device.address)
            else:
                owned.append(Note(OWNED, f"PCI function {device} is left alone: a driver owns it by now"))
        except OSError as error:
            why = reason(error, "its configuration cannot be written")
            problems.append(Note(NOT_QUIESCED, f"PCI function {device} may still write to memory: {why}"))
    for device in [device for device in wanted if device.address in stopped]:
        try:
            if not _owned(root, device.address):
                continue
            text = f"PCI function {device}: a driver owns it by now, and its bus mastering may have been cleared under that"
            owned.append(Note(OWNED, text))
        except OSError as error:
            problems.append(Note(NOT_QUIESCED, f"PCI function {device} may write to memory again: {reason(error)}"))
        stopped.remove(device.address)
    bus, known = look(root), {device.address for device in wanted}
    for device in bus.masters:
        if device.address in stopped:
            stopped.remove(device.address)
            problems.append(Note(NOT_QUIESCED, f"PCI function {device} may write to memory again"))
        elif device.address not in known:
            problems.append(Note(NOT_QUIESCED, f"PCI function {device} may write to memory since the decision"))
    problems += [Note(NOT_QUIESCED, f"{UNSEEN}: {why}") for why in bus.unread]
    return Stopped(tuple(stopped), tuple(problems), tuple(owned))


def _stop(root: str, device: Device) -> bool:
    """Clear bus mastering of a function; return whether it is off, and not because a driver owns the function.

    Raises:
        OSError: it stays on, cannot be written, or nobody knows.
    """
    path = f"{paths.PCI_DEVICES}/{device.address}/config"
    head = _same(root, path, device)
    if _owned(root, device.address):
        return False
    files.write_at(root, path, _COMMAND, (_word(head, _COMMAND) & ~_MASTER).to_bytes(2, "little"))
    # What the function had sent before arrives before the answer does (PCI's ordering rules).
    if _word(_same(root, path, device), _COMMAND) & _MASTER:
        raise OSError(0, "bus mastering stays on")
    return True


def _same(root: str, path: str, device: Device) -> bytes:
    """Return the head of a function's configuration. Raises OSError, also if it is another function."""
    head = files.read(root, path, _HEAD)
    if len(head) < _HEAD:
        raise OSError(0, _CUT_OFF)
    found = Device(device.address, *_identity(root, device.address, head))
    if found != device:
        raise OSError(0, f"it is another one by now, {found.vendor:04x}:{found.device:04x}")
    return head
