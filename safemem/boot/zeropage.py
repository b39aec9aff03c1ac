# SPDX-License-Identifier: MIT
"""What whoever started this kernel passed to it: whether a handover was among it, and firmware's map of memory.

x86 has the zero page, with a pointer to a list of more (Documentation/arch/x86/zero-page.rst, boot.rst); other machines have
a device tree. That something is missing is evidence only where all of the place was read that it would stand in, and nothing
else was mounted over that place.
"""

from __future__ import annotations

from safemem.boot import files, paths
from safemem.boot.files import reason
from safemem.boot.model import UNKNOWN, Fact

#: Types of entries of the list (arch/x86/include/uapi/asm/setup_data.h).
SETUP_E820_EXT, SETUP_KEXEC_KHO = 1, 10
#: Beside another type: the data lies elsewhere. Kernels read neither a map nor a handover that is passed so
#: (parse_setup_data in arch/x86/kernel/setup.c), and later ones may.
SETUP_INDIRECT = 1 << 31
#: Bytes of the page, and offsets in it: the header's magic and version, its pointer to the list; entries, table.
_SIZE, _MAGIC, _VERSION, _POINTER, _E820_COUNT, _E820_TABLE = 4096, 0x202, 0x206, 0x250, 0x1E8, 0x2D0
#: The loader's number: every loader has one, and so has what stands in for a loader.
_LOADER = 0x210
#: The boot protocol has the pointer since 2.09.
_OLDEST = 0x209
#: Bytes of an entry of the map, and how many the page has room for.
_ENTRY, _MOST = 20, 128
#: The architectures of which every kernel shows the zero page, as /proc/sys/kernel/arch calls them.
X86 = ("x86_64", "i686", "i586", "i486", "i386")
#: Those that can hand over (ARCH_SUPPORTS_KEXEC_HANDOVER in arch/*/Kconfig of Linux 7.3).
KHO = ("x86_64", "aarch64")


def offered(root: str) -> Fact:
    """Return whether the predecessor left a handover: `yes`, `no` or unknown.

    INVARIANT: `no` takes a place that was read whole, and in which there is none.
    """
    found = [fact for fact in (_by_setup_data(root), _by_device_tree(root)) if fact]
    for value in ("yes", UNKNOWN):
        for fact in found:
            if fact.value == value:
                return fact
    if found:
        return found[0]
    arch = files.word(root, paths.ARCH)
    if arch and arch not in KHO:
        # Not `none`: a later kernel of it may hand over, in a way that is not known here.
        return Fact(
            UNKNOWN, paths.ARCH, f"Linux hands over on {' and '.join(KHO)}, and {arch} shows nothing of its predecessor"
        )
    return Fact(UNKNOWN, paths.SETUP_DATA, f"neither {paths.BOOT_PARAMS_FOLDER} nor {paths.CHOSEN} exists")


def firmware_map(root: str) -> tuple[tuple[int, int, int], ...]:
    """Return the entries of firmware's map as start, bytes and type: those in the zero page, and those that it has no room for.

    Raises:
        OSError: they cannot be read, as on everything that is not x86.
        ValueError: the page is none, or part of the map is missing.
    """
    page = files.read(root, paths.BOOT_PARAMS)
    count = page[_E820_COUNT] if len(page) == _SIZE else 0
    if count > _MOST:
        raise ValueError(f"{paths.BOOT_PARAMS} holds a memory map of {count} entries, and has room for {_MOST}")
    table = page[_E820_TABLE : _E820_TABLE + _ENTRY * count]
    if _pointer(page):
        entries, unread = _entries(root)
        if unread and count == _MOST:
            raise ValueError(
                f"{paths.BOOT_PARAMS} holds {_MOST} entries of a memory map, and whether there are more cannot be told:"
                f" {unread.source}: {unread.reason}"
            )
        if elsewhere := [path for path, kind in entries if kind in (SETUP_INDIRECT, SETUP_INDIRECT | SETUP_E820_EXT)]:
            raise ValueError(
                f"{elsewhere[0]}/type says that its data is elsewhere: part of the memory map may be missing"
            )
        for path in (path for path, kind in entries if kind == SETUP_E820_EXT):
            more = files.read(root, f"{path}/data")
            if not more or len(more) % _ENTRY:
                raise ValueError(f"{path}/data is cut off: part of the memory map is missing")
            table += more
    return tuple(
        (_number(table, at, 8), _number(table, at + 8, 8), _number(table, at + 16, 4))
        for at in range(0, len(table), _ENTRY)
    )


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _pointer(page: bytes) -> int:
    return _number(page, _POINTER, 8)


# ---- x86


