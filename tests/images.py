# SPDX-License-Identifier: MIT
"""Kernel images made by hand: what a reader looks at is right, and there is nothing else in them."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping

RELEASE = "7.3.4-made"
BUILD_ID = bytes(range(20))
VMLINUX_ADDRESS = 0xFFFF_8000_8000_0000
POINTER = (0xFFFFFFFF81000000).to_bytes(8, "little")
CONFIG = "CONFIG_KEXEC_HANDOVER=y\nCONFIG_LIVEUPDATE=y\n# CONFIG_NUMA is not set\n"
#: Machines as ELF and PE number them.
X86, ARM64 = 62, 183
PE_X86, PE_ARM64 = 0x8664, 0xAA64


def note(build_id: bytes = BUILD_ID, name: bytes = b"GNU\0", kind: int = 3) -> bytes:
    """Return an ELF note."""
    return struct.pack("<III", len(name), len(build_id), kind) + name + build_id


def ikconfig(text: str = CONFIG) -> bytes:
    """Return a configuration as a kernel has it in itself."""
    return b"IKCFG_ST" + gzip.compress(text.encode(), mtime=0) + b"IKCFG_ED"


def strings(*names: str, release: str = RELEASE) -> bytes:
    """Return read-only data: the banner, and these whole strings."""
    return (
        f"Linux version {release} (me@here) (gcc)\n".encode()
        + b"".join(b"\0" + name.encode() for name in names)
        + b"\0"
    )


def field(name: str, ops: bytes = POINTER) -> bytes:
    """Return the structure of a handler: a pointer, its name in 48 bytes, and two lists."""
    return ops + name.encode().ljust(48, b"\0") + bytes(32)


def versions(*names: str, magic: int = 0x4C565550, version: int = 1) -> bytes:
    """Return a section `.liveupdate_versions`."""
    return struct.pack("<II", magic, version) + b"".join(name.encode().ljust(48, b"\0") for name in names)


def features(*entries: tuple[str, int, int, int], size: int = 8) -> bytes:
    """Return a section `.liveupdate_features` with entries of name, supported, required, active."""
    rows = (struct.pack("<48sIIQQQ", name.encode(), size, 0, *masks) for name, *masks in entries)
    return struct.pack("<II", 0x4C565550, 1) + b"".join(rows)


def elf(sections: Mapping[str, bytes], machine: int = X86, kind: int = 2, symbols: tuple[str, ...] = ()) -> bytes:
    """Return an ELF file with these sections; `symbols` are those that it needs of others."""
    names = [*sections, *([".symtab", ".strtab"] if symbols else []), ".shstrtab"]
    text = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    bodies = dict(sections)
    if symbols:
        strtab = b"\0" + b"".join(name.encode() + b"\0" for name in symbols)
        at = [strtab.index(b"\0" + name.encode() + b"\0") + 1 for name in symbols]
        bodies[".symtab"] = b"".join(struct.pack("<IBBHQQ", place, 16, 0, 0, 0, 0) for place in at)
        bodies[".strtab"] = strtab
    bodies[".shstrtab"] = text
    out, rows = bytearray(64), [bytes(64)]
    for number, name in enumerate(names, 1):
        out += bytes(-len(out) % 16)
        kind_of = {".symtab": 2, ".strtab": 3, ".shstrtab": 3, ".notes": 7}.get(name, 1)
        label = text.index(b"\0" + name.encode() + b"\0") + 1
        link, loaded = number + 1 if name == ".symtab" else 0, 2 if name in sections else 0
        rows.append(struct.pack("<IIQQQQIIQQ", label, kind_of, loaded, 0, len(out), len(bodies[name]), link, 0, 1, 0))
        out += bodies[name]
    out += bytes(-len(out) % 8)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, 0, 0, len(out), 0, 64, 56, 0, 64, len(rows), len(rows) - 1
    )
    out[:64] = header
    return bytes(out) + b"".join(rows)


def vmlinux(
    *names: str,
    handlers: tuple[str, ...] = ("memfd-v2",),
    config: str | None = CONFIG,
    more: Mapping[str, bytes] | None = None,
) -> bytes:
    """Return a kernel as its linker makes it; without names it speaks `kho-v4` and `luo-v5`."""
    rodata = strings(*(names or ("kho-v4", "luo-v5", "memblock-v1", "reserve-mem-v1")))
    sections = {
        ".text": b"\x90" * 64,
        ".rodata": rodata + (ikconfig(config) if config is not None else b""),
        ".notes": note(b"func", b"Linux\0\0\0", 257) + note(),
        ".data": b"".join(map(field, handlers)) or bytes(8),
    }  # fmt: skip
    return elf({**sections, **(more or {})})


def bzimage(kernel: bytes, packed: bytes | None = None, release: str = RELEASE, *, efi: bool = True) -> bytes:
    """Return a bzImage around a kernel, which is packed with gzip, or as `packed` has it with the size behind it."""
    payload = packed + struct.pack("<I", len(kernel)) if packed is not None else gzip.compress(kernel, mtime=0)
    setup = bytearray(1024)
    setup[:2] = b"MZ" if efi else b"\xea\x05"
    setup[0x1F1] = 1
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<HxxxxxxH", setup, 0x206, 0x20F, 0x100)
    struct.pack_into("<H", setup, 0x236, 1)
    struct.pack_into("<II", setup, 0x248, 32, len(payload))
    setup[0x300 : 0x300 + len(release) + 8] = f"{release} (me) #1".encode()[: len(release) + 8]
    return bytes(setup) + bytes(32) + payload


def arm64(body: bytes, flags: int = 2, *, efi: bool = True) -> bytes:
    """Return an arm64 Image; pages of 4 KiB unless `flags` say otherwise."""
    head = struct.pack("<4sIQQQ", b"MZ\0\0" if efi else b"\0\0\0\x14", 0, 0, len(body) + 64, flags)
    return head.ljust(56, b"\0") + b"ARM\x64" + bytes(4) + body


def relocated(handlers: tuple[str, ...], others: tuple[str, ...] = ()) -> bytes:
    """Return the data of an arm64 Image, to stand right behind its header: fields, of which those of handlers get a pointer."""
    out, entries = bytearray(), bytearray()
    for name in (*handlers, *others):
        if name in handlers:
            entries += struct.pack("<QQQ", VMLINUX_ADDRESS + 64 + len(out), 0x403, VMLINUX_ADDRESS)
        out += field(name, bytes(8))
    return bytes(out + entries)


def zboot(payload: bytes, called: str = "gzip", start: int = 128, size: int | None = None) -> bytes:
    """Return an EFI zboot image around a packed kernel, for arm64."""
    head = struct.pack("<4s4sIIQ", b"MZ\0\0", b"zimg", start, len(payload) if size is None else size, 0)
    head += called.encode().ljust(32, b"\0")
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", PE_ARM64, 0, 0, 0, 0, 0, 0)
    return (head.ljust(60, b"\0") + struct.pack("<I", 64) + coff).ljust(128, b"\0") + payload


def pe(sections: list[tuple[str, bytes]], machine: int = PE_X86) -> bytes:
    """Return a PE file with these sections, in their order: a unified kernel image, if one is `.linux`."""
    at = 64 + 24 + 40 * len(sections)
    at += -at % 512
    rows, body = b"", b""
    for name, data in sections:
        rows += struct.pack(
            "<8sIIII", name.encode(), len(data), 0, len(data) + -len(data) % 512, at + len(body)
        ) + bytes(16)
        body += data + bytes(-len(data) % 512)
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64) + b"PE\0\0"
    head += struct.pack("<HHIIIHH", machine, len(sections), 0, 0, 0, 0, 0)
    return (head + rows).ljust(at, b"\0") + body


def lying(image: bytes, at: int, value: int, size: int = 4) -> bytes:
    """Return an image with another number at `at`."""
    return image[:at] + value.to_bytes(size, "little") + image[at + size :]


def bomb(size: int) -> bytes:
    """Return zeros, packed."""
    stream = zlib.compressobj(9, wbits=31)
    return b"".join(stream.compress(bytes(1 << 20)) for _ in range(size >> 20)) + stream.flush()
