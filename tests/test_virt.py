# SPDX-License-Identifier: MIT
"""What a machine is, by what it shows: a table of machines, in the words of systemd-detect-virt (systemd 262)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot import paths, probe, virt
from safemem.boot.model import UNKNOWN

X86, ARM, POWER, S390, RISCV = "x86_64", "aarch64", "ppc64le", "s390x", "riscv64"
#: The head of /proc/cpuinfo, of an x86 with and without a hypervisor beneath it, and of others.
GUEST = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme hypervisor lahf_lm\nbugs\t\t:\n"
METAL = GUEST.replace(" hypervisor", "")
CORE = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd evtstrm aes\nCPU implementer\t: 0x41\n"
KVM, HYPERV, XENCLOCK, PLAIN = (
    "kvm-clock tsc acpi_pm",
    "hyperv_clocksource_tsc_page tsc acpi_pm",
    "xen tsc",
    "tsc hpet acpi_pm",
)
TREE = {"proc/device-tree/name": "\0"}


class Machine(NamedTuple):
    """What one shows: names of firmware's, and files by their paths."""

    name: str
    value: str
    arch: str = X86
    cpu: str | None = METAL
    vendor: str | None = None
    product: str | None = None
    board: str | None = None
    bios: str | None = None
    version: str | None = None
    clocks: str = PLAIN
    more: Mapping[str, str | bytes] = MappingProxyType({})


def bios_table(bit: bool) -> bytes:
    """Return an SMBIOS table of type 0 with or without the bit of a virtual machine."""
    return bytes([0, 24, *bytes(17), 0x0C | (0x10 if bit else 0), *bytes(4)])


