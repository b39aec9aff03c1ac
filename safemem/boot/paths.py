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
#: Arguments of the kernel for the size of the scratch areas: since Linux 7.4, and before.
SCRATCH_ARGUMENT = ("kho_bootmem", "kho_scratch")
DEBUGFS = "sys/kernel/debug"
LUO_DEVICE = "dev/liveupdate"
LUO_CLASS = "sys/class/misc/liveupdate"
CLASSES = ("sys/class/misc", "sys/class")

# ---- what the predecessor left
#: Is there whenever sysfs is.
KERNEL = "sys/kernel"
#: x86: the zero page and the list behind it (Documentation/arch/x86/zero-page.rst).
BOOT_PARAMS_FOLDER = "sys/kernel/boot_params"
BOOT_PARAMS = "sys/kernel/boot_params/data"
SETUP_DATA = "sys/kernel/boot_params/setup_data"
#: Machines with a device tree.
DEVICE_TREE = "proc/device-tree"
CHOSEN = "proc/device-tree/chosen"
CHOSEN_KHO = "linux,kho-fdt"

# ---- the kernel itself
CMDLINE = "proc/cmdline"
RELEASE = "proc/sys/kernel/osrelease"
ARCH = "proc/sys/kernel/arch"
#: The configuration; `{}` is the running release.
CONFIG = ("proc/config.gz", "boot/config-{}", "usr/lib/modules/{}/config")
KMSG = "dev/kmsg"
SYSRQ = "proc/sysrq-trigger"
UPTIME = "proc/uptime"
BOOT_ID = "proc/sys/kernel/random/boot_id"

# ---- memory
#: Is there whenever sysfs is.
SYSTEM = "sys/devices/system"
MEMORY = "sys/devices/system/memory"
BLOCK_SIZE = "sys/devices/system/memory/block_size_bytes"
AUTO_ONLINE = "sys/devices/system/memory/auto_online_blocks"
NODES = "sys/devices/system/node"
IOMEM = "proc/iomem"
MEMINFO = "proc/meminfo"
#: The range that `crashkernel=` has reserved, in bytes; and how often a crash kernel may still be loaded (Linux 6.3).
CRASH_SIZE = "sys/kernel/kexec_crash_size"
LOAD_LIMIT = "proc/sys/kernel/kexec_load_limit_panic"

# ---- machine and firmware
DMI_VENDOR = "sys/class/dmi/id/sys_vendor"
DMI_PRODUCT = "sys/class/dmi/id/product_name"
HYPERVISOR = "sys/hypervisor/type"
CPUINFO = "proc/cpuinfo"
EFI = "sys/firmware/efi"
EFIVARS = "sys/firmware/efi/efivars"
#: Ours; the kernel shows a variable as NAME-GUID of its vendor.
ATTEMPTS = f"{EFIVARS}/SafememBootAttempts-8dd086fa-d2ca-4504-b0ce-17eb3fb081c5"
