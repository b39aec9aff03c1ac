# SPDX-License-Identifier: MIT
"""Fake roots: plain folders that look like /sys, /proc and /dev of the machines we saw."""

from __future__ import annotations

import gzip
import shutil
import struct
from pathlib import Path
from typing import Any

from safemem.boot import asked
from safemem.boot.ranges import Range

BLOCK = 128 << 20
_POLICIES = Path(__file__).resolve().parent.parent / "policies"
#: The policies that we ship; their cases lie beside them.
SHIPPED = sorted(path for path in _POLICIES.glob("*.toml") if ".cases." not in path.name)
MIB, GIB = 1 << 20, 1 << 30
#: The crash range of a guard.
AREA = Range(16 * MIB, 592 * MIB)
CONFIG_KHO = "CONFIG_KEXEC_HANDOVER=y\nCONFIG_KEXEC_HANDOVER_DEBUGFS=y\n"


def make_root(
    base: Path,
    *,
    cmdline: str = "console=ttyS0 kho=on liveupdate=on memhp_default_state=offline",
    offered: bool = False,
    kho_in: bool = False,
    kho_out: bool = True,
    debugfs: bool = True,
    config: str | None = CONFIG_KHO,
    luo: bool | None = None,
    online: str = "0-7",
    offline: str = "32-39",
    scratch: tuple[tuple[int, int], ...] = ((0x2E000000, 0x1000000), (0x3FC00000, 0x400000), (0x2A000000, 0)),
    crash: str | None = None,
    nodes: tuple[str, ...] = ("LUO", "kexec-metadata", "memblock"),
) -> Path:
    """Write a fake root below `base` and return it; the defaults are a cold boot with KHO on."""
    root = base / "root"
    text: dict[str, str | bytes] = {
        "proc/cmdline": cmdline + "\n",
        "proc/sys/kernel/arch": "x86_64\n",
        "proc/sys/kernel/osrelease": "7.3.4\n",
        "proc/sys/kernel/random/boot_id": "6f2c61c1-09d4-4b3c-a4a1-1b0d0f0a7c55\n",
        "proc/sys/kernel/kexec_load_limit_panic": "-1\n",
        "proc/sysrq-trigger": "",
        "proc/iomem": "00001000-0009fbff : System RAM\n00100000-3ffdefff : System RAM\n"
        + (f"  {crash} : Crash kernel\n" if crash else ""),
        "sys/class/dmi/id/sys_vendor": "QEMU\n",
        "sys/class/dmi/id/product_name": "Standard PC (Q35 + ICH9, 2009)\n",
        "sys/devices/system/node/online": "0\n",
        "sys/kernel/kexec_crash_size": "0\n"
        if not crash
        else f"{int(crash.split('-')[1], 16) - int(crash.split('-')[0], 16) + 1}\n",
        "sys/kernel/boot_params/version": "0x020f\n",
        "sys/kernel/boot_params/data": zero_page(pointer=0x100000 if offered else 0),
        "sys/devices/system/memory/block_size_bytes": f"{BLOCK:x}\n",
        "sys/devices/system/memory/auto_online_blocks": "offline\n",
        "dev/kmsg": "",
    }
    if config is not None:
        text["proc/config.gz"] = gzip.compress(config.encode())
    if offered:
        for number, (kind, size) in enumerate(((0x9, 32), (0xA, 32))):
            text[f"sys/kernel/boot_params/setup_data/{number}/type"] = f"{kind:#x}\n"
            text[f"sys/kernel/boot_params/setup_data/{number}/data"] = bytes(size)
    if debugfs:
        text["sys/kernel/debug/sleep_time"] = ""
        if kho_out:
            text["sys/kernel/debug/kho/out/scratch_phys"] = "".join(f"0x{start:x}\n" for start, _ in scratch)
            text["sys/kernel/debug/kho/out/scratch_len"] = "".join(f"0x{size:x}\n" for _, size in scratch)
        if kho_in:
            text["sys/kernel/debug/kho/in/fdt"] = fdt(nodes)
            text["sys/kernel/debug/kho/in/sub_fdts/kexec-metadata"] = metadata("7.3.4", 3)
    else:
        (root / "sys/kernel/debug").mkdir(parents=True)
    (root / "sys/class/misc").mkdir(parents=True, exist_ok=True)
    if kho_out if luo is None else luo:  # LUO needs KHO
        text["sys/class/misc/liveupdate/dev"] = "10:122\n"
    for state, spans in (("online", online), ("offline", offline)):
        for number in numbers(spans):
            text[f"sys/devices/system/memory/memory{number}/state"] = f"{state}\n"
            zones = "Normal" if state == "online" else "Normal Movable"
            text[f"sys/devices/system/memory/memory{number}/valid_zones"] = f"{zones}\n"
            text[f"sys/devices/system/node/node0/memory{number}/phys_index"] = f"{number:x}\n"
    for path, content in text.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def machine(base: Path, cmdline: str = "kho=on liveupdate=on") -> Path:
    """Return a machine with 1 GiB from firmware, KHO on, and an e820 map."""
    root = make_root(base, cmdline=cmdline, scratch=((548 * MIB, 228 * MIB), (828 * MIB, 92 * MIB)))
    table = ((0, 0x9FC00, 1), (0x9FC00, 0x400, 2), (MIB, GIB - MIB, 1), (0xFFFC0000, 0x40000, 2))
    (root / "sys/kernel/boot_params/data").write_bytes(zero_page(table, initrd=10 * MIB))
    (root / "proc/iomem").write_text(
        "00001000-0009fbff : System RAM\n00100000-3ffdefff : System RAM\n"
        "  21000000-21ffffff : Kernel code\n  30000000-30ffffff : Crash kernel\n"
        "40000000-7fffffff : System RAM\n"  # a DIMM, which firmware's map does not know
    )
    return root


