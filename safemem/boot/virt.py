# SPDX-License-Identifier: MIT
"""Which hypervisor or container this is in, in the words and the order of systemd-detect-virt (systemd 262, src/basic/virt.c).

systemd asks the processor for its hypervisor's signature (CPUID, leaf 0x40000000). A program without that instruction has
/dev/cpu/0/cpuid where the kernel offers it, and otherwise what the running kernel made of the signature: it registers
`kvm-clock` under KVM's alone, Hyper-V's clock sources under Hyper-V's, and `xen` under Xen's.

INVARIANT: `none` takes evidence. An x86 processor says whether a hypervisor is beneath it; no other does, and there a name
that nobody knows proves nothing.
"""

from __future__ import annotations

from safemem.boot import files, paths
from safemem.boot.files import reason
from safemem.boot.model import UNKNOWN, Fact
from safemem.boot.zeropage import X86

#: How what firmware calls the machine begins -> the value; of a file the first that fits counts.
_DMI = (
    ("KVM", "kvm"), ("OpenStack", "kvm"), ("KubeVirt", "kvm"), ("Alibaba Cloud ECS", "kvm"), ("Amazon EC2", "amazon"),
    ("QEMU", "qemu"), ("VMware", "vmware"), ("VMW", "vmware"), ("innotek GmbH", "oracle"), ("VirtualBox", "oracle"),
    ("Oracle Corporation", "oracle"), ("Xen", "xen"), ("Bochs", "bochs"), ("Parallels", "parallels"), ("BHYVE", "bhyve"),
    ("Hyper-V", "microsoft"), ("Apple Virtualization", "apple"), ("Google Compute Engine", "google"),
)  # fmt: skip
#: What counts whatever signature the processor shows: these run on KVM, or look like another one.
_BEFORE_THE_PROCESSOR = ("oracle", "xen", "amazon", "parallels")
_SIGNATURES = {
    b"XenVMMXenVMM": "xen", b"KVMKVMKVM": "kvm", b"Linux KVM Hv": "kvm", b"TCGTCGTCGTCG": "qemu",
    b"VMwareVMware": "vmware", b"Microsoft Hv": "microsoft", b"bhyve bhyve ": "bhyve", b"QNXQVMBSQG": "qnx",
    b"ACRNACRNACRN": "acrn", b"SRESRESRESRE": "sre", b"Apple VZ": "apple",
}  # fmt: skip
#: How a clock source of the running kernel begins -> whose signature it has found.
_CLOCKS = (("kvm-clock", "kvm"), ("hyperv_clocksource", "microsoft"), ("xen", "xen"))
_CONTAINERS = ("lxc", "lxc-libvirt", "systemd-nspawn", "docker", "podman", "rkt", "wsl", "proot", "pouch")
_OTHER, _OTHER_CONTAINER = "vm-other", "container-other"
#: Not a value: firmware says of itself that nothing is beneath it.
_METAL = "metal"
_NO_NAME = ("none", "", UNKNOWN, _OTHER, _METAL)
#: What a hardware domain of Xen can be nested in.
_GUESTS = ("kvm", "qemu", "vmware", "microsoft", "bhyve", "google", "apple", "acrn", "bochs")
#: Bytes of a leaf; which has the signature.
_LEAF, _SIGNATURE = 16, 0x40000000
#: The first process namespace (include/linux/proc_ns.h).
_FIRST = "pid:[4026531836]"
#: Of Xen's features, the bit of the hardware domain (xen/include/public/features.h).
_DOM0 = 1 << 11
#: In firmware's BIOS table (SMBIOS, type 0): its second byte of extensions, and in that the bit of a virtual machine.
_SMBIOS_BYTE, _SMBIOS_VM = 19, 1 << 4


def read(root: str, arch: str) -> Fact:
    """Return a word of systemd-detect-virt, or unknown with the reason.

    Args:
        root: the machine.
        arch: what the kernel calls its architecture, "unknown" if that cannot be read.
    """
    found = _container(root)
    if found:
        return found
    processor = files.text(root, paths.CPUINFO)
    if arch.startswith("s390"):
        return _s390(root)
    if arch in X86 or (arch == UNKNOWN and processor is not None and "\nflags" in processor):
        return _x86(root, processor)
    return _other(root)


# ---- firmware


def _dmi(root: str) -> Fact:
    """Return what firmware's names say: a value, `none` if there are names and none is known, or unknown if they cannot be read.

    The value is "" where there is no DMI at all.
    """
    seen = ""
    for path in paths.DMI_NAMES:
        try:
            name = files.line(root, path)
        except FileNotFoundError:
            continue
        except OSError as error:
            return Fact(UNKNOWN, path, reason(error))
        seen = path
        for prefix, value in _DMI:
            if name.startswith(prefix):
                return Fact(value, path)
    return Fact("none" if seen else "", seen or paths.DMI_VENDOR)


