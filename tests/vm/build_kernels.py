# SPDX-License-Identifier: MIT
"""Build the kernels that the guests boot, from Debian's newest `linux-source-*` package.

    build_kernels.py [--if-missing] [--older]

Five small x86-64 kernels: `current`, and four that differ from it in one constant or option; from the same source the
kernel's selftests, which their test builds by itself where the kernels are not built here. With `--older` three of the
release before too, as long as Debian has its source: what happens in early boot differs. They end up in the user's cache
folder, where the tests find them first. apt gets a configuration of its own in a scratch folder: the machine's own
sources are only read.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.vm import selftests
from tests.vm.harness import CACHE, HERE, kernel

FOLDER = CACHE / "kernels"
OLDEST = (6, 19)  # the first release with LUO
PACKAGES = (
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "cpio",
    "gcc",
    "make",
    "libc6-dev",
    "xz-utils",
    "kmod",
    "rsync",
)
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES = ("{codename}-backports", "testing", "unstable", "experimental")
NEEDED = ("KEXEC_HANDOVER", "KEXEC_HANDOVER_DEBUGFS", "LIVEUPDATE", "LIVEUPDATE_MEMFD", "MEMORY_HOTPLUG", "IKCONFIG_PROC",
          "ACPI_HOTPLUG_MEMORY", "VIRTIO_CONSOLE", "KEXEC_FILE", "CRASH_DUMP")  # fmt: skip


class Variant(NamedTuple):
    """A kernel that differs from `current` in one constant of a header, or in one option."""

    name: str
    format: str = ""  #: the `#define … "FORMAT-vN"` that gets the version before N
    off: tuple[str, ...] = ()  #: options


VARIANTS = (
    Variant("current"),
    Variant("old-kho", format="kho"),
    Variant("old-luo", format="luo"),
    Variant("no-debugfs", off=("KEXEC_HANDOVER_DEBUGFS",)),
    Variant("no-kho", off=("LIVEUPDATE", "KEXEC_HANDOVER")),
)
#: The last release that accepts a handover with nothing but scratch as early memory, and what is built of it: `7.2-NAME`.
OLDER = (7, 2)
OLDER_VARIANTS = tuple(variant for variant in VARIANTS if variant.name in ("current", "old-kho", "no-kho"))


def main(words: list[str]) -> None:
    """Build what is not there yet."""
    if set(words) - {"--if-missing", "--older"}:
        sys.exit(__doc__)
    there = _found if "--if-missing" in words else _built
    missing = tuple(variant for variant in VARIANTS if not there(variant.name))
    if missing and there is _found:
        # From one source all of them, or none: what differs between two is to be the variant.
        missing = tuple(variant for variant in VARIANTS if not _built(variant.name))
    older = tuple(item for item in OLDER_VARIANTS if not there(older_name(item))) if "--older" in words else ()
    if not missing and not older:
        if there is _built:
            print(f"the kernels are in {FOLDER}; remove that folder to build them again")
        return
    started = time.monotonic()
    print(f"building the guests' kernels, once: ten minutes on two cores a release; they stay in {FOLDER}", flush=True)
    install_packages()
    if missing:
        with _scratch() as base:
            tree = unpack(download(base), base)
            selftests.build(lambda: tree)
            configure(tree)
            for variant in missing:
                build(tree, variant, variant.name)
    if older:
        with _scratch() as base:
            package = find(base, OLDER)
            if package is None:
                print(
                    f"LEFT OUT: kernels of Linux {_release(OLDER)}: their source cannot be had, and what they show is missing"
                )
                return
            tree = unpack(package, base)
            configure(tree)
            for variant in older:
                build(tree, variant, older_name(variant))
    print(f"done: {FOLDER}, {time.monotonic() - started:.0f} s")


def older_name(variant: Variant) -> str:
    """Return the name of a kernel of the release before."""
    return f"{_release(OLDER)}-{variant.name}"


def _release(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="safemem-kernels-", dir=_roomy()) as scratch:
        yield Path(scratch)


def _built(name: str) -> bool:
    return (FOLDER / name).exists()


def _found(name: str) -> bool:
    try:
        return kernel(name).is_file()
    except FileNotFoundError:
        return False


def _roomy() -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(CACHE).free
    if free < 6 << 30:
        sys.exit(f"building kernels takes 6 GiB below {CACHE}, and {free >> 20} MiB are free there")
    return CACHE


def install_packages() -> None:
    """Install the tools that a kernel is built with, if any is missing."""
    status = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Status}\n", *PACKAGES], capture_output=True, text=True
    )
    there = {line.split()[0] for line in status.stdout.splitlines() if line.endswith("ok installed")}
    lacking = [name for name in PACKAGES if name not in there]
    if lacking:
        print(f"installing: {' '.join(lacking)}", flush=True)
        prefix = [] if os.geteuid() == 0 else ["sudo"]
        subprocess.run([*prefix, "apt-get", "update", "-qq"], check=True)
        subprocess.run(
            [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends", *lacking],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip


def download(base: Path) -> Path:
    """Return the newest linux-source package that the machine's own mirror has."""
    package = find(base)
    if package is None:
        sys.exit(f"Debian has no linux-source package of version {_release(OLDEST)} or later")
    return package


