# SPDX-License-Identifier: MIT
"""Build the archive that puts safemem into any initrd.

Everything is private to /usr/lib/safemem, loader and C library included: an archive that is
appended to a foreign initrd must not replace that initrd's own libraries.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safemem.boot import compiled, model
from safemem.initramfs.cpio import Archive
from safemem.realroot import udevrules

PREFIX = "usr/lib/safemem"
POLICIES = f"{PREFIX}/policies"
_FILES = Path(__file__).resolve().parent / "files"
_PACKAGE = _FILES.parent.parent


class BuildError(Exception):
    """The archive could not be built; the message says why."""


class Cost(NamedTuple):
    """What the archive adds to an initrd, in bytes."""

    raw: int
    compressed: int | None  #: with zstd -19; None if zstd is not installed
    files: int
    biggest: tuple[tuple[str, int], ...]


class Item(NamedTuple):
    """One file of an initramfs."""

    data: bytes
    mode: int


#: Runs in the interpreter that is to be shipped. Loads the boot program, takes it through a boot
#: and a capture on a fake root, and lists what that loaded.
_LIST_MODULES = """
import sys
sys.path.insert(0, sys.argv[1])
from safemem.boot.main import main
for words in (["--root", sys.argv[2]], ["--root", sys.argv[2], "capture"], ["--root", sys.argv[3]]):
    main(words)