def zero_page(table: tuple[tuple[int, int, int], ...] = (), *, pointer: int = 0, initrd: int = 0) -> bytes:
    """Return an x86 zero page as a boot loader fills it in: firmware's map, and the pointer to what more it passes."""
    page = bytearray(4096)
    page[0x1E8] = len(table)
    struct.pack_into("<4sH", page, 0x202, b"HdrS", 0x20F)
    struct.pack_into("<I", page, 0x21C, initrd)
    struct.pack_into("<Q", page, 0x250, pointer)
    page[0x2D0 : 0x2D0 + 20 * len(table)] = b"".join(struct.pack("<QQI", *entry) for entry in table)
    return bytes(page)


def pass_on(root: Path, *entries: tuple[int, bytes]) -> None:
    """Have what started this kernel pass a list of `entries`, each of them type and data, instead of what the root has."""
    folder, page = root / "sys/kernel/boot_params/setup_data", root / "sys/kernel/boot_params/data"
    shutil.rmtree(folder, ignore_errors=True)
    for number, (kind, data) in enumerate(entries):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "type").write_text(f"{kind:#x}\n")
        (folder / str(number) / "data").write_bytes(data)
    content = page.read_bytes()
    page.write_bytes(content[:0x250] + struct.pack("<Q", 0x100000 if entries else 0) + content[0x258:])