def _smbios(root: str) -> bool | None:
    """Return firmware's bit for a virtual machine, None if it has none or only root could read it."""
    try:
        data = files.read(root, paths.SMBIOS_BIOS)
    except OSError:
        return None
    if len(data) <= _SMBIOS_BYTE or data[1] <= _SMBIOS_BYTE:
        return None
    return bool(data[_SMBIOS_BYTE] & _SMBIOS_VM)


def _ec2(root: str, dmi: Fact) -> Fact:
    """Return whether a machine of Amazon EC2 is `metal`: it has the same vendor as a guest."""
    bit = _smbios(root)
    if bit is not None:
        return Fact("amazon" if bit else _METAL, paths.SMBIOS_BIOS)
    # `m5.metal`, `m7i.metal-24xl`.
    _, metal, rest = files.word(root, paths.DMI_PRODUCT).partition(".metal")
    return Fact(_METAL, paths.DMI_PRODUCT) if metal and rest[:1] in ("", "-") else dmi


def _firmware(root: str) -> Fact:
    dmi = _dmi(root)
    if dmi.value == "amazon":
        return _ec2(root, dmi)
    if dmi.value in ("none", "") and _smbios(root):
        return Fact(_OTHER, paths.SMBIOS_BIOS, "firmware says that this is a virtual machine, of unknown make")
    return dmi


# ---- x86


def _x86(root: str, processor: str | None) -> Fact:
    dmi = _firmware(root)
    if dmi.value in _BEFORE_THE_PROCESSOR:
        return dmi
    for line in (processor or "").split("\n"):
        if line.startswith("vendor_id"):
            if "User Mode Linux" in line:
                return Fact("uml", paths.CPUINFO)
            break
    dom0 = _xen(root)
    if dom0 is False:
        return Fact("xen", paths.XEN)
    hypervisor = _hypervisor(processor)
    signature = _signature(root) if hypervisor else Fact("", "")
    if dom0:
        # Xen shows its own signature here too, so only another one tells of a hypervisor beneath it.
        nested = next((fact for fact in (signature, dmi) if hypervisor and fact.value in _GUESTS), None)
        return nested or Fact("none", paths.XEN, "it is Xen's hardware domain")
    if dmi.value == "google":
        # Metal of Google has the same name, and its guests run on KVM.
        if hypervisor is None:
            return Fact(UNKNOWN, paths.CPUINFO, "guests of Google and its metal have the same name")
        return dmi if hypervisor else Fact("none", paths.CPUINFO)
    if signature.value not in ("", "microsoft", _OTHER):
        return signature
    if dmi.value not in _NO_NAME:
        return dmi
    if files.word(root, paths.HYPERVISOR):
        return Fact(_OTHER, paths.HYPERVISOR)
    if signature.value == _OTHER:
        return signature
    if signature.value or _hyper_v(root):
        return Fact("microsoft", signature.source or paths.DMI_VENDOR)
    if hypervisor:
        return Fact(_OTHER, paths.CPUINFO, "the processor reports a hypervisor of unknown make")
    if dmi.value == _OTHER:
        return dmi
    # Either of the two may know of a hypervisor that the other does not show.
    if hypervisor is None:
        return Fact(
            UNKNOWN, paths.CPUINFO, "it cannot be read, and firmware alone does not show that there is no hypervisor"
        )
    if dmi.value == UNKNOWN:
        return dmi
    return Fact("none", dmi.source if dmi.value else paths.CPUINFO)


def _hypervisor(processor: str | None) -> bool | None:
    """Return whether the first processor says that a hypervisor is beneath it; None if its line cannot be read whole."""
    flags, whole, _ = (processor or "").partition("\nflags")[2].partition("\n")
    return "hypervisor" in flags.split() if whole else None


def _signature(root: str) -> Fact:
    """Return whose signature the processor shows, or "" if that cannot be told."""
    try:
        leaf = files.part(root, paths.CPUID, _SIGNATURE, _LEAF)
    except OSError:
        leaf = b""
    if len(leaf) == _LEAF:
        return Fact(_SIGNATURES.get(leaf[4:].rstrip(b"\0"), _OTHER), paths.CPUID)
    clocks = files.word(root, paths.CLOCKS).split()
    for prefix, value in _CLOCKS:
        if any(clock.startswith(prefix) for clock in clocks):
            return Fact(value, paths.CLOCKS)
    return Fact("", "")


def _hyper_v(root: str) -> bool:
    """Return whether firmware has the names of a Hyper-V guest; Microsoft sells hardware too, and its product name tells."""
    return files.word(root, paths.DMI_VENDOR) == "Microsoft Corporation" and (
        files.word(root, paths.DMI_PRODUCT) == "Virtual Machine"
    )