def find(base: Path, version: tuple[int, int] | None = None) -> Path | None:
    """Return the linux-source package of that version, or the newest, from the machine's own mirror; None if it has none."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    mirrors = [line.split() for line in targets.splitlines()]
    mirror = next((words for words in mirrors if words[1:2] == [codename]), None)
    if mirror is None:
        sys.exit(f"apt on this machine has no source for {codename or 'its release'}: which mirror to use is not known")
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    for folder in ("lists/partial", "cache/archives/partial", "etc"):
        (base / folder).mkdir(parents=True)
    options = ["-o", f"Dir::State::lists={base}/lists", "-o", f"Dir::Cache={base}/cache", "-o", "Dir::Etc::sourceparts=-",
               "-o", f"Dir::Etc::sourcelist={base}/etc/sources.list", "-o", "APT::Sandbox::User=root",
               "-o", "Acquire::Languages=none"]  # fmt: skip
    for suite in (template.format(codename=codename) for template in SUITES):
        (base / "etc/sources.list").write_text(f"deb {signed}{mirror[0]} {suite} main\n")
        print(f"looking for linux-source in {suite} on {mirror[0]}", flush=True)
        update = subprocess.run(["apt-get", *options, "update", "-qq"], stderr=subprocess.PIPE, text=True)
        if update.returncode:
            print(f"{suite} cannot be used: {update.stderr.strip().splitlines()[0]}")
            continue
        names = subprocess.run(["apt-cache", *options, "pkgnames", "linux-source-"], capture_output=True, text=True)
        found = [match for name in names.stdout.split() if (match := re.fullmatch(r"linux-source-(\d+)\.(\d+)", name))]
        versions = [(int(match[1]), int(match[2])) for match in found]
        chosen = max((item for item in versions if version in (None, item)), default=(0, 0))
        if chosen >= OLDEST:
            name = f"linux-source-{_release(chosen)}"
            print(f"downloading {name} from {suite}", flush=True)
            subprocess.run(["apt-get", *options, "download", "-qq", name], check=True, cwd=base)
            return next(base.glob("linux-source-*.deb"))
    return None


def unpack(package: Path, base: Path, parts: tuple[str, ...] = ()) -> Path:
    """Return the folder of the unpacked kernel source, or of these parts of it."""
    print(f"unpacking {package.name}", flush=True)
    subprocess.run(["dpkg-deb", "-x", package, base / "deb"], check=True)
    archive = next((base / "deb/usr/src").glob("linux-source-*.tar.*"))
    (base / "tree").mkdir()
    only = ("--wildcards", *(f"*/{part}" for part in parts)) if parts else ()
    subprocess.run(["tar", "-xf", archive, "-C", base / "tree", "--strip-components=1", *only], check=True)
    shutil.rmtree(base / "deb")
    return base / "tree"


def configure(tree: Path) -> None:
    """Write .config: the smallest one, with what the guests need on top. Exits if an option cannot be had."""
    _make(tree, "tinyconfig")
    subprocess.run(
        ["scripts/kconfig/merge_config.sh", "-m", ".config", HERE / "fragment.config"],
        check=True, cwd=tree, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _make(tree, "olddefconfig")
    lines = set((tree / ".config").read_text().splitlines())
    wanted = (HERE / "fragment.config").read_text().split()
    lost = [line for line in wanted if line.startswith("CONFIG_") and line not in lines]
    if lost:
        print(f"not to be had in this version: {', '.join(lost)}")
    fatal = [name for name in NEEDED if f"CONFIG_{name}=y" not in lines]
    if fatal:
        sys.exit(f"the kernel lacks what the tests are about: {', '.join(fatal)}")


def build(tree: Path, variant: Variant, called: str) -> None:
    """Build one kernel and put it into the cache, `called` so."""
    started = time.monotonic()
    config = (tree / ".config").read_bytes()
    header, text = _older(tree, variant.format) if variant.format else (None, "")
    if header:
        header.write_text(text)
    if variant.off:
        subprocess.run(
            ["scripts/config", *(word for name in variant.off for word in ("-d", name))], check=True, cwd=tree
        )
        _make(tree, "olddefconfig")
    _compile(tree, called)
    draft = FOLDER / f".{called}.new"
    FOLDER.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tree / "arch/x86/boot/bzImage", draft)
    draft.rename(FOLDER / called)
    print(f"\r\x1b[K{called}: {time.monotonic() - started:.0f} s", flush=True)
    (tree / ".config").write_bytes(config)
    if header:
        header.write_text(_swap(text, variant.format, +1))


def _older(tree: Path, name: str) -> tuple[Path, str]:
    """Return the source file that defines the version of format `name`, and its text with the version before."""
    for folder in ("include/linux/kho", "kernel/liveupdate"):
        for path in sorted((tree / folder).rglob("*.[ch]")):
            text = path.read_text()
            if _swap(text, name, -1) != text:
                return path, _swap(text, name, -1)
    raise SystemExit(f"this kernel's source does not define a version `{name}-vN`")


def _swap(text: str, name: str, step: int) -> str:
    # The constant's own name has changed between releases (LUO_FDT_COMPATIBLE, LUO_ABI_COMPATIBLE).
    return re.sub(rf'(#define\s+\w+\s+"{name}-v)(\d+)', lambda match: f"{match[1]}{int(match[2]) + step}", text)


def _compile(tree: Path, name: str) -> None:
    """Run make and show how many files it has compiled."""
    command = ["make", f"-j{os.cpu_count()}", "bzImage"]
    log = tree / "make.log"
    done, shown = 0, 0.0
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in process.stdout or ():
            out.write(line)
            done += line.startswith("  CC ")
            if time.monotonic() - shown > (1 if sys.stdout.isatty() else 30):
                shown = time.monotonic()
                end = "" if sys.stdout.isatty() else "\n"
                print(
                    f"\r\x1b[K{name}: {done} files compiled" if not end else f"{name}: {done} files compiled",
                    end=end,
                    flush=True,
                )
    if process.wait():
        sys.exit(f"building {name} failed:\n" + "".join(log.read_text().splitlines(keepends=True)[-20:]))


def _make(tree: Path, target: str) -> None:
    subprocess.run(["make", "-s", target], check=True, cwd=tree, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(sys.argv[1:])
