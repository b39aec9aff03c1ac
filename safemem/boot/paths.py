# SPDX-License-Identifier: MIT
"""Every file of the kernel that the boot half reads or writes, relative to the root.

Where the kernel renamed one, all its names stand in one tuple, the newest first; the first that is there
counts. To follow a rename, add the new name here, with the release that brought it.
"""

from __future__ import annotations

# ---- Kexec HandOver, as this kernel shows it
#: KHO is announced to move from debugfs to sysfs once it is stable (Documentation/core-api/kho/index.rst).
KHO = ("sys/kernel/kho", "sys/kernel/debug/kho")
#: Below `out` of KHO; "scratch" is announced to become "bootmem" in Linux 7.4.
SCRATCH_PHYS = ("bootmem_phys", "scratch_phys")
SCRATCH_LEN = ("bootmem_len", "scratch_len")
#: Below KHO: a file for each producer that hands anything over.
PRODUCERS = "out/sub_fdts"
#: Arguments of the kernel for the size of the scratch areas: since Linux 7.4, and before.
SCRATCH_ARGUMENT = ("kho_bootmem", "kho_scratch")
#: Below KHO: the tree that this kernel hands over at each kexec (Documentation/core-api/kho/index.rst).
OUT_TREE = "out/fdt"
DEBUGFS = "sys/kernel/debug"
LUO_DEVICE = "dev/liveupdate"
LUO_CLASS = "sys/class/misc/liveupdate"
CLASSES = ("sys/class/misc", "sys/class")

# ---- what the predecessor left
SYS = "sys"
#: Is there whenever sysfs is.
KERNEL = "sys/kernel"
#: x86: the zero page and the list behind it (Documentation/arch/x86/zero-page.rst).
BOOT_PARAMS_FOLDER = "sys/kernel/boot_params"
BOOT_PARAMS = "sys/kernel/boot_params/data"
BOOT_VERSION = "sys/kernel/boot_params/version"
SETUP_DATA = "sys/kernel/boot_params/setup_data"
#: Machines with a device tree.
DEVICE_TREE = "proc/device-tree"
CHOSEN = "proc/device-tree/chosen"
CHOSEN_KHO = ("linux,kho-fdt", "linux,kho-scratch")

# ---- processes, of which each has a folder with its number as its name
PROC = "proc"
#: What of them and of mounts whoever looks can see.
NAMESPACES = "proc/self/ns"
MOUNTS = "proc/self/mountinfo"

# ---- the kernel itself
CMDLINE = "proc/cmdline"
RELEASE = "proc/sys/kernel/osrelease"
ARCH = "proc/sys/kernel/arch"
#: The configuration; `{}` is the running release.
CONFIG = ("proc/config.gz", "boot/config-{}", "usr/lib/modules/{}/config")
#: ELF notes of the running kernel, its build ID among them.
NOTES = "sys/kernel/notes"
KMSG = "dev/kmsg"
SYSRQ = "proc/sysrq-trigger"
UPTIME = "proc/uptime"
#: The name of the process that writes it, as an oops and a panic show it.
COMM = "proc/self/comm"
#: What a process has open; `{}` is its number.
DESCRIPTORS = "proc/{}/fd"
#: Ours: who holds this kernel's token for the next one, `DIGEST PID`; and what the first look of this boot at the
#: predecessor's found, `right`, `wrong`, `missing` or `none`, the digest that was asked for, and why.
TOKEN_HELD = "run/safemem/token"
TOKEN_TAKEN = "run/safemem/token-taken"
#: Whether a kernel is loaded for a kexec.
KEXEC_LOADED = "sys/kernel/kexec_loaded"
BOOT_ID = "proc/sys/kernel/random/boot_id"