def _xen(root: str) -> bool | None:
    """Return whether this is Xen's hardware domain, False in a guest of Xen, None without Xen."""
    if not files.exists(root, paths.XEN) and files.word(root, paths.HYPERVISOR) != "xen":
        return None
    try:
        return bool(int(files.line(root, paths.XEN_FEATURES), 16) & _DOM0)
    except (OSError, ValueError):
        return "control_d" in files.word(root, paths.XEN_CAPABILITIES).split(",")


# ---- other processors


def _s390(root: str) -> Fact:
    """Return what the machine itself says (STSI): every level above the partition stands in it by name."""
    try:
        text = files.line(root, paths.SYSINFO)
    except OSError as error:
        return Fact(UNKNOWN, paths.SYSINFO, reason(error))
    for line in text.split("\n"):
        name, _, value = line.partition(":")
        if name.strip() == "VM00 Control Program":
            return Fact("zvm" if value.strip().startswith("z/VM") else "kvm", paths.SYSINFO)
    return Fact("none", paths.SYSINFO)


def _other(root: str) -> Fact:
    dmi = _firmware(root)
    if dmi.value in (*_BEFORE_THE_PROCESSOR, "google"):
        return dmi
    dom0 = _xen(root)
    if dom0 is not None:
        return Fact("none" if dom0 else "xen", paths.XEN)
    if dmi.value == _METAL:
        return dmi._replace(value="none")
    if dmi.value not in _NO_NAME:
        return dmi
    tree = _device_tree(root)
    kind = Fact(_OTHER, paths.HYPERVISOR) if files.word(root, paths.HYPERVISOR) else None
    if tree and tree.value not in (_OTHER, UNKNOWN):
        return tree
    for fact in (kind, tree, dmi):
        if fact and fact.value in (_OTHER, UNKNOWN):
            return fact
    if _hyper_v(root):
        return Fact("microsoft", paths.DMI_VENDOR)
    text = "no name of firmware's or of the device tree is a hypervisor's, and this processor does not say whether there is one"
    return Fact(UNKNOWN, dmi.source if dmi.value else paths.DEVICE_TREE, text)


def _device_tree(root: str) -> Fact | None:
    """Return which hypervisor has made the device tree, None if none shows, or unknown if it cannot be read."""
    at = paths.DEVICE_TREE
    kind = files.word(root, paths.DT_HYPERVISOR).split("\0")[0]
    if kind:
        known = (name for word, name in (("xen", "xen"), ("vmware", "vmware")) if word in kind)
        return Fact("kvm" if kind == "linux,kvm" else next(known, _OTHER), paths.DT_HYPERVISOR)
    try:
        names = files.names(root, at)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Fact(UNKNOWN, at, reason(error))
    partition = "ibm,partition-name" in names and "hmc-managed?" in names
    if partition and files.exists(root, paths.DT_QEMU) is False:
        return Fact("powervm", f"{at}/ibm,partition-name")
    if any("fw-cfg" in name for name in names):
        return Fact("qemu", at, "it has QEMU's fw-cfg")
    if files.word(root, paths.DT_COMPATIBLE).split("\0")[0] == "qemu,pseries":
        return Fact("qemu", paths.DT_COMPATIBLE)
    return None


# ---- containers


def _container(root: str) -> Fact | None:
    """Return the container that this is in; None outside, where the boot program always is."""
    if files.exists(root, paths.OPENVZ) and files.exists(root, paths.OPENVZ_HOST) is False:
        return Fact("openvz", paths.OPENVZ)
    release = files.word(root, paths.RELEASE)
    if "Microsoft" in release or "WSL" in release:
        return Fact("wsl", paths.RELEASE)
    for path in paths.CONTAINER:
        name = files.word(root, path)
        if path == paths.FIRST_ENVIRONMENT:
            name = next((item[10:] for item in name.split("\0") if item.startswith("container=")), "")
        if name:
            if name == "oci":
                return _marked(root) or Fact(_OTHER_CONTAINER, path)
            return Fact(name if name in _CONTAINERS else _OTHER_CONTAINER, path)
    space = files.link_target(root, f"{paths.NAMESPACES}/pid")
    if space == _FIRST:
        # An image that was made from a container's files has the marks of one in it.
        return None
    marked = _marked(root)
    if marked or not space:
        return marked
    return Fact(_OTHER_CONTAINER, f"{paths.NAMESPACES}/pid")


def _marked(root: str) -> Fact | None:
    return next((Fact(name, path) for path, name in paths.CONTAINER_MARKS if files.exists(root, path)), None)