def _by_setup_data(root: str) -> Fact | None:
    """Return what x86's zero page and the list behind it say; None on a machine without one."""
    at = paths.BOOT_PARAMS_FOLDER
    try:
        shown = files.names(root, at)
    except FileNotFoundError:
        try:
            x86 = files.line(root, paths.ARCH) in X86
        except OSError as error:
            return Fact(UNKNOWN, paths.ARCH, f"{reason(error)}: an x86 would show {at}, which is not there")
        if x86:
            return Fact(UNKNOWN, at, "it is not there, and every x86 kernel shows it")
        # Something else may have a device tree, and has to show more of sysfs than nothing.
        return None if files.is_folder(root, paths.KERNEL) else Fact(UNKNOWN, paths.KERNEL, "it is not there")
    except OSError as error:
        return Fact(UNKNOWN, at, reason(error))
    if not shown:
        return Fact(UNKNOWN, at, "it is empty: something else is mounted there")
    # The kernel shows the page always, and the list only if it has entries (arch/x86/kernel/ksysfs.c).
    listed = "setup_data" in shown
    if not listed and files.exists(root, paths.SETUP_DATA) is not False:
        return Fact(UNKNOWN, paths.SETUP_DATA, "it is hidden")
    answer = Fact("no", paths.BOOT_PARAMS, "the pointer to what more is passed is 0")
    places = [at, paths.BOOT_PARAMS, paths.BOOT_VERSION]
    if listed:
        entries, unread = _entries(root)
        places += [paths.SETUP_DATA, *(f"{path}/type" for path, _ in entries)]
        handover = next((path for path, kind in entries if kind & ~SETUP_INDIRECT == SETUP_KEXEC_KHO), "")
        answer = (
            Fact("yes", f"{handover}/type")
            if handover
            else unread or Fact("no", paths.SETUP_DATA, "none is of a handover")
        )
    pointer = _page(root)
    if isinstance(pointer, Fact):
        return pointer if answer.value == "no" else answer
    if bool(pointer) != listed:
        says = (
            "it points to a list that is not shown"
            if pointer
            else f"it points to no list, and {paths.SETUP_DATA} is there"
        )
        return Fact(UNKNOWN, paths.BOOT_PARAMS, says)
    over = _mounted(root, places) if answer.value == "no" else ""
    return Fact(UNKNOWN, over, "something else is mounted there") if over else answer


def _page(root: str) -> int | Fact:
    """Return the zero page's pointer to the list, 0 if there is none; or what is wrong with the page."""
    path = paths.BOOT_PARAMS
    try:
        page = files.read(root, path)
        version = int(files.line(root, paths.BOOT_VERSION), 16)
    except OSError as error:
        return Fact(UNKNOWN, str(error.filename or path).removeprefix(f"{root.rstrip('/')}/"), reason(error))
    except ValueError:
        return Fact(UNKNOWN, paths.BOOT_VERSION, "the version is not a number")
    if len(page) != _SIZE:
        return Fact(UNKNOWN, path, f"it has {len(page)} bytes, not {_SIZE}")
    if _number(page, _VERSION, 2) != version:
        return Fact(UNKNOWN, path, f"it is of another version of the boot protocol than {paths.BOOT_VERSION}")
    # Where the kernel makes the page itself there is no magic, and the version may be 0: the EFI stub (seen under OVMF), PVH,
    # Xen. It follows the pointer whatever the version (parse_setup_data in arch/x86/kernel/setup.c).
    magic = page[_MAGIC : _MAGIC + 4]
    if not (page[_LOADER] if magic == bytes(4) else magic == b"HdrS" and version >= _OLDEST):
        return Fact(UNKNOWN, path, "it is not the page of a boot protocol that can pass a handover")
    return _pointer(page)


def _entries(root: str) -> tuple[list[tuple[str, int]], Fact | None]:
    """Return each entry of the list, as its folder and its type, and what of the list cannot be read."""
    at = paths.SETUP_DATA
    try:
        names = files.names(root, at)
    except OSError as error:
        return [], Fact(UNKNOWN, at, reason(error))
    # They are numbered from 0.
    whole = bool(names) and {str(number) for number in range(len(names))} == set(names)
    found, unread = [], None if whole else Fact(UNKNOWN, at, "entries are missing from it")
    for name in names:
        path = f"{at}/{name}"
        try:
            kind = int(files.line(root, f"{path}/type"), 16)
            found.append((path, kind))
            if kind == SETUP_INDIRECT:  # the kernel shows the type of what it points to, and that is none
                unread = Fact(UNKNOWN, f"{path}/type", "its data is elsewhere, and of which type is not shown")
        except OSError as error:
            unread = Fact(UNKNOWN, f"{path}/type", reason(error))
        except ValueError:
            unread = Fact(UNKNOWN, f"{path}/type", "the type is not a number")
    return found, unread


def _mounted(root: str, places: list[str]) -> str:
    """Return one of `places`, which are all sysfs's own, over which something else is mounted; "" if there is none."""
    try:
        own = files.filesystem(root, paths.SYS)
        return next((place for place in places if files.filesystem(root, place) != own), "")
    except OSError:
        return places[0]


# ---- machines with a device tree


def _by_device_tree(root: str) -> Fact | None:
    """Return what the device tree says; None on a machine without one."""
    try:
        shown = files.names(root, paths.CHOSEN)
    except FileNotFoundError:
        if files.exists(root, paths.DEVICE_TREE) is False:
            return None
        return Fact(UNKNOWN, paths.CHOSEN, "the device tree has no such node")
    except OSError as error:
        return Fact(UNKNOWN, paths.CHOSEN, reason(error))
    for name in paths.CHOSEN_KHO:
        if name in shown:
            return Fact("yes", f"{paths.CHOSEN}/{name}")
    # The kernel gives every node a `name` (drivers/of/fdt.c): a listing without it is not whole. It is read as well, so that
    # what only looks like the node is none.
    name = f"{paths.CHOSEN}/name"
    if "name" not in shown:
        return Fact(UNKNOWN, paths.CHOSEN, "it is empty, or entries are missing from it")
    try:
        whole = files.read(root, name) == b"chosen\0"
    except OSError as error:
        return Fact(UNKNOWN, name, reason(error))
    if not whole:
        return Fact(UNKNOWN, name, "it is of another node")
    # proc/device-tree is a link into sysfs (fs/proc/root.c, drivers/of/base.c), so nothing of it is on another file system.
    over = _mounted(root, [paths.CHOSEN, name])
    return (
        Fact(UNKNOWN, over, "something else is mounted there")
        if over
        else Fact("no", paths.CHOSEN, "it has no handover")
    )
