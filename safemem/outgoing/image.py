# SPDX-License-Identifier: MIT
"""A kernel image of any form, opened in memory: what is around the kernel, and the kernel itself, unpacked.

Forms: bzImage (Documentation/arch/x86/boot.rst), EFI zboot (drivers/firmware/efi/libstub/zboot-header.S), arm64 Image
(Documentation/arch/arm64/booting.rst) and that packed, ELF; each may be in a unified kernel image (UAPI specification 5).
"""

from __future__ import annotations

import contextlib
import struct
from typing import NamedTuple

from safemem.boot.files import reason
from safemem.initramfs import packed, pe
from safemem.initramfs.store import Store, opened
from safemem.outgoing import elf, facts
from safemem.outgoing.elf import Elf, Part
from safemem.outgoing.kernel import Kernel

#: Bytes of all kernels of an image as they are unpacked. The largest of Debian has two thirds of that.
LIMIT = 96 << 20
#: Different kernels of a unified image; each is searched, and its modules are.
KERNELS = 4
#: Packed bytes that are unpacked of what is slow: some two seconds on an old machine. No kernel of a distribution has them.
SLOW = {"xz": 16 << 20, "lzma": 16 << 20, "bzip2": 10 << 20}
UNIFIED = "unified kernel image"
_BZIMAGE, _ZBOOT, _IMAGE, _ELF = "bzImage", "EFI zboot", "arm64 Image", "ELF"
#: Offsets in a bzImage: number of sectors before the kernel, magic, version, place of the release, flags, payload.
_SECTORS, _HDRS, _PROTOCOL, _RELEASE, _XLOADFLAGS, _PAYLOAD = 0x1F1, 0x202, 0x206, 0x20E, 0x236, 0x248
_PAGES = {1: 4096, 2: 16384, 3: 65536}
_ARM64 = b"ARM\x64"
#: What an archive of an initrd begins with (Documentation/driver-api/early-userspace/buffer-format.rst).
_CPIO = (b"070701", b"070702")


class Opened(NamedTuple):
    """A kernel that lies open: its parts can be searched."""

    form: str
    parts: tuple[Part, ...]
    packed: str = ""
    arch: str = ""
    page_size: int = 0
    release: str = ""  #: that its header says
    efi: bool = False


class _Left:
    """What may still be unpacked of an image: bytes, and a part of SLOW. All kernels of a unified one share it."""

    def __init__(self, limit: int) -> None:
        """Begin with `limit` bytes and all of SLOW."""
        self.bytes, self.slow = limit, 1.0


def read(path: str, root: str = "/", limit: int = LIMIT, *, modules: bool = True) -> tuple[Kernel, ...]:
    """Return the kernel in an image; of a unified one with profiles, one for each of them.

    Args:
        path: the image.
        root: where a configuration that is not in the image is looked for, and modules.
        limit: bytes that all its kernels together may have unpacked.
        modules: look for modules that register handlers with LUO.

    Raises:
        NoKernel: it cannot be read, is damaged, or is no kernel.
    """
    with opened(path) as store:
        return _kernels(store, path, root, limit, modules=modules)


def read_bytes(data: bytes, path: str = "", root: str = "/", limit: int = LIMIT) -> tuple[Kernel, ...]:
    """Return the kernel in an image that is in memory, as `read` does; `path` is what it is called. Raises NoKernel."""
    return _kernels(Store(path, data), path, root, limit, modules=True)