SMBIOS = paths.SMBIOS_BIOS
EC2, DELL = "Amazon EC2", "Dell Inc."
MACHINES = [
    Machine("a server", "none", vendor=DELL, product="PowerEdge R760"),
    Machine("a server without DMI", "none"),
    Machine("a server whose firmware has no bit", "none", vendor=DELL, more={SMBIOS: bios_table(False)}),
    Machine("a server that says it is a machine of software", "vm-other", vendor=DELL, more={SMBIOS: bios_table(True)}),
    Machine("a server's cpuinfo that is cut off", UNKNOWN, cpu="processor\t: 0\nflags\t\t: fpu vme", vendor=DELL),
    Machine("a server without cpuinfo", UNKNOWN, cpu=None, vendor=DELL),
    Machine("QEMU with KVM", "kvm", cpu=GUEST, vendor="QEMU", product="Standard PC (Q35 + ICH9, 2009)", clocks=KVM),
    Machine("QEMU without KVM", "qemu", cpu=GUEST, vendor="QEMU", product="Standard PC (i440FX + PIIX, 1996)"),
    Machine("QEMU without the flag", "qemu", vendor="QEMU"),
    Machine("QEMU and no cpuinfo", "qemu", cpu=None, vendor="QEMU"),
    Machine("Red Hat, KVM as the product", "kvm", cpu=GUEST, vendor="Red Hat", product="KVM"),
    Machine("RHEV", "kvm", cpu=GUEST, vendor="Red Hat", product="RHEV Hypervisor", clocks=KVM),
    Machine("Red Hat and nothing else", "vm-other", cpu=GUEST, vendor="Red Hat", product="RHEL"),
    Machine("OpenStack Foundation", "kvm", cpu=GUEST, vendor="OpenStack Foundation", product="OpenStack Nova"),
    Machine("OpenStack of RDO", "kvm", cpu=GUEST, vendor="RDO", product="OpenStack Compute", clocks=KVM),
    Machine("OpenStack with QEMU alone", "kvm", cpu=GUEST, vendor="OpenStack Foundation", product="OpenStack Nova", bios="QEMU"),
    Machine("KubeVirt", "kvm", cpu=GUEST, vendor="KubeVirt", product="None", clocks=KVM),
    Machine("Alibaba", "kvm", cpu=GUEST, vendor="Alibaba Cloud", product="Alibaba Cloud ECS"),
    Machine("a cloud that names itself", "kvm", cpu=GUEST, vendor="Hetzner", product="vServer", clocks=KVM),
    Machine("a cloud that names itself, other clock", "vm-other", cpu=GUEST, vendor="DigitalOcean", product="Droplet"),
    Machine("EC2 guest", "amazon", cpu=GUEST, vendor=EC2, product="m5.large", clocks=KVM),
    Machine("EC2 guest, by firmware's bit", "amazon", cpu=GUEST, vendor=EC2, product="m5.large", more={SMBIOS: bios_table(True)}),
    Machine("EC2 guest with nothing but a vendor", "amazon", cpu=None, vendor=EC2),
    Machine("EC2 metal", "none", vendor=EC2, product="m5.metal"),
    Machine("EC2 metal of a size", "none", vendor=EC2, product="m7i.metal-24xl"),
    Machine("EC2 metal, by firmware's bit", "none", vendor=EC2, product="i3en", more={SMBIOS: bios_table(False)}),
    Machine("EC2 metal with a hypervisor beneath", "kvm", cpu=GUEST, vendor=EC2, product="c5.metal", clocks=KVM),
    Machine("EC2 metal with an unknown hypervisor beneath", "vm-other", cpu=GUEST, vendor=EC2, product="c5.metal"),
    Machine("EC2 metal without cpuinfo", UNKNOWN, cpu=None, vendor=EC2, product="c5.metal"),
    Machine("EC2 that is no metal by name", "amazon", vendor=EC2, product="x.metallic"),
    Machine("EC2 on Xen", "xen", cpu=GUEST, vendor="Xen", product="HVM domU", version="4.11.amazon", clocks=XENCLOCK),
    Machine("EC2 guest on arm64", "amazon", ARM, CORE, EC2, "m6g.large"),
    Machine("EC2 metal on arm64", "none", ARM, CORE, EC2, "m6g.metal"),
    Machine("EC2 metal on arm64, by firmware's bit", "none", ARM, CORE, EC2, "a1", more={SMBIOS: bios_table(False)}),
    Machine("EC2 guest on arm64, by firmware's bit", "amazon", ARM, CORE, EC2, "a1.metal", more={SMBIOS: bios_table(True)}),
    Machine("Google's guest", "google", cpu=GUEST, vendor="Google", product="Google Compute Engine", clocks=KVM),
    Machine("Google's metal", "none", vendor="Google", product="Google Compute Engine"),
    Machine("Google's, without cpuinfo", UNKNOWN, cpu=None, vendor="Google", product="Google Compute Engine"),
    Machine("Google's guest on arm64", "google", ARM, CORE, "Google", "Google Compute Engine"),
    Machine("a laptop of Google's", "none", vendor="Google", product="Eve"),
    Machine("Hyper-V, generation 1", "microsoft", cpu=GUEST, vendor="Microsoft Corporation", product="Virtual Machine", version="7.0"),
    Machine("Hyper-V, generation 2", "microsoft", cpu=GUEST, vendor="Microsoft Corporation", version="Hyper-V UEFI Release v4.1"),
    Machine("Hyper-V on arm64", "microsoft", ARM, CORE, "Microsoft Corporation", "Virtual Machine", version="Hyper-V UEFI Release v4.1"),
    Machine("Hyper-V's root partition", "microsoft", cpu=GUEST, vendor="Microsoft Corporation", product="C2080", clocks=HYPERV),
    Machine("a laptop of Microsoft's", "none", vendor="Microsoft Corporation", product="Surface Laptop 5"),
    Machine("QEMU that plays Hyper-V", "qemu", cpu=GUEST, vendor="QEMU", clocks=HYPERV),
    Machine("VMware", "vmware", cpu=GUEST, vendor="VMware, Inc.", product="VMware Virtual Platform"),
    Machine("VMware's newer names", "vmware", cpu=GUEST, vendor="Other", bios="VMW201.00V.21805430"),
    Machine("VMware that hides", "vmware", vendor="VMware, Inc.", product="VMware20,1"),
    Machine("VMware on arm64", "vmware", ARM, CORE, "VMware, Inc.", "VMware20,1"),
    Machine("VirtualBox", "oracle", cpu=GUEST, vendor="innotek GmbH", product="VirtualBox", clocks=KVM),
    Machine("VirtualBox by its board", "oracle", cpu=GUEST, vendor="LENOVO", product="20N2", board="Oracle Corporation"),
    Machine("Parallels", "parallels", cpu=GUEST, vendor="Parallels Software International Inc.", clocks=KVM),
    Machine("Parallels on arm64", "parallels", ARM, CORE, "Parallels International GmbH.", "Parallels ARM Virtual Machine"),
    Machine("bhyve", "bhyve", cpu=GUEST, vendor="FreeBSD", product="BHYVE"),
    Machine("Bochs", "bochs", cpu=GUEST, vendor="Bochs", product="Bochs"),
    Machine("Apple's on arm64", "apple", ARM, CORE, "Apple Inc.", "Apple Virtualization Generic Platform"),
    Machine("a Mac", "none", vendor="Apple Inc.", product="MacBookPro16,1"),
    Machine("a Mac on arm64", UNKNOWN, ARM, CORE, "Apple Inc.", "Mac mini"),
    Machine("Xen's guest", "xen", cpu=GUEST, vendor="Xen", product="HVM domU"),
    Machine("Xen's guest without DMI", "xen", cpu=GUEST, more={"proc/xen/x": "", "sys/hypervisor/type": "xen\n"}),
    Machine("Xen's guest by its features", "xen", more={"proc/xen/x": "", paths.XEN_FEATURES: "00002705\n"}),
    Machine("Xen's hardware domain", "none", vendor=DELL, more={"sys/hypervisor/type": "xen\n", "proc/xen/x": "", paths.XEN_FEATURES: "00002f05\n"}),
    Machine("Xen's hardware domain with the flag", "none", cpu=GUEST, vendor=DELL, clocks=XENCLOCK, more={"proc/xen/x": "", paths.XEN_FEATURES: "00002f05\n"}),
    Machine("Xen's hardware domain by what it may", "none", vendor=DELL, more={"proc/xen/capabilities": "control_d\n"}),
    Machine("Xen nested in QEMU", "qemu", cpu=GUEST, vendor="QEMU", more={"proc/xen/capabilities": "control_d\n"}),
    Machine("Xen's guest on arm64", "xen", ARM, CORE, more={**TREE, "proc/device-tree/hypervisor/compatible": "xen,xen-4.18\0xen,xen\0"}),
    Machine("Xen's hardware domain on arm64", "none", ARM, CORE, DELL, more={"proc/xen/capabilities": "control_d\n"}),
    Machine("a hypervisor in sysfs", "vm-other", vendor=DELL, more={"sys/hypervisor/type": "other\n"}),
    Machine("user mode Linux", "uml", cpu="processor\t: 0\nvendor_id\t: User Mode Linux\nmodel name\t: UML\n"),
    Machine("by the signature: bhyve", "bhyve", cpu=GUEST, vendor=DELL, more={paths.CPUID: b"bhyve bhyve "}),
    Machine("by the signature: ACRN", "acrn", cpu=GUEST, more={paths.CPUID: b"ACRNACRNACRN"}),
    Machine("by the signature: KVM under a name of one's own", "kvm", cpu=GUEST, vendor="VPS", more={paths.CPUID: b"KVMKVMKVM\0\0\0"}),
    Machine("by the signature: QEMU without KVM", "qemu", cpu=GUEST, vendor="VPS", more={paths.CPUID: b"TCGTCGTCGTCG"}),
    Machine("by DMI, where the signature is one of its own", "qemu", cpu=GUEST, vendor="QEMU", more={paths.CPUID: b"proxmox\0\0\0\0\0"}),
    Machine("by the signature: nobody's", "vm-other", cpu=GUEST, vendor="VPS", more={paths.CPUID: b"SomebodyElse"}),
    Machine("no flag, so what stands where the signature would is none", "none", vendor=DELL, more={paths.CPUID: b"KVMKVMKVM\0\0\0"}),
    Machine("a confidential guest", "kvm", cpu=GUEST.replace("fpu", "fpu tdx_guest"), vendor="QEMU", clocks=KVM),
    Machine("QEMU on arm64", "qemu", ARM, CORE, "QEMU", "KVM Virtual Machine"[4:]),
    Machine("KVM on arm64 by its product", "kvm", ARM, CORE, "QEMU", "KVM Virtual Machine"),
    Machine("OpenStack on arm64", "kvm", ARM, CORE, "OpenStack Foundation", "OpenStack Nova"),
    Machine("Alibaba on arm64", "kvm", ARM, CORE, "Alibaba Cloud", "Alibaba Cloud ECS"),
    Machine("a cloud that names itself, on arm64", UNKNOWN, ARM, CORE, "Hetzner", "vServer"),
    Machine("a server on arm64", UNKNOWN, ARM, CORE, "Ampere", "Mt. Jade"),
    Machine("arm64 with firmware's bit", "vm-other", ARM, CORE, "Somebody", more={SMBIOS: bios_table(True)}),
    Machine("arm64 without firmware's bit", UNKNOWN, ARM, CORE, "Somebody", more={SMBIOS: bios_table(False)}),
    Machine("QEMU's device tree", "qemu", ARM, CORE, more={**TREE, "proc/device-tree/fw-cfg@9020000/name": "fw-cfg\0"}),
    Machine("a device tree for KVM", "kvm", ARM, CORE, more={**TREE, paths.DT_HYPERVISOR: "linux,kvm\0"}),
    Machine("a device tree for VMware", "vmware", ARM, CORE, more={**TREE, paths.DT_HYPERVISOR: "vmware\0"}),
    Machine("a device tree for another", "vm-other", ARM, CORE, more={**TREE, paths.DT_HYPERVISOR: "acme\0"}),
    Machine("a board", UNKNOWN, ARM, CORE, more={**TREE, paths.DT_COMPATIBLE: "raspberrypi,5\0"}),
    Machine("arm64 that shows nothing", UNKNOWN, ARM, CORE),
    Machine("PowerVM", "powervm", POWER, "", more={**TREE, "proc/device-tree/ibm,partition-name": "a\0", "proc/device-tree/hmc-managed?": ""}),
    Machine("pSeries of QEMU", "qemu", POWER, "", more={**TREE, paths.DT_COMPATIBLE: "qemu,pseries\0"}),
    Machine("a POWER machine", UNKNOWN, POWER, "", more={**TREE, paths.DT_COMPATIBLE: "ibm,powernv\0"}),
    Machine("a guest of QEMU on RISC-V", "qemu", RISCV, "", more={**TREE, "proc/device-tree/fw-cfg@10100000/name": "fw-cfg\0"}),
    Machine("z/VM", "zvm", S390, "", more={paths.SYSINFO: "Manufacturer:  IBM\nLPAR Name: A\nVM00 Control Program: z/VM    7.3.0\n"}),
    Machine("KVM on s390", "kvm", S390, "", more={paths.SYSINFO: "Manufacturer:  IBM\nVM00 Control Program: KVM/Linux\n"}),
    Machine("a partition of s390", "none", S390, "", more={paths.SYSINFO: "Manufacturer:  IBM\nLPAR Name: A\n"}),
    Machine("s390 that is cut off", UNKNOWN, S390, "", more={paths.SYSINFO: "Manufacturer:  IBM\nVM0"}),
    Machine("docker", "docker", cpu=GUEST, vendor="QEMU", more={".dockerenv": ""}),
    Machine("podman", "podman", vendor=DELL, more={"run/.containerenv": "", ".dockerenv": ""}),
    Machine("nspawn", "systemd-nspawn", vendor=DELL, more={"run/systemd/container": "systemd-nspawn\n"}),
    Machine("a manager's word", "lxc", vendor=DELL, more={"run/host/container-manager": "lxc\n", ".dockerenv": ""}),
    Machine("the first process's word", "podman", vendor=DELL, more={"proc/1/environ": "PATH=/bin\0container=podman\0"}),
    Machine("oci", "docker", vendor=DELL, more={"proc/1/environ": "container=oci\0", ".dockerenv": ""}),
    Machine("oci alone", "container-other", vendor=DELL, more={"proc/1/environ": "container=oci\0"}),
    Machine("another manager", "container-other", vendor=DELL, more={"run/systemd/container": "acme\n"}),
    Machine("WSL", "wsl", cpu=GUEST, more={"proc/sys/kernel/osrelease": "5.15.90.1-microsoft-standard-WSL2\n"}),
    Machine("OpenVZ", "openvz", vendor=DELL, more={"proc/vz/x": ""}),
    Machine("a host of OpenVZ", "none", vendor=DELL, more={"proc/vz/x": "", "proc/bc/x": ""}),
]  # fmt: skip