from safemem.boot import handover_args
handover_args.main(["--root", sys.argv[2]])
import fcntl  # what files.make_mutable needs where there are EFI variables
from safemem.boot import fdt
files = {}
for name, module in list(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    if spec is None or name == "__main__":
        continue
    # `os` is frozen into the interpreter, but finding its file is how Python finds its own folder.
    files[name] = module.__file__ if spec.has_location or name == "os" else None
import json  # only now: it brings more modules than the boot program has
print("\\n" + json.dumps({"files": files, "version": "python%d.%d" % sys.version_info[:2]}))
"""

_COMPILE = """
import json, py_compile, sys
# Level 2 leaves out docstrings and assertions: nothing on the boot path asserts.
for source, target, shown in json.load(sys.stdin):
    py_compile.compile(source, target, shown, True, 2, py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""


def build(policy: bytes, out: Path, interpreter: str | None = None, more: Mapping[str, bytes] | None = None) -> Cost:
    """Write the archive with the compiled `policy`, and `more` files by path, to `out`, after running it once.

    Raises:
        BuildError: something is missing, or the result does not run; `out` is left as it was.
    """
    items = files(policy, interpreter)
    items.update(plain(more or {}))
    data = _archive(items)
    draft = out.with_name(f".{out.name}.new")
    try:
        draft.write_bytes(data)
        draft.rename(out)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise BuildError(f"{out}: {(error.strerror or 'cannot be written').lower()}") from None
    sizes = sorted(((path, len(item.data)) for path, item in items.items()), key=lambda pair: -pair[1])
    return Cost(len(data), _compressed(data), len(items), tuple(sizes[:5]))


def files(policy: bytes, interpreter: str | None = None) -> dict[str, Item]:
    """Return every file that an initramfs needs for the compiled `policy`, by path, after running them once.

    Raises:
        BuildError: something is missing, or the program does not run.
    """
    checked = compiled.load(policy, "policy")
    python = os.path.realpath(interpreter or getattr(sys, "_base_executable", "") or sys.executable)
    try:
        with tempfile.TemporaryDirectory(prefix="safemem-image-") as scratch:
            items = _collect(Path(scratch), python, policy, checked)
            _try_out(Path(scratch) / "try", items)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None)
        raise BuildError(f"cannot build the archive with {python}: {_last_line(detail) or error}") from None
    return items


def policies(named: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of the compiled policies that `safemem.policy=NAME` may name."""
    return {f"{POLICIES}/{name}.json": policy for name, policy in named.items()}


def plain(items: Mapping[str, bytes]) -> dict[str, Item]:
    """Return files that anybody may read and nobody runs."""
    return {path: Item(data, 0o644) for path, data in items.items()}


def put(items: dict[str, Item], folder: Path) -> None:
    """Write the files below `folder`, such as the tree that a distribution makes its initramfs of. Raises OSError."""
    for path, item in items.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(item.data)
        (folder / path).chmod(item.mode)


def _collect(scratch: Path, python: str, policy: bytes, checked: model.Policy) -> dict[str, Item]:
    """Return every file of the archive: interpreter, libraries, modules, policy, wrapper."""
    listing = _listing(scratch, python, policy)
    home = f"{PREFIX}/lib/{listing['version']}"
    items = {
        f"{PREFIX}/handover-args": Item(shipped("handover-args.sh"), 0o755),
        f"{PREFIX}/policy.json": Item(policy, 0o644),
        f"{PREFIX}/boot": Item(_wrapper(checked), 0o755),
        f"{PREFIX}/gate.sh": Item(gate(checked.on_failure), 0o644),
        f"{PREFIX}/masks": Item("".join(f"{name}\n" for name in udevrules.masks("/")).encode(), 0o644),
        # Where an initrd has udev, the rule works there too; the real root's own copy takes over.
        "usr/lib/udev/rules.d/60-safemem.rules": Item(beside("udev/60-safemem.rules"), 0o644),
    }
    binaries = {f"{PREFIX}/bin/python3": python}
    sources: list[tuple[str, str, str]] = []
    for name, file in sorted(listing["files"].items()):
        if file is None:
            continue
        parts = name.split(".")
        if Path(file).name.startswith("__init__."):
            parts.append("__init__")
        if not file.endswith(".py"):
            binaries[f"{home}/lib-dynload/{Path(file).name}"] = file
        elif parts[0] == "safemem":
            sources.append((file, f"{PREFIX}/app/{'/'.join(parts)}.pyc", f"{'/'.join(parts)}.py"))
        else:
            sources.append((file, f"{home}/{'/'.join(parts)}.pyc", f"{listing['version']}/{'/'.join(parts)}.py"))
    jobs = [(source, str(scratch / target), shown) for source, target, shown in sources]
    subprocess.run([python, "-I", "-c", _COMPILE], input=json.dumps(jobs), text=True, check=True, capture_output=True)
    for _, target, _ in sources:
        items[target] = Item((scratch / target).read_bytes(), 0o644)
    loader, libraries = _libraries(list(binaries.values()))
    for target, file in {**binaries, **{f"{PREFIX}/lib/{Path(lib).name}": lib for lib in libraries}}.items():
        items[target] = Item(Path(file).read_bytes(), 0o755)
    items[f"{PREFIX}/lib/ld.so"] = Item(Path(loader).read_bytes(), 0o755)
    # Python looks for this folder, also when nothing is in it.
    items.setdefault(f"{home}/lib-dynload/README", Item(b"", 0o644))
    return dict(sorted(items.items()))


def _listing(scratch: Path, python: str, policy: bytes) -> dict[str, dict[str, str | None]]:
    """Return what the boot program loads, found by running it where it takes its rarer ways."""
    full, empty = scratch / "full", scratch / "empty"
    files = {
        f"{PREFIX}/policy.json": policy,
        f"{PREFIX}/masks": b"x.rules\n",
        f"{POLICIES}/other.json": policy,
        "proc/cmdline": b"kho=on safemem.policy=other safemem.safe=0-0xfff;crc32=0 safemem.guard=0-0xfff\n",
        "proc/config.gz": _gzip(b"CONFIG_KEXEC_HANDOVER=y\nCONFIG_KEXEC_HANDOVER_DEBUGFS=y\n"),
        "sys/kernel/boot_params/setup_data/0/type": b"0xa\n",
        "sys/kernel/debug/x": b"",
        "sys/devices/system/memory/block_size_bytes": b"8000000\n",
        "sys/devices/system/memory/memory0/state": b"online\n",
    }
    for path, data in files.items():
        (full / path).parent.mkdir(parents=True, exist_ok=True)
        (full / path).write_bytes(data)
    empty.mkdir()
    result = subprocess.run(
        [python, "-I", "-S", "-B", "-c", _LIST_MODULES, str(_PACKAGE.parent), str(full), str(empty)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    listing: dict[str, dict[str, str | None]] = json.loads(result.stdout.splitlines()[-1])
    return listing


def _gzip(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, mtime=0)


def _wrapper(policy: model.Policy) -> bytes:
    """Return boot.sh with the policy's `on_failure` written into it."""
    return wrapper(policy.on_failure, shipped("boot.sh").decode())


def shipped(name: str) -> bytes:
    """Return one of the files in safemem/initramfs/files."""
    return (_FILES / name).read_bytes()


def beside(name: str) -> bytes:
    """Return a file that is installed in the package, or lies beside it in a checkout."""
    for folder in (_PACKAGE, _PACKAGE.parent):
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    raise BuildError(f"{name} is neither in {_PACKAGE} nor beside it: the installation is not complete")


def gate(failure: model.Failure) -> bytes:
    """Return what an init that is a shell script sources; it knows `on_failure` too, for a wrapper that is not there."""
    keys = {"panic": "c b", "reboot": "b c"}.get(failure.action, "")
    template = shipped("gate.sh").decode()
    filled = template.replace("KEYS=''", f"KEYS='{keys}'")
    if filled.count(f"KEYS='{keys}'") != 1:
        raise BuildError("gate.sh has no line KEYS='' to replace")
    return filled.encode()


def wrapper(failure: model.Failure, template: str, root: str = "") -> bytes:
    """Return the wrapper script for one `on_failure`; `root` is for tests."""
    values = {
        "ROOT": root,
        "ON_FAILURE": failure.action,
        "MESSAGE": failure.message or "safemem could not decide",
        "DEADLINE": str(failure.deadline),
    }
    for name, value in values.items():
        quoted = "'" + value.replace("'", "'\\''") + "'"
        template, found = re.subn(f"^{name}='.*'$", lambda _, line=f"{name}={quoted}": line, template, flags=re.M)  # type: ignore[misc]
        if found != 1:
            raise BuildError(f"boot.sh has no line {name}='…' to replace")
    return template.encode()


def _libraries(binaries: list[str]) -> tuple[str, set[str]]:
    """Return the loader of `binaries` and the libraries that it would load for them."""
    loader, found = "", set()
    for binary in binaries:
        out = subprocess.run(["ldd", binary], check=True, capture_output=True, text=True).stdout
        for line in out.splitlines():
            if " => " in line:
                path = line.split(" => ")[1].split(" (")[0].strip()
                if path == "not found":
                    raise BuildError(f"{binary} needs {line.split()[0]}, which is not installed")
                found.add(path)
            elif line.strip().startswith("/"):
                loader = line.split()[0]
    if not loader:
        raise BuildError(f"{binaries[0]} has no loader: a statically linked interpreter cannot be used")
    return loader, found


def _try_out(root: Path, items: dict[str, Item]) -> None:
    """Run the archive's own program, in a chroot where that is allowed, so that nothing of this machine helps it."""
    put(items, root)
    inside = os.geteuid() == 0
    base = "" if inside else str(root)
    code = f"import sys; sys.path.insert(0, '{base}/{PREFIX}/app'); from safemem.boot.main import main; sys.exit(main(sys.argv[1:]))"
    command = [f"{base}/{PREFIX}/lib/ld.so", "--library-path", f"{base}/{PREFIX}/lib", f"{base}/{PREFIX}/bin/python3"]
    result = subprocess.run(
        [*command, "-I", "-S", "-B", "-c", code, *([] if inside else ["--root", str(root)]), "capture"],
        preexec_fn=(lambda: os.chroot(root)) if inside else None,
        env={}, cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    if json.loads(result.stdout)["kind"] != "capture":
        raise BuildError("the archive was built, but its program does not answer")


def _archive(items: dict[str, Item]) -> bytes:
    out = io.BytesIO()
    archive = Archive(out)
    for path, item in items.items():
        archive.file(path, item.data, item.mode)
    archive.close()
    return out.getvalue()


def _compressed(data: bytes) -> int | None:
    zstd = shutil.which("zstd")
    if zstd is None:
        return None
    return len(subprocess.run([zstd, "-19", "-q", "-c"], input=data, check=True, capture_output=True).stdout)


def _last_line(text: str | bytes | None) -> str:
    lines = (text.decode("utf-8", "replace") if isinstance(text, bytes) else text or "").strip().splitlines()
    return lines[-1] if lines else ""