def _kernels(store: Store, path: str, root: str, limit: int, *, modules: bool) -> tuple[Kernel, ...]:
    if not store.size:
        raise store.refused("the file is empty")
    profiles = pe.profiles(store)
    if profiles and (forms := _forms(store.head(0, 1024))):
        raise store.refused(f"this is a {UNIFIED} and {forms[0]} at once: what a loader takes it for cannot be told")
    if not profiles:
        return (facts.kernel(_open(store, _Left(limit)), store, path, root, modules=modules),)
    kernels: dict[int, Kernel] = {}
    found = []
    different = {profile.kernel.at: profile.kernel for profile in profiles}
    if len(different) > KERNELS:
        raise store.refused(f"{len(different)} different kernels in its profiles, and no more than {KERNELS} are read")
    left = _Left(limit)
    for at, section in different.items():
        inner = Store(store.name, store.cut(at, section.size, "its section `.linux`"))
        lies_open = _open(inner, left)
        # What is searched counts, also where nothing was packed.
        left.bytes = max(0, left.bytes - max(len(part.data) for part in lies_open.parts))
        kernels[at] = facts.kernel(lies_open, inner, path, root, modules=modules)
        del inner, lies_open
    # Profiles share what they have from the base: each section is read, and in memory, once.
    sections = {section.at: section for profile in profiles for section in profile.initrds}
    initrds = {at: store.cut(at, item.size, f"its section `{item.name}`") for at, item in sections.items()}
    for profile in profiles:
        own = {"container": UNIFIED, "profile": profile.name, "cmdline": profile.cmdline, "efi": True}
        within = tuple(initrds[section.at] for section in profile.initrds)
        kernel = kernels[profile.kernel.at]
        untold = kernel.untold
        if profile.release and kernel.release and profile.release != kernel.release:
            untold += (f"its section `.uname` says {profile.release}, and the kernel in it {kernel.release}",)
        found.append(kernel._replace(initrds=within, untold=untold, **own))  # type: ignore[arg-type]
    return tuple(found)


def _open(store: Store, left: _Left, *, inner: bool = False) -> Opened:
    """Return the kernel in the image; `inner` is one that was packed as a whole, and is packed no second time."""
    head = store.head(0, 1024)
    forms = _forms(head)
    if len(forms) > 1:
        raise store.refused(f"this is {' and '.join(forms)} at once: what a loader takes it for cannot be told")
    if forms == [_IMAGE]:
        return _arm64(store, head, left)
    if forms == [_ELF]:
        return _elf(store)
    if not inner:
        if forms == [_BZIMAGE]:
            return _bzimage(store, head, left)
        if forms == [_ZBOOT]:
            return _zboot(store, head, left)
        name = packed.compression(head)
        if _is_initrd(store, left) if name else head.startswith(_CPIO):
            raise store.refused("this is an initrd; did you swap --kernel and --initrd?")
        if name:
            data = _unpacked(store, store.whole(left.bytes), left, left.bytes)
            return _open(Store(store.name, data), left, inner=True)._replace(packed=name)
    raise store.refused("this is no kernel image: neither bzImage, EFI zboot, arm64 Image, ELF, nor a unified one")


def _is_initrd(store: Store, left: _Left) -> bool:
    """Return whether what is packed begins like an initrd: it may be larger than any kernel, and is not unpacked for that."""
    with contextlib.closing(packed.pieces(store.whole(left.bytes), 0, alone=True)) as pieces:
        try:
            return next(pieces, b"").startswith(_CPIO)
        except (packed.Unreadable, OSError):
            return False


def _forms(head: bytes) -> list[str]:
    """Return the forms that the beginning of an image has the marks of."""
    marks = {
        _BZIMAGE: head[_HDRS : _HDRS + 4] == b"HdrS", _ZBOOT: head[:2] == b"MZ" and head[4:8] == b"zimg",
        _IMAGE: head[56:60] == _ARM64, _ELF: head.startswith(elf.MAGIC),
    }  # fmt: skip
    return [form for form, has in marks.items() if has]


def _unpacked(store: Store, data: bytes, left: _Left, limit: int) -> bytes:
    """Return what `data` unpacks to, at most `limit` bytes; what is slow is taken from what is left of that."""
    name = packed.compression(data[:8])
    if name in SLOW:
        if len(data) > SLOW[name] * left.slow:
            most = int(SLOW[name] * left.slow) >> 20
            raise store.refused(
                f"its kernel is {len(data) >> 20} MiB packed with {name}, and no more than {most} MiB of that are unpacked"
            )
        left.slow -= len(data) / SLOW[name]
    try:
        return packed.whole(data, 0, limit, alone=True)[0]
    except packed.Unreadable as error:
        raise store.refused(f"its packed kernel: {error}") from None
    except OSError as error:
        raise store.refused(f"its packed kernel cannot be unpacked here: {reason(error)}") from None