def build(root: Path, machine: Machine) -> str:
    """Make the root of a machine."""
    names = dict(zip(paths.DMI_NAMES, (machine.product, machine.vendor, machine.board, machine.bios, machine.version), strict=True))  # fmt: skip
    content: dict[str, str | bytes | None] = {
        paths.ARCH: f"{machine.arch}\n",
        paths.CPUINFO: machine.cpu,
        paths.CLOCKS: f"{machine.clocks} \n",
        **{path: f"{name}\n" for path, name in names.items() if name is not None},
        **machine.more,
    }
    for path, data in content.items():
        if data is None:
            continue
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path == paths.CPUID:
            with open(root / path, "wb") as file:
                file.seek(0x40000000)
                file.write(b"\1\0\0\x40" + bytes(data))  # type: ignore[arg-type]
        else:
            (root / path).write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(root)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name.replace(" ", "-"))
def test_machine(tmp_path: Path, machine: Machine) -> None:
    """Each is what systemd-detect-virt calls it, and one that cannot be told is unknown, with the reason."""
    fact = probe.read_snapshot(build(tmp_path, machine)).facts["virt"]

    assert fact.value == machine.value, fact
    assert fact.source
    assert fact.reason or fact.value != UNKNOWN


def test_the_first_process_namespace_is_no_container(tmp_path: Path) -> None:
    """An initramfs made from a container's files has that mark; a namespace of its own is a container without one."""
    root = build(tmp_path, Machine("", "", vendor=DELL, more={".dockerenv": ""}))
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/pid").symlink_to("pid:[4026531836]")
    assert virt.read(root, X86).value == "none"

    (tmp_path / ".dockerenv").unlink()
    (tmp_path / "proc/self/ns/pid").unlink()
    (tmp_path / "proc/self/ns/pid").symlink_to("pid:[4026532201]")
    assert virt.read(root, X86).value == "container-other"


def test_names_that_may_not_be_read(tmp_path: Path) -> None:
    """A name that is there and cannot be read may be a hypervisor's."""
    root = build(tmp_path, Machine("", "", vendor=DELL))
    (tmp_path / paths.DMI_NAMES[2]).mkdir()

    assert virt.read(root, X86).value == UNKNOWN


@given(
    st.sampled_from([ARM, POWER, RISCV]), st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=12)
)
def test_no_name_makes_metal(tmp_path_factory: pytest.TempPathFactory, arch: str, name: str) -> None:
    """Where the processor does not tell, a name that nobody knows is never evidence for hardware."""
    root = build(tmp_path_factory.mktemp("r"), Machine("", "", arch, "", name, name))

    assert virt.read(root, arch).value != "none"