def gigantic(
    root: Path, pages: dict[int, tuple[int, ...]], *, reserved: bool = True, mapped: tuple[int, ...] = ()
) -> None:
    """Give a root pages of 1 GiB: which GiB of the address space each node has as one; `reserved` as if they were so already."""
    total = sum(map(len, pages.values()))
    pools = {f"devices/system/node/node{node}/hugepages": (len(own), own) for node, own in pages.items()}
    pools["kernel/mm/hugepages"] = (total, tuple(each for own in pages.values() for each in own))
    for where, (number, own) in pools.items():
        folder = root / "sys" / where / "hugepages-1048576kB"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "nr_hugepages").write_text(f"{number}\n")
        (folder / "free_hugepages").write_text(f"{number - len(set(own) & set(mapped))}\n")
    (folder / "resv_hugepages").write_text(f"{total if reserved else 0}\n")
    (root / "run/safemem/pages").mkdir(parents=True, exist_ok=True)
    with open(root / "proc/kpageflags", "wb") as file:
        for own in pages.values():
            for each in own:
                for place, flags in ((0, 0x28000 | (0x800 if each in mapped else 0)), (2 * MIB, 0x30000)):
                    file.seek((each * GIB + place) // 4096 * 8)
                    file.write(flags.to_bytes(8, "little"))
        file.truncate(64 * GIB // 4096 * 8)


def pci(
    root: Path,
    address: str = "0000:00:04.0",
    command: int = 0x0107,
    *,
    ids: tuple[int, int] = (0x1234, 0x11E8),
    driver: bool = False,
    header: int = 0,
    base_class: int = 0xFF,
    virtual: bool = False,
) -> Path:
    """Give a root a PCI function and return its configuration, which of a `virtual` one does not show its `ids`."""
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    head = bytearray(64)
    struct.pack_into("<HHH", head, 0, *((0xFFFF, 0xFFFF) if virtual else ids), command)
    head[11], head[14] = base_class, header
    for name, value in zip(("vendor", "device"), ids, strict=True):
        (folder / name).write_text(f"0x{value:04x}\n")
    if driver:
        (folder / "driver").symlink_to("../../drivers/some")
    (folder / "config").write_bytes(head)
    return folder / "config"


def rejecting(
    base: Path,
    pages: dict[int, tuple[int, ...]],
    wanted: dict[int, int],
    own: dict[int, int] | None = None,
    **given: Any,
) -> Path:
    """Return a rejecting machine whose predecessor asked for AREA and for `wanted` pages.

    1 GiB below 3 GiB and 4 GiB from 4 GiB up, of which node 0 has the first three, node 1 the rest.
    """
    words = asked.write(asked.Asked(AREA, GIB, tuple(wanted.items()), tuple((own or {}).items())))
    root = make_root(
        base, offered=True, crash="01000000-24ffffff", cmdline=f"kho=on memhp_default_state=offline safemem.guard={words}", online="0-7,32-63", offline="80-87"
    )  # fmt: skip
    for number in range(48, 64):
        there = root / f"sys/devices/system/node/node0/memory{number}"
        other = root / f"sys/devices/system/node/node1/memory{number}"
        other.parent.mkdir(exist_ok=True)
        there.rename(other)
    (root / "sys/devices/system/node/online").write_text("0-1\n")
    gigantic(root, pages, **given)
    return root


def numbers(spans: str) -> list[int]:
    """Return the block numbers that `0-7,9` names."""
    found: list[int] = []
    for span in filter(None, spans.split(",")):
        first, _, last = span.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def metadata(release: str, count: int) -> bytes:
    """Return the blob of `struct kho_kexec_metadata`, version 1 (Linux 7.1 and later), packed."""
    return struct.pack("<I65sI", 1, release.encode(), count)


def fdt(children: tuple[str, ...], compatible: bytes = b"kho-v4\0") -> bytes:
    """Return a flattened device tree whose root has `compatible` and empty `children`."""

    def padded(data: bytes) -> bytes:
        return data + b"\0" * (-len(data) % 4)

    body = struct.pack(">I", 1) + padded(b"\0")
    body += struct.pack(">III", 3, len(compatible), 0) + padded(compatible)
    for name in children:
        body += struct.pack(">I", 1) + padded(name.encode() + b"\0") + struct.pack(">I", 2)
    body += struct.pack(">II", 2, 9)
    strings = b"compatible\0"
    head = 40 + 16
    total = head + len(body) + len(strings)
    header = struct.pack(
        ">10I", 0xD00DFEED, total, head, head + len(body), 40, 17, 16, 0, len(strings), len(body)
    )  # fmt: skip
    return header + b"\0" * 16 + body + strings


def outgoing(root: Path, build_id: str = "", *, tree: bytes = b"kho-v4\0", luo: bytes = b"luo-v5\0") -> Path:
    """Give a root an outgoing tree, the build ID of its kernel, and processes of which none holds a session of LUO's."""
    kho = root / "sys/kernel/debug/kho/out"
    data = {"LUO": luo.ljust(32, b"\0"), "kexec-metadata": metadata("7.3.4", 1), "memblock": fdt((), b"memblock-v1\0")}
    (kho / "sub_fdts").mkdir(parents=True)
    (kho / "fdt").write_bytes(fdt(tuple(data), tree))
    for name, content in data.items():
        (kho / "sub_fdts" / name).write_bytes(content)
    (kho / "sub_fdts/memblock").unlink()  # a producer with data is at stake
    if build_id:
        note = struct.pack("<III", 4, len(build_id) // 2, 3) + b"GNU\0" + bytes.fromhex(build_id)
        (root / "sys/kernel/notes").write_bytes(struct.pack("<III4sI", 4, 4, 1, b"Xen\0", 0) + note)
    process(root, 1, "/dev/null", "socket:[4711]")
    (root / "proc/self/ns").mkdir(parents=True)
    (root / "proc/self/ns/pid").symlink_to("pid:[4026531836]")
    (root / "proc/self/mountinfo").write_text("22 27 0:21 / /proc rw,relatime - proc proc rw\n")
    return root


def process(root: Path, number: int, *targets: str) -> None:
    """Give a root a process whose descriptors lead there."""
    folder = root / f"proc/{number}/task/{number}/fd"
    folder.mkdir(parents=True)
    for index, target in enumerate(targets):
        (folder / str(index)).symlink_to(target)