# ---- memory
#: Is there whenever sysfs is.
SYSTEM = "sys/devices/system"
MEMORY = "sys/devices/system/memory"
BLOCK_SIZE = "sys/devices/system/memory/block_size_bytes"
AUTO_ONLINE = "sys/devices/system/memory/auto_online_blocks"
NODES = "sys/devices/system/node"
#: Numbers and ranges of numbers: nodes with memory, held memory as well, or with processors.
NODES_ONLINE = "sys/devices/system/node/online"
IOMEM = "proc/iomem"
#: Is there whenever sysfs is; and what a kernel with hugetlb pages has in it.
KERNEL_MM = "sys/kernel/mm"
HUGEPAGES = "sys/kernel/mm/hugepages"
MEMINFO = "proc/meminfo"
#: The range that `crashkernel=` has reserved, in bytes; and how often a crash kernel may still be loaded (Linux 6.3).
CRASH_SIZE = "sys/kernel/kexec_crash_size"
LOAD_LIMIT = "proc/sys/kernel/kexec_load_limit_panic"
#: Huge pages of one size, `{}` is in KiB: of all nodes, and of one (Documentation/admin-guide/mm/hugetlbpage.rst).
HUGE = "sys/kernel/mm/hugepages/hugepages-{}kB"
NODE_HUGE = "sys/devices/system/node/node{}/hugepages/hugepages-{}kB"
#: 64 bits a page, in the order of their addresses (Documentation/admin-guide/mm/pagemap.rst).
PAGEFLAGS = "proc/kpageflags"
#: Ours: a hugetlbfs that only root reaches, which the archive's wrapper mounts, with a file for each node.
PAGES = "run/safemem/pages"

# ---- devices
#: A folder for each bus that the kernel knows; and one for each PCI function (Documentation/PCI/sysfs-pci.rst).
BUSES = "sys/bus"
PCI_DEVICES = "sys/bus/pci/devices"
#: An entry for each IOMMU in use, and one for each group of devices that it keeps apart.
IOMMU_CLASS = "sys/class/iommu"
IOMMU_GROUPS = "sys/kernel/iommu_groups"

# ---- machine and firmware
#: Ours: one line, which operators write and images carry.
MACHINE_CLASS = "etc/safemem/machine-class"
DMI_VENDOR = "sys/class/dmi/id/sys_vendor"
DMI_PRODUCT = "sys/class/dmi/id/product_name"
#: In this order; product_name first, as KVM may stand in it beside QEMU as the vendor.
DMI_NAMES = (
    DMI_PRODUCT, DMI_VENDOR, "sys/class/dmi/id/board_vendor", "sys/class/dmi/id/bios_vendor", "sys/class/dmi/id/product_version",
)  # fmt: skip
#: Firmware's BIOS table; with CONFIG_DMI_SYSFS, and for root only.
SMBIOS_BIOS = "sys/firmware/dmi/entries/0-0/raw"
#: Of machines with a device tree; a NUL ends it.
DT_MODEL = "proc/device-tree/model"
DT_COMPATIBLE = "proc/device-tree/compatible"
DT_HYPERVISOR = "proc/device-tree/hypervisor/compatible"
DT_QEMU = "proc/device-tree/chosen/qemu,graphic-width"
HYPERVISOR = "sys/hypervisor/type"
#: Is there in every domain of Xen; and what a domain may do.
XEN = "proc/xen"
XEN_FEATURES = "sys/hypervisor/properties/features"
XEN_CAPABILITIES = "proc/xen/capabilities"
CPUINFO = "proc/cpuinfo"
#: Leaves of CPUID by their number as the offset (CONFIG_X86_CPUID).
CPUID = "dev/cpu/0/cpuid"
CLOCKS = "sys/devices/system/clocksource/clocksource0/available_clocksource"
#: s390: the machine, its partition and what runs that.
SYSINFO = "proc/sysinfo"
#: Where a container's manager leaves its name, the most certain first: for whoever is in it, for systemd, to the first process.
FIRST_ENVIRONMENT = "proc/1/environ"
CONTAINER = ("run/host/container-manager", "run/systemd/container", FIRST_ENVIRONMENT)
#: OpenVZ: on a host and in its containers; on a host alone.
OPENVZ, OPENVZ_HOST = "proc/vz", "proc/bc"
CONTAINER_MARKS = (("run/.containerenv", "podman"), (".dockerenv", "docker"))
EFI = "sys/firmware/efi"
EFIVARS = "sys/firmware/efi/efivars"
#: Ours; the kernel shows a variable as NAME-GUID of its vendor.
ATTEMPTS = f"{EFIVARS}/SafememBootAttempts-8dd086fa-d2ca-4504-b0ce-17eb3fb081c5"