def _arm64(store: Store, head: bytes, left: _Left) -> Opened:
    flags = struct.unpack_from("<Q", head, 24)[0]
    data = store.whole(left.bytes)
    arch = "aarch64_be" if flags & 1 else "aarch64"
    parts = (Part("", data, 0, len(data)),)
    return Opened(_IMAGE, parts, "", arch, _PAGES.get(flags >> 1 & 3, 0), efi=head[:2] == b"MZ")


def _elf(store: Store) -> Opened:
    found = elf.read(store)
    if found.type not in elf.KERNEL:
        raise store.refused("this is an object file, and no kernel")
    return Opened(_ELF, _parts(store, found), "", found.arch, _page_size(found.arch))


def _parts(store: Store, found: Elf) -> tuple[Part, ...]:
    """Return the sections of a kernel; one without a name if it has none."""
    if found.parts or store.data is None:
        return found.parts
    return (Part("", store.data, 0, store.size),)


def _page_size(arch: str) -> int:
    """Return the size of pages where the architecture has one size only."""
    return 4096 if arch in ("x86_64", "i686") else 0


def _bzimage(store: Store, head: bytes, left: _Left) -> Opened:
    start, size = struct.unpack_from("<II", store.cut(0, _PAYLOAD + 8, "the header of a bzImage"), _PAYLOAD)
    protocol = struct.unpack_from("<H", head, _PROTOCOL)[0]
    if protocol < 0x208 or not size:
        raise store.refused(f"its boot protocol {protocol >> 8}.{protocol & 255:02} does not say where its kernel is")
    start += ((head[_SECTORS] or 4) + 1) * 512
    payload = store.cut(start, size, "the packed kernel that its header names")
    name = packed.compression(payload[:8])
    if not name:
        raise store.refused(f"byte {start}: the packed kernel that its header names begins like none")
    # scripts/Makefile.lib puts the size behind the stream; gzip has it there itself.
    stated = int.from_bytes(payload[-4:], "little")
    if stated > left.bytes:
        raise store.refused(
            f"its kernel unpacks to {stated >> 20} MiB, and no more than {left.bytes >> 20} MiB are read"
        )
    data = _unpacked(store, payload if name == "gzip" else payload[:-4], left, stated)
    if len(data) != stated:
        raise store.refused(f"its kernel unpacks to {len(data)} bytes, and should to {stated}")
    inner = Store(store.name, data)
    if not data.startswith(elf.MAGIC):
        raise store.refused("what is packed in it is no ELF file")
    found = elf.read(inner)
    flags = struct.unpack_from("<H", head, _XLOADFLAGS)[0] if protocol >= 0x20C else 0
    arch = found.arch or ("x86_64" if flags & 1 else "")
    return Opened(
        _BZIMAGE, _parts(inner, found), name, arch, _page_size(arch), _release(store, head), head[:2] == b"MZ"
    )


def _release(store: Store, head: bytes) -> str:
    """Return the release that the header of a bzImage names; "" if it names none."""
    at = struct.unpack_from("<H", head, _RELEASE)[0]
    text = store.head(at + 512, 256).partition(b"\0")[0] if at else b""
    return text.partition(b" ")[0].decode("ascii", "replace")


def _zboot(store: Store, head: bytes, left: _Left) -> Opened:
    start, size = struct.unpack_from("<II", head.ljust(64, b"\0"), 8)
    payload = store.cut(start, size, "the packed kernel that its header names")
    called = head[24:32].partition(b"\0")[0].decode("ascii", "replace")
    name = packed.compression(payload[:8])
    if not name:
        raise store.refused(f"byte {start}: the packed kernel that its header names begins like none")
    if not (name == called or {name, called} == {"zstd", "zstd22"} or {name, called} == {"xz", "xzkern"}):
        raise store.refused(f"its header says that it is packed with `{called}`, and it is with {name}")
    data = _unpacked(store, payload, left, left.bytes)
    inner = Store(store.name, data)
    if data[56:60] == _ARM64 or data.startswith(elf.MAGIC):
        found = _open(inner, left, inner=True)
    else:
        found = Opened("", (Part("", data, 0, len(data)),), arch=pe.arch(store))
    return found._replace(form=_ZBOOT, packed=name, efi=True)
